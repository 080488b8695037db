"""What a send gives back: the promise of an acknowledgement.

Records that are written together share one `PendingBatch`; a `Delivery` is a batch and an index into it, a
`Deliveries` some ranges of batches. So a million deliveries cost a million small structs outside the garbage
collector, and one acknowledgement settles thousands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from itertools import chain
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pystreamlog.record.record import BatchMetadata, RecordMetadata

if TYPE_CHECKING:
    import asyncio
    import logging

__all__ = ["Deliveries", "Delivery", "PendingBatch", "Span", "Writer"]


def _log() -> logging.Logger:
    """The library's logger; imported when there is something to say, as it is a tenth of the import time."""
    import logging  # noqa: PLC0415 - see above

    return logging.getLogger("pystreamlog")


_guard = threading.Lock()
"""Held while a batch gets its set of records that somebody looked at: two threads must not make two."""


class Writer(Protocol):
    """Who writes a pending batch: the producer's side of a delivery."""

    def complete(self, pending: PendingBatch, timeout: float | None) -> None:
        """Write and acknowledge the batch now, and all before it; returns when it is settled.

        Raises:
            DeliveryTimeoutError: Not within `timeout` seconds; the batch stays pending.
        """

    def complete_soon(self, pending: PendingBatch) -> None:
        """Write the batch at the end of the running event loop's turn, and never block the loop."""


class PendingBatch:
    """Records of one partition that are acknowledged together, and after that, where they lie.

    Attributes:
        topic: The topic's name.
        partition: The partition.
        count: Records.
        settled: Acknowledged or failed.
        base_offset: Offset of the first record, once acknowledged.
        offsets: Offset of each record, where some had been appended before (-1 where that is too long ago to tell);
            None when they lie one after the other from `base_offset` on.
        timestamps_ms: Timestamps, one per record, or one for all when the log set it.
        error: Why it failed; None otherwise.
    """

    __slots__ = (
        "_callbacks",
        "_looked_at",
        "base_offset",
        "count",
        "error",
        "offsets",
        "partition",
        "settled",
        "timestamps_ms",
        "topic",
        "writer",
    )

    def __init__(self, topic: str, partition: int, writer: Writer) -> None:
        self.topic = topic
        self.partition = partition
        self.writer = writer
        self.count = 0
        self.settled = False
        self.base_offset = -1
        self.offsets: Sequence[int] | None = None
        self.timestamps_ms: Sequence[int] | int = ()
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._looked_at: set[int] | None = None

    def when_settled(self, callback: Callable[[], object]) -> bool:
        """Have `callback` called by the thread that settles the batch; False if that has happened already."""
        if self.settled:
            return False
        self._callbacks.append(callback)
        # It may have been settled between the two lines; whoever takes the callback out of the list calls it.
        return not (self._is_settled() and self._take(callback))

    def wait(self, timeout: float) -> None:
        """Wait for another thread that is about to settle the batch, for so many seconds at most."""
        if self.settled:
            return
        done = threading.Lock()  # a fifth of the cost of an event
        done.acquire()
        if self.when_settled(done.release):
            done.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))

    def _is_settled(self) -> bool:
        return self.settled

    def _take(self, callback: Callable[[], object]) -> bool:
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return False
        return True

    def settle(self, *, base_offset: int = -1, error: BaseException | None = None) -> None:
        """Acknowledge or fail the batch, once, and run what waits for that."""
        self.base_offset = base_offset
        self.error = error
        self.settled = True
        self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # the thread that brought it took it back
                break
            try:
                self.call(callback)
            except BaseException:  # Ctrl-C in one callback keeps nobody else waiting
                self._call_back()
                raise

    def call(self, callback: Callable[[], object]) -> None:
        """Run a user's callback; one that raises is logged, as the writing thread must go on."""
        try:
            callback()
        except Exception:  # noqa: BLE001 - whatever a user's function raises
            _log().exception("a delivery callback of topic %r raised", self.topic)

    def look_at(self, indices: Sequence[int]) -> None:
        """Somebody takes notice of these records' outcome."""
        if self._looked_at is None:
            with _guard:
                if self._looked_at is None:
                    self._looked_at = set()
        self._looked_at.update(indices)

    def overlooked(self) -> int:
        """How many records nobody took notice of."""
        return self.count - len(self._looked_at or ())

    def offset(self, index: int) -> int:
        """The offset of one record."""
        return self.base_offset + index if self.offsets is None else self.offsets[index]

    def timestamp_ms(self, index: int) -> int:
        """The stored timestamp of one record."""
        timestamps = self.timestamps_ms
        return timestamps if isinstance(timestamps, int) else timestamps[index]


