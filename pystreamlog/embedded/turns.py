"""One user at a time: a second thread, or a second task of the same event loop, is told so instead of racing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pystreamlog.errors import IllegalStateError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Turns", "current_task", "on_event_loop"]


def current_task() -> asyncio.Task[Any] | None:
    """The asyncio task that is running in this thread, if there is one."""
    import asyncio  # noqa: PLC0415 - only for those who use it

    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


class Turns:
    """Who is using an object; its user may enter again, as callbacks do.

    Args:
        what: The object, for the message.
    """

    __slots__ = ("_owner", "_taken", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken = threading.Lock()
        self._owner: tuple[int, asyncio.Task[Any] | None] = (0, None)

    def enter(self, task: asyncio.Task[Any] | None = None) -> bool:
        """Begin a turn, which a task may hold while others run; 0.1 us.

        Returns:
            Whether `leave` must be called; False when this is its user calling from within.

        Raises:
            IllegalStateError: Somebody else is using it.
        """
        if self._taken.acquire(blocking=False):
            self._owner = threading.get_ident(), task
            return True
        thread, owning_task = self._owner
        if thread != threading.get_ident() or (owning_task is not None and owning_task is not current_task()):
            raise IllegalStateError(
                f"another thread or task is using this {self._what}: give each its own (handlers of process() may call "
                "nothing of it but wakeup())"
            )
        return False

    def leave(self) -> None:
        """End the turn."""
        self._taken.release()

    @contextmanager
    def held(self, task: asyncio.Task[Any] | None = None) -> Iterator[None]:
        """One turn."""
        outermost = self.enter(task)
        try:
            yield
        finally:
            if outermost:
                self.leave()


def on_event_loop() -> bool:
    """Whether the calling thread runs an event loop, which nothing may block."""
    events = sys.modules.get("asyncio.events")
    # The public `get_running_loop` raises where there is none, which would cost a microsecond per send.
    return events is not None and events._get_running_loop() is not None  # noqa: SLF001
