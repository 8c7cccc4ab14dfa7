"""Default settings of the demo's training, which `demo.run` and `demo.train` share."""

STEPS = 200
BATCH_SIZE = 8
LEARNING_RATE = 5e-4
SEED = 0
