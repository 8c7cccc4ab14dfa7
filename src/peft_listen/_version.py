"""The version of the package. Imports nothing: the build and `peft-listen --version` read it."""

__version__ = "0.1.0.dev0"
