"""Reading a whole sealed segment, every batch checked: for whoever writes it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pystreamlog.errors import CorruptLogError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import Batch, BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE, padded
from pystreamlog.storage import format as layout
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.segment import Segment

__all__ = ["StoredBatch", "corrupt", "sealed_batches", "sealed_batches_back"]

_CHUNK = 1 << 20
_UNPACKED = 16 << 20
"""Bytes of unpacked batches that are held at once, but for the last one's."""
_column_sizes = batch_layout.COLUMN_SIZES.unpack

_Place = tuple[int, int, int]
"""Where a batch begins, the checksum of the header before it, and its lowest offset."""

StoredBatch = tuple[Batch, bytes, bytes]
"""A batch, and the bytes of its header and of its body as they are stored."""


def sealed_batches(
    folder: Folder, base: int, segment_id: int, pause: Callable[[], None] = lambda: None
) -> Iterator[StoredBatch]:
    """The batches of a sealed segment, first to last.

    Args:
        folder: The partition.
        base: The segment's base offset.
        segment_id: Its id.
        pause: Called now and then; what it raises ends the reading.

    Raises:
        FileNotFoundError: The segment went away, or another one has its name.
        CorruptLogError: It does not verify.
    """
    with _opened(folder, base, segment_id) as segment:
        place: _Place | None = _start(segment)
        while place is not None:
            pause()
            found, place = _chunk(segment, place)
            yield from found


def sealed_batches_back(
    folder: Folder, base: int, segment_id: int, pause: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """As `sealed_batches`, last to first: all headers are read before."""
    with _opened(folder, base, segment_id) as segment:
        places: list[_Place] = []
        place: _Place | None = _start(segment)
        while place is not None:
            pause()
            places.append(place)
            place = _skip(segment, place)
        for start in reversed(places):
            pause()
            yield from [batch for batch, _, _ in reversed(_chunk(segment, start)[0])]


@contextmanager
def _opened(folder: Folder, base: int, segment_id: int) -> Iterator[Segment]:
    segment = folder.open_segment(base, map_reads=False)
    try:
        if segment.header.segment_id != segment_id:
            raise FileNotFoundError(segment.file.path)
        yield segment
    finally:
        segment.close()


def _start(segment: Segment) -> _Place:
    return layout.SEGMENT_HEADER.size, segment.header.checksum, segment.header.base_offset


def _chunk(segment: Segment, place: _Place) -> tuple[list[StoredBatch], _Place | None]:
    """The batches at a place, as many as are read at once, and the place behind them; None at the seal."""
    position, previous, offset = place
    start, unpacked = position, 0
    data = segment.read(position, _CHUNK)
    found: list[StoredBatch] = []
    while True:
        at = position - start
        raw = data[at : at + HEADER_SIZE]
        if len(raw) < HEADER_SIZE and found and raw[:8] != layout.SEAL_MAGIC:
            return found, (position, previous, offset)
        parsed = _header_at(segment, raw, position, previous, offset)
        if parsed is None:
            return found, None
        end = at + parsed.size
        if found and (end > len(data) or unpacked > _UNPACKED):
            return found, (position, previous, offset)
        body = data[at + HEADER_SIZE : end]
        if end > len(data):
            body = segment.read(position + HEADER_SIZE, parsed.size - HEADER_SIZE)
        try:
            batch = decode(parsed, body)
        except BatchError as error:
            raise corrupt(segment.file.path, position, str(error)) from error
        found.append((batch, raw, body))
        unpacked += len(batch.body)
        position, previous, offset = position + parsed.size, parsed.checksum, parsed.last_offset + 1


def _skip(segment: Segment, place: _Place) -> _Place | None:
    """The place behind the batches that `_chunk` reads at once; None at the seal."""
    position, previous, offset = place
    start, unpacked, any_found = position, 0, False
    data = segment.read(position, _CHUNK)
    while True:
        at = position - start
        raw = data[at : at + HEADER_SIZE]
        if len(raw) < HEADER_SIZE and any_found and raw[:8] != layout.SEAL_MAGIC:
            return position, previous, offset
        parsed = _header_at(segment, raw, position, previous, offset)
        if parsed is None:
            return None
        if any_found and (at + parsed.size > len(data) or unpacked > _UNPACKED):
            return position, previous, offset
        any_found = True
        unpacked += sum(map(padded, _column_sizes(parsed.column_sizes)))
        position, previous, offset = position + parsed.size, parsed.checksum, parsed.last_offset + 1


def _header_at(segment: Segment, raw: bytes, position: int, previous: int, offset: int) -> BatchHeader | None:
    """The header of the batch that must come next; None if the seal is there."""
    if raw[:8] == layout.SEAL_MAGIC:
        seal = segment.seal_at(position)
        if seal is None or seal.last_checksum != previous or seal.end_offset < offset:
            raise corrupt(segment.file.path, position, "the segment's seal does not verify")
        return None
    try:
        return _due(raw, segment, previous, offset)
    except BatchError as error:
        raise corrupt(segment.file.path, position, str(error)) from error


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
