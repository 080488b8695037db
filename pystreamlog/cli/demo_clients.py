"""What the processes of `pystreamlog demo` do: produce records that can be checked one by one, and check them.

Each is started as `python -m pystreamlog.cli.demo_clients`. Orders come in on standard input, a word a line; the end
of that input means that whoever gives them is gone. Reports go out on standard output, a JSON object a line; each says
all there is to say so far, so only the last whole line counts, also of a process that was killed.

A producer numbers its records from 0; the record of sequence s has the key number s modulo `KEY_COUNT`. So whoever
reads a key knows which record must come next, and a lost, doubled or torn one shows at once:

    value   producer u32, phase u32, sequence i64, time sent i64 (monotonic ns), 64 bytes, sequence again i64

The consumers are the members of one group. Which of them has a partition changes, so each reports its *stints*: from
when and where it had a partition, and how far it came in each key. It reports before each poll, and offsets are
committed within polls: so whatever is committed was reported before, also by a member that was killed.
"""

from __future__ import annotations

import os
import select
import struct
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic, monotonic_ns
from typing import Literal

import msgspec

import pystreamlog
from pystreamlog import Consumer, OffsetAndMetadata, TopicPartition

__all__ = [
    "KEY_COUNT",
    "PHASES",
    "PRODUCER_COUNT",
    "RECORD_SIZE",
    "TOPIC",
    "ConsumerReport",
    "Order",
    "ProducerReport",
    "Stint",
    "key_of",
]

TOPIC = "demo"
_GROUP = "demo"
_COMMIT_INTERVAL_MS = 200
"""Kafka's default of 5 s would have much of a short demo read twice."""
PRODUCER_COUNT = 2
KEY_COUNT = 48
PHASES = ("steady", "burst")

Order = Literal["steady", "burst", "pause", "stop"]
"""To a producer: send a record each millisecond, send as fast as it can, send nothing, end. To a consumer: end."""

_VALUE = struct.Struct("<IIqq64sq")
_FILLING = bytes(range(64))
_STEADY_INTERVAL = 0.001
_CHUNK = 50 * KEY_COUNT
"""Records per `send_many` of a burst."""
_POLL_TIMEOUT = 0.05
_MAX_POLL_RECORDS = 5000


def key_of(producer: int, sequence: int) -> bytes:
    """The key of a producer's record."""
    return b"p%d-key%02d" % (producer, sequence % KEY_COUNT)


_KEYS = [[key_of(producer, number) for number in range(KEY_COUNT)] for producer in range(PRODUCER_COUNT)]

RECORD_SIZE = _VALUE.size + len(key_of(0, 0))
"""Bytes of one record's key and value."""


class ProducerReport(msgspec.Struct):
    """What a producer did so far; `sent` is said before the sending, `acknowledged` after the acknowledgement."""

    sent: int = 0
    acknowledged: int = 0


class Stint(msgspec.Struct):
    """One member's time with one partition.

    Attributes:
        partition: The partition.
        begin: Offset at which it began.
        end: Offset behind the last record that it read.
        began_ns: Monotonic time at which it began.
        committed: Offset that is known to be committed.
        ended: The partition was given up, and all that was read is committed.
        first_read_ns: Monotonic time at which it read its first record; 0 without one.
        first: Sequence of the first record that it read of a key. A key is the number of its producer times `KEY_COUNT`
            plus its own.
        following: Sequence of the record that must come next, by key.
    """

    partition: int
    begin: int
    end: int
    began_ns: int
    committed: int
    ended: bool = False
    first_read_ns: int = 0
    first: dict[int, int] = {}
    following: dict[int, int] = {}


class ConsumerReport(msgspec.Struct):
    """What a consumer read so far.

    Attributes:
        read: Records that were as and where they must be.
        lost: Records that were skipped within a stint.
        doubled: Records that had been read before in the same stint.
        torn: Records that are none: wrong size, parts of two, another's key.
        stints: In the order in which they began.
        latencies: Number of records by latency in us, by phase; at the end only. Without those sent before the stint
            began: they waited for a take-over, and not for the log.
        began_ns: Monotonic time when the first record of the burst was sent; 0 without one.
        ended_ns: Monotonic time when the last record of the burst was read; 0 without one.
    """

    read: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    stints: list[Stint] = []
    latencies: list[dict[int, int]] = []
    began_ns: int = 0
    ended_ns: int = 0


def _say(report: ProducerReport | ConsumerReport) -> None:
    data = memoryview(msgspec.json.encode(report) + b"\n")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


class _Orders:
    """The orders that come in on standard input."""

    def __init__(self) -> None:
        self._stdin = sys.stdin.fileno()
        self.last = "pause"

    def listen(self, timeout: float | None) -> str:
        """The last order there is; waits up to `timeout` seconds for another.

        Raises:
            SystemExit: Nobody is left to give any.
        """
        if select.select([self._stdin], [], [], timeout)[0]:
            # Orders are far apart and shorter than a pipe's atomic write, so they come whole.
            words = os.read(self._stdin, 4096).split()
            if not words:
                raise SystemExit(1)
            self.last = words[-1].decode()
        return self.last


