"""Many writer processes on one partition: what they reach together, and that no record is torn, doubled or lost.

Each record says who wrote it and as which of its records, in key and value; the rest of the value follows from those
two. A reader can thus check every byte, and the order in which each writer sent.
"""

import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Child, Gate
from benches.measuring import Line, Settings, fresh_directory

TOPIC = "events"
WRITERS = 4

_HEAD = struct.Struct(">II")
_PATIENCE = 10.0
# A prime number of rows, so that records of the same number by different writers carry different rows.
_ROWS = payload.make_values(997, payload.VALUE_SIZE - _HEAD.size)


def _row(writer: int, number: int) -> bytes:
    return _ROWS[(writer * 331 + number) % len(_ROWS)]


def write(gate: Gate, *, path: str, writer: int, count: int) -> tuple[float, float]:
    """Write `count` records in batches of 1,000; return when that began and ended, on the clock all processes share."""
    keys = [_HEAD.pack(writer, number) for number in range(count)]
    values = [key + _row(writer, number) for number, key in enumerate(keys)]
    batches = payload.in_batches(keys, values)
    with pystreamlog.open(path) as log, log.producer() as producer:
        gate()
        start = time.monotonic()
        for batch_keys, batch_values in batches:
            producer.send_many(TOPIC, batch_values, batch_keys)
        producer.flush()
        return start, time.monotonic()


def count_faults(gate: Gate, *, path: str, writers: int, count: int) -> int:
    """Read everything, also while it is written; return how many records are torn, doubled, unordered or missing."""
    following = [0] * writers
    faults = read = 0
    with pystreamlog.open(path) as log, log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
        gate()
        while read < writers * count:
            records = consumer.poll(_PATIENCE, max_records=10_000)
            if not records:
                break
            read += len(records)
            faults += _check(records.keys, records.values, following)
        # What came too much would come now.
        faults += len(consumer.poll(0.1))
    return faults + sum(count - number for number in following)


def _check(keys: Sequence[bytes | None], values: Sequence[bytes | None], following: list[int]) -> int:
    faults = 0
    for key, value in zip(keys, values, strict=True):
        if key is None or value is None or len(key) != _HEAD.size:
            faults += 1
            continue
        writer, number = _HEAD.unpack(key)
        if writer >= len(following) or number != following[writer] or value != key + _row(writer, number):
            faults += 1
            continue
        following[writer] += 1
    return faults


def stream_write_shared(directory: Path, *, writers: int, count: int, watched: bool = False) -> tuple[float, int]:
    """Let `writers` processes write `count` records each into one partition.

    Args:
        directory: Where the log goes.
        writers: How many processes.
        count: Records of each.
        watched: Whether the checking reader runs beside the writers, or after them.

    Returns:
        Records per second of them all, and the number of faulty records.
    """
    path = str(directory)
    with pystreamlog.open(path) as log:
        log.create_topic(TOPIC)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child("benches.sharing:write", path=path, writer=writer, count=count))
            for writer in range(writers)
        ]
        reader = stack.enter_context(Child("benches.sharing:count_faults", path=path, writers=writers, count=count))
        for child in (*children, reader):
            child.wait_ready()
        if watched:
            reader.go()
        for child in children:
            child.go()
        times = [child.result() for child in children]
        if not watched:
            reader.go()
        faults: int = reader.result()
    seconds = max(stop for _, stop in times) - min(start for start, _ in times)
    return writers * count / seconds, faults


def compare_sharing(settings: Settings) -> list[Line]:
    """Four writer processes on one partition beside one that writes as much."""
    count = settings.count(250_000)
    rates: dict[int, list[float]] = {1: [], WRITERS: []}
    faults = 0
    for _ in range(settings.rounds):
        for writers, figures in rates.items():
            with fresh_directory(settings) as directory:
                rate, faulty = stream_write_shared(directory, writers=writers, count=WRITERS * count // writers)
            figures.append(rate)
            faults += faulty
    with fresh_directory(settings) as directory:
        watched_rate, faulty = stream_write_shared(directory, writers=WRITERS, count=count, watched=True)
        faults += faulty
    watched_note = f"with a reader beside them {watched_rate / 1e6:.2f} M/s"
    return [
        Line(
            "four writer processes, one partition",
            max(rates[WRITERS]),
            max(rates[1]),
            "records/s",
            0.8,
            note="one writer process",
        ),
        Line(
            "torn, doubled, lost or unordered",
            faults,
            None,
            "records",
            0,
            at_least=False,
            absolute=True,
            note=watched_note,
        ),
    ]


LINES = {"sharing": compare_sharing}
