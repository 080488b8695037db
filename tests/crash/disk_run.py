"""`python -m tests.crash.disk_run`: power losses and killed processes, and what must be left after each.

A chain of lives begins with an empty disk. In each life the log is looked at, and worked on by random operations. Then
crashes at many points of that life are tried, each one looked at, some of them crashed again in the middle of the
recovery; and from one of them the chain goes on.

Everything follows from the seed. A finding tells the chain's own seed: `--chain N` repeats it alone.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import NamedTuple

from pystreamlog.errors import StreamLogError

from .chains import main
from .disk import STYLES, Disk
from .expectation import Expectation, Finding
from .machine import simulated
from .operations import OPERATIONS, Life

__all__ = ["Report", "run", "run_chain"]

_LIVES = 6
_OPERATIONS = 30
_CRASHES = 20
_KILLED = 0.2
_AGAIN = 0.4
_AT_PROMISE = 0.5
_BEFORE_SYNC = 0.15


class Report:
    """What was tried and found.

    Attributes:
        counts: Of crashes by kind, of records looked at and of those that were promised.
        slowest: Seconds of the longest look, with its recoveries.
        finding: What was found.
        chain: The seed of the chain in which it was.
        said: What was done there.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.finding: Exception | None = None
        self.chain = 0
        self.said: list[str] = []

    @property
    def crashes(self) -> int:
        """How many there were."""
        return self.counts["crashes"]

    def lines(self) -> list[str]:
        """The counts in words."""
        counts = self.counts
        styles = ", ".join(f"{style} {counts[style]}" for style in ("killed", *STYLES))
        lines = [
            f"{self.crashes} crashes: {styles}; {counts['again']} of them within a recovery",
            f"{counts['records']} records read after them, {counts['promised']} of them promised",
            f"longest look, with its recoveries: {self.slowest * 1000:.1f} ms",
        ]
        if self.finding is not None:
            lines += [*self.said, f"chain {self.chain}", f"FOUND {self.finding}"]
        return lines


def run(count: int, seed: int) -> Report:
    """Chains until so many crashes were tried, or something was found."""
    report = Report()
    seeds = random.Random(seed)
    with simulated() as home:
        while report.crashes < count and report.finding is None:
            run_chain(home, seeds.randrange(1 << 48), report, count)
    return report


def run_chain(home: str, chain: int, report: Report, count: int) -> None:
    """One chain of lives."""
    dice = random.Random(chain)
    said: list[str] = []
    disk, expected, boot, style, step, is_cut = Disk(), Expectation(), 1, "", 0.0, False
    try:
        for _ in range(_LIVES):
            is_cut = _is_cut(style, step, before=is_cut)
            life = Life(home, disk, boot, expected, dice, is_fresh=style != "killed", is_cut=is_cut)
            life.said = said
            try:
                _look(life, style, report)
                if report.crashes >= count:
                    return
                _work(life)
                *crashes, (step, style, disk) = _crashes(life, dice)
                for at, how, after in crashes:
                    if report.crashes < count:
                        then = life.expected.at(at, killed=how == "killed")
                        crash = _Crash(boot, how, at, dice.randrange(1 << 48), is_cut)
                        _try(home, after, then, crash, report, said)
                expected = life.expected.at(step, killed=style == "killed")
                said.append(f"--- {style} at step {step} of {life.machine.now}")
            finally:
                life.machine.end()
            boot = _next_boot(boot, style)
    except Finding as finding:
        report.finding, report.chain, report.said = finding, chain, said
    except Exception as error:  # noqa: BLE001 - whatever it is, it was not promised
        kind = "refused" if isinstance(error, (StreamLogError, ExceptionGroup)) else "failed"
        report.finding, report.chain, report.said = Finding(kind, f"{error!r}"), chain, said
        report.finding.__cause__ = error


def _look(life: Life, style: str, report: Report) -> None:
    """Look at what a crash left."""
    life.look()
    if style:
        report.counts.update(("crashes", style))
        report.counts["records"] += life.found[0]
        report.counts["promised"] += life.found[1]
        report.slowest = max(report.slowest, life.seconds)


def _is_cut(style: str, step: float, *, before: bool) -> bool:
    """Whether a write may be there in part; a process that dies before it looked leaves that to the next one."""
    return style == "killed" and (before or step % 1 > 0)


def _next_boot(boot: int, style: str) -> int:
    return boot + (style != "killed")


def _work(life: Life) -> None:
    operations, weights = zip(*OPERATIONS, strict=True)
    for operation in life.dice.choices(operations, weights, k=life.dice.randint(1, _OPERATIONS)):
        operation(life)


def _crashes(life: Life, dice: random.Random, count: int = _CRASHES) -> list[tuple[float, str, Disk]]:
    """Crashes at some steps of a life: the step, the style, the disk afterwards; the last one is any of them.

    Half a step more says that the next one had begun.
    """
    syncs = [step for step, (kind, *_) in enumerate(life.machine.recorder.trace) if kind in ("datasync", "sync")]
    steps = []
    for _ in range(count):
        face = dice.random()
        if face < _AT_PROMISE and life.acks:
            steps.append(dice.choice(life.acks))
        elif face > 1 - _BEFORE_SYNC and syncs:
            steps.append(dice.choice(syncs))
        else:
            steps.append(dice.randint(0, life.machine.now))
    steps.sort()
    crashes = []
    for step, disk in zip(steps, life.machine.disks(steps), strict=True):
        if dice.random() < _KILLED:
            after = disk.copy()
            if step < life.machine.now and dice.random() < 0.3:
                after.cut(life.machine.recorder.trace[step], dice)
                crashes.append((step + 0.5, "killed", after))
            else:
                crashes.append((step, "killed", after))
        else:
            style = dice.choice(STYLES)
            crashes.append((step, style, Disk(disk.after_power_loss(dice, style))))
    crashes.append(dice.choice(crashes))
    return crashes


class _Crash(NamedTuple):
    """When and how."""

    boot: int
    style: str
    step: float
    seed: int
    was_cut: bool


def _try(home: str, disk: Disk, expected: Expectation, crash: _Crash, report: Report, said: list[str]) -> None:
    """One crash: look at what is left; sometimes crash again in the middle of that."""
    boot, style, step, seed, is_cut = crash
    dice = random.Random(seed)
    length = len(said)
    for depth in range(3):  # a recovery of a recovery of a recovery
        boot = _next_boot(boot, style)
        said.append(f"--- tried: {style} at step {step}")
        is_cut = _is_cut(style, step, before=is_cut)
        life = Life(home, disk, boot, expected, dice, is_fresh=style != "killed", is_cut=is_cut)
        life.said = said
        try:
            _look(life, style, report)
            if dice.random() > _AGAIN:
                life.look_again()
                break
            report.counts["again"] += depth < 2
            (step, style, disk), *_ = _crashes(life, dice, 1)
            expected = life.expected.at(step, killed=style == "killed")
        finally:
            life.machine.end()
    del said[length:]


def _repeat(chain: int, count: int) -> Report:
    report = Report()
    with simulated() as home:
        run_chain(home, chain, report, count)
    return report


if __name__ == "__main__":
    sys.exit(main("disk_run", __doc__, run, _repeat))
