"""One consumer group as one process sees it: its files, its lock, its members' signs of life, its committed offsets.

The folder `groups/<encoded group id>/` appears whole, by one rename, and holds:

- `group.json`: the group id, and when it was made.
- `control`: locks and the table of polls, 8 bytes per slot: when the member polled last, in monotonic ns.
- `members`: who belongs to it and who reads what (`group_state`); under the group's lock, byte 0 of `control`.
- `bells/<slot>`: written to when the member of that slot must act; each member watches its own.
- `offsets`: the committed offsets (`offset_store`); under the group's lock.

A member is alive while the lock of its slot, byte `1024 + slot` of `control`, is held; the kernel gives it back when
the process dies. All members of this process share one `Group` and its descriptors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from pystreamlog.clock import Clock
from pystreamlog.coordination.bells import make_bell, ring
from pystreamlog.coordination.committed import Committed, Origin
from pystreamlog.coordination.group_change import GroupChange
from pystreamlog.coordination.group_liveness import GroupLiveness, is_in_place
from pystreamlog.coordination.group_state import GroupState, Member, PartitionKey, StateFile, keys_of
from pystreamlog.coordination.group_transaction import (
    DELETING,
    NO_TRANSACTION,
    name_transaction,
    named_transaction,
)
from pystreamlog.coordination.journal import Entry
from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.offset_layout import REMEDY
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.errors import (
    CommitFailedError,
    CorruptLogError,
    LockTimeoutError,
    StorageError,
    UnknownGroupError,
)
from pystreamlog.storage.files import File, Files

__all__ = ["LOCK_TIMEOUT", "Group", "GroupBusyError", "Seat"]

LOCK_TIMEOUT = 60.0
"""Seconds to wait for a group's lock, which is held for less than a millisecond, unless its holder is stopped."""


class GroupBusyError(LockTimeoutError):
    """Somebody else holds the group's lock just now, and the caller would not wait."""


T = TypeVar("T")


class Seat(NamedTuple):
    """A member's place: what it holds while it lives."""

    slot: int
    lock: FileLock
    bell: str


