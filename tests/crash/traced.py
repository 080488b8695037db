"""Failing system calls of a real process, by `strace`: what the kernel is seen to answer, not what a stand-in does.

`python -m tests.crash.traced` goes through all scenarios, most of them at several calls. A process appends with both
durabilities, rolls, and tells what was acknowledged to it, while `strace` lets a system call fail, kills the process at
it, or holds it up. Afterwards everything that was acknowledged is there, nothing else is, and the log goes on.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pystreamlog
from pystreamlog.errors import CorruptLogError

from .world import LostError, value_of

__all__ = ["SCENARIOS", "Scenario", "main", "reason_against", "run"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_TIMEOUT = 60
_RECORDS = 40

_PROGRAM = """
import sys
import pystreamlog
from pystreamlog.errors import StorageError
from tests.crash.world import value_of

log = pystreamlog.open(sys.argv[1])
topic = log.topic("events")
first = int(sys.argv[2])
print("begun", flush=True)
for number in range(first, first + int(sys.argv[3])):
    try:
        done = topic.append(value_of(number, 300), durability="fsync" if number % 4 == 0 else "os")
        print("ack", number, done.offset, flush=True)
    except StorageError as error:
        print("refused", number, error.errno, flush=True)
    if number == first + 20:
        try:
            log.create_topic("another", exist_ok=True).append(b"x")
        except StorageError as error:
            print("refused", -1, error.errno, flush=True)
log.close()
print("done", flush=True)
"""


class Scenario(NamedTuple):
    """What is done to a process.

    Attributes:
        inject: As after `strace -e inject=`.
        calls: At which calls, one after the other; the first alone in short.
        killed: The process dies of it.
        lies: The call says that it wrote, and did not: the log may find damage, but must not make anything up.
        only: Files that it is about, below the log; others go on.
    """

    inject: str
    calls: tuple[int, ...]
    killed: bool = False
    lies: bool = False
    only: tuple[str, ...] = ()


SCENARIOS = (
    Scenario("pwrite64:error=EIO", (8, 9, 20, 50)),
    Scenario("pwrite64:error=ENOSPC", (12, 30, 61)),
    Scenario("fdatasync:error=EIO", (2, 5, 9)),
    Scenario("fdatasync:error=ENOSPC", (3, 7)),
    Scenario("fsync:error=EIO", (1, 2)),
    Scenario("rename,renameat,renameat2:error=ENOSPC", (1, 2)),
    Scenario("fallocate:error=ENOSPC", (1, 2)),
    Scenario("openat:error=EMFILE", (1, 3, 5), only=("topics/events/0/control", "topics/events/0")),
    Scenario("pwrite64:signal=SIGKILL", (5, 11, 12, 29, 40, 77), killed=True),
    Scenario("fdatasync:signal=SIGKILL", (1, 4, 8), killed=True),
    Scenario("rename,renameat,renameat2:signal=SIGKILL", (1, 2), killed=True),
    Scenario("fdatasync:delay_enter=100000", (2,)),
    Scenario("pwrite64:retval=7", (15, 24, 33), lies=True, only=("topics/events/0/control",)),
)


@cache
def reason_against() -> str:
    """Why no process can be traced here; empty if one can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
    return f"strace may not trace here: {done.stderr.strip()}" if done.returncode else ""


def run(scenario: Scenario, call: int, folder: str) -> tuple[int, int]:
    """One process and one injection: how many records were acknowledged, and refused.

    Raises:
        LostError: Something was lost, or is there that may not be.
    """
    path = f"{folder}/log"
    known: dict[int, int] = {}
    with pystreamlog.open(path) as log:
        topic = log.create_topic("events", segment_bytes=4096)
        for number in range(3):
            known[topic.append(value_of(number, 300)).offset] = number
        command = ["strace", "-f", "-qq", "-o", "/dev/null"]
        command += [part for name in scenario.only for part in ("-P", f"{path}/{name}")]
        command += ["-e", f"inject={scenario.inject}:when={call}{'' if scenario.killed or scenario.lies else '+7'}"]
        command += [sys.executable, "-c", _PROGRAM, path, "100", f"{_RECORDS}"]
        done = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True, timeout=_TIMEOUT)
        lines = [line.split() for line in done.stdout.splitlines()]
        killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if killed != scenario.killed or (not killed and (done.returncode or ["done"] not in lines)):
            raise LostError(f"{scenario}, call {call}: ended with {done.returncode}: {done.stderr[-500:]}")
        known.update((int(line[2]), int(line[1])) for line in lines if line[0] == "ack")
        refused = {int(line[1]) for line in lines if line[0] == "refused"}
        _check(log, known, scenario)
    with pystreamlog.open(path) as log:
        _check(log, known, scenario)
        if not scenario.lies:
            topic = log.topic("events")
            topic.append(b"after", durability="fsync")
            if [record.value for record in topic.read()][-1] != b"after":
                raise LostError(f"{scenario}, call {call}: the log does not go on")
    return len(known), len(refused)


def _check(log: pystreamlog.StreamLog, known: dict[int, int], scenario: Scenario) -> None:
    found: dict[int, bytes | None] = {}
    try:
        for record in log.topic("events").read():
            found[record.offset] = record.value
    except CorruptLogError:
        if not scenario.lies:
            raise
    for offset, value in found.items():
        number = int((value or b"?").partition(b":")[0])
        if value != value_of(number, 300) or known.get(offset, number) != number:
            raise LostError(f"{scenario}: {(value or b'')[:40]!r} at {offset}, where {known.get(offset)} belongs")
    missing = known.keys() - found.keys()
    if missing and not scenario.lies:
        raise LostError(f"{scenario}: acknowledged and gone: {sorted(missing)}")


def main() -> int:
    """Go through all scenarios; 0 if the log got over all of them."""
    argparse.ArgumentParser(prog="python -m tests.crash.traced", description=__doc__).parse_args()
    reason = reason_against()
    if reason:
        sys.stderr.write(f"cannot trace anything here: {reason}\n")
        return 2
    began, runs, acknowledged, refused, failed = monotonic(), 0, 0, 0, 0
    for scenario in SCENARIOS:
        for call in scenario.calls:
            runs += 1
            try:
                with tempfile.TemporaryDirectory() as folder:
                    result = run(scenario, call, folder)
            except Exception:  # noqa: BLE001 - the others go on
                failed += 1
                traceback.print_exc()
            else:
                acknowledged, refused = acknowledged + result[0], refused + result[1]
    sys.stdout.write(
        f"{runs} traced processes: {acknowledged} records acknowledged, {refused} refused, {failed} failures; "
        f"{monotonic() - began:.1f} s\n"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
