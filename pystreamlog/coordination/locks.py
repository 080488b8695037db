"""One exclusive lock on one byte of a file, held by at most one thread of one process and freed by its death.

Invariants:

1. A `FileLock` is held when both are: a `threading.Lock` that all locks of this process on that byte of that file
   share (so that threads, and two opens of one file, queue instead of spinning against each other), and the kernel's
   lock. The first is always taken before and given back after the second.
2. The kernel's lock is an open-file-description (OFD) write lock on Linux, elsewhere `flock`. Never a POSIX record
   lock: those vanish when *any* descriptor of the file closes. The kernel frees it when the last copy of the
   descriptor closes, so within milliseconds of any kind of death.
3. A lock is never taken from a living process. One that is stopped is waited for, then named in `LockTimeoutError`.
4. A forked child neither holds nor can release what its parent holds: a `FileLock` made before the fork raises
   `ClosedError` there. But the child *shares* the descriptor and must close its copy, or the lock outlives a parent
   that dies: owners of descriptors register themselves with `register_inherited`.

A descriptor given to a `FileLock` must be close-on-exec and never mapped: a map keeps the open file description, and
with it the lock, alive in a forked child. Waiting, and why it polls: `docs/decisions/0001-lock-waiting.md`.

Everything here may be called from any thread, but not from a signal handler.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import threading
from collections.abc import Callable
from functools import partial
from math import inf
from types import TracebackType
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

from pystreamlog.clock import SYSTEM, Clock
from pystreamlog.coordination.holders import STAMP_SIZE, describe_holder, own_stamp
from pystreamlog.errors import ClosedError, IllegalStateError, LockTimeoutError, StorageError

if sys.platform != "win32":
    import fcntl

__all__ = ["FileLock", "InheritedOwner", "enter", "register_inherited"]

_OFD = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
"""Whether locks are OFD locks on one byte, or `flock` on a whole file."""

_FLOCK = struct.Struct("hhqqi4x")
"""Linux's `struct flock` with 64-bit offsets: type, whence, start, length, pid (must be 0 for OFD locks)."""

_BUSY = frozenset({errno.EAGAIN, errno.EACCES})
"""How the kernel says that somebody else holds the lock; POSIX allows both."""

_SPIN_SECONDS = 20e-6
"""How long to try without sleeping, at first and after each sleep. A writer in a tight loop leaves a gap every 4 us:
trying once per sleep instead let a waiter starve for 100 ms among four such writers, spinning for 12 to 29 ms."""

_SPIN_TRIES = 20
"""More do not fit into that time; bounds the spin under a clock that a test holds still."""

_NO_WAIT = (False,)

_FIRST_SLEEP_SECONDS = 50e-6
_SLEEP_GROWTH = 1.25
"""Makes a sleep a fifth of the time waited so far, so a hand-over is late by no more than that share."""
_LONGEST_SLEEP_SECONDS = 5e-3


# --- forked children --------------------------------------------------------------------------------------------------


class InheritedOwner(Protocol):
    """Something that owns descriptors which a forked child must not keep."""

    def close_inherited(self) -> None:
        """Close the inherited descriptors and mark the object unusable.

        Called once, in a forked child, by its only thread, before `os.fork` returns there. It must not take a lock
        made before the fork (another thread may have held it), and must not unlock: closing is enough, and an unlock
        would free what the parent holds.
        """


_process = object()
"""Which process this is: a forked child gets another one, so that a lock made before the fork is told apart."""

_gates: WeakValueDictionary[tuple[int, int, int], threading.Lock] = WeakValueDictionary()
"""The in-process locks, by device, inode and byte; each lives as long as a `FileLock` uses it."""

_gates_guard = threading.Lock()
_owners: WeakSet[InheritedOwner] = WeakSet()


def register_inherited(owner: InheritedOwner) -> None:
    """Have `owner.close_inherited()` called in every forked child; `owner` is held weakly and must be hashable."""
    with _gates_guard:
        _owners.add(owner)


