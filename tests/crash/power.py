"""Power cuts: a real ext4 file system loses its power, is mounted again, and the log on it recovered.

`python -m tests.crash.power --count N --seed S`. Each cut:

1. Writers, forked (a writer is this process, with everything imported), append, flush, roll, commit offsets, make and
   delete topics. What they try and what is acknowledged to them goes through a pipe into the memory of this process:
   nothing of it lies on the disk that loses its power.
2. At a random step of a writer, or at a random moment, some pages of some files are written to the disk, in no order;
   then the file system is shut down (`EXT4_IOC_SHUTDOWN`), with the journal in memory or without it.
3. It is unmounted and mounted again, and the log opened as after another boot of the machine. Every record that was
   acknowledged as on disk must be there; each partition must be a prefix of what was sent to it, with nothing torn or
   foreign in it; committed offsets must have been committed, and lie within their partitions.
4. The next writers go on with that log. Some of them do the recovery themselves, so that it loses its power as well.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from threading import RLock, Thread
from time import monotonic, perf_counter, sleep
from typing import Any, NamedTuple

from pystreamlog import OffsetAndMetadata, TopicPartition
from pystreamlog.backend.group import GroupMetadata
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import ReadOnlyError, StorageError, StreamLogError, UnknownTopicError
from pystreamlog.storage.epochs import read_epochs

from . import door
from .kills import fast_folder, start_forked
from .mounts import LOGFLUSH, NOLOGFLUSH, Ext4, persist_some_pages, reason_against
from .world import Key, LostError, value_of

__all__ = ["Report", "cut_power", "main"]

_GROUP = "readers"
_COPIERS = "copiers"
"""A group whose offsets are committed by transactions alone."""
_SOURCE = "source"
"""What the copiers read: each transaction commits an offset there that no other one does, so that it tells whose it is.
Its records are on disk before the first cut; nobody appends to it any more."""
_SOURCES = 2
_PER_WRITER = 64
"""Offsets for the transactions of one writer, which does fewer operations."""
_CUTS_PER_LOG = 15
_NUMBERS = 1_000_000
"""Values of one writer; the next one's have other numbers."""
_TOPICS: dict[str, dict[str, Any]] = {
    "plain": {"partitions": 2},
    "rolling": {"partitions": 2, "segment_bytes": 8192},
}
Say = Callable[[str], None]


class Report:
    """What was cut, and what was left."""

    def __init__(self) -> None:
        self.cuts = 0
        self.cuts_in_recovery = 0
        self.acknowledged: Counter[str] = Counter()
        self.survived = 0
        self.lost_os = 0
        self.records = 0
        self.pages = 0
        self.recoveries = 0
        self.transactions = 0
        self.longest_recovery = 0.0
        self.operations: Counter[str] = Counter()

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.cuts} power cuts ({self.cuts_in_recovery} of them by writers that recovered first), "
            f"{self.recoveries} logs recovered, the longest in {self.longest_recovery * 1000:.1f} ms"
        )
        yield (
            f"acknowledged: {self.acknowledged['fsync']} records on disk, 0 lost; {self.acknowledged['os']} others, "
            f"{self.lost_os} lost; {self.records} records read back, 0 torn; {self.pages} pages written at random; "
            f"{self.transactions} transactions were there, each whole"
        )
        yield ", ".join(f"{count} x {name}" for name, count in sorted(self.operations.items()))


# --- a writer ---------------------------------------------------------------------------------------------------------


