"""Writing the damaged header of a control file anew, where the slots behind it tell whose file it is."""

from __future__ import annotations

from contextlib import suppress

from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, NotSupportedError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder

__all__ = ["mend_header"]


def mend_header(folder: Folder, file: File) -> bool:
    """Write the header of a partition's control file anew; needs its append and its sync lock.

    Nothing is lost by it: a header holds only what the place of the file tells. The file is this partition's if its
    published slot names a segment that is, by the random id of that. Whether it does is all that must be known: who has
    the file open goes on as if nothing had been.

    Args:
        folder: The partition.
        file: The control file, open for writing.

    Returns:
        Whether it was written; not if it is whole, perhaps another partition's, or the slots do not tell.

    Raises:
        NotSupportedError: The file has other hard links, so that writing it would change a copy of the log.
        StorageError: The disk refused.
    """
    raw = file.pread(layout.CONTROL_HEADER.size, 0)
    if len(raw) < layout.CONTROL_HEADER.size or _is_whole(raw):
        return False
    control = Control(file, log_id=folder.log_id, topic_id=folder.topic_id, partition=folder.partition)
    published = control.published()
    if published is None or _segment_id(folder, published.segment_base) != published.segment_id:
        return False
    if file.status().st_nlink > 1:
        raise NotSupportedError(f"{file.path} has other hard links: copy the log, and repair the copy")
    image = Control.image(
        log_id=folder.log_id, topic_id=folder.topic_id, partition=folder.partition, published=published
    )
    file.pwrite(image[: layout.CONTROL_HEADER.size], 0)
    file.datasync()
    return True


def _is_whole(raw: bytes) -> bool:
    """Whether a header has its checksum; then what it says is true, though it may be another partition's."""
    magic, *_, checksum = layout.CONTROL_HEADER.unpack(raw)
    return bool(magic == layout.CONTROL_MAGIC and checksum == xxh3_64_intdigest(raw[:-8]))


def _segment_id(folder: Folder, base: int) -> int | None:
    """The id of a segment, if it is there and this partition's."""
    with suppress(FileNotFoundError, CorruptLogError):
        segment = folder.open_segment(base, map_reads=False)
        try:
            return segment.header.segment_id
        finally:
            segment.close()
    return None