def _forget_parent() -> None:
    """Runs in a forked child: new in-process locks, as a thread of the parent may hold the old ones for ever here."""
    global _process, _gates, _gates_guard, _owners  # noqa: PLW0603 - a forked child starts anew
    owners = list(_owners)
    _process = object()
    _gates, _gates_guard, _owners = WeakValueDictionary(), threading.Lock(), WeakSet()
    failures = []
    for owner in owners:
        try:
            owner.close_inherited()
        except Exception as error:  # noqa: BLE001 - one owner's failure must not leave the others' descriptors open
            failures.append(error)
    if failures:
        raise ExceptionGroup("a forked child could not close what it inherited", failures)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def enter(lock: threading.Lock, timeout: float, entered: list[bool]) -> bool:
    """Take an in-process lock, so that an exception of a signal handler cannot leave it taken.

    Called inside the `try` whose `finally` releases the lock if `True in entered`: the answer is stored there by C
    code, before a handler can run. `with lock:` is as safe, but has no time-out. 0.2 us.

    Args:
        lock: The lock.
        timeout: Seconds; 0 tries once.
        entered: Gets True when the lock was taken.

    Returns:
        Whether it was taken.
    """
    entered.extend(map(lock.acquire, _NO_WAIT))
    if timeout > 0 and True not in entered:  # the caller may have tried before
        entered.extend(map(lock.acquire, (True,), (timeout,)))
    return entered[-1]


# --- the lock ---------------------------------------------------------------------------------------------------------


