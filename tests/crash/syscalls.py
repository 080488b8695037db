"""Failing system calls: every call of every operation fails, one after the other, and the log gets over it.

`python -m tests.crash.syscalls` does all of it. A forked process does an operation (see `procedures`), whose n-th
system call fails: once, or it and all of its kind until the operation is over; or a write ends early. Then

- the operation raises an error of the library, or it has done its work all the same; never a bare `OSError`;
- the same process goes on with the same objects: it appends to every partition and reads what it appended. Only where
  the disk failed in an fsync may a partition refuse, and only until a log is opened anew;
- a log that it opens anew works at once;
- another process, which had the log open all the time, finds everything that was acknowledged, and goes on.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

import pystreamlog
from pystreamlog.errors import LockTimeoutError, StorageError, StreamLogError

from . import door
from .kills import fast_folder, forked
from .procedures import PROCEDURES, Ack, Operation
from .transacted import TRANSACTED
from .world import TOPIC, LostError, World

__all__ = ["HARMLESS", "Fault", "Report", "fail_everywhere", "main"]

_ENDS = 3
_MOST_CALLS = 3000
_POINTS_PER_LOG = 30
_WRITE = ("ENOSPC", "EIO", "EDQUOT", "short")
_NAME = ("ENOSPC", "EIO", "EDQUOT")
FAULTS: dict[str, tuple[str, ...]] = {
    "copy_file_range": ("ENOSPC", "EIO", "EDQUOT", "EXDEV"),
    "create": ("EMFILE", "ENOSPC", "EIO", "ENFILE", "EDQUOT"),
    "fchmod": ("EIO",),
    "fdatasync": ("EIO", "ENOSPC", "EDQUOT"),
    "fstat": ("EIO",),
    "fsync": ("EIO", "ENOSPC"),
    "link": _NAME,
    "listdir": ("EIO",),
    "lock": ("ENOLCK",),
    "mkdir": _NAME,
    "mmap": ("ENOMEM", "EMFILE"),
    "open": ("EMFILE", "EIO", "ENFILE"),
    "posix_fallocate": ("ENOSPC", "EIO", "EDQUOT", "EOPNOTSUPP"),
    "pread": ("EIO",),
    "pwrite": _WRITE,
    "pwritev": _WRITE,
    "rename": _NAME,
    "rmdir": ("EIO",),
    "scandir": ("EIO", "EMFILE"),
    "stat": ("EIO",),
    "unlink": ("EIO",),
}
"""How each call may fail."""


_OF_THE_PROCESS = ("EMFILE", "ENFILE", "ENOMEM", "ENOLCK")
"""What says nothing about the disk: no reason to poison anything."""


class Fault(NamedTuple):
    """A failure.

    Attributes:
        call: The number of the call, from 1.
        kind: Which of the ways in which that call may fail.
        lasting: All calls of its kind fail from then on, until the operation is over.
    """

    call: int
    kind: int
    lasting: bool


class Report:
    """What failed, and what came of it."""

    def __init__(self) -> None:
        self.faults = 0
        self.raised: Counter[str] = Counter()
        self.done_all_the_same = 0
        self.poisoned = 0
        self.checked = 0
        self.acknowledged = 0
        self.names: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.failures: list[str] = []

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.faults} injected faults at {len(self.names)} named calls: {self.done_all_the_same} operations were "
            f"done all the same, {self.poisoned} times a partition was poisoned; {self.acknowledged} acknowledged "
            f"records, read and compared {self.checked} times, {len(self.failures)} failures"
        )
        yield ", ".join(f"{count} x {name}" for name, count in self.kinds.most_common())
        yield ", ".join(f"{count} x {name}" for name, count in self.raised.most_common())


# --- more to do than to kill ------------------------------------------------------------------------------------------


class Read(Operation):
    """Read everything, by a topic and by a consumer."""

    def ready(self, log: Any, world: World) -> Any:
        """What must be read."""
        return {key: list(values) for key, values in world.known.items()}

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Read."""
        for (name, partition), values in ready.items():
            found = [record.value for record in log.topic(name).read(partition=partition)]
            if found != values:
                raise AssertionError(f"read {len(found)} records of {len(values)}")
        with log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            left = sum(len(values) for (name, _), values in ready.items() if name == TOPIC)
            while left > 0:
                left -= len(consumer.poll(1.0))
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """Nothing changed."""
        world.check()


class Open(Operation):
    """Open a log, or make one."""

    def __init__(self, name: str, *, make: bool) -> None:
        super().__init__(name)
        self._make = make
        self._path = ""

    def prepare(self, world: World) -> None:
        """Choose where."""
        self._path = f"{world.path}-made" if self._make else world.path

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Open it."""
        with pystreamlog.open(self._path) as opened:
            opened.topics()
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It can be opened."""
        with pystreamlog.open(self._path) as opened:
            opened.create_topic("made", exist_ok=True).append(b"one")
            if not self._make:
                opened.delete_topic("made")
        if self._make:
            shutil.rmtree(self._path)


