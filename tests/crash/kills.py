"""Kill points: a process is killed at every step of every operation, and a survivor goes on at once.

`python -m tests.crash.kills` does all of it. The survivor is the process itself: it has the log open, forks a victim
for each point (2 ms; everything is imported once), and the victim kills itself by SIGKILL before or after a step, or
in the middle of writing. Then the survivor looks at what is left, with the objects it had before, goes on, and
compares with what a new opener sees. Same boot: nothing is ever recovered.

A step is a system call that changes something, or a lock; see `door`. Steps are counted as they come, so that points
appear and go with the code; each is named by its operation, the function that makes the call, the method of the door,
the kind of file, and which time that is.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from time import monotonic
from typing import Any, NamedTuple

from . import door
from .procedures import PROCEDURES, Operation
from .transacted import TRANSACTED
from .world import PATIENCE, LostError, World

__all__ = ["Forked", "Outcome", "Point", "Report", "fast_folder", "forked", "kill_everywhere", "main", "start_forked"]

_ENDS = 3
"""So often in a row the operation must have come to its end: what one death leaves, the next victim may clean up."""
_POINTS_PER_LOG = 40
"""Then there is so much to compare that another log is quicker."""
_LONGEST_JUMP = 16
"""A sample tries at least one of so many steps, so that it does not take the end for reached."""


class Point(NamedTuple):
    """Where a victim dies.

    Attributes:
        step: At which step of the operation, from 1.
        part: `"before"` it, `"after"` it, or after writing so many bytes.
    """

    step: int
    part: str | int


class Outcome(NamedTuple):
    """What a victim said before it ended.

    Attributes:
        acknowledged: Parts of the operation that were acknowledged to it, by their names.
        died_at: The step it died at; empty when it came to the operation's end.
        size: Bytes that the step writes.
    """

    acknowledged: list[str]
    died_at: str
    size: int


class Report:
    """What was done to the log, and what came of it."""

    def __init__(self) -> None:
        self.points = 0
        self.partial = 0
        self.checked = 0
        self.acknowledged = 0
        self.by_operation: Counter[str] = Counter()
        self.names: set[str] = set()
        self.failures: list[str] = []

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.points} kill points ({self.partial} in the middle of a write) at {len(self.names)} named steps of "
            f"{len(self.by_operation)} operations: {self.acknowledged} acknowledged records, read and compared "
            f"{self.checked} times, {len(self.failures)} failures"
        )


# --- the victim -------------------------------------------------------------------------------------------------------


class Forked:
    """A forked child, and the pipe in which it speaks.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    def wait(self) -> tuple[list[str], int]:
        """Wait for its end: the lines it said, and its wait status."""
        with os.fdopen(self._pipe, "rb") as pipe:
            lines = pipe.read().decode().splitlines()
        return lines, os.waitpid(self.pid, 0)[1]


def start_forked(victim: Callable[[Callable[[str], None]], None]) -> Forked:
    """Run `victim(say)` in a forked child; what it raises is said, too."""
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            os.close(read_fd)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)  # told from one that dies
            victim(lambda line: os.write(write_fd, line.encode() + b"\n"))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the survivor tells
            os.write(write_fd, b"raised " + repr(traceback.format_exc(limit=-4)).encode() + b"\n")
        finally:
            os._exit(1)
    os.close(write_fd)
    return Forked(pid, read_fd)


def forked(victim: Callable[[Callable[[str], None]], None]) -> tuple[list[str], int]:
    """Run `victim(say)` in a forked child to its end: the lines it said, and its wait status."""
    return start_forked(victim).wait()


def kill_at(operation: Operation, world: World, point: Point) -> Outcome:
    """Fork a victim that does the operation and dies at the point, if it gets there."""

    def victim(say: Callable[[str], None]) -> None:
        steps: Counter[str] = Counter()
        alive = RLock()
        armed = False

        def hook(call: door.Call) -> Any:
            if not armed or not call.changes:
                return call.make()
            name = call.describe()
            with alive:
                steps[name] += 1
                now = steps.total() == point.step
            if not now:
                return call.make()
            alive.acquire()  # for ever: no other thread gets any further, or to the end
            say(f"size {len(call.data)}")
            say(f"died {name} / {steps[name]}")
            try:
                if point.part == "after":
                    call.make()
                elif isinstance(point.part, int) and call.data:
                    call.write_part(point.part)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        door.install(hook)
        ready = operation.ready(world.log, world)
        armed = True
        operation.act(world.log, ready, lambda name: say(f"ack {name}"))
        alive.acquire()

    lines, status = forked(victim)
    said: dict[str, str] = dict(line.partition(" ")[::2] for line in lines)
    if "raised" in said:
        raise LostError(f"the victim failed: {said['raised']}")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed != ("died" in said) or (status and not killed):
        raise LostError(f"the victim ended with status {status} after {lines[-3:]}")
    acknowledged = [line.removeprefix("ack ") for line in lines if line.startswith("ack ")]
    return Outcome(acknowledged, said.get("died", ""), int(said.get("size", 0)))