class Group(GroupLiveness):
    """A group's open files. Safe from any thread.

    Args:
        files: The door to the log's directory.
        path: The group's folder.
        log_id: The log's id.
        group_id: The group's.
        clock: Tells monotonic time.
        boot_id: Tells this boot's id.
        find_entry: Finds the published entry of the journal with a position and a nonce.
    """

    def __init__(
        self,
        files: Files,
        path: str,
        *,
        log_id: bytes,
        group_id: str,
        clock: Clock,
        boot_id: Callable[[], bytes],
        find_entry: Callable[[int, int], Entry | None],
    ) -> None:
        self.group_id = group_id
        self.users = 0
        self._files = files
        self._path = path
        self._boot_id = boot_id
        self._find_entry = find_entry
        self._view: tuple[bytes, GroupState] = (b"", GroupState())
        self._owned: tuple[bytes, str, frozenset[PartitionKey]] = (b"", "", frozenset())
        opened: list[File | OffsetStore] = []
        try:
            control = files.open(f"{path}/control", write=True)
            opened.append(control)
            members = files.open(f"{path}/members", write=True)
            opened.append(members)
            self._state_file = StateFile(members)
            self._offsets = OffsetStore.open(files, f"{path}/offsets", log_id=log_id, group_id=group_id, write=True)
        except BaseException as error:
            for file in opened:
                file.close()
            if isinstance(error, FileNotFoundError):
                remedy = "restore the folder from a copy, or remove it to give up the group with its committed offsets"
                if error.filename.endswith("offsets"):
                    remedy = REMEDY
                raise CorruptLogError(
                    f"{files.path(path)} lacks {error.filename!r}: {remedy}",
                    path=files.path(path),
                ) from error
            raise
        super().__init__(control, clock)
        self._lock = FileLock(self._control.fd, self._control.path, stamp_position=None, clock=clock)
        self._mutex = threading.Lock()
        self._unrung: set[int] = set()
        self._reading = threading.Lock()  # an `OffsetStore` is for one thread at a time

    # --- the state

    def view(self) -> tuple[bytes, GroupState]:
        """The state as it is now, which is not to be changed, and what tells it from others. 1 us when it is as it was.

        A state that does not verify is one without members: the next change repairs it.
        """
        heads = self._state_file.heads()
        if heads != self._view[0]:
            # Should it be replaced between the two looks, the next look finds other heads again.
            found = self._state_file.read()
            self._view = heads, GroupState() if found is None else found[1]
        return self._view

    def changed_since(self, heads: bytes) -> bool:
        """Whether the state is another than the one that `view` told apart by these."""
        return self._state_file.heads() != heads

    def change(self, decide: Callable[[GroupChange], T], timeout: float | None = LOCK_TIMEOUT) -> T:
        """Change the group under its lock; what `decide` did is written, and who must act rung, unless it raises.

        Raises:
            GroupBusyError: `timeout` is 0, and somebody else holds the lock.
            LockTimeoutError: Another process held it for that long.
            UnknownGroupError: The group's folder was deleted.
        """
        # Written out, as `commit` is: a signal handler that raises must not find a call before the unlocking.
        lock = self._lock
        entered: list[bool] = []
        try:
            self._enter(timeout, entered)
            try:
                self._lock_kernel(timeout)
                found = self._state_file.read()
                if found is None:
                    # Nobody knows any more who owned what: all must join again, at a generation above any there was.
                    sequence, state = self._clock.now_ms(), GroupState(generation=self._clock.now_ms())
                    everybody = {int(name) for name in self._files.list(f"{self._path}/bells") if name.isdecimal()}
                else:
                    (sequence, state), everybody = found, set()
                change = GroupChange(state, self, self._boot_id())
                answer = decide(change)
                self._unrung |= change.rung | everybody
                if change.changed or found is None:
                    self._state_file.write(sequence + 1, state)
            finally:
                lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()
        self.ring_due()
        return answer

    def _enter(self, timeout: float | None, entered: list[bool]) -> None:
        """Keep the other threads out; within the `try` that gives `_mutex` back if `entered` says so."""
        if not enter(self._mutex, _limit(timeout), entered):
            raise self._busy(timeout)

    def _lock_kernel(self, timeout: float | None) -> None:
        """Take the group's lock; within the `try` that calls `unlock_kernel`."""
        try:
            self._lock.lock_kernel()
        except OSError:  # it is taken; another reason is told by waiting
            if not self._lock.wait_kernel(_limit(timeout)):
                raise self._busy(timeout) from None
        if self._control.status().st_nlink == 0:
            raise self._deleted()
        self._finish_transaction()

    def _busy(self, timeout: float | None) -> LockTimeoutError:
        path = self._control.path
        if timeout == 0:
            return GroupBusyError(f"group {self.group_id!r} is being changed", path=path)
        holder = self._lock.holder()
        return LockTimeoutError(
            f"group {self.group_id!r} is locked by {holder}; waited {timeout:g} s. Wait longer, or end that process: "
            "its lock goes with it",
            path=path,
            holder=holder,
        )

    def is_deleted(self) -> bool:
        """Whether somebody deleted the group; two system calls."""
        if self._control.status().st_nlink == 0:
            return True
        return named_transaction(self._control)[0] == DELETING and not self.is_in_place()

    def is_in_place(self) -> bool:
        """Whether the group's folder still is the one whose files these are."""
        return is_in_place(self._files, self._control, self._path)

    def check_exists(self) -> None:
        """Make sure that these files are still the group's.

        Raises:
            UnknownGroupError: They were deleted.
        """
        if self.is_deleted():
            raise self._deleted()

    def _deleted(self) -> UnknownGroupError:
        return UnknownGroupError(
            f"group {self.group_id!r} was deleted while it was in use: its committed offsets are gone; make a new "
            "consumer to begin the group anew",
            group_id=self.group_id,
        )

    # --- seats and bells

    def ring_due(self) -> None:
        """Wake who must act on a change; what fails is left for the next call."""
        while self._unrung:
            slot = next(iter(self._unrung))
            try:
                self.ring(slot)
            except StorageError:
                return
            self._unrung.discard(slot)

    def ring(self, slot: int) -> None:
        """Wake the member of that slot, if there is one.

        Raises:
            StorageError: It could not be: no descriptors are left, or no space.
        """
        ring(self._files, self._path, slot)

    def sit_down(self, change: GroupChange, back: Member | None) -> Seat:
        """Take the lock of a free slot, or that of the static member that is back; under the group's lock."""
        taken = {member.slot for member in change.state.members}
        slot = 0 if back is None else back.slot
        while True:
            if back is not None or slot not in taken:
                lock = self.slot_lock(slot)
                if lock.try_acquire():
                    break
                lock.close()
            # Else a member that was fenced does not know it yet.
            slot += 1
            back = None
        try:
            self.polled(slot, self.now_ns())
            bell = self.make_bell(slot)
        except BaseException:
            lock.close()
            raise
        return Seat(slot, lock, self._files.path(bell))

    def make_bell(self, slot: int) -> str:
        """A bell that can be rung, by its name; what is in its place goes, for bells hold nothing."""
        return make_bell(self._files, self._path, slot)

    # --- offsets

    def commit(
        self, member_id: str | None, offsets: Mapping[PartitionKey, Committed], timeout: float | None = LOCK_TIMEOUT
    ) -> None:
        """Commit offsets of partitions that the member owns; without a member, the group must have none.

        Raises:
            CommitFailedError: It owns one of them no more; nothing was committed.
            GroupBusyError, LockTimeoutError, UnknownGroupError: See `change`.
        """
        lock = self._lock
        entered: list[bool] = []
        try:
            self._enter(timeout, entered)
            try:
                self._lock_kernel(timeout)
                self.check_owner(member_id, offsets)
                self.store(offsets)
            finally:
                lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()

    def check_owner(self, member_id: str | None, keys: Mapping[PartitionKey, object]) -> None:
        """Whether that member owns all these partitions; under the group's lock.

        Raises:
            CommitFailedError: It does not.
        """
        heads, state = self.view()
        if member_id is None:
            if any(self.is_alive(member.slot) for member in state.members):
                raise CommitFailedError(
                    f"group {self.group_id!r} has members that subscribe: a consumer that was assigned its partitions "
                    "may not commit beside them; use another group_id"
                )
            return
        if self._owned[:2] != (heads, member_id):
            member = state.member(member_id)
            self._owned = heads, member_id, frozenset(() if member is None else keys_of(member.owned))
        if not self._owned[2].issuperset(keys):
            raise CommitFailedError(
                f"this consumer lost partitions of group {self.group_id!r} that it tried to commit: poll() again, it "
                "rejoins by itself; what was not committed is read again by their new owner"
            )

    def store(self, offsets: Mapping[PartitionKey, Committed], origin: Origin | None = None) -> None:
        """Store committed offsets, whoever owns the partitions, for a transaction or none; under the group's lock."""
        with self._reading:
            for key, committed in offsets.items():
                self._offsets.put(*key, committed, origin)

    def committed(self, topic_id: bytes, partition: int) -> Committed | None:
        """What was committed last in a partition; None when nothing was.

        Raises:
            CorruptLogError: It cannot be told.
        """
        while True:
            position, nonce = named_transaction(self._control)
            if position >= 0:
                entry = self._find_entry(position, nonce)
                for change in () if entry is None else entry.offsets:
                    key = change.group_id, change.topic_id, change.partition
                    if key == (self.group_id, topic_id, partition):
                        return change.new
            with self._reading:
                found = self._offsets.get(topic_id, partition)
            if position < 0 or named_transaction(self._control) == (position, nonce):
                return found

    # --- transactions

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Hold the group's lock, for a transaction.

        Raises:
            GroupBusyError, LockTimeoutError, UnknownGroupError: See `change`.
        """
        entered: list[bool] = []
        try:
            self._enter(timeout, entered)
            try:
                self._lock_kernel(timeout)
                yield
            finally:
                self._lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()

    def changes(
        self, offsets: Mapping[PartitionKey, Committed]
    ) -> Iterator[tuple[PartitionKey, int, Committed | None, Committed]]:
        """For each offset to be committed: key, sequence of the copy that will hold it, what was committed before, it.

        Under the group's lock.
        """
        with self._reading:
            for key, new in offsets.items():
                yield key, self._offsets.next_sequence(*key), self._offsets.get(*key), new

    def name_transaction(self, position: int, nonce: int) -> None:
        """Say which journal entry, once it is published, holds committed offsets that are not stored yet; -1 for none.

        Under the group's lock.
        """
        name_transaction(self._control, position, nonce)

    def _finish_transaction(self) -> None:
        """Store what a committer that died had committed; under the group's lock."""
        position, nonce = named_transaction(self._control)
        if position >= 0:
            entry = self._find_entry(position, nonce)
            for change in () if entry is None else entry.offsets:
                if change.group_id == self.group_id:
                    self.store({(change.topic_id, change.partition): change.new}, Origin(position, nonce, 0))
        elif position == DELETING and not self.is_in_place():
            raise self._deleted()
        if position != NO_TRANSACTION:
            self.name_transaction(NO_TRANSACTION, 0)

    def finish_transaction(self) -> None:
        """As whoever takes the group's lock does."""
        with self.locked(LOCK_TIMEOUT):
            pass

    def committed_numbers(self, topic_id: bytes) -> set[int]:
        """The partitions of a topic in which anything was committed."""
        with self._reading:
            return self._offsets.numbers(topic_id)

    def room(self) -> int:
        """How many partitions may be committed for the first time without an `fdatasync`."""
        with self._reading:
            return self._offsets.room()

    def reserve(self, count: int, timeout: float | None = 0) -> None:
        """Make room for so many partitions, so that first commits do not wait for the disk; this may.

        Raises:
            GroupBusyError, LockTimeoutError, UnknownGroupError: See `change`.
        """
        lock = self._lock
        entered: list[bool] = []
        try:
            self._enter(timeout, entered)
            try:
                self._lock_kernel(timeout)
                with self._reading:
                    self._offsets.reserve(count)
            finally:
                lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()

    def forget_topic(self, topic_id: bytes) -> None:
        """Drop what was committed in a topic that was deleted; under the group's lock."""
        self.forget([(topic_id, number) for number in self.committed_numbers(topic_id)])

    def forget(self, keys: Sequence[PartitionKey]) -> None:
        """Drop what was committed in these partitions; under the group's lock."""
        with self._reading:
            for key in keys:
                self._offsets.forget(*key)

    # --- life

    def close(self) -> None:
        """Close the files, and give up every lock with them."""
        self._lock.close()
        self._offsets.close()
        self._state_file.file.close()
        self.close_liveness()


def _limit(timeout: float | None) -> float:
    return threading.TIMEOUT_MAX if timeout is None else timeout
