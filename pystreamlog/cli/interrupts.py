"""Ending a command that moves records: by Ctrl-C, by SIGTERM, or as its terminal goes away.

A signal ends what the command waits for, never what it is in the middle of: between `held` and the end of that block
it is only noted, and raised behind it. A second signal ends everything at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Interrupts", "interruptible"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_KILLED = 128


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        status: The exit status that says so: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = _KILLED + number


class Interrupts:
    """What signals do while a command runs."""

    def __init__(self) -> None:
        self._held = False
        self._noted: Interrupted | None = None

    def note(self, number: int, _: FrameType | None) -> None:
        """A signal came.

        Raises:
            Interrupted: Nothing is held, or it is the second one.
        """
        if self._held and self._noted is None:
            self._noted = Interrupted(number)
            return
        raise Interrupted(number)

    def check(self) -> None:
        """Let a signal that was noted count now, in a block that is held.

        Raises:
            Interrupted: One was.
        """
        noted, self._noted = self._noted, None
        if noted is not None:
            raise noted

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block come to its end before the first signal counts; blocks may lie in each other.

        Raises:
            Interrupted: A signal came meanwhile.
        """
        if self._held:
            yield
            return
        self._held = True
        try:
            yield
        finally:
            self._held = False
            noted, self._noted = self._noted, None
            if noted is not None and sys.exception() is None:
                raise noted


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Have signals raise `Interrupted` in the block; outside of the main thread they stay what they were."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before: dict[Any, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as for what `nohup` runs, or a shell in the background
                signal.signal(number, interrupts.note)
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
