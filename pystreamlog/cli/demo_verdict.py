"""What `pystreamlog demo` ends with: records sent, acknowledged and read held against each other, and how fast it was.

A killed producer's records that were not acknowledged may have been written or not. Every other one must be read, once.
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
    key_of,
)

__all__ = ["Account", "Verdict"]


@attrs.frozen
class Account:
    """What became of one producer's records.

    Attributes:
        name: The producer's.
        killed: It was killed.
        sent: Records that it sent, or was about to send when it was killed.
        acknowledged: Records that it knew to be written.
        read: Records that were read.
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
    def of(
        cls, number: int, name: str, producer: ProducerReport, consumers: Sequence[ConsumerReport], *, killed: bool
    ) -> Account:
        """Hold the last report of the producer of this number against the last ones of all consumers."""
        read = lost = made_up = 0
        for key_number in range(KEY_COUNT):
            key = key_of(number, key_number).decode()
            found = _count(key_number, max(consumer.expected.get(key, 0) for consumer in consumers))
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
        consumers: The last report of each.

    Attributes:
        faults: Number of records with each kind of fault.
    """

    def __init__(self, accounts: Sequence[Account], consumers: Sequence[ConsumerReport]) -> None:
        self._accounts = accounts
        self._consumers = consumers
        skipped = sum(consumer.lost for consumer in consumers)
        read = sum(consumer.read for consumer in consumers)
        self.faults = {
            "lost": skipped + sum(account.lost for account in accounts),
            # What two consumers have read both shows in the sum alone.
            "doubled": sum(consumer.doubled for consumer in consumers)
            + max(0, read + skipped - sum(account.read for account in accounts)),
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
        count = sum(sum(consumer.latencies[phase].values()) for consumer in self._consumers)
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
                counter.update(consumer.latencies[number])
            percentiles = "".join(f"{_percentile_ms(counter, percent):>14.2f}" for percent in (50, 99, 99.9))
            yield f"{phase:<12}{counter.total():>14,}{percentiles}"

    def _conclusion(self) -> Iterator[str]:
        yield ", ".join(f"{count:,} {fault}" for fault, count in self.faults.items())
        for account in self._accounts:
            if account.killed:
                more = max(0, account.read - account.acknowledged)
                yield f"{account.name} was killed before it heard of {more:,} more that had been written"
        if self.is_bad:
            yield "FAILED: this must never happen; please report it"
        else:
            yield "every acknowledged record was read, once and in the order of its key"


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
