"""What a producer measures. Once per batch, and never per record."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import sub

from pystreamlog.coordination.locks import enter
from pystreamlog.embedded.tallies import Reading, Tallies, Tally, Waits, reading
from pystreamlog.record.record import TopicPartition

__all__ = ["ProducerMetrics", "SentTally"]

Note = tuple["SentTally", int, int, int, float, float, float]
"""A batch that was acknowledged: what `ProducerMetrics.sent` is given, and when."""

_NOTES = 128
"""So many batches are noted before they are counted; 20 KiB."""
_PATIENCE = 0.05
"""Seconds that reading waits for who is counting; that is no signal handler's, who would wait for itself."""
_COLUMN = 6
"""From so many batches of one partition on, `add` is quicker than `add_one` for each."""

_NS = 1_000_000_000
_MS = 1000


class SentTally(Tally):
    """What was sent to one partition; the producer's lock is held while anything is added.

    Attributes:
        batches: That were acknowledged.
        records: In them.
        bytes: Of them, as they lie in the log.
        saved_bytes: How many more they would have without compression.
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
        "queue_seconds",
        "records",
        "saved_bytes",
    )

    SUMS = ("batches", "records", "bytes", "saved_bytes", "errors", "queue_seconds", "latency_seconds")
    PEAKS = ("longest_queue", "longest_latency", "largest_batch")

    batches: int
    records: int
    bytes: int
    saved_bytes: int
    errors: int
    queue_seconds: float
    latency_seconds: float
    longest_queue: float
    longest_latency: float
    largest_batch: int

    def add_one(self, note: Note) -> None:
        """Count a batch that was noted."""
        _, records, size, plain_size, queued, sent, noted = note
        self.batches += 1
        self.records += records
        self.bytes += size
        if plain_size:
            self.saved_bytes += plain_size - size
        latency = noted - sent
        self.latency_seconds += latency
        self.longest_latency = max(self.longest_latency, latency)
        self.largest_batch = max(self.largest_batch, size)
        if queued:
            self.queue_seconds += sent - queued
            self.longest_queue = max(self.longest_queue, sent - queued)

    def add(self, notes: list[Note]) -> None:
        """Count several batches that were noted in one sample: `add_one` for columns, at a fifth of the cost."""
        _, records, sizes, plain_sizes, queued, sent, noted = zip(*notes, strict=True)
        self.batches += len(records)
        self.records += sum(records)
        self.bytes += sum(sizes)
        self.saved_bytes += sum(plain - size for plain, size in zip(plain_sizes, sizes, strict=True) if plain)
        latencies = list(map(sub, noted, sent))
        self.latency_seconds += sum(latencies)
        self.longest_latency = max(self.longest_latency, *latencies)
        self.largest_batch = max(self.largest_batch, *sizes)
        waits = [end - start for start, end in zip(queued, sent, strict=True) if start]
        self.queue_seconds += sum(waits)
        self.longest_queue = max(self.longest_queue, *waits, 0)


class ProducerMetrics:
    """The counters of one producer. Safe from any thread.

    Args:
        now: Tells monotonic time in seconds.

    Attributes:
        now: As passed.
        lock: Held while something is counted; never for longer.
        spent: How long calls of a kind took, in seconds, by the metric's name.
        waiting_threads: How many threads wait for the buffer to have room.
    """

    __slots__ = ("_notes", "_partitions", "_waits", "lock", "now", "spent", "waiting_threads")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._notes: deque[Note] = deque()
        self.lock = threading.Lock()
        self.spent = dict.fromkeys(
            (
                "flush-time-ns-total",
                "txn-init-time-ns-total",
                "txn-begin-time-ns-total",
                "txn-send-offsets-time-ns-total",
                "txn-commit-time-ns-total",
                "txn-abort-time-ns-total",
            ),
            0.0,
        )
        self.waiting_threads = 0
        self._waits = Waits(now())
        self._partitions: Tallies[TopicPartition, SentTally] = Tallies(SentTally)

    # --- counting

    def tally(self, topic: str, partition: int) -> SentTally:
        """The tally of a partition."""
        found = self._partitions.get((topic, partition))
        if found is not None:
            return found
        with self.lock:
            return self._partitions.tally(TopicPartition(topic, partition), self.now())

    def sent(self, tally: SentTally, records: int, size: int, plain_size: int, queued: float, sent: float) -> None:
        """A batch was acknowledged just now.

        It is only noted: to count it here would take half as long again, as little of that code would be in the
        processor's caches.

        Args:
            tally: The partition's.
            records: Records in it.
            size: Bytes of it.
            plain_size: Bytes that it would have without compression; 0 for as many.
            queued: When its first record came; 0 for no time before it was sent.
            sent: When it was about to be written.
        """
        notes = self._notes
        notes.append((tally, records, size, plain_size, queued, sent, self.now()))
        if len(notes) >= _NOTES:
            self._count_notes(0)

    def _count_notes(self, timeout: float) -> None:
        """Count what was noted, unless another thread is at it for that many seconds."""
        entered: list[bool] = []
        try:
            if self._notes and enter(self.lock, timeout, entered):
                notes = []
                with suppress(IndexError):
                    while True:
                        notes.append(self._notes.popleft())
                self._count(notes)
        finally:
            if True in entered:
                self.lock.release()

    def _count(self, notes: list[Note]) -> None:
        """Count batches that were noted, those of one partition after the other."""
        groups: dict[SentTally, list[Note]] = {}
        for note in notes:
            groups.setdefault(note[0], []).append(note)
        for tally, group in groups.items():
            self._partitions.revive(tally)
            if group[-1][-1] < tally.rolls_at and len(group) >= _COLUMN:
                tally.add(group)
                continue
            for note in group:
                if note[-1] >= tally.rolls_at:
                    tally.roll(note[-1])
                tally.add_one(note)

    def failed(self, tally: SentTally, records: int) -> None:
        """Records failed."""
        now = self.now()
        with self.lock:
            self._partitions.revive(tally)
            if now >= tally.rolls_at:
                tally.roll(now)
            tally.errors += records

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the buffer to have room."""
        started = self.now()
        with self.lock:
            self.waiting_threads += 1
        try:
            yield
        finally:
            with self.lock:
                self.waiting_threads -= 1
                self._waits.add(started, self.now())

    def spend(self, name: str, started: float) -> None:
        """A call took from `started` until now; to be counted under that name of `spent`."""
        took = self.now() - started
        with self.lock:
            self.spent[name] += took

    # --- reading

    def of_client(self) -> dict[str, float]:
        """All that was measured of the producer as a whole."""
        self._count_notes(_PATIENCE)
        now = self.now()
        found = self._partitions.read(now)
        waits = reading(Waits, (self._waits,), now)
        return {
            **_sent(found),
            "record-size-avg": _plain_bytes(found) / max(1, found.recent["records"]),
            "compression-rate-avg": _compression_rate(found),
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
            **{name: int(seconds * _NS) for name, seconds in self.spent.items()},
        }

    def by_topic(self) -> dict[str, dict[str, float]]:
        """What was sent to each topic in the last hour."""
        self._count_notes(_PATIENCE)
        now = self.now()
        topics: dict[str, list[SentTally]] = {}
        for tp, tally in self._partitions.used(now).items():
            topics.setdefault(tp.topic, []).append(tally)
        return {topic: _narrow(tallies, now) for topic, tallies in topics.items()}

    def by_partition(self) -> dict[TopicPartition, dict[str, float]]:
        """What was sent to each partition in the last hour."""
        self._count_notes(_PATIENCE)
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
    return {**_sent(found), "compression-rate": _compression_rate(found)}


def _compression_rate(found: Reading) -> float:
    plain_bytes = _plain_bytes(found)
    return found.recent["bytes"] / plain_bytes if plain_bytes else 0.0


def _plain_bytes(found: Reading) -> float:
    return found.recent["bytes"] + found.recent["saved_bytes"]
