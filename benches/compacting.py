"""Compaction and repacking: how fast, in how much memory, what readers gain, and what it costs those who append."""

import os
import random
import time
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Child, Gate, run
from benches.measuring import Line, Settings, fresh_directory
from benches.memory import peak_resident_bytes
from pystreamlog.embedded.log import EmbeddedLog

TOPIC = "events"
_SEGMENT_BYTES = 64 << 20
_MIB = 1 << 20
_BATCH = 1_000
_KEYS_BUDGET_SHARE = 10
"""Many keys are compacted with that part of the memory that they may take, so that they take many passes."""


def _segments(path: str) -> list[str]:
    folder = Path(path, "topics", TOPIC, "0")
    return sorted(str(file) for file in folder.iterdir() if file.suffix == ".log")


def _size(path: str) -> int:
    return sum(os.path.getsize(name) for name in _segments(path))


def _close_segment(log: pystreamlog.StreamLog) -> None:
    """Have all that was appended lie in sealed segments, but for one record more; all is on disk then."""
    topic = log.topic(TOPIC)
    topic.alter(segment_ms=1)
    time.sleep(0.01)
    topic.append(b"last", b"last", durability="fsync")
    topic.alter(segment_ms=7 * 24 * 3600 * 1000)


def fill_keyed(gate: Gate, *, path: str, count: int, keys: int) -> None:
    """Records of 100 bytes with that many keys, by chance, in batches of 1,000; on disk at the end."""
    values = payload.make_values(_BATCH)
    chance = random.Random(7)
    gate()
    with pystreamlog.open(path, maintenance=False) as log:
        log.create_topic(TOPIC, cleanup_policy="compact", segment_bytes=_SEGMENT_BYTES)
        with log.producer(batch_size=_MIB) as producer:
            for _ in range(0, count, _BATCH):
                numbers = chance.choices(range(keys), k=_BATCH)
                producer.send_many(TOPIC, values, [b"%016d" % number for number in numbers])
        _close_segment(log)


def compact(gate: Gate, *, path: str, share: int = 1) -> tuple[float, float, int, float]:
    """Compact it; return the seconds, the peak of memory in MiB, the records left, and the processor's seconds."""
    with pystreamlog.open(path, maintenance=False) as log:
        assert isinstance(log, EmbeddedLog)
        log._maintenance._compaction._budget //= share  # noqa: SLF001 - no user should set it
        gate()
        start, used = time.perf_counter(), time.process_time()
        report = log.maintain(force=True)
        seconds, used = time.perf_counter() - start, time.process_time() - used
    (done,) = report.compacted.values()
    return seconds, peak_resident_bytes() / _MIB, done.records_after, used


def copy_segments(gate: Gate, *, path: str) -> float:
    """Copy all segments, and have the copy on disk; return the seconds."""
    gate()
    start = time.perf_counter()
    with open(Path(path, "copy"), "wb") as target:
        for name in _segments(path):
            with open(name, "rb") as source:
                while chunk := source.read(_MIB):
                    target.write(chunk)
        target.flush()
        os.fdatasync(target.fileno())
    seconds = time.perf_counter() - start
    os.unlink(Path(path, "copy"))
    return seconds


