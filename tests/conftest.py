"""Settings of all tests. Their shared fixtures are in `shared_fixtures.py`."""

import os


# huggingface_hub and tokenizers read these when they are imported, so no library is imported here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = ["tests.shared_fixtures"]