class _Writer:
    """Does random things to a log and tells what it tried and what was acknowledged."""

    def __init__(self, log: EmbeddedLog, random: Random, number: int, say: Say, plan: _Plan) -> None:
        self._notes = plan.notes
        self._source = (plan.turn * 2 + number // _NUMBERS % 2) * _PER_WRITER
        self._log = log
        self._random = random
        self._first = self._number = number
        self._say = say
        self._consumer: Any = None

    def run(self, operations: int) -> None:
        """So many operations; which ones is random."""
        weighted = {
            self._append: 8,
            self._produce: 2,
            self._commit: 2,
            self._create: 0.4,
            self._delete: 0.3,
            self._append_elsewhere: 1,
            self._alter: 0.2,
            self._transact: 3,
        }
        for operation in self._random.choices(list(weighted), list(weighted.values()), k=operations):
            operation()

    def _value(self, name: str, partition: int) -> tuple[int, bytes]:
        number, self._number = self._number, self._number + 1
        size = self._random.choice((10, 10, 50, 200, 200, 1000, 5000, 60_000 if name == "plain" else 3000))
        value = value_of(number, size)
        self._say(f"try {name} {partition} {number}")
        return number, value

    def _place(self) -> Key:
        return self._random.choice(list(_TOPICS)), self._random.randrange(2)

    def _append(self, key: Key | None = None) -> None:
        name, partition = key or self._place()
        durability = self._random.choice(("os", "os", "fsync"))
        number, value = self._value(name, partition)
        done = self._log.topic(name).append(value, partition=partition, durability=durability)
        self._say(f"ack {name} {partition} {number} {done.offset} {durability}")

    def _append_elsewhere(self) -> None:
        names = [name for name in self._log.topics() if name.startswith("more-")]
        if names:
            with suppress(UnknownTopicError):  # the other writer deletes them
                self._append((self._random.choice(names), 0))

    def _produce(self) -> None:
        durability = self._random.choice(("os", "fsync"))
        producer = self._log.producer(
            durability=durability, linger_ms=5, compression_type=self._random.choice(("none", "gzip"))
        )
        for _ in range(self._random.randrange(1, 30)):
            name, partition = self._place()
            number, value = self._value(name, partition)
            delivery = producer.send(name, value, partition=partition)
            delivery.add_done_callback(lambda done, number=number: self._told(done, number, durability))
        producer.close()

    def _transact(self) -> None:
        """Records in some partitions, and offsets of what they were made from."""
        name, number, source = self._random.choice(list(_TOPICS)), self._number, self._source
        self._number += 1
        self._source += 1
        durability = self._random.choice(("os", "fsync"))
        settings: dict[str, Any] = {"durability": durability}
        if self._random.random() < 0.5:
            settings["transactional_id"] = f"copier-{self._first}"
        if self._random.random() < 0.2:
            settings["transaction_buffer_bytes"] = settings["batch_size"] = 2000
        producer = self._log.producer(**settings)
        producer.begin_transaction()
        offsets = {}
        for partition in range(2):
            if self._random.random() < 0.8:
                note = f"{number}" if self._notes else ""
                offsets[TopicPartition(_SOURCE, partition)] = OffsetAndMetadata(source, note)
                self._say(f"from {number} {partition} {source}")
            for _ in range(self._random.randrange(4)):
                record, value = self._value(name, partition)
                self._say(f"with {number} {name} {partition} {record}")
                delivery = producer.send(name, value, partition=partition)
                delivery.add_done_callback(lambda done, record=record: self._told(done, record, durability))
        if offsets:
            producer.send_offsets_to_transaction(offsets, GroupMetadata(_COPIERS))
        if self._random.random() < 0.1:
            self._say(f"try-abort {number}")
            producer.abort_transaction()
        else:
            producer.commit_transaction()
            self._say(f"ack-transaction {number} {durability}")
        producer.close()

    def _told(self, done: Any, number: int, durability: str) -> None:
        if done.exception() is None:
            where = done.result()
            self._say(f"ack {where.topic} {where.partition} {number} {where.offset} {durability}")

    def _commit(self) -> None:
        name, partition = self._place()
        tp = TopicPartition(name, partition)
        if self._consumer is None:
            self._consumer = self._log.consumer(group_id=_GROUP, enable_auto_commit=False)
        self._consumer.assign([tp])
        end = self._log.topic(name).end_offsets()[partition]
        offset = self._random.randint(0, end)
        self._say(f"try-commit {name} {partition} {offset}")
        self._consumer.commit({tp: offset})
        self._say(f"ack-commit {name} {partition} {offset}")

    def _create(self) -> None:
        name, self._number = f"more-{self._number}", self._number + 1
        self._say(f"try-create {name}")
        self._log.create_topic(name)
        self._say(f"ack-create {name}")

    def _delete(self) -> None:
        names = [name for name in self._log.topics() if name.startswith("more-")]
        if names:
            name = self._random.choice(names)
            self._say(f"try-delete {name}")
            with suppress(UnknownTopicError):
                self._log.delete_topic(name)
                self._say(f"ack-delete {name}")

    def _alter(self) -> None:
        name = self._random.choice(list(_TOPICS))
        self._log.topic(name).alter(max_message_bytes=self._random.randrange(100_000, 1_000_000))


class _Plan(NamedTuple):
    """One cut.

    Attributes:
        seed: Of all that is random in it.
        step: At which step of the first writer; 0 for a moment.
        moment: Seconds after the writers were started.
        flags: Of the shutdown.
        share: Of the pages that reach the disk first.
        preallocate: Whether files are preallocated.
        boot: The machine's boot.
        turn: Which cut of its log.
        notes: Whether transactions commit offsets with a text.
    """

    seed: int
    step: int
    moment: float
    flags: int
    share: float
    preallocate: bool
    boot: bytes
    turn: int
    notes: bool


def _write(say: Say, disk: Ext4, path: str, plan: _Plan, number: int, *, cuts: bool) -> None:
    """A writer's whole life."""
    own = Random(plan.seed + number)
    steps, alive = 0, RLock()

    def hook(call: door.Call) -> Any:
        nonlocal steps
        if call.name in ("open", "create"):
            fd = call.make()
            with suppress(OSError):  # single pages, as they were written: no large folios
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            return fd
        if not cuts or not call.changes:
            return call.make()
        with alive:
            steps += 1
            if steps != plan.step:
                return call.make()
            pages = persist_some_pages(path, own, plan.share)
            disk.cut(plan.flags)
            say(f"cut {pages}")
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    door.install(hook)
    try:
        log = EmbeddedLog(path, boot=lambda: plan.boot)
        log._files.preallocate = log._files.preallocate and plan.preallocate
        _Writer(log, own, number, say, plan).run(own.randrange(5, 60))
    except StorageError as error:
        if error.errno not in (errno.EIO, errno.EROFS):
            raise
    except ReadOnlyError:
        pass  # a file system that was cut is mounted for reading only
    except ExceptionGroup as group:
        if group.split((StorageError, ReadOnlyError))[1] is not None:
            raise
    os._exit(0)  # what a flush at exit would do is not of this world any more


# --- what must be there -----------------------------------------------------------------------------------------------


class _Partition:
    """What is known of one partition.

    Attributes:
        kept: Numbers that were there at the last look, in order: all on disk.
        durable: How many records must be there at least.
        tried: Numbers that were sent since.
        acknowledged: The number acknowledged at an offset, since.
        positions: The offset at which a number was acknowledged, since, if it is there at all.
    """

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.durable = 0
        self.tried: set[int] = set()
        self.acknowledged: dict[int, int] = {}
        self.positions: dict[int, int] = {}

    def unseen(self) -> None:
        """A cut after which nobody looks: what is not known to be on disk may be there or not."""
        self.acknowledged = {offset: number for offset, number in self.acknowledged.items() if offset < self.durable}


class _Transaction:
    """What belongs together.

    Attributes:
        records: Their numbers.
        offsets: The partitions of `_SOURCE` in which it commits one.
        durable: It was acknowledged as on disk.
        aborted: It must not be there.
    """

    def __init__(self) -> None:
        self.records: set[int] = set()
        self.offsets: set[int] = set()
        self.durable = False
        self.aborted = False


class _Expected:
    """What the log may hold, and what it must."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._partitions: dict[Key, _Partition] = defaultdict(_Partition)
        self._commits: dict[Key, set[int]] = defaultdict(set)
        self._committed: set[Key] = set()
        self._topics: dict[str, set[str]] = defaultdict(set)
        self._transactions: dict[int, _Transaction] = defaultdict(_Transaction)
        self._copied: dict[int, int] = {}
        self._whose: dict[int, int] = {}

    def learn(self, line: str) -> None:
        """What a writer said."""
        verb, *words = line.split()
        report = self._report
        if verb in ("try", "ack"):
            mine = self._partitions[words[0], int(words[1])]
            number = int(words[2])
            if verb == "try":
                mine.tried.add(number)
            else:
                offset = int(words[3])
                if mine.acknowledged.setdefault(offset, number) != number:
                    raise LostError(f"{words}: offset {offset} was {mine.acknowledged[offset]}'s")
                mine.positions[number] = offset
                report.acknowledged[words[4]] += 1
                if words[4] == "fsync":
                    mine.durable = max(mine.durable, offset + 1)
        elif verb == "try-commit":
            self._commits[words[0], int(words[1])].add(int(words[2]))
        elif verb in ("try-create", "ack-create", "try-delete", "ack-delete"):
            self._topics[verb].add(words[0])
        elif verb == "with":
            self._transactions[int(words[0])].records.add(int(words[3]))
        elif verb == "from":
            self._transactions[int(words[0])].offsets.add(int(words[1]))
            self._whose[int(words[2])] = int(words[0])
        elif verb == "try-abort":
            self._transactions[int(words[0])].aborted = True
        elif verb == "ack-transaction":
            self._transactions[int(words[0])].durable = words[1] == "fsync"
        elif verb == "cut":
            report.pages += int(words[0])
        if verb not in ("cut", "with", "from"):
            report.operations[verb] += 1

    def unseen(self) -> None:
        """A cut after which nobody looks."""
        for mine in self._partitions.values():
            mine.unseen()

    def check(self, log: EmbeddedLog) -> None:
        """Look at everything; what is there is on disk from now on."""
        self._check_topics(log)
        for name in sorted(set(log.topics()) - {_SOURCE}):
            topic = log.topic(name)
            found: dict[int, list[int]] = {number: [] for number in range(topic.partitions)}
            for record in topic.read():
                numbers = found[record.partition]
                if record.offset != len(numbers):
                    raise LostError(f"{name}-{record.partition}: offset {record.offset} after {len(numbers) - 1}")
                numbers.append(self._number_of(record))
            for partition, numbers in found.items():
                self._compare((name, partition), numbers)
        self._check_commits(log)
        self._check_transactions(log)

    def _check_transactions(self, log: EmbeddedLog) -> None:
        """Each is there in all its partitions, with its offsets, or nowhere."""
        there = {number for mine in self._partitions.values() for number in mine.kept}
        consumer = log.consumer(group_id=_COPIERS, enable_auto_commit=False)
        tps = [TopicPartition(_SOURCE, partition) for partition in range(_SOURCES)]
        committed = consumer.committed(*tps)
        consumer.close(commit=False)
        copied = {tp.partition: self._whose[found.offset] for tp, found in committed.items() if found is not None}
        for number, mine in self._transactions.items():
            found = mine.records & there
            if found not in (set(), mine.records):
                raise LostError(f"transaction {number}: {len(found)} of {len(mine.records)} records are there")
            noted = {key for key in mine.offsets if copied.get(key) == number}
            if mine.aborted and (found or noted):
                raise LostError(f"transaction {number} was aborted and is there")
            if mine.durable and found != mine.records:
                raise LostError(f"transaction {number} was acknowledged as on disk and is gone")
            if noted and found != mine.records:
                raise LostError(f"transaction {number}: offsets of it are there, its records are not")
            for key in mine.offsets - noted if (mine.records and found) or mine.durable else ():
                # Then a later one has committed there, of the same writer or of another one.
                other = copied.get(key, -1)
                if other // _NUMBERS == number // _NUMBERS and other < number:
                    raise LostError(f"transaction {number} is there, but {key} has the offset of {other}")
                if other not in self._transactions:
                    raise LostError(f"transaction {number} is there, but {key} has the earlier offset of {other}")
        for key, number in self._copied.items():
            if copied.get(key, -1) != number and copied.get(key, -1) not in self._transactions:
                raise LostError(f"{key}: the offset of transaction {number} went back to {copied.get(key)}")
        self._report.transactions += sum(bool(mine.records & there) for mine in self._transactions.values())
        self._copied = copied
        self._transactions.clear()

    def _check_topics(self, log: EmbeddedLog) -> None:
        there, said = set(log.topics()) - {*_TOPICS, _SOURCE}, self._topics
        for name in said["ack-create"] - said["try-delete"] - there:
            raise LostError(f"topic {name} was made and is gone")
        for name in there - (said["try-create"] - said["ack-delete"]):
            raise LostError(f"topic {name} was deleted, or never made")
        for name in there & said["try-delete"]:  # half deleted, it takes no records
            log.delete_topic(name)
        left = there - said["try-delete"]
        for key in [key for key in self._partitions if key[0] not in left and key[0] not in _TOPICS]:
            del self._partitions[key]
        said.clear()
        said["try-create"] |= left
        said["ack-create"] |= left

    @staticmethod
    def _number_of(record: Any) -> int:
        head = record.value.partition(b":")[0]
        if not head.isdigit() or value_of(int(head), len(record.value)) != record.value:
            raise LostError(f"torn: {record.topic}-{record.partition} at {record.offset}: {record.value[:50]!r}")
        return int(head)

    def _compare(self, key: Key, found: list[int]) -> None:
        mine = self._partitions[key]
        self._report.records += len(found)
        if len(found) < mine.durable:
            raise LostError(f"{key}: {mine.durable} records were acknowledged as on disk, {len(found)} are there")
        if found[: len(mine.kept)] != mine.kept[: len(found)]:
            raise LostError(f"{key}: other records than at the last look")
        last: dict[int, int] = {}
        for offset, number in enumerate(found[len(mine.kept) :], len(mine.kept)):
            if mine.acknowledged.get(offset, number) != number or number not in mine.tried:
                raise LostError(f"{key}: record {number} at {offset}, where {mine.acknowledged.get(offset)} belongs")
            if mine.positions.get(number, offset) != offset:
                raise LostError(f"{key}: record {number} at {offset}, acknowledged at {mine.positions[number]}")
            if number <= last.get(number // _NUMBERS, -1):
                raise LostError(f"{key}: record {number} at {offset} is older than the one before it, or there twice")
            last[number // _NUMBERS] = number
        self._report.survived += len(found) - len(mine.kept)
        self._report.lost_os += len(mine.positions.keys() - set(found))
        mine.kept, mine.durable = found, len(found)
        mine.tried, mine.acknowledged, mine.positions = set(), {}, {}

    def _check_commits(self, log: EmbeddedLog) -> None:
        consumer = log.consumer(group_id=_GROUP, enable_auto_commit=False)
        for name, settings in _TOPICS.items():
            for partition in range(settings["partitions"]):
                key = name, partition
                found = consumer.committed(TopicPartition(*key))[TopicPartition(*key)]
                end = len(self._partitions[key].kept)
                if found is None:
                    if key in self._committed:
                        raise LostError(f"{key}: the committed offset is gone")
                    continue
                if found.offset > end:
                    raise LostError(f"{key}: committed {found.offset}, the end is {end}")
                # An offset beyond the end of the epoch it was committed in counts as that end.
                epochs = read_epochs(log._partitions._folder(log._topics.find(name), partition))
                if found.offset not in self._commits[key] | {epoch.start_offset for epoch in epochs}:
                    raise LostError(f"{key}: committed {found.offset}, which nobody did")
                self._committed.add(key)
                self._commits[key] = {found.offset}
        consumer.close(commit=False)

    def begin(self, log: EmbeddedLog) -> None:
        """A new log."""
        for name, settings in _TOPICS.items():
            log.create_topic(name, **settings)
        source = log.create_topic(_SOURCE, partitions=_SOURCES)
        with log.producer(durability="fsync") as producer:
            for partition in range(_SOURCES):
                producer.send_many(source, [b""] * (2 * _CUTS_PER_LOG * _PER_WRITER), partition=partition)


# --- the cuts ---------------------------------------------------------------------------------------------------------


def cut_power(disk: Ext4, count: int, seed: int, report: Report, *, notes: bool = False) -> None:
    """So many power cuts on that disk; with `notes`, transactions commit offsets with a text.

    Raises:
        LostError: A cut left something that may not be; it names the seed of the cut.
    """
    chance = Random(seed)
    expected, path, boot, looked = _Expected(report), "", 0, True
    for cut in range(count):
        plan = _Plan(
            seed=chance.randrange(1 << 40),
            step=chance.choice((0, chance.randrange(1, 40), chance.randrange(1, 400))),
            moment=chance.choice((chance.random() * 0.003, chance.random() * 0.03)),
            flags=chance.choice((NOLOGFLUSH, NOLOGFLUSH, LOGFLUSH)),
            share=chance.choice((0, 0.3, 0.7, 1)),
            preallocate=chance.random() < 0.6,
            boot=boot.to_bytes(16, "big"),
            turn=cut % _CUTS_PER_LOG,
            notes=notes,
        )
        try:
            if cut % _CUTS_PER_LOG == 0:
                shutil.rmtree(path, ignore_errors=True)
                path, expected = f"{disk.path}/log-{cut}", _Expected(report)
                with EmbeddedLog(path, boot=lambda plan=plan: plan.boot) as log:
                    expected.begin(log)
            for line in _one(disk, path, plan, cut, writers=chance.choice((1, 1, 2))):
                expected.learn(line)
            report.cuts += 1
            boot += 1
            looked = cut % _CUTS_PER_LOG == _CUTS_PER_LOG - 1 or cut == count - 1 or chance.random() < 0.75
            if looked:
                _look(path, boot.to_bytes(16, "big"), expected, report)
            else:
                report.cuts_in_recovery += 1
                expected.unseen()
        except Exception as error:
            raise LostError(f"cut {cut} of seed {seed}, {plan}: {type(error).__name__}: {error}") from error


def _one(disk: Ext4, path: str, plan: _Plan, cut: int, *, writers: int) -> list[str]:
    """Writers, a cut, and the disk mounted again; what the writers said."""
    cutter = None
    started = [
        start_forked(
            lambda say, number=number: _write(
                say, disk, path, plan, (cut * 2 + number) * _NUMBERS, cuts=bool(plan.step) and not number
            )
        )
        for number in range(writers)
    ]
    if not plan.step:
        cutter = Thread(target=_cut_from_outside, args=(disk, path, plan))
        cutter.start()
    lines: list[str] = []
    for process in started:
        said, _ = process.wait()
        lines += said
    if cutter is not None:
        cutter.join()
    elif not any(line.startswith("cut") for line in lines):
        disk.cut(plan.flags)  # the writer came to its end before that step
    for line in lines:
        if line.startswith("raised"):
            raise LostError(f"a writer failed: {line}")
    disk.unmount()
    disk.mount()
    return lines


def _cut_from_outside(disk: Ext4, path: str, plan: _Plan) -> None:
    sleep(plan.moment)
    persist_some_pages(path, Random(plan.seed), plan.share)
    disk.cut(plan.flags)


def _look(path: str, boot: bytes, expected: _Expected, report: Report) -> None:
    """Open the log as after another boot, which recovers it; everything must be as expected."""
    began = perf_counter()
    with EmbeddedLog(path, boot=lambda: boot) as log:
        for name in log.topics():
            log.topic(name).end_offsets()
        took = perf_counter() - began
        report.recoveries += 1
        report.longest_recovery = max(report.longest_recovery, took)
        expected.check(log)


def main() -> int:
    """Cut the power; 0 if every log was as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.power", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many cuts (1000)")
    parser.add_argument("--seed", type=int, help="of all that is random (a new one)")
    parser.add_argument("--notes", action="store_true", help="have transactions commit offsets with a text")
    parser.add_argument("--options", default="noauto_da_alloc", help="of the mount")
    options = parser.parse_args()
    reason = reason_against(loop=True)
    if reason:
        sys.stderr.write(f"cannot cut any power here: {reason}\n")
        return 2
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    logging.getLogger("pystreamlog").addHandler(logging.NullHandler())
    report, began, failed = Report(), monotonic(), False
    sys.stdout.write(f"seed {seed}\n")
    with fast_folder() as folder, Ext4(folder, options=options.options) as disk:
        try:
            cut_power(disk, options.count, seed, report, notes=options.notes)
        except StreamLogError:
            raise
        except LostError:
            failed = True
            traceback.print_exc()
    for line in report.lines():
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"{monotonic() - began:.1f} s\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
