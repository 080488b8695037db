"""Consumer groups: take-over after a SIGKILL, joining and leaving, many at once, committing, and what a group costs.

Members are processes. Each appends what it notices to a file of its own, one JSON line per `os.write`, so that nothing
is lost when it is killed; times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

import fcntl
import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pystreamlog
from benches import payload
from benches.child import Child, Gate
from benches.measuring import Line, Settings, best_seconds, fresh_directory
from benches.waiting import TOPIC
from pystreamlog import TopicPartition

GROUP = "benches"
MEMBERS, PARTITIONS = 8, 64
MANY_MEMBERS, MANY_PARTITIONS = 64, 256
COMMITS = 20_000

_INTERVAL_MS = 8.0
_PATIENCE = 30.0
_LOCK = struct.Struct("hhqqi4x")


# --- members ----------------------------------------------------------------------------------------------------------


def belong(gate: Gate, *, path: str, name: str) -> None:
    """Be a member until there is a file `stop-<name>`: note what comes, what goes, and each partition's pauses."""
    fresh: set[int] = set()
    last_ns: dict[int, int] = {}
    pauses: dict[int, int] = {}
    leaving = False
    notes = os.open(Path(path) / f"notes-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**what: object) -> None:
        os.write(notes, json.dumps({"at": time.monotonic_ns(), **what}).encode() + b"\n")

    def come(_: object, tps: list[TopicPartition]) -> None:
        fresh.update(tp.partition for tp in tps)

    def go(_: object, tps: list[TopicPartition]) -> None:
        for tp in tps:
            fresh.discard(tp.partition)
            last_ns.pop(tp.partition, None)
            note(**{"kept" if leaving else "gone": tp.partition}, pause=pauses.pop(tp.partition, 0))

    stop, measure = Path(path) / f"stop-{name}", Path(path) / "measure"
    measuring = False
    with pystreamlog.open(path) as log:
        gate()
        note(began=True)
        options: dict[str, Any] = {"on_assign": come, "on_revoke": go, "max_poll_records": 2_000}
        with log.consumer(TOPIC, group_id=GROUP, auto_offset_reset="earliest", **options) as consumer:
            looked = 0
            while True:
                numbers = set(consumer.poll(0.05).partitions)
                now = time.monotonic_ns()
                for number in numbers & fresh:
                    note(first=number)
                for number in numbers:
                    pauses[number] = max(pauses.get(number, 0), now - last_ns.get(number, now))
                    last_ns[number] = now
                fresh -= numbers
                if now - looked > 20_000_000:  # noqa: PLR2004 - 20 ms
                    looked = now
                    if not measuring and measure.exists():
                        measuring = True
                        pauses.clear()
                    if stop.exists():
                        break
            note(leaves=True)
            leaving = True


def send_steadily(gate: Gate, *, path: str, partitions: int, interval: float) -> None:
    """Append a record to every partition every so often, until there is a file `stop-traffic`."""
    stop = Path(path) / "stop-traffic"
    value = b"x" * payload.VALUE_SIZE
    with pystreamlog.open(path) as log:
        topic = log.topic(TOPIC)
        gate()
        due = time.monotonic()
        while not stop.exists():
            for number in range(partitions):
                topic.append(value, partition=number)
            due += interval
            time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def _traffic(path: Path, partitions: int, interval: float) -> Iterator[None]:
    """A record into every partition every so often, by another process, while the block runs."""
    arguments = {"path": str(path), "partitions": partitions, "interval": interval}
    with Child("benches.groups:send_steadily", **arguments) as child:
        child.wait_ready()
        child.go()
        yield
        (path / "stop-traffic").touch()
        child.result()


class _Members:
    """The members of the group in a directory, and what they noted."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._prepared: dict[str, Child] = {}
        self._children: dict[str, Child] = {}

    def prepare(self, name: str) -> None:
        """Start a process that has imported everything and waits."""
        child = self._stack.enter_context(Child("benches.groups:belong", path=str(self._directory), name=name))
        child.wait_ready()
        self._prepared[name] = child

    def join(self, name: str) -> None:
        """Let it join."""
        self._children[name] = child = self._prepared.pop(name)
        child.go()

    def kill(self, name: str) -> int:
        """SIGKILL it; returns the moment before, in monotonic ns."""
        at = time.monotonic_ns()
        self._children.pop(name).signal(signal.SIGKILL)
        return at

    def stop(self, name: str) -> int:
        """Have it leave; returns the moment at which it began to."""
        (self._directory / f"stop-{name}").touch()
        self._children.pop(name).result()
        return next(int(note["at"]) for note in self.notes(name) if "leaves" in note)

    def names(self) -> list[str]:
        """Those who are there."""
        return list(self._children)

    def notes(self, name: str) -> list[dict[str, Any]]:
        """What a member noted so far."""
        path = self._directory / f"notes-{name}"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def firsts(self, since_ns: int) -> dict[int, tuple[int, str]]:
        """When each partition was first read by a member that it came to since then, and by whom."""
        found = {}
        for name in self._children:
            for note in self.notes(name):
                if "first" in note and note["at"] > since_ns:
                    found[note["first"]] = (note["at"], name)
        return found

    def owned(self) -> dict[str, set[int]]:
        """What each member owns, by what it noted."""
        owned: dict[str, set[int]] = {}
        for name in self._children:
            owned[name] = set()
            for note in self.notes(name):
                if "first" in note:
                    owned[name].add(note["first"])
                elif "gone" in note:
                    owned[name].discard(note["gone"])
        return owned

    def wait_settled(self, partitions: int) -> dict[str, set[int]]:
        """Wait until all partitions are read, and evenly; returns who reads what."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            owned = self.owned()
            sizes = [len(numbers) for numbers in owned.values()]
            if sum(sizes) == partitions and max(sizes) - min(sizes) <= 1:
                return owned
            time.sleep(0.02)
        raise TimeoutError(f"the group did not settle: {self.owned()}")


def _quantile(figures: list[float], fraction: float) -> float:
    ordered = sorted(figures)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]


