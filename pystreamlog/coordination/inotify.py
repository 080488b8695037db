"""Which files changed, as Linux tells it: one inotify instance, handed out to all who watch in this process.

The kernel has one watch per inode and instance, and one queue; a `WatchQueue` keeps who watches what, and puts the keys
of changed files into the `Inbox` of each. `wakeups` waits for them.

Invariants:

1. Who reads the kernel's queue tells *every* inbox concerned, and wakes its waiter, before giving up the lock.
2. Where events may have been lost (the queue overflowed, a signal handler raised between reading and telling) every
   inbox is told to look at everything.
3. A number that the kernel gives to a new watch is never ended by the last event of an older one.

Everything but what says otherwise is called with `WatchQueue.lock` held, by any thread, but not by a signal handler.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple

__all__ = ["Inbox", "Inotify", "WatchQueue", "open_inotify"]

_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_FILE_EVENTS = _IN_MODIFY
_DIRECTORY_EVENTS = _IN_CREATE | _IN_MOVED_TO | _IN_DELETE | _IN_MOVED_FROM

_EVENT = struct.Struct("iIII")
"""Watch number, mask, cookie, size of the name that follows."""

_LARGEST_EVENT_SIZE = _EVENT.size + 256
_READ_SIZE = 4096
"""Bytes per read of the kernel's queue: 256 events of files; the kernel merges equal neighbours."""


class Inotify(NamedTuple):
    """The kernel's calls on one instance; `add` and `remove` raise `OSError`."""

    fd: int
    add: Callable[[str, int], int]
    remove: Callable[[int], None]


