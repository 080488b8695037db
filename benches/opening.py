"""Logs of many topics: opening one quickly, and using them all within a process's limits."""

import itertools
import os
import resource
import time
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, fresh_directory
from benches.memory import peak_resident_bytes

PARTITIONS = 4
OPEN_FILES = 1_024

_PATIENCE = 10.0


def _name(number: int) -> str:
    return f"topic-{number:05d}"


def build(directory: Path, *, topics: int, size: int) -> None:
    """Make topics of four partitions with a record in each, and about `size` bytes in the one that will be opened."""
    values = payload.make_values(1_000, 1_000)
    with pystreamlog.open(directory) as log, log.producer() as producer:
        for number in range(topics):
            log.create_topic(_name(number), partitions=PARTITIONS)
            for partition in range(PARTITIONS):
                producer.send(_name(number), b"first", partition=partition)
        for _ in range(size // 1_000_000):
            producer.send_many(_name(topics // 2), values, partition=0)


def open_and_append(gate: Gate, *, path: str, topic: str) -> float:
    """Open the log and one topic, append a record, and return how long that took, in milliseconds."""
    gate()
    start = time.perf_counter()
    log = pystreamlog.open(path)
    log.topic(topic).append(b"one more", partition=0)
    took = time.perf_counter() - start
    log.close()
    return took * 1e3


def size_on_disk(directory: Path) -> int:
    """Return the allocated bytes below a directory."""
    return sum((Path(place) / name).stat().st_blocks * 512 for place, _, names in os.walk(directory) for name in names)


def compare_opening(settings: Settings) -> list[Line]:
    """Opening a log of 1,000 topics of 4 partitions, and one topic in it, in a fresh process."""
    topics = settings.count(1_000, least=100)
    with fresh_directory(settings) as directory:
        start = time.perf_counter()
        build(directory, topics=topics, size=int(256_000_000 * settings.scale))
        took = time.perf_counter() - start
        arguments = {"path": str(directory), "topic": _name(topics // 2)}
        figures = [run("benches.opening:open_and_append", **arguments) for _ in range(settings.rounds)]
        size = size_on_disk(directory) / 1e6
    what = f"open a log of {topics:,} topics x {PARTITIONS}, append to one"
    note = f"fresh process, {size:,.0f} MB on disk, built in {took:.1f} s"
    return [Line(what, min(figures), None, "ms", 30.0, at_least=False, absolute=True, note=note)]


def use_many_topics(gate: Gate, *, path: str, topics: int) -> dict[str, float]:
    """Create topics, write a record to each and read them all, with few file descriptors.

    Returns:
        Seconds of the three parts (`create`, `write`, `read`) and the peak resident memory (`bytes`).
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    names = [_name(number) for number in range(topics)]
    gate()
    times = [time.perf_counter()]
    with pystreamlog.open(path) as log:
        for name in names:
            log.create_topic(name)
        times.append(time.perf_counter())
        with log.producer() as producer:
            for name in names:
                producer.send(name, name.encode(), b"key")
        times.append(time.perf_counter())
        seen: set[str] = set()
        with log.consumer(*names, auto_offset_reset="earliest") as consumer:
            while len(seen) < topics:
                records = consumer.poll(_PATIENCE)
                assert records, f"nothing more after {len(seen)} of {topics} topics"
                for record in records:
                    assert record.value == record.topic.encode()
                    assert record.topic not in seen
                    seen.add(record.topic)
        times.append(time.perf_counter())
    create, write, read = (stop - start for start, stop in itertools.pairwise(times))
    return {"create": create, "write": write, "read": read, "bytes": peak_resident_bytes()}


def compare_many_topics(settings: Settings) -> list[Line]:
    """One process that writes and reads 10,000 topics under `ulimit -n 1024`."""
    topics = settings.count(10_000)
    with fresh_directory(settings) as directory:
        used = run("benches.opening:use_many_topics", path=str(directory), topics=topics)
    took = ", ".join(f"{part} {used[part]:.1f} s" for part in ("create", "write", "read"))
    note = f"{OPEN_FILES:,} descriptors; {took}"
    what = f"one process, {topics:,} topics, peak memory"
    return [Line(what, used["bytes"] / 1e6, None, "MB", 500.0, at_least=False, absolute=True, note=note)]


LINES = {"opening": compare_opening, "many_topics": compare_many_topics}