def _prepared(directory: Path, partitions: int) -> None:
    with pystreamlog.open(directory) as log:
        topic = log.create_topic(TOPIC, partitions=partitions)
        for number in range(partitions):  # the first record of a partition makes its files, which takes milliseconds
            topic.append(b"x" * payload.VALUE_SIZE, partition=number)


def takeover_times(settings: Settings, *, kills: int) -> list[float]:
    """Kill members one after the other; ms from each SIGKILL to the first record of each partition at another."""
    times: list[float] = []
    with fresh_directory(settings) as directory, ExitStack() as stack:
        _prepared(directory, MEMBERS)
        members = _Members(directory, stack)
        for number in range(4):
            members.prepare(f"{number}")
            members.join(f"{number}")
        with _traffic(directory, MEMBERS, 0.002):
            members.wait_settled(MEMBERS)
            for number in range(kills):
                members.prepare(f"{4 + number}")
                victim = members.names()[0]
                lost = members.owned()[victim]
                since = members.kill(victim)
                members.wait_settled(MEMBERS)
                firsts = members.firsts(since)
                times += [(firsts[partition][0] - since) / 1e6 for partition in lost]
                members.join(f"{4 + number}")
                members.wait_settled(MEMBERS)
    return times


def rebalance_times(settings: Settings, *, rounds: int) -> tuple[list[float], list[float]]:
    """A ninth member joins and leaves.

    Returns:
        Milliseconds until everybody reads what it should, and the longest time without a record of each partition that
        a member kept; `rounds` may be 0.
    """
    times, pauses = [], []
    with fresh_directory(settings) as directory, ExitStack() as stack:
        _prepared(directory, PARTITIONS)
        members = _Members(directory, stack)
        for number in range(MEMBERS):
            members.prepare(f"{number}")
            members.join(f"{number}")
        with _traffic(directory, PARTITIONS, _INTERVAL_MS / 1e3):
            members.wait_settled(PARTITIONS)
            time.sleep(0.2)  # the first appends are over
            (directory / "measure").touch()
            time.sleep(0.5)
            for number in range(rounds):
                name = f"joiner-{number}"
                members.prepare(name)
                members.join(name)
                joined = members.wait_settled(PARTITIONS)
                began = next(int(note["at"]) for note in members.notes(name) if "began" in note)
                times.append(max(at for at, _ in members.firsts(began).values()) / 1e6 - began / 1e6)
                assert joined[name]
                since = members.stop(name)
                members.wait_settled(PARTITIONS)
                times.append(max(at for at, _ in members.firsts(since).values()) / 1e6 - since / 1e6)
        for name in members.names():
            members.stop(name)
            notes = members.notes(name)
            came = [note["first"] for note in notes if "first" in note]
            # What came once stayed, from when the group settled first to its end.
            pauses += [note["pause"] / 1e6 for note in notes if "kept" in note and came.count(note["kept"]) == 1]
    return times, pauses