class FileLock:
    """An exclusive lock on one byte of an open file; not re-entrant.

    Where there are no OFD locks, the lock of byte 0 is `flock` on the descriptor, and that of another byte `flock` on a
    file of its own beside it (`<path>.<byte>.lock`), which `close` closes.

    An exception that a signal handler raises (`KeyboardInterrupt`) while a lock is acquired leaves nothing locked. One
    that arrives in the some 30 ns in which `release`, or the end of a `with` block, is entered leaves it held: Python
    calls nothing then that could know.

    Dropping a held lock unreleased frees it for this process's other threads; for other processes it is free once the
    descriptor is closed.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_fd",
        "_lock_fd",
        "_locked",
        "_process",
        "_stamp_position",
        "byte",
        "gate",
        "lock_kernel",
        "path",
        "unlock_kernel",
    )

    def __init__(
        self, fd: int, path: str, *, byte: int = 0, stamp_position: int | None = 0, clock: Clock = SYSTEM
    ) -> None:
        """Prepare a lock; nothing is locked yet.

        Args:
            fd: Descriptor of the file, open for writing, close-on-exec, never mapped. The caller keeps owning it, and
                closes it after the last use of this lock.
            path: The file's name, for messages.
            byte: Position of the byte to lock; it need not exist. Different bytes are different locks.
            stamp_position: Position of the stamp in the file, or None when this lock's holder is not recorded.
            clock: What waiting is measured with.
        """
        self._process: object = _process
        self._fd = self._lock_fd = fd
        self._locked = False
        self._stamp_position = stamp_position
        self._clock = clock
        self.byte = byte
        self.path = path
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, byte)
        with _gates_guard:
            gate = _gates.get(key)
            if gate is None:
                _gates[key] = gate = threading.Lock()
        self.gate = gate
        if _OFD:
            lock, unlock = _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0), _FLOCK.pack(fcntl.F_UNLCK, 0, byte, 1, 0)
            self.lock_kernel: Callable[[], object] = partial(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, lock)
            self.unlock_kernel: Callable[[], object] = partial(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, unlock)
            return
        if byte:
            mode = status.st_mode & 0o666
            self._lock_fd = os.open(f"{path}.{byte}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
            register_inherited(self)
        self.lock_kernel = partial(fcntl.flock, self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.unlock_kernel = partial(fcntl.flock, self._lock_fd, fcntl.LOCK_UN)

    def __repr__(self) -> str:
        return f"FileLock({self.path!r}, byte={self.byte}, {'locked' if self._locked else 'not locked'})"

    def __del__(self) -> None:
        if getattr(self, "_process", None) is _process:
            if self._locked:
                self.gate.release()
            self._close_own_descriptor()

    @property
    def locked(self) -> bool:
        """Whether this very object holds the lock."""
        return self._locked and self._process is _process

    def try_acquire(self) -> bool:
        """Take the lock if it is free; never waits. 1.2 us together with `release`.

        Returns:
            Whether this object holds it now. False also when another thread does through this same object.

        Raises:
            ClosedError: This lock was made before a fork, by the parent.
            StorageError: The kernel refused for another reason than a holder (no locks left, not on this file system).
        """
        if self._process is not _process:
            raise self._inherited()
        entered: list[bool] = []
        try:
            # Called from C, the answer is stored before a signal handler can raise: otherwise 6 % of the interrupts of
            # a tight loop hit the gap between taking the in-process lock and knowing it.
            entered.extend(map(self.gate.acquire, _NO_WAIT))
            if not entered[0]:
                return False
            self.lock_kernel()
            self._locked = True
        except BaseException as error:
            if True not in entered:
                raise
            busy = isinstance(error, OSError) and error.errno in _BUSY
            self._back_out(unlock=not busy)
            if busy:
                return False
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        return True

    def is_free(self) -> bool:
        """Whether nobody holds the lock, this process and this object included; takes nothing where the kernel tells.

        0.9 us. Where there are no OFD locks, it is taken and given back to find out.

        Raises:
            ClosedError: This lock was made before a fork, by the parent.
            StorageError: The kernel refused to tell.
        """
        if self._process is not _process:
            raise self._inherited()
        if self.gate.locked():
            return False
        if not _OFD:
            free = self.try_acquire()
            if free:
                self.release()
            return free
        question = _FLOCK.pack(fcntl.F_WRLCK, 0, self.byte, 1, 0)
        try:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, question)
        except OSError as error:
            raise self._refused(error) from error
        return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)

    def acquire(self, timeout: float | None, *, stamp: bool = False) -> None:
        """Take the lock, waiting for it if need be.

        Among writers that take and give it in tight loops, nobody starves: with four processes on two cores the longest
        wait was a few time slices of the scheduler, 12 to 29 ms.

        Args:
            timeout: Seconds; None waits for ever, 0 tries once.
            stamp: Record this process as the holder once the lock is held; costs one `pwrite`.

        Raises:
            LockTimeoutError: It was not free in time; `path` and `holder` say which lock and who holds it.
            ClosedError: This lock was made before a fork, by the parent.
            StorageError: The kernel refused for another reason than a holder, or the stamp could not be written.
        """
        if not self.try_acquire():
            self._wait(timeout)
        if stamp:
            try:
                self.stamp()
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Give the lock back; any thread may.

        Raises:
            IllegalStateError: It is not held.
            ClosedError: This lock was made before a fork, by the parent, who goes on holding it.
        """
        if self._process is not _process:
            raise self._inherited()
        if not self._locked:
            raise IllegalStateError(f"{self.path}: release() of a lock that is not held; acquire() it first")
        self._locked = False
        try:
            self.unlock_kernel()
        except OSError as error:
            raise self._refused(error) from error
        finally:
            self.gate.release()

    def wait_kernel(self, timeout: float) -> bool:
        """Take the kernel's lock alone, after `lock_kernel()` raised `BlockingIOError`.

        For a caller that keeps the other threads of this process out by itself, or by `gate`, and calls this, and
        `lock_kernel`, inside the `try` whose `finally` calls `unlock_kernel`, which frees what is not held as well:
        then no signal handler can leave the lock taken.

        Args:
            timeout: Seconds; 0 tries no more.

        Returns:
            Whether it was taken.

        Raises:
            StorageError: The kernel refused for another reason than a holder.
        """
        taken = timeout > 0 and self._poll(self._clock.monotonic() + timeout)
        self._locked = False
        return taken

    def held(self, timeout: float | None, *, stamp: bool = False) -> _Held:
        """`with lock.held(timeout):` acquires on entering and releases on leaving; arguments as for `acquire`."""
        return _Held(self, timeout, stamp)

    def close(self) -> None:
        """Release the lock if it is held, and close what the lock itself opened; idempotent. `fd` stays open."""
        if self._process is _process:
            if self._locked:
                self.release()
            self._close_own_descriptor()

    def close_inherited(self) -> None:
        """Runs in a forked child (see `InheritedOwner`)."""
        self._close_own_descriptor()

    def stamp(self) -> None:
        """Record this process as the holder in the file; call it while the lock is held. One `pwrite`, no fsync.

        Raises:
            StorageError: The stamp could not be written.
        """
        if self._stamp_position is None:
            return
        try:
            os.pwrite(self._fd, own_stamp(), self._stamp_position)
        except OSError as error:
            raise self._refused(error) from error

    def holder(self) -> str:
        """Who holds the lock, in words, as far as this process can see; for messages only.

        Reads the stamp, and on Linux looks through /proc for the descriptor that holds the lock, which takes up to
        half a second on a busy machine: not for a hot path.
        """
        stamp = b""
        if self._stamp_position is not None:
            with contextlib.suppress(OSError):
                stamp = os.pread(self._fd, STAMP_SIZE, self._stamp_position)
        return describe_holder(stamp, self._lock_fd, self.byte, self._clock)

    # --- waiting

    def _wait(self, timeout: float | None) -> None:
        """Take the lock after a first try failed: in-process lock first, then poll the kernel's."""
        limit = inf if timeout is None else timeout
        deadline = self._clock.monotonic() + limit
        entered: list[bool] = []
        try:
            if limit > 0:
                seconds = min(limit, threading.TIMEOUT_MAX)
                entered.extend(map(self.gate.acquire, (True,), (seconds,)))  # from C: see `try_acquire`
                if entered[0] and self._poll(deadline):
                    return
        except BaseException:
            if True in entered:
                self._back_out(unlock=True)
            raise
        if True in entered:
            self.gate.release()
        raise self.timed_out(limit)

    def _poll(self, deadline: float) -> bool:
        """Try the kernel's lock until the deadline: spin, sleep, spin, sleep longer. False when it stayed taken."""
        monotonic, sleep = self._clock.monotonic, self._clock.sleep
        pause = _FIRST_SLEEP_SECONDS
        while True:
            spin_until = monotonic() + _SPIN_SECONDS
            for _ in range(_SPIN_TRIES):
                try:
                    self.lock_kernel()
                    self._locked = True
                except OSError as error:
                    if error.errno not in _BUSY:
                        raise self._refused(error) from error
                else:
                    return True
                now = monotonic()
                if now >= spin_until:
                    break
            if now >= deadline:
                return False
            sleep(min(pause, deadline - now))
            pause = min(pause * _SLEEP_GROWTH, _LONGEST_SLEEP_SECONDS)

    def _back_out(self, *, unlock: bool) -> None:
        """Give the in-process lock back after a failure; with `unlock`, the kernel's too, in case it was granted.

        A signal handler may raise just after the kernel granted the lock. Unlocking what is not held does nothing.
        """
        self._locked = False
        try:
            if unlock:
                with contextlib.suppress(OSError):
                    self.unlock_kernel()
        finally:
            self.gate.release()

    # --- errors

    def _inherited(self) -> ClosedError:
        return ClosedError(f"{self.path}: this lock belongs to the process that this one was forked from; open it anew")

    def _refused(self, error: OSError) -> StorageError:
        code = error.errno or 0
        return StorageError(f"{self.path}: cannot lock or stamp the file: {error}", path=self.path, errno=code)

    def timed_out(self, waited: float) -> LockTimeoutError:
        """The error for waiting that many seconds in vain."""
        holder = self.holder()
        message = (
            f"{self.path} is locked by {holder}; waited {max(waited, 0):g} s. Wait longer, with a larger time-out, or "
            "end that process: its lock goes with it"
        )
        return LockTimeoutError(message, path=self.path, holder=holder)

    def _close_own_descriptor(self) -> None:
        if self._lock_fd != self._fd:
            os.close(self._lock_fd)
            self._lock_fd = self._fd


class _Held:
    """What `FileLock.held` returns; usable once."""

    __slots__ = ("_lock", "_stamp", "_timeout")

    def __init__(self, lock: FileLock, timeout: float | None, stamp: bool) -> None:  # noqa: FBT001 - private, hot
        self._lock = lock
        self._timeout = timeout
        self._stamp = stamp

    def __enter__(self) -> FileLock:
        self._lock.acquire(self._timeout, stamp=self._stamp)
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._lock.release()
        except BaseException:
            if self._lock.locked:  # a signal handler raised just as `release` was entered
                self._lock.release()
            raise
