"""Looking through the segments of a partition: headers, chain, bodies, columns, seals, and the index beside them.

A `SegmentWalk` goes from segment to segment and knows what the next one must begin with: offset, highest timestamp. A
batch whose header holds tells where the next one begins, so a damaged body ends nothing; a damaged header ends the walk
of its segment. The next segment is walked all the same: its chain begins with its own header.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

import msgspec

from pystreamlog.errors import NotSupportedError, StorageError, StreamLogError
from pystreamlog.record.batch import Batch, BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import IndexEntry, read_entries
from pystreamlog.storage.segment import Segment, occupied

__all__ = ["Passed", "SegmentWalk", "appends_behind"]

_WINDOW = 1 << 20
_ALL_EPOCHS = 1 << 12
"""As many epochs as `epochs.json` keeps."""


class Passed(msgspec.Struct, frozen=True, gc=False):
    """A place up to which a partition verifies: where the next batch would begin, and what it would continue."""

    segment_base: int
    segment_id: int
    position: int
    offset: int
    last_checksum: int
    max_timestamp: int


class Tally(Protocol):
    """Counts what was looked through."""

    segments: int
    batches: int
    records: int
    size: int
    transactional: bool


class SegmentWalk:
    """Walks the segments of one partition, from the oldest on.

    Args:
        folder: The partition.
        end: Where it ends; None when that is not known.
        found: Gets what is found.
        tally: Counts what is looked through.
        is_deleted: Tells whether the segment of a base offset was deleted meanwhile.
        start: The log's first offset, or where the segment begins that holds it.
        durable: Records below are known to be on disk; for messages.

    Attributes:
        keyed_below: Count the records that have a key, below this offset.
        keyed: How many there were.
        broken: Something on the way did not verify, so `passed` stays where it is.
        next_base: Base offset that the next segment must have; None when any will do.
        passed: How far the log verifies without a gap.
        compacted: Some segment was compacted: records may be missing, and with them the first ones of epochs.
        epochs: The epochs that the batches name, each with the first offset.
    """

    def __init__(
        self,
        folder: Folder,
        end: Published | None,
        found: Findings,
        tally: Tally,
        is_deleted: Callable[[int], bool],
        *,
        start: int,
        durable: int,
    ) -> None:
        self._folder = folder
        self._end = end
        self._found = found
        self._tally = tally
        self._is_deleted = is_deleted
        self._start = start
        self._durable = durable
        self._max_timestamp: int | None = None
        self._last_checksum: int | None = None
        self.epochs: list[tuple[int, int]] = []
        self._codecs: set[str] = set()
        self.keyed_below = 0
        self.keyed = 0
        self.broken = False
        self.compacted = False
        self.next_base: int | None = None
        self.passed: Passed | None = None

    def lose_track(self) -> None:
        """What comes next does not follow what was walked last."""
        self.broken = True
        self.next_base = self._max_timestamp = self._last_checksum = None

    def walk(self, base: int) -> None:
        """Look through the segment of that base offset."""
        name = self._name(base)
        before, previous = self._max_timestamp, self._last_checksum
        self.next_base = self._max_timestamp = self._last_checksum = None
        try:
            segment = self._folder.open_segment(base, map_reads=False)
        except FileNotFoundError:
            if not self._is_deleted(base):
                self._damage(base, "missing", "the segment went away while it was looked at", 0)
            return
        except StreamLogError as error:
            self._found.error(error, name, "segment")
            self.broken = True
            return
        self._tally.segments += 1
        try:
            self._walk(segment, before, previous)
        except StorageError as error:
            self._found.error(error, name, "unreadable")
            self.broken = True
        finally:
            self._found.looked_through(occupied(segment.file.status()))
            segment.close()

    def _walk(self, segment: Segment, before: int | None, previous: int | None) -> None:
        header, end = segment.header, self._end
        base = header.base_offset
        if before is not None and header.max_timestamp_before != before:
            message = "the highest timestamp before this segment is not that of the segment before"
            self._damage(base, "segment", message, 80, before, header.max_timestamp_before)
        if previous is not None and header.previous_checksum != previous:
            message = "it does not follow the batch at the end of the segment before"
            self._damage(base, "segment", message, 104, f"{previous:#x}", f"{header.previous_checksum:#x}")
        active = end is not None and base == end.segment_base
        limit = size = segment.file.size()
        if active and end is not None:
            if header.segment_id != end.segment_id:
                message = "another segment was published under this name: restore the file that was here"
                self._damage(base, "swapped", message, 64, f"{end.segment_id:#x}", f"{header.segment_id:#x}")
                active = False
            elif size < end.end_position:
                message = (
                    f"the file ends before its published end: the records up to offset {end.end_offset} are cut off"
                )
                self._damage(base, "end", message, size, end.end_position, size)
            limit = min(size, end.end_position) if active else size
        place = Passed(
            base, header.segment_id, layout.SEGMENT_HEADER.size, base, header.checksum, header.max_timestamp_before
        )
        index = _IndexCheck(self._folder, segment, complete=not active)
        try:
            place, done = self._batches(segment, place, limit, index, active=active)
            wrong = done and index.is_wrong()
        finally:
            index.close()
        self._tally.size += place.position
        if done:
            self._max_timestamp = place.max_timestamp
            self._last_checksum = None if header.is_rewritten else place.last_checksum
            if wrong:
                self._found.note(
                    f"{self._folder.path}/{layout.segment_name(base, layout.INDEX_SUFFIX)}",
                    "derived",
                    "the index does not fit its segment: it is not believed, and repair drops it",
                )

    def _batches(
        self, segment: Segment, place: Passed, limit: int, index: _IndexCheck, *, active: bool
    ) -> tuple[Passed, bool]:
        """From batch to batch to the segment's end; where the walk ended, and whether that is the segment's end."""
        window = _Window(segment)
        while True:
            self._pass(place)
            if active and self._end is not None and place.position >= self._end.end_position:
                index.meet(place)
                return place, self._at_end(place)
            raw = window.read(place.position, min(HEADER_SIZE, max(0, limit - place.position)))
            if not active and raw[:8] == layout.SEAL_MAGIC:
                index.meet(place)
                return self._seal(segment, place)
            try:
                header = self._header(raw, segment, place, limit - place.position)
            except BatchError as error:
                if self._end is None and not window.read(place.position, HEADER_SIZE).strip(b"\0"):
                    return place, False  # the active segment, as it seems
                self._damage(place.segment_base, "batch", self._lost(str(error), place.offset), place.position)
                return place, False
            dense = header.base_offset == place.offset
            index.meet(place if dense else msgspec.structs.replace(place, offset=header.base_offset))
            self._body(header, window.read(place.position + HEADER_SIZE, header.size - HEADER_SIZE), place)
            self._tally.batches += 1
            self._tally.records += header.count
            self._tally.transactional |= bool(header.transaction_nonce)
            if not self.epochs or header.epoch != self.epochs[-1][0]:
                self.epochs.append((header.epoch, header.base_offset))
            place = Passed(
                place.segment_base,
                place.segment_id,
                place.position + header.size,
                header.last_offset + 1,
                header.checksum,
                max(place.max_timestamp, header.max_timestamp),
            )

    def _header(self, raw: bytes, segment: Segment, place: Passed, limit: int) -> BatchHeader:
        """The batch header at a place, if it belongs there."""
        header = parse_header(raw, limit=limit)
        if header.segment_id != segment.header.segment_id:
            raise BatchError(f"the batch belongs to segment {header.segment_id:#x}")
        if header.previous_checksum != place.last_checksum:
            raise BatchError("the batch does not follow the one before it")
        if header.base_offset < place.offset:
            raise BatchError(f"offset {header.base_offset} after {place.offset - 1}")
        if header.base_offset > place.offset and not segment.header.flags & layout.FLAG_COMPACTED:
            message = f"the records from offset {place.offset} to {header.base_offset - 1} are missing"
            self._damage(place.segment_base, "offsets", message, place.position, place.offset, header.base_offset)
        if self.epochs and header.epoch < self.epochs[-1][0]:
            message = f"a batch of epoch {header.epoch} after one of epoch {self.epochs[-1][0]}"
            self._damage(place.segment_base, "batch", message, place.position)
        return header

    def _body(self, header: BatchHeader, body: bytes, place: Passed) -> None:
        """Check a batch's body with all its columns."""
        try:
            batch = decode(header, body)
            check_columns(batch)
            if header.last_offset < self.keyed_below:
                self.keyed += header.count - batch.keys(0, header.count).count(None)
        except BatchError as error:
            message = self._lost(str(error), header.base_offset, header.last_offset)
            self._damage(place.segment_base, "batch", message, place.position)
        except NotSupportedError as error:
            if str(error) not in self._codecs:
                self._codecs.add(str(error))
                self._found.note(self._name(place.segment_base), "codec", str(error), position=place.position)

    def _lost(self, why: str, first: int, last: int | None = None) -> str:
        """What a damage to a batch means."""
        what = f"records {first} to {last}" if last is not None else f"the record at offset {first} and what follows"
        hint = "restore the file from a copy"
        if first >= self._durable:
            hint += ", or repair with cut_tail"
        return f"{why}; {what} cannot be trusted: {hint}"

    def _seal(self, segment: Segment, place: Passed) -> tuple[Passed, bool]:
        """What comes behind the segment's seal, and whether that verifies."""
        seal = segment.seal_at(place.position)
        header = segment.header
        is_compacted = header.flags & layout.FLAG_COMPACTED
        expected = header.end_offset if header.is_rewritten else place.offset
        if (
            seal is None
            or seal.last_checksum != place.last_checksum
            or seal.end_offset != expected
            or seal.end_offset < place.offset
            or (seal.end_offset != place.offset and not is_compacted)
            or seal.max_timestamp < place.max_timestamp
            or (seal.max_timestamp != place.max_timestamp and not is_compacted)
            or seal.end_offset <= place.segment_base
        ):
            message = f"the segment's seal does not verify: how the log goes on at offset {place.offset} is not known"
            self._damage(place.segment_base, "seal", message, place.position)
            return place, False
        self.next_base = seal.end_offset
        self._tally.size += layout.SEAL.size
        self.compacted |= bool(is_compacted)
        return msgspec.structs.replace(place, offset=seal.end_offset, max_timestamp=seal.max_timestamp), True

    def _at_end(self, place: Passed) -> bool:
        """Whether the log ends here as the published slot says."""
        end = self._end
        assert end is not None
        published = end.end_position, end.end_offset, end.last_checksum, end.max_timestamp
        met = place.position, place.offset, place.last_checksum, place.max_timestamp
        if published != met:
            message = "the log ends otherwise than was published: an older copy of a file may have been put back"
            self._damage(place.segment_base, "end", message, place.position, published, met)
        return published == met

    def _pass(self, place: Passed) -> None:
        if not self.broken:
            self.passed = place

    def _name(self, base: int) -> str:
        return f"{self._folder.path}/{layout.segment_name(base)}"

    def _damage(
        self, base: int, kind: str, message: str, position: int, expected: object = "", found: object = ""
    ) -> None:
        self._found.damage(self._name(base), kind, message, position=position, expected=expected, found=found)
        self.broken = True

    def check_epochs(self, name: str, starts: list[tuple[int, int]], *, complete: bool) -> None:
        """Hold the list of epochs against those that the batches name; for a walk that met no damage.

        Unless the list is complete, an epoch without records behind it may be one that recovery will drop.
        """
        assert self._end is not None
        listed = dict(starts)
        first_kept = starts[0][0] if len(starts) >= _ALL_EPOCHS else 0
        seen = dict(self.epochs)
        for epoch, offset in self.epochs:
            start = listed.get(epoch, 0 if epoch <= layout.FIRST_EPOCH else None)
            began_before = start is not None and start < offset and (offset == self._start or self.compacted)
            if epoch >= first_kept and start != offset and not began_before:
                self._epoch_damage(name, epoch, offset, start)
        for epoch, start in starts:
            if epoch not in seen and start >= self._start:
                behind = [offset for other, offset in self.epochs if other > epoch]
                following = min(behind, default=self._end.end_offset)
                wrong = start > following if self.compacted else start != following
                if wrong and (complete or behind):
                    self._epoch_damage(name, epoch, following, start)

    def _epoch_damage(self, name: str, epoch: int, expected: int, found: int | None) -> None:
        self._found.damage(
            name,
            "epochs",
            f"epoch {epoch} does not begin where its records do: committed offsets of before it may be taken for valid "
            "ones; restore the file from a copy",
            expected=f"offset {expected}",
            found="nothing" if found is None else f"offset {found}",
        )


