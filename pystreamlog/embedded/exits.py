"""Closing what is still open when the process ends, and disowning it in a forked child.

`atexit` does not run in children of `multiprocessing`; there its own finalizers do. Producers write first what they
have; directories go last, after the process has waited for its children, who may still work in them.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol
from weakref import WeakSet

__all__ = ["Owned", "closing_at_exit", "removed", "removing_at_exit"]


class Owned(Protocol):
    """Something that belongs to the process that made it."""

    def close_at_exit(self) -> None:
        """The process ends: write what is buffered; must not raise."""

    def disown(self) -> None:
        """This is a forked child: whatever is buffered belongs to the parent."""


_open: WeakSet[Owned] = WeakSet()
_last: set[Owned] = set()
_multiprocessing_pid = -1


def closing_at_exit(owned: Owned) -> None:
    """Have `owned`, which is held weakly, closed at the exit of this process, and disowned in its forked children."""
    _open.add(owned)
    _register_finalizers()


def removing_at_exit(owned: Owned) -> None:
    """The same, but after all others and after the process's children; `owned` is held until `removed`."""
    _last.add(owned)
    _register_finalizers()


def removed(owned: Owned) -> None:
    """There is nothing left to close."""
    _last.discard(owned)


def _register_finalizers() -> None:
    global _multiprocessing_pid  # noqa: PLW0603 - which process the finalizers were registered in
    if "multiprocessing" in sys.modules and _multiprocessing_pid != os.getpid():
        from multiprocessing import util  # noqa: PLC0415 - only where it is used

        # Those of a priority below 0 run after the process has waited for its children.
        util.Finalize(None, _close_clients, exitpriority=10)
        util.Finalize(None, _close_last, exitpriority=-100)
        _multiprocessing_pid = os.getpid()


def _close_clients() -> None:
    for owned in list(_open):
        owned.close_at_exit()


def _close_last() -> None:
    for owned in list(_last):
        owned.close_at_exit()


def _close_all() -> None:
    _close_clients()
    if _multiprocessing_pid != os.getpid():
        _close_last()


def _disown_all() -> None:
    for owned in (*_open, *_last):
        owned.disown()
    _open.clear()
    _last.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
