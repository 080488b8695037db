"""What becomes of a partition after a failed fsync: its records are copied to files that can be synced.

After the failure the page cache may still have what the disk has not, but no later fsync of those files would say so:
the kernel marks the pages clean. So every segment that is not known to be on disk is read, checked and written anew,
under the same name with another segment id and a higher generation, synced, and renamed over the old one. What cannot
be read any more, and what follows it, is lost, and said to be. A snapshot of what producers appended goes along, as the
records that it was made from may be deleted.

The caller holds the append and the sync lock. A process killed in here leaves the partition poisoned, so that the next
one begins anew; each segment is replaced whole.
"""

from __future__ import annotations

import os

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, StorageError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.epochs import start_epoch
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.producer_snapshots import prepare_move, snapshot_of
from pystreamlog.storage.recovery import settle_end
from pystreamlog.storage.segment import Segment, SegmentHeader, header_bytes, seal_bytes

__all__ = ["HealingReport", "heal", "placed_anew"]

_PREVIOUS_POSITION = batch_layout.PREFIX.size + 6 * 8
"""Of the checksum of the previous header in a batch header; the segment id is the first of those six fields."""


class HealingReport(msgspec.Struct, frozen=True):
    """What healing did to one partition.

    Attributes:
        path: The partition's folder.
        durable_offset: Below it all was known to be on disk.
        end_offset: Offset of the next record.
        lost: Records that could not be read any more.
        reason: Why; empty when nothing is lost.
    """

    path: str
    durable_offset: int
    end_offset: int
    lost: int
    reason: str


def heal(folder: Folder, control: Control) -> HealingReport:
    """Copy what is not known to be on disk to new files; clears the poison.

    Raises:
        CorruptLogError: What was known to be on disk does not verify.
        StorageError: The copies could not be written; nothing was changed that counts.
    """
    published, durable = control.published(), control.durable()
    assert published is not None
    control.file.datasync()  # should this be cut short, recovery must know that some segments may be copies
    end: Published | None = None
    reason = ""
    previous: int | None = None
    bases = folder.segments_from(published.log_start_offset)
    for base in [base for base in bases if durable.segment_base <= base <= published.segment_base]:
        if reason:
            folder.files.unlink(f"{folder.path}/{layout.segment_name(base)}")
        else:
            end, reason = _copied(folder, base, published, previous)
            previous = end.last_checksum
        folder.files.unlink(f"{folder.path}/{layout.segment_name(base, layout.INDEX_SUFFIX)}")
    if end is None or end.end_offset < durable.offset:
        path = folder.files.path(folder.path)
        raise CorruptLogError(
            f"{path}: {reason or 'segments are missing'}, but records up to offset {durable.offset} are known to be on "
            "disk: restore the files from a copy",
            path=path,
            expected=durable.offset,
            found=end.end_offset if end is not None else None,
        )
    folder.files.sync_directory(folder.path)
    if end.end_offset < published.end_offset:
        end = msgspec.structs.replace(end, epoch=start_epoch(folder, end))
    settle_end(control, end, on_disk=not end.flags & layout.FLAG_TRANSACTIONAL)
    return HealingReport(
        path=folder.files.path(folder.path),
        durable_offset=durable.offset,
        end_offset=end.end_offset,
        lost=published.end_offset - end.end_offset,
        reason=reason,
    )


def _copied(folder: Folder, base: int, published: Published, previous: int | None) -> tuple[Published, str]:
    """Copy one segment; its end, and why it ends before what was published, if it does.

    Args:
        folder: The partition.
        base: The segment's base offset.
        published: The published end.
        previous: Checksum of the last batch header of the copy before; None where that stays.
    """
    segment = folder.open_segment(base, map_reads=False)
    try:
        snapshot = snapshot_of(folder, base, segment.header.segment_id)
        wanted = snapshot[0].position if snapshot is not None else -1
        with folder.files.made_whole(f"{folder.path}/{layout.segment_name(base)}") as copy:
            end, reason, checksums = _copy(segment, copy, published, previous, wanted)
            if snapshot is not None and checksums is not None and checksums[0] == snapshot[0].last_checksum:
                prepare_move(folder, *snapshot, end.segment_id, checksums[1])
        snapshot_of(folder, base, end.segment_id)
        return end, reason
    finally:
        segment.close()


def _copy(
    segment: Segment, copy: File, published: Published, previous: int | None, wanted: int
) -> tuple[Published, str, tuple[int, int] | None]:
    """Copy what verifies; also the header checksums, of the segment and of the copy, before the position `wanted`."""
    header, raw = header_bytes(
        msgspec.structs.replace(
            segment.header,
            generation=segment.header.generation + 1,
            segment_id=int.from_bytes(os.urandom(8), "little"),
            previous_checksum=segment.header.previous_checksum if previous is None else previous,
        )
    )
    copy.pwrite(raw, 0)
    position, offset, checksum = layout.SEGMENT_HEADER.size, header.base_offset, header.checksum
    max_timestamp, reason = header.max_timestamp_before, ""
    checksums = (segment.header.checksum, checksum) if position == wanted else None
    is_sealed = header.base_offset < published.segment_base  # also one that an empty segment follows
    while is_sealed or offset < published.end_offset:
        try:
            seal = segment.seal_at(position)
            if seal is not None and (seal.end_offset == offset or header.is_rewritten):
                offset, max_timestamp = seal.end_offset, seal.max_timestamp
                copy.pwrite(_seal(header, position, offset, checksum, max_timestamp), position)
                break
            batch, raw = _read(segment, position, offset)
        except (BatchError, StorageError) as error:
            reason = f"{segment.file.path} cannot be read at position {position}: {error}"
            break
        raw, checksum = placed_anew(raw, header.segment_id, checksum)
        copy.pwrite(raw, position)
        position, offset = position + batch.size, batch.last_offset + 1
        if position == wanted:
            checksums = batch.checksum, checksum
        max_timestamp = max(max_timestamp, batch.max_timestamp)
    end = Published(
        published.sequence,
        header.base_offset,
        header.segment_id,
        position,
        offset,
        checksum,
        max_timestamp,
        0,
        published.log_start_offset,
        published.epoch,
        published.flags & ~layout.FLAG_POISONED,
        -1,
        0,
    )
    return end, reason, checksums


def _read(segment: Segment, position: int, offset: int) -> tuple[BatchHeader, bytes]:
    """The batch at a position, checked, and its bytes."""
    raw = segment.read(position, HEADER_SIZE)
    header = parse_header(raw)
    if header.segment_id != segment.header.segment_id or header.base_offset < offset:
        raise BatchError("the batch does not follow the one before it")
    body = segment.read(position + HEADER_SIZE, header.size - HEADER_SIZE)
    decode(header, body)
    return header, raw + body


def placed_anew(raw: bytes, segment_id: int, previous_checksum: int) -> tuple[bytes, int]:
    """The bytes of a batch for another segment and chain, and its new header checksum; the offsets stay."""
    number = layout.CHECKSUM.pack
    start = batch_layout.PREFIX.size
    head = raw[:start] + number(segment_id) + raw[start + 8 : _PREVIOUS_POSITION] + number(previous_checksum)
    head += raw[len(head) : HEADER_SIZE - 8]
    checksum = xxh3_64_intdigest(head)
    return head + number(checksum) + raw[HEADER_SIZE:], checksum


def _seal(header: SegmentHeader, position: int, offset: int, checksum: int, max_timestamp: int) -> bytes:
    return seal_bytes(
        segment_id=header.segment_id,
        end_offset=offset,
        position=position,
        last_checksum=checksum,
        max_timestamp=max_timestamp,
    )