# --- the survivor -----------------------------------------------------------------------------------------------------


def _parts(size: int, count: int) -> list[int]:
    """After how many bytes to die in a write of that size."""
    candidates = dict.fromkeys((size // 2, 1, size - 1, 8, size - 8, size // 3))
    return [part for part in candidates if 0 < part < size][:count]


def kill_everywhere(
    operation: Operation, folder: str, report: Report, *, partial: int = 2, every: int = 1, first: int = 0
) -> None:
    """Kill a victim at every step of the operation.

    Args:
        operation: What it does.
        folder: Where to make a log.
        report: Gets what was found.
        partial: In how many places to die in a write.
        every: Take one of so many points, in turn.
        first: Which of them.
    """
    turn, step, ended, points = first, 0, 0, report.points
    world = World(f"{folder}/0", **operation.config)
    try:
        while ended < _ENDS:
            step += 1
            if report.points > points + _POINTS_PER_LOG:
                points = report.points
                world = _other(world, f"{folder}/{step}", operation, report)
            outcome = None
            for part in ("before", "after"):
                turn += 1
                if turn % every == 0 or step % _LONGEST_JUMP == 0:
                    outcome = _one(operation, world, Point(step, part), report)
                    ended = 0 if outcome.died_at else ended + 1
            if outcome is not None and (every == 1 or turn % (2 * every) == 0):
                for size in _parts(outcome.size, partial):
                    _one(operation, world, Point(step, size), report)
    except Exception as error:  # noqa: BLE001 - the other operations go on
        report.failures.append(f"{operation}, step {step}: {type(error).__name__}: {error}")
    finally:
        _other(world, "", operation, report)


def _other(world: World, path: str, operation: Operation, report: Report) -> World:
    """Done with that log; another one, unless the path is empty."""
    report.checked += world.checked
    report.acknowledged += world.acknowledged
    operation.leave(world)
    world.close()
    shutil.rmtree(world.path)
    return World(path, **operation.config) if path else world


def _one(operation: Operation, world: World, point: Point, report: Report) -> Outcome:
    operation.prepare(world)
    outcome = kill_at(operation, world, point)
    where = f"{operation} killed {point.part} {outcome.died_at or 'nowhere'}"
    try:
        operation.settle(world, outcome.acknowledged)
        world.carry_on(torn=isinstance(point.part, int))
    except Exception as error:
        raise LostError(f"{where}: {type(error).__name__}: {error}") from error
    if outcome.died_at:
        report.points += 1
        report.by_operation[operation.name] += 1
        report.names.add(f"{operation} / {outcome.died_at}")
        report.partial += isinstance(point.part, int)
    return outcome


@contextmanager
def fast_folder() -> Iterator[str]:
    """A folder that goes afterwards, in memory if there is room: a kill loses nothing that the kernel has."""
    shared = Path("/dev/shm")  # noqa: S108 - made by mkdtemp, for its owner only
    parent = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pystreamlog-", dir=parent) as folder:
        yield folder


def main() -> int:
    """Kill everywhere; 0 if every survivor found what it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="stop after so many points (0: when all were met)")
    parser.add_argument("--partial", type=int, default=4, help="in how many places to die in a write (4)")
    parser.add_argument("--every", type=int, default=1, help="take one of so many points (1)")
    parser.add_argument("--seed", type=int, default=0, help="the order of the operations (0)")
    parser.add_argument("--only", default="", help="operations whose names hold this")
    options = parser.parse_args()
    report, began = Report(), monotonic()
    operations = [make() for make in PROCEDURES + TRANSACTED]
    random.Random(options.seed).shuffle(operations)
    for operation in operations:
        if options.only in operation.name and not 0 < options.count <= report.points:
            points, since, failures = report.points, monotonic(), len(report.failures)
            with fast_folder() as folder:
                kill_everywhere(operation, folder, report, partial=options.partial, every=options.every)
            _say(f"{report.points - points:6d} points in {monotonic() - since:5.1f} s: {operation}")
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
