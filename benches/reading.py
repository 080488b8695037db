"""Reading back what one partition holds, beside an LMDB cursor over the same records."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lmdb

import pystreamlog
from benches import payload
from benches.measuring import Line, Settings, best_seconds

TOPIC = "events"
MAX_RECORDS = 10_000

_POLL_TIMEOUT = 5.0
_LMDB_BYTES_PER_RECORD = 400


@contextmanager
def _written(directory: Path, count: int) -> Iterator[pystreamlog.StreamLog]:
    with pystreamlog.open(directory / "log") as log:
        log.create_topic(TOPIC)
        with log.producer() as producer:
            for keys, values in payload.make_batches(count):
                producer.send_many(TOPIC, values, keys)
        yield log


def _read_values(consumer: pystreamlog.Consumer[bytes, bytes], count: int) -> None:
    read = 0
    poll = consumer.poll
    while read < count:
        column = poll(_POLL_TIMEOUT, max_records=MAX_RECORDS).values
        assert column, f"nothing more after {read} of {count} records"
        read += len(column)


@contextmanager
def stream_values(directory: Path, *, count: int, again: bool = False) -> Iterator[Callable[[], None]]:
    """Read the column of values of everything, without building records; `again`: for the second time."""
    with _written(directory, count) as log:
        with log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            if again:
                _read_values(consumer, count)
                consumer.seek_to_beginning()
            yield lambda: _read_values(consumer, count)
        with log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            values = list(consumer.poll(_POLL_TIMEOUT, max_records=1_000).values)
            assert values == payload.make_values(len(values))


@contextmanager
def stream_records(directory: Path, *, count: int) -> Iterator[Callable[[], None]]:
    """Read everything as `Record` objects, and touch each one's value."""
    with _written(directory, count) as log, log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:

        def work() -> None:
            read = 0
            poll = consumer.poll
            while read < count:
                records = poll(_POLL_TIMEOUT, max_records=MAX_RECORDS)
                assert records, f"nothing more after {read} of {count} records"
                for record in records:
                    record.value  # noqa: B018 - touching it is the measurement
                read += len(records)

        yield work


@contextmanager
def _lmdb_written(directory: Path, count: int) -> Iterator[lmdb.Environment]:
    # Neither side syncs. Keys in order and `append` pack its pages as full as they get: its best case for reading.
    items = zip(payload.make_keys(count), payload.make_values(count), strict=True)
    size = max(1 << 24, count * _LMDB_BYTES_PER_RECORD)
    with lmdb.open(str(directory / "lmdb"), map_size=size, sync=False) as environment:
        with environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(items, append=True)
        yield environment


@contextmanager
def lmdb_values(directory: Path, *, count: int, again: bool = False) -> Iterator[Callable[[], None]]:
    """Walk a cursor over the values alone, as `bytes`, consumed in C: the fastest way that it offers."""
    with _lmdb_written(directory, count) as environment:

        def work() -> None:
            with environment.begin() as transaction:
                deque(transaction.cursor().iternext(keys=False, values=True), maxlen=0)

        if again:
            work()
        yield work


@contextmanager
def lmdb_items(directory: Path, *, count: int, again: bool = False) -> Iterator[Callable[[], None]]:
    """Walk a cursor over keys and values in a plain loop, as its users write it."""
    with _lmdb_written(directory, count) as environment:

        def work() -> None:
            with environment.begin() as transaction:
                for _key, _value in transaction.cursor():
                    pass

        if again:
            work()
        yield work


def compare_reading(settings: Settings) -> list[Line]:
    """`Records.values` and `Record` objects through `poll` beside an LMDB cursor.

    The bounds are held where both sides read for the first time, and meet each page of their files for the first time;
    reading it all again, with every page mapped already, is shown too.
    """
    count = settings.count(1_000_000)
    best = best_seconds(
        {
            "values": partial(stream_values, count=count),
            "peer": partial(lmdb_values, count=count),
            "records": partial(stream_records, count=count),
            "items": partial(lmdb_items, count=count),
            "values again": partial(stream_values, count=count, again=True),
            "peer again": partial(lmdb_values, count=count, again=True),
            "items again": partial(lmdb_items, count=count, again=True),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    fastest = "LMDB cursor, values only"
    items = "LMDB cursor, for key, value in cursor"
    return [
        Line("read back, Records.values", rate["values"], rate["peer"], "records/s", 1.0, note=fastest),
        Line("read back, Record objects", rate["records"], rate["peer"], "records/s", 0.35, note=fastest),
        Line("read back, Records.values", rate["values"], rate["items"], "records/s", note=items),
        Line("read back again, Records.values", rate["values again"], rate["peer again"], "records/s", note=fastest),
        Line("read back again, Records.values", rate["values again"], rate["items again"], "records/s", note=items),
    ]


LINES = {"read": compare_reading}
