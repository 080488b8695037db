"""A run: processes on one directory, faults by the dice, and the rules on what they wrote down.

1. Topics are made; producers, readers that assign, members of a group, and copiers start.
2. Until the time is over: members join and leave in good order, anybody is stopped for a while (some members for longer
   than `max_poll_interval_ms`), members, copiers and producers are killed by SIGKILL and others take their places.
3. All go on. The producers end; copiers copy what is left, and end; members and readers read on until every partition
   was read to its end, and end.
4. A last reader reads everything from the beginning, and the rules are applied to all the files.

The seed decides what is tried and in which order; what the processes' turns make of it is new each time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import msgspec

import pystreamlog
from pystreamlog.errors import ConfigError

from .clients import GROUP, MAX_MESSAGE_BYTES, Settings
from .copier import COPIERS
from .copy_rules import COPY_RULES
from .history import Client, Recorder, load
from .report import Report
from .rules import ASSIGNED_RULES, GROUP_RULES, check

__all__ = ["Scenario", "groups_exist", "run"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_TICK = 0.02
_BEGUN = 5
"""More lines than that say that a process is at work."""
_PATIENCE = 60.0
"""Seconds that processes may take to read to the end, or to end."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How many of whom, for how long.

    Attributes:
        seconds: Until the producers are told to end.
        seed: Of all that is random.
        topics: Partitions by topic.
        outputs: The same of the topics that copiers write to.
        producers: How many at a time.
        readers: Consumers that assign.
        members: Of the group, at the start; 0 leaves the group out.
        most_members: No more join.
        copiers: At the start; 0 leaves copies out.
        max_poll_interval_ms: Of the members.
        pause: Seconds between two operations of a producer, on average.
        fault_interval: Seconds between two faults, on average.
    """

    seconds: float
    seed: int
    topics: tuple[tuple[str, int], ...] = (("t", 4), ("u", 3))
    outputs: tuple[tuple[str, int], ...] = (("copy", 3),)
    producers: int = 3
    readers: int = 2
    members: int = 4
    most_members: int = 6
    copiers: int = 3
    max_poll_interval_ms: int = 1500
    pause: float = 0.012
    fault_interval: float = 0.5

    def keys(self, audience: str) -> set[str]:
        """All topic-partitions that some read."""
        topics = self.topics if audience in (GROUP, COPIERS) or not self.copiers else self.topics + self.outputs
        return {f"{name}/{number}" for name, count in topics for number in range(count)}


def groups_exist(log: str) -> bool:
    """Whether this version has consumer groups."""
    try:
        with pystreamlog.open(log) as opened:
            opened.create_topic("probe", exist_ok=True)
            opened.consumer("probe", group_id="probe").close()
    except ConfigError:
        return False
    return True


class _Process:
    """A client that runs."""

    def __init__(self, settings: Settings) -> None:
        self.client = settings.client
        self.ends: set[str] = set()
        self.continue_at = 0.0
        self.killed = False
        self._rest = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        module = "copier" if settings.client.role == "copier" else "clients"
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"tests.checker.{module}", msgspec.json.encode(settings).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            cwd=_ROOT,
            # Ctrl-C is for the one who started the run, who ends the others.
            process_group=0,
        )
        os.set_blocking(self._popen.stdout.fileno(), False)

    def order(self, word: str) -> None:
        """Tell it what to do."""
        with suppress(BrokenPipeError):  # it ended, and `failure` says how
            self._popen.stdin.write(f"{word}\n".encode())

    def signal(self, number: int) -> None:
        """Stop, continue or kill it."""
        self._popen.send_signal(number)
        if number == signal.SIGKILL:
            self.killed = True
            self._popen.wait()

    def die(self) -> None:
        """Have it kill itself in the middle of what it does next."""
        self.killed = True
        self.order("die")

    def listen(self) -> bool:
        """Take in what it said; whether it still runs."""
        runs = self._popen.poll() is None
        while data := self._popen.stdout.read(1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self.ends.update(msgspec.json.decode(line))
        return runs

    def failure(self) -> str:
        """What it said when it died by itself; nothing if all is well."""
        status = self._popen.poll()
        if self.killed or not status:
            return ""
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        return f"process {self.client.process} ({self.client.role}) ended with status {status}\n{said}"

    def close(self) -> None:
        """Make sure that nothing is left of it."""
        self._popen.kill()
        self._popen.wait()
        for file in (self._popen.stdin, self._popen.stdout, self._stderr):
            file.close()


class _Run:
    """The orchestrator."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self._scenario = scenario
        self._log = str(directory / "log")
        self._history = directory / "history"
        self._history.mkdir()
        self._random = random.Random(scenario.seed)
        self._recorder = Recorder(self._history / "orchestrator.jsonl", None)
        self._processes: list[_Process] = []
        self._live: list[_Process] = []
        self._dying: list[_Process] = []
        self._problems: list[tuple[str, str]] = []

    # --- processes

    def _start(self, role: str, audience: str, *, drain: bool = False, **client: object) -> _Process:
        process = len(self._processes) + 1
        outputs = dict(self._scenario.outputs) if self._scenario.copiers and role in ("copier", "reader") else {}
        topics = dict(self._scenario.topics)
        settings = Settings(
            client=Client(process=process, role=role, audience=audience, **client),
            seed=self._random.getrandbits(32),
            log=self._log,
            history=str(self._history),
            topics=topics | outputs if role == "reader" else topics,
            outputs=outputs,
            pause=self._scenario.pause,
            drain=drain,
        )
        started = _Process(settings)
        self._processes.append(started)
        self._live.append(started)
        self._recorder.event("start", process=process)
        return started

    def _join(self) -> None:
        """A member starts; some take the name of one that is gone."""
        names = {process.client.static for process in self._members()}
        free = [name for name in ("first", "second") if name not in names]
        self._start(
            "member",
            GROUP,
            group=GROUP,
            static=self._random.choice([*free, "", ""]),
            auto_commit=self._random.random() < 0.6,
            max_poll_interval_ms=self._scenario.max_poll_interval_ms,
        )

    def _join_copier(self) -> None:
        """A copier starts; some take the transactional id of one that may still be at work, and so end that."""
        taken = {process.client.transactional_id for process in self._with_role("copier")}
        free = sorted({f"copier {number}" for number in range(8)} - taken)
        self._start(
            "copier",
            COPIERS,
            group=COPIERS,
            auto_commit=False,
            transactional_id=self._random.choice([*sorted(taken), free[0], free[0], ""]),
            max_poll_interval_ms=self._scenario.max_poll_interval_ms,
        )

    def _members(self) -> list[_Process]:
        return [process for process in self._live if process.client.role == "member"]

    def _with_role(self, role: str) -> list[_Process]:
        return [process for process in self._live if process.client.role == role]

    def _look(self) -> None:
        """Take note of who ended, and let go on whose time has come."""
        now = monotonic()
        self._dying = [process for process in self._dying if process.listen()]
        for process in list(self._live):
            if not process.listen():
                self._live.remove(process)
                failure = process.failure()
                self._recorder.event("end", process=process.client.process)
                if failure:
                    self._problems.append(("client-died", failure))
            elif process.continue_at and now >= process.continue_at:
                self._continue(process)

    def _wait(self, condition: Callable[[], bool], what: str) -> bool:
        """Wait until a condition holds; if it takes too long, that is a finding."""
        deadline = monotonic() + _PATIENCE
        while not condition():
            if monotonic() > deadline:
                self._problems.append(("stalled", what))
                return False
            sleep(_TICK)
            self._look()
        return True

    # --- faults

    def _continue(self, process: _Process) -> None:
        process.continue_at = 0.0
        process.signal(signal.SIGCONT)
        self._recorder.event("continue", process=process.client.process)

    def _stop(self, process: _Process) -> None:
        if process.continue_at:
            return
        interval = self._scenario.max_poll_interval_ms / 1000
        is_long = self._random.random() < {"member": 0.4, "copier": 0.7}.get(process.client.role, 0)
        low, high = (1.2 * interval, 2.2 * interval) if is_long else (0.05, 0.6 * interval)
        self._recorder.event("stop", process=process.client.process)
        process.signal(signal.SIGSTOP)
        process.continue_at = monotonic() + self._random.uniform(low, high)

    def _kill(self, process: _Process) -> None:
        """From outside at any time, or from inside a few ms after an operation began."""
        self._recorder.event("kill", process=process.client.process)
        if not process.continue_at and self._random.random() < 0.5:
            process.die()
            self._dying.append(process)
        else:
            process.signal(signal.SIGKILL)
        self._live.remove(process)

    def _leave(self, process: _Process) -> None:
        if not process.continue_at:
            self._recorder.event("leave", process=process.client.process)
            process.order("stop")

    def _fault(self) -> None:
        """One of them, by the dice; too few members are always more again."""
        members = self._members()
        choose = self._random.choice
        if self._scenario.members and len(members) < 2:
            self._join()
            return
        if self._scenario.copiers and len(self._with_role("copier")) < 2:
            self._join_copier()
            return
        kinds = {"kill producer": 1, "stop producer": 2, "stop reader": 1}
        if self._scenario.copiers:
            few = len(self._with_role("copier")) <= self._scenario.copiers
            kinds |= {"kill copier": 4, "stop copier": 4, "leave copier": 1, "join copier": 5 if few else 0}
        if members:
            kinds |= {"kill": 4, "stop": 6, "leave": 3, "join": 5 if len(members) < self._scenario.most_members else 0}
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        if kind == "join":
            self._join()
        elif kind == "kill producer":
            self._kill(choose(self._with_role("producer")))
            self._start("producer", "")
        elif kind == "join copier":
            self._join_copier()
        elif kind in ("kill copier", "leave copier"):
            (self._kill if kind == "kill copier" else self._leave)(choose(self._with_role("copier")))
        elif kind in ("stop producer", "stop reader", "stop copier"):
            self._stop(choose(self._with_role(kind.split()[1])))
        else:
            {"kill": self._kill, "stop": self._stop, "leave": self._leave}[kind](choose(members))

    # --- the course

    def run(self) -> None:
        """All of it."""
        scenario = self._scenario
        with pystreamlog.open(self._log) as log:
            for name, partitions in scenario.topics + (scenario.outputs if scenario.copiers else ()):
                log.create_topic(
                    name, partitions=partitions, max_message_bytes=MAX_MESSAGE_BYTES, segment_bytes=1 << 18
                )
        try:
            for _ in range(scenario.producers):
                self._start("producer", "")
            for number in range(scenario.readers):
                self._start("reader", f"reader {number}")
            for _ in range(scenario.members):
                self._join()
            for _ in range(scenario.copiers):
                self._join_copier()
            self._wait(self._have_begun, "not everybody began")
            self._disturb()
            self._finish()
        finally:
            for process in self._processes:
                process.close()
            self._recorder.close()

    def _have_begun(self) -> bool:
        """Whether every process has done something: on a busy machine they take seconds to start."""
        paths = [self._history / f"{one.client.process:04}-{one.client.role}.jsonl" for one in self._processes]
        return bool(self._problems) or all(path.exists() and path.read_bytes().count(b"\n") > _BEGUN for path in paths)

    def _disturb(self) -> None:
        end = monotonic() + self._scenario.seconds
        due = monotonic() + self._scenario.fault_interval
        while monotonic() < end and not self._problems:
            sleep(_TICK)
            self._look()
            if monotonic() >= due and not self._problems:
                self._fault()
                due = monotonic() + self._scenario.fault_interval * self._random.uniform(0.3, 1.7)

    def _finish(self) -> None:
        for process in self._live:
            if process.continue_at:
                self._continue(process)
        if self._scenario.members and len(self._members()) < 2:
            self._join()
        for process in self._with_role("producer"):
            process.order("stop")
        if not self._wait(lambda: not self._with_role("producer") and not self._dying, "the producers did not end"):
            return
        if self._scenario.copiers:
            self._finish_copies()
        for process in self._live:
            process.order("drain")
        audiences = [f"reader {number}" for number in range(self._scenario.readers)]
        for audience in [*audiences, GROUP] if self._scenario.members else audiences:
            self._finish_reading(audience)
        self._end_all()
        self._start("reader", "last reader", drain=True)
        self._finish_reading("last reader")
        self._end_all()

    def _finish_copies(self) -> None:
        if len(self._with_role("copier")) < 2:
            self._join_copier()
        for process in self._with_role("copier"):
            process.order("drain")
        self._finish_reading(COPIERS)
        for process in self._with_role("copier"):
            process.order("stop")
        self._wait(lambda: not self._with_role("copier"), "the copiers did not end")

    def _finish_reading(self, audience: str) -> None:
        def missing() -> set[str]:
            ends = [process.ends for process in self._processes if process.client.audience == audience]
            return self._scenario.keys(audience).difference(*ends)

        if self._wait(lambda: not missing() or bool(self._problems), f"{audience} did not read to the end"):
            if not missing():
                self._recorder.audience_is_complete(audience)
        else:
            self._problems.append(("stalled", f"{audience} has not read to the end of {sorted(missing())}"))

    def _end_all(self) -> None:
        for process in self._live:
            process.order("stop")
        self._wait(lambda: not self._live, "consumers did not end")

    def report(self) -> Report:
        """What the rules say of it."""
        report = check(load(self._history))
        for rule, text in self._problems:
            report.find(rule, text)
        report.demand(GROUP_RULES if self._scenario.members else ASSIGNED_RULES)
        report.demand(COPY_RULES if self._scenario.copiers else ())
        return report


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="checker-") as name:
            yield Path(name)
    else:
        keep.mkdir(parents=True)
        yield keep


def run(scenario: Scenario, keep: Path | None = None) -> Report:
    """Run a scenario.

    Args:
        scenario: What to do.
        keep: A directory to make, for the log and the histories; else they are removed.
    """
    with _directory(keep) as directory:
        course = _Run(scenario, directory)
        course.run()
        return course.report()
