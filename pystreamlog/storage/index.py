"""A segment's sparse index: (offset, position, highest timestamp before it), one entry per 32 KiB of log.

It is derived: it may be missing, short, damaged or not even a file at any time, and then only costs a longer walk.
Nothing found here is believed before a batch header at that position confirms it, and no append or read fails for it.

An entry describes the log *up to* its position, never the batch behind it, so that an entry written by a process that
died before it published stays true whatever is appended there next.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import overload

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, StreamLogError
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files

__all__ = [
    "IndexEntry",
    "IndexWriter",
    "build_index",
    "find_offset",
    "find_timestamp",
    "index_bytes",
    "index_offsets",
    "index_until",
    "read_entries",
]

_HEADER = layout.INDEX_HEADER.size
_ENTRY = layout.INDEX_ENTRY.size
_FURTHEST = 1 << 48
"""No segment is so large; reading at larger positions may be an error of its own."""
_ENTRY_WORDS = _ENTRY // 8
_ENTRIES_AT_ONCE = 16
_BATCHES_AT_ONCE = 128
"""Walking over so many costs a reader 0.5 ms."""
_LIMIT = 4 << 20
"""Bytes of an index that are read at once: twice what the largest segment has."""


class IndexEntry(msgspec.Struct, frozen=True, gc=False):
    """The batch at `position` starts with `offset`; no record before it is younger than `max_timestamp_before` (ms)."""

    offset: int
    position: int
    max_timestamp_before: int


class _BadIndexError(Exception):
    """An entry or the header does not verify."""


class _Entries(Sequence[IndexEntry]):
    """The entries of an open index, read one by one as a binary search asks for them."""

    def __init__(self, file: File, segment_id: int, base_offset: int) -> None:
        self._file = file
        self._count = max(0, file.size() - _HEADER) // _ENTRY
        raw = file.pread(_HEADER, 0)
        expected = (layout.INDEX_MAGIC, segment_id, base_offset, xxh3_64_intdigest(raw[:-8]))
        if len(raw) < _HEADER or layout.INDEX_HEADER.unpack(raw) != expected:
            raise _BadIndexError

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[IndexEntry]: ...
    def __getitem__(self, index: int | slice) -> IndexEntry | Sequence[IndexEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        raw = self._file.pread(_ENTRY, _HEADER + index * _ENTRY)
        if len(raw) < _ENTRY:
            raise _BadIndexError
        *fields, checksum = layout.INDEX_ENTRY.unpack(raw)
        if checksum != xxh3_64_intdigest(raw[:-8]) or not layout.SEGMENT_HEADER.size <= fields[1] < _FURTHEST:
            raise _BadIndexError
        return IndexEntry(*fields)


def _header_bytes(segment_id: int, base_offset: int) -> bytes:
    raw = layout.INDEX_HEADER.pack(layout.INDEX_MAGIC, segment_id, base_offset, 0)[:-8]
    return raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw))


def _entry_bytes(entry: IndexEntry) -> bytes:
    raw = layout.INDEX_ENTRY.pack(entry.offset, entry.position, entry.max_timestamp_before, 0)[:-8]
    return raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw))


def _name(folder: str, base_offset: int) -> str:
    return f"{folder}/{layout.segment_name(base_offset, layout.INDEX_SUFFIX)}"


class IndexWriter:
    """Adds entries to the indexes of a partition's active segments, several at once. Every call needs the append lock.

    Opening the file and writing an entry costs 40 us. What waits here is lost with the process: look-ups walk further
    then, by no more than `_ENTRIES_AT_ONCE` entries and `_BATCHES_AT_ONCE` batches.
    """

    __slots__ = ("_base_offset", "_batches", "_files", "_folder", "_segment_id", "waiting")

    def __init__(self, files: Files, folder: str) -> None:
        self._files = files
        self._folder = folder
        self._segment_id = self._base_offset = -1
        self._batches = 0
        self.waiting: list[IndexEntry] = []

    def add(self, segment_id: int, base_offset: int, entry: IndexEntry) -> None:
        """Add an entry to the index of that segment; not written yet."""
        if segment_id != self._segment_id:
            self.write()
            self._segment_id, self._base_offset = segment_id, base_offset
        if not self.waiting or self.waiting[-1].position < entry.position:  # else the append failed after it was added
            self.waiting.append(entry)

    def count_batch(self) -> None:
        """A batch was written behind the entries that wait."""
        self._batches += 1
        if self._batches >= _BATCHES_AT_ONCE or len(self.waiting) >= _ENTRIES_AT_ONCE:
            self.write()

    def write(self) -> None:
        """Write the entries that wait.

        An index of another segment, or what is none, is replaced. Where that cannot be written, on a full disk for
        example, the entries are left out.
        """
        self._batches = 0
        entries, self.waiting = self.waiting, []
        if not entries:
            return
        name = _name(self._folder, self._base_offset)
        head = _header_bytes(self._segment_id, self._base_offset)
        try:
            if not _extend(self._files, name, head, entries):
                self._files.unlink(name)
                file = self._files.create(name)
                try:
                    file.pwrite(head + b"".join(map(_entry_bytes, entries)), 0)
                finally:
                    file.close()
        except (StreamLogError, OSError):
            return


def _extend(files: Files, name: str, head: bytes, entries: list[IndexEntry]) -> bool:
    """Put entries behind the last one of the index that starts with `head`; False when that is not there, or damaged.

    Another process may have written later ones meanwhile: they stay in order.
    """
    try:
        file = files.open(name, write=True)
    except (FileNotFoundError, CorruptLogError):
        return False
    try:
        if file.pread(_HEADER, 0) != head:
            return False
        end, last = _HEADER + (file.size() - _HEADER) // _ENTRY * _ENTRY, 0
        if end > _HEADER:
            raw = file.pread(_ENTRY, end - _ENTRY)
            _, last, _, checksum = layout.INDEX_ENTRY.unpack(raw)
            if checksum != xxh3_64_intdigest(raw[:-8]):
                return False
        file.pwrite(b"".join(_entry_bytes(entry) for entry in entries if entry.position > last), end)
        return True
    finally:
        file.close()


def build_index(files: Files, folder: str, *, segment_id: int, base_offset: int, entries: list[IndexEntry]) -> None:
    """Replace a sealed segment's index, whole and on disk."""
    files.write(_name(folder, base_offset), index_bytes(segment_id, base_offset, entries))


