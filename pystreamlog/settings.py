"""How settings are checked: unknown names, wrong types and values out of range are `ConfigError`s that say what to do.

Configs are small frozen attrs classes beside their owner; each field is checked when the config is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import attrs

from pystreamlog.errors import ConfigError

__all__ = ["boolean", "build", "integer", "number", "one_of", "unknown_setting"]

T = TypeVar("T")
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def unknown_setting(name: str, known: Collection[str], what: str) -> ConfigError:
    """The error for a setting that does not exist, with the nearest one that does."""
    import difflib  # noqa: PLC0415 - needed once something is wrong; it would be a tenth of the import time

    near = difflib.get_close_matches(name.replace(".", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return ConfigError(f"unknown {what} setting {name!r}: {hint}")


def build(config_type: type[T], values: Mapping[str, Any], what: str) -> T:
    """A config from keyword arguments.

    Args:
        config_type: An attrs class.
        values: Settings by name; the others get their defaults.
        what: Whose settings these are, for messages ("topic", "producer").

    Raises:
        ConfigError: An unknown name, a wrong type, or a value out of range.
    """
    known = {field.name for field in attrs.fields(config_type) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown_setting(name, known, what)
    return config_type(**values)


def boolean(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """True or False."""
    if type(value) is not bool:
        raise ConfigError(f"{attribute.name} is True or False, not {value!r}")


def integer(minimum: int, maximum: int = 2**63 - 1) -> Validator:
    """A whole number from `minimum` to `maximum`."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int:
            raise ConfigError(f"{attribute.name} is a whole number, not {value!r}")
        if not minimum <= value <= maximum:
            raise ConfigError(f"{attribute.name}={value} is out of range: from {minimum} to {maximum}")

    return check


def number(minimum: float, maximum: float) -> Validator:
    """A number from `minimum` to `maximum`."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) not in (int, float):
            raise ConfigError(f"{attribute.name} is a number, not {value!r}")
        if not minimum <= value <= maximum:  # type: ignore[operator]  # a number, as was seen
            raise ConfigError(f"{attribute.name}={value} is out of range: from {minimum} to {maximum}")

    return check


def one_of(*choices: str) -> Validator:
    """One of these strings."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            raise ConfigError(f"{attribute.name}={value!r} is none of {', '.join(map(repr, choices))}")

    return check
