"""Supported versions of transformers and PEFT."""

import importlib.metadata
import re
import warnings


# The newest minor versions under which the whole suite has passed (`make test-newest`).
NEWEST_TESTED = {"transformers": "5.24", "peft": "0.21"}

# The tuner works with the lower bounds of pyproject.toml. The audio models use newer parts of transformers.
AUDIO_NEEDS_TRANSFORMERS = "5.23"


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version.

    ```python
    >>> release("5.24.1"), release("6.0.dev0")
    ((5, 24), (6, 0))

    ```
    """
    major, minor = re.findall(r"\d+", f"{version}.0")[:2]
    return int(major), int(minor)


def untested_versions() -> list[str]:
    """Lists the installed libraries that are newer than the newest tested version: `"peft 0.30.0 (tested up to 0.21)"`."""
    installed = {name: importlib.metadata.version(name) for name in NEWEST_TESTED}
    return [
        f"{name} {version} (tested up to {NEWEST_TESTED[name]})"
        for name, version in installed.items()
        if release(version) > release(NEWEST_TESTED[name])
    ]


def warn_about_untested_versions() -> None:
    """Warns about libraries that are newer than the newest tested version. They usually work, so there is no error."""
    untested = untested_versions()
    if untested:
        warnings.warn(
            f"peft-listen has not been tested with {' and '.join(untested)}. If something fails, install a tested "
            "version, or a newer peft-listen: pip install --upgrade peft-listen",
            stacklevel=2,
        )


def audio_is_supported() -> bool:
    """Whether the installed transformers is new enough for the audio models."""
    return release(importlib.metadata.version("transformers")) >= release(AUDIO_NEEDS_TRANSFORMERS)


def check_audio_is_supported() -> None:
    """
    Checks that the audio models can be imported.

    Raises:
        ImportError: if the installed transformers is too old for them.
    """
    if not audio_is_supported():
        raise ImportError(
            f"The audio models of peft-listen need transformers {AUDIO_NEEDS_TRANSFORMERS} or newer, but transformers "
            f"{importlib.metadata.version('transformers')} is installed. The tuner (ListenConfig, ListenModel) works with "
            f'it; for the audio models, run: pip install "transformers>={AUDIO_NEEDS_TRANSFORMERS}"'
        )
