"""Reading a sealed segment from its beginning to its seal, every batch checked: for whoever writes it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pystreamlog.errors import CorruptLogError
from pystreamlog.record.batch import Batch, BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.segment import Segment

__all__ = ["StoredBatch", "corrupt", "sealed_batches"]

_CHUNK = 1 << 20

StoredBatch = tuple[Batch, bytes, bytes]
"""A batch, and the bytes of its header and of its body as they are stored."""


def sealed_batches(
    folder: Folder, base: int, segment_id: int, pause: Callable[[], None] = lambda: None
) -> Iterator[StoredBatch]:
    """The batches of a sealed segment.

    Args:
        folder: The partition.
        base: The segment's base offset.
        segment_id: Its id.
        pause: Called now and then; what it raises ends the reading.

    Raises:
        FileNotFoundError: The segment went away, or another one has its name.
        CorruptLogError: It does not verify.
    """
    segment = folder.open_segment(base, map_reads=False)
    try:
        if segment.header.segment_id != segment_id:
            raise FileNotFoundError(segment.file.path)
        yield from _batches(segment, pause)
    finally:
        segment.close()


def _batches(segment: Segment, pause: Callable[[], None]) -> Iterator[StoredBatch]:
    header = segment.header
    position, previous, offset = layout.SEGMENT_HEADER.size, header.checksum, header.base_offset
    data, start = b"", 0
    while True:
        at = position - start
        if at + HEADER_SIZE > len(data):
            pause()
            data, start, at = segment.read(position, _CHUNK), position, 0
        raw = data[at : at + HEADER_SIZE]
        if raw[:8] == layout.SEAL_MAGIC:
            seal = segment.seal_at(position)
            if seal is None or seal.last_checksum != previous or seal.end_offset < offset:
                raise corrupt(segment.file.path, position, "the segment's seal does not verify")
            return
        try:
            parsed = _due(raw, segment, previous, offset)
            end = at + parsed.size
            if end > len(data):
                pause()
                data, start, at = segment.read(position, max(parsed.size, _CHUNK)), position, 0
                end = parsed.size
            body = data[at + HEADER_SIZE : end]
            batch = decode(parsed, body)
        except BatchError as error:
            raise corrupt(segment.file.path, position, str(error)) from error
        yield batch, raw, body
        position, previous, offset = position + parsed.size, parsed.checksum, parsed.last_offset + 1


def _due(raw: bytes, segment: Segment, previous: int, offset: int) -> BatchHeader:
    """The header of the batch that must come next."""
    parsed = parse_header(raw)
    if parsed.segment_id != segment.header.segment_id or parsed.previous_checksum != previous:
        raise BatchError("the batch does not follow the one before it")
    if parsed.base_offset < offset:
        raise BatchError(f"offset {parsed.base_offset} after {offset - 1}")
    return parsed


def corrupt(path: str, position: int, why: str) -> CorruptLogError:
    """The error for damage in a segment that was to be written anew."""
    return CorruptLogError(
        f"{path} at position {position}: {why}; nothing of the partition was rewritten: restore the file from a copy",
        path=path,
        position=position,
        found=why,
    )
