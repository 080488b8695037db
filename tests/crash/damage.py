"""Damages to every kind of file of a log: each is detected and named, or harmless; nothing wrong is ever read.

`python -m tests.crash.damage --count N --seed S` runs it from the root of the repository.

1. `Original` is a log with everything in it that a log can hold, an older copy of it, and what was written.
2. A `Damage` is done to one file of a copy, or to two: after Jepsen's `corrupt-file`, bits are flipped, and chunks are
   zeroed, overwritten, swapped, or put back as they were; files are cut, swapped, doubled, removed.
3. `examine` lets `verify` look at it, which may change nothing, and reads everything, and what was committed; sometimes
   it appends and reads again, or repairs, which must leave a prefix.

A case is `detected` if verify reports a damage or reading raises an error that names the file, `harmless` if all
that was written is still read. It is `undecided` where what is left is what a crash leaves, so that nobody can tell
more, and verify notes it: the last publication of a partition was taken back, as if its writer was killed before; or,
after a power loss or in a copy, the end is gone of what was never known to be on disk. Everything else fails.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import pystreamlog
from pystreamlog import OffsetAndMetadata, RecordMetadata, TopicPartition
from pystreamlog.coordination.directory import read_log_id
from pystreamlog.errors import CorruptLogError, IncompatibleFormatError, StorageError, StreamLogError
from pystreamlog.storage.boot import boot_id
from pystreamlog.storage.control import Control
from pystreamlog.storage.files import Files

__all__ = ["DAMAGES", "CaseError", "Original", "examine", "kind_of", "main", "run"]

TOPICS = {"plain": 2, "zipped": 2, "large": 1, "keyed": 1, "empty": 3}
GROUPS = ("billing", "Audit 1")
_SECONDS = 30
"""What one case may take."""

Contents = list[tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]


class CaseError(AssertionError):
    """A damage was neither detected nor harmless."""


# --- the log that is damaged ------------------------------------------------------------------------------------------


class Original:
    """A log with everything in it, made once; cases work on copies.

    Args:
        folder: Where it may lie.
        seed: Of what is random in it.

    Attributes:
        path: The log.
        older: A copy of it as it was before.
        records: What was written, by partition.
        commits: What was committed, oldest first, by group and partition.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.path, self.older = folder / "log", folder / "older"
        self.records: dict[TopicPartition, Contents] = {}
        self.commits: dict[tuple[str, TopicPartition], list[OffsetAndMetadata]] = {}
        draw = random.Random(seed)
        with pystreamlog.open(self.path) as log:
            for name, partitions in TOPICS.items():
                size = 160 << 10 if name == "large" else 8192
                log.create_topic(name, partitions=partitions, segment_bytes=size, key_index=name == "keyed")
            self._fill(log, draw, 12)
            self._commit(log, 1)
            self._transact(log, draw, "copier-1", 3)
            self._send_in_sequence(log, draw, 0, 150)
        with pystreamlog.open(self.path, recover="always") as log:  # a new epoch for all
            self._fill(log, draw, 6, durability="fsync")
        shutil.copytree(self.path, self.older)
        with pystreamlog.open(self.path) as log:
            self._fill(log, draw, 9)
            self._commit(log, 2)
            self._transact(log, draw, "copier-1", 1)
            self._send_in_sequence(log, draw, 150, 300)
            self._transact(log, draw, "Copier 2", 2, transaction_buffer_bytes=4096)
            self._fill(log, draw, 2, durability="fsync")
            self._fill(log, draw, 3)
            for topic, partitions in TOPICS.items():
                for number in range(partitions):
                    self.records[TopicPartition(topic, number)] = contents(log, topic, number)

    def _fill(self, log: pystreamlog.StreamLog, draw: random.Random, batches: int, **options: str) -> None:
        for name, partitions in TOPICS.items():
            if name == "empty":
                continue
            codec = "gzip" if name == "zipped" else "none"
            with log.producer(compression_type=codec, **options) as producer:
                for _ in range(batches * (3 if name == "large" else 1)):
                    for partition in range(partitions):
                        for _ in range(draw.randint(1, 8)):
                            size = draw.choice([0, 5, 90, 400]) + (1200 if name == "large" else 0)
                            value = None if not draw.randrange(9) else draw.randbytes(size // 2) + b"." * (size // 2)
                            key = (
                                draw.choice([None, b"", b"k%d" % draw.randrange(50)]) if value is not None else b"gone"
                            )
                            headers = [("trace", draw.randbytes(3))] * draw.choice([0, 0, 1, 2])
                            where = None if name == "keyed" else partition
                            producer.send(name, value, key, headers=headers, partition=where)
                        producer.flush()

    def _send_in_sequence(self, log: pystreamlog.StreamLog, draw: random.Random, first: int, last: int) -> None:
        """Records of a producer that numbers them."""
        with log.producer(producer_id="ingest-1") as producer:
            for sequence in range(first, last):
                producer.send("keyed", draw.randbytes(100), b"k%d" % (sequence % 5), sequence=sequence)
                if not sequence % 4:
                    producer.flush()

    def _transact(self, log: pystreamlog.StreamLog, draw: random.Random, name: str, count: int, **options: int) -> None:
        """Transactions over partitions and committed offsets."""
        settings = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "group_id": GROUPS[1]}
        with (
            log.consumer("plain", "zipped", **settings) as consumer,
            log.producer(transactional_id=name, **options) as producer,
        ):
            while len(consumer.assignment()) < TOPICS["plain"] + TOPICS["zipped"]:
                consumer.poll(0.01)
            for _ in range(count):
                with producer.transaction() as transaction:
                    for _ in range(draw.randint(5, 40)):
                        topic = draw.choice(["plain", "zipped", "large"])
                        value = draw.randbytes(draw.choice([10, 300]))
                        producer.send(topic, value, partition=draw.randrange(TOPICS[topic]))
                    consumer.poll(0, max_records=draw.randint(1, 30))
                    transaction.send_offsets(consumer)
                for tp in consumer.assignment():
                    found = consumer.committed(tp)[tp]
                    known = self.commits.setdefault((GROUPS[1], tp), [])
                    if found is not None and found not in known[-1:]:
                        known.append(found)

    def _commit(self, log: pystreamlog.StreamLog, step: int) -> None:
        for group in GROUPS:
            options = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
            with log.consumer("plain", "zipped", group_id=group, **options) as consumer:
                while len(consumer.assignment()) < TOPICS["plain"] + TOPICS["zipped"]:
                    consumer.poll(0.01)
                offsets = {
                    TopicPartition(name, partition): OffsetAndMetadata(
                        3 * step + partition, f"note {step}" if group == GROUPS[0] and partition == 0 else ""
                    )
                    for name in ("plain", "zipped")
                    for partition in range(TOPICS[name])
                }
                consumer.commit(offsets)
                for tp, offset in offsets.items():
                    self.commits.setdefault((group, tp), []).append(offset)

    def copy(self, path: Path, *, copied: bool) -> None:
        """A copy for one case; if not `copied`, one that passes for the place where it was written."""
        shutil.copytree(self.path, path)
        if copied:
            return
        files = Files(str(path))
        try:
            log_id = read_log_id(files)
            with pystreamlog.open(self.path, read_only=True) as log:
                topics = {name: log._topics.find(name).id for name in TOPICS}
            for folder in path.glob("topics/*/[0-9]*"):
                control = Control.open(
                    files,
                    str(folder.relative_to(path) / "control"),
                    log_id=log_id,
                    topic_id=topics[folder.parent.name],
                    partition=int(folder.name),
                    write=True,
                )
                control.write_identity(boot_id())
                control.close()
        finally:
            files.close()


