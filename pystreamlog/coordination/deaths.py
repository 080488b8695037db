"""Telling a subscription when another process ends, within a millisecond.

One thread per process waits for all processes that anybody here watches (`pidfd`, Linux 5.3 and later); it sleeps until
one of them ends. Where a process cannot be watched (another pid namespace, no `pidfd`, no descriptor left) the caller
is told so, and has to look for itself whether the process still holds its lock.

A process id may be taken over by another process: watch first, then make sure that the lock is held, so that the id was
its holder's when the watch began.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Hashable
from typing import Any

from pystreamlog.coordination.locks import register_inherited
from pystreamlog.coordination.wakeups import Subscription

__all__ = ["Deaths", "deaths"]


class Deaths:
    """The processes that this one watches. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoll: Any = None
        self._fds: dict[int, int] = {}
        self._watchers: dict[int, set[tuple[Subscription, Hashable]]] = {}
        self._unwatched: deque[tuple[int, Subscription, Hashable]] = deque()
        register_inherited(self)

    def watch(self, pid: int, subscription: Subscription, key: Hashable) -> bool:
        """Have `key` reported as changed when the process ends; again is harmless.

        Returns:
            Whether that will be; False where the system cannot tell.
        """
        if not hasattr(os, "pidfd_open"):
            return False
        with self._lock:
            self._forget_unwatched()
            if pid not in self._fds:
                try:
                    self._open(pid)
                except (OSError, RuntimeError):  # no descriptor, or no thread, is left
                    return False
            self._watchers[pid].add((subscription, key))
        return True

    def unwatch(self, pid: int, subscription: Subscription, key: Hashable) -> None:
        """Report it no more; one that is not watched is ignored.

        A finalizer may call it, so perhaps in the thread that holds the lock: then whoever takes it next does it.
        """
        self._unwatched.append((pid, subscription, key))
        if self._lock.acquire(blocking=False):
            try:
                self._forget_unwatched()
            finally:
                self._lock.release()

    def _forget_unwatched(self) -> None:
        """Holds the lock."""
        while self._unwatched:
            pid, subscription, key = self._unwatched.popleft()
            watchers = self._watchers.get(pid)
            if watchers is not None:
                watchers.discard((subscription, key))
                if not watchers:
                    self._close(pid)

    def _open(self, pid: int) -> None:
        """Holds the lock."""
        fd = os.pidfd_open(pid)
        try:
            if self._epoll is None:
                epoll = select.epoll()
                threading.Thread(target=self._wait, args=(epoll,), name="pystreamlog-deaths", daemon=True).start()
                self._epoll = epoll
            self._epoll.register(fd, select.EPOLLIN)
        except BaseException:
            os.close(fd)
            raise
        self._fds[pid] = fd
        self._watchers[pid] = set()

    def _close(self, pid: int) -> set[tuple[Subscription, Hashable]]:
        """Holds the lock."""
        fd = self._fds.pop(pid)
        self._epoll.unregister(fd)
        os.close(fd)
        return self._watchers.pop(pid)

    def _wait(self, epoll: Any) -> None:
        while True:
            epoll.poll()
            told: list[tuple[Subscription, Hashable]] = []
            with self._lock:
                self._forget_unwatched()
                # Asked again: a descriptor's number may have gone to another process meanwhile.
                ended = {fd for fd, _ in epoll.poll(0)}
                for pid in [pid for pid, fd in self._fds.items() if fd in ended]:
                    told += self._close(pid)
            for subscription, key in told:
                subscription.report(key)

    def close_inherited(self) -> None:
        """Runs in a forked child: close the parent's descriptors and start anew; the thread stayed behind."""
        global _current, _creating  # noqa: PLW0603 - a forked child starts anew
        _creating = threading.Lock()
        if _current is self:
            _current = None
        for fd in self._fds.values():
            os.close(fd)
        if self._epoll is not None:
            self._epoll.close()


_current: Deaths | None = None
_creating = threading.Lock()


def deaths() -> Deaths:
    """The process's one `Deaths`; a forked child gets its own."""
    global _current  # noqa: PLW0603 - one per process is the point
    with _creating:
        if _current is None:
            _current = Deaths()
        return _current
