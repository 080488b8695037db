"""What a producer measures. Once per batch, and never per record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pystreamlog.embedded.tallies import Reading, Tallies, Tally, Waits, reading
from pystreamlog.record.record import TopicPartition

__all__ = ["ProducerMetrics", "SentTally"]

_NS = 1_000_000_000
_MS = 1000


class SentTally(Tally):
    """What was sent to one partition; the producer's lock is held while anything is added.

    Attributes:
        batches: That were acknowledged.
        records: In them.
        bytes: Of them, as they lie in the log.
        plain_bytes: What they would have without compression.
        errors: Records that failed.
        queue_seconds: From the first record's coming until the batch was about to be written, over all batches.
        latency_seconds: From then until it was acknowledged, over all batches.
        longest_queue: Of one batch, in seconds.
        longest_latency: Of one batch, in seconds.
        largest_batch: In bytes.
    """

    __slots__ = (
        "batches",
        "bytes",
        "errors",
        "largest_batch",
        "latency_seconds",
        "longest_latency",
        "longest_queue",
        "plain_bytes",
        "queue_seconds",
        "records",
    )

    SUMS = ("batches", "records", "bytes", "plain_bytes", "errors", "queue_seconds", "latency_seconds")
    PEAKS = ("longest_queue", "longest_latency", "largest_batch")

    batches: int
    records: int
    bytes: int
    plain_bytes: int
    errors: int
    queue_seconds: float
    latency_seconds: float
    longest_queue: float
    longest_latency: float
    largest_batch: int


class ProducerMetrics:
    """The counters of one producer. Safe from any thread; reading takes no lock.

    Args:
        now: Tells monotonic time in seconds.

    Attributes:
        now: As passed.
        lock: Held while something is counted; never for longer.
        spent_ns: How long calls of a kind took, in ns, by the metric's name.
        waiting_threads: How many threads wait for the buffer to have room.
    """

    __slots__ = ("_partitions", "_waits", "lock", "now", "spent_ns", "waiting_threads")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lock = threading.Lock()
        self.spent_ns = dict.fromkeys(
            (
                "flush-time-ns-total",
                "txn-init-time-ns-total",
                "txn-begin-time-ns-total",
                "txn-send-offsets-time-ns-total",
                "txn-commit-time-ns-total",
                "txn-abort-time-ns-total",
            ),
            0,
        )
        self.waiting_threads = 0
        self._waits = Waits(now())
        self._partitions: Tallies[TopicPartition, SentTally] = Tallies(SentTally)

    # --- counting

    def tally(self, topic: str, partition: int) -> SentTally:
        """The tally of a partition."""
        with self.lock:
            return self._partitions.tally(TopicPartition(topic, partition), self.now())

    def sent(self, tally: SentTally, records: int, size: int, plain_size: int, queued: float, sent: float) -> None:
        """A batch was acknowledged just now.

        Args:
            tally: The partition's.
            records: Records in it.
            size: Bytes of it.
            plain_size: Bytes that it would have without compression; 0 for as many.
            queued: When its first record came; 0 for no time before it was sent.
            sent: When it was about to be written.
        """
        now = self.now()
        latency = now - sent
        with self.lock:
            if now >= tally.rolls_at:
                tally.roll(now)
            tally.batches += 1
            tally.records += records
            tally.bytes += size
            tally.plain_bytes += plain_size or size
            tally.latency_seconds += latency
            if latency > tally.longest_latency:  # noqa: PLR1730 - `max` takes four times as long
                tally.longest_latency = latency
            if size > tally.largest_batch:  # noqa: PLR1730
                tally.largest_batch = size
            if queued:
                waited = sent - queued
                tally.queue_seconds += waited
                if waited > tally.longest_queue:  # noqa: PLR1730
                    tally.longest_queue = waited

    def failed(self, tally: SentTally, records: int) -> None:
        """Records failed."""
        now = self.now()
        with self.lock:
            if now >= tally.rolls_at:
                tally.roll(now)
            tally.errors += records

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the buffer to have room."""
        started = self.now()
        try:
            with self.lock:
                self.waiting_threads += 1
            yield
        finally:
            with self.lock:
                self.waiting_threads -= 1
                self._waits.add(started, self.now())

    @contextmanager
    def spending(self, name: str) -> Iterator[None]:
        """The block's time counts as spent under that name of `spent_ns`."""
        started = self.now()
        try:
            yield
        finally:
            with self.lock:
                self.spent_ns[name] += int((self.now() - started) * _NS)

    # --- reading

    def of_client(self) -> dict[str, float]:
        """All that was measured of the producer as a whole."""
        now = self.now()
        found = self._partitions.read(now)
        waits = reading(Waits, (self._waits,), now)
        return {
            **_sent(found),
            "record-size-avg": found.average("plain_bytes", "records"),
            "compression-rate-avg": found.average("bytes", "plain_bytes"),
            "batch-size-avg": found.average("bytes", "batches"),
            "batch-size-max": found.peaks["largest_batch"],
            "records-per-request-avg": found.average("records", "batches"),
            "request-total": found.totals["batches"],
            "request-rate": found.rates["batches"],
            "request-latency-avg": found.average("latency_seconds", "batches") * _MS,
            "request-latency-max": found.peaks["longest_latency"] * _MS,
            "record-queue-time-avg": found.average("queue_seconds", "batches") * _MS,
            "record-queue-time-max": found.peaks["longest_queue"] * _MS,
            "waiting-threads": self.waiting_threads,
            "bufferpool-wait-time-ns-total": int(waits.totals["seconds"] * _NS),
            "bufferpool-wait-ratio": waits.rates["seconds"],
            **self.spent_ns,
        }

    def by_topic(self) -> dict[str, dict[str, float]]:
        """What was sent to each topic in the last hour."""
        now = self.now()
        topics: dict[str, list[SentTally]] = {}
        for tp, tally in self._partitions.used(now).items():
            topics.setdefault(tp.topic, []).append(tally)
        return {topic: _narrow(tallies, now) for topic, tallies in topics.items()}

    def by_partition(self) -> dict[TopicPartition, dict[str, float]]:
        """What was sent to each partition in the last hour."""
        now = self.now()
        return {tp: _narrow((tally,), now) for tp, tally in self._partitions.used(now).items()}


def _sent(found: Reading) -> dict[str, float]:
    """What is told of a producer, a topic and a partition alike."""
    return {
        "record-send-total": found.totals["records"],
        "record-send-rate": found.rates["records"],
        "record-error-total": found.totals["errors"],
        "record-error-rate": found.rates["errors"],
        "byte-total": found.totals["bytes"],
        "byte-rate": found.rates["bytes"],
    }


def _narrow(tallies: Iterable[SentTally], now: float) -> dict[str, float]:
    """What is told of a topic or a partition."""
    found = reading(SentTally, tallies, now)
    return {**_sent(found), "compression-rate": found.average("bytes", "plain_bytes")}
