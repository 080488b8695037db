"""What an fsync per acknowledgement costs, alone and shared by threads; and how long recovery takes after a power loss.

The peers: SQLite's write-ahead log with `synchronous=FULL`, LMDB with its default of syncing, one thread beside many,
and a plain read of the bytes that recovery must look at. All of it on a real disk: in memory an fsync costs nothing.
"""

import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lmdb
import msgspec
from xxhash import xxh3_64_intdigest

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, UnsupportedHereError, alternate, best_seconds, fresh_directory
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.storage.control import Durable
from pystreamlog.storage.folder import Folder

TOPIC = "events"
THREADS = 32
SLOW_MS = 2.0
MIB = 1 << 20

_LMDB_SIZE = 4 << 30
_VALUES = 64
_CHUNK = 1 << 20
_KIB = 1_024
_SMALL_BATCH = 336
"""Bytes of a batch of one record of 100 bytes."""


def _need_fdatasync() -> None:
    if not hasattr(os, "fdatasync"):
        raise UnsupportedHereError("this system has no fdatasync")


# --- one record per fsync ---------------------------------------------------------------------------------------------


@contextmanager
def _acknowledged(directory: Path, how: str) -> Iterator[Callable[[bytes], object]]:
    """Yield a call that returns when its record is on disk: `append`, or `send` with `result`."""
    with pystreamlog.open(directory / "log") as log, log.producer(durability="fsync") as producer:
        topic = log.create_topic(TOPIC)
        append, send = topic.append, producer.send
        calls = {
            "append": lambda value: append(value, durability="fsync"),
            "send": lambda value: send(TOPIC, value).result(),
        }
        calls[how](b"first")
        yield calls[how]


