"""Writing from one process: `send_many`, `send`, values of 1 KiB, and one record made visible by `Topic.append`.

The peers: RocksDB's write-ahead log (rocksdict), librdkafka with its own mock broker (confluent-kafka), a copy into
mapped memory, and the bare system calls of an append.
"""

import fcntl
import mmap
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import confluent_kafka
import rocksdict

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, alternate, best_seconds, fresh_directory

TOPIC = "events"
KIB = 1_024


@contextmanager
def stream_send_many(
    directory: Path,
    *,
    count: int,
    partitions: int = 1,
    value_size: int = payload.VALUE_SIZE,
    shuffled: bool = False,
) -> Iterator[Callable[[], None]]:
    """Send whole batches through a producer, then flush; the end offsets are checked afterwards."""
    batches = payload.make_batches(count, value_size=value_size, shuffled=shuffled)
    with pystreamlog.open(directory / "log") as log, log.producer() as producer:
        topic = log.create_topic(TOPIC, partitions=partitions)

        def work() -> None:
            for keys, values in batches:
                producer.send_many(TOPIC, values, keys)
            producer.flush()

        yield work
        assert sum(topic.end_offsets().values()) == count


@contextmanager
def rocksdict_write_batches(directory: Path, *, count: int, shuffled: bool = False) -> Iterator[Callable[[], None]]:
    """Put the same batches into RocksDB: default options, so with its write-ahead log and without fsync, as ours."""
    batches = payload.make_batches(count, shuffled=shuffled)
    database = rocksdict.Rdict(str(directory / "rocksdb"))

    def work() -> None:
        for keys, values in batches:
            batch = rocksdict.WriteBatch()
            put = batch.put
            for key, value in zip(keys, values, strict=True):
                put(key, value)
            database.write(batch)

    yield work
    last_keys, last_values = batches[-1]
    assert database[last_keys[-1]] == last_values[-1]
    database.close()


def compare_send_many(settings: Settings) -> list[Line]:
    """`send_many` in batches of 1,000 beside RocksDB's `WriteBatch` of 1,000."""
    count = settings.count(500_000)
    # A key names what an event is about, so keys come in no order: the bounds are held against that. Ascending keys are
    # RocksDB's best case, by a factor of seven, and stand beside it.
    best = best_seconds(
        {
            "ours": partial(stream_send_many, count=count, shuffled=True),
            "ours, 8 partitions": partial(stream_send_many, count=count, partitions=8, shuffled=True),
            "peer": partial(rocksdict_write_batches, count=count, shuffled=True),
            "ours, ascending": partial(stream_send_many, count=count),
            "ours, 8 partitions, ascending": partial(stream_send_many, count=count, partitions=8),
            "peer, ascending": partial(rocksdict_write_batches, count=count),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    peer, hard = "rocksdict WriteBatch, the same keys", "rocksdict WriteBatch, ascending keys"
    one, eight = "send_many, batches of 1,000, keyed", "send_many, 8 partitions"
    return [
        Line(one, rate["ours"], rate["peer"], "records/s", 3.0, note=peer),
        Line(eight, rate["ours, 8 partitions"], rate["peer"], "records/s", 1.2, note=peer),
        Line(one, rate["ours, ascending"], rate["peer, ascending"], "records/s", note=hard),
        Line(eight, rate["ours, 8 partitions, ascending"], rate["peer, ascending"], "records/s", note=hard),
    ]


@contextmanager
def stream_send(directory: Path, *, count: int) -> Iterator[Callable[[], None]]:
    """Send one by one, keep every `Delivery`, flush, and look at each: the news that a callback would have brought."""
    keys, values = payload.make_keys(count), payload.make_values(count)
    with pystreamlog.open(directory / "log") as log, log.producer() as producer:
        topic = log.create_topic(TOPIC)
        # The peer has sent one record before its clock starts (it must learn its topic first), so ours has too.
        producer.send(TOPIC, b"first").result()

        def work() -> None:
            send = producer.send
            deliveries = [send(TOPIC, value, key) for key, value in zip(keys, values, strict=True)]
            producer.flush()
            assert all(delivery.done() for delivery in deliveries)

        yield work
        assert topic.end_offsets() == {0: count + 1}


@contextmanager
def confluent_produce(directory: Path, *, count: int, served_every: int = 100) -> Iterator[Callable[[], None]]:
    """Produce the same records through librdkafka into its in-process mock broker, with a callback for each.

    The mock broker gives a topic four partitions; naming one keeps to "one partition", and is faster by a third.

    Args:
        directory: Not used: the mock broker keeps its records in memory.
        count: How many records.
        served_every: Callbacks are served after so many records. Its documentation does so after each, which is slower.
    """
    del directory
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": "mock",
            "test.mock.num.brokers": 1,
            # Room for everything, so that `produce` never raises BufferError.
            "queue.buffering.max.messages": 10_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "log_level": 0,
        }
    )
    delivered = 0

    def on_delivery(error: object, message: object) -> None:
        nonlocal delivered
        del message
        assert error is None, error
        delivered += 1

    batches = payload.make_batches(count, batch_count=served_every)
    producer.produce(TOPIC, b"first", on_delivery=on_delivery)
    producer.flush()

    def work() -> None:
        produce, serve = producer.produce, producer.poll
        for some_keys, some_values in batches:
            for key, value in zip(some_keys, some_values, strict=True):
                produce(TOPIC, value, key, 0, on_delivery)
            serve(0)
        producer.flush()

    yield work
    assert delivered == count + 1


