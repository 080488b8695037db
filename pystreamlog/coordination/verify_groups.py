"""Looking through the consumer groups of a log for damage. Takes no lock and changes nothing.

A group's state, `members`, may be lost: its members join anew. Its committed offsets may not. A writer at work is told
from damage by a second look, which must find the same bytes.
"""

from __future__ import annotations

import stat
import struct

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.coordination import offset_layout as layout
from pystreamlog.coordination.group_state import StateFile
from pystreamlog.coordination.groups import read_group_id
from pystreamlog.coordination.names import encoded_id
from pystreamlog.errors import CorruptLogError, StreamLogError
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.findings import Findings

__all__ = ["GroupCommit", "verify_groups"]

_FOLDER = "groups"
_FILES = ("control", "members", "offsets")
_LOOKS = 1000
_REPORTED = 100
"""Damaged entries that are named one by one: a file without content may have thousands."""
_GIVEN_UP = 1 << 16
"""Damaged entries after which the look ends: a large file without content must not take hours."""


class GroupCommit(msgspec.Struct, frozen=True):
    """A committed offset and where it stands.

    Attributes:
        path: The file, relative to the log's directory.
        position: Of the entry.
        key: Topic id and partition.
        offset: What was committed.
        epoch: The partition's epoch then.
    """

    path: str
    position: int
    key: tuple[bytes, int]
    offset: int
    epoch: int


def verify_groups(files: Files, log_id: bytes, findings: Findings) -> list[GroupCommit]:
    """Look through every group; what is committed."""
    commits: list[GroupCommit] = []
    try:
        entries = sorted(files.list(_FOLDER))
    except StreamLogError as error:
        findings.error(error, _FOLDER, "file")
        return commits
    for entry in entries:
        name = f"{_FOLDER}/{entry}"
        found = Findings(files)
        committed: list[GroupCommit] = []
        if "~" in entry:
            found.note(name, "temporary", "a group that was being made or deleted when a process was killed")
        else:
            try:
                if stat.S_ISDIR(files.status(name).st_mode):
                    committed = _group(files, name, entry, log_id, found)
                else:
                    found.note(name, "foreign", "no group of the log's: it is ignored")
            except FileNotFoundError:
                pass
            except StreamLogError as error:
                found.error(error, name, "group")
        if files.exists(name):  # else somebody deleted the group meanwhile
            findings.take(found)
            commits += committed
    return commits


def _group(files: Files, folder: str, entry: str, log_id: bytes, found: Findings) -> list[GroupCommit]:
    group_id = None
    name = f"{folder}/group.json"
    try:
        group_id = read_group_id(files, folder)
    except FileNotFoundError:
        found.damage(name, "missing", "the file is missing: restore the folder from a copy")
    except StreamLogError as error:
        found.error(error, name, "group")
    if group_id is not None and encoded_id(group_id) != entry:
        message = "the file is another group's: restore it from a copy"
        found.damage(name, "swapped", message, expected=entry, found=encoded_id(group_id))
        group_id = None
    for each in sorted(files.list(folder)):
        if "~" in each:
            found.note(f"{folder}/{each}", "temporary", "left by a process that was killed: it may be removed")
        elif each not in (*_FILES, "group.json", "bells") and not (
            each.startswith("control.") and each.endswith(".lock")
        ):
            found.note(f"{folder}/{each}", "foreign", "nothing of the log's: it is ignored")
    _bells(files, f"{folder}/bells", found)
    commits: list[GroupCommit] = []
    for each in _FILES:
        name = f"{folder}/{each}"
        try:
            file = files.open(name)
        except FileNotFoundError:
            remedy = layout.REMEDY if each == "offsets" else "restore the folder, or remove it with its offsets"
            found.damage(name, "missing", f"the file is missing: {remedy}")
            continue
        except StreamLogError as error:
            found.error(error, name, "group")
            continue
        try:
            if each == "members":
                _members(file, name, found)
            elif each == "offsets":
                commits = _Offsets(file, name, found).look(log_id, group_id)
        except StreamLogError as error:
            found.error(error, name, "group")
        finally:
            file.close()
    return commits


def _bells(files: Files, folder: str, found: Findings) -> None:
    for entry in sorted(files.list(folder)):
        name = f"{folder}/{entry}"
        if not (entry.isascii() and entry.isdigit()):
            found.note(name, "foreign", "no bell of a member: it is ignored")
        else:
            try:
                files.open(name).close()
            except FileNotFoundError:
                continue
            except StreamLogError:
                found.note(name, "members", "no regular file: the member of this slot is not woken, and polls instead")


def _members(file: File, name: str, found: Findings) -> None:
    state = StateFile(file)
    if state.read() is None:
        found.note(name, "members", "the group's state is damaged: its members join anew, and keep their offsets")


