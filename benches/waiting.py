"""Waiting for records: how soon a reader in another process has them, and what ten idle readers cost.

A record's value carries the writer's CLOCK_MONOTONIC, which all processes of a machine share; the reader subtracts it
from its own when the record is in its hands. The writer keeps to absolute deadlines, a millisecond apart, so that a
late record does not delay the next.
"""

import asyncio
import os
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Child, Gate, run
from benches.inotify import Watch
from benches.measuring import Line, Settings, fresh_directory

TOPIC = "events"
IDLE_CONSUMERS = 10

_STAMP = struct.Struct("<q")
_PADDING = bytes(payload.VALUE_SIZE - _STAMP.size)
_INTERVAL_NS = 1_000_000
_WARM_UP_COUNT = 100
_PATIENCE = 10.0


def _deadlines(count: int) -> Iterator[None]:
    """Return at each deadline: `count` of them, a millisecond apart, the first one in 50 ms."""
    next_ns = time.monotonic_ns() + 50_000_000
    for _ in range(count):
        ahead_ns = next_ns - time.monotonic_ns()
        if ahead_ns > 0:
            time.sleep(ahead_ns / 1e9)
        yield
        next_ns += _INTERVAL_NS


def write_paced(gate: Gate, *, path: str, count: int, way: str) -> None:
    """Write a stamped record each millisecond, through `producer.send` or `Topic.append`."""
    clock, pack = time.monotonic_ns, _STAMP.pack
    with pystreamlog.open(path) as log, log.producer() as producer:
        topic = log.topic(TOPIC)
        gate()
        for _ in _deadlines(count):
            if way == "send":
                producer.send(TOPIC, pack(clock()) + _PADDING)
            else:
                topic.append(pack(clock()) + _PADDING)


def read_in_poll(gate: Gate, *, path: str, count: int) -> list[int]:
    """Return the one-way latencies seen by a reader that blocks in `poll`, in nanoseconds."""
    clock, unpack = time.monotonic_ns, _STAMP.unpack_from
    latencies: list[int] = []
    with pystreamlog.open(path) as log, log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
        consumer.poll(0)
        gate()
        while len(latencies) < count:
            values = consumer.poll(_PATIENCE).values
            now = clock()
            assert values, f"nothing more after {len(latencies)} of {count} records"
            latencies += [now - unpack(value)[0] for value in values]
    return latencies


def read_in_async_for(gate: Gate, *, path: str, count: int) -> list[int]:
    """Return the one-way latencies seen by a reader in `async for`, in nanoseconds."""
    clock, unpack = time.monotonic_ns, _STAMP.unpack_from
    latencies: list[int] = []

    async def read() -> None:
        async with pystreamlog.open(path) as log, log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            await consumer.poll_async(0)
            gate()
            async with asyncio.timeout(_PATIENCE + count * _INTERVAL_NS / 1e9):
                async for record in consumer:
                    latencies.append(clock() - unpack(record.value)[0])
                    if len(latencies) == count:
                        break

    asyncio.run(read())
    return latencies


def ring_paced(gate: Gate, *, path: str, count: int) -> None:
    """Write a stamp to one file, then a byte to the watched one, each millisecond."""
    clock, pack, pwrite = time.monotonic_ns, _STAMP.pack, os.pwrite
    stamps, bell = (os.open(Path(path) / name, os.O_WRONLY) for name in ("stamps", "bell"))
    gate()
    for number, _ in enumerate(_deadlines(count)):
        pwrite(stamps, pack(clock()), number * _STAMP.size)
        pwrite(bell, b"!", 0)


def wake_on_inotify(gate: Gate, *, path: str, count: int) -> list[int]:
    """Return the one-way latencies seen by a reader that blocks on inotify and reads the stamps, in nanoseconds."""
    clock = time.monotonic_ns
    latencies: list[int] = []
    stamps = os.open(Path(path) / "stamps", os.O_RDONLY)
    with Watch(Path(path) / "bell") as watch:
        gate()
        while len(latencies) < count:
            watch.wait(int(_PATIENCE * 1_000))
            data = os.pread(stamps, 65_536, len(latencies) * _STAMP.size)
            now = clock()
            latencies += [now - stamp for (stamp,) in _STAMP.iter_unpack(data)]
    return latencies


def _latencies(
    settings: Settings, prepare: Callable[[Path], None], reader: str, writer: str, count: int, **ways: str
) -> list[int]:
    with fresh_directory(settings) as directory, ExitStack() as stack:
        prepare(directory)
        arguments = {"path": str(directory), "count": count}
        reading = stack.enter_context(Child(f"benches.waiting:{reader}", **arguments))
        writing = stack.enter_context(Child(f"benches.waiting:{writer}", **arguments, **ways))
        for child in (reading, writing):
            child.wait_ready()
        for child in (reading, writing):
            child.go()
        writing.result()
        latencies: list[int] = reading.result()
        return latencies


def _make_topic(directory: Path) -> None:
    with pystreamlog.open(directory) as log:
        log.create_topic(TOPIC)


def _make_bell(directory: Path) -> None:
    for name in ("stamps", "bell"):
        (directory / name).write_bytes(b"")


