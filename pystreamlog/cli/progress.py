"""How far a command came, on one line of the terminal; nothing at all where there is no terminal."""

from __future__ import annotations

import os
import shutil
import sys
from time import monotonic

from pystreamlog.cli.output import bytes_of, on_terminal

__all__ = ["Progress"]

_FIRST = 0.5
"""Seconds after which work is long enough to be worth a line."""
_INTERVAL = 0.1
_BAR = 20
_NARROW = 60
"""Columns below which there is no bar."""


class Progress:
    """One line on the standard error stream, drawn again and again, and gone at the end.

    Args:
        what: What is counted, in the plural.
        total: How much there will be, in what `advance` gets as `done`; None when nobody knows.
        shown: Whether to draw at all; also then only on a terminal.
    """

    def __init__(self, what: str, *, total: int | None = None, shown: bool = True) -> None:
        self._what = what
        self._total = total
        self._shown = shown and is_terminal()
        self._started = monotonic()
        self._due = self._started + _FIRST
        self._drawn = False

    def advance(self, count: int, size: int, done: int | None = None) -> None:
        """Say how far it came since the beginning.

        Args:
            count: How many of what is counted.
            size: Bytes of them.
            done: How much of the total; `count` when None.
        """
        if not self._shown or (now := monotonic()) < self._due:
            return
        self._due = now + _INTERVAL
        self._drawn = True
        width = shutil.get_terminal_size().columns - 1
        rate = count / (now - self._started)
        text = f"{count:,} {self._what}  {bytes_of(size)}  {rate:,.0f}/s"
        if self._total:
            part = min(1.0, (count if done is None else done) / self._total)
            bar = f"[{'#' * round(part * _BAR):<{_BAR}}] " if width >= _NARROW else ""
            text = f"{bar}{part:4.0%}  {text}"
        sys.stderr.write(f"\r{text[:width]}\x1b[K")
        sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._drawn = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def is_terminal() -> bool:
    """Whether the standard error stream is a terminal that can draw a line anew."""
    return on_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
