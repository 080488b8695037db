"""What `pystreamlog demo` ends with: records sent, acknowledged and read held against each other, and how fast it was.

A killed producer's records that were not acknowledged may have been written or not. Every other one must be read, and
only once but for this: what a killed consumer had read and not committed is read again by who takes over.

To see that, the stints of a partition are joined in the order in which they began. Each must begin where the one before
it ended; after one that a kill ended, at or behind the offset that it had committed, and not behind what it had read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import attrs

from pystreamlog.cli.demo_clients import (
    KEY_COUNT,
    PHASES,
    RECORD_SIZE,
    ConsumerReport,
    ProducerReport,
    Stint,
)

__all__ = ["Account", "Reader", "Reading", "Verdict"]


@attrs.frozen
class Reader:
    """A consumer.

    Attributes:
        name: Its name.
        report: The last that it reported.
        killed_ns: Monotonic time at which it was killed; 0 if it was not.
    """

    name: str
    report: ConsumerReport
    killed_ns: int = 0


@attrs.define
class Reading:
    """What all consumers have read together.

    Attributes:
        following: Sequence behind the last one that was read, by key.
        lost: Records that were skipped from one stint to the next.
        doubled: Records that were read in two stints and must not be.
        again: Records that a killed consumer had read, and not committed, and another one read.
        take_overs_ns: How long after the kill another one read in a partition, by partition.
    """

    following: dict[int, int] = attrs.field(factory=dict)
    lost: int = 0
    doubled: int = 0
    again: int = 0
    take_overs_ns: dict[int, int] = attrs.field(factory=dict)

    @classmethod
    def of(cls, readers: Sequence[Reader]) -> Reading:
        """Join the stints of all partitions."""
        reading = cls()
        partitions: dict[int, list[tuple[Stint, int]]] = {}
        for reader in readers:
            for stint in reader.report.stints:
                partitions.setdefault(stint.partition, []).append((stint, 0 if stint.ended else reader.killed_ns))
        for partition, stints in partitions.items():
            reading._join(partition, sorted(stints, key=lambda pair: pair[0].began_ns))
        return reading

    def _join(self, partition: int, stints: Sequence[tuple[Stint, int]]) -> None:
        """Join the stints of one partition, each with the time of the kill that ended it, or 0."""
        # The next stint must begin between these two offsets; the records between them may come again.
        low = high = 0
        killed_ns = 0
        for stint, killed_here_ns in stints:
            if stint.began_ns < killed_ns:  # there were two owners at a time
                low = high
            if killed_ns and stint.first_read_ns:
                self.take_overs_ns.setdefault(partition, stint.first_read_ns - killed_ns)
            skipped, repeated = self._follow(stint)
            self.lost += max(skipped, stint.begin - high)
            again = min(repeated, max(0, min(high, stint.end) - max(low, stint.begin)))
            self.again += again
            self.doubled += repeated - again
            high = max(high, stint.end)
            low = stint.committed if killed_here_ns else stint.end
            killed_ns = killed_here_ns or killed_ns

    def _follow(self, stint: Stint) -> tuple[int, int]:
        """Go on with what a stint read; how many records it skipped, and how many had been read before."""
        skipped = repeated = 0
        for key, first in stint.first.items():
            wanted = self.following.get(key, key % KEY_COUNT)
            skipped += max(0, first - wanted) // KEY_COUNT
            repeated += max(0, min(wanted, stint.following[key]) - first) // KEY_COUNT
            self.following[key] = max(wanted, stint.following[key])
        return skipped, repeated


@attrs.frozen
class Account:
    """What became of one producer's records.

    Attributes:
        name: The producer's.
        killed: It was killed.
        sent: Records that it sent, or was about to send when it was killed.
        acknowledged: Records that it knew to be written.
        read: Records that were read, each counted once.
        lost: Acknowledged records that come after the last one that was read of their key.
        made_up: Records that were read and never sent.
    """

    name: str
    killed: bool
    sent: int
    acknowledged: int
    read: int
    lost: int
    made_up: int

    @classmethod
    def of(cls, number: int, name: str, producer: ProducerReport, reading: Reading, *, killed: bool) -> Account:
        """Hold the last report of the producer of this number against what was read."""
        read = lost = made_up = 0
        for key_number in range(KEY_COUNT):
            found = _count(key_number, reading.following.get(number * KEY_COUNT + key_number, 0))
            read += found
            lost += max(0, _count(key_number, producer.acknowledged) - found)
            made_up += max(0, found - _count(key_number, producer.sent))
        return cls(name, killed, producer.sent, producer.acknowledged, read, lost, made_up)


def _count(key_number: int, end: int) -> int:
    """How many of the sequences below `end` belong to the key of this number."""
    return (end - key_number + KEY_COUNT - 1) // KEY_COUNT if end > key_number else 0


class Verdict:
    """The outcome; its `str` is what the screen shows.

    Args:
        accounts: One of each producer.
        readers: The consumers.
        reading: What they have read together.

    Attributes:
        faults: Number of records with each kind of fault.
    """

    def __init__(self, accounts: Sequence[Account], readers: Sequence[Reader], reading: Reading) -> None:
        self._accounts = accounts
        self._readers = readers
        self._reading = reading
        self._consumers = consumers = [reader.report for reader in readers]
        self.faults = {
            "lost": sum(consumer.lost for consumer in consumers)
            + reading.lost
            + sum(account.lost for account in accounts),
            "doubled": sum(consumer.doubled for consumer in consumers) + reading.doubled,
            "torn": sum(consumer.torn for consumer in consumers),
            "made up": sum(account.made_up for account in accounts),
        }

    @property
    def is_bad(self) -> bool:
        """Whether anything is wrong."""
        return any(self.faults.values())

    def __str__(self) -> str:
        return "\n".join(["", *self._counts(), "", *self._throughput(), *self._latencies(), "", *self._conclusion()])

    def _counts(self) -> Iterator[str]:
        yield f"{'':<12}{'sent':>14}{'acknowledged':>14}{'read':>14}"
        total = [0, 0, 0]
        for account in self._accounts:
            columns = account.sent, account.acknowledged, account.read
            total = [sum(pair) for pair in zip(total, columns, strict=True)]
            yield f"{account.name:<12}{_numbers(columns)}{'   killed' if account.killed else ''}"
        yield f"{'total':<12}{_numbers(total)}"

    def _throughput(self) -> Iterator[str]:
        """Of the burst, by what the records themselves say."""
        phase = PHASES.index("burst")
        count = sum(sum(consumer.latencies[phase].values()) for consumer in self._consumers if consumer.latencies)
        if count:
            bursts = [consumer for consumer in self._consumers if consumer.ended_ns]
            began_ns = min(consumer.began_ns for consumer in bursts)
            ended_ns = max(consumer.ended_ns for consumer in bursts)
            rate = count / (ended_ns - began_ns) * 1e9
            size = rate * RECORD_SIZE / 1e6
            yield f"throughput of the burst, first send to last read: {rate:,.0f} records/s, {size:,.1f} MB/s"
            yield ""

    def _latencies(self) -> Iterator[str]:
        """From `send` to `poll`, by the monotonic clock that all processes share."""
        yield f"{'latency':<12}{'records':>14}{'p50 ms':>14}{'p99 ms':>14}{'p99.9 ms':>14}"
        for number, phase in enumerate(PHASES):
            counter: Counter[int] = Counter()
            for consumer in self._consumers:
                if consumer.latencies:  # who was killed has none
                    counter.update(consumer.latencies[number])
            percentiles = "".join(f"{_percentile_ms(counter, percent):>14.2f}" for percent in (50, 99, 99.9))
            yield f"{phase:<12}{counter.total():>14,}{percentiles}"

    def _conclusion(self) -> Iterator[str]:
        yield ", ".join(f"{count:,} {fault}" for fault, count in self.faults.items())
        for account in self._accounts:
            if account.killed:
                more = max(0, account.read - account.acknowledged)
                yield f"{account.name} was killed before it heard of {more:,} more that had been written"
        for reader in self._readers:
            if reader.killed_ns:
                yield from self._take_over(reader)
        if self.is_bad:
            yield "FAILED: this must never happen; please report it"
        else:
            yield "every acknowledged record was read, in the order of its key, and once but for those"

    def _take_over(self, reader: Reader) -> Iterator[str]:
        held = [stint.partition for stint in reader.report.stints if not stint.ended]
        taken = [self._reading.take_overs_ns[number] for number in held if number in self._reading.take_overs_ns]
        longest = f"; the slowest take-over took {max(taken) / 1e6:.1f} ms" if taken else ""
        yield (
            f"{reader.name} was killed; others read on in {len(taken)} of its {len(held)} partitions{longest}\n"
            f"{self._reading.again:,} records that it had read and not committed were read again (at-least-once)"
        )


def _numbers(columns: Sequence[int]) -> str:
    return "".join(f"{number:>14,}" for number in columns)


def _percentile_ms(latencies_us: Counter[int], percent: float) -> float:
    """The latency, in ms, that so many percent of the records do not exceed."""
    left = latencies_us.total() * percent / 100
    for latency_us, count in sorted(latencies_us.items()):
        left -= count
        if left <= 0:
            return latency_us / 1000
    return 0.0