def stream_latencies(settings: Settings, *, reader: str, way: str, count: int) -> list[int]:
    """Return one-way latencies from one process to another, in nanoseconds; for `reader` and `way` see above."""
    return _latencies(settings, _make_topic, reader, "write_paced", count, way=way)


def bare_latencies(settings: Settings, *, count: int) -> list[int]:
    """Return the latencies of the bare inotify wake-up, in nanoseconds."""
    return _latencies(settings, _make_bell, "wake_on_inotify", "ring_paced", count)


def quantile_us(latencies: list[int], fraction: float) -> float:
    """Return a quantile in microseconds, without the first records, which warm things up."""
    ordered = sorted(latencies[_WARM_UP_COUNT:])
    return ordered[int(fraction * len(ordered))] / 1e3


def compare_latency(settings: Settings) -> list[Line]:
    """Process to process at 1,000 records/s, beside a bare inotify wake-up."""
    count = int(1_000 * settings.seconds(2.0, least=0.5))
    measurements: dict[str, Callable[[], list[int]]] = {
        "bare": lambda: bare_latencies(settings, count=count),
        "poll": lambda: stream_latencies(settings, reader="read_in_poll", way="send", count=count),
        "async": lambda: stream_latencies(settings, reader="read_in_async_for", way="send", count=count),
        "append": lambda: stream_latencies(settings, reader="read_in_poll", way="append", count=count),
    }
    p50: dict[str, list[float]] = {name: [] for name in measurements}
    p99: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(settings.rounds):
        for name, measure in measurements.items():
            latencies = measure()
            p50[name].append(quantile_us(latencies, 0.5))
            p99[name].append(quantile_us(latencies, 0.99))
    median = {name: min(figures) for name, figures in p50.items()}
    tail = {name: min(figures) for name, figures in p99.items()}
    bare = "bare inotify wake-up"
    return [
        Line("send to poll, other process, p50", median["poll"], median["bare"], "us", 4.0, at_least=False, note=bare),
        Line("send to poll, p99", tail["poll"], tail["bare"], "us", 1_000.0, at_least=False, absolute=True, note=bare),
        Line(
            "send to async for, other process, p50",
            median["async"],
            median["bare"],
            "us",
            8.0,
            at_least=False,
            note=bare,
        ),
        Line(
            "send to async for, p99",
            tail["async"],
            tail["bare"],
            "us",
            1_000.0,
            at_least=False,
            absolute=True,
            note=bare,
        ),
        Line("Topic.append to poll, p50", median["append"], median["bare"], "us", at_least=False, note=bare),
        Line("Topic.append to poll, p99", tail["append"], tail["bare"], "us", at_least=False, note=bare),
    ]


def idle(gate: Gate, *, path: str, count: int, seconds: float) -> float:
    """Return the fraction of a core that `count` consumers cost this process while nothing happens, a thread each."""

    def wait_for_nothing(consumer: pystreamlog.Consumer[bytes, bytes], end: float) -> None:
        while time.monotonic() < end:
            assert not consumer.poll()

    with pystreamlog.open(path) as log, ExitStack() as stack:
        consumers = [stack.enter_context(log.consumer(TOPIC, auto_offset_reset="earliest")) for _ in range(count)]
        for consumer in consumers:
            consumer.poll()
        gate()
        # A second to settle: the spin after the last activity is no idle time. A second at the end, so that no thread
        # is on its way out.
        end = time.monotonic() + seconds + 2.0
        threads = [threading.Thread(target=wait_for_nothing, args=(consumer, end)) for consumer in consumers]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        time.sleep(seconds)
        after, stop = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        for thread in threads:
            thread.join()
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / (stop - start)


def idle_threads(directory: Path, *, seconds: float) -> float:
    """Return the fraction of a core that ten idle consumers cost as threads of one process."""
    cost: float = run("benches.waiting:idle", path=str(directory), count=IDLE_CONSUMERS, seconds=seconds)
    return cost


def idle_processes(directory: Path, *, seconds: float) -> float:
    """Return the fraction of a core that ten idle consumers cost in ten processes, together."""
    with ExitStack() as stack:
        arguments = {"path": str(directory), "count": 1, "seconds": seconds}
        children = [stack.enter_context(Child("benches.waiting:idle", **arguments)) for _ in range(IDLE_CONSUMERS)]
        for child in children:
            child.wait_ready()
        for child in children:
            child.go()
        return float(sum(child.result() for child in children))


def compare_idle(settings: Settings) -> list[Line]:
    """Ten idle consumers in `poll` with its default timeout: the worse of threads and processes."""
    seconds = settings.seconds(6.0, least=2.0)
    with fresh_directory(settings) as directory:
        with pystreamlog.open(directory) as log:
            log.create_topic(TOPIC).append(b"the last thing that happened")
        threads = 100 * idle_threads(directory, seconds=seconds)
        processes = 100 * idle_processes(directory, seconds=seconds)
    note = f"threads {threads:.2f} %, processes {processes:.2f} %"
    return [
        Line(
            "ten idle consumers, together",
            max(threads, processes),
            None,
            "% of a core",
            1.0,
            at_least=False,
            absolute=True,
            note=note,
        )
    ]


LINES = {"latency": compare_latency, "idle": compare_idle}
