"""Closing what is still open when the process ends, and disowning it in a forked child.

`atexit` does not run in children of `multiprocessing`; there its own finalizers do.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol
from weakref import WeakSet

__all__ = ["Owned", "closing_at_exit"]


class Owned(Protocol):
    """Something that belongs to the process that made it."""

    def close_at_exit(self) -> None:
        """The process ends: write what is buffered; must not raise."""

    def disown(self) -> None:
        """This is a forked child: whatever is buffered belongs to the parent."""


_open: WeakSet[Owned] = WeakSet()
_multiprocessing_pid = -1


def closing_at_exit(owned: Owned) -> None:
    """Have `owned` closed at the exit of this process, and disowned in its forked children."""
    global _multiprocessing_pid  # noqa: PLW0603 - which process the finalizer was registered in
    _open.add(owned)
    if "multiprocessing" in sys.modules and _multiprocessing_pid != os.getpid():
        from multiprocessing import util  # noqa: PLC0415 - only where it is used

        util.Finalize(None, _close_all, exitpriority=10)
        _multiprocessing_pid = os.getpid()


def _close_all() -> None:
    for owned in list(_open):
        owned.close_at_exit()


def _disown_all() -> None:
    for owned in list(_open):
        owned.disown()
    _open.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
