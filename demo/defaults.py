"""What several stages of the demo share: the default settings of the training, and names of files."""

STEPS = 400
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
SEED = 0

# A few hundred steps are enough to train a projector whose embeddings are larger than those of text; see docs/method.md.
AUDIO_SCALE = 8.0

# The sounds are learned in the first steps, what a voice is like last.
TASK_WEIGHTS = {"keyword": 0.9, "speaker": 1.5, "emotion": 1.3, "sound": 0.3}

# The selections of the test clips, in the folder of their answers.
SELECTIONS = "selections.safetensors"
