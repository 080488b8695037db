"""`python -m tests.crash.snapshots`: power losses while snapshots are taken, and after.

The disk is that of `disk_run`, with the log in one directory of it and snapshots beside. In each life the log and all
its snapshots are looked at and worked on by random operations, and another snapshot is taken, sometimes while others
write. Then the power fails at many points of that life, and again in lives that go on from there. What must hold:

1. The log has what `Expectation` says, as if there were no snapshots: nothing that is done to a copy reaches it.
2. A snapshot whose call had returned has, for good, exactly the records and committed offsets that it had then. It
   verifies, and has an id of its own. Whatever the log does since: compacts, deletes, recovers.
3. One whose call had not returned is whole, or there is nothing, or an empty directory that was there before. What
   is left beside begins with `~`, and is no log or a whole one. Another snapshot to that place works, and removes it.

Everything follows from the seed. A finding tells the chain's own seed: `--chain N` repeats it alone.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import msgspec

from pystreamlog.errors import IncompatibleFormatError, StreamLogError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

from .chains import main
from .disk import ROOT, STYLES, Disk, Image
from .expectation import Expectation, Finding
from .machine import simulated
from .operations import OPERATIONS, Life, fail_to_sync, read_all, reopen

__all__ = ["LOG", "Contents", "Report", "Taken", "check", "contents", "empty_disk", "run", "run_chain", "take"]

LOG = "log"
"""The log's directory."""

_DEPTH = 2
_CRASHES = (14, 2)
"""So many crashes of a first life, and of one that follows."""
_OPERATIONS = 30
_BUSY = 0.4
_READ_ONLY = 0.2
_AT_PROMISE = 0.2
_BEFORE_SYNC = 0.3

_WORK = [one for one in OPERATIONS if one[0] is not fail_to_sync]
_MEANWHILE = [one for one in _WORK if one[0] is not reopen]

Read = tuple[int, int, dict[int, bytes]]


class Contents(msgspec.Struct, frozen=True):
    """What a log has.

    Attributes:
        log_id: Its id.
        records: Of each topic and partition where it starts, where it ends, and the records by offset.
        offsets: What is committed, by group, topic and partition.
    """

    log_id: bytes
    records: dict[tuple[str, int], Read]
    offsets: dict[tuple[str, str, int], int]


class Taken(msgspec.Struct, frozen=True):
    """A snapshot.

    Attributes:
        name: Of its directory.
        done: The step at which its call returned; 0 in a life before.
        contents: What it had then.
    """

    name: str
    done: int
    contents: Contents


def empty_disk() -> Disk:
    """A disk with an empty directory for a log, and room beside it."""
    return Disk(Image({ROOT: {LOG: ROOT + 1}, ROOT + 1: {}}, {}))


def contents(log: Any) -> Contents:
    """All that is in a log; topics that are half deleted are left out."""
    records: dict[tuple[str, int], Read] = {}
    for name in log.topics():
        with suppress(UnknownTopicError):
            topic = log.topic(name)
            records |= {(name, number): read_all(topic, number) for number in range(topic.partitions)}
    offsets = {}
    for group in log.admin.list_consumer_groups():
        committed = log.admin.list_consumer_group_offsets(group.group_id)[group.group_id]
        offsets |= {(group.group_id, *tp): each.offset for tp, each in committed.items() if tuple(tp) in records}
    return Contents(log._log_id, records, offsets)


# --- taking one -------------------------------------------------------------------------------------------------------


