"""The demo behind `make demo`: dataset, base model, training and evaluation."""

from peft_listen_cli.library_messages import hide_missing_kernel


# Here, because the commands in this package import PEFT at their beginning.
hide_missing_kernel()