def check_columns(batch: Batch) -> None:
    """Check every column of a batch, without making its items.

    Raises:
        BatchError: One breaks its rules.
    """
    batch.values(0, 0)
    batch.keys(0, 0)
    batch.headers(0, 0)
    batch.offsets(0, batch.count)
    batch.timestamps_ms(0, batch.count)


def appends_behind(folder: Folder, end: Published, *, at_most: int = 2) -> int:
    """How many appends, batches or transactions, lie behind the published end and continue the log.

    Each process that dies between its write and its publication leaves one, over that of the one before.
    """
    base, position, previous = end.segment_base, end.end_position, end.last_checksum
    count, nonce = 0, 0
    while count < at_most:
        try:
            segment = folder.open_segment(base, map_reads=False)
        except (FileNotFoundError, StreamLogError):
            break
        try:
            if previous == 0:  # of the next segment
                previous = segment.header.checksum
            seal = segment.seal_at(position)
            if seal is not None and seal.last_checksum == previous and seal.end_offset > base:
                base, position, previous = seal.end_offset, layout.SEGMENT_HEADER.size, 0
                continue
            header = parse_header(segment.read(position, HEADER_SIZE))
            if header.segment_id != segment.header.segment_id or header.previous_checksum != previous:
                break
            decode(header, segment.read(position + HEADER_SIZE, header.size - HEADER_SIZE))
        except (BatchError, StreamLogError):
            break
        finally:
            segment.close()
        count += not header.transaction_nonce or header.transaction_nonce != nonce
        nonce, position, previous = header.transaction_nonce, position + header.size, header.checksum
    return count


