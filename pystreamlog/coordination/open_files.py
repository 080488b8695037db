"""How many partitions this process holds open at once: 10,000 topics work under `ulimit -n 1024`.

A handle (a partition's writer or one of its readers) opens its files when it is used and says so here. Past the limit,
the handles that were not used for longest are closed, by the second-chance rule: using a handle only sets its `recent`
flag, which costs nothing; the sweep clears the flag once before it closes.
"""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

from pystreamlog.coordination.locks import register_inherited
from pystreamlog.errors import StorageError

__all__ = ["Handle", "MutexHandle", "OpenFiles", "made_room", "open_files", "with_descriptors"]

T = TypeVar("T")

_DESCRIPTORS_PER_HANDLE = 3
"""A control file, a segment, and before Python 3.13 its map."""
_SHARE = 0.6
"""Of the process's descriptors; the rest is the application's."""
_LEAST = 8
_MOST = 4096


class Handle(Protocol):
    """Something with open files that can be closed and opened again at need."""

    recent: bool
    """Set whenever it is used."""

    def try_close(self) -> bool:
        """Close the files unless the handle is in use just now; whether they are closed. Must not wait."""


def _limit() -> int:
    import resource  # noqa: PLC0415 - not on every platform that can import the library

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, int(soft * _SHARE) // _DESCRIPTORS_PER_HANDLE))


class MutexHandle(ABC):
    """A handle whose mutex keeps its files open while a call uses them.

    Attributes:
        recent: Set whenever it is used.
    """

    __slots__ = ("_mutex", "recent")

    def __init__(self) -> None:
        self.recent = False
        self._mutex = threading.Lock()

    @abstractmethod
    def _close_files(self) -> None:
        """Close what is open; the caller holds the mutex."""

    def try_close(self) -> bool:
        """Close the files unless a call uses them."""
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            self._close_files()
        finally:
            self._mutex.release()
        return True


class OpenFiles:
    """The open handles of a process. Safe from any thread.

    Args:
        limit: How many may be open; None derives it from the process's descriptor limit at each opening.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._fixed = limit
        self._lock = threading.Lock()
        self._handles: dict[Handle, None] = {}
        register_inherited(self)

    def opened(self, handle: Handle) -> None:
        """`handle`, which the caller keeps from being closed meanwhile, has opened its files; may close others."""
        limit = self._fixed or _limit()
        with self._lock:
            self._handles[handle] = None
            if len(self._handles) > limit:
                self._sweep(len(self._handles) - limit + limit // 8)

    def closed(self, handle: Handle) -> None:
        """`handle` has closed its files."""
        with self._lock:
            self._handles.pop(handle, None)

    def shrink(self) -> bool:
        """Close half of what is open, because the system has no descriptors left; whether that freed any."""
        with self._lock:
            before = len(self._handles)
            self._sweep(before // 2 + 1)
            return len(self._handles) < before

    def _sweep(self, wanted: int) -> None:
        for _ in range(2):  # the first pass takes away second chances
            for handle in list(self._handles):
                if wanted <= 0:
                    return
                if handle.recent:
                    handle.recent = False
                    self._handles[handle] = self._handles.pop(handle)
                elif handle.try_close():
                    del self._handles[handle]
                    wanted -= 1

    def close_inherited(self) -> None:
        """Start empty in a forked child; the handles close themselves."""
        self._lock = threading.Lock()
        self._handles = {}
        register_inherited(self)


open_files = OpenFiles()
"""This process's; descriptors are counted per process."""


def made_room(error: StorageError) -> bool:
    """Whether the process had no descriptors left, and now has some, because idle handles were closed.

    The caller holds its own handle's mutex: closing and opening that one over and over would help nobody.
    """
    return error.errno in (errno.EMFILE, errno.ENFILE) and open_files.shrink()


def with_descriptors(opening: Callable[[], T]) -> T:
    """What `opening` opens, once more after idle handles were closed when the process is out of descriptors."""
    try:
        return opening()
    except StorageError as error:
        if not made_room(error):
            raise
    return with_descriptors(opening)
