"""Writing sealed segments anew, several into one: some of their records, or all, gathered into large batches.

The new segment is written under a name of its own, beside those that it will replace, and is on disk when it is done;
whose place it takes, and when, is the caller's. It begins where the first of them did, and its header says where the
last one ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from pystreamlog.record.batch import BatchError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.record.gathering import Gathering, place_gathered, place_rewritten
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import IndexEntry, index_bytes
from pystreamlog.storage.sealed import StoredBatch, corrupt
from pystreamlog.storage.segment import SegmentHeader, header_bytes, seal_bytes

__all__ = ["LARGE_BYTES", "LARGE_RECORDS", "Rewritten", "rewrite"]

LARGE_RECORDS = 1000
"""Records of a batch that is not gathered with others any more."""
LARGE_BYTES = 1 << 20
"""The same, in bytes of its columns."""
_WRITE_BYTES = 1 << 20
_SYNC_BYTES = 16 << 20
"""Written at once, so much would have the appends of others wait for the disk."""


class Rewritten(msgspec.Struct, frozen=True):
    """A segment that was written, under a name of its own.

    Attributes:
        name: That name, in the partition's folder.
        index: That of its index.
        header: Its header.
        size: Bytes of the file.
        records: How many it has.
    """

    name: str
    index: str
    header: SegmentHeader
    size: int
    records: int


class Source(msgspec.Struct, frozen=True):
    """One segment to write anew.

    Attributes:
        base: Its base offset.
        batches: Its batches.
        marks: A byte per record, 0 for those to leave out; None to keep all.
    """

    base: int
    batches: Iterable[StoredBatch]
    marks: bytes | None


def rewrite(
    folder: Folder, header: SegmentHeader, sources: Iterable[Source], *, max_timestamp: int, durable_offset: int
) -> Rewritten:
    """Write adjacent sealed segments into a new one, and have it on disk.

    Args:
        folder: The partition.
        header: What the new one's header shall say; it gets an id.
        sources: The segments, oldest first.
        max_timestamp: The highest timestamp of all records up to their end, also of those that are gone, in ms.
        durable_offset: Records below are known to be on disk.

    Raises:
        CorruptLogError: A segment does not verify.
        StorageError: The disk is full or failed. Nothing is left of what was written, either way.
    """
    base = header.base_offset
    name = layout.segment_name(base, layout.CLEANED_SUFFIX)
    index = layout.segment_name(base, layout.INDEX_SUFFIX + layout.CLEANED_SUFFIX)
    file = folder.files.create(f"{folder.path}/{name}")
    try:
        writer = _Writer(file, header, durable_offset)
        for source in sources:
            try:
                writer.add(source.batches, source.marks)
            except BatchError as error:
                path = folder.files.path(f"{folder.path}/{layout.segment_name(source.base)}")
                raise corrupt(path, 0, str(error)) from error
        writer.finish(max_timestamp)
        _write_index(folder, index, index_bytes(writer.header.segment_id, base, writer.entries))
    except BaseException:
        file.close()
        folder.drop(name)
        folder.drop(index)
        raise
    file.close()
    return Rewritten(name, index, writer.header, writer.position, writer.records)


def _write_index(folder: Folder, name: str, data: bytes) -> None:
    """Write what is derived, and need not be on disk."""
    file = folder.files.create(f"{folder.path}/{name}")
    try:
        file.pwrite(data, 0)
    finally:
        file.close()


class _Writer:
    """Writes one segment."""

    def __init__(self, file: File, header: SegmentHeader, durable_offset: int) -> None:
        self._file = file
        segment_id = int.from_bytes(os.urandom(8), "little")
        self.header, raw = header_bytes(msgspec.structs.replace(header, segment_id=segment_id))
        self._durable_offset = durable_offset
        self._gathering = Gathering()
        self._parts: list[bytes] = [raw]
        self._waiting = len(raw)
        self._written = self._synced = 0
        self._checksum = self.header.checksum
        self._max_timestamp = header.max_timestamp_before
        self._indexed = 0
        self.entries: list[IndexEntry] = []
        self.position = len(raw)
        self.records = 0

    def add(self, batches: Iterable[StoredBatch], marks: bytes | None) -> None:
        """Take the records of a segment that are marked, or all."""
        start = 0
        gathering = self._gathering
        for batch, raw, body in batches:
            count = batch.count
            kept = None
            if marks is not None:
                kept = marks[start : start + count]
                start += count
                ones = count - kept.count(0)
                if not ones:
                    continue
                if ones == count:
                    kept = None
            if kept is None and (count >= LARGE_RECORDS or len(batch.body) >= LARGE_BYTES):
                self._flush()
                head, checksum = place_rewritten(
                    raw, segment_id=self.header.segment_id, previous_checksum=self._checksum
                )
                header = batch.header
                self._append(head, [body], header.size, header.base_offset, checksum, header.max_timestamp)
                self.records += count
                continue
            if len(gathering) and not gathering.takes(batch):
                self._flush()
            gathering.add(batch, kept)
            if len(gathering) >= LARGE_RECORDS or gathering.size >= LARGE_BYTES:
                self._flush()

    def _flush(self) -> None:
        """Write what was gathered."""
        if not len(self._gathering):
            return
        encoded: EncodedBatch
        encoded, first, last, epoch = self._gathering.encode()
        head, checksum = place_gathered(
            encoded,
            first,
            last,
            segment_id=self.header.segment_id,
            previous_checksum=self._checksum,
            durable_offset=self._durable_offset,
            epoch=epoch,
        )
        self._append(head, encoded.parts, encoded.size, first, checksum, encoded.max_timestamp)
        self.records += encoded.count

    def _append(
        self, head: bytes, parts: list[bytes], size: int, offset: int, checksum: int, max_timestamp: int
    ) -> None:
        assert size == HEADER_SIZE + sum(map(len, parts))
        if self.position - self._indexed >= layout.INDEX_INTERVAL:
            self.entries.append(IndexEntry(offset, self.position, self._max_timestamp))
            self._indexed = self.position
        self._parts.append(head)
        self._parts.extend(parts)
        self._waiting += size
        self.position += size
        self._checksum = checksum
        self._max_timestamp = max(self._max_timestamp, max_timestamp)
        if self._waiting >= _WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        parts, self._parts = self._parts, []
        self._file.pwrite(b"".join(parts), self._written)
        self._written += self._waiting
        self._waiting = 0
        if self._written - self._synced >= _SYNC_BYTES:
            self._file.datasync()
            self._synced = self._written

    def finish(self, max_timestamp: int) -> None:
        """Seal it, and have it on disk."""
        self._flush()
        seal = seal_bytes(
            segment_id=self.header.segment_id,
            end_offset=self.header.end_offset,
            position=self.position,
            last_checksum=self._checksum,
            max_timestamp=max_timestamp,
        )
        self._parts.append(seal)
        self._waiting += len(seal)
        self.position += len(seal)
        self._write()
        self._file.datasync()
