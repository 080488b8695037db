"""Records that a producer's id has appended before are not appended again.

An `Admission`: it keeps the partition's `ProducerState`, brings it up to date under the append lock, and takes from
each batch the records whose sequence is not above the highest that their id appended. What it says of them is true for
every process, as whoever appends holds the same lock and looks at the same log.

Where the state comes from:

- nowhere, while no batch of the partition has a producer id (`FLAG_PRODUCERS`);
- the newest snapshot and the headers behind it, at the first batch with a sequence, and after a recovery, which begins
  a new epoch and may have cut what the state knew;
- the headers of what others appended since, at each batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.errors import OffsetOutOfRangeError, StreamLogError
from pystreamlog.record.batch import BatchError
from pystreamlog.record.encoded import Demands, EncodedBatch
from pystreamlog.record.identity import without_first
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.coverage import covering, read_header
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.producer_snapshots import catch_up, cursor_at, rebuild, write_snapshot
from pystreamlog.storage.producer_state import ProducerState
from pystreamlog.storage.reader import Cursor, LogReader

__all__ = ["SequenceAdmission"]

_INTERVAL = 8 << 20
"""Bytes of log after which a snapshot is taken: 28,000 batches of one small record, whose headers take 0.15 s to read.
Writing the snapshot takes 0.1 ms, the log between 5 ms."""
_ROLLED_INTERVAL = 256 << 10
"""The same, once the segment is another: a segment that a snapshot stands in for needs not be opened."""
_SIZES = 4
"""A snapshot is taken after as many times its own size of log at the earliest."""
_QUICK_BYTES = 64 << 10
"""What others appended of that size is taken in within a millisecond or two."""


class SequenceAdmission:
    """The sequences of one partition in one process. The caller holds the append lock.

    Args:
        folder: The partition.
        control: Its control file, while its files are open.
        clock: Dates appends.
        expiration_ms: How long ids live without an append.
        map_reads: Read through maps.
    """

    __slots__ = (
        "_clock",
        "_control",
        "_end",
        "_expiration_ms",
        "_folder",
        "_map_reads",
        "_reader",
        "_since",
        "_snapshot_base",
        "_snapshot_size",
        "_state",
        "_trying",
    )

    def __init__(
        self,
        folder: Folder,
        control: Callable[[], Control],
        clock: Clock,
        expiration_ms: Callable[[], int],
        *,
        map_reads: bool,
    ) -> None:
        self._folder = folder
        self._control = control
        self._clock = clock
        self._expiration_ms = expiration_ms
        self._map_reads = map_reads
        self._reader: LogReader | None = None
        self._state: ProducerState | None = None
        self._end: Published | None = None
        self._trying = 0  # bytes that were admitted and are not published yet
        self._since = 0
        self._snapshot_base = -1
        self._snapshot_size = 0

    def is_quick(self, end: Published) -> bool:
        """Whether a batch at `end` can be decided upon without a long walk."""
        known = self._end
        if self._state is None or known is None or known.epoch != end.epoch:
            return False
        return known.segment_base == end.segment_base and end.end_position - known.end_position <= _QUICK_BYTES

    def admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """See `Admission.admit`; `Demands.offsets` says where what was appended before lies, -1 where that is unknown.

        Raises:
            CorruptLogError: The log does not verify where it must be walked: nobody knows what was appended.
        """
        demands = batch.demands
        if demands is None or demands.producer_id < 0:
            return batch
        now_ms = self._clock.now_ms()
        state = self._state if self._trying else None
        if state is None:
            state = self._current(end, now_ms)
        number, sequences = demands.producer_id, demands.sequences
        expired_ms = now_ms - self._expiration_ms()
        last = state.last_sequence(number, expired_ms)
        old = 0 if sequences[0] > last else bisect_right(sequences, last)
        demands.offsets, demands.end_offset = None, end.end_offset
        admitted = batch
        if old:
            first, count = end.end_offset, batch.count - old
            demands.offsets = [*self._offsets(state, number, sequences[:old], end), *range(first, first + count)]
            if not count:
                return None
            admitted = without_first(batch, old)
            admitted.demands = _without_first(demands, old)
        state.begin()
        self._trying += admitted.size
        # Whether it was written with gaps is of no matter as long as they are looked for.
        gaps = sequences[-1] - sequences[old] >= admitted.count
        state.append(number, sequences[-1], end.end_offset, -admitted.count if gaps else admitted.count, now_ms)
        return admitted

    def keep(self, end: Published) -> None:
        """Write a snapshot of the state at `end`, on disk: records that it was made from are about to be deleted.

        Raises:
            CorruptLogError: The log does not verify where it must be walked.
            StorageError: It could not be written.
        """
        now_ms = self._clock.now_ms()
        state = self._current(end, now_ms)
        state.expire(now_ms - self._expiration_ms())
        self._snapshot_size = write_snapshot(self._folder, state, end, durable=True)
        self._snapshot_base, self._since = end.segment_base, 0

    def published(self, end: Published) -> None:
        """See `Admission.published`."""
        if self._trying and self._state is not None:
            self._state.keep()
            self._since += self._trying
            self._trying = 0
            self._end = end

    def dropped(self) -> None:
        """See `Admission.dropped`."""
        if self._trying and self._state is not None:
            self._state.undo()
        self._trying = 0

    def close(self) -> None:
        """See `Admission.close`; the state stays."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # --- the state

    def _current(self, end: Published, now_ms: int) -> ProducerState:
        """The state at `end`, which is remembered; a snapshot of it is written when that is due."""
        state, known = self._state, self._end
        if state is None or known is None or known is not end:
            # Without it until it is whole: an interrupt, or damage, must not leave half of it.
            self._state = None
            state = self._caught_up(state, known, end, now_ms)
            self._end = end
            self._state = state
        rolled = end.segment_base != self._snapshot_base
        if self._since >= (_ROLLED_INTERVAL if rolled else _INTERVAL) + _SIZES * self._snapshot_size:
            state.expire(now_ms - self._expiration_ms())
            self._snapshot_size = write_snapshot(self._folder, state, end)
            self._snapshot_base = end.segment_base
            self._since = 0
        return state

    def _caught_up(
        self, state: ProducerState | None, known: Published | None, end: Published, now_ms: int
    ) -> ProducerState:
        if not end.flags & layout.FLAG_PRODUCERS:
            return ProducerState()
        reader = self._log_reader()
        if state is not None and known is not None and _follows(known, end):
            if known.end_offset == end.end_offset:
                return state
        else:
            state = None
        if state is not None and known is not None and not _were_compacted(self._folder, known, end):
            try:
                self._since += catch_up(self._folder, state, reader, cursor_at(known), end, now_ms=now_ms)
            except OffsetOutOfRangeError:
                pass  # what it knows, and more, was deleted from the log meanwhile
            else:
                return state
        self._snapshot_base, self._snapshot_size = -1, 0
        state, self._since = rebuild(self._folder, reader, end, now_ms=now_ms, expiration_ms=self._expiration_ms())
        return state

    def _log_reader(self) -> LogReader:
        if self._reader is None:
            self._reader = LogReader(self._folder, self._control(), map_reads=self._map_reads)
        return self._reader

    def _offsets(self, state: ProducerState, number: int, sequences: Sequence[int], end: Published) -> list[int]:
        """Where sequences that were appended before lie, -1 where that is unknown."""
        offsets, inside = state.find(number, sequences)
        for start, stop, base in inside:
            try:
                found = self._log_reader().fetch(Cursor(base), end, max_records=1, max_bytes=1)
                if not found or found[0][0].header.producer_id != number:
                    continue
                one = found[0][0]
                lie = dict(zip(one.sequences(0, one.count), one.offsets(0, one.count), strict=True))
            except (StreamLogError, BatchError):
                continue  # deleted, or damaged: it was appended all the same
            offsets[start:stop] = [lie.get(sequence, -1) for sequence in sequences[start:stop]]
        return offsets


def _follows(known: Published, end: Published) -> bool:
    """Whether the log at `end` is the one at `known`, and what was appended since."""
    if known.epoch != end.epoch or known.end_offset > end.end_offset:
        return False
    return known.segment_base != end.segment_base or known.segment_id == end.segment_id


def _were_compacted(folder: Folder, known: Published, end: Published) -> bool:
    """Whether records that were appended after `known` may be gone, though they lie above the log's start."""
    first = known.segment_base
    if first == end.segment_base:
        return False
    bases = [base for base in folder.segments() if first <= base < end.segment_base]
    if bases[:1] != [first] or covering(folder, first, below=first) is not None:
        return True
    headers = [read_header(folder, base) for base in bases]
    return any(header is None or header.flags & layout.FLAG_COMPACTED for header in headers)


def _without_first(demands: Demands, dropped: int) -> Demands:
    """The demands of the records behind the first ones."""
    keys, versions = demands.keys, demands.expected_versions
    return msgspec.structs.replace(
        demands,
        sequences=demands.sequences[dropped:],
        keys=None if keys is None else keys[dropped:],
        expected_versions=None if versions is None else versions[dropped:],
    )
