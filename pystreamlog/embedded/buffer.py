"""What a producer has accepted and not yet written, and everything that writes it.

A partition's batches are written by whichever thread gets its accumulator's `writing` lock: the sender of the record
that filled a batch, a waiter, or the background thread. `lock` guards the accumulators' fields and is never held while
something is written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic, time_ns

from pystreamlog.backend.delivery import Delivery, PendingBatch
from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.coordination.locks import enter
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.accumulator import Accumulator, RecordBatch
from pystreamlog.embedded.sender import Sender
from pystreamlog.embedded.settlement import Settlement
from pystreamlog.embedded.turns import on_event_loop
from pystreamlog.errors import (
    ClosedError,
    DeliveryTimeoutError,
    LockTimeoutError,
    StreamLogError,
    UnknownTopicError,
)
from pystreamlog.record.batch import encode_one
from pystreamlog.record.encoded import EncodedBatch, demanding

__all__ = ["Buffer"]

_log = logging.getLogger("pystreamlog")

_FLOWING_NS = 5_000_000
"""While the last record is not older than this, its sender is trusted to write the batch with the next one. A
background thread would wait 5 ms for the GIL after each of an append's five system calls."""
_LATE_NS = 20_000_000
"""But not for longer than this."""

_ASKED_NEXT_NS = 5_000_000
_ASKED_NEXT_BYTES = 1 << 20
"""So long, and while no more is buffered, what shall be on disk is left to the thread that sent it, should it wait."""

_LOOP_BYTES = 4 << 20
"""On an event loop, a segment that has no room for this any more is left to the background thread: rolling syncs."""

_LOOK_SECONDS = 1.0
"""How often who waits for a record looks by itself, should the thread that was to write it have been interrupted."""

_SENDER_LOCK_TIMEOUT = 0.02
"""Seconds the background thread waits for one partition's lock before it serves the others."""


