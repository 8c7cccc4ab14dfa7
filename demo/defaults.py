"""Default settings of the demo's training, which `demo.run` and `demo.train` share."""

STEPS = 200
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
SEED = 0