class Delivery(msgspec.Struct, gc=False, eq=False):
    """The promise of one record's acknowledgement; awaitable. Safe from any thread."""

    _pending: PendingBatch
    _index: int

    def done(self) -> bool:
        """Whether the record was acknowledged or failed."""
        return self._pending.settled

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record lies; writes what it waits for.

        Args:
            timeout: Seconds to wait; None waits as long as the producer's `delivery_timeout_ms` lets it.

        Raises:
            DeliveryTimeoutError: It was not written in time; it may be later.
            StorageError: The disk is full or failed; the record was not written.
            UnknownTopicError: The topic was deleted meanwhile; the record was not written.
            ClosedError: The producer belongs to the process that this one was forked from.
        """
        pending = self._pending
        if not pending.settled:
            pending.writer.complete(pending, timeout)
        if pending.error is not None:
            pending.look_at((self._index,))
            raise pending.error
        index = self._index
        timestamp_ms = pending.timestamp_ms(index)
        return RecordMetadata(pending.topic, pending.partition, pending.offset(index), timestamp_ms)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None."""
        pending = self._pending
        if not pending.settled:
            pending.writer.complete(pending, timeout)
        if pending.error is not None:
            pending.look_at((self._index,))
        return pending.error

    def add_done_callback(self, callback: Callable[[Delivery], object]) -> None:
        """Have `callback(delivery)` called by the writing thread, or at once if it is done. It must not block."""
        self._pending.look_at((self._index,))
        pending = self._pending

        def call() -> None:
            callback(self)

        if not pending.when_settled(call):
            pending.call(call)

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        """As `result`; writing waits for the end of the event loop's turn, so that concurrent sends share a batch."""
        yield from _settled(self._pending).__await__()
        return self.result(0)


class Span(msgspec.Struct, frozen=True):
    """Records of a `send_many` in one batch.

    Attributes:
        pending: The batch.
        start: Index of the first one in the batch.
        indices: Which of the sent records they are, in the batch's order.
    """

    pending: PendingBatch
    start: int
    indices: Sequence[int]


class Deliveries:
    """The promises of one `send_many`, in the order of its values; awaitable. Safe from any thread."""

    __slots__ = ("_count", "_spans", "_topic")

    def __init__(self, topic: str, spans: Sequence[Span]) -> None:
        self._topic = topic
        self._spans = spans
        self._count = sum(len(span.indices) for span in spans)

    def __len__(self) -> int:
        return self._count

    def done(self) -> bool:
        """Whether all were acknowledged or failed."""
        return all(span.pending.settled for span in self._spans)

    def result(self, timeout: float | None = None) -> BatchMetadata:
        """Where the records lie.

        Args:
            timeout: Seconds to wait; None waits as long as `delivery_timeout_ms` lets it.

        Raises:
            ExceptionGroup: Some records were not written; each error carries `.indices`, which records it is about.
            DeliveryTimeoutError: Not all were written in time; they may be later.
        """
        deadline = None if timeout is None else monotonic() + timeout
        for span in self._spans:
            if not span.pending.settled:
                left = None if deadline is None else max(0.0, deadline - monotonic())
                span.pending.writer.complete(span.pending, left)
        failures = []
        for span in self._spans:
            if span.pending.error is not None:
                span.pending.look_at(range(span.start, span.start + len(span.indices)))
                failures.append(_failure(span))
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(self._spans)} batches were not written", failures)
        return self._metadata()

    def _metadata(self) -> BatchMetadata:
        spans = self._spans
        lengths = [len(span.indices) for span in spans]
        partitions = list(chain.from_iterable([s.pending.partition] * n for s, n in zip(spans, lengths, strict=True)))
        offsets = list(chain.from_iterable(map(_offsets, spans)))
        timestamps = list(chain.from_iterable(map(_timestamps, spans)))
        order = list(chain.from_iterable(span.indices for span in spans))
        if order != list(range(self._count)):
            back = sorted(range(self._count), key=order.__getitem__)
            pick = itemgetter(*back)
            partitions, offsets, timestamps = list(pick(partitions)), list(pick(offsets)), list(pick(timestamps))
        return BatchMetadata(self._topic, partitions, offsets, timestamps)

    def __await__(self) -> Generator[Any, None, BatchMetadata]:
        """As `result`; writing waits for the end of the event loop's turn, as for a `Delivery`."""
        for span in self._spans:
            if not span.pending.settled:
                span.pending.writer.complete_soon(span.pending)
        for span in self._spans:
            yield from _settled(span.pending).__await__()
        return self.result(0)


def _offsets(span: Span) -> Sequence[int]:
    pending, start, stop = span.pending, span.start, span.start + len(span.indices)
    if pending.offsets is not None:
        return pending.offsets[start:stop]
    return range(pending.base_offset + start, pending.base_offset + stop)


def _timestamps(span: Span) -> list[int]:
    timestamps, count = span.pending.timestamps_ms, len(span.indices)
    return [timestamps] * count if isinstance(timestamps, int) else list(timestamps[span.start : span.start + count])


def _failure(span: Span) -> Exception:
    """The batch's error for these records: an exception of its own, as one batch may fail several `send_many`s."""
    error = span.pending.error
    assert isinstance(error, Exception)
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__, indices=list(span.indices))
    copy.__cause__ = error
    return copy


async def _settled(pending: PendingBatch) -> None:
    """Wait for a batch without blocking the event loop. Cancelling it cancels nothing but the waiting."""
    if pending.settled:
        return
    import asyncio  # noqa: PLC0415 - who awaits has it

    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def settled() -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            _log().debug("the event loop that awaited a delivery is closed")

    if pending.when_settled(settled):
        pending.writer.complete_soon(pending)
        await waiter
