"""A consumer group as one sees it who is no member: who is in it, and what it has committed.

Takes no lock, makes nothing and writes nothing, so that it works in a log that is read-only.
"""

from __future__ import annotations

from collections.abc import Callable

from pystreamlog.clock import Clock
from pystreamlog.coordination.committed import Committed
from pystreamlog.coordination.group_change import max_silence_ns
from pystreamlog.coordination.group_liveness import GroupLiveness, is_in_place
from pystreamlog.coordination.group_state import GroupState, Member, PartitionKey, StateFile
from pystreamlog.coordination.group_transaction import named_transaction
from pystreamlog.coordination.groups import group_folder, read_group_id, unknown_group
from pystreamlog.coordination.journal import Entry
from pystreamlog.coordination.offset_layout import REMEDY
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.files import File, Files

__all__ = ["GroupReader"]

_MS = 1_000_000
_OPENINGS = 20


class GroupReader(GroupLiveness):
    """The files of one group. One user at a time; close it after use.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        group_id: The group's.
        clock: Tells monotonic time.
        boot: Id of this boot.
        find_entry: Finds the published entry of the journal with a position and a nonce.

    Attributes:
        group_id: The group's id.
        state: Its state when it was opened; one that does not verify is one without members.

    Raises:
        UnknownGroupError: There is none.
        CorruptLogError: Its files are damaged.
    """

    def __init__(
        self,
        files: Files,
        log_id: bytes,
        group_id: str,
        *,
        clock: Clock,
        boot: bytes,
        find_entry: Callable[[int, int], Entry | None],
    ) -> None:
        self.group_id = group_id
        self._boot = boot
        self._find_entry = find_entry
        for attempt in range(_OPENINGS):  # somebody may delete it, and make it again, between two files
            try:
                control, self._offsets, self.state = _open(files, log_id, group_id)
            except CorruptLogError as error:
                was_there = not isinstance(error.__cause__, FileNotFoundError)
                if was_there or attempt == _OPENINGS - 1:
                    raise
                continue
            super().__init__(control, clock)
            if is_in_place(files, control, group_folder(group_id)):
                return
            self.close()
        raise unknown_group(group_id)

    def members(self) -> list[tuple[Member, bool]]:
        """The members, and whether each is there; of the others, static ones that may come back in time."""
        state, now_ns = self.state, self.now_ns()
        polls = self.last_polls_ns(state)
        present = []
        for member in state.members:
            if not member.left_ns and self.is_alive(member.slot):
                if now_ns - polls[member.slot] <= max_silence_ns(member):
                    present.append((member, True))
            elif member.instance_id is not None:
                # Its time runs from when somebody found it gone; after a restart of the machine that begins anew.
                is_late = member.left_ns and state.boot == self._boot
                if not is_late or now_ns - member.left_ns < member.session_timeout_ms * _MS:
                    present.append((member, False))
        return present

    def committed(self) -> dict[PartitionKey, Committed]:
        """All that was committed, also by transactions that nobody has stored yet.

        Raises:
            CorruptLogError: Anything is damaged.
        """
        while True:
            position, nonce = named_transaction(self._control)
            found = self._offsets.all()
            if position < 0:
                return found
            entry = self._find_entry(position, nonce)
            changes = () if entry is None else entry.offsets
            mine = {(each.topic_id, each.partition): each.new for each in changes if each.group_id == self.group_id}
            if named_transaction(self._control) == (position, nonce):
                return found | mine

    def close(self) -> None:
        """Close its files."""
        self._offsets.close()
        self.close_liveness()


def _open(files: Files, log_id: bytes, group_id: str) -> tuple[File, OffsetStore, GroupState]:
    folder = group_folder(group_id)
    try:
        found = read_group_id(files, folder)
    except FileNotFoundError as error:
        if files.exists(folder):
            raise CorruptLogError(f"{files.path(folder)} lacks group.json: restore it", path=folder) from error
        raise unknown_group(group_id) from error
    if found != group_id:
        path = files.path(f"{folder}/group.json")
        raise CorruptLogError(f"{path} is another group's", path=path, expected=group_id, found=found)
    opened: list[File] = []
    try:
        control = files.open(f"{folder}/control")
        opened.append(control)
        members = files.open(f"{folder}/members")
        try:
            state = StateFile(members).read()
        finally:
            members.close()
        offsets = OffsetStore.open(files, f"{folder}/offsets", log_id=log_id, group_id=group_id, write=False)
    except BaseException as error:
        for file in opened:
            file.close()
        if isinstance(error, FileNotFoundError):
            path = files.path(folder)
            remedy = REMEDY if error.filename.endswith("offsets") else "restore it from a copy"
            raise CorruptLogError(f"{path} lacks {error.filename!r}: {remedy}", path=path) from error
        raise
    return control, offsets, GroupState() if state is None else state[1]
