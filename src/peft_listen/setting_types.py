"""Types and ranges of settings: of processors and feature extractors, which are read from files too, of server and page."""

import math
from dataclasses import fields
from typing import Any


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raises a `ValueError` that names the setting unless it is an integer of at least `minimum`, and not a truth value."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")


def check_number(name: str, value: Any) -> None:
    """Raises a `ValueError` that names the setting unless it is a finite number, and not a truth value."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raises a `ValueError` that names the setting unless it is a finite number above 0."""
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}.")


def check_switch(name: str, value: Any) -> None:
    """Raises a `ValueError` that names the setting unless it is `True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def check_limits(settings: Any) -> None:
    """
    Raises a `ValueError` that names the class and the field of a dataclass whose value is no limit: an `int` must be at least 1,
    and a `float` finite and above 0. Fields of other types are left out.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        try:
            if field.type is int:
                check_integer(field.name, value)
            elif field.type is float:
                check_positive(field.name, value)
        except ValueError as error:
            raise ValueError(f"{type(settings).__name__}: {error}") from None
