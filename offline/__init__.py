"""Small real models and synthetic audio without the Hub. The demo and the benchmarks use them."""

from peft_listen_cli.library_messages import hide_missing_kernel


# Here, because the commands in this package import PEFT at their beginning.
hide_missing_kernel()
