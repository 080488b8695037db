"""The command line of runs whose chains of lives and crashes follow from a seed each."""

from __future__ import annotations

import argparse
import random
import sys
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Protocol

__all__ = ["main"]


class _Report(Protocol):
    """What was tried and found."""

    finding: Exception | None

    @property
    def crashes(self) -> int:
        """How many were tried."""

    def lines(self) -> list[str]:
        """All of it in words."""


def main(
    name: str, description: str | None, run: Callable[[int, int], _Report], repeat: Callable[[int, int], _Report]
) -> int:
    """Run; 0 if nothing was found.

    Args:
        name: The module's.
        description: What it does.
        run: Tries so many crashes; the second number is the seed of all chains.
        repeat: Tries one chain, of the seed that is given first, and so many crashes of it at most.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.crash.{name}", description=description)
    parser.add_argument("--count", type=int, default=10_000, help="how many crashes (10000)")
    parser.add_argument("--seed", type=int, help="of all that is random (a new one)")
    parser.add_argument("--chain", type=int, help="repeat one chain")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    begun = monotonic()
    if options.chain is None:
        _say(f"seed {seed}")
        report = run(options.count, seed)
    else:
        report = repeat(options.chain, options.count)
    for line in report.lines():
        _say(line)
    seconds = monotonic() - begun
    _say(f"{seconds:.1f} s, {report.crashes / seconds:.0f} crashes a second")
    if report.finding is not None and report.finding.__cause__ is not None:
        traceback.print_exception(report.finding.__cause__)
    return report.finding is not None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