@contextmanager
def stream_fsync(
    directory: Path, *, how: str, count: int, threads: int = 1, slow_ms: float = 0.0
) -> Iterator[Callable[[], None]]:
    """Write `count` records, one per acknowledgement, by so many threads; `slow_ms` is how long an fsync takes then."""
    values = payload.make_values(_VALUES)
    with _slow_fdatasync(slow_ms), _acknowledged(directory, how) as call:

        def work_alone() -> None:
            for number in range(count):
                call(values[number % _VALUES])

        def work_shared() -> None:
            def write() -> None:
                for number in range(count // threads):
                    call(values[number % _VALUES])

            workers = [threading.Thread(target=write) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        yield work_alone if threads == 1 else work_shared


@contextmanager
def sqlite_commits(directory: Path, *, count: int) -> Iterator[Callable[[], None]]:
    """Insert as many rows, one per commit, into SQLite: write-ahead log, `synchronous=FULL`."""
    values = payload.make_values(_VALUES)
    database = sqlite3.connect(directory / "sqlite.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, value BLOB)")
    insert = "INSERT INTO events (value) VALUES (?)"
    database.execute(insert, (b"first",))

    def work() -> None:
        execute = database.execute
        for number in range(count):
            execute(insert, (values[number % _VALUES],))

    yield work
    assert database.execute("SELECT count(*) FROM events").fetchone() == (count + 1,)
    database.close()


def compare_fsync_one(settings: Settings) -> list[Line]:
    """One thread, one record per acknowledgement, beside one row per commit in SQLite."""
    count = settings.count(3_000, least=200)
    best = best_seconds(
        {
            "append": partial(stream_fsync, how="append", count=count),
            "send": partial(stream_fsync, how="send", count=count),
            "peer": partial(sqlite_commits, count=count),
        },
        settings,
    )
    note = "SQLite, WAL, synchronous=FULL, a row per commit"
    return [
        Line("Topic.append, fsync", count / best["append"], count / best["peer"], "records/s", 1.0, note=note),
        Line("send, fsync, result() each", count / best["send"], count / best["peer"], "records/s", 1.0, note=note),
    ]


# --- many threads -----------------------------------------------------------------------------------------------------


@contextmanager
def _slow_fdatasync(least_ms: float) -> Iterator[None]:
    """Have each fdatasync take that long at least, as on a disk that does not lie; 0 leaves it alone."""
    if not least_ms:
        yield
        return
    real = os.fdatasync

    def slow(descriptor: Any) -> None:
        until = time.perf_counter() + least_ms / 1_000
        real(descriptor)
        time.sleep(max(0.0, until - time.perf_counter()))

    os.fdatasync = slow  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fdatasync = real


def count_fdatasyncs(gate: Gate, *, path: str, how: str, count: int, threads: int) -> float:
    """Return how many acknowledgements there are to one fdatasync."""
    gate()
    calls = 0
    real = os.fdatasync

    def counted(descriptor: Any) -> None:
        nonlocal calls
        calls += 1
        real(descriptor)

    with stream_fsync(Path(path), how=how, count=count, threads=threads) as work:
        os.fdatasync = counted  # type: ignore[assignment]
        try:
            work()
        finally:
            os.fdatasync = real
    return count / calls


def compare_fsync_threads(settings: Settings) -> list[Line]:
    """Threads that share a topic, or a producer, beside one; also when an fdatasync takes 2 ms."""
    _need_fdatasync()
    count = settings.count(6_400, least=THREADS * 20) // THREADS * THREADS
    alone = max(100, count // 8)
    kernels = {}
    for how in ("append", "send"):
        for slow_ms in (0.0, SLOW_MS):
            arguments: dict[str, Any] = {"how": how, "slow_ms": slow_ms}
            kernels[f"{how} {slow_ms} one"] = partial(stream_fsync, count=alone, **arguments)
            kernels[f"{how} {slow_ms} many"] = partial(stream_fsync, count=count, threads=THREADS, **arguments)
    best = best_seconds(kernels, settings)

    def shared(how: str) -> float:
        with fresh_directory(settings) as directory:
            per_sync: float = run(
                "benches.durability:count_fdatasyncs", path=str(directory), how=how, count=count, threads=THREADS
            )
            return per_sync

    lines = []
    for how, name in (("append", "Topic.append"), ("send", "send, result() each")):
        for slow_ms, bound in ((0.0, 2.0), (SLOW_MS, 15.0)):
            ours, one = (number / best[f"{how} {slow_ms} {who}"] for who, number in (("many", count), ("one", alone)))
            note = "one thread" + (f", fdatasync takes {slow_ms:g} ms" if slow_ms else "")
            lines.append(Line(f"{name}, fsync, {THREADS} threads", ours, one, "records/s", bound, note=note))
        per_sync = max(alternate({how: partial(shared, how)}, settings.rounds)[how])
        lines.append(Line(f"{name}: per fdatasync", per_sync, None, "records", 8.0, absolute=True, note="32 threads"))
    return lines


# --- many records per fsync -------------------------------------------------------------------------------------------


@contextmanager
def stream_fsync_many(
    directory: Path, *, count: int, durability: Literal["os", "fsync"] = "fsync"
) -> Iterator[Callable[[], None]]:
    """Send batches of 1,000, each of them on disk before the next."""
    batches = payload.make_batches(count)
    with pystreamlog.open(directory / "log") as log, log.producer(durability=durability) as producer:
        topic = log.create_topic(TOPIC)
        producer.send(TOPIC, b"first").result()

        def work() -> None:
            for keys, values in batches:
                producer.send_many(TOPIC, values, keys)
                producer.flush()

        yield work
        assert topic.end_offsets() == {0: count + 1}


@contextmanager
def lmdb_transactions(directory: Path, *, count: int, at_once: bool = False) -> Iterator[Callable[[], None]]:
    """Put the same batches into LMDB, a transaction each, which it syncs; keys ascend, which is its best case."""
    batches = payload.make_batches(count)
    environment = lmdb.open(str(directory / "lmdb"), map_size=_LMDB_SIZE)

    def work() -> None:
        for keys, values in batches:
            with environment.begin(write=True) as transaction:
                if at_once:
                    transaction.cursor().putmulti(zip(keys, values, strict=True), append=True)
                    continue
                put = transaction.put
                for key, value in zip(keys, values, strict=True):
                    put(key, value)

    yield work
    assert environment.stat()["entries"] == count
    environment.close()


def compare_fsync_many(settings: Settings) -> list[Line]:
    """`send_many` of 1,000 records and an fsync beside LMDB's transactions of 1,000 puts."""
    count = settings.count(500_000, least=20_000)
    best = best_seconds(
        {
            "ours": partial(stream_fsync_many, count=count),
            "peer": partial(lmdb_transactions, count=count),
            "at once": partial(lmdb_transactions, count=count, at_once=True),
            "os": partial(stream_fsync_many, count=count, durability="os"),
        },
        settings,
    )
    rate = {name: count / seconds for name, seconds in best.items()}
    what = "send_many of 1,000, fsync each"
    return [
        Line(what, rate["ours"], rate["peer"], "records/s", 1.5, note="LMDB, sync, 1,000 puts per transaction"),
        Line(what, rate["ours"], rate["at once"], "records/s", note="LMDB, sync, putmulti(append=True) of 1,000"),
        Line(what, rate["ours"], rate["os"], "records/s", note='the same with durability="os"'),
    ]


# --- in between: a bounded loss window --------------------------------------------------------------------------------


@contextmanager
def stream_flushed(directory: Path, *, count: int, messages: int = 0) -> Iterator[Callable[[], None]]:
    """Append records one by one with `durability="os"`, to a topic with `flush_messages` if that is not 0."""
    values = payload.make_values(_VALUES)
    with pystreamlog.open(directory / "log") as log:
        topic = log.create_topic(TOPIC, flush_messages=messages)
        topic.append(b"first")

        def work() -> None:
            append = topic.append
            for number in range(count):
                append(values[number % _VALUES])

        yield work


def loss_window(gate: Gate, *, path: str, seconds: float, flush_ms: int) -> float:
    """Return for how long, at the worst, a record that was appended was not on disk yet, in milliseconds."""
    gate()
    value = payload.make_values(1)[0]
    clock = time.perf_counter
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, flush_ms=flush_ms)
        written: list[float] = []
        durable, worst = 0, 0.0
        until = clock() + seconds
        while clock() < until:
            topic.append(value)
            written.append(clock())
            if len(written) % 16:
                continue
            durable = topic.durable_offsets()[0]
            if durable < len(written):
                worst = max(worst, clock() - written[durable])
    return worst * 1e3


def compare_loss_window(settings: Settings) -> list[Line]:
    """What `flush_messages` and `flush_ms` cost, and what the latter bounds; no bound, as nothing else does it."""
    count = settings.count(50_000)
    best = best_seconds(
        {
            "os": partial(stream_flushed, count=count),
            "messages": partial(stream_flushed, count=count, messages=1_000),
        },
        settings,
    )

    def window() -> float:
        with fresh_directory(settings) as directory:
            worst: float = run(
                "benches.durability:loss_window",
                path=str(directory),
                seconds=settings.seconds(2.0, least=0.5),
                flush_ms=50,
            )
            return worst

    worst = statistics.median(alternate({"window": window}, settings.rounds)["window"])
    return [
        Line(
            "Topic.append, os, flush_messages=1,000",
            count / best["messages"],
            count / best["os"],
            "records/s",
            note="without flush_messages",
        ),
        Line("oldest record not on disk, flush_ms=50", worst, None, "ms", note="at the worst, median of the rounds"),
    ]


# --- recovery ---------------------------------------------------------------------------------------------------------


def write_partition(
    gate: Gate, *, path: str, size: int, segment_bytes: int, tail_segments: int, one_by_one: bool
) -> None:
    """Write a partition of about `size` bytes whose last segments are not known to be on disk."""
    gate()
    values = [payload.random_bytes(_KIB, seed=seed) for seed in range(_VALUES)] * (1_000 // _VALUES)
    small = payload.make_values(1)[0]
    enough = size - segment_bytes // 3  # the last segment is not full
    with pystreamlog.open(path) as log, log.producer() as producer:
        topic = log.create_topic(TOPIC, segment_bytes=segment_bytes)
        if one_by_one:
            for _ in range(enough // _SMALL_BATCH):
                topic.append(small)
        else:
            for _ in range(enough // (len(values) * _KIB)):
                producer.send_many(TOPIC, values)
            producer.flush()
    with EmbeddedLog(path) as log:
        folder = _folder(log)
        bases = folder.segments()
        base = bases[max(0, len(bases) - tail_segments)]
        control = folder.open_control(write=True)
        try:
            last = control.durable()
            for step in (1, 2):
                control.write_durable(Durable(last.sequence + step, base, base, 0, last.flags))
        finally:
            control.close()


def _folder(log: EmbeddedLog) -> Folder:
    state = log._topics.find(TOPIC)  # noqa: SLF001 - the files are looked at from inside
    return log._partitions.writer(state, 0).folder  # noqa: SLF001


def recovery_seconds(gate: Gate, *, path: str) -> dict[str, float]:
    """Return the seconds of recovering the partition in a new boot, and of reading the same bytes with checksums."""
    gate()
    with EmbeddedLog(path) as log:
        folder = _folder(log)
        control = folder.open_control(write=False)
        first, end = control.durable().segment_base, control.published()
        control.close()
        assert end is not None
        bases = [base for base in folder.segments() if base >= first]
        names = [Path(path) / folder.path / f"{base:020d}.log" for base in bases]
    plain = min(_plain_read(names) for _ in range(2))
    boot = os.urandom(16)
    start = time.perf_counter()
    with EmbeddedLog(path, boot=lambda: boot) as log:
        metadata = log.topic(TOPIC).append(b"after the power loss")
        took = time.perf_counter() - start
        assert metadata.offset == end.end_offset
    return {"recovery": took, "plain": plain, "bytes": float(sum(name.stat().st_size for name in names))}


def _plain_read(names: list[Path]) -> float:
    """Seconds to read files in chunks and count a checksum of each."""
    start = time.perf_counter()
    for name in names:
        with name.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                xxh3_64_intdigest(chunk)
    return time.perf_counter() - start


def compare_recovery(settings: Settings) -> list[Line]:
    """Recovery after a power loss: what it takes beyond a plain read of what was not on disk."""
    segment_bytes = max(4 * MIB, int(64 * MIB * settings.scale))
    lines = []
    for segments, tail, one_by_one in ((1, 1, False), (16, 1, False), (16, 2, False), (1, 1, True)):
        rounds = []
        for _ in range(settings.rounds):
            with fresh_directory(settings) as directory:
                place = str(directory / "log")
                run(
                    "benches.durability:write_partition",
                    path=place,
                    size=segments * segment_bytes,
                    segment_bytes=segment_bytes,
                    tail_segments=tail,
                    one_by_one=one_by_one,
                )
                took = msgspec.convert(run("benches.durability:recovery_seconds", path=place), dict[str, float])
            rounds.append((took["recovery"] - took["plain"], took["recovery"], took["bytes"]))
        beyond, whole, size = min(rounds)
        note = f"{size / MIB:.0f} MiB not known to be on disk; {whole:.3f} s with reading them"
        # A batch costs what it costs to look at, also when it is read: for those of one record that is no reading.
        lines.append(
            Line(
                f"recovery of {segments * segment_bytes // MIB} MiB{', batches of one' if one_by_one else ''}, "
                "beyond reading",
                beyond,
                None,
                "s",
                None if one_by_one else 0.5,
                at_least=False,
                absolute=True,
                note=note,
            )
        )
    return lines


LINES = {
    "fsync_one": compare_fsync_one,
    "fsync_threads": compare_fsync_threads,
    "fsync_many": compare_fsync_many,
    "loss_window": compare_loss_window,
    "recovery": compare_recovery,
}
