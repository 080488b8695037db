"""Which segments of a partition have had their time, and removing those that lie below the log's start.

A segment goes when its newest record is too old, or while the partition without it still has as much as it may keep;
from the oldest on, up to the first that stays, as in Kafka. So the records that are left have no gap.

A segment that was rewritten may end behind the next names, which are left-overs then: it stays as long as the log
starts within it.

What the log's start leaves behind is removed file by file, derived files before their segment: whoever dies in between
leaves segments below the start, which nobody reads and the next one removes.
"""

from __future__ import annotations

from itertools import pairwise

from pystreamlog.errors import OffsetOutOfRangeError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.coverage import covering
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.segment import base_of

__all__ = ["expired_below", "files_below", "is_older"]

_SUFFIXES = (
    layout.INDEX_SUFFIX,
    layout.PRODUCERS_SUFFIX,
    layout.INDEX_SUFFIX + layout.CLEANED_SUFFIX,
    layout.CLEANED_SUFFIX,
    layout.SEGMENT_SUFFIX,
)


def expired_below(
    folder: Folder, control: Control, end: Published, *, now_ms: int, retention_ms: int, retention_bytes: int
) -> int:
    """Where the log would start without the segments that have had their time; its end if the active one has, too.

    Costs a look at the header of each segment that goes. Where records came late, so that a segment has no record newer
    than one before it, the batch headers of one segment are read.

    Args:
        folder: The partition.
        control: Its control file.
        end: Its published end.
        now_ms: The time.
        retention_ms: How old the newest record of a segment may be; -1 for any age.
        retention_bytes: How much is kept at least, as files lie on disk; -1 for everything.

    Raises:
        CorruptLogError: A segment does not verify.
    """
    bases = [base for base in folder.segments_from(end.log_start_offset) if base <= end.segment_base]
    start, ends = end.log_start_offset, [*bases, end.end_offset]
    reader = LogReader(folder, control, map_reads=False)
    try:
        sizes = {base: _size(folder, base, end) for base in bases} if retention_bytes >= 0 else {}
        excess = sum(sizes.values()) - retention_bytes
        for base, following in pairwise(ends):
            if following <= base:
                break  # the active one, and empty
            if sizes and sizes[base] <= excess:
                excess -= sizes[base]
            elif retention_ms < 0 or not is_older(reader, base, following, end, now_ms - retention_ms):
                break
            start = max(start, following)
    except (FileNotFoundError, OffsetOutOfRangeError):
        return end.log_start_offset  # another process removes or rewrites segments just now
    finally:
        reader.close()
    return start


def _size(folder: Folder, base: int, end: Published) -> int:
    if base == end.segment_base:
        return end.end_position
    return folder.files.status(f"{folder.path}/{layout.segment_name(base)}").st_size


def is_older(reader: LogReader, base: int, following: int, end: Published, oldest_ms: int) -> bool:
    """Whether all records of a segment are older than that, in ms; the next segment begins at `following`."""
    active = base == end.segment_base
    highest = end.max_timestamp if active else reader.highest_before(following)
    if highest < oldest_ms:
        return True
    if highest > reader.highest_before(base):
        return False
    # A record before this segment, which may be deleted by now, is as new as any in it.
    cursor = Cursor(base)
    reader.place_at(cursor, base)
    for header in reader.headers(cursor, end):
        if header.base_offset >= following:
            break
        if header.max_timestamp >= oldest_ms:
            return False
    return True


def files_below(folder: Folder, start: int) -> list[str]:
    """The names of files that only speak of records below the log's start, in the order in which they may go.

    Those that were being removed, whose names have a `~`, are among them.
    """
    kept = next(iter(folder.segments_from(start)), start)
    covers = covering(folder, start, below=kept)
    kept = kept if covers is None else covers
    found = []
    for name in folder.files.list(folder.path):
        plain = name.partition("~")[0]
        suffix = plain[plain.find(".") :]
        if suffix in _SUFFIXES and 0 <= (base := base_of(plain, suffix)) < kept:
            found.append((base, suffix == layout.SEGMENT_SUFFIX, name))
    return [name for _, _, name in sorted(found)]
