"""Versions of what a benchmark's stored results depend on."""

import platform

import peft
import torch
import transformers

import peft_listen


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries, by name."""
    libraries = (torch, transformers, peft, peft_listen)
    return {"python": platform.python_version()} | {
        library.__name__: str(library.__version__) for library in libraries
    }