def contents(log: pystreamlog.StreamLog, topic: str, partition: int) -> Contents:
    """All records of a partition, as plain values."""
    return [
        (record.offset, record.timestamp_ms, record.key, record.value, record.headers)
        for record in log.topic(topic).read(partition=partition)
    ]


def kind_of(path: Path, root: Path) -> str:
    """What kind of file it is."""
    parts = path.relative_to(root).parts
    name = path.name
    if parts[0] == "groups":
        return "bell" if parts[-2] == "bells" else f"group {name}"
    if parts[0] == "transactions":
        return "transaction id" if "ids" in parts else f"journal {_partition_kind(path)}"
    if parts[0] == "topics" and len(parts) == 4:
        return _partition_kind(path)
    return name


def _partition_kind(path: Path) -> str:
    if path.suffix == ".log":
        last = max(path.parent.glob("*.log")).name
        return "active segment" if path.name == last else "sealed segment"
    if path.suffix == ".producers":
        return "producers"
    return "index" if path.suffix == ".index" and path.stem.isdigit() else path.name


# --- damages ----------------------------------------------------------------------------------------------------------


class Case:
    """One file of a copy, about to be damaged.

    Attributes:
        draw: The source of all that is random.
        root: The copy.
        path: The file.
        older: The same file of the older copy, if there was one.
    """

    def __init__(self, draw: random.Random, root: Path, path: Path, older: Path) -> None:
        self.draw = draw
        self.root = root
        self.path = path
        self.older = older
        self.data = path.read_bytes()

    def place(self) -> int:
        """A position, mostly where something was written."""
        used = [at for at in range(0, len(self.data), 64) if any(self.data[at : at + 64])]
        if used and self.draw.random() < 0.9:
            return min(self.draw.choice(used) + self.draw.randrange(64), len(self.data) - 1)
        return self.draw.randrange(len(self.data)) if self.data else 0

    def size(self) -> int:
        """The size of a chunk."""
        return self.draw.choice([1, 2, 8, 16, 64, 256, 512, 4096, self.draw.randint(1, 10_000)])

    def overwrite(self, position: int, data: bytes) -> None:
        """Put other bytes in their place, and none behind the end."""
        with self.path.open("r+b") as file:
            file.seek(position)
            file.write(data[: max(0, len(self.data) - position)])

    def others(self) -> list[Path]:
        """Other files of the same kind."""
        kind = kind_of(self.path, self.root)
        found = [path for path in self.root.rglob("*") if path.is_file() and path != self.path]
        return sorted(path for path in found if kind_of(path, self.root).split()[-1] == kind.split()[-1])


