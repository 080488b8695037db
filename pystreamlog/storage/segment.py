"""One segment file: a checksummed header, batches back to back and, once it is rolled, a seal.

`Segment` is an open segment with its parsed header. A writer appends to it and preallocates in growing steps; a reader
copies ranges out of a read-only map (or by `pread`) that never reaches past the end of the file, which never shrinks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.clock import MAX_TIMESTAMP_MS
from pystreamlog.errors import CorruptLogError, IncompatibleFormatError, StorageError
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files

__all__ = [
    "Seal",
    "Segment",
    "SegmentHeader",
    "base_of",
    "bases_of",
    "create_segment",
    "header_bytes",
    "list_segments",
    "occupied",
    "parse_seal",
    "parse_segment_header",
    "seal_bytes",
]

_FIRST_STEP = 64 << 10
_LAST_STEP = 8 << 20
_SMALL_WRITE = 4096
"""Below this, joining the parts costs less than passing them on one by one."""
_DIGITS = 20


class SegmentHeader(msgspec.Struct, frozen=True, gc=False):
    """The fields of a segment header, in the order of the format."""

    magic: bytes
    version: int
    generation: int
    log_id: bytes
    topic_id: bytes
    partition: int
    flags: int
    base_offset: int
    segment_id: int
    created_ms: int
    max_timestamp_before: int
    end_offset: int
    delete_horizon_ms: int
    previous_checksum: int
    checksum: int

    @property
    def is_rewritten(self) -> bool:
        """Whether it was written whole, in place of others: its offsets may have gaps."""
        return self.end_offset >= 0


class Seal(msgspec.Struct, frozen=True, gc=False):
    """The fields of a seal, in the order of the format."""

    magic: bytes
    segment_id: int
    end_offset: int
    position: int
    last_checksum: int
    max_timestamp: int
    checksum: int


def seal_bytes(*, segment_id: int, end_offset: int, position: int, last_checksum: int, max_timestamp: int) -> bytes:
    """The seal of a segment that ends at `position` with the record before `end_offset`."""
    magic = layout.SEAL_MAGIC
    raw = layout.SEAL.pack(magic, segment_id, end_offset, position, last_checksum, max_timestamp, 0)[:-8]
    return raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw))


def parse_seal(data: bytes, *, segment_id: int, position: int) -> Seal | None:
    """The seal at the start of `data`, if that is the valid seal of this segment at this position."""
    if data[:8] != layout.SEAL_MAGIC or len(data) < layout.SEAL.size:
        return None
    seal = Seal(*layout.SEAL.unpack_from(data))
    if seal.checksum != xxh3_64_intdigest(data[: layout.SEAL.size - 8]):
        return None
    return seal if (seal.segment_id, seal.position) == (segment_id, position) else None


def base_of(name: str, suffix: str) -> int:
    """The base offset in a file's name; -1 when it has none."""
    digits = name[:_DIGITS]
    good = len(digits) == _DIGITS and digits.isascii() and digits.isdigit() and name[_DIGITS:] == suffix
    return int(digits) if good else -1


def bases_of(names: Iterable[str], suffix: str = layout.SEGMENT_SUFFIX) -> list[int]:
    """The base offsets in those of the names that have one, ascending."""
    return sorted(base for name in names if (base := base_of(name, suffix)) >= 0)


def list_segments(files: Files, folder: str) -> list[int]:
    """The base offsets of the segment files in a partition's folder, ascending."""
    return bases_of(files.list(folder))


def occupied(status: os.stat_result) -> int:
    """Bytes of a file that lie on disk: one that is appended to is longer, with nothing behind its end."""
    return min(status.st_size, status.st_blocks * 512)


def create_segment(
    files: Files,
    folder: str,
    *,
    log_id: bytes,
    topic_id: bytes,
    partition: int,
    base_offset: int,
    created_ms: int,
    max_timestamp_before: int,
    previous_checksum: int,
    generation: int = 0,
) -> SegmentHeader:
    """Make an empty segment, whole and on disk, in place of a left-over of the same name."""
    header, raw = header_bytes(
        SegmentHeader(
            layout.SEGMENT_MAGIC,
            layout.SEGMENT_VERSION,
            generation,
            log_id,
            topic_id,
            partition,
            0,
            base_offset,
            int.from_bytes(os.urandom(8), "little"),
            created_ms,
            max_timestamp_before,
            layout.NOT_REWRITTEN,
            layout.NO_HORIZON,
            previous_checksum,
            0,
        )
    )
    files.write(f"{folder}/{layout.segment_name(base_offset)}", raw)
    return header


def header_bytes(header: SegmentHeader) -> tuple[SegmentHeader, bytes]:
    """A segment header with its checksum counted anew, and its bytes."""
    raw = layout.SEGMENT_HEADER.pack(*msgspec.structs.astuple(header))[:-8]
    checksum = xxh3_64_intdigest(raw)
    return msgspec.structs.replace(header, checksum=checksum), raw + layout.CHECKSUM.pack(checksum)