def compare_send(settings: Settings) -> list[Line]:
    """`send` with a `Delivery` each beside `produce` with `on_delivery`."""
    count = settings.count(300_000)
    best = best_seconds(
        {
            "ours": partial(stream_send, count=count),
            "peer": partial(confluent_produce, count=count),
            "served each": partial(confluent_produce, count=count, served_every=1),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    mock = "confluent-kafka, mock broker, poll(0) each"
    what = "send, keyed, a Delivery each"
    # The client's documentation serves its callbacks at each record; doing it rarely is faster, and stands beside it.
    return [
        Line(what, rate["ours"], rate["served each"], "records/s", 1.2, note=f"{mock} record"),
        Line(what, rate["ours"], rate["peer"], "records/s", note=f"{mock} 100 records"),
    ]


@contextmanager
def stream_sequences(directory: Path, *, count: int, many: bool) -> Iterator[Callable[[], None]]:
    """The same records with a sequence each, one by one or in batches of 1,000."""
    batches = payload.make_batches(count)
    with pystreamlog.open(directory / "log") as log, log.producer(producer_id="bench") as producer:
        topic = log.create_topic(TOPIC)
        producer.send(TOPIC, b"first", sequence=0).result()

        def work() -> None:
            send, first = producer.send, 1
            for keys, values in batches:
                sequences = range(first, first + len(values))
                if many:
                    producer.send_many(TOPIC, values, keys, sequences=sequences)
                else:
                    for value, key, sequence in zip(values, keys, sequences, strict=True):
                        send(TOPIC, value, key, sequence=sequence)
                first += len(values)
            producer.flush()

        yield work
        assert topic.end_offsets() == {0: count + 1}


def compare_sequences(settings: Settings) -> list[Line]:
    """`send` and `send_many` with sequences beside the same without."""
    count = settings.count(300_000)
    best = best_seconds(
        {
            "one": partial(stream_sequences, count=count, many=False),
            "many": partial(stream_sequences, count=count, many=True),
            "plain one": partial(stream_send, count=count),
            "plain many": partial(stream_send_many, count=count),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    return [
        Line("send, with sequences", rate["one"], rate["plain one"], "records/s", note="send without"),
        Line("send_many, with sequences", rate["many"], rate["plain many"], "records/s", note="send_many without"),
    ]


@contextmanager
def map_copy(directory: Path, *, count: int, warm: bool = False) -> Iterator[Callable[[], None]]:
    """Copy value by value into a map of a file that has the size of them all.

    The file is new and sparse, as our segments are new, so the copy pays for its page faults; `warm` touches every page
    before the clock starts.
    """
    values = payload.make_values(count, KIB)
    size = count * KIB
    with (directory / "copy").open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as target:
            if warm:
                for position in range(0, size, mmap.PAGESIZE):
                    target[position] = 1

            def work() -> None:
                position = 0
                for value in values:
                    end = position + len(value)
                    target[position:end] = value
                    position = end

            yield work
            assert target[size - len(values[-1]) :] == values[-1]


def compare_large_values(settings: Settings) -> list[Line]:
    """`send_many` of values of 1 KiB beside a plain copy of the same bytes into mapped memory."""
    count = settings.count(300_000)
    best = best_seconds(
        {
            "ours": partial(stream_send_many, count=count, value_size=KIB),
            "peer": partial(map_copy, count=count),
            "warm": partial(map_copy, count=count, warm=True),
        },
        settings,
    )
    rate = {name: count * KIB / 1e9 / seconds for name, seconds in best.items()}
    return [
        Line(
            "send_many, values of 1 KiB", rate["ours"], rate["peer"], "GB/s", 0.25, note="copy into a map of a new file"
        ),
        Line(
            "send_many, values of 1 KiB",
            rate["ours"],
            rate["warm"],
            "GB/s",
            note="copy into a map whose pages are there",
        ),
    ]


def stream_append_median(gate: Gate, *, path: str, count: int) -> float:
    """Return the median time of `Topic.append` of one record, in microseconds."""
    key, value = payload.make_keys(1)[0], payload.make_values(1)[0]
    clock = time.perf_counter_ns
    figures = []
    gate()
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC)
        append = topic.append
        for _ in range(count):
            start = clock()
            append(value, key)
            figures.append(clock() - start)
        assert topic.end_offsets() == {0: count}
    return statistics.median(figures) / 1e3


def bare_append_median(gate: Gate, *, path: str, count: int) -> float:
    """Return the median time of what an append asks of the kernel, in microseconds: lock, write, publish, unlock.

    On Linux the lock is an open file description lock, elsewhere `flock`.
    """
    batch, slot = bytes(256), bytes(128)
    clock = time.perf_counter_ns
    figures = []
    gate()
    data, control = (os.open(Path(path) / name, os.O_RDWR | os.O_CREAT) for name in ("data", "control"))
    try:
        # Room made ahead and not yet written, as ours: what one large write brought into the page cache are
        # large folios, in which a small write takes 0.9 us longer.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(data, 0, len(batch) * count)
        else:
            os.ftruncate(data, len(batch) * count)
        os.pwrite(control, bytes(mmap.PAGESIZE), 0)
        call, pwrite = fcntl.fcntl, os.pwrite
        if hasattr(fcntl, "F_OFD_SETLK"):
            command = fcntl.F_OFD_SETLK
            lock, unlock = (
                struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
            )
            for number in range(count):
                start = clock()
                call(control, command, lock)
                pwrite(data, batch, number * 256)
                pwrite(control, slot, (number & 1) * 128)
                call(control, command, unlock)
                figures.append(clock() - start)
        else:
            flock = fcntl.flock
            for number in range(count):
                start = clock()
                flock(control, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pwrite(data, batch, number * 256)
                pwrite(control, slot, (number & 1) * 128)
                flock(control, fcntl.LOCK_UN)
                figures.append(clock() - start)
    finally:
        os.close(data)
        os.close(control)
    return statistics.median(figures) / 1e3


def compare_append(settings: Settings) -> list[Line]:
    """`Topic.append` beside the bare system calls: medians of several thousand, best of the rounds."""
    count = settings.count(5_000)

    def measure(function: str) -> float:
        with fresh_directory(settings) as directory:
            median: float = run(f"benches.writing:{function}", path=str(directory), count=count)
            return median

    figures = alternate(
        {"ours": partial(measure, "stream_append_median"), "peer": partial(measure, "bare_append_median")},
        settings.rounds,
    )
    note = "lock, two pwrite, unlock; medians"
    return [
        Line(
            "Topic.append, visible when it returns",
            min(figures["ours"]),
            min(figures["peer"]),
            "us",
            4.0,
            at_least=False,
            note=note,
        )
    ]


LINES = {
    "send_many": compare_send_many,
    "send": compare_send,
    "sequences": compare_sequences,
    "large_values": compare_large_values,
    "append": compare_append,
}
