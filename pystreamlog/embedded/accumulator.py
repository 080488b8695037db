"""Records of one partition on their way from `send` to the log: gathered into columns, then written batch by batch.

Life of a batch: *open* (records are added), *closed* (full, due, or waited for; queued), *written* (appended and, for
`"fsync"`, synced), *settled* (acknowledged or failed). Batches are written in the order they were closed, by whichever
thread gets `writing`: the sender of the record that filled it, a waiter, or the background thread.

Fields are guarded by the producer's buffer lock, except during a write, which `writing` guards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import chain, repeat
from time import monotonic
from typing import Any

from pystreamlog.backend.delivery import PendingBatch, Writer
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.embedded.producer_metrics import SentTally
from pystreamlog.errors import IllegalStateError
from pystreamlog.record.batch import encode, encode_one
from pystreamlog.record.compression import Codec
from pystreamlog.record.encoded import EncodedBatch, demanding
from pystreamlog.record.identity import identified
from pystreamlog.record.record import Headers

__all__ = ["Accumulator", "RecordBatch"]


class RecordBatch(PendingBatch):
    """A pending batch with the records that it will be written from; they go when it is settled.

    Attributes:
        accumulator: The partition's.
        rows: Value, key and timestamp (ms) of each record, one after the other in one flat list: adding a record to it
            costs half of adding to three. Empty in a batch that was encoded from columns.
        headers: Headers per record; None while no record has any.
        sequences: The producer's sequences, one per record, rising; only the first in a batch that was encoded from
            columns, and none for a producer without an id.
        expected_end: The offset that the first record must get; None for any.
        expected_versions: How many records with its key there must be before a record, by index.
        size: Bytes of keys, values and headers.
        deadline: Monotonic time after which it fails if it is not written.
        due_ns: Wall-clock time, in ns, when it is written at the latest.
        encoded: The batch's bytes, once they were needed.
        end_offset: The next record's offset, once it is written.
        sent: Monotonic time when it was about to be written.
        claimed: A thread that waits for it is about to write it.
        settling: A thread is about to settle it.
    """

    __slots__ = (
        "accumulator",
        "claimed",
        "deadline",
        "due_ns",
        "encoded",
        "end_offset",
        "expected_end",
        "expected_versions",
        "headers",
        "rows",
        "sent",
        "sequences",
        "settling",
        "size",
    )

    def __init__(self, accumulator: Accumulator, writer: Writer, *, due_ns: int, deadline: float) -> None:
        super().__init__(accumulator.topic, accumulator.partition, writer)
        self.accumulator = accumulator
        self.rows: list[Any] = []
        self.headers: list[Headers] | None = None
        self.sequences: list[int] = []
        self.expected_end: int | None = None
        self.expected_versions: dict[int, int] = {}
        self.size = 0
        self.due_ns = due_ns
        self.deadline = deadline
        self.encoded: EncodedBatch | None = None
        self.end_offset = -1
        self.sent = 0.0
        self.claimed = self.settling = False

    def extend(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        timestamps_ms: Sequence[int] | int,
        headers: Sequence[Headers] | None,
        size: int,
    ) -> int:
        """Add columns of records; returns the index of the first."""
        rows, count = self.rows, len(values)
        first = len(rows) // 3
        if headers is not None or self.headers is not None:
            before: Sequence[Headers] = self.headers if self.headers is not None else [()] * first
            self.headers = list(chain(before, headers if headers is not None else repeat((), count)))
        stamps = repeat(timestamps_ms, count) if isinstance(timestamps_ms, int) else timestamps_ms
        rows += chain.from_iterable(zip(values, keys if keys is not None else repeat(None), stamps, strict=False))
        self.size += size
        return first

    def encode(self, codec: Codec | None, number: int, *, log_append_time: bool, key_index: bool) -> EncodedBatch:
        """The batch's bytes; made once, when nothing is added any more.

        Args:
            codec: Compresses it.
            number: Of the producer's id.
            log_append_time: The log sets the timestamps.
            key_index: The log gives the keys versions.
        """
        if self.encoded is None:
            rows = self.rows
            self.count = len(rows) // 3
            if self.count == 1 and codec is None:
                value, key, stamp = rows
                self.timestamps_ms = stamp
                headers = self.headers[0] if self.headers else ()
                encoded = encode_one(value, key, stamp, headers, log_append_time)
                if self.sequences:
                    identified(encoded, number, self.sequences[0])
            else:
                self.timestamps_ms = stamps = rows[2::3]
                encoded = encode(
                    rows[0::3],
                    rows[1::3],
                    stamps,
                    self.headers,
                    codec=codec,
                    log_append_time=log_append_time,
                    producer_id=number,
                    sequences=self.sequences or None,
                )
            if self.sequences or key_index or self.expected_end is not None:
                encoded.demands = demanding(rows[1::3] if key_index else None, self.sequences, number)
                encoded.demands.expected_end = self.expected_end
                if self.expected_versions:
                    encoded.demands.expected_versions = list(map(self.expected_versions.get, range(self.count)))
            self.encoded = encoded
        return self.encoded

    def note_written(self, base_offset: int) -> None:
        """The batch is in the log, or what is new of it; note where its records lie."""
        encoded = self.encoded
        demands = encoded.demands if encoded is not None else None
        log_append_time = encoded is not None and encoded.log_append_time
        if encoded is not None and log_append_time:
            self.timestamps_ms = encoded.max_timestamp
        if demands is None or demands.offsets is None:
            self.end_offset = base_offset + self.count
        else:
            base_offset = demands.end_offset
            self.offsets = demands.offsets
            self.end_offset = max(base_offset, self.offsets[-1] + 1)
            if encoded is not None and log_append_time:  # what the log stamped before is not looked up
                new = self.end_offset - base_offset
                self.timestamps_ms = [-1] * (self.count - new) + [encoded.max_timestamp] * new
        self.base_offset = base_offset

    def release(self) -> None:
        """Let go of the records: what stays is what a delivery tells."""
        self.rows = []
        self.headers = None
        self.sequences = []
        self.encoded = None


class Accumulator:
    """The batches of one partition of one producer.

    Attributes:
        topic: The topic's name.
        partition: The partition.
        writer: Appends to it.
        tally: Counts what is sent to it.
        alone: A record that was written past the others, and is to be synced; None when there is none.
        open: The batch that records are added to; None when there is none.
        closed: Batches to write, oldest first.
        writing: Held by the thread that writes.
        last_send_ns: Wall-clock time of the last record of the last closed batch, in ns.
        scheduled: The background thread knows that there is something to write.
        failed_sequence: The lowest sequence that was accepted and not written; None without. What comes behind it must
            not be written before it is sent again: it would seem to have been appended then.
    """

    __slots__ = (
        "_lone",
        "alone",
        "closed",
        "failed_sequence",
        "last_send_ns",
        "open",
        "partition",
        "scheduled",
        "tally",
        "topic",
        "writer",
        "writing",
    )

    def __init__(self, topic: str, partition: int, writer: PartitionWriter, tally: SentTally) -> None:
        self.topic = topic
        self.partition = partition
        self.writer = writer
        self.tally = tally
        self.alone: RecordBatch | None = None
        self.open: RecordBatch | None = None
        self.closed: deque[RecordBatch] = deque()
        self.writing = threading.Lock()
        self.last_send_ns = 0
        self.scheduled = False
        self.failed_sequence: int | None = None
        self._lone = 0

    def is_lone(self, now_ns: int, idle_ns: int) -> bool:
        """Whether a record that comes now into an empty batch is written at once.

        It is after an idle spell of `idle_ns`; and so are a few that follow it closely, as they do when a sender is
        late for once: each spell allows two, and eight may add up.
        """
        if now_ns - self.last_send_ns > idle_ns:
            self._lone = min(self._lone + 2, 8)
        elif not self._lone:
            return False
        self._lone -= 1
        return True

    def batch(self, writer: Writer, now_ns: int, linger_ns: int, delivery_timeout: float) -> RecordBatch:
        """The open batch, a new one if there is none."""
        batch = self.open
        if batch is None:
            deadline = monotonic() + delivery_timeout
            batch = self.open = RecordBatch(self, writer, due_ns=now_ns + linger_ns, deadline=deadline)
        return batch

    def check_order(self, sequence: int) -> None:
        """Take no record behind one that could not be written, until that is sent again.

        Raises:
            IllegalStateError: It is behind one.
        """
        failed = self.failed_sequence
        if failed is not None and sequence > failed:
            raise IllegalStateError(
                f"the record with sequence {failed} for partition {self.partition} of topic {self.topic!r} was not "
                f"written, and what follows would hide that: send again from it on, or make another producer"
            )

    def fail(self, batch: RecordBatch) -> int:
        """Have what was accepted behind a failed batch with sequences fail too; returns the open batch's size."""
        if not batch.sequences:
            return 0
        failed, first = self.failed_sequence, batch.sequences[0]
        self.failed_sequence = first if failed is None else min(failed, first)
        size = self.close()
        for other in self.closed:
            if other.error is None:
                other.error = batch.error
        return size

    def close(self) -> int:
        """Close the open batch, if there is one with records; returns its size."""
        batch = self.open
        if batch is None or not batch.rows:
            return 0
        batch.count = len(batch.rows) // 3
        self.open = None
        self.closed.append(batch)
        return batch.size
