"""Names in the output folder of a training run, which other commands find by them."""

MODEL_NAME = "model"
SELECTIONS_NAME = "selections.safetensors"
SETTINGS_NAME = "settings.json"
