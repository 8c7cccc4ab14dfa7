"""Messages of other libraries that the commands of this repository do not show."""

import logging


_BITSANDBYTES_CPU = "bitsandbytes.backends.cpu.ops"
_MISSING_KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community"


def hide_missing_kernel() -> None:
    """
    Hides the message that bitsandbytes logs when it is imported without the package `kernels`.

    PEFT imports bitsandbytes if it is installed, so every command would begin with what looks like a failed installation.
    The kernel makes 4-bit models faster on some CPUs; nothing needs it. Commands call this function before they import PEFT.
    Importing `peft_listen` does not, because a library leaves the logging of its users as it is.
    """
    logging.getLogger(_BITSANDBYTES_CPU).addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MISSING_KERNEL)
