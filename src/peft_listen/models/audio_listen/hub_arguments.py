"""Arguments of `from_pretrained` that are passed on to the other files of a checkpoint."""

import os
from collections.abc import Iterable
from typing import Any


Source = str | os.PathLike[str]

# How to reach the Hub. They hold for every repository of one call.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# Which files of a repository. They hold for that repository only.
FILE_ARGUMENTS = ("revision", "subfolder")
# A part of a model may also be a single GGUF file of a repository.
PART_FILE_ARGUMENTS = (*FILE_ARGUMENTS, "gguf_file")


def subset(kwargs: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The items of `kwargs` whose name is in `names`."""
    return {name: kwargs[name] for name in names if name in kwargs}