def flip_bit(case: Case) -> None:
    """One bit."""
    position = case.place()
    case.overwrite(position, bytes(byte ^ 1 << case.draw.randrange(8) for byte in case.data[position : position + 1]))


def flip_bits(case: Case) -> None:
    """Some bits, anywhere."""
    data = bytearray(case.data)
    for _ in range(case.draw.randint(2, 20) if data else 0):
        data[case.place()] ^= 1 << case.draw.randrange(8)
    case.overwrite(0, bytes(data))


def zero(case: Case) -> None:
    """A chunk of zeros."""
    case.overwrite(case.place(), bytes(case.size()))


def garbage(case: Case) -> None:
    """A chunk of anything."""
    case.overwrite(case.place(), case.draw.randbytes(case.size()))


def zero_page(case: Case) -> None:
    """A page that never came to the disk."""
    case.overwrite(case.place() & ~4095, bytes(4096))


def cut(case: Case) -> None:
    """The file ends early."""
    os.truncate(case.path, case.draw.choice([0, case.place(), case.draw.randint(0, len(case.data))]))


def grow(case: Case) -> None:
    """Something is behind the end of the file."""
    with case.path.open("ab") as file:
        file.write(case.draw.choice([bytes(5000), case.draw.randbytes(5000), case.data[-5000:]]))


