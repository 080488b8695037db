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

from pystreamlog.backend.delivery import PendingBatch, Writer
from pystreamlog.coordination.partition import PartitionWriter
from pystreamlog.record.batch import EncodedBatch, encode
from pystreamlog.record.compression import Codec
from pystreamlog.record.record import Headers

__all__ = ["Accumulator", "RecordBatch"]


class RecordBatch(PendingBatch):
    """A pending batch with the columns that it will be written from; they go when it is settled.

    Attributes:
        values: Payloads.
        keys: Keys, None where a record has none.
        headers: Headers per record; None while no record has any.
        size: Bytes of keys, values and headers.
        deadline: Monotonic time after which it fails if it is not written.
        due_ns: Wall-clock time, in ns, when it is written at the latest.
        encoded: The batch's bytes, once they were needed.
        end_offset: The next record's offset, once it is written.
    """

    __slots__ = ("accumulator", "deadline", "due_ns", "encoded", "end_offset", "headers", "keys", "size", "values")

    def __init__(self, accumulator: Accumulator, writer: Writer, *, due_ns: int, deadline: float) -> None:
        super().__init__(accumulator.topic, accumulator.partition, writer)
        self.accumulator = accumulator
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] = []
        self.headers: list[Headers] | None = None
        self.size = 0
        self.due_ns = due_ns
        self.deadline = deadline
        self.encoded: EncodedBatch | None = None
        self.end_offset = -1

    def encode(self, codec: Codec | None, *, log_append_time: bool) -> EncodedBatch:
        """The batch's bytes; made once."""
        if self.encoded is None:
            self.encoded = encode(
                self.values,
                self.keys,
                self.timestamps_ms,
                self.headers,
                codec=codec,
                log_append_time=log_append_time,
            )
        return self.encoded

    def release(self) -> None:
        """Let go of the records: what stays is what a delivery tells."""
        self.values = []
        self.keys = []
        self.headers = None
        self.encoded = None


class Accumulator:
    """The batches of one partition of one producer.

    Attributes:
        topic: The topic's name.
        partition: The partition.
        writer: Appends to it.
        open: The batch that records are added to; None when there is none.
        closed: Batches to write, oldest first.
        writing: Held by the thread that writes.
        last_send_ns: Wall-clock time of the last record, in ns.
        scheduled: The background thread knows that there is something to write.
    """

    __slots__ = ("closed", "last_send_ns", "open", "partition", "scheduled", "topic", "writer", "writing")

    def __init__(self, topic: str, partition: int, writer: PartitionWriter) -> None:
        self.topic = topic
        self.partition = partition
        self.writer = writer
        self.open: RecordBatch | None = None
        self.closed: deque[RecordBatch] = deque()
        self.writing = threading.Lock()
        self.last_send_ns = 0
        self.scheduled = False

    def batch(self, writer: Writer, now_ns: int, linger_ns: int, delivery_timeout: float) -> RecordBatch:
        """The open batch, a new one if there is none."""
        batch = self.open
        if batch is None:
            batch = self.open = RecordBatch(
                self, writer, due_ns=now_ns + linger_ns, deadline=monotonic() + delivery_timeout
            )
        return batch

    def close(self) -> None:
        """Close the open batch, if there is one with records."""
        batch = self.open
        if batch is not None and batch.count:
            self.open = None
            self.closed.append(batch)

    @staticmethod
    def extend(
        batch: RecordBatch,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        timestamps_ms: Sequence[int] | int,
        headers: Sequence[Headers] | None,
        size: int,
    ) -> int:
        """Add columns to a batch; returns the index of the first record."""
        first, count = batch.count, len(values)
        batch.values.extend(values)
        batch.keys.extend(keys if keys is not None else repeat(None, count))
        if isinstance(timestamps_ms, int) and not first:
            batch.timestamps_ms = timestamps_ms
        else:
            stamps = batch.timestamps_ms
            if isinstance(stamps, int):
                stamps = batch.timestamps_ms = [stamps] * first
            stamps.extend(repeat(timestamps_ms, count) if isinstance(timestamps_ms, int) else timestamps_ms)
        if headers is not None or batch.headers is not None:
            before: Sequence[Headers] = batch.headers if batch.headers is not None else [()] * first
            batch.headers = list(chain(before, headers if headers is not None else repeat((), count)))
        batch.size += size
        batch.count = first + count
        return first
