"""Waiting for files to change, without registering with whoever changes them.

On Linux the kernel tells (inotify): a `pwrite` to a watched file wakes who waits. One instance serves all threads and
event loops of the process, as the kernel allows 128 per *user*. Elsewhere, and where inotify cannot be had, a
`Subscription` says `polling`: its waits are short sleeps, after which the caller looks at everything.

So that nothing is missed: `watch`, then look, then `wait`. What changes after the watch stands in the kernel's queue.

Invariants:

1. Every waiter waits for the kernel's queue and for its own kick. Whoever wakes first reads the queue for all.
2. A waiter first says how to wake it and then, under the queue's lock, looks whether it is due. So a change either
   comes before, and is seen, or after, and wakes. `wakeup` takes no lock: it leaves its word, then looks for a waiter.
3. A kick's descriptor is never closed but reused by another subscription: `wakeup` could otherwise write into a file
   that got the number of a closed descriptor. A stray kick is harmless.
4. A forked child closes what it inherited and starts anew; subscriptions made before raise `ClosedError` there.

A `Subscription` has one user at a time, in any thread. Any thread may call `wakeup` and `close`; a signal handler may
call `wakeup`, and a finalizer `close`.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from pystreamlog.clock import SYSTEM
from pystreamlog.coordination.inotify import Inbox, WatchQueue, open_inotify
from pystreamlog.coordination.locks import register_inherited
from pystreamlog.errors import ClosedError

if TYPE_CHECKING:
    # Costs 30 ms of import, which only those pay who use it.
    import asyncio

__all__ = ["Subscription", "Wakeups", "wakeups"]

_SHORTEST_POLL_SECONDS = 1e-4
_LONGEST_POLL_SECONDS = 5e-3
"""Without inotify, an idle waiter looks 200 times a second: some 1 % of a processor."""


class _Kick(NamedTuple):
    """A pollable descriptor that another thread makes readable: an eventfd, or a pipe where there is none."""

    read_fd: int
    write_fd: int

    @classmethod
    def open(cls) -> _Kick:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return cls(fd, fd)
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return cls(read_fd, write_fd)

    def kick(self) -> None:
        """Make it readable; takes no lock."""
        with contextlib.suppress(BlockingIOError):  # kicked so often that it is full: it is readable
            os.write(self.write_fd, b"\1\0\0\0\0\0\0\0")

    def clear(self) -> None:
        """Make it unreadable."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.read_fd, 4096):
                pass


class _LoopWaiter(NamedTuple):
    """Wakes a coroutine, from any thread or a signal handler."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            self.loop.call_soon_threadsafe(self.resolve)

    def resolve(self) -> None:
        """The same within the loop's own thread, outside of signal handlers: saves a turn of the loop."""
        if not self.future.done():
            self.future.set_result(None)