def compare_compaction(settings: Settings) -> list[Line]:
    """Compacting a log of which a tenth stays, beside copying it."""
    count = settings.count(8_000_000, least=200_000)
    seconds, used, copied, peak = [], [], [], 0.0
    size = 0
    for _ in range(min(settings.rounds, 3)):
        with fresh_directory(settings) as directory:
            path = str(directory)
            run("benches.compacting:fill_keyed", path=path, count=count, keys=count // 10)
            size = _size(path)
            copied.append(run("benches.compacting:copy_segments", path=path))
            took, memory, _, processor = run("benches.compacting:compact", path=path)
            seconds.append(took)
            used.append(processor)
            peak = max(peak, memory)
    rate, plain = size / min(seconds) / 1e6, size / min(copied) / 1e6
    note = f"{size / 1e6:.0f} MB, a tenth of the keys live; {rate / plain:.2f} of copying it"
    note += f"; {size / min(used) / 1e6:.0f} MB per second of processor time"
    return [
        Line("compaction", rate, None, "MB/s of input", 100, absolute=True, note=note),
        Line("its memory", peak, None, "MiB", 1024, at_least=False, absolute=True),
    ]


def compare_many_keys(settings: Settings) -> list[Line]:
    """Keys that are all alive, in a tenth of the memory: as many passes as ten times the keys would take."""
    keys = settings.count(5_000_000, least=100_000)
    share = max(_KEYS_BUDGET_SHARE, _KEYS_BUDGET_SHARE * 5_000_000 // keys)
    with fresh_directory(settings) as directory:
        path = str(directory)
        run("benches.compacting:fill_keyed", path=path, count=2 * keys, keys=keys)
        size = _size(path)
        seconds, peak, left, _ = run("benches.compacting:compact", path=path, share=share)
    note = f"{left:,} keys of {size / 1e6:.0f} MB in {seconds:.0f} s, with {512 // share} MiB for keys instead of 512"
    return [Line("compaction of many keys: memory", peak, None, "MiB", 1024, at_least=False, absolute=True, note=note)]


def fill_singly(gate: Gate, *, path: str, count: int, size: int) -> None:
    """Records in batches of `size`; all in sealed segments."""
    values = payload.make_values(count)
    gate()
    with pystreamlog.open(path, maintenance=False) as log:
        topic = log.create_topic(TOPIC, repack=True, segment_bytes=_SEGMENT_BYTES)
        if size == 1:
            for value in values:
                topic.append(value)
        else:
            with log.producer() as producer:
                for start in range(0, count, size):
                    producer.send_many(TOPIC, values[start : start + size])
                    producer.flush()
        _close_segment(log)


def read_all(gate: Gate, *, path: str) -> float:
    """Read everything; return records per second."""
    with pystreamlog.open(path, maintenance=False) as log:
        count = log.topic(TOPIC).end_offsets()[0]
        with log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            gate()
            start, found = time.perf_counter(), 0
            while found < count:
                found += len(consumer.poll(10, max_records=10_000).values)
            return count / (time.perf_counter() - start)


def compare_repacking(settings: Settings) -> list[Line]:
    """Reading what was written record by record, once it is repacked."""
    count = settings.count(500_000, least=10_000)
    rates: dict[str, float] = {}
    with fresh_directory(settings) as one, fresh_directory(settings) as many:
        run("benches.compacting:fill_singly", path=str(one), count=count, size=1)
        run("benches.compacting:fill_singly", path=str(many), count=count, size=_BATCH)
        rates["before"] = max(run("benches.compacting:read_all", path=str(one)) for _ in range(2))
        seconds, _, _, _ = run("benches.compacting:compact", path=str(one))
        for _ in range(settings.rounds):
            for name, path in (("repacked", one), ("bulk", many)):
                rates[name] = max(rates.get(name, 0), run("benches.compacting:read_all", path=str(path)))
    note = f"before {rates['before'] / 1e6:.2f} M/s; repacked at {count / seconds / 1e3:.0f} k/s"
    return [
        Line("reading what was repacked", rates["repacked"], rates["bulk"], "records/s", 0.8, note=f"in bulk; {note}")
    ]


def append_for(gate: Gate, *, path: str, seconds: float) -> tuple[float, float]:
    """Append single records for so long; return records per second and the stall that one in 1,000 exceeds, in ms."""
    clock = time.perf_counter
    with pystreamlog.open(path, maintenance=False) as log:
        topic = log.create_topic("beside", exist_ok=True)
        value, times = b"x" * 100, [0.0]
        for _ in range(1_000):
            topic.append(value)
        gate()
        times = [clock()]
        until = times[0] + seconds
        while times[-1] < until:
            topic.append(value)
            times.append(clock())
    stalls = sorted(map(float.__sub__, times[1:], times[:-1]))
    return len(stalls) / (times[-1] - times[0]), 1e3 * stalls[int(len(stalls) * 0.999)]


def compact_again(gate: Gate, *, path: str, seconds: float) -> int:
    """Compact for so long, over and over, giving way to others as the background process does."""
    os.nice(10)
    gate()
    until, times = time.perf_counter() + seconds, 0
    with pystreamlog.open(path, maintenance=False) as log:
        while time.perf_counter() < until:
            log.maintain(force=True)
            with log.producer(batch_size=_MIB) as producer:
                for number in range(100):
                    producer.send_many(TOPIC, payload.make_values(_BATCH), [b"%016d" % (number * 7)] * _BATCH)
            _close_segment(log)
            times += 1
    return times


def compare_appends_beside(settings: Settings) -> list[Line]:
    """Appends of one process while another one compacts."""
    seconds = settings.seconds(5, least=0.5)
    alone: list[tuple[float, float]] = []
    beside: list[tuple[float, float]] = []
    times = 0
    with fresh_directory(settings) as directory:
        path, count = str(directory), settings.count(1_000_000, least=50_000)
        run("benches.compacting:fill_keyed", path=path, count=count, keys=count // 10)
        for _ in range(min(settings.rounds, 3)):
            alone.append(run("benches.compacting:append_for", path=path, seconds=seconds))
            with Child("benches.compacting:compact_again", path=path, seconds=seconds) as busy:
                busy.wait_ready()
                with Child("benches.compacting:append_for", path=path, seconds=seconds) as appending:
                    appending.wait_ready()
                    busy.go()
                    appending.go()
                    beside.append(appending.result())
                times += busy.result()
    stall, without = min(stall for _, stall in beside), min(stall for _, stall in alone)
    return [
        Line(
            "appends beside a compaction",
            max(rate for rate, _ in beside),
            max(rate for rate, _ in alone),
            "records/s",
            0.7,
            note=f"without it; it compacted {times} times",
        ),
        Line(
            "stall of one append in 1,000",
            stall,
            None,
            "ms",
            5,
            at_least=False,
            absolute=True,
            note=f"{without:.2f} ms without",
        ),
    ]


LINES = {
    "compacting": compare_compaction,
    "compacting_keys": compare_many_keys,
    "repacking": compare_repacking,
    "compacting_beside": compare_appends_beside,
}