def compare_takeover(settings: Settings) -> list[Line]:
    """From SIGKILL of a member to the first record of its partitions at another."""
    times = takeover_times(settings, kills=settings.count(60, least=5))
    line = partial(Line, peer=None, unit="ms", at_least=False, absolute=True)
    return [
        line("take-over after SIGKILL, p99", _quantile(times, 0.99), bound=200.0, note=f"{len(times)} partitions"),
        line("take-over after SIGKILL, p50", _quantile(times, 0.5)),
    ]


def compare_rebalance(settings: Settings) -> list[Line]:
    """A member joins or leaves, 8 members, 64 partitions."""
    times, pauses = rebalance_times(settings, rounds=settings.count(60, least=2))
    _, calm = rebalance_times(settings, rounds=0)
    line = partial(Line, peer=None, unit="ms", at_least=False, absolute=True)
    note = f"{len(times)} joins and leaves; {len(pauses)} partitions stayed"
    return [
        line("join or leave, 8 members, 64 partitions, p99", _quantile(times, 0.99), bound=300.0, note=note),
        line("the same, p50", _quantile(times, 0.5)),
        line(
            "longest pause of what stays, p99",
            _quantile(pauses, 0.99) - _INTERVAL_MS,
            bound=20.0,
            note=f"longest {max(pauses) - _INTERVAL_MS:.1f}; when nobody joins {max(calm) - _INTERVAL_MS:.1f}",
        ),
    ]


# --- many at once -----------------------------------------------------------------------------------------------------


def join_the_many(gate: Gate, *, path: str, count: int, share: int) -> int:
    """Join with many others; returns the monotonic time at which this one had its share and all were there."""
    with pystreamlog.open(path) as log:
        gate()
        with log.consumer(TOPIC, group_id=GROUP, auto_offset_reset="earliest") as consumer:
            assigned_ns = 0
            ready, done = Path(path) / f"ready-{os.getpid()}", Path(path) / "done"
            while not done.exists():
                consumer.poll(0.05)
                if len(consumer.assignment()) != share:
                    assigned_ns = 0
                    ready.unlink(missing_ok=True)
                elif not assigned_ns:
                    assigned_ns = time.monotonic_ns()
                    ready.write_bytes(b"")
            assert count
            return assigned_ns