class _Offsets:
    """A look at a group's committed offsets."""

    def __init__(self, file: File, name: str, found: Findings) -> None:
        self._file = file
        self._name = name
        self._found = found
        self._salt = 0
        self._extents: tuple[int, ...] = ()
        self._places: dict[tuple[bytes, int], int] = {}
        self._commits: list[GroupCommit] = []

    def look(self, log_id: bytes, group_id: str | None) -> list[GroupCommit]:
        """Check everything; what is committed."""
        raw = self._file.pread(layout.OFFSETS_HEADER.size, 0)
        self._salt = _told_salt(raw) if group_id is None else layout.salt(group_id)
        try:
            layout.check_header(raw, self._file.path, log_id, group_id)
        except StreamLogError as error:
            self._found.error(error, self._name, "group")
            if not isinstance(error, CorruptLogError) or isinstance(error.expected, tuple):
                return []  # another's, or of another format: what it says means nothing here
        for _ in range(_LOOKS):
            found = self._found
            self._found = Findings(found.files)
            self._places, self._commits = {}, []
            before = self._table()
            self._entries()
            quiet = not self._found.damages or self._table(tell=False) == before
            mine, self._found = self._found, found
            if quiet:
                found.take(mine)
                break
        return self._commits

    def _pair(self, position: int, size: int) -> tuple[bytes, list[int]]:
        """Two slots or copies, and which of them are valid, the ruling one first; as two looks found it if not both."""
        previous = None
        for _ in range(_LOOKS):
            raw = self._file.pread(2 * size, position)
            whole = raw.ljust(2 * size, b"\0")
            valid = [start for start in (0, size) if layout.is_valid(whole, start, size, self._salt)]
            if len(valid) == 2 or raw == previous:  # noqa: PLR2004 - a pair
                valid.sort(key=lambda start: -int.from_bytes(whole[start : start + 8], "little"))
                return whole, valid
            previous = raw
        return b"\0" * 2 * size, []

    def _table(self, *, tell: bool = True) -> int:
        """Read the extent table; its sequence, -1 when it is damaged."""
        size = layout.TABLE_SLOT.size
        raw, valid = self._pair(layout.TABLE_POSITION, size)
        self._extents = ()
        if not valid:
            if tell:
                self._damage(layout.TABLE_POSITION, f"both slots of the extent table are damaged: {layout.REMEDY}")
            return -1
        sequence, count, _, extents, _ = layout.TABLE_SLOT.unpack_from(raw, valid[0])
        if count > layout.EXTENT_LIMIT:
            if tell:
                self._damage(layout.TABLE_POSITION + valid[0], f"the extent table is out of range: {layout.REMEDY}")
            return int(sequence)
        if len(valid) == 1 and tell:
            other = layout.TABLE_POSITION + size - valid[0]
            message = "one of the two slots of the extent table is damaged: the other one rules"
            self._found.note(self._name, "entry", message, position=other)
        self._extents = struct.unpack_from(f"<{count}I", extents)
        return int(sequence)

    def _entries(self) -> None:
        size, end = self._file.size(), layout.extents_end(self._extents)
        if size < end:
            message = f"the file ends before its last entry, so committed offsets are lost: {layout.REMEDY}"
            self._damage(size, message, expected=f"{end} bytes", found=f"{size} bytes")
        damaged = 0
        for first, stop in layout.ranges(self._extents, metadata=False):
            for position in range(first, min(stop, size) - layout.ENTRY_SIZE + 1, layout.ENTRY_SIZE):
                damaged += not self._entry(position, tell=damaged < _REPORTED)
                if damaged > _GIVEN_UP:
                    break
        if damaged > _REPORTED:
            self._damage(0, f"{damaged} entries are damaged; only {_REPORTED} are named")

    def _entry(self, position: int, *, tell: bool) -> bool:
        """Check one entry; whether it is whole."""
        raw, valid = self._pair(position, layout.COPY_SIZE)
        if not valid:
            if tell:
                self._damage(position, f"both copies of a committed offset are damaged: {layout.REMEDY}")
            return False
        ruling = layout.unpack_copy(raw, valid[0])
        free = ruling[layout.FLAGS] == layout.FLAG_FREE
        if len(valid) == 1:
            message = "one of the two copies of an entry is damaged: the other one, perhaps an older commit, rules"
            other = position + layout.COPY_SIZE - valid[0]
            self._found.note(self._name, "entry", message, position=other)
        if free:
            return True
        key = (ruling[layout.KEY][0], ruling[layout.KEY][1])
        if ruling[layout.FLAGS] or ruling[layout.OFFSET] < 0 or key in self._places:
            if tell:
                message = "two entries are of one partition" if key in self._places else "a commit is out of range"
                self._damage(position, f"{message}: which offset holds is not known", found=key)
            return False
        self._places[key] = position
        offset, epoch = ruling[layout.OFFSET], ruling[layout.EPOCH]
        self._commits.append(GroupCommit(self._name, position, key, offset, epoch))
        if ruling[layout.METADATA_SIZE] and not self._has_metadata(ruling, valid[0]):
            raw, now = self._pair(position, layout.COPY_SIZE)
            if now and layout.unpack_copy(raw, now[0]) == ruling:  # else it was committed anew meanwhile
                message = "the text of the last commit is lost: its offset rules without it"
                self._found.note(self._name, "entry", message, position=position)
        return True

    def _has_metadata(self, copy: tuple[object, ...], start: int) -> bool:
        size, blocks = copy[layout.METADATA_SIZE], copy[layout.BLOCKS]
        assert isinstance(size, int)
        assert isinstance(blocks, int)
        if size > layout.METADATA_LIMIT or not layout.is_pair(blocks, self._extents):
            return False
        raw = self._file.pread(size, layout.block(blocks, start))
        if len(raw) < size or xxh3_64_intdigest(raw) != copy[layout.METADATA_CHECKSUM]:
            return False
        try:
            raw.decode()
        except UnicodeDecodeError:
            return False
        return True

    def _damage(self, position: int, message: str, *, expected: object = "", found: object = "") -> None:
        self._found.damage(self._name, "entry", message, position=position, expected=expected, found=found)


def _told_salt(raw: bytes) -> int:
    """The salt that a header tells, whether it verifies or not."""
    fields = layout.OFFSETS_HEADER.unpack(raw.ljust(layout.OFFSETS_HEADER.size, b"\0"))
    return int(fields[4])