def index_bytes(segment_id: int, base_offset: int, entries: list[IndexEntry]) -> bytes:
    """A whole index."""
    return _header_bytes(segment_id, base_offset) + b"".join(map(_entry_bytes, entries))


def index_until(files: Files, folder: str, *, segment_id: int, base_offset: int, position: int) -> bytes:
    """The bytes of an index that says nothing of what lies behind `position`; none without a valid header."""
    _, positions = index_offsets(files, folder, segment_id=segment_id, base_offset=base_offset)
    try:
        raw = files.read(_name(folder, base_offset), limit=_LIMIT)
    except (FileNotFoundError, StreamLogError):
        return b""
    count = bisect_right(positions, position)
    return raw[: _HEADER + count * _ENTRY] if count else b""


def _search(files: Files, folder: str, segment_id: int, base_offset: int, field: str, wanted: int) -> IndexEntry | None:
    try:
        file = files.open(_name(folder, base_offset))
    except (FileNotFoundError, StreamLogError):
        return None
    try:
        entries = _Entries(file, segment_id, base_offset)
        place = bisect_right(entries, wanted, key=lambda entry: getattr(entry, field))
        return entries[place - 1] if place else None
    except (_BadIndexError, StreamLogError):
        return None
    finally:
        file.close()


def find_offset(files: Files, folder: str, *, segment_id: int, base_offset: int, offset: int) -> IndexEntry | None:
    """The last entry at or before `offset`; None to walk from the segment's start. Costs O(log n) reads."""
    return _search(files, folder, segment_id, base_offset, "offset", offset)


def find_timestamp(
    files: Files, folder: str, *, segment_id: int, base_offset: int, timestamp_ms: int
) -> IndexEntry | None:
    """The last entry that only records older than `timestamp_ms` precede; None to walk from the segment's start."""
    return _search(files, folder, segment_id, base_offset, "max_timestamp_before", timestamp_ms - 1)


def index_offsets(
    files: Files, folder: str, *, segment_id: int, base_offset: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Offsets and positions of all entries, in C; empty without a valid header. Nothing else is checked."""
    try:
        file = files.open(_name(folder, base_offset))
    except (FileNotFoundError, StreamLogError):
        return (), ()
    try:
        raw = file.pread(_LIMIT, 0)
    except StreamLogError:
        return (), ()
    finally:
        file.close()
    if raw[:_HEADER] != _header_bytes(segment_id, base_offset):
        return (), ()
    words = array("q")
    words.frombytes(raw[_HEADER : len(raw) - (len(raw) - _HEADER) % _ENTRY])
    return words[0::_ENTRY_WORDS], words[1::_ENTRY_WORDS]


def read_entries(
    files: Files, folder: str, *, segment_id: int, base_offset: int
) -> Generator[IndexEntry | None, None, None]:
    """The entries of an index in their order; at the end None, if one does not verify. Nothing without an index."""
    try:
        file = files.open(_name(folder, base_offset))
    except FileNotFoundError:
        return
    except StreamLogError:
        yield None
        return
    try:
        entries = _Entries(file, segment_id, base_offset)
        for number in range(len(entries)):
            yield entries[number]
    except (_BadIndexError, StreamLogError):
        yield None
    finally:
        file.close()
