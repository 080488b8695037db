"""Which members of a consumer group live, and when they polled last, as its `control` file tells. Takes no lock."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from pystreamlog.clock import Clock
from pystreamlog.coordination.group_state import GroupState
from pystreamlog.coordination.locks import FileLock
from pystreamlog.storage.files import File, Files

__all__ = ["GroupLiveness", "is_in_place"]

_MEMBER_BYTE = 1024
_POLLS = 4096
_TIME = struct.Struct("<q")


class GroupLiveness:
    """See `group_change.Liveness`. Safe from any thread.

    Args:
        control: The group's `control`.
        clock: Tells monotonic time.
    """

    def __init__(self, control: File, clock: Clock) -> None:
        self._control = control
        self._clock = clock
        self._probes: dict[int, FileLock] = {}

    def now_ns(self) -> int:
        """See `Liveness.now_ns`."""
        return time.monotonic_ns()

    def slot_lock(self, slot: int) -> FileLock:
        """The lock that the member of a slot holds while it is one."""
        return FileLock(
            self._control.fd, self._control.path, byte=_MEMBER_BYTE + slot, stamp_position=None, clock=self._clock
        )

    def is_alive(self, slot: int) -> bool:
        """See `Liveness.is_alive`."""
        lock = self._probes.get(slot)
        if lock is None:
            self._probes[slot] = lock = self.slot_lock(slot)
        return not lock.is_free()

    def last_polls_ns(self, state: GroupState) -> Sequence[int]:
        """See `Liveness.last_polls_ns`."""
        count = 1 + max((member.slot for member in state.members), default=-1)
        raw = self._control.pread(count * _TIME.size, _POLLS)
        return struct.unpack(f"<{count}q", raw.ljust(count * _TIME.size, b"\0"))

    def polled(self, slot: int, now_ns: int) -> None:
        """Say that the member of that slot polls; one `pwrite`."""
        self._control.pwrite(_TIME.pack(now_ns), _POLLS + slot * _TIME.size)

    def close_liveness(self) -> None:
        """Close `control`, and give up every lock with it."""
        for lock in self._probes.values():
            lock.close()
        self._control.close()


def is_in_place(files: Files, control: File, folder: str) -> bool:
    """Whether the group's folder still is the one that this `control` was opened in."""
    try:
        found = files.status(f"{folder}/control")
    except FileNotFoundError:
        return False
    own = control.status()
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
