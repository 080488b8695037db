"""Single situations that chance meets too seldom: `python -m tests.crash.scenarios NAME` plays one.

Each raises a `Finding` when what is found is not what was promised.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from pystreamlog.errors import CorruptLogError, LockTimeoutError
from pystreamlog.record.batch import encode_one
from pystreamlog.storage.index import IndexEntry, build_index
from pystreamlog.storage.reader import LogReader

from .disk import Disk
from .expectation import Expectation, Finding
from .machine import simulated
from .operations import Life, append, create, read, write_behind_the_end

__all__ = ["SCENARIOS", "play"]

_LOCK = struct.Struct("hhqqi4x")


@contextmanager
def _life(home: str, disk: Disk | None = None, boot: int = 1, expected: Expectation | None = None, seed: int = 1):
    life = Life(home, disk or Disk(), boot, expected or Expectation(), random.Random(seed))
    try:
        yield life
    finally:
        life.machine.end()


def _now(life: Life, *, killed: bool = False) -> tuple[Disk, Expectation]:
    """The disk as processes see it, and what is expected of it."""
    (disk,) = life.machine.disks([life.machine.now])
    if not killed:
        disk = Disk(disk.cached())
    return disk.copy(), life.expected.at(life.machine.now, killed=killed)


def _equal_values(count: int) -> list[bytes]:
    return [b"%03d" % number * 20 for number in range(count)]


def _leave_behind(home: str, *, sealed: bool) -> None:
    """Batches that were never published, and one of equal size that was written over the first of them."""
    stale = _equal_values(4)
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a")
        for value in (b"one", b"two"):
            topic.append(value, timestamp_ms=1)
        folder = log._partitions.writer(log._topics.find("a"), 0).folder
        write_behind_the_end(folder, stale[:3], sealed=sealed)
        topic.append(stale[3], timestamp_ms=1)
        disk, _ = _now(life)
    with _life(home, disk, 2) as life:
        values = read(life.log.topic("a"), 0)
        if values != [b"one", b"two", stale[3]]:
            raise Finding("invented", f"{len(values)} records, where 3 were published")


def stale_batches(home: str) -> None:
    """A batch left over from a dead process, behind a new one of equal length, does not come back."""
    _leave_behind(home, sealed=False)


def stale_seal(home: str) -> None:
    """Nor does a seal, with the segment that it leads to."""
    with _life(home) as life:
        log, values = life.log, _equal_values(3)
        topic = log.create_topic("a")
        topic.append(b"one", timestamp_ms=1)
        folder = log._partitions.writer(log._topics.find("a"), 0).folder
        write_behind_the_end(folder, values[:2], sealed=True)
        topic.append(values[2], timestamp_ms=1)
        disk, _ = _now(life)
    with _life(home, disk, 2) as life:
        found = read(life.log.topic("a"), 0)
        if found != [b"one", values[2]]:
            raise Finding("invented", f"{len(found)} records, where 2 were published")


def wrong_index(home: str) -> None:
    """An index that leads elsewhere is not believed."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a")
        for number in range(60):
            topic.append(b"%04d" % number * 500, timestamp_ms=1)
        folder = log._partitions.writer(log._topics.find("a"), 0).folder
        control = folder.open_control(write=False)
        reader = LogReader(folder, control, map_reads=False)
        places = [
            (header.base_offset, at, segment.header) for segment, at, header in reader.batches(control.published())
        ]
        reader.close()
        control.close()
        entries = [IndexEntry(number, places[number + 10][1], 1) for number in range(0, 50, 10)]
        segment_id = places[0][2].segment_id
        build_index(folder.files, folder.path, segment_id=segment_id, base_offset=0, entries=entries)
        for start in range(60):
            found = [record.offset for record in topic.read(partition=0, start=start)]
            if found != list(range(start, 60)):
                raise Finding("hole", f"from {start} on the offsets {found[:3]}… are read")


def damage(home: str) -> None:
    """What breaks below the durable end is reported, and never cut off."""
    for seed in range(40):
        dice = random.Random(seed)
        with _life(home, seed=seed) as life:
            create(life)
            subject = life.subjects()[0]
            for _ in range(30):
                append(life, subject, 0)
            life.topic(life.log, subject.name).append(life.values(1)[0], partition=0, durability="fsync")
            subject.line(0).send([], 0)
            subject.line(0).acknowledge(life.machine.now, synced=True)
            (disk,) = life.machine.disks([life.machine.now])
            image = disk.cached()
            expected = life.expected.at(life.machine.now, killed=False)
            folder = Path(life.machine.path, "topics", subject.name, "0")
            segments = sorted(folder.glob("*.log"))
            chosen = dice.choice(segments)
            number = life.machine.recorder.find(f"topics/{subject.name}/0/{chosen.name}")
        data = bytearray(image.files[number])
        place = dice.randrange(len(bytes(data).rstrip(b"\0")))
        data[place] ^= 1 << dice.randrange(8)
        image.files[number] = bytes(data)
        with _life(home, Disk(image), 2, expected, seed) as life, suppress(CorruptLogError):
            topic = life.log.topic(subject.name)
            values = read(topic, 0)
            if len(values) < expected.subjects[0].lines[0].present:
                raise Finding("lost", f"{len(values)} records are there after damage, without a word")


