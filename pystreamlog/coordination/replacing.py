"""Putting rewritten segments in the place of those that they were made from, while others append and read.

Each step stays right if it is the last one; the caller holds `maintenance.lock`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from pystreamlog.coordination.partition import SETTLE_TIMEOUT, TransactionLog
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Durable
from pystreamlog.storage.coverage import covering, left_over, read_header
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.rewriting import Rewritten

__all__ = ["being_rewritten", "remove_left_over", "replace_segments", "settle"]

_SUFFIXES = (layout.INDEX_SUFFIX, layout.PRODUCERS_SUFFIX, layout.SEGMENT_SUFFIX)


def settle(writer: PartitionWriter, base: int, transactions: TransactionLog) -> bool:
    """Have recovery never look below the active segment again, so that what lies there may be replaced.

    All of it is synced, with every transaction that has records there; the durable slot names the active segment, and
    is on disk. What producers appended is written down. So are the names of segments: one who died may have replaced
    some, and what is compacted now counts on that.

    Args:
        writer: The partition's.
        base: The active segment's base offset.
        transactions: The log's.

    Returns:
        Whether that is so; not when the partition was recovered meanwhile.

    Raises:
        See `PartitionWriter.delete_records`.
    """
    writer.ensure()
    writer.sync(base)
    control = writer.folder.open_control(write=True)  # before what it syncs is written
    try:
        published = control.published()
        if published is not None:
            writer.sync.data(published)  # and the seals, which may have come after the records were synced
        with writer.locked(SETTLE_TIMEOUT) as end:
            writer.keep_producers_locked(end)
            with writer.sync_lock(control).held(SETTLE_TIMEOUT):
                last = control.durable()
                if last.offset < base:
                    return False
                if last.segment_base < base:
                    start = layout.SEGMENT_HEADER.size
                    control.write_durable(Durable(last.sequence + 1, base, base, start, last.flags))
        if end.flags & layout.FLAG_TRANSACTIONAL:
            transactions.sync_slots()  # records that are written anew name no transaction any more
        if end.flags & layout.FLAG_PRODUCERS:
            writer.sync(end.end_offset)  # what was written down is believed if the log still goes on there
        control.file.datasync()
        writer.folder.files.sync_directory(writer.folder.path)
    finally:
        control.close()
    return True


def replace_segments(writer: PartitionWriter, rewritten: Rewritten, replaced: Sequence[tuple[int, int]]) -> bool:
    """Put a rewritten segment in the place of those that it was made from; see `settle`.

    In these steps:

    1. It gets the name of the first of them. The folder is synced.
    2. The others are removed, which are left over until then: its range covers theirs. The folder is synced.

    Args:
        writer: The partition's.
        rewritten: The new segment, on disk.
        replaced: Base offsets and ids of the others, ascending.

    Returns:
        Whether it was done; not if one of them is another one by now.

    Raises:
        See `PartitionWriter.delete_records`.
    """
    folder, first = writer.folder, replaced[0][0]
    try:
        # Held open, so that the lock is not held while its blocks are freed.
        kept = folder.open_segment(first, map_reads=False)
    except (FileNotFoundError, CorruptLogError):
        return False  # the topic was deleted, and perhaps another one has its name
    try:
        with writer.locked(SETTLE_TIMEOUT) as end:
            is_settled = rewritten.header.end_offset <= min(end.segment_base, _durable_base(folder))
            if not is_settled or any(not _is_still(folder, base, segment_id) for base, segment_id in replaced):
                return False
            # An index is believed only for the segment whose id it has.
            for name, suffix in ((rewritten.index, layout.INDEX_SUFFIX), (rewritten.name, layout.SEGMENT_SUFFIX)):
                folder.files.rename(f"{folder.path}/{name}", f"{folder.path}/{layout.segment_name(first, suffix)}")
    finally:
        kept.close()
    folder.files.sync_directory(folder.path)
    _remove(writer, [base for base, _ in replaced[1:]])
    return True


def _durable_base(folder: Folder) -> int:
    control = folder.open_control(write=False)
    try:
        return control.durable().segment_base
    finally:
        control.close()


def _is_still(folder: Folder, base: int, segment_id: int) -> bool:
    header = read_header(folder, base)
    return header is not None and header.segment_id == segment_id


def being_rewritten(folder: Folder) -> list[str]:
    """The names of files that were to take the place of segments."""
    return [name for name in folder.files.list(folder.path) if name.endswith(layout.CLEANED_SUFFIX)]


def remove_left_over(writer: PartitionWriter) -> None:
    """Remove what one who died while he replaced segments left; that is on disk when it returns.

    Raises:
        See `PartitionWriter.delete_records`.
    """
    folder = writer.folder
    for name in being_rewritten(folder):
        folder.drop(name)
    writer.ensure()
    with writer.locked(SETTLE_TIMEOUT) as end:
        active = end.segment_base
    bases = left_over(folder, active)
    if bases:
        folder.files.sync_directory(folder.path)  # the name of the one that covers them may not be on disk
        _remove(writer, bases)


def _remove(writer: PartitionWriter, bases: Sequence[int]) -> None:
    """Remove segments that are left over: the folder tells, on disk, which one covers their range.

    Each is renamed under the append lock, when the folder is this topic's for certain, and removed after that.
    """
    folder = writer.folder
    for base in bases:
        for suffix in _SUFFIXES:
            name = layout.segment_name(base, suffix)
            gone = f"{name}~{os.urandom(6).hex()}"
            with suppress(FileNotFoundError):
                with writer.locked(SETTLE_TIMEOUT):
                    if covering(folder, base, below=base) is None:
                        return
                    folder.files.rename(f"{folder.path}/{name}", f"{folder.path}/{gone}")
                folder.drop(gone)
    if bases:
        folder.files.sync_directory(folder.path)
