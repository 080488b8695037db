"""How far long work has come: who wants to know is called with the bytes that are done, and with those in all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pystreamlog.errors import ConfigError
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import Files
from pystreamlog.storage.segment import occupied

__all__ = ["LookMeter", "Progress", "check_progress"]

Progress = Callable[[int, int], object]


def check_progress(progress: Progress | None) -> None:
    """Refuse what cannot be called.

    Raises:
        ConfigError: It cannot.
    """
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress is called with two numbers of bytes; {progress!r} cannot be")


class LookMeter:
    """Tells how far looks through a log have come.

    Args:
        files: The door to the log's directory.
        progress: Is told; None if nobody is.
        looks: How often the log is looked through.
    """

    def __init__(self, files: Files, progress: Progress | None, *, looks: int) -> None:
        check_progress(progress)
        self._progress = progress
        self._look = _segment_bytes(files) if progress is not None else 0
        self._total = looks * self._look
        self._until = self._look
        self._done = 0
        self._tell(0)

    def add(self, size: int) -> None:
        """So many bytes more. A partition that somebody writes may be looked at again: that is no progress."""
        self._tell(min(self._until, self._done + size))

    def end_look(self) -> None:
        """The log was looked through once."""
        self._tell(self._until)
        self._until += self._look

    def _tell(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(done, self._total)


def _segment_bytes(files: Files) -> int:
    """The bytes of all segments of a log."""
    total = 0
    for topic in _folders(files, "topics"):
        for partition in _folders(files, topic):
            for name in files.list(partition):
                if name.endswith(layout.SEGMENT_SUFFIX):
                    with suppress(FileNotFoundError):
                        total += occupied(files.status(f"{partition}/{name}"))
    return total


def _folders(files: Files, folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in files.list_directories(folder)]
    except FileNotFoundError:
        return []