class Segment:
    """An open segment file. One user at a time; closing it while another thread reads is the caller's to prevent."""

    __slots__ = ("_allocated", "_can_allocate", "_map", "_map_reads", "_mapped", "file", "header")

    def __init__(self, file: File, header: SegmentHeader, *, map_reads: bool, preallocate: bool) -> None:
        self.file = file
        self.header = header
        self._map_reads = map_reads
        self._map: mmap.mmap | None = None
        self._mapped = 0
        self._allocated = 0
        self._can_allocate = preallocate

    @classmethod
    def open(
        cls,
        files: Files,
        folder: str,
        base_offset: int,
        *,
        log_ids: Sequence[bytes],
        topic_id: bytes,
        partition: int,
        write: bool = False,
        map_reads: bool = True,
    ) -> Segment:
        """Open a segment and check that it is the one of that partition and base offset, made by one of these logs.

        Raises:
            FileNotFoundError: There is none.
            CorruptLogError: It is damaged, or another's.
            IncompatibleFormatError: A newer version made it.
        """
        file = files.open(f"{folder}/{layout.segment_name(base_offset)}", write=write)
        try:
            raw = file.pread(layout.SEGMENT_HEADER.size, 0)
            header = parse_segment_header(raw, file.path)
            found = (header.topic_id, header.partition, header.base_offset)
            if found != (topic_id, partition, base_offset) or header.log_id not in log_ids:
                raise CorruptLogError(
                    f"{file.path} is the segment of partition {header.partition} from offset {header.base_offset} of "
                    f"topic {header.topic_id.hex()}: files were swapped",
                    path=file.path,
                    expected=(topic_id.hex(), partition, base_offset),
                    found=(header.topic_id.hex(), header.partition, header.base_offset),
                )
        except BaseException:
            file.close()
            raise
        return cls(file, header, map_reads=map_reads, preallocate=files.preallocate)

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file."""
        if not self._map_reads:
            return self.file.pread(size, position)
        end = position + size
        if end > self._mapped:
            self._map_all()
        return self._map[position:end] if self._map is not None else b""

    def view(self, position: int, size: int) -> memoryview:
        """As `read`, without a copy where reads go through a map, which the view keeps alive."""
        if not self._map_reads:
            return memoryview(self.file.pread(size, position))
        if position + size > self._mapped:
            self._map_all()
        return memoryview(self._map if self._map is not None else b"")[position : position + size]

    def _map_all(self) -> None:
        self._mapped = self.file.size()
        self._map = self.file.map(self._mapped) if self._mapped else None

    def write(self, head: bytes, parts: list[bytes], size: int, position: int, limit: int) -> None:
        """Write `head` and `parts`, of `size` bytes in all, at `position`; reserve ahead, but not beyond `limit`.

        Raises:
            StorageError: No space; the bytes before `position` are untouched.
        """
        end = position + size
        if end > self._allocated:
            self._reserve(end, limit)
        if len(parts) == 1 and size < _SMALL_WRITE:
            self.file.pwrite(head + parts[0], position)
        else:
            self.file.pwritev([head, *parts], size, position)

    def _reserve(self, end: int, limit: int) -> None:
        """Make the file reach `end`, and ahead of it in steps that double with the file, 64 KiB to 8 MiB."""
        self._allocated = self.file.size()
        if end <= self._allocated:
            return
        if self._can_allocate:
            step = min(max(self._allocated, _FIRST_STEP), _LAST_STEP)
            target = max(end, min(self._allocated + step, limit))
            try:
                self._can_allocate = self.file.allocate(self._allocated, target)
            except StorageError:
                if target == end:
                    raise
                target = end
                self._can_allocate = self.file.allocate(self._allocated, target)
            if self._can_allocate:
                self._allocated = target

    def seal_at(self, position: int) -> Seal | None:
        """The segment's seal if it lies at `position`."""
        return parse_seal(self.read(position, layout.SEAL.size), segment_id=self.header.segment_id, position=position)

    def close(self) -> None:
        """Close the file; maps go with their last reference."""
        self._map = None
        self._mapped = 0
        self.file.close()


def parse_segment_header(raw: bytes, path: str) -> SegmentHeader:
    """The header that a segment file begins with.

    Args:
        raw: As many bytes of the file as a header has.
        path: Of the file, for messages.

    Raises:
        CorruptLogError: It is none.
        IncompatibleFormatError: A newer version made it.
    """
    if len(raw) < layout.SEGMENT_HEADER.size:
        raise CorruptLogError(
            f"{path} has {len(raw)} bytes, too few for a segment header of {layout.SEGMENT_HEADER.size}: "
            "restore it from a copy",
            path=path,
            expected=layout.SEGMENT_HEADER.size,
            found=len(raw),
        )
    header = SegmentHeader(*layout.SEGMENT_HEADER.unpack(raw))
    if header.magic != layout.SEGMENT_MAGIC or header.checksum != xxh3_64_intdigest(raw[:-8]):
        raise CorruptLogError(
            f"{path} does not start with a valid segment header: restore it from a copy",
            path=path,
            expected=layout.SEGMENT_MAGIC,
            found=header.magic,
        )
    if header.version != layout.SEGMENT_VERSION:
        raise IncompatibleFormatError(
            f"{path} has format version {header.version}, this release reads {layout.SEGMENT_VERSION}: upgrade",
            path=path,
        )
    ends = header.end_offset == layout.NOT_REWRITTEN or header.end_offset > header.base_offset
    if header.base_offset < 0 or not ends or not -1 <= header.max_timestamp_before <= MAX_TIMESTAMP_MS:
        raise CorruptLogError(f"{path} has a segment header out of range: restore it from a copy", path=path)
    return header