class _LoopReader:
    """One event loop's reader of the kernel's queue, on while somebody waits there; for that loop's thread only."""

    def __init__(self, queue: WatchQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._loop = loop
        self._on = False
        self._waiters: dict[Inbox, _LoopWaiter] = {}

    def enter(self, inbox: Inbox, waiter: _LoopWaiter) -> None:
        """Somebody begins to wait."""
        self._waiters[inbox] = waiter
        if not self._on:
            self._loop.add_reader(self._queue.fd, self._read)
            self._on = True

    def leave(self, inbox: Inbox) -> None:
        """Somebody ends waiting. The reader stays until an event finds nobody, as the next wait is likely near."""
        self._waiters.pop(inbox, None)

    def _read(self) -> None:
        if not self._waiters:
            # Left on, a busy log would keep waking a loop in which nobody waits.
            self._loop.remove_reader(self._queue.fd)
            self._on = False
            return
        with self._queue.lock:
            self._queue.drain(self._wake)

    def _wake(self, inbox: Inbox) -> None:
        waiter = self._waiters.get(inbox)
        if waiter is not None:
            waiter.resolve()
        else:
            inbox.wake()


class Wakeups:
    """What the subscriptions of a process share; get it from `wakeups`. Any thread may call it.

    Attributes:
        queue: The kernel's queue, once there is one.
        inherited: This process was forked from the one that this object belongs to.
    """

    def __init__(self) -> None:
        self.queue: WatchQueue | None = None
        self.inherited = False
        self._guard = threading.Lock()
        self._warned = False
        self._kicks: list[_Kick] = []
        self._idle_kicks: deque[_Kick] = deque()
        self._loops: dict[asyncio.AbstractEventLoop, _LoopReader] = {}
        register_inherited(self)

    def subscribe(self) -> Subscription:
        """What one consumer waits on; close it when done."""
        failure: Exception | None = None
        with self._guard:
            if self.queue is None:
                try:
                    self.queue = WatchQueue(open_inotify())
                except (OSError, ImportError, AttributeError) as error:
                    failure = error
        if failure is not None:
            self.warn(failure)
        return Subscription(self, self.queue)

    def warn(self, error: Exception) -> None:
        """Say once that waiting polls; not while holding a lock, as a logging handler may do anything."""
        if self._warned or sys.platform != "linux":
            return
        self._warned = True
        import logging  # noqa: PLC0415 - costs 3 ms of import, which hardly anybody needs

        logging.getLogger("pystreamlog").warning(
            "cannot watch files through inotify (%s): waiting for records polls, up to 200 times a second. Raise the "
            "limits fs.inotify.max_user_instances and fs.inotify.max_user_watches (sysctl)",
            error,
        )

    def take_kick(self) -> _Kick:
        """A kick for one waiter, made or reused."""
        with contextlib.suppress(IndexError):
            return self._idle_kicks.pop()
        kick = _Kick.open()
        self._kicks.append(kick)
        return kick

    def give_kick(self, kick: _Kick) -> None:
        """Take a kick back that nobody waits for any more."""
        self._idle_kicks.append(kick)

    def reader(self, queue: WatchQueue, loop: asyncio.AbstractEventLoop) -> _LoopReader:
        """What reads the queue within this running event loop."""
        reader = self._loops.get(loop)
        if reader is None:
            with self._guard:
                for other in [other for other in self._loops if other.is_closed()]:
                    del self._loops[other]
                self._loops[loop] = reader = _LoopReader(queue, loop)
        return reader

    def close_inherited(self) -> None:
        """Runs in a forked child: close the parent's descriptors and start anew."""
        global _current, _creating  # noqa: PLW0603 - a forked child starts anew
        if self.inherited:
            return
        self.inherited = True
        _creating = threading.Lock()
        if _current is self:
            _current = None
        if self.queue is not None:
            self.queue.close()
        for fd in {fd for kick in self._kicks for fd in kick}:
            os.close(fd)


_current: Wakeups | None = None
_creating = threading.Lock()


def wakeups() -> Wakeups:
    """The process's one `Wakeups`; a forked child gets its own."""
    global _current  # noqa: PLW0603 - one per process is the point
    with _creating:
        if _current is None:
            _current = Wakeups()
        return _current


class Subscription:
    """What one consumer waits on: a set of watched files, and what changed among them.

    Attributes:
        polling: Nothing is watched: the caller must look at everything each time.
    """

    def __init__(self, shared: Wakeups, queue: WatchQueue | None) -> None:
        self.polling = queue is None
        self._shared = shared
        self._queue = queue
        self._inbox = Inbox()
        self._closed = False
        self._woken = False
        self._interval = _SHORTEST_POLL_SECONDS
        # At most one, in a list because taking it from there is atomic.
        self._kicks: list[_Kick] = []
        if queue is not None:
            # Each its own: a poll object serves one thread at a time.
            self._look = select.poll()
            self._look.register(queue.fd, select.POLLIN)
            self._poll = select.poll()
            self._poll.register(queue.fd, select.POLLIN)
            with queue.lock:
                queue.inboxes.add(self._inbox)

    def __del__(self) -> None:
        if hasattr(self, "_kicks"):
            self.close()

    def watch(self, key: Hashable, path: str) -> bool:
        """Have changes of a file, or of a directory's list of names, reported as `key`.

        Does nothing when `key` is watched already. A watch follows the file, not its name: when another file takes the
        name, `unwatch` and `watch` again. A file that is deleted, and open nowhere, counts as changed and is watched no
        longer.

        Returns:
            Whether changes will be reported; False when this subscription polls.

        Raises:
            FileNotFoundError: There is no such file.
            PermissionError: The file may not be read.
            ClosedError: The subscription was closed, or made before a fork.
        """
        self._check()
        queue = self._queue
        if queue is None:
            os.stat(path)
            return False
        try:
            with queue.lock:
                if key not in self._inbox.watches:
                    queue.add(self._inbox, key, path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise
        except OSError as error:
            self._fall_back(queue, error)
        return not self.polling

    def unwatch(self, key: Hashable) -> None:
        """Stop reporting `key`; one that is not watched is ignored."""
        self._check()
        if self._queue is not None:
            with self._queue.lock:
                if key in self._inbox.watches:
                    self._queue.remove(self._inbox, key)
                self._inbox.changed.discard(key)

    def changed(self) -> set[Hashable] | None:
        """The keys that changed since this was last asked; never blocks. 0.5 us when nothing did.

        Returns:
            None means: look at everything. So it is at first, when polling, and when the kernel's queue overflowed.

        Raises:
            ClosedError: The subscription was closed, or made before a fork.
        """
        if self._closed or self._shared.inherited:
            self._check()
        queue, inbox = self._queue, self._inbox
        if queue is None:
            return None
        known = inbox.changed or inbox.everything  # what the kernel holds beyond that is told the next time
        if not known and not self._look.poll(0):
            return set()
        with queue.lock:
            if not known:
                queue.drain()
            changed, inbox.changed = inbox.changed, set()
            if inbox.everything:
                inbox.everything = False
                return None
            return changed

    def wait(self, timeout: float | None) -> bool:
        """Block until something changed, `wakeup` was called, or the time-out; ask `changed` next.

        Releases the GIL; a signal handler that raises ends it. When polling, it sleeps 0.1 ms, longer each time up to
        5 ms until `progress` is called, and returns True: everything has to be looked at.

        Args:
            timeout: Seconds (the kernel counts milliseconds, rounded up); None waits for ever, 0 never.

        Returns:
            Whether something changed, or has to be looked at.

        Raises:
            ClosedError: The subscription was closed, or made before a fork.
        """
        self._check()
        queue, inbox = self._queue, self._inbox
        if queue is None:
            SYSTEM.sleep(self._next_interval(timeout))
            return self._finish()
        if not self._kicks:
            try:
                self._kicks.append(self._shared.take_kick())
            except OSError as error:
                self._fall_back(queue, error)
                return True
            self._poll.register(self._kicks[0].read_fd, select.POLLIN)
        kick = self._kicks[0]
        deadline = None if timeout is None else SYSTEM.monotonic() + timeout
        inbox.waiter = kick.kick
        try:
            with queue.lock:
                due = self._is_due()
            while not due:
                left = None if deadline is None else max(0.0, deadline - SYSTEM.monotonic())
                ready = self._poll.poll(None if left is None else left * 1000)
                for fd, _ in ready:
                    if fd == kick.read_fd:
                        kick.clear()
                    else:
                        with queue.lock:
                            inbox.waiter = None  # kicking oneself would cost 2 us now and end the next wait's poll
                            queue.drain()
                            inbox.waiter = kick.kick
                due = not ready or self._is_due()
            return self._finish()
        finally:
            self._end_wait()

    async def wait_async(self, timeout: float | None) -> bool:  # noqa: ASYNC109 - the twin of `wait`
        """As `wait`, without blocking the running event loop and without a thread. Cancelling it loses nothing."""
        import asyncio  # noqa: PLC0415 - costs 30 ms of import, which only those pay who use it

        self._check()
        queue, inbox = self._queue, self._inbox
        if queue is None:
            await asyncio.sleep(self._next_interval(timeout))
            return self._finish()
        loop = asyncio.get_running_loop()
        waiter = _LoopWaiter(loop, loop.create_future())
        reader = self._shared.reader(queue, loop)
        reader.enter(inbox, waiter)
        timer = None
        try:
            with queue.lock:
                queue.drain()
                inbox.waiter = waiter.wake
                due = self._is_due()
            if not due and (timeout is None or timeout > 0):
                timer = None if timeout is None else loop.call_later(timeout, waiter.resolve)
                await waiter.future
            return self._finish()
        finally:
            reader.leave(inbox)
            if timer is not None:
                timer.cancel()
            self._end_wait()

    def wakeup(self) -> None:
        """End the current wait, or the next one, once; from any thread or a signal handler."""
        if not self._closed and not self._shared.inherited:
            self._woken = True
            self._inbox.wake()

    def report(self, key: Hashable) -> None:
        """Have `key` reported as changed by what is no file; from any thread. A subscription that polls ignores it."""
        queue = self._queue
        if queue is None or self._closed or self._shared.inherited:
            return
        with queue.lock:
            self._inbox.changed.add(key)
        self._inbox.wake()

    def progress(self) -> None:
        """Say that records are flowing, so that polling looks often again."""
        self._interval = _SHORTEST_POLL_SECONDS

    def close(self) -> None:
        """End the watches; a wait that is under way raises `ClosedError`. Idempotent; so does garbage collection."""
        if self._closed or self._shared.inherited:
            self._closed = True
            return
        self._closed = True
        self._inbox.wake()
        if self._inbox.waiter is None:
            self._end_wait()
        queue = self._queue
        if queue is not None:
            queue.discard(self._inbox)

    # --- inside

    def _check(self) -> None:
        if self._shared.inherited:
            raise ClosedError("this subscription belongs to the process that this one was forked from; subscribe anew")
        if self._closed:
            raise ClosedError("this subscription was closed")

    def _is_due(self) -> bool:
        """Whether a wait must end."""
        return bool(self._inbox.changed or self._inbox.everything or self._woken or self._closed)

    def _finish(self) -> bool:
        """End a wait, which uses up a `wakeup`."""
        self._check()
        woken, self._woken = self._woken, False
        if self._queue is None:
            return not woken
        return bool(self._inbox.changed or self._inbox.everything)

    def _end_wait(self) -> None:
        """Nobody is to be woken any more; after `close`, the kick goes to who needs one."""
        self._inbox.waiter = None
        if self._closed:
            with contextlib.suppress(IndexError):
                self._shared.give_kick(self._kicks.pop())

    def _next_interval(self, timeout: float | None) -> float:
        """Seconds to sleep instead of being woken."""
        if self._woken:
            return 0.0
        interval = self._interval
        self._interval = min(2 * interval, _LONGEST_POLL_SECONDS)
        return interval if timeout is None else max(0.0, min(interval, timeout))

    def _fall_back(self, queue: WatchQueue, error: OSError) -> None:
        """Poll from now on."""
        with queue.lock:
            queue.forget(self._inbox)
        self._queue = None
        self.polling = True
        self._shared.warn(error)
