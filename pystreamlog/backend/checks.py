"""What settings of producers and consumers have in common: serdes, callbacks and interceptors are checked at birth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from pystreamlog.coordination.names import check_text
from pystreamlog.errors import ConfigError

__all__ = ["callable_or_none", "checked_serde", "interceptors", "serde_or_none", "text_or_none"]


def checked_serde(serde: object, name: str) -> None:
    """Refuse what cannot turn values into bytes and back.

    Raises:
        ConfigError: It lacks `dumps` or `loads`.
    """
    methods = getattr(serde, "dumps", None), getattr(serde, "loads", None)
    if serde is not None and (isinstance(serde, type) or not all(map(callable, methods))):
        raise ConfigError(
            f"{name}={serde!r} is no serde, an object with dumps and loads: pass one of pystreamlog.serde, for example "
            f"string, json or struct(SomeType)"
        )


def serde_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A serde, or None."""
    checked_serde(value, attribute.name)


def text_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A text that names something in the log's files, or None."""
    if value is not None:
        check_text(value, attribute.name)


def callable_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Something to call, or None."""
    if value is not None and not callable(value):
        raise ConfigError(f"{attribute.name} is a callable, not {value!r}")


def interceptors(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A list or tuple of objects."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ConfigError(f"{attribute.name} is a list or tuple of interceptors, not {value!r}")