def take(
    life: Life,
    name: str,
    *,
    topics: Sequence[str] | None = None,
    read_only: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Taken | None:
    """Take a snapshot; what it has is what the log has, or had while it was taken.

    Args:
        life: The machine.
        name: Of the directory.
        topics: Those that it shall have; None for all.
        read_only: By a process that may not write the log, so that it has to sync what both have by itself.
        meanwhile: Called each time that somebody else may do something.

    Returns:
        The snapshot; None where a topic that was named was deleted meanwhile.

    Raises:
        Finding: It has something else.
    """
    before, known = contents(life.log), {subject.id for subject in life.subjects()}
    log = life.machine.open(read_only=True) if read_only else life.log
    progress = None if meanwhile is None else lambda done, total: meanwhile()
    try:
        report = log.snapshot(f"{life.machine.home}/{name}", topics=topics, progress=progress)
    except UnknownTopicError:
        if topics is None or meanwhile is None:
            raise
        return None
    done = life.promise()
    with life.machine.open(name, create=False, read_only=True) as copy:
        found = contents(copy)
    ends = {tp: found.records[tuple(tp)][1] for tp in report.end_offsets}
    if found.log_id == log._log_id or report.end_offsets != ends:
        raise Finding("failed", f"{report} was made, {ends} are the ends")
    wanted = {key for key in before.records if topics is None or key[0] in topics}
    if meanwhile is None:
        records = {key: before.records[key] for key in wanted}
        offsets = {key: each for key, each in before.offsets.items() if key[1:] in wanted}
        if (found.records, found.offsets) != (records, offsets):
            raise Finding("lost", f"a snapshot has {_brief(found)} instead of {_brief(before)}")
    else:
        _check_moment(life, before, found, wanted, known)
    left = [entry for entry in os.listdir(life.machine.home) if entry.startswith(f"~{name}-")]
    if left:
        raise Finding("failed", f"{left} is left beside a snapshot that was made")
    return Taken(name, done, found)


def _check_moment(
    life: Life, before: Contents, found: Contents, wanted: set[tuple[str, int]], known_topics: set[bytes]
) -> None:
    """A snapshot that was taken while others wrote is of some moment since."""
    # A topic that was deleted meanwhile may be in it or not, also if another has its name by now.
    there = {subject.name: subject for subject in life.subjects() if subject.id in known_topics}
    missing = [key for key in wanted - found.records.keys() if key[0] in there]
    if missing:
        raise Finding("lost", f"a snapshot lacks {missing}")
    after = contents(life.log)
    for (name, number), (start, end, records) in found.records.items():
        known = before.records.get((name, number))
        if known is not None and name in there and after.records[name, number][1] >= known[1] > end:
            raise Finding("lost", f"{name}/{number} ends at {end} in a snapshot, {known[1]} was the end before it")
        sent = there[name].line(number).sent if name in there else None
        if sent is not None and any(sent[offset] != record for offset, record in records.items()):
            raise Finding("invented", f"{name}/{number} has other records in a snapshot")
        later = after.records.get((name, number), (0, 0, {}))[2] if name in there else {}
        lost = [offset for offset in later if start <= offset < end and offset not in records]
        if lost:
            raise Finding("hole", f"{name}/{number} lacks {lost} in a snapshot")
    beyond = {key: each for key, each in found.offsets.items() if each > found.records[key[1:]][1]}
    if beyond:
        raise Finding("committed", f"{beyond} are committed beyond the ends in a snapshot")
    named = {subject.id: subject for subject in there.values()}
    for transaction in life.expected.transactions:
        told = {}
        for topic_id, number, first, values in transaction.parts:
            subject = named.get(topic_id)
            if subject is None or (subject.name, number) not in found.records:
                continue
            # One that a power loss undid is not there, whatever is at its offsets by now.
            if subject.line(number).sent[first : first + len(values)] == values:
                told[subject.name, number] = first < found.records[subject.name, number][1]
        if len(set(told.values())) > 1:
            raise Finding("torn", f"of a transaction a snapshot has {told}")


def _brief(found: Contents) -> str:
    ends = {key: (start, end, len(records)) for key, (start, end, records) in found.records.items()}
    return f"{ends}, {found.offsets}"


# --- after a power loss -----------------------------------------------------------------------------------------------


def check(
    life: Life, taken: Taken, *, must: bool, read_only: bool = False, begun: Mapping[bytes, Contents] | None = None
) -> bool:
    """Look at a snapshot after a power loss; whether it is there.

    Args:
        life: The machine.
        taken: What was made.
        must: Its call had returned.
        read_only: How to open it.
        begun: What others to the same place had, by log id, which may be left under their temporary names.

    Raises:
        Finding: It is gone, or has something else than it had; or something is there that is neither whole nor nothing.
    """
    if not _is_free(life, taken.name):
        _check_whole(life, taken.name, {taken.contents.log_id: taken.contents}, read_only=read_only)
        return True
    if must:
        raise Finding("lost", f"snapshot {taken.name} is gone, whose call had returned")
    for entry in os.listdir(life.machine.home):
        if entry.startswith(f"~{taken.name}-") and "log.json" in os.listdir(f"{life.machine.home}/{entry}"):
            with suppress(IncompatibleFormatError):  # it is no log
                _check_whole(life, entry, begun or {taken.contents.log_id: taken.contents}, read_only=True)
    return False


def _is_free(life: Life, name: str) -> bool:
    """Whether there is nothing of that name, or an empty directory: a place for a snapshot."""
    path = f"{life.machine.home}/{name}"
    return not os.path.lexists(path) or not os.listdir(path)


def _check_whole(life: Life, name: str, begun: Mapping[bytes, Contents], *, read_only: bool) -> None:
    """A directory is one of the snapshots that were made, whole."""
    try:
        with life.machine.open(name, create=False, read_only=read_only) as log:
            found = contents(log)
            report = log.verify()
    except (StreamLogError, ExceptionGroup) as error:
        if name.startswith("~") and isinstance(error, IncompatibleFormatError):
            raise
        raise Finding("refused", f"{name}: {type(error).__name__}: {error}") from error
    expected = begun.get(found.log_id)
    if expected is None:
        raise Finding("invented", f"{name} has {_brief(found)}, and an id that nobody knows")
    if found != expected:
        raise Finding("lost", f"{name} has {_brief(found)} instead of {_brief(expected)}")
    if not report.ok:
        raise Finding("refused", f"{name}: {report}")


def _use(life: Life, taken: Taken) -> None:
    """Write to a snapshot, delete from it and compact it: nothing of that reaches the log."""
    before = contents(life.log)
    with life.machine.open(taken.name, create=False) as log:
        for name, number in taken.contents.records:
            _, end, records = taken.contents.records[name, number]
            got = log.topic(name).append(b"its own", b"key", partition=number, timestamp_ms=1).offset
            if got != end:
                raise Finding("lost", f"a record is appended to a snapshot at {got}, where {end} was the end")
            if records and life.dice.random() < 0.5:
                log.admin.delete_records({TopicPartition(name, number): life.dice.choice(list(records))})
        log.maintain(force=True)
    if contents(life.log) != before:
        raise Finding("lost", "the log has other records since its snapshot was written to")


# --- random lives -----------------------------------------------------------------------------------------------------


class Report:
    """What was tried and found.

    Attributes:
        counts: Of crashes by kind, of snapshots, and of records looked at.
        finding: What was found.
        chain: The seed of the chain in which it was.
        said: What was done there.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.finding: Exception | None = None
        self.chain = 0
        self.said: list[str] = []

    @property
    def crashes(self) -> int:
        """How many were tried."""
        return self.counts["crashes"]

    def lines(self) -> list[str]:
        """The counts in words."""
        counts = self.counts
        lines = [
            f"{self.crashes} crashes: {', '.join(f'{style} {counts[style]}' for style in STYLES)}",
            f"{counts['within']} of them while a snapshot was taken, {counts['again']} in a life after a crash",
            f"{counts['taken']} snapshots taken, {counts['busy']} of them while others wrote",
            f"{counts['swept']} of them where one had been begun, which is removed",
            f"{counts['checked']} times one was whole that had to be there, with {counts['copied']} records",
            f"{counts['early']} times one was whole that did not have to be there; {counts['absent']} times none was",
            f"{counts['records']} records read of the logs themselves, {counts['promised']} of them promised",
        ]
        if self.finding is not None:
            lines += [*self.said, f"chain {self.chain}", f"FOUND {self.finding}"]
        return lines


class _Crash(NamedTuple):
    """What a life begins with."""

    disk: Disk
    boot: int
    expected: Expectation
    step: int
    taken: tuple[Taken, ...]
    begun: Mapping[bytes, Contents]
    style: str


def run(crashes: int, seed: int) -> Report:
    """Chains until so many crashes were tried, or something was found."""
    report = Report()
    seeds = random.Random(seed)
    with simulated() as home:
        while report.crashes < crashes and report.finding is None:
            run_chain(home, seeds.randrange(1 << 48), report)
    return report


def run_chain(home: str, chain: int, report: Report) -> None:
    """A life, crashes of it, lives that go on from there, and crashes of these."""
    said: list[str] = []
    try:
        _go_on(home, _Crash(empty_disk(), 1, Expectation(), 0, (), {}, ""), random.Random(chain), report, said, 0)
    except Finding as finding:
        report.finding, report.chain, report.said = finding, chain, said
    except Exception as error:  # noqa: BLE001 - whatever it is, it was not promised
        kind = "refused" if isinstance(error, (StreamLogError, ExceptionGroup)) else "failed"
        report.finding, report.chain, report.said = Finding(kind, f"{error!r}"), chain, said
        report.finding.__cause__ = error


def _go_on(home: str, crash: _Crash, dice: random.Random, report: Report, said: list[str], depth: int) -> None:
    length = len(said)
    life = Life(home, crash.disk, crash.boot, crash.expected, dice, folder=LOG)
    life.said = said
    try:
        taken = _look(life, crash, report, depth)
        if depth == _DEPTH:
            life.look_again()
            return
        if taken and dice.random() < 0.5:
            one = dice.choice(taken)
            said.append(f"write to {one.name}")
            taken.remove(one)
            _use(life, one)
        _work(life, dice.randint(5, _OPERATIONS) if not depth else dice.randint(0, 6))
        begun, made = life.machine.now, None
        if not depth or dice.random() < 0.6:
            made = _take(life, report)
        ended = life.machine.now
        _work(life, dice.randint(0, 6))
        crashes = []
        begins = crash.begun if made is None else {**crash.begun, made.contents.log_id: made.contents}
        for step, style, disk in _losses(life, begun, ended, _CRASHES[depth]):
            there = (*taken, made) if made is not None else tuple(taken)
            expected = life.expected.at(step, killed=False)
            crashes.append(_Crash(disk, crash.boot + 1, expected, step, there, begins, style))
            report.counts["within"] += begun <= step < ended
    finally:
        life.machine.end()
    for one in crashes:
        said.append(f"--- {one.style} at step {one.step}; snapshots from {begun} to {ended}")
        _go_on(home, one, random.Random(dice.randrange(1 << 48)), report, said, depth + 1)
        del said[-1:]
    del said[length:]


def _look(life: Life, crash: _Crash, report: Report, depth: int) -> list[Taken]:
    """Look at the log and its snapshots; those that are there."""
    life.look()
    counts = report.counts
    if crash.style:
        counts.update(("crashes", crash.style))
        counts["again"] += depth > 1
    counts["records"] += life.found[0]
    counts["promised"] += life.found[1]
    left = []
    for one in crash.taken:
        must = one.done <= crash.step
        is_there = check(life, one, must=must, read_only=life.dice.random() < 0.3, begun=crash.begun)
        if is_there:
            left.append(msgspec.structs.replace(one, done=0))
        counts["checked"] += must
        counts["copied"] += must and sum(len(each[2]) for each in one.contents.records.values())
        counts["absent"] += not is_there
        counts["early"] += is_there and not must
    return left


def _work(life: Life, number: int) -> None:
    operations, weights = zip(*_WORK, strict=True)
    for operation in life.dice.choices(operations, weights, k=number):
        operation(life)


def _take(life: Life, report: Report) -> Taken | None:
    dice, home = life.dice, life.machine.home
    name = next(name for name in map("copy-{}".format, count()) if _is_free(life, name))
    names = [subject.name for subject in life.subjects()]
    topics = dice.sample(names, dice.randint(1, len(names))) if names and dice.random() < 0.3 else None
    is_busy, read_only = dice.random() < _BUSY, dice.random() < _READ_ONLY
    report.counts["swept"] += any(entry.startswith(f"~{name}-") for entry in os.listdir(home))
    if dice.random() < 0.2 and not os.path.lexists(f"{home}/{name}"):
        life.machine.make_directory(name)
    life.said.append(f"take snapshot {name} of {topics or 'all'}{', while others write' if is_busy else ''}")
    life.said[-1] += ", from a log that is read-only" if read_only else ""
    operations, weights = zip(*_MEANWHILE, strict=True)

    def meanwhile() -> None:
        if dice.random() < 0.3:
            dice.choices(operations, weights)[0](life)

    made = take(life, name, topics=topics, read_only=read_only, meanwhile=meanwhile if is_busy else None)
    report.counts["taken"] += made is not None
    report.counts["busy"] += is_busy
    return made


def _losses(life: Life, begun: int, ended: int, number: int) -> list[tuple[int, str, Disk]]:
    """Power losses at some steps of a life, most of them while a snapshot was taken: step, style, disk afterwards."""
    trace, dice = life.machine.recorder.trace, life.dice
    syncs = [step for step in range(begun, ended) if trace[step][0] in ("datasync", "sync")]
    steps = []
    for _ in range(number):
        face = dice.random()
        if face < _AT_PROMISE:
            steps.append(ended)
        elif face < _AT_PROMISE + _BEFORE_SYNC and syncs:
            steps.append(dice.choice(syncs) + dice.randint(0, 1))
        else:
            steps.append(dice.randint(begun, life.machine.now))
    steps.sort()
    losses = []
    for step, disk in zip(steps, life.machine.disks(steps), strict=True):
        style = dice.choice(STYLES)
        losses.append((step, style, Disk(disk.after_power_loss(dice, style))))
    return losses


def _repeat(chain: int, _: int) -> Report:
    report = Report()
    with simulated() as home:
        run_chain(home, chain, report)
    return report


if __name__ == "__main__":
    sys.exit(main("snapshots", __doc__, run, _repeat))
