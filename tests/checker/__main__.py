"""`python -m tests.checker`: one run, its counts, and status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import monotonic

from .history import load
from .rules import check
from .run import Scenario, groups_exist, run

__all__ = ["main"]


def main() -> int:
    """Run; 0 if every rule held and had something to hold for."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long faults go on (30)")
    parser.add_argument("--seed", type=int, help="of all that is random (a new one)")
    parser.add_argument("--members", type=int, help="of the group at the start; 0 leaves it out (4)")
    parser.add_argument("--copiers", type=int, help="of records, in transactions; 0 leaves them out (3)")
    parser.add_argument("--keep", type=Path, help="a directory to make for the log and the histories")
    parser.add_argument("--check", type=Path, metavar="HISTORIES", help="only apply the rules to what a run has kept")
    options = parser.parse_args()
    if options.check:
        report = check(load(options.check))
    else:
        seed = random.randrange(1 << 32) if options.seed is None else options.seed
        scenario = Scenario(seconds=options.seconds, seed=seed)
        if options.members is not None:
            scenario = replace(scenario, members=options.members)
        if options.copiers is not None:
            scenario = replace(scenario, copiers=options.copiers)
        _say(f"seed {seed}")
        if scenario.members:
            with tempfile.TemporaryDirectory() as probe:
                if not groups_exist(probe):
                    _say("this version has no consumer groups: they are left out")
                    scenario = replace(scenario, members=0)
        began = monotonic()
        report = run(scenario, options.keep)
        _say(f"{monotonic() - began:.1f} s in all")
    for line in report.lines():
        _say(line)
    _say(f"FOUND: {', '.join(sorted(report.bad))}" if report.bad else "nothing was found")
    return bool(report.bad)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
