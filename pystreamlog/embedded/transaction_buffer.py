"""What a producer has sent in an open transaction: nothing of it is written before the commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from pystreamlog.backend.delivery import Delivery, PendingBatch
from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.spilling import SpillFolder
from pystreamlog.embedded.accumulator import Accumulator, RecordBatch
from pystreamlog.embedded.buffer import Buffer
from pystreamlog.embedded.settlement import Settlement
from pystreamlog.embedded.stamps import packed
from pystreamlog.errors import IllegalStateError, StorageError, TransactionAbortedError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.record import Headers

__all__ = ["TransactionBuffer"]

_SPILLED_BYTES = 4 << 20
_NEVER_NS = 1 << 62


class TransactionBuffer(Buffer):
    """The accumulators of one transaction. Safe from any thread.

    Args:
        config: The producer's settings.
        settlement: Acknowledges or fails what was sent.
        topic_gone: Called with the name of a topic that turned out to be deleted.
        make_folder: Makes a folder to spill into.

    Attributes:
        spilled: What did not fit into memory; None while all did.
    """

    __slots__ = ("_make_folder", "_spilling", "spilled")

    def __init__(
        self,
        config: ProducerConfig,
        settlement: Settlement,
        topic_gone: Callable[[str], None],
        make_folder: Callable[[], SpillFolder],
    ) -> None:
        super().__init__(config, settlement, topic_gone)
        self.spilled: SpillFolder | None = None
        self._make_folder = make_folder
        self._spilling = threading.Lock()

    def check_open(self) -> None:
        """Raise `IllegalStateError` when the transaction has ended."""
        if self._closed:
            raise IllegalStateError(self._closed)

    # --- accepting

    def batch(self, accumulator: Accumulator, now_ns: int) -> RecordBatch:
        """See `Buffer.batch`; what has a whole transaction's time gathers until it is full."""
        batch = super().batch(accumulator, now_ns)
        batch.due_ns = _NEVER_NS
        return batch

    def expect(
        self,
        accumulator: Accumulator,
        now_ns: int,
        record: tuple[bytes | None, bytes | None, int, Headers],
        size: int,
        expected: tuple[int | None, int | None],
    ) -> Delivery:
        """Add a record that the commit refuses unless the partition's end, and its key's version, are as expected."""
        value, key, stamp, pairs = record
        expected_end, expected_version = expected
        with self.lock:
            self.check_open()
            if expected_end is not None:  # it is the batch that begins there
                self.close_batch(accumulator, now_ns)
            batch = self.batch(accumulator, now_ns)
            headers = (pairs,) if pairs or batch.headers is not None else None
            index = batch.extend((value,), (key,), stamp, headers, size)
            if expected_end is not None:
                batch.expected_end = expected_end
            if expected_version is not None:
                batch.expected_versions[index] = expected_version
        return Delivery(batch, index)

    def write_now(self, accumulator: Accumulator) -> None:
        """A batch is full: it waits for the commit, on disk if the memory for that is used up."""
        with self.lock:
            self.buffered += accumulator.close()
        if self.buffered >= self._config.transaction_buffer_bytes:
            self._spill(accumulator)

    def _spill(self, accumulator: Accumulator) -> None:
        """Write some of a partition's batches to a file; a few MiB at a time, as this may be an event loop."""
        writer, left = accumulator.writer, _SPILLED_BYTES
        with self._spilling:
            if self.spilled is None:
                self.spilled = self._make_folder()
            spill = self.spilled.spill(writer)
            while left > 0 and spill.count < len(accumulator.closed):
                batch = accumulator.closed[spill.count]
                encoded = self._encoded(batch, writer)
                if encoded.demands is not None:
                    return  # what is to be looked at under the lock stays, with all behind it
                size = batch.size
                spill.add(encoded)
                batch.rows, batch.headers = [], None
                batch.timestamps_ms = packed(batch.timestamps_ms)
                left -= size
                with self.lock:
                    self.buffered -= size

    def write_alone(
        self,
        accumulator: Accumulator,  # noqa: ARG002 - as in `Buffer`
        value: bytes,  # noqa: ARG002
        key: bytes | None,  # noqa: ARG002
        stamp: int,  # noqa: ARG002
        log_append_time: bool,  # noqa: ARG002, FBT001
    ) -> Delivery | None:
        """No record of a transaction is written alone."""
        return None

    def schedule(self, accumulator: Accumulator, due_ns: int) -> None:
        """Nothing is due before the commit."""

    def make_room(self) -> None:
        """What does not fit into memory is spilled, whatever `buffer_memory` says."""

    # --- waiting

    def complete(self, pending: PendingBatch, timeout: float | None) -> None:  # noqa: ARG002 - as in `Buffer`
        """See `Writer.complete`: a commit is needed first."""
        self._check_owned()
        raise IllegalStateError("a record of an open transaction has no offset yet: ask after the commit")

    def complete_soon(self, pending: PendingBatch) -> None:
        """See `complete`."""
        self.complete(pending, None)

    def flush(self, timeout: float | None) -> None:
        """Nothing is written before the commit."""

    # --- the end

    def end_with(self, reason: str) -> None:
        """Accept nothing from now on."""
        with self.lock:
            self._closed = self._closed or reason
            for accumulators in self._accumulators.values():
                for accumulator in accumulators.values():
                    self.buffered += accumulator.close()

    def batches(self) -> dict[PartitionWriter, list[RecordBatch]]:
        """What was sent, by partition, in its order."""
        with self.lock:
            return {
                accumulator.writer: list(accumulator.closed)
                for accumulators in self._accumulators.values()
                for accumulator in accumulators.values()
                if accumulator.closed
            }

    def encoded(
        self, batches: Mapping[PartitionWriter, list[RecordBatch]]
    ) -> dict[PartitionWriter, list[EncodedBatch]]:
        """The bytes of those of these batches that are in memory."""
        spills = {} if self.spilled is None else self.spilled.spills
        now = self.settlement.metrics.now()
        for group in batches.values():
            for batch in group:
                batch.sent = now
        return {
            writer: [self._encoded(batch, writer) for batch in group[spills[writer].count if writer in spills else 0 :]]
            for writer, group in batches.items()
        }

    def close(self) -> None:
        """Remove what was spilled and is not part of the log."""
        spilled, self.spilled = self.spilled, None
        if spilled is not None:
            spilled.close()

    def acknowledge(
        self,
        batches: Mapping[PartitionWriter, list[RecordBatch]],
        first_offsets: Mapping[PartitionWriter, list[int]],
        error: StorageError | None = None,
    ) -> None:
        """The transaction is committed, and this is where its batches begin; with `error` it may not be on disk."""
        for writer, group in batches.items():
            for batch, offset in zip(group, first_offsets[writer], strict=True):
                batch.note_written(offset)
                if error is None:
                    self.settlement.settle(batch)
                else:
                    self.settlement.fail_quietly(batch, error)

    def abort(self, cause: BaseException | None) -> None:
        """The transaction is aborted: its deliveries say so, and nothing else does, as somebody asked for it."""
        self.end_with("the transaction was aborted: begin another")
        reason = f": {cause}" if cause is not None else ""
        for group in self.batches().values():
            for batch in group:
                failure = TransactionAbortedError(f"the transaction of this record was aborted{reason}")
                failure.__cause__ = cause
                self.settlement.fail_quietly(batch, failure)
