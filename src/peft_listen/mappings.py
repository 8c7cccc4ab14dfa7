"""Options that are mappings: as such in a file, and as a JSON object in text on the command line."""

import json
from typing import Any


def parse_mapping(name: str, value: Any) -> dict[str, Any] | None:
    """
    Reads an option that is a mapping.

    Args:
        name (`str`): name of the option, for messages.
        value (`dict`, `str` or `None`): the mapping, or a JSON object.

    Returns:
        `dict` or `None`: the mapping, or `None` if there is none.

    Raises:
        ValueError: if the value is neither a mapping nor a JSON object in text.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` must be a JSON object, got {value!r}.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping, got {value!r}.")
    return value