def swap_chunks(case: Case) -> None:
    """Two chunks of the file change places."""
    size = min(case.size(), len(case.data) // 2)
    first, second = case.place(), case.place()
    if size and case.draw.random() < 0.5:
        first, second = first // size * size, second // size * size
    one, other = case.data[first : first + size], case.data[second : second + size]
    case.overwrite(first, other)
    case.overwrite(second, one)


def copy_chunk(case: Case) -> None:
    """A chunk of it, or of another file of its kind, is in a second place."""
    source = case.draw.choice([case.path, *case.others()]).read_bytes()
    size = case.size()
    position = case.place()
    begin = position if case.draw.random() < 0.5 else case.draw.randint(0, len(source))
    case.overwrite(position, source[begin : begin + size])


def stale_chunk(case: Case) -> None:
    """A chunk is as it was before."""
    if case.older.is_file():
        older = case.older.read_bytes().ljust(len(case.data), b"\0")
        changed = [at for at in range(0, len(case.data), 64) if older[at : at + 64] != case.data[at : at + 64]]
        position = case.draw.choice(changed) if changed else case.place()
        size = case.size()
        position = position // size * size
        case.overwrite(position, older[position : position + size])


def stale_file(case: Case) -> None:
    """The file is as it was before."""
    if case.older.is_file():
        data = case.older.read_bytes()
        with case.path.open("r+b") as file:  # the inode stays
            file.write(data)
            file.truncate(len(data))


def swap_files(case: Case) -> None:
    """Two files of one kind have each other's name."""
    others = case.others()
    if others:
        other = case.draw.choice(others)
        aside = case.path.with_name("aside~")
        case.path.rename(aside)
        other.rename(case.path)
        aside.rename(other)


def swap_contents(case: Case) -> None:
    """Two files of one kind have each other's contents."""
    others = case.others()
    if others:
        other = case.draw.choice(others)
        data = other.read_bytes()
        for path, found in ((other, case.data), (case.path, data)):
            with path.open("r+b") as file:
                file.write(found)
                file.truncate(len(found))


def double(case: Case) -> None:
    """The file is there a second time, under a name that one of its kind could have."""
    if case.path.stem.isdigit() and case.path.suffix in (".log", ".index", ".producers"):
        base = int(case.path.stem)
        bases = sorted(int(path.stem) for path in case.path.parent.glob("*.log"))
        other = case.draw.choice([base + 1, max(0, base - 1), case.draw.choice(bases), bases[-1] + 100])
        target = case.path.with_name(f"{other:020d}{case.path.suffix}")
    else:
        target = case.draw.choice([case.path.with_name(f"{case.path.name}.bak"), *case.others()])
    if target != case.path:
        shutil.copyfile(case.path, target)


def missing(case: Case) -> None:
    """The file is gone."""
    case.path.unlink()


def other_kind(case: Case) -> None:
    """A folder, a link or a pipe is in its place."""
    case.path.unlink()
    kind = case.draw.randrange(3)
    if kind == 0:
        case.path.mkdir()
    elif kind == 1:
        case.path.symlink_to(case.older if case.older.exists() else "/dev/zero")
    else:
        os.mkfifo(case.path)


DAMAGES: dict[str, Callable[[Case], None]] = {
    damage.__name__: damage
    for damage in (
        flip_bit,
        flip_bits,
        zero,
        garbage,
        zero_page,
        cut,
        grow,
        swap_chunks,
        copy_chunk,
        stale_chunk,
        stale_file,
        swap_files,
        swap_contents,
        double,
        missing,
        other_kind,
    )
}


# --- one case ---------------------------------------------------------------------------------------------------------


def examine(original: Original, root: Path, draw: random.Random, *, copied: bool) -> str:
    """Verify and read a damaged copy: `detected`, `harmless` or `undecided`.

    Raises:
        CaseError: It is none of them.
    """
    before = tree(root)
    report = verified(root)
    if tree(root) != before:
        raise CaseError("verify changed a file")
    again = draw.random()
    if report is not None and again < 0.25:
        repaired = root.with_name("repaired")
        try:
            with suppress(shutil.Error):  # a pipe is not copied
                shutil.copytree(root, repaired, symlinks=True)
            check_repair(original, repaired)
        finally:
            shutil.rmtree(repaired)
    try:
        log = pystreamlog.open(root, create=False)
    except StreamLogError as error:
        check_named(error, root)
        return "detected"
    if report is None:
        raise CaseError("verify could not open what reading can")
    with log:
        exact, errors, short = check_records(original, log, root)
        exact = check_commits(original, log, root, errors, short) and exact
        if not short:
            check_keys(original, log, report, errors)
        if exact and again > 0.75:
            check_append(original, log, report)
    if errors and report.ok:
        raise CaseError(f"verify missed what reading met: {errors[0]!r}")
    if report.ok and short:
        if any(note.kind == ("recovery" if copied else "leftover") for note in report.notes):
            return "undecided"
        raise CaseError(f"silently lost: {short}")
    return "harmless" if report.ok and exact else "detected"


def verified(root: Path) -> pystreamlog.VerifyReport | None:
    """What `verify` says; None where the log cannot be opened at all."""
    try:
        log = pystreamlog.open(root, create=False, read_only=True)
    except StreamLogError as error:
        check_named(error, root)
        return None
    with log:
        report = log.verify()
    for finding in (*report.damages, *report.notes):
        if not finding.path.startswith(str(root)) or not finding.message:
            raise CaseError(f"a finding without a file or a message: {finding!r}")
    return report


def check_named(error: StreamLogError, root: Path) -> None:
    """An error names the file, in the log."""
    if isinstance(error, (CorruptLogError, IncompatibleFormatError, StorageError)) and not error.path.startswith(
        str(root)
    ):
        raise CaseError(f"no file of the log is named: {error!r}, {error.path!r}")


def check_records(
    original: Original, log: pystreamlog.StreamLog, root: Path
) -> tuple[bool, list[StreamLogError], list[str]]:
    """Read everything: whether all is there, the errors met, and what ends early without one."""
    errors: list[StreamLogError] = []
    short: list[str] = []
    exact = True
    for tp, expected in original.records.items():
        found: Contents = []
        try:
            for record in log.topic(tp.topic).read(partition=tp.partition):
                found.append((record.offset, record.timestamp_ms, record.key, record.value, record.headers))
        except StreamLogError as error:
            check_named(error, root)
            errors.append(error)
            exact = False
        else:
            if len(found) < len(expected):
                short.append(f"{tp}: {len(found)} of {len(expected)}")
                exact = False
        if found != expected[: len(found)]:
            wrong = next(at for at, each in enumerate(found) if at >= len(expected) or each != expected[at])
            raise CaseError(f"{tp} at {wrong}: read {found[wrong]}, not {expected[wrong : wrong + 1]}")
    return exact, errors, short


def check_keys(
    original: Original, log: pystreamlog.StreamLog, report: pystreamlog.VerifyReport, errors: list[StreamLogError]
) -> None:
    """Ask for the records of some keys; a key index that is wrong must not show, or be a damage."""
    expected = original.records[TopicPartition("keyed", 0)]
    for key in (b"k0", b"k3", b"gone", b"never"):
        try:
            found = [record.offset for record in log.topic("keyed").read_key(key)]
        except StreamLogError as error:
            errors.append(error)
            return
        if found != [record[0] for record in expected if record[2] == key] and report.ok and not errors:
            raise CaseError(f"the records of {key!r} are {found}")


def check_commits(
    original: Original, log: pystreamlog.StreamLog, root: Path, errors: list[StreamLogError], short: list[str]
) -> bool:
    """Ask for every committed offset: whether all are there."""
    exact = True
    for group in GROUPS:
        try:
            with log.consumer(group_id=group) as consumer:
                for (owner, tp), known in original.commits.items():
                    if owner != group:
                        continue
                    found = consumer.committed(tp)[tp]
                    if found is None:
                        short.append(f"{group}'s commit for {tp}")
                        exact = False
                    elif found not in (*known, *(one._replace(metadata="") for one in known)) and not (errors or short):
                        raise CaseError(f"{group} on {tp}: {found}, never committed")
                    exact = exact and found == known[-1]
        except StreamLogError as error:
            check_named(error, root)
            errors.append(error)
            exact = False
    return exact


def check_append(original: Original, log: pystreamlog.StreamLog, report: pystreamlog.VerifyReport) -> None:
    """A log that could be read can be written, and what was there stays."""
    for tp, expected in original.records.items():
        try:
            end = append_one(log, tp).offset
            found = contents(log, tp.topic, tp.partition)
        except StreamLogError as error:
            if not report.ok:
                continue
            raise CaseError(f"{tp} could be read, but not appended to: {error!r}") from error
        if end != len(expected) or found[:-1] != expected or found[-1][3] != b"one more":
            raise CaseError(f"{tp}: other records after an append at {end}")


def append_one(log: pystreamlog.StreamLog, tp: TopicPartition) -> RecordMetadata:
    """One record more; a topic with a key index, here of one partition, chooses for itself."""
    return log.topic(tp.topic).append(b"one more", partition=None if tp.topic == "keyed" else tp.partition)


def check_repair(original: Original, root: Path) -> None:
    """A repaired log has prefixes, which can be appended to; a partition that could not be repaired says so."""
    try:
        with pystreamlog.open(root, create=False) as log:
            report = log.repair(cut_tail=True, force=True)
    except StreamLogError as error:
        check_named(error, root)
        return
    with pystreamlog.open(root, create=False) as log:
        for tp, expected in original.records.items():
            folder = str(root / "topics" / tp.topic)
            left = any(
                each.path.startswith(
                    (
                        f"{folder}/{tp.partition}",
                        f"{folder}/topic.json",
                        str(root / "topics.lock"),
                        str(root / "transactions"),
                    )
                )
                for each in report.damages
            )
            try:
                found = contents(log, tp.topic, tp.partition)
                end = append_one(log, tp).offset
                after = contents(log, tp.topic, tp.partition)
            except StreamLogError as error:
                if not left:
                    raise CaseError(f"repaired, but {error!r}") from error
                continue
            if found != expected[: len(found)] or (not left and (end != len(found) or after[:-1] != found)):
                raise CaseError(f"{tp}: a repair left {len(found)} records that are no prefix, and the end at {end}")
    with pystreamlog.open(root, create=False) as log:
        now = log.verify()
        known = {each.path for each in report.damages}
        worse = [each for each in now.damages if each.path not in known and each.kind != "committed"]
        if worse:
            raise CaseError(f"damaged after a repair: {worse[0]}")


def tree(root: Path) -> dict[str, object]:
    """Name, kind and bytes of everything."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        found[str(path)] = status.st_mode, status.st_mtime_ns, path.read_bytes() if is_file else b""
    return found


# --- many cases -------------------------------------------------------------------------------------------------------


@contextmanager
def limited() -> Iterator[None]:
    """A case that hangs is one that fails."""

    def expired(*_: object) -> None:
        raise CaseError(f"not done within {_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run_case(original: Original, folder: Path, seed: int) -> tuple[str, str, str]:
    """One damage: kind of file, damage, outcome."""
    draw = random.Random(seed)
    root = folder / "case"
    shutil.rmtree(root, ignore_errors=True)
    copied = draw.random() < 0.2
    original.copy(root, copied=copied)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    kinds = sorted({kind_of(path, root) for path in files})
    kind = draw.choice(kinds)
    path = draw.choice([path for path in files if kind_of(path, root) == kind])
    name = draw.choice(sorted(DAMAGES))
    place = path.relative_to(root)
    DAMAGES[name](Case(draw, root, path, original.older / place))
    try:
        with limited():
            return kind, name, examine(original, root, draw, copied=copied)
    except CaseError as error:
        raise CaseError(f"seed {seed}: {name} of {place}: {error}") from error
    except Exception as error:
        raise CaseError(f"seed {seed}: {name} of {place}: {error!r} is no error of this library's") from error


def run(
    count: int, seed: int, folder: Path, *, tell: Callable[[str], None] | None = None
) -> Counter[tuple[str, str, str]]:
    """Many damages; how often each kind of file, damage and outcome came.

    Raises:
        CaseError: The first that was wrong; with `tell`, all are told, and counted as `wrong`.
    """
    original = Original(folder, seed)
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in range(count):
        try:
            counts[run_case(original, folder, seed + number)] += 1
        except CaseError as error:
            if tell is None:
                raise
            tell(str(error))
            counts["all", "all", "wrong"] += 1
    return counts


def table(counts: Counter[tuple[str, str, str]]) -> list[str]:
    """How often each outcome came, by kind of file."""
    outcomes = ("detected", "harmless", "undecided", "wrong")
    lines = [f"{'':24}" + "".join(f"{outcome:>12}" for outcome in outcomes)]
    for kind in sorted({kind for kind, _, _ in counts}):
        row = [sum(count for key, count in counts.items() if key[0] == kind and key[2] == each) for each in outcomes]
        lines.append(f"{kind:24}" + "".join(f"{number:>12,}" for number in row))
    return lines


def main() -> int:
    """Run from the command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.damage", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many damages (1000)")
    parser.add_argument("--seed", type=int, help="of all that is random (a new one)")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    sys.stdout.write(f"seed {seed}\n")
    began = monotonic()
    logging.getLogger("pystreamlog").setLevel(logging.CRITICAL)

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a private folder is made there
    with tempfile.TemporaryDirectory(dir=where) as folder:
        counts = run(options.count, seed, Path(folder), tell=tell)
    for line in table(counts):
        tell(line)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    tell(f"{sum(counts.values()):,} damages in {monotonic() - began:.0f} s, {memory} MiB at most")
    return any(outcome == "wrong" for _, _, outcome in counts)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
