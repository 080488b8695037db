"""What a consumer measures: once per poll, and once per partition that a poll takes records from; never per record."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pystreamlog.embedded.tallies import Reading, Tallies, Tally, Times, reading
from pystreamlog.record.record import TopicPartition

__all__ = ["ConsumerMetrics", "FetchTally"]

_MS = 1000
_HOUR = 3600


class FetchTally(Tally):
    """What was read of one partition. One user at a time.

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
        if now >= self.rolls_at:
            self.roll(now)
        took = now - started
        self.fetches += 1
        self.fetched_bytes += size
        self.fetch_seconds += took
        if took > self.longest_fetch:  # noqa: PLR1730 - `max` takes four times as long
            self.longest_fetch = took
        if size > self.largest_fetch:  # noqa: PLR1730
            self.largest_fetch = size

    def consumed(self, now: float, records: int, size: int) -> None:
        """So many records, and bytes, are handed out."""
        if now >= self.rolls_at:
            self.roll(now)
        self.records += records
        self.bytes += size


class PollTally(Tally):
    """The polls of one consumer. One user at a time.

    Attributes:
        started: When the last poll began; 0 before the first.
        polls: That came to an end.
        gap_seconds: From one poll's beginning to the next one's, over all but the first.
        gaps: How many these are.
        inside_seconds: Within polls.
        whole_seconds: Within and between polls.
        longest_gap: Between two polls' beginnings.
    """

    __slots__ = (
        "_ended",
        "gap_seconds",
        "gaps",
        "inside_seconds",
        "longest_gap",
        "polls",
        "started",
        "whole_seconds",
    )

    SUMS = ("polls", "gaps", "gap_seconds", "inside_seconds", "whole_seconds")
    PEAKS = ("longest_gap",)

    polls: int
    gaps: int
    gap_seconds: float
    inside_seconds: float
    whole_seconds: float
    longest_gap: float

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.started = self._ended = 0.0

    def begin(self, now: float) -> None:
        """A poll begins."""
        if now >= self.rolls_at:
            self.roll(now)
        started, self.started = self.started, now
        self.polls += 1
        if started:
            gap = now - started
            self.gaps += 1
            self.gap_seconds += gap
            if gap > self.longest_gap:  # noqa: PLR1730
                self.longest_gap = gap

    def end(self, now: float) -> None:
        """It ends."""
        inside = now - self.started
        self.inside_seconds += inside
        self.whole_seconds += inside if not self._ended else now - self._ended
        self._ended = now


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
        self.polls = PollTally(started)
        self.commits = Times(started)
        self.rebalances = Times(started)
        self.failed_rebalances = Times(started)
        self._partitions: Tallies[TopicPartition, FetchTally] = Tallies(FetchTally)

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
            "poll-total": polls.totals["polls"],
            "last-poll-seconds-ago": now - self.polls.started if self.polls.started else -1,
            "time-between-poll-avg": polls.average("gap_seconds", "gaps") * _MS,
            "time-between-poll-max": polls.peaks["longest_gap"] * _MS,
            "poll-idle-ratio-avg": polls.average("inside_seconds", "whole_seconds"),
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
