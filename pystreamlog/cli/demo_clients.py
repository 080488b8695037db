"""What the processes of `pystreamlog demo` do: produce records that can be checked one by one, and check them.

Each is started as `python -m pystreamlog.cli.demo_clients`. Orders come in on standard input, a word a line; the end
of that input means that whoever gives them is gone. Reports go out on standard output, a JSON object a line; each says
all there is to say so far, so only the last whole line counts, also of a process that was killed.

A producer numbers its records from 0; the record of sequence s has the key number s modulo `KEY_COUNT`. So whoever
reads a key knows which record must come next, and a lost, doubled or torn one shows at once:

    value   producer u32, phase u32, sequence i64, time sent i64 (monotonic ns), 64 bytes, sequence again i64
"""

from __future__ import annotations

import os
import select
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from time import monotonic, monotonic_ns
from typing import Literal

import msgspec

import pystreamlog
from pystreamlog import TopicPartition

__all__ = [
    "KEY_COUNT",
    "PHASES",
    "PRODUCER_COUNT",
    "RECORD_SIZE",
    "TOPIC",
    "ConsumerReport",
    "Order",
    "ProducerReport",
    "key_of",
]

TOPIC = "demo"
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


class ConsumerReport(msgspec.Struct):
    """What a consumer read so far.

    Attributes:
        read: Records that were as and where they must be.
        lost: Records that were skipped.
        doubled: Records that had been read before.
        torn: Records that are none: wrong size, parts of two, another's key.
        expected: Sequence of the record that must come next, by key.
        latencies: Number of records by latency in us, by phase; at the end only.
        began_ns: Monotonic time when the first record of the burst was sent; 0 without one.
        ended_ns: Monotonic time when the last record of the burst was read; 0 without one.
    """

    read: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    expected: dict[str, int] = {}
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
    """Checks each record against those before it."""

    def __init__(self) -> None:
        self.report = ConsumerReport()
        self._latencies: list[Counter[int]] = [Counter() for _ in PHASES]
        self._expected: dict[bytes, int] = {}

    def add(self, keys: Sequence[bytes | None], values: Sequence[bytes | None], now_ns: int) -> None:
        """Check records that were handed out at `now_ns`, in their order."""
        report = self.report
        expected = self._expected
        for key, value in zip(keys, values, strict=True):
            try:
                number, phase, sequence, sent_ns, filling, again = _VALUE.unpack(value)  # type: ignore[arg-type]
                whole = (sequence, filling, key) == (again, _FILLING, _KEYS[number][sequence % KEY_COUNT])
                latencies = self._latencies[phase]
            except (struct.error, TypeError, IndexError):
                whole = False
            if key is None or not whole:
                report.torn += 1
                continue
            wanted = expected.get(key, sequence % KEY_COUNT)
            if sequence < wanted:
                report.doubled += 1
                continue
            report.lost += (sequence - wanted) // KEY_COUNT
            report.read += 1
            expected[key] = sequence + KEY_COUNT
            latencies[(now_ns - sent_ns) // 1000] += 1
            if phase:
                report.began_ns = min(report.began_ns or sent_ns, sent_ns)
                report.ended_ns = now_ns

    def finish(self) -> ConsumerReport:
        """The whole report."""
        self.report.expected = {key.decode(): sequence for key, sequence in self._expected.items()}
        self.report.latencies = [dict(counter) for counter in self._latencies]
        return self.report


def _consume(directory: str, partitions: Sequence[int]) -> None:
    """Read and check until it is told to end and nothing is left."""
    orders = _Orders()
    tally = _Tally()
    with (
        pystreamlog.open(directory, create=False) as log,
        log.consumer(auto_offset_reset="earliest", max_poll_records=_MAX_POLL_RECORDS) as consumer,
    ):
        consumer.assign(TopicPartition(TOPIC, partition) for partition in partitions)
        _say(tally.report)
        said = 0
        while True:
            # Asked before the poll: once it is said, all has been written, and a poll that finds nothing is the last.
            ending = orders.listen(0) == "stop"
            records = consumer.poll(0 if ending else _POLL_TIMEOUT)
            tally.add(records.keys, records.values, monotonic_ns())
            if ending and not records:
                break
            now_ns = monotonic_ns()
            if now_ns - said > _POLL_TIMEOUT * 1e9:
                said = now_ns
                _say(tally.report)
        _say(tally.finish())


def _main(role: str, directory: str, *numbers: str) -> None:
    try:
        if role == "produce":
            _produce(directory, int(numbers[0]))
        else:
            _consume(directory, [int(number) for number in numbers])
    except BrokenPipeError:  # nobody is left to report to
        raise SystemExit(1) from None


if __name__ == "__main__":
    _main(*sys.argv[1:])