def open_inotify() -> Inotify:
    """Make an inotify instance: non-blocking, close-on-exec.

    Raises:
        OSError: None is left for this user or process, or this is not Linux.
        ImportError: This Python has no ctypes.
        AttributeError: The C library has no inotify.
    """
    if sys.platform != "linux":
        raise OSError("inotify exists on Linux only")
    import ctypes  # noqa: PLC0415 - costs 5 ms of import, which a producer does not need

    libc = ctypes.CDLL(None, use_errno=True)
    init, add_watch, rm_watch = libc.inotify_init1, libc.inotify_add_watch, libc.inotify_rm_watch
    add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
    rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)

    def checked(result: int, path: str | None = None) -> int:
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return result

    fd = checked(init(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(path: str, mask: int) -> int:
        return checked(add_watch(fd, os.fsencode(path), mask), path)

    def remove(watch: int) -> None:
        checked(rm_watch(fd, watch))

    return Inotify(fd, add, remove)


class Inbox:
    """What one watcher was told and has not asked for yet.

    Attributes:
        changed: Keys of the changed files.
        everything: Look at everything instead.
        watches: The watch number of each watched key.
        waiter: Wakes who waits for this inbox; None while nobody does. May be set and called without the lock.
    """

    __slots__ = ("changed", "everything", "waiter", "watches")

    def __init__(self) -> None:
        self.changed: set[Hashable] = set()
        self.everything = True
        self.watches: dict[Hashable, int] = {}
        self.waiter: Callable[[], object] | None = None

    def wake(self) -> None:
        """Wake who waits, if anybody does; needs no lock."""
        waiter = self.waiter
        if waiter is not None:
            waiter()


class WatchQueue:
    """The kernel's queue of one inotify instance, and who watches what through it."""

    def __init__(self, inotify: Inotify) -> None:
        self.lock = threading.Lock()
        self.fd = inotify.fd
        self.inboxes: set[Inbox] = set()
        self._inotify = inotify
        self._watchers: dict[int, list[tuple[Inbox, Hashable]]] = {}
        # Number of a watch that was removed -> how many of its last events (IN_IGNORED) are still to come.
        self._ending: dict[int, int] = {}
        self._discarded: deque[Inbox] = deque()

    def close(self) -> None:
        """Close the instance; for a forked child, so without the lock."""
        os.close(self.fd)

    def add(self, inbox: Inbox, key: Hashable, path: str) -> None:
        """Watch a file for writing, or a directory for names that come and go.

        Raises:
            OSError: There is no such file, or it may not be read, or the user has no watches left (`ENOSPC`).
        """
        self._forget_discarded()
        events = _DIRECTORY_EVENTS if stat.S_ISDIR(os.stat(path).st_mode) else _FILE_EVENTS
        watch = self._inotify.add(path, events)
        self._watchers.setdefault(watch, []).append((inbox, key))
        inbox.watches[key] = watch

    def remove(self, inbox: Inbox, key: Hashable) -> None:
        """Forget one watch; the last of a file ends the kernel's."""
        watch = inbox.watches.pop(key)
        watchers = self._watchers[watch]
        watchers.remove((inbox, key))
        if not watchers:
            del self._watchers[watch]
            self._ending[watch] = self._ending.get(watch, 0) + 1
            with suppress(OSError):  # the file is gone and with it the kernel's watch: its last event is on the way
                self._inotify.remove(watch)

    def forget(self, inbox: Inbox) -> None:
        """Remove all watches of an inbox."""
        self.inboxes.discard(inbox)
        for key in list(inbox.watches):
            self.remove(inbox, key)

    def discard(self, inbox: Inbox) -> None:
        """As `forget`, but called without the lock, by any thread or a finalizer.

        A finalizer runs anywhere, so perhaps in the thread that holds the lock: then the next `add` or `drain` does it.
        """
        self._discarded.append(inbox)
        if self.lock.acquire(blocking=False):
            try:
                self._forget_discarded()
            finally:
                self.lock.release()

    def _forget_discarded(self) -> None:
        while self._discarded:
            self.forget(self._discarded.popleft())

    def drain(self, wake: Callable[[Inbox], None] = Inbox.wake) -> None:
        """Read the kernel's queue empty, tell every inbox concerned, and `wake` each."""
        told: set[Inbox] = set()
        self._forget_discarded()
        try:
            size = _READ_SIZE
            while size > _READ_SIZE - _LARGEST_EVENT_SIZE:
                size = self._read(told)
            for inbox in told:
                wake(inbox)
        except BaseException:
            self._tell_everything(told)
            for inbox in told:
                inbox.wake()
            raise

    def _read(self, told: set[Inbox]) -> int:
        """Hand out the events of one read; returns its size in bytes."""
        try:
            data = os.read(self.fd, _READ_SIZE)
        except BlockingIOError:
            return 0
        position, last = 0, None
        while position < len(data):
            watch, mask, _, name_size = _EVENT.unpack_from(data, position)
            position += _EVENT.size + name_size
            if mask & _IN_Q_OVERFLOW:
                # The last events of removed watches may be among the lost ones.
                self._ending.clear()
                self._tell_everything(told)
            elif mask & _IN_IGNORED:
                last = None
                self._end(watch, told)
            elif watch != last:
                last = watch
                self._tell(self._watchers.get(watch, ()), told)
        return len(data)

    def _tell(self, watchers: list[tuple[Inbox, Hashable]] | tuple[()], told: set[Inbox]) -> None:
        for inbox, key in watchers:
            inbox.changed.add(key)
            told.add(inbox)

    def _tell_everything(self, told: set[Inbox]) -> None:
        for inbox in self.inboxes:
            inbox.everything = True
        told |= self.inboxes

    def _end(self, watch: int, told: set[Inbox]) -> None:
        """The kernel's last event of a watch: we removed it, or the file was deleted, which counts as a change."""
        expected = self._ending.pop(watch, 0)
        if expected > 1:
            self._ending[watch] = expected - 1
        if expected:
            return
        watchers = self._watchers.pop(watch, ())
        for inbox, key in watchers:
            del inbox.watches[key]
        self._tell(watchers, told)
