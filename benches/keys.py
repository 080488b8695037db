"""Topics with a key index: appending with an expected version, and reading the records of one key.

The peer is the library itself: the same appends to a topic without an index, in the same run.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, alternate, best_seconds, fresh_directory

TOPIC = "events"
KEYS = 100_000
HISTORY = 10
READ_KEYS = 21

_READ_LIMIT_MS = 1.0


@contextmanager
def _prepared(
    directory: Path, *, count: int, keys: int, indexed: bool
) -> Iterator[tuple[pystreamlog.Topic[bytes, bytes], list[bytes]]]:
    """A topic that has a record with each of so many keys, and the keys of the next records, in random order."""
    with pystreamlog.open(directory / "log") as log:
        topic = log.create_topic(TOPIC, key_index=indexed)
        with log.producer() as producer:
            for batch_keys, values in payload.make_batches(keys):
                producer.send_many(TOPIC, values, batch_keys)
        order = payload.make_keys(keys, shuffled=True)
        yield topic, [order[number % keys] for number in range(count)]
        assert topic.end_offsets() == {0: keys + count}


@contextmanager
def stream_append(directory: Path, *, count: int, keys: int) -> Iterator[Callable[[], None]]:
    """Append to a topic without an index."""
    values = payload.make_values(count)
    with _prepared(directory, count=count, keys=keys, indexed=False) as (topic, order):

        def work() -> None:
            append = topic.append
            for key, value in zip(order, values, strict=True):
                append(value, key)

        yield work


@contextmanager
def stream_expected_version(
    directory: Path, *, count: int, keys: int, expecting: bool = True
) -> Iterator[Callable[[], None]]:
    """Append to a topic with an index, each record with the version that its key has; or without saying it."""
    values = payload.make_values(count)
    with _prepared(directory, count=count, keys=keys, indexed=True) as (topic, order):
        versions = [1 + number // keys for number in range(count)]

        def work() -> None:
            append = topic.append
            if expecting:
                for key, value, version in zip(order, values, versions, strict=True):
                    append(value, key, expected_version=version)
            else:
                for key, value in zip(order, values, strict=True):
                    append(value, key)

        yield work


@contextmanager
def stream_send_many(directory: Path, *, count: int, keys: int, indexed: bool) -> Iterator[Callable[[], None]]:
    """Send batches of 1,000 records with keys that were there before."""
    values = payload.make_values(count)
    with _prepared(directory, count=count, keys=keys, indexed=indexed) as (_, order):
        batches = payload.in_batches(order, values)
        with pystreamlog.open(directory / "log") as log, log.producer() as producer:

            def work() -> None:
                for batch_keys, batch_values in batches:
                    producer.send_many(TOPIC, batch_values, batch_keys)
                producer.flush()

            yield work


def compare_expected_version(settings: Settings) -> list[Line]:
    """`append` with `expected_version` among 100,000 keys, beside plain `append`."""
    count, keys = settings.count(50_000), settings.count(KEYS)
    best = best_seconds(
        {
            "ours": partial(stream_expected_version, count=count, keys=keys),
            "peer": partial(stream_append, count=count, keys=keys),
            "unconditional": partial(stream_expected_version, count=count, keys=keys, expecting=False),
            "many": partial(stream_send_many, count=count, keys=keys, indexed=True),
            "plain many": partial(stream_send_many, count=count, keys=keys, indexed=False),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    plain = "Topic.append without a key index"
    among = f"{keys:,} keys"
    return [
        Line(f"append, expected_version, {among}", rate["ours"], rate["peer"], "records/s", 0.3, note=plain),
        Line(f"append, key index, {among}", rate["unconditional"], rate["peer"], "records/s", note=plain),
        Line(
            f"send_many, key index, {among}",
            rate["many"],
            rate["plain many"],
            "records/s",
            note="send_many without a key index",
        ),
    ]


def read_key_median(gate: Gate, *, path: str, count: int) -> float:
    """Return the median time of `list(topic.read_key(key))` of a key with ten records, in milliseconds."""
    batches = payload.make_batches(count)
    places = random.Random(3).sample(range(count), HISTORY * READ_KEYS)
    for number, place in enumerate(places):
        batches[place // payload.BATCH_COUNT][0][place % payload.BATCH_COUNT] = b"read %d" % (number % READ_KEYS)
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, key_index=True)
        with log.producer() as producer:
            for keys, values in batches:
                producer.send_many(TOPIC, values, keys)
    figures = []
    with pystreamlog.open(path) as log:
        topic = log.topic(TOPIC)
        gate()
        for number in range(READ_KEYS):
            start = time.perf_counter_ns()
            records = list(topic.read_key(b"read %d" % number))
            figures.append(time.perf_counter_ns() - start)
            assert len(records) == HISTORY
    return statistics.median(figures) / 1e6


def measure_read_key(settings: Settings) -> list[Line]:
    """`read_key` of ten records among a million, in batches of 1,000."""
    count = settings.count(1_000_000)

    def measure() -> float:
        with fresh_directory(settings) as directory:
            median: float = run("benches.keys:read_key_median", path=str(directory), count=count)
            return median

    figures = alternate({"ours": measure}, min(settings.rounds, 3))
    what = f"read_key, {HISTORY} among {count:,}"
    note = f"median of {READ_KEYS} keys"
    return [
        Line(what, min(figures["ours"]), None, "ms", _READ_LIMIT_MS, at_least=False, absolute=True, note=note),
    ]


LINES = {"expected_version": compare_expected_version, "read_key": measure_read_key}
