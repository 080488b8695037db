"""What a consumer measures: once per poll, and once per partition that a poll takes records from; never per record."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pystreamlog.embedded.tallies import SAMPLE_SECONDS, Reading, Tallies, Tally, Times, reading
from pystreamlog.record.record import TopicPartition

__all__ = ["ConsumerMetrics", "FetchTally"]

_MS = 1000
_HOUR = 3600


class FetchTally(Tally):
    """What was read of one partition. One user at a time, who adds to the sums; a poll begins their samples.

    Attributes:
        fetches: Looks into the partition's files that found something.
        fetched_bytes: Of the batches that they found.
        fetch_seconds: That they took together.
        records: That were handed out.
        bytes: Their share of their batches' bytes.
        largest_fetch: In bytes.
        longest_fetch: In seconds.
    """

    __slots__ = ("bytes", "fetch_seconds", "fetched_bytes", "fetches", "largest_fetch", "longest_fetch", "records")

    SUMS = ("fetches", "fetched_bytes", "fetch_seconds", "records", "bytes")
    PEAKS = ("largest_fetch", "longest_fetch")

    fetches: int
    fetched_bytes: int
    fetch_seconds: float
    records: int
    bytes: int
    largest_fetch: int
    longest_fetch: float

    def fetched(self, started: float, now: float, size: int) -> None:
        """A look from `started` until `now` found that many bytes."""
        took = now - started
        self.fetches += 1
        self.fetched_bytes += size
        self.fetch_seconds += took
        if took > self.longest_fetch:  # noqa: PLR1730 - `max` takes four times as long
            self.longest_fetch = took
        if size > self.largest_fetch:  # noqa: PLR1730
            self.largest_fetch = size


class PollTally(Tally):
    """The polls of one consumer. One user at a time.

    Two of the sums are times: what they grew by is the time from one poll to another.

    Args:
        now: Monotonic time in seconds.
        fetched: Tallies that begin their samples when a poll begins, so that taking records needs no look at the clock.

    Attributes:
        started: When the last poll began, set by whoever polls; 0 before the first.
        before: When the last poll began that has returned.
        ended: When that returned.
        gaps: From one poll's beginning to the next one's.
        inside_seconds: Within polls.
        longest_gap: In seconds.
    """

    __slots__ = ("_fetched", "before", "ended", "gaps", "inside_seconds", "longest_gap", "started")

    SUMS = ("gaps", "before", "ended", "inside_seconds")
    PEAKS = ("longest_gap",)

    gaps: int
    before: float
    ended: float
    inside_seconds: float
    longest_gap: float

    def __init__(self, now: float, fetched: Tallies[TopicPartition, FetchTally]) -> None:
        super().__init__(now)
        self._fetched = fetched
        self.started = self.rolls_at = 0.0

    def roll(self, now: float) -> None:
        """Begin a sample; called by whoever begins a poll when it is due, and at the first poll."""
        if self.started:
            super().roll(now)
            self._fetched.roll(now)
            return
        self.before = self.ended = now
        first = now, (0, now, now, 0)
        self.marks = first, first
        self.gaps = -1
        self.rolls_at = now + SAMPLE_SECONDS

    def end(self, started: float, now: float) -> None:
        """A poll that began at `started` returns."""
        gap = started - self.before
        if gap > self.longest_gap:  # noqa: PLR1730
            self.longest_gap = gap
        self.gaps += 1
        self.before = started
        self.ended = now
        self.inside_seconds += now - started

    def count(self) -> int:
        """How many have returned."""
        return self.gaps + 1 if self.ended else 0


class ConsumerMetrics:
    """The counters of one consumer. Counted by its one user; read by any thread, without a lock.

    Args:
        now: Tells monotonic time in seconds.

    Attributes:
        now: As passed.
        polls: Its polls.
        commits: Its commits.
        rebalances: From the first step of each until the consumer owned what it was to own.
        failed_rebalances: How often the group went on without it.
    """

    __slots__ = ("_partitions", "commits", "failed_rebalances", "now", "polls", "rebalances")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        started = now()
        self.commits = Times(started)
        self.rebalances = Times(started)
        self.failed_rebalances = Times(started)
        self._partitions: Tallies[TopicPartition, FetchTally] = Tallies(FetchTally)
        self.polls = PollTally(started, self._partitions)

    def tally(self, tp: TopicPartition) -> FetchTally:
        """The tally of a partition."""
        return self._partitions.tally(tp, self.now())

    # --- reading

    def of_client(self) -> dict[str, float]:
        """All that was measured of the consumer as a whole."""
        now = self.now()
        found = self._partitions.read(now)
        polls = reading(PollTally, (self.polls,), now)
        commits = reading(Times, (self.commits,), now)
        rebalances = reading(Times, (self.rebalances,), now)
        failed = reading(Times, (self.failed_rebalances,), now)
        return {
            **_consumed(found),
            "fetch-total": found.totals["fetches"],
            "fetch-rate": found.rates["fetches"],
            "fetch-latency-avg": found.average("fetch_seconds", "fetches") * _MS,
            "fetch-latency-max": found.peaks["longest_fetch"] * _MS,
            "poll-total": self.polls.count(),
            "last-poll-seconds-ago": now - self.polls.started if self.polls.started else -1,
            "time-between-poll-avg": polls.average("before", "gaps") * _MS,
            "time-between-poll-max": polls.peaks["longest_gap"] * _MS,
            "poll-idle-ratio-avg": polls.average("inside_seconds", "ended"),
            "commit-total": commits.totals["count"],
            "commit-rate": commits.rates["count"],
            "commit-latency-avg": commits.average("seconds", "count") * _MS,
            "commit-latency-max": commits.peaks["longest"] * _MS,
            "rebalance-total": rebalances.totals["count"],
            "rebalance-rate-per-hour": rebalances.rates["count"] * _HOUR,
            "rebalance-latency-total": rebalances.totals["seconds"] * _MS,
            "rebalance-latency-avg": rebalances.average("seconds", "count") * _MS,
            "rebalance-latency-max": rebalances.peaks["longest"] * _MS,
            "failed-rebalance-total": failed.totals["count"],
            "failed-rebalance-rate-per-hour": failed.rates["count"] * _HOUR,
        }

    def by_topic(self) -> dict[str, dict[str, float]]:
        """What was read of each topic in the last hour."""
        now = self.now()
        topics: dict[str, list[FetchTally]] = {}
        for tp, tally in self._partitions.used(now).items():
            topics.setdefault(tp.topic, []).append(tally)
        return {topic: _of(tallies, now) for topic, tallies in topics.items()}

    def by_partition(self, assigned: Iterable[TopicPartition]) -> dict[TopicPartition, dict[str, float]]:
        """What was read of each partition in the last hour; and of those that are assigned."""
        now = self.now()
        found = {tp: _of((tally,), now) for tp, tally in self._partitions.used(now).items()}
        return {tp: _of((), now) for tp in assigned} | found


def _of(tallies: Iterable[FetchTally], now: float) -> dict[str, float]:
    return _consumed(reading(FetchTally, tallies, now))


def _consumed(found: Reading) -> dict[str, float]:
    """What is told of a consumer, a topic and a partition alike."""
    return {
        "records-consumed-total": found.totals["records"],
        "records-consumed-rate": found.rates["records"],
        "bytes-consumed-total": found.totals["bytes"],
        "bytes-consumed-rate": found.rates["bytes"],
        "fetch-size-avg": found.average("fetched_bytes", "fetches"),
        "fetch-size-max": found.peaks["largest_fetch"],
        "records-per-request-avg": found.average("records", "fetches"),
    }
