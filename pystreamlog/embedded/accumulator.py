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
from pystreamlog.record.batch import Demands, EncodedBatch, encode, encode_one, key_demands
from pystreamlog.record.compression import Codec
from pystreamlog.record.record import Headers

__all__ = ["Accumulator", "RecordBatch"]


class RecordBatch(PendingBatch):
    """A pending batch with the records that it will be written from; they go when it is settled.

    Attributes:
        accumulator: The partition's.
        rows: Value, key and timestamp (ms) of each record, one after the other in one flat list: adding a record to it
            costs half of adding to three. Empty in a batch that was encoded from columns.
        headers: Headers per record; None while no record has any.
        size: Bytes of keys, values and headers.
        deadline: Monotonic time after which it fails if it is not written.
        due_ns: Wall-clock time, in ns, when it is written at the latest.
        encoded: The batch's bytes, once they were needed.
        end_offset: The next record's offset, once it is written.
        expected_end: The offset that the first record must get; None for any.
        expected_versions: The version that the key of a record must have, by the record's index; None without any.
    """

    __slots__ = (
        "accumulator",
        "deadline",
        "due_ns",
        "encoded",
        "end_offset",
        "expected_end",
        "expected_versions",
        "headers",
        "rows",
        "size",
    )

    def __init__(self, accumulator: Accumulator, writer: Writer, *, due_ns: int, deadline: float) -> None:
        super().__init__(accumulator.topic, accumulator.partition, writer)
        self.accumulator = accumulator
        self.rows: list[Any] = []
        self.headers: list[Headers] | None = None
        self.size = 0
        self.due_ns = due_ns
        self.deadline = deadline
        self.encoded: EncodedBatch | None = None
        self.end_offset = -1
        self.expected_end: int | None = None
        self.expected_versions: dict[int, int] | None = None

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

    def expect(self, index: int, expected_end: int | None, expected_version: int | None) -> None:
        """Note what must hold for a record that was added; only the first one can expect an end."""
        assert expected_end is None or not index
        self.expected_end = expected_end if expected_end is not None else self.expected_end
        if expected_version is not None:
            self.expected_versions = {**(self.expected_versions or {}), index: expected_version}

    def encode(self, codec: Codec | None, *, log_append_time: bool) -> EncodedBatch:
        """The batch's bytes; made once, when nothing is added any more."""
        if self.encoded is None:
            rows = self.rows
            self.count = len(rows) // 3
            if self.count == 1 and codec is None:
                value, key, stamp = rows
                self.timestamps_ms = stamp
                headers = self.headers[0] if self.headers else ()
                self.encoded = encode_one(value, key, stamp, headers, log_append_time)
            else:
                self.timestamps_ms = stamps = rows[2::3]
                self.encoded = encode(
                    rows[0::3], rows[1::3], stamps, self.headers, codec=codec, log_append_time=log_append_time
                )
            if self.accumulator.writer.topic.config.key_index:
                self.encoded.demands = key_demands(rows[1::3])
            if self.expected_end is not None or self.expected_versions is not None:
                demands = self.encoded.demands = self.encoded.demands or Demands()
                demands.expected_end = self.expected_end
                if self.expected_versions is not None:
                    demands.expected_versions = list(map(self.expected_versions.get, range(self.count)))
        return self.encoded

    def release(self) -> None:
        """Let go of the records: what stays is what a delivery tells."""
        self.rows = []
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
        last_send_ns: Wall-clock time of the last record of the last closed batch, in ns.
        scheduled: The background thread knows that there is something to write.
    """

    __slots__ = ("_lone", "closed", "last_send_ns", "open", "partition", "scheduled", "topic", "writer", "writing")

    def __init__(self, topic: str, partition: int, writer: PartitionWriter) -> None:
        self.topic = topic
        self.partition = partition
        self.writer = writer
        self.open: RecordBatch | None = None
        self.closed: deque[RecordBatch] = deque()
        self.writing = threading.Lock()
        self.last_send_ns = 0
        self.scheduled = False
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

    def close(self) -> int:
        """Close the open batch, if there is one with records; returns its size."""
        batch = self.open
        if batch is None or not batch.rows:
            return 0
        batch.count = len(batch.rows) // 3
        self.open = None
        self.closed.append(batch)
        return batch.size
