"""Snapshots of a partition's producers, and the state made anew from the newest one and the log behind it.

A snapshot `<base offset>.producers` lies beside the segment in which it was taken, and says where. It is derived: it
may be missing, damaged, or of a log that a power loss has cut, at any time. It is believed only if the log still goes
on where it was taken as it did then, which the chain of header checksums tells; else an older one is, or none.

`rebuild`, in these steps:

1. go back from the newest segment to the newest snapshot that verifies, or to a segment that is older than the
   expiration, before which no batch can matter;
2. read the batch headers from there on; bodies are not read;
3. a batch was appended before the next segment was made: that is its time. What lies in the newest segment may have
   been appended just now. The records' timestamps mean nothing here, as old records may be sent today.

So an id may live longer than it should by the age of a segment, never shorter.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import nullcontext, suppress

from pystreamlog.errors import StreamLogError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.producer_state import ProducerState, Snapshot, decode_snapshot, encode_snapshot
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.segment import bases_of

__all__ = [
    "SNAPSHOT_LIMIT",
    "catch_up",
    "cursor_at",
    "list_snapshots",
    "prepare_move",
    "rebuild",
    "snapshot_of",
    "write_snapshot",
]

SNAPSHOT_LIMIT = 64 << 20
"""Bytes of a snapshot: a million ids. A larger one is neither written nor read; the log is walked instead."""
_SNAPSHOTS_KEPT = 2
"""The newest, and the one before, should a power loss cut the log before the newest."""
_MOVED = "~moved"
"""Behind the name of a snapshot that is right once its segment was replaced."""


def cursor_at(end: Published) -> Cursor:
    """A cursor on what will follow a published end."""
    cursor = Cursor(end.end_offset)
    cursor.segment_base, cursor.position = end.segment_base, end.end_position
    cursor.segment_id = end.segment_id
    cursor.floor, cursor.previous = end.end_offset, end.last_checksum
    return cursor


def list_snapshots(folder: Folder) -> list[int]:
    """Base offsets of the segments that have a snapshot, ascending."""
    return bases_of(folder.files.list(folder.path), layout.PRODUCERS_SUFFIX)


def write_snapshot(folder: Folder, state: ProducerState, end: Published, *, durable: bool = False) -> int:
    """Write the state at a published end, and remove snapshots that are not needed any more; returns its size.

    Args:
        folder: The partition.
        state: The state.
        end: The end that it is of.
        durable: It is on disk when this returns. Else it is not synced, and left out where it cannot be written.

    Raises:
        StorageError: It could not be written, and was to be durable.
    """
    data = encode_snapshot(
        state,
        segment_id=end.segment_id,
        segment_base=end.segment_base,
        position=end.end_position,
        offset=end.end_offset,
        last_checksum=end.last_checksum,
    )
    if len(data) > SNAPSHOT_LIMIT:
        return len(data)
    files, name = folder.files, _name(folder, end.segment_base)
    with nullcontext() if durable else suppress(StreamLogError, OSError):
        temporary = f"{name}~"
        files.unlink(temporary)
        file = files.create(temporary)
        try:
            file.pwrite(data, 0)
            if durable:
                file.datasync()
        finally:
            file.close()
        files.rename(temporary, name)
        if durable:
            files.sync_directory(folder.path)
        for base in list_snapshots(folder)[:-_SNAPSHOTS_KEPT]:
            files.unlink(_name(folder, base))
    return len(data)


def _name(folder: Folder, base: int) -> str:
    return f"{folder.path}/{layout.segment_name(base, layout.PRODUCERS_SUFFIX)}"


def _read(folder: Folder, base: int, suffix: str = "") -> tuple[Snapshot, ProducerState] | None:
    """What the file of a segment's snapshot says; None if it says nothing."""
    try:
        return decode_snapshot(folder.files.read(_name(folder, base) + suffix, limit=SNAPSHOT_LIMIT))
    except (StreamLogError, OSError):
        return None


