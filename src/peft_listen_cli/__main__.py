"""`python -m peft_listen_cli`, for launchers that take a module: `accelerate launch -m peft_listen_cli ...`."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