class Buffer:
    """The accumulators of one producer. Safe from any thread.

    Args:
        config: The producer's settings.
        settlement: Acknowledges or fails what was sent.
        topic_gone: Called with the name of a topic that turned out to be deleted.

    Attributes:
        lock: Guards the fields of all accumulators.
        buffered: Bytes of closed batches that are not written.
        settlement: As passed.
    """

    __slots__ = (
        "_accumulators",
        "_closed",
        "_config",
        "_disowned",
        "_fsync",
        "_has_id",
        "_number",
        "_sender",
        "_syncing",
        "_topic_gone",
        "buffered",
        "lock",
        "settlement",
    )

    def __init__(self, config: ProducerConfig, settlement: Settlement, topic_gone: Callable[[str], None]) -> None:
        self._config = config
        self.settlement = settlement
        self._topic_gone = topic_gone
        self._fsync = config.durability == "fsync"
        self._number = config.producer_number
        self._has_id = config.producer_id is not None
        self._accumulators: dict[bytes, dict[int, Accumulator]] = {}
        self._syncing: set[RecordBatch] = set()
        self._sender = Sender(self._write_due, config.linger_ms * 1_000_000)
        self.lock = threading.Lock()
        self.buffered = 0
        self._closed = ""
        self._disowned = False

    def accumulators(self, topic: TopicState) -> dict[int, Accumulator]:
        """The accumulators of a topic, by partition."""
        with self.lock:
            return self._accumulators.setdefault(topic.id, {})

    def forget(self, topic: TopicState) -> None:
        """Drop the accumulators of a deleted topic, once they are empty."""
        with self.lock:
            accumulators = self._accumulators.get(topic.id, {})
            if not any(accumulator.closed or accumulator.open for accumulator in accumulators.values()):
                self._accumulators.pop(topic.id, None)

    def check_open(self) -> None:
        """Raise `ClosedError` when nothing is accepted any more; under `lock`, for what is accepted next."""
        if self._closed:
            raise ClosedError(self._closed)

    def _check_owned(self) -> None:
        """Raise `ClosedError` in a forked child: what is buffered is the parent's to write."""
        if self._disowned:
            raise ClosedError(self._closed)

    # --- accepting; the caller holds `lock`

    def batch(self, accumulator: Accumulator, now_ns: int) -> RecordBatch:
        """The accumulator's open batch, a new one if there is none.

        A sender may still hold the accumulator of a topic that was deleted and dropped here: it is taken up again.
        """
        if accumulator.open is None:
            self._track(accumulator)
        config = self._config
        return accumulator.batch(self, now_ns, config.linger_ms * 1_000_000, config.delivery_timeout_ms / 1000)

    def _track(self, accumulator: Accumulator) -> None:
        topic_id = accumulator.writer.folder.topic_id
        self._accumulators.setdefault(topic_id, {})[accumulator.partition] = accumulator

    def close_batch(self, accumulator: Accumulator, now_ns: int) -> None:
        """Queue the open batch for writing."""
        self.buffered += accumulator.close()
        accumulator.last_send_ns = now_ns

    def in_order(self, accumulator: Accumulator, sequence: int, now_ns: int) -> None:
        """Make way for a record with a sequence; one that does not rise was sent before, and gets a batch of its own.

        Raises:
            IllegalStateError: It is behind one that could not be written.
        """
        accumulator.check_order(sequence)
        accumulator.failed_sequence = None  # it is what is sent again
        batch = accumulator.open
        if batch is not None and batch.sequences and sequence <= batch.sequences[-1]:
            self.close_batch(accumulator, now_ns)

    def queue(self, accumulator: Accumulator, batch: RecordBatch, now_ns: int) -> None:
        """Queue a batch that was encoded from columns, behind what was sent before."""
        self._track(accumulator)
        self.close_batch(accumulator, now_ns)
        accumulator.closed.append(batch)
        self.buffered += batch.size

    def schedule(self, accumulator: Accumulator, due_ns: int) -> None:
        """Have the background thread write the accumulator when it is due."""
        if not accumulator.scheduled:
            accumulator.scheduled = True
            self._sender.schedule(accumulator, due_ns)

    # --- writing

    def write_now(self, accumulator: Accumulator) -> None:
        """Write from the sending thread if that can be done without waiting, else leave it to the background thread.

        The background thread does every fsync, and on an event loop whatever may wait for the disk.
        """
        slow = self._fsync or (on_event_loop() and not accumulator.writer.is_quick(_LOOP_BYTES, sequences=self._has_id))
        if not slow and self._write(accumulator, 0):
            return
        with self.lock:
            self.buffered += accumulator.close()  # an open batch would wait for its linger
        # Who wants a record on disk mostly waits for it next, and then syncs by itself: two threads that take turns at
        # the GIL would cost each record 60 us.
        waits_next = self._fsync and self.buffered < _ASKED_NEXT_BYTES and not on_event_loop()
        self._sender.schedule(accumulator, time_ns() + _ASKED_NEXT_NS if waits_next else 0)

    def write_alone(
        self,
        accumulator: Accumulator,
        value: bytes,
        key: bytes | None,
        stamp: int,
        log_append_time: bool,  # noqa: FBT001 - as the others, by position, for speed
    ) -> Delivery | None:
        """Write one record past the accumulator, when nothing waits there; None when it must go the usual way.

        Whatever goes wrong, the usual way meets it again and tells the delivery. One that shall be on disk is synced by
        whoever waits for it, or soon by the background thread, together with what follows it until then.
        """
        if on_event_loop() and (self._fsync or not accumulator.writer.is_quick(_LOOP_BYTES)):
            return None
        entered: list[bool] = []
        sent = monotonic()
        try:
            if accumulator.closed or self._closed or not enter(accumulator.writing, 0, entered):
                return None
            if accumulator.open or (self._fsync and not self._may_wait_alone(accumulator)):
                return None
            encoded = encode_one(value, key, stamp, (), log_append_time)
            if accumulator.writer.topic.config.key_index:
                encoded.demands = demanding((key,))
            base_offset = accumulator.writer.append(encoded, 0)
            if self._fsync:
                return self._wait_alone(accumulator, encoded, base_offset, stamp, sent)
        except StreamLogError:
            return None
        finally:
            if True in entered:
                accumulator.writing.release()
        accumulator.last_send_ns = time_ns()
        pending = PendingBatch(accumulator.topic, accumulator.partition, self)
        pending.count = 1
        pending.timestamps_ms = encoded.max_timestamp
        pending.base_offset = base_offset
        pending.settled = True  # before anybody could wait for it
        self.settlement.metrics.sent(accumulator.tally, 1, encoded.size, 0, 0, sent)
        return Delivery(pending, 0)

    def _may_wait_alone(self, accumulator: Accumulator) -> bool:
        """Whether a record may be written past the others and wait for its sync; the caller holds `writing`."""
        with self.lock:
            self._track(accumulator)  # who flushes or closes from now on waits for `writing`
            return accumulator.alone is None and not self._closed

    def _wait_alone(
        self, accumulator: Accumulator, encoded: EncodedBatch, base_offset: int, stamp: int, sent: float
    ) -> Delivery:
        """Have a record that was written past the others wait for its sync; the caller holds `writing`."""
        accumulator.last_send_ns = now_ns = time_ns()
        batch = RecordBatch(accumulator, self, due_ns=now_ns, deadline=0)
        batch.encoded, batch.count, batch.size, batch.timestamps_ms = encoded, 1, encoded.size, stamp
        batch.sent = sent
        batch.note_written(base_offset)
        with self.lock:
            self._syncing.add(batch)
            accumulator.alone = batch
        self._sender.schedule(accumulator, now_ns + _ASKED_NEXT_NS)
        return Delivery(batch, 0)

    def make_room(self) -> None:
        """Block until the buffer has room; not on an event loop, where `drain` is for that.

        Raises:
            LockTimeoutError: Not within `max_block_ms`.
        """
        with self.settlement.metrics.waiting():
            self._make_room()

    def _make_room(self) -> None:
        config = self._config
        deadline = monotonic() + (0 if on_event_loop() else config.max_block_ms / 1000)
        full = f"the buffer of {config.buffer_memory} bytes stayed full for {config.max_block_ms} ms"
        while self.buffered >= config.buffer_memory:
            for accumulator in self._waiting():
                try:
                    self._write(accumulator, max(0.0, min(deadline - monotonic(), 1.0)), raising=True)
                except LockTimeoutError:
                    if monotonic() >= deadline:
                        error = accumulator.writer.busy(config.max_block_ms / 1000)
                        raise LockTimeoutError(f"{full}: {error}", path=error.path, holder=error.holder) from None
                if self.buffered < config.buffer_memory:
                    return
            if monotonic() >= deadline and self.buffered >= config.buffer_memory:
                raise LockTimeoutError(f"{full}: other threads are writing; send less, or raise buffer_memory")

    def _waiting(self) -> list[Accumulator]:
        """The accumulators that have something to write."""
        with self.lock:
            return [
                accumulator
                for accumulators in self._accumulators.values()
                for accumulator in accumulators.values()
                if accumulator.closed or accumulator.open is not None or accumulator.alone is not None
            ]

    def _write_due(self, accumulator: Accumulator) -> bool:
        """What the background thread does: write what is due of a partition; whether nothing is left for now."""
        alone, is_early = None, False
        with self.lock:
            accumulator.scheduled = False
            batch, now_ns = accumulator.open, time_ns()
            if accumulator.writing.locked():
                # Another thread is at it, and writes what it finds.
                self.schedule(accumulator, now_ns + _FLOWING_NS)
                return True
            if not accumulator.closed and batch is not None and batch.rows:
                flowing = now_ns - batch.rows[-1] * 1_000_000 < _FLOWING_NS and now_ns - batch.due_ns < _LATE_NS
                if batch.due_ns > now_ns or flowing:
                    # The thread that sends writes what is due with its next record, and need not share the GIL.
                    self.schedule(accumulator, max(batch.due_ns, now_ns + _FLOWING_NS))
                    is_early = True
                    alone, accumulator.alone = accumulator.alone, None
        if alone is not None:
            self._sync(accumulator, [alone])
        return is_early or self._write(accumulator, _SENDER_LOCK_TIMEOUT)

    def _write(self, accumulator: Accumulator, timeout: float, *, raising: bool = False) -> bool:
        """Write the batches of a partition in order; whether nothing was left when it stopped.

        Args:
            accumulator: The partition's.
            timeout: Seconds to wait for the other writers, of this and of other processes; 0 never waits.
            raising: Raise the `LockTimeoutError` that names the holder instead of returning False.
        """
        entered: list[bool] = []
        written: list[RecordBatch] = []
        try:
            if not enter(accumulator.writing, timeout, entered):
                return False
            with self.lock:
                if accumulator.alone is not None:
                    written.append(accumulator.alone)
                    accumulator.alone = None
                batch = self._next(accumulator)
            while batch is not None:
                if not self._append(accumulator, batch, timeout, raising=raising):
                    return False
                done = batch
                if self._fsync:
                    written.append(batch)
                with self.lock:
                    accumulator.closed.popleft()
                    self.buffered -= batch.size
                    if self._fsync:
                        self._syncing.add(batch)
                    batch = self._next(accumulator)
                if not self._fsync:
                    self.settlement.settle(done)
        finally:
            if True in entered:
                accumulator.writing.release()
            if written:
                self._sync(accumulator, written)
        return True

    def _next(self, accumulator: Accumulator) -> RecordBatch | None:
        """The next batch to write of a partition; under `lock`."""
        if not accumulator.closed:
            self.buffered += accumulator.close()
        return accumulator.closed[0] if accumulator.closed else None

    def _encoded(self, batch: RecordBatch, writer: PartitionWriter) -> EncodedBatch:
        """The batch's bytes, as the topic wants them."""
        topic = writer.topic.config
        is_log_append_time = topic.message_timestamp_type == "LogAppendTime"
        return batch.encode(
            self._config.codec, self._number, log_append_time=is_log_append_time, key_index=topic.key_index
        )

    def _append(self, accumulator: Accumulator, batch: RecordBatch, timeout: float, *, raising: bool) -> bool:
        """Append one batch, or note why it failed; False when the lock was not free and the batch may still wait."""
        if batch.base_offset >= 0 or batch.error is not None:
            return True  # written before an interrupt that hit right after; or what it follows failed
        writer, batch.sent = accumulator.writer, monotonic()
        try:
            encoded = self._encoded(batch, writer)
            base_offset = writer.append(encoded, timeout and max(0.0, min(timeout, batch.deadline - monotonic())))
        except LockTimeoutError:
            if monotonic() < batch.deadline:
                if raising:
                    raise
                return False
            batch.error = DeliveryTimeoutError(
                f"{batch.count} records for partition {batch.partition} of topic {batch.topic!r} were not written "
                f"within {self._config.delivery_timeout_ms} ms: {writer.busy(self._config.delivery_timeout_ms / 1000)}"
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the deliveries
            batch.error = error
            if isinstance(error, UnknownTopicError):
                self._topic_gone(batch.topic)
        else:
            batch.note_written(base_offset)
        if batch.error is not None:
            with self.lock:
                self.buffered += accumulator.fail(batch)
        return True

    def _sync(self, accumulator: Accumulator, batches: list[RecordBatch]) -> None:
        """Make written batches durable, then settle them."""
        try:
            self._sync_once(accumulator, batches)
        except BaseException:  # Ctrl-C leaves nobody waiting
            self._sync_once(accumulator, batches)
            raise

    def _sync_once(self, accumulator: Accumulator, batches: list[RecordBatch]) -> None:
        end = max([batch.end_offset for batch in batches])
        failure: Exception | None = None
        if end >= 0:
            try:
                accumulator.writer.sync(end)
            except Exception as error:  # noqa: BLE001 - as in _append
                failure = error
        for batch in batches:
            with self.lock:
                is_mine, batch.settling = not batch.settling, True
            if is_mine:
                batch.error = batch.error or failure
                self.settlement.settle(batch)
        with self.lock:
            self._syncing.difference_update(batches)

    # --- waiting

    def complete(self, pending: PendingBatch, timeout: float | None) -> None:
        """See `Writer.complete`."""
        self._check_owned()
        assert isinstance(pending, RecordBatch)
        accumulator = pending.accumulator
        if pending is accumulator.alone:
            with self.lock:
                is_mine = pending is accumulator.alone
                if is_mine:
                    accumulator.alone = None
            if is_mine:
                self._sync(accumulator, [pending])
        limit = self._config.delivery_timeout_ms / 1000 if timeout is None else timeout
        deadline = monotonic() + limit
        while not pending.settled:
            left = max(0.0, deadline - monotonic())
            if not pending.claimed and pending.end_offset < 0:
                pending.claimed = True
                self._write(accumulator, left)
            pending.wait(min(left, _LOOK_SECONDS))  # if another thread is at it
            pending.claimed = False
            if left > _LOOK_SECONDS and pending in self._syncing:
                self._sync(accumulator, [pending])
            if monotonic() >= deadline and not pending.settled:
                raise DeliveryTimeoutError(
                    f"partition {pending.partition} of topic {pending.topic!r}: not written within {limit} s; it "
                    f"stays buffered: {accumulator.writer.busy(limit)}"
                )

    def complete_soon(self, pending: PendingBatch) -> None:
        """See `Writer.complete_soon`."""
        import asyncio  # noqa: PLC0415 - who awaits has it

        self._check_owned()
        assert isinstance(pending, RecordBatch)
        accumulator = pending.accumulator
        asyncio.get_running_loop().call_soon(self.write_now, accumulator)

    def flush(self, timeout: float | None) -> None:
        """Write everything accepted so far, and raise what failed unseen; see `Producer.flush`."""
        deadline = None if timeout is None else monotonic() + timeout
        with self.lock:
            everything = [one for accumulators in self._accumulators.values() for one in accumulators.values()]
            batches = [batch for one in everything for batch in (*one.closed, one.open) if batch is not None]
            batches += self._syncing
            # Another thread may be about to settle what it has written.
            busy = [one for one in everything if one.writing.locked()]
        for batch in batches:
            if batch.rows or batch.encoded is not None:
                self.complete(batch, None if deadline is None else max(0.0, deadline - monotonic()))
        for accumulator in busy:
            limit = self._config.delivery_timeout_ms / 1000
            self._write(accumulator, limit if deadline is None else max(0.0, deadline - monotonic()))
        self.settlement.raise_failures()

    def write_quietly(self) -> None:
        """Write what can be written without long waits; failures stay with their deliveries."""
        for accumulator in self._waiting():
            self._write(accumulator, _SENDER_LOCK_TIMEOUT)

    def shut(self, reason: str) -> bool:
        """Accept nothing from now on, and queue all that was accepted; False when that was done before."""
        with self.lock:
            if self._closed:
                return False
            self._closed = reason
            for accumulators in self._accumulators.values():
                for accumulator in accumulators.values():
                    self.buffered += accumulator.close()
            return True

    def end(self) -> None:
        """End the background thread."""
        self._sender.stop()

    def disown(self, reason: str) -> None:
        """This is a forked child: what is buffered belongs to the parent, and so does the thread."""
        self._closed = reason
        self._disowned = True
        self.lock = threading.Lock()
        self.buffered = 0
        self._accumulators = {}
        self._syncing = set()
        self._sender = Sender(self._write_due, 0)