class _Window:
    """Reads a segment in large pieces."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._start = 0
        self._data = b""

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file."""
        begin = position - self._start
        if begin < 0 or begin + size > len(self._data):
            self._data = self._segment.read(position, max(size, _WINDOW))
            self._start, begin = position, 0
        return self._data[begin : begin + size]


class _IndexCheck:
    """Holds the entries of an index against the batches, which come by in the same order."""

    def __init__(self, folder: Folder, segment: Segment, *, complete: bool) -> None:
        header = segment.header
        entries: Generator[IndexEntry | None, None, None] = read_entries(
            folder.files, folder.path, segment_id=header.segment_id, base_offset=header.base_offset
        )
        self._entries = entries
        self._complete = complete
        self._next = next(entries, _LAST)
        self._wrong = False

    def meet(self, place: Passed) -> None:
        """A batch, or the seal, lies at that place."""
        while not self._wrong:
            entry = self._next
            if entry is None or entry.position < place.position:
                self._wrong = True
            elif entry.position > place.position:
                return
            else:
                self._wrong = (entry.offset, entry.max_timestamp_before) != (place.offset, place.max_timestamp)
                self._next = next(self._entries, _LAST)

    def is_wrong(self) -> bool:
        """Whether an entry was wrong; to be asked at the end. Behind that of the active segment nothing is known."""
        return self._wrong or (self._next is not _LAST and (self._next is None or self._complete))

    def close(self) -> None:
        """Close the index."""
        self._entries.close()


_LAST = IndexEntry(1 << 62, 1 << 62, -1)