def snapshot_of(folder: Folder, base: int, segment_id: int) -> tuple[Snapshot, ProducerState] | None:
    """The snapshot of a segment that is about to be written anew, or was: also by a process that died then.

    Args:
        folder: The partition.
        base: The segment's base offset.
        segment_id: The id that it has now.
    """
    for suffix in ("", _MOVED):
        found = _read(folder, base, suffix)
        if found is not None and (found[0].segment_base, found[0].segment_id) == (base, segment_id):
            if suffix:
                folder.files.rename(_name(folder, base) + suffix, _name(folder, base))
                folder.files.sync_directory(folder.path)
            return found
    return None


def prepare_move(folder: Folder, snapshot: Snapshot, state: ProducerState, segment_id: int, last_checksum: int) -> None:
    """Write a snapshot for the file that is to take its segment's place, beside the one that holds until then.

    Args:
        folder: The partition.
        snapshot: Where it was taken.
        state: What it holds.
        segment_id: Of that file.
        last_checksum: In that file, of the batch header before the snapshot's position.

    Raises:
        StorageError: It could not be written.
    """
    data = encode_snapshot(
        state,
        segment_id=segment_id,
        segment_base=snapshot.segment_base,
        position=snapshot.position,
        offset=snapshot.offset,
        last_checksum=last_checksum,
    )
    folder.files.write(_name(folder, snapshot.segment_base) + _MOVED, data)


def _load(folder: Folder, reader: LogReader, base: int, end: Published) -> tuple[ProducerState, Cursor] | None:
    """The snapshot of a segment, and where the log goes on behind it; None if there is none to believe."""
    found = _read(folder, base)
    if found is None:
        return None
    snapshot, state = found
    cursor = Cursor(snapshot.offset)
    cursor.segment_base, cursor.position, cursor.segment_id = base, snapshot.position, snapshot.segment_id
    cursor.floor, cursor.previous = snapshot.offset, snapshot.last_checksum
    if snapshot.segment_base != base or reader.segment_id(base) != snapshot.segment_id:
        return None
    return (state, cursor) if reader.verifies(cursor, end) else None


def rebuild(
    folder: Folder, reader: LogReader, end: Published, *, now_ms: int, expiration_ms: int
) -> tuple[ProducerState, int]:
    """The state at a published end, from the newest snapshot or from the log.

    Args:
        folder: The partition.
        reader: Reads it.
        end: Its published end.
        now_ms: The time.
        expiration_ms: How long ids live without an append.

    Returns:
        The state, and how many bytes of log were walked for it.

    Raises:
        CorruptLogError: The log that would have to be walked does not verify.
    """
    bases = folder.segments()
    bases = bases[: bisect_right(bases, end.segment_base)]
    bases = bases[max(0, bisect_right(bases, end.log_start_offset) - 1) :]
    snapshots = set(list_snapshots(folder))
    state, cursor = ProducerState(), Cursor(end.end_offset)
    for base in reversed(bases):
        found = _load(folder, reader, base, end) if base in snapshots else None
        if found is not None:
            state, cursor = found
            break
        if reader.place_at(cursor, base) < now_ms - expiration_ms:
            break
    walked = catch_up(folder, state, reader, cursor, end, now_ms=now_ms)
    state.expire(now_ms - expiration_ms)
    return state, walked


def catch_up(
    folder: Folder, state: ProducerState, reader: LogReader, cursor: Cursor, end: Published, *, now_ms: int
) -> int:
    """Take in the batches from the cursor to a published end; returns their bytes. Costs some 5 us a batch.

    Raises:
        OffsetOutOfRangeError: The log starts behind the cursor.
        CorruptLogError: It does not verify.
    """
    base, until, walked = -1, now_ms, 0
    bases: list[int] = []
    for header in reader.headers(cursor, end):
        if cursor.segment_base != base:
            base, until = cursor.segment_base, now_ms
            if base != end.segment_base:
                bases = bases or folder.segments()
                following = bases[bisect_right(bases, base) :][:1]
                until = min([now_ms, *map(reader.created_ms, following)])
        state.append_header(header, until)
        walked += header.size
    return walked
