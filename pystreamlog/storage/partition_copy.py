"""One partition's files as a snapshot of the log has them: sealed segments are linked, the active one is copied.

Takes no lock, while others append, roll, delete and replace segments. A sealed file is never written again, only
replaced by rename, so what is linked stays as it is. What was the active segment at the end that is wanted is copied up
to that end and no further, whatever became of it since. In these steps:

1. List the folder. Copy the active segment; link the others, or copy them where there are no links.
2. List it again. If any segment came, went or was replaced meanwhile, begin anew: half of a replacement is no log.
3. Write what is the snapshot's own: `epochs.json` up to the end, and a `control` file that says that all is on disk.

Derived files follow if they can: the index up to the end, and the snapshots of producers, which are replaced whole and
prove themselves by the chain. `keys.index` is written in place and names the log; it is left out and made anew.

Of a partition that is yet to be recovered, where nothing may be written, the end is that which a recovery would find;
as there, a new epoch begins behind it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import msgspec

from pystreamlog.errors import CorruptLogError, UnknownTopicError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Durable, Published
from pystreamlog.storage.epochs import EPOCHS, read_epochs, start_epoch
from pystreamlog.storage.folder import CONTROL, Folder
from pystreamlog.storage.index import index_until
from pystreamlog.storage.recovery import needs_recovery
from pystreamlog.storage.segment import bases_of

__all__ = ["MovedError", "PartitionCopy", "copy_partition"]

_ATTEMPTS = 100
"""How often the segments may change while they are linked."""
_COPIED_AT_ONCE = 8 << 20
"""Bytes between two reports of progress; also how long Ctrl-C may have to wait."""

Listing = dict[str, tuple[int, int]]
"""Names with inode numbers and sizes."""


class MovedError(Exception):
    """The partition has no such end any more: it was recovered or healed meanwhile, or its segment compacted away."""


class PartitionCopy(msgspec.Struct, frozen=True):
    """What became of one partition.

    Attributes:
        end: Its end in the snapshot.
        written: Names of files that are to be synced, relative to the log's directory.
        linked: Segments that are hard links.
        copied: Segments that are copies.
        linked_bytes: Of the files that are linked.
        copied_bytes: Of those that were copied.
    """

    end: Published
    written: list[str]
    linked: int
    copied: int
    linked_bytes: int
    copied_bytes: int


def copy_partition(
    source: Folder,
    target: Folder,
    end: Published,
    *,
    boot_id: bytes,
    now_ms: int,
    unsynced_from: int,
    copied: Callable[[int], None],
) -> PartitionCopy:
    """Link and copy a partition as it is up to an end; nothing is synced but what `written` leaves out.

    Args:
        source: The partition.
        target: What it shall be; the folder is made here.
        end: An end that was published, and that no transaction will take back.
        boot_id: This boot's.
        now_ms: The time.
        unsynced_from: Segments from that base offset on may not be on disk.
        copied: Called with the number of bytes of each piece that was copied.

    Raises:
        UnknownTopicError: The topic is being deleted.
        FileNotFoundError: It was deleted, or files are missing.
        MovedError: See there.
        CorruptLogError: A segment is missing.
        StorageError: The disk is full or failed.
    """
    target.files.make_directory(target.path)
    control = source.open_control(write=False)
    try:
        done = _segments(source, target, control, end, now_ms, unsynced_from, copied)
        now = control.published()
        if now is not None and now.flags & layout.FLAG_DELETED:
            topic = source.path.split("/")[1]
            raise UnknownTopicError(f"topic {topic!r} was deleted", topic=topic)
        if now is not None and now.epoch > end.epoch:
            raise MovedError
        epochs = [known for known in read_epochs(source) if known.epoch <= end.epoch]
        is_recovered = not needs_recovery(control, boot_id)
    finally:
        control.close()
    if epochs:
        done.written.append(_put(target, EPOCHS, msgspec.json.encode(epochs)))
    if not is_recovered:  # what was committed beyond the end that is left was about other records
        done = msgspec.structs.replace(done, end=msgspec.structs.replace(done.end, epoch=start_epoch(target, done.end)))
    done.written.append(_write_control(target, done.end, boot_id))
    return done


def _segments(
    source: Folder,
    target: Folder,
    control: Control,
    end: Published,
    now_ms: int,
    unsynced_from: int,
    copied: Callable[[int], None],
) -> PartitionCopy:
    start = end.log_start_offset
    for _ in range(_ATTEMPTS):
        now = control.published()
        start = max(start, now.log_start_offset if now is not None else 0)
        before = source.files.regular(source.path)
        bases = [base for base in bases_of(before) if base <= end.segment_base]
        bases = bases[max(0, bisect_right(bases, start) - 1) :]
        if start >= end.end_offset and bases[-1:] != [end.segment_base]:
            return _emptied(target, end, now_ms)
        if bases[-1:] != [end.segment_base] and now is not None and now.segment_base > end.segment_base:
            raise MovedError  # it was sealed since, and joined with others
        if bases[:1] <= [start] and bases[-1:] == [end.segment_base]:
            try:
                begun = msgspec.structs.replace(end, log_start_offset=min(start, end.end_offset))
                done = _taken(source, target, begun, bases, before, unsynced_from, copied)
                if _stayed(source, before, bases):
                    return done
            except FileNotFoundError:
                pass
        for name in target.files.regular(target.path):
            target.files.unlink(f"{target.path}/{name}")
        source.files.status(f"{source.path}/{CONTROL}")  # the topic may be gone
    path = source.files.path(source.path)
    raise CorruptLogError(
        f"{path} has no segments from offset {start} to {end.segment_base}, or they changed at each of {_ATTEMPTS} "
        "looks: verify() tells what is missing",
        path=path,
        expected=start,
        found=bases[:1],
    )


def _stayed(source: Folder, before: Listing, bases: list[int]) -> bool:
    """Whether the partition has the same segments as before."""
    after = source.files.regular(source.path)
    if [base for base in bases_of(after) if bases[0] <= base <= bases[-1]] != bases:
        return False
    names = map(layout.segment_name, bases)
    return all(before[name][0] == after[name][0] for name in names)


def _taken(
    source: Folder,
    target: Folder,
    end: Published,
    bases: list[int],
    before: Listing,
    unsynced_from: int,
    copied: Callable[[int], None],
) -> PartitionCopy:
    """Copy the last segment up to the end, and link the others.

    Raises:
        FileNotFoundError: Something went away.
    """
    active = source.open_segment(end.segment_base, map_reads=False)
    try:
        if active.header.segment_id != end.segment_id:
            raise MovedError
        name = f"{target.path}/{layout.segment_name(end.segment_base)}"
        written = [name]
        file = target.files.create(name)
        try:
            for position in range(0, end.end_position, _COPIED_AT_ONCE):
                stop = min(position + _COPIED_AT_ONCE, end.end_position)
                if active.file.copy_to(file, position, stop) != stop - position:
                    raise CorruptLogError(
                        f"{active.file.path} ends before position {stop}, below its published end: restore it from a "
                        "copy",
                        path=active.file.path,
                        position=position,
                        expected=end.end_position,
                    )
                copied(stop - position)
        finally:
            file.close()
    finally:
        active.close()
    index = index_until(
        source.files,
        source.path,
        segment_id=end.segment_id,
        base_offset=end.segment_base,
        position=end.end_position,
    )
    if index:
        _put(target, layout.segment_name(end.segment_base, layout.INDEX_SUFFIX), index)
    sealed = [layout.segment_name(base) for base in bases[:-1]]
    derived = [layout.segment_name(base, layout.INDEX_SUFFIX) for base in bases[:-1]]
    derived += [layout.segment_name(base, layout.PRODUCERS_SUFFIX) for base in bases]
    names = [*sealed, *(name for name in derived if name in before)]
    left = source.files.link_into(source.path, names, target.files, target.path)
    for name in left:
        _copy_file(source, target, name, copied)
    others = [name for name in sealed if name in set(left)]
    written += [f"{target.path}/{name}" for name in others]
    unsynced = [layout.segment_name(base) for base in bases[:-1] if base >= unsynced_from]
    written += [f"{target.path}/{name}" for name in unsynced if name not in others]
    copied_bytes = sum(before[name][1] for name in others)
    linked_bytes = sum(before[name][1] for name in sealed) - copied_bytes
    return PartitionCopy(
        end, written, len(sealed) - len(others), len(others) + 1, linked_bytes, copied_bytes + end.end_position
    )


def _copy_file(source: Folder, target: Folder, name: str, copied: Callable[[int], None]) -> None:
    """Copy a whole file, with what space was reserved behind its seal."""
    file = source.files.open(f"{source.path}/{name}")
    try:
        copy = target.files.create(f"{target.path}/{name}")
        try:
            position = 0
            while size := file.copy_to(copy, position, position + _COPIED_AT_ONCE):
                position += size
                copied(size)
        finally:
            copy.close()
    finally:
        file.close()


def _emptied(target: Folder, end: Published, now_ms: int) -> PartitionCopy:
    """All records below the end were deleted since: the snapshot's partition goes on there, with an empty segment."""
    offset = end.end_offset
    header = target.create_segment(offset, created_ms=now_ms, max_timestamp_before=end.max_timestamp)
    end = msgspec.structs.replace(
        end,
        segment_base=offset,
        segment_id=header.segment_id,
        end_position=layout.SEGMENT_HEADER.size,
        last_checksum=header.checksum,
        indexed_position=0,
        log_start_offset=offset,
    )
    return PartitionCopy(end, [], 0, 1, 0, layout.SEGMENT_HEADER.size)


def _put(target: Folder, entry: str, data: bytes) -> str:
    """Make a file of the partition, and return its name."""
    name = f"{target.path}/{entry}"
    file = target.files.create(name)
    try:
        file.pwrite(data, 0)
    finally:
        file.close()
    return name


def _write_control(target: Folder, end: Published, boot_id: bytes) -> str:
    """Make the control file, which says that all below the end is on disk; in both slots, as a recovery does."""
    flags = end.flags & ~(layout.FLAG_DELETED | layout.FLAG_POISONED)
    slot = msgspec.structs.replace(end, sequence=1, flags=flags, pending_position=-1, pending_nonce=0)
    name = f"{target.path}/{CONTROL}"
    file = target.files.create(name)
    control = Control(file, log_id=target.log_id, topic_id=target.topic_id, partition=target.partition)
    try:
        image = Control.image(
            log_id=target.log_id, topic_id=target.topic_id, partition=target.partition, published=slot
        )
        file.pwrite(image, 0)
        control.publish(msgspec.structs.replace(slot, sequence=2))
        for sequence in (1, 2):
            control.write_durable(Durable(sequence, end.end_offset, end.segment_base, end.end_position, 0))
        control.write_identity(boot_id)
    finally:
        control.close()
    return name
