"""Settings from the command line: `name=value` becomes what the setting's default is: a number, a truth, a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from pystreamlog.errors import ConfigError
from pystreamlog.settings import unknown_setting

__all__ = ["parse_settings"]

_TRUTHS = {"true": True, "false": False}


def parse_settings(
    pairs: Iterable[str], config_type: type[Any], what: str, *, verbatim: bool = False
) -> dict[str, Any]:
    """The values that some `name=value` say, by name; names may have dots, as Kafka's have.

    Args:
        pairs: As they were typed.
        config_type: The attrs class whose settings they are.
        what: Whose settings these are, for messages ("topic", "producer").
        verbatim: Blanks around a text belong to it, as those of a separator do.

    Raises:
        ConfigError: A name is unknown or comes twice, or a value is none of its kind.
    """
    fields = {field.name: field for field in attrs.fields(config_type) if field.init}
    values: dict[str, Any] = {}
    for pair in pairs:
        typed, separator, text = pair.partition("=")
        name = typed.strip().replace(".", "_")
        if not separator:
            raise ConfigError(f"{pair!r} sets nothing: write {name or 'name'}=value")
        if name not in fields:
            raise unknown_setting(typed.strip(), fields, what)
        if name in values:
            raise ConfigError(f"{name} is set twice")
        values[name] = _parsed(name, text if verbatim else text.strip(), fields[name].default)
    return values


def _parsed(name: str, text: str, default: object) -> Any:
    """The text as what the default is."""
    if isinstance(default, bool):
        truth = _TRUTHS.get(text.strip().lower())
        if truth is None:
            raise ConfigError(f"{name} is true or false, not {text!r}")
        return truth
    if isinstance(default, int):
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{name} is a whole number, not {text!r}") from None
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{name} is a number, not {text!r}") from None
    return text
