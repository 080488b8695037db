"""Files that a command line names to say more than fits on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pystreamlog.errors import ConfigError, StreamLogError

__all__ = ["about_place", "read_text"]

_LARGEST = 64 << 20


def read_text(file: str) -> str:
    """All of a file of text in UTF-8; of the standard input for `-`.

    Raises:
        ConfigError: There is none, it cannot be read, is too large, or is no such text.
    """
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file!r} cannot be read: {reason}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{file!r} has more than {_LARGEST} bytes: that is no such file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file!r}, line {line}: no UTF-8") from error


@contextmanager
def about_place(place: str) -> Iterator[None]:
    """Have errors within say which place of a file they are about.

    Raises:
        StreamLogError: As within, or the first one of an `ExceptionGroup` within.
    """
    try:
        yield
    except (StreamLogError, ExceptionGroup) as error:
        first: BaseException = error
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, StreamLogError):
            raise
        raise type(first)(f"{place}: {first}", **vars(first)) from error