def settling_seconds(settings: Settings, *, members: int, partitions: int) -> float:
    """Return how long many members take, from a common signal, until each reads its share."""
    with fresh_directory(settings) as directory, ExitStack() as stack:
        _prepared(directory, partitions)
        arguments = {"path": str(directory), "count": members, "share": partitions // members}
        children = [stack.enter_context(Child("benches.groups:join_the_many", **arguments)) for _ in range(members)]
        for child in children:
            child.wait_ready()
        start = time.monotonic_ns()
        for child in children:
            child.go()
        deadline = time.monotonic() + 2 * _PATIENCE
        while len(list(directory.glob("ready-*"))) < members:
            assert time.monotonic() < deadline, "the group did not settle"
            time.sleep(0.01)
        (directory / "done").touch()
        return float(max(child.result() for child in children) - start) / 1e9


def compare_settling(settings: Settings) -> list[Line]:
    """Sixty-four members in as many processes join at once."""
    quick = settings.scale < 1
    members, partitions = (8, 32) if quick else (MANY_MEMBERS, MANY_PARTITIONS)
    seconds = [
        settling_seconds(settings, members=members, partitions=partitions) for _ in range(min(settings.rounds, 3))
    ]
    return [
        Line(
            f"{members} members join at once, {partitions} partitions",
            max(seconds),
            None,
            "s",
            5.0,
            at_least=False,
            absolute=True,
            note=f"the slowest of {len(seconds)}",
        )
    ]


# --- commits, and what a group costs ----------------------------------------------------------------------------------


@contextmanager
def committing(directory: Path, *, count: int) -> Iterator[Callable[[], object]]:
    """Commit record after record, each visible to all when it returns."""
    with pystreamlog.open(directory) as log:
        log.create_topic(TOPIC)
        with log.producer() as producer:
            producer.send_many(TOPIC, [b"x" * payload.VALUE_SIZE] * 500).result()
        with log.consumer(TOPIC, group_id=GROUP, auto_offset_reset="earliest") as consumer:
            records = list(consumer.poll(_PATIENCE)) * (count // 500)
            commit = consumer.commit

            def work() -> None:
                for record in records:
                    commit(record)

            yield work


@contextmanager
def calling_bare(directory: Path, *, count: int) -> Iterator[Callable[[], object]]:
    """Make the system calls that a commit needs: lock, is it still there, who owns what, where to, write, unlock."""
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(8192))
    lock, unlock = (_LOCK.pack(kind, 0, 0, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
    call, setlk, fstat, pread, pwrite = fcntl.fcntl, fcntl.F_OFD_SETLK, os.fstat, os.pread, os.pwrite
    entry = b"x" * 128

    def work() -> None:
        for _ in range(count):
            call(fd, setlk, lock)
            fstat(fd)
            pread(fd, 8, 8)
            pread(fd, 256, 4096)
            pwrite(fd, entry, 4096)
            call(fd, setlk, unlock)

    yield work
    os.close(fd)


def compare_commit(settings: Settings) -> list[Line]:
    """One commit beside its bare system calls."""
    count = settings.count(COMMITS, least=1_000)
    kernels = {"ours": partial(committing, count=count), "bare": partial(calling_bare, count=count)}
    best = best_seconds(kernels, settings)
    ours, bare = (best[name] / count * 1e6 for name in ("ours", "bare"))
    return [Line("Consumer.commit(record)", ours, bare, "us", 6.0, at_least=False, note="its system calls alone")]


@contextmanager
def reading(directory: Path, *, count: int, grouped: bool) -> Iterator[Callable[[], object]]:
    """Read all there is in `poll`, as the only member of a group or with the partition assigned."""
    with pystreamlog.open(directory) as log:
        log.create_topic(TOPIC)
        with log.producer() as producer:
            for _ in range(count // 1_000):
                producer.send_many(TOPIC, [b"x" * payload.VALUE_SIZE] * 1_000)
        options = {"group_id": GROUP} if grouped else {}
        with log.consumer(auto_offset_reset="earliest", **options) as consumer:
            if grouped:
                consumer.subscribe(TOPIC)
            else:
                consumer.assign([TopicPartition(TOPIC, 0)])
            first = len(consumer.poll(_PATIENCE))

            def work() -> None:
                got = first
                while got < count:
                    got += len(consumer.poll(_PATIENCE).values)

            yield work


def compare_group_of_one(settings: Settings) -> list[Line]:
    """A group of one against an assigned consumer."""
    count = settings.count(1_000_000, least=50_000)
    kernels = {
        "group": partial(reading, count=count, grouped=True),
        "assigned": partial(reading, count=count, grouped=False),
    }
    best = best_seconds(kernels, settings)
    return [
        Line(
            "a group of one, Records.values",
            count / best["group"],
            count / best["assigned"],
            "records/s",
            0.95,
            note="an assigned consumer",
        )
    ]


LINES = {
    "takeover": compare_takeover,
    "rebalance": compare_rebalance,
    "settling": compare_settling,
    "commit": compare_commit,
    "group_of_one": compare_group_of_one,
}
