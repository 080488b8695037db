"""Writing the damaged header of a control file anew, where the slots behind it tell whose file it is."""

from __future__ import annotations

from contextlib import suppress

from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, NotSupportedError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.verify import PartitionLook

__all__ = ["mend_header", "renew_header"]


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
    _write(folder, file, published)
    return True


def renew_header(folder: Folder, file: File, look: PartitionLook) -> bool:
    """Write the header of a partition's control file of which nothing is left; needs its append and its sync lock.

    The slots are left as they are: without one that is valid, recovery finds the end by the segments, and begins with
    the first record there is. That is right only if all of them verify and none is of a transaction: whether one counts
    that the journal has forgotten is written in the slots alone. A file that is gone altogether is not made anew, as
    who still has it open would go on writing beside those who open the new one.

    Args:
        folder: The partition.
        file: The control file, open for writing.
        look: What was found in the partition.

    Returns:
        Whether it was written.

    Raises:
        NotSupportedError, StorageError: See `mend_header`.
    """
    raw = file.pread(layout.CONTROL_HEADER.size, 0)
    if len(raw) == layout.CONTROL_HEADER.size and _is_whole(raw):
        return False
    control = Control(file, log_id=folder.log_id, topic_id=folder.topic_id, partition=folder.partition)
    if control.published() is not None or control.durable().offset or control.identity() is not None:
        return False  # perhaps another partition's
    if look.passed is None or look.broken or look.transactional or not folder.path.startswith("topics/"):
        return False
    _write(folder, file, Published(0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0))
    return True


def _write(folder: Folder, file: File, published: Published) -> None:
    """Write the header alone; what is published does not matter for it."""
    if file.status().st_nlink > 1:
        raise NotSupportedError(f"{file.path} has other hard links: copy the log, and repair the copy")
    image = Control.image(
        log_id=folder.log_id, topic_id=folder.topic_id, partition=folder.partition, published=published
    )
    if file.size() < len(image):
        file.pwrite(image[-1:], len(image) - 1)
    file.pwrite(image[: layout.CONTROL_HEADER.size], 0)
    file.datasync()


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