def held_lock(home: str) -> None:
    """Nobody appends while another process holds the append lock, however long it waits."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a")
        topic.append(b"one", timestamp_ms=1)
        writer = log._partitions.writer(log._topics.find("a"), 0)
        fd = os.open(f"{life.machine.path}/topics/a/0/control", os.O_RDWR)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, 0, 0, 1, 0))
            for timeout in (0, 0.02):
                with suppress(LockTimeoutError):
                    writer.append(encode_one(b"two", None, 1), timeout)
                    raise Finding("locks", f"a record was appended beside the holder of the lock, timeout {timeout}")
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_UNLCK, 0, 0, 1, 0))
            writer.append(encode_one(b"two", None, 1), 0)
        finally:
            os.close(fd)
        if read(topic, 0) != [b"one", b"two"]:
            raise Finding("lost", "what was appended once the lock was free is not there")


def recovery_on_demand(home: str) -> None:
    """What a recovery without a power loss calls durable is on disk, rolled segments too."""
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096)
        values = [b"%04d" % number * 200 for number in range(20)]
        for value in values:
            topic.append(value, timestamp_ms=1)
        life.reopen(recover_always=True)
        topic = life.log.topic("a")
        read(topic, 0)
        topic.append(b"last", timestamp_ms=1, durability="fsync")
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.after_power_loss(random.Random(1), "none")
    with _life(home, Disk(image), 2) as life:
        found = read(life.log.topic("a"), 0)
        if found != [*values, b"last"]:
            raise Finding("lost", f"{len(found)} of {len(values) + 1} records")


def new_group(home: str) -> None:
    """A group that is there after a power loss is there with all its files."""
    with _life(home) as life:
        life.log.create_topic("a")
        life.log.consumer(group_id="g").close()
        disks = [disk.after_power_loss(random.Random(1), "none") for disk in life.machine.disks([life.machine.now])]
        steps = list(range(life.machine.now + 1))
        disks += [
            disk.after_power_loss(random.Random(seed), "some")
            for seed in range(5)
            for disk in life.machine.disks(steps)
        ]
    for image in disks:
        with _life(home, Disk(image), 2) as life:
            life.log.consumer(group_id="g").close()
    if "groups" not in disks[0].folders[1]:
        raise Finding("forgotten", "the group is gone")


def maker_killed(home: str) -> None:
    """Records that are acknowledged as durable survive though who made log, topic or partition was killed at it."""
    with _life(home) as life:
        life.log.create_topic("a").append(b"zero", timestamp_ms=1)
        steps = list(range(life.machine.now + 1))
        disks = [disk.copy() for disk in life.machine.disks(steps)]
    for step, disk in enumerate(disks):
        with _life(home, disk) as life:
            life.log.create_topic("a", exist_ok=True).append(b"one", timestamp_ms=1, durability="fsync")
            (after,) = life.machine.disks([life.machine.now])
            image = after.after_power_loss(random.Random(1), "none")
        with _life(home, Disk(image), 2) as life:
            if "a" not in life.log.topics() or b"one" not in read(life.log.topic("a"), 0):
                raise Finding("lost", f"the record is gone; who made the log was killed at step {step}")


SCENARIOS: dict[str, Callable[[str], None]] = {
    "stale-batches": stale_batches,
    "stale-seal": stale_seal,
    "wrong-index": wrong_index,
    "damage": damage,
    "held-lock": held_lock,
    "recovery-on-demand": recovery_on_demand,
    "new-group": new_group,
    "maker-killed": maker_killed,
}
"""Every scenario by name."""


def play(name: str) -> None:
    """Play one.

    Raises:
        Finding: A promise was not kept.
    """
    with simulated() as home:
        try:
            SCENARIOS[name](home)
        except CorruptLogError as error:
            raise Finding("refused", f"{error}") from error


def main() -> int:
    """Play those that are named; 0 if nothing was found."""
    for name in sys.argv[1:] or SCENARIOS:
        try:
            play(name)
        except Finding as finding:
            sys.stdout.write(f"FOUND {finding} ({name})\n")
            return 1
        sys.stdout.write(f"{name}: nothing was found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