def _produce(directory: str, number: int) -> None:
    """Send what the orders say, one `send` or `send_many` at a time, each acknowledged before the next."""
    orders = _Orders()
    report = ProducerReport()
    keys = _KEYS[number] * (_CHUNK // KEY_COUNT + 1)
    sequence = 0
    due = 0.0
    with pystreamlog.open(directory, create=False) as log, log.producer() as producer:
        _say(report)
        while (order := orders.listen(max(0.0, due - monotonic()))) != "stop":
            if order == "pause":
                _say(report)
                orders.listen(None)
                continue
            count, due = (1, monotonic() + _STEADY_INTERVAL) if order == "steady" else (_CHUNK, 0.0)
            report.sent = sequence + count
            _say(report)
            phase = PHASES.index(order)
            now_ns = monotonic_ns()
            values = [_VALUE.pack(number, phase, s, now_ns, _FILLING, s) for s in range(sequence, sequence + count)]
            first = sequence % KEY_COUNT
            if count == 1:
                producer.send(TOPIC, values[0], keys[first]).result()
            else:
                producer.send_many(TOPIC, values, keys[first : first + count]).result()
            sequence += count
            report.acknowledged = sequence
        _say(report)


class _Tally:
    """Checks each record against those before it. Is told by the consumer what comes, what goes, what is committed."""

    def __init__(self) -> None:
        self.report = ConsumerReport()
        self._latencies: list[Counter[int]] = [Counter() for _ in PHASES]
        self._stints: dict[int, Stint] = {}

    # --- what the consumer tells

    def on_assign(self, consumer: Consumer[bytes, bytes], added: Sequence[TopicPartition]) -> None:
        """Partitions came."""
        for tp in added:
            self.begin(tp.partition, consumer.position(tp), monotonic_ns())

    def on_revoke(self, _: object, removed: Sequence[TopicPartition]) -> None:
        """Partitions go; what was read of them is committed before another member has them."""
        for tp in removed:
            self._stints.pop(tp.partition).ended = True

    def on_commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Offsets were committed."""
        for tp, (offset, _) in offsets.items():
            if tp.partition in self._stints:
                self._stints[tp.partition].committed = offset

    # --- what it reads

    def begin(self, partition: int, offset: int, now_ns: int) -> None:
        """A stint begins at that offset."""
        stint = self._stints[partition] = Stint(partition, offset, offset, now_ns, offset)
        self.report.stints.append(stint)

    def add(
        self,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        now_ns: int,
        *,
        end: int | None = None,
    ) -> None:
        """Check records of a partition that were handed out at `now_ns`, in their order; `end` is behind the last."""
        report, stint = self.report, self._stints[partition]
        following, began_ns = stint.following, stint.began_ns
        stint.end = stint.end + len(keys) if end is None else end
        stint.first_read_ns = stint.first_read_ns or now_ns
        for key, value in zip(keys, values, strict=True):
            try:
                number, phase, sequence, sent_ns, filling, again = _VALUE.unpack(value)  # type: ignore[arg-type]
                whole = (sequence, filling, key) == (again, _FILLING, _KEYS[number][sequence % KEY_COUNT])
                latencies = self._latencies[phase]
            except (struct.error, TypeError, IndexError):
                whole = False
            if not whole:
                report.torn += 1
                continue
            place = number * KEY_COUNT + sequence % KEY_COUNT
            wanted = following.get(place)
            if wanted is None:
                stint.first[place] = sequence
            elif sequence < wanted:
                report.doubled += 1
                continue
            else:
                report.lost += (sequence - wanted) // KEY_COUNT
            report.read += 1
            following[place] = sequence + KEY_COUNT
            if sent_ns >= began_ns:
                latencies[(now_ns - sent_ns) // 1000] += 1
            if phase:
                report.began_ns = min(report.began_ns or sent_ns, sent_ns)
                report.ended_ns = now_ns

    def finish(self) -> ConsumerReport:
        """The whole report."""
        self.report.latencies = [dict(counter) for counter in self._latencies]
        return self.report


def _consume(directory: str) -> None:
    """Read and check until it is told to end and nothing is left."""
    orders = _Orders()
    tally = _Tally()
    with (
        pystreamlog.open(directory, create=False) as log,
        log.consumer(
            TOPIC,
            group_id=_GROUP,
            auto_offset_reset="earliest",
            auto_commit_interval_ms=_COMMIT_INTERVAL_MS,
            max_poll_records=_MAX_POLL_RECORDS,
            on_assign=tally.on_assign,
            on_revoke=tally.on_revoke,
            interceptors=[tally],
        ) as consumer,
    ):
        while True:
            _say(tally.report)
            # Asked before the poll: once it is said, all has been written, and a poll that finds nothing is the last.
            ending = orders.listen(0) == "stop"
            records = consumer.poll(0 if ending else _POLL_TIMEOUT)
            now_ns = monotonic_ns()
            for tp, part in records.by_partition().items():
                tally.add(tp.partition, part.keys, part.values, now_ns, end=part.last_offsets()[tp] + 1)
            if ending and not records:
                break
    _say(tally.finish())


def _main(role: str, directory: str, *numbers: str) -> None:
    try:
        if role == "produce":
            _produce(directory, int(numbers[0]))
        else:
            _consume(directory)
    except BrokenPipeError:  # nobody is left to report to
        raise SystemExit(1) from None


if __name__ == "__main__":
    _main(*sys.argv[1:])