class Recover(Operation):
    """Recover a log, which a copy of one needs."""

    def __init__(self, name: str, **config: Any) -> None:
        super().__init__(name, **config)
        self._copy = ""

    def prepare(self, world: World) -> None:
        """Copy it."""
        for partition in range(world.partitions):
            world.append(partition=partition, size=1500)
        self._copy = f"{world.path}-copied"
        shutil.copytree(world.path, self._copy)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Append to each partition of the copy, which recovers it."""
        with pystreamlog.open(self._copy) as copied:
            topic = copied.topic(TOPIC)
            for partition in range(topic.partitions):
                topic.append(b"recovered", partition=partition)
                ack(f"{partition}")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """The copy has what the log has, and what was appended."""
        with pystreamlog.open(self._copy) as copied:
            topic = copied.topic(TOPIC)
            for partition in range(world.partitions):
                found = [record.value for record in topic.read(partition=partition)]
                rest = found[len(world.known[TOPIC, partition]) :]
                if found[: len(found) - len(rest)] != world.known[TOPIC, partition]:
                    raise LostError(f"the copy has other records in partition {partition}")
                if rest not in ([[b"recovered"]] if f"{partition}" in acknowledged else [[], [b"recovered"]]):
                    raise LostError(f"the copy ends with {rest} in partition {partition}")
                topic.append(b"more", partition=partition)
        shutil.rmtree(self._copy)


HARMLESS = [
    lambda: Read("read"),
    lambda: Open("open", make=False),
    lambda: Open("make a log", make=True),
    lambda: Recover("recover"),
    lambda: Recover("recover several segments", segment_bytes=4096),
]
"""Operations beside `PROCEDURES` that are failed but not killed: they have nothing to be torn."""


# --- the process that fails -------------------------------------------------------------------------------------------


class _Door:
    """Lets the chosen call fail, and tells which one it was."""

    def __init__(self, fault: Fault, say: Any) -> None:
        self._fault = fault
        self._say = say
        self._calls = 0
        self._failing = ""
        self._error = ""
        self.armed = False
        self._mutex = threading.RLock()

    def __call__(self, call: door.Call) -> Any:
        """In place of a system call."""
        if not self.armed or call.name not in FAULTS:
            return call.make()
        with self._mutex:
            self._calls += 1
            fails = self._calls == self._fault.call
            if fails:
                self._failing = call.name
                self._error = FAULTS[call.name][self._fault.kind % len(FAULTS[call.name])]
                self._say(f"failed {self._error} {'lasting' if self._fault.lasting else 'once'} {call.describe()}")
        if not fails and not (self._fault.lasting and call.name == self._failing):
            return call.make()
        if self._error == "short":
            size = len(call.data)
            return call.write_part(size // 2) if size > 1 else call.make()
        code = getattr(errno, self._error)
        raise OSError(code, os.strerror(code))


def _is_ours(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_ours, error.exceptions))
    return isinstance(error, StreamLogError) and not isinstance(error, LockTimeoutError)


def _name_of(error: BaseException) -> str:
    return _name_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else type(error).__name__


def _victim(operation: Operation, world: World, fault: Fault, probes: list[list[bytes]], say: Any) -> None:
    """Do the operation while a call fails, then go on with the same log, then with a new one."""
    watched = _Door(fault, say)
    threading.excepthook = lambda told: say(f"raised in {told.thread}: {told.exc_value!r}")
    door.install(watched)
    ready = operation.ready(world.log, world)
    watched.armed = True
    try:
        operation.act(world.log, ready, lambda name: say(f"ack {name}"))
    except Exception as error:
        watched.armed = False
        if not _is_ours(error):
            raise
        say(f"error {_name_of(error)}")
    watched.armed = False
    _probe(world.log, probes[0], say, may_be_poisoned=True)
    ready = None
    world.log.close()  # waits for what it syncs in the background, which may poison yet
    with pystreamlog.open(world.path) as fresh:
        _probe(fresh, probes[1], say, may_be_poisoned=False)
        operation.use(fresh)


def _probe(log: Any, values: list[bytes], say: Any, *, may_be_poisoned: bool) -> None:
    topic = log.topic(TOPIC)
    for partition, value in enumerate(values):
        try:
            done = topic.append(value, partition=partition)
        except StorageError as error:
            if not may_be_poisoned or "fsync" not in str(error):
                raise
            say("poisoned")
            continue
        say(f"probe {partition} {value.hex()}")
        found = [record.value for record in topic.read(partition=partition, start=done.offset, stop=done.offset + 1)]
        if found != [value]:
            raise AssertionError(f"appended {value!r} at {done.offset}, read {found!r}")


# --- the survivor -----------------------------------------------------------------------------------------------------


def _one(operation: Operation, world: World, fault: Fault, report: Report) -> str:
    """Inject one fault; what failed, empty when the operation has no such call."""
    operation.prepare(world)
    probes = [[world.value() for _ in range(min(3, world.partitions))] for _ in range(2)]
    world.probes = {value for values in probes for value in values}
    lines, status = forked(lambda say: _victim(operation, world, fault, probes, say))
    said = defaultdict(list)
    for line in lines:
        verb, _, rest = line.partition(" ")
        said[verb].append(rest)
    failed = said["failed"][0] if said["failed"] else ""
    where = f"{operation}: {failed or 'nothing failed'}, {', '.join(said['error']) or 'no error'}"
    try:
        if said["raised"] or status:
            raise LostError(f"the process ended with {status}: {' / '.join(said['raised'])}")
        if said["poisoned"] and failed.partition(" ")[0] in _OF_THE_PROCESS:
            raise LostError("poisoned, though no fsync failed")
        if said["error"] and not failed:
            raise LostError("an error, though nothing failed")
        operation.settle(world, said["ack"])
        acknowledged: dict[int, list[bytes]] = defaultdict(list)
        for probe in said["probe"]:
            partition, value = probe.split()
            acknowledged[int(partition)].append(bytes.fromhex(value))
        world.adopt(acknowledged)
        world.carry_on()
    except Exception as error:
        raise LostError(f"{where}: {type(error).__name__}: {error}") from error
    if failed:
        error_name, _, name = failed.partition(" ")
        report.faults += 1
        report.names.add(f"{operation} / {name}")
        report.kinds[error_name] += 1
        report.raised.update(said["error"])
        report.done_all_the_same += not said["error"]
        report.poisoned += bool(said["poisoned"])
    return failed


def fail_everywhere(operation: Operation, folder: str, report: Report, *, every: int = 1, kinds: int = 1) -> None:
    """Let each call of an operation fail.

    Args:
        operation: What is done.
        folder: Where to make a log.
        report: Gets what was found.
        every: Take one of so many calls.
        kinds: In how many ways each call fails; 0 for all, once and lasting.
    """
    call, ended, faults = 0, 0, report.faults
    world = World(f"{folder}/0", **operation.config)
    while ended < _ENDS:
        call += every
        if call > _MOST_CALLS:
            report.failures.append(f"{operation}: never ends")
            break
        turns = [(call // every + turn, bool((call // every + turn) % 2)) for turn in range(kinds)]
        try:
            for kind, lasting in turns or [(kind, lasting) for kind in range(5) for lasting in (False, True)]:
                failed = _one(operation, world, Fault(call, kind, lasting), report)
                ended = 0 if failed else ended + 1
                if not failed:
                    break
                if not kinds and kind + 1 >= len(FAULTS[failed.split(" / ")[-2]]) and lasting:
                    break
        except Exception as error:  # noqa: BLE001 - the other calls go on, with another log
            report.failures.append(f"call {call}: {f'{error}'[-700:] if len(f'{error}') > 1000 else error}")
            faults = -_MOST_CALLS
        if report.faults > faults + _POINTS_PER_LOG:
            faults = report.faults
            _leave(world, operation, report)
            world = World(f"{folder}/{call}", **operation.config)
    _leave(world, operation, report)


def _leave(world: World, operation: Operation, report: Report) -> None:
    report.checked += world.checked
    report.acknowledged += world.acknowledged
    operation.leave(world)
    world.close()
    shutil.rmtree(world.path)


def main() -> int:
    """Let everything fail; 0 if the log got over all of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.syscalls", description=__doc__)
    parser.add_argument(
        "--kinds", type=int, default=0, help="in how many ways each call fails (0: in all, once and on)"
    )
    parser.add_argument("--every", type=int, default=1, help="take one of so many calls (1)")
    parser.add_argument("--seed", type=int, default=0, help="the order of the operations (0)")
    parser.add_argument("--only", default="", help="operations whose names hold this")
    options = parser.parse_args()
    report, began = Report(), monotonic()
    operations = [make() for make in HARMLESS + PROCEDURES + TRANSACTED]
    random.Random(options.seed).shuffle(operations)
    for operation in operations:
        if options.only in operation.name:
            faults, since, failures = report.faults, monotonic(), len(report.failures)
            with fast_folder() as folder:
                fail_everywhere(operation, folder, report, every=options.every, kinds=options.kinds)
            _say(f"{report.faults - faults:6d} faults in {monotonic() - since:5.1f} s: {operation}")
            for failure in report.failures[failures:]:
                _say(failure)
    for line in report.lines():
        _say(line)
    _say(f"{monotonic() - began:.1f} s")
    return bool(report.failures)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
