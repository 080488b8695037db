"""A consumer group whose committed offsets cannot be read: just enough of it to delete it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pystreamlog.clock import Clock
from pystreamlog.coordination.bells import ring
from pystreamlog.coordination.group import LOCK_TIMEOUT
from pystreamlog.coordination.group_change import GroupChange
from pystreamlog.coordination.group_liveness import GroupLiveness, is_in_place
from pystreamlog.coordination.group_state import GroupState, StateFile
from pystreamlog.coordination.group_transaction import name_transaction
from pystreamlog.coordination.groups import group_folder, read_group_id, unknown_group
from pystreamlog.coordination.locks import FileLock
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.files import Files

__all__ = ["DamagedGroup"]

T = TypeVar("T")


class DamagedGroup(GroupLiveness):
    """A group's lock and its members, without its `offsets`. For one thread; close it after use.

    What a transaction committed there, and nobody has stored yet, is neither stored nor dropped.

    Args:
        files: The door to the log's directory.
        group_id: The group.
        clock: Tells monotonic time.
        boot_id: Tells this boot's id.

    Raises:
        UnknownGroupError: There is none.
        CorruptLogError: More of it is damaged: which group it is, its lock, or who its members are.
    """

    def __init__(self, files: Files, group_id: str, *, clock: Clock, boot_id: Callable[[], bytes]) -> None:
        self.group_id = group_id
        self._files = files
        self._path = path = group_folder(group_id)
        self._boot_id = boot_id
        try:
            found = read_group_id(files, path)
            control = files.open(f"{path}/control", write=True)
        except FileNotFoundError as error:
            raise self._lacking(error) from error
        try:
            if found != group_id:
                full = files.path(f"{path}/group.json")
                raise CorruptLogError(f"{full} is another group's", path=full, expected=group_id, found=found)
            self._state_file = StateFile(files.open(f"{path}/members", write=True))
        except BaseException as error:
            control.close()
            if isinstance(error, FileNotFoundError):
                raise self._lacking(error) from error
            raise
        super().__init__(control, clock)
        self._lock = FileLock(control.fd, control.path, stamp_position=None, clock=clock)

    def change(self, decide: Callable[[GroupChange], T]) -> T:
        """See `Group.change`.

        Raises:
            LockTimeoutError: Another process held the group's lock for a minute.
            UnknownGroupError: The group was deleted.
        """
        with self._lock.held(LOCK_TIMEOUT):
            if not is_in_place(self._files, self._control, self._path):
                raise unknown_group(self.group_id)
            found = self._state_file.read()
            sequence, state = (0, GroupState()) if found is None else found
            change = GroupChange(state, self, self._boot_id())
            answer = decide(change)
            if change.changed and found is not None:
                self._state_file.write(sequence + 1, state)
        for slot in change.rung:
            ring(self._files, self._path, slot)
        return answer

    def name_transaction(self, position: int, nonce: int) -> None:
        """See `Group.name_transaction`."""
        name_transaction(self._control, position, nonce)

    def close(self) -> None:
        """Close the files, and give up every lock with them."""
        self._lock.close()
        self._state_file.file.close()
        self.close_liveness()

    def _lacking(self, error: FileNotFoundError) -> Exception:
        if not self._files.exists(self._path):
            return unknown_group(self.group_id)
        path = self._files.path(self._path)
        return CorruptLogError(f"{path} lacks {error.filename!r}: restore the folder from a copy", path=path)
