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
from typing import Any

from pystreamlog.errors import CorruptLogError, FencedError, LockTimeoutError, StorageError
from pystreamlog.record.batch import encode_one
from pystreamlog.record.record import TopicPartition
from pystreamlog.storage.index import IndexEntry, build_index
from pystreamlog.storage.reader import LogReader

from .disk import STYLES, Disk
from .expectation import Expectation, Finding
from .machine import simulated
from .operations import Life, append, create, read, write_behind_the_end
from .snapshot_scenarios import SNAPSHOT_SCENARIOS

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


def stale_end_of_a_segment(home: str) -> None:
    """What a dead process left at the end of a segment, and sealed, leads to no segment that was made since."""
    values = _equal_values(4)
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a")
        topic.append(b"one", timestamp_ms=1, durability="fsync")
        writer = log._partitions.writer(log._topics.find("a"), 0)
        write_behind_the_end(writer.folder, values[:2], sealed=True)
        number = life.machine.recorder.find("topics/a/0/00000000000000000000.log")
        (disk,) = life.machine.disks([life.machine.now])
        stale = disk.cached().files[number]
        topic.append(values[2], timestamp_ms=1)
        with writer.locked(0) as end:
            writer.roll_locked(end)
        topic.append(values[3], timestamp_ms=1)
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.cached()
    image.files[number] = stale  # as it is where the pages of the first segment were not written since
    with _life(home, Disk(image), 2) as life:
        found = read(life.log.topic("a"), 0)
        if values[3] in found:
            raise Finding("invented", f"{found} are read, where {values[2]!r} was before the last one")


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
            create(life, [{}])
            subject = life.subjects()[0]
            for _ in range(30):
                append(life, subject, 0)
            life.topic(life.log, subject.name).append(life.values(1, subject)[0], partition=0, durability="fsync")
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


def recovered_transaction(home: str) -> None:
    """Recovery without a power loss calls no record of a transaction durable that is not on disk everywhere."""
    with _life(home) as life:
        life.log.create_topic("a", partitions=2)
        producer = life.log.producer()
        producer.begin_transaction()
        for number in range(2):
            producer.send_many("a", [b"in it"] * 3, partition=number)
        producer.commit_transaction()
        killed = life.machine.now
        life.reopen(recover_always=True)
        for number in range(2):
            read(life.log.topic("a"), number)
        disks = life.machine.disks(list(range(killed, life.machine.now + 1)))
        images = [disk.after_power_loss(random.Random(1), "none") for disk in disks]
    for image in images:
        with _life(home, Disk(image), 2) as life:
            topic = life.log.topic("a")
            found = [len(read(topic, number)) for number in range(2)]
            if found not in ([0, 0], [3, 3]):
                raise Finding("torn", f"of a transaction of 3 and 3 records there are {found}")


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


def deleted_group(home: str) -> None:
    """A group that is being deleted when the power goes is whole afterwards, or gone; a deleted one is gone."""
    place = TopicPartition("a", 0)
    with _life(home) as life:
        log = life.log
        log.create_topic("a").append(b"x", timestamp_ms=1)
        log.admin.alter_consumer_group_offsets("g", {place: 1})
        log.topic("a").append(b"y", timestamp_ms=1, durability="fsync")
        first = life.machine.now
        log.admin.delete_consumer_groups("g")
        steps = list(range(first, life.machine.now + 1))
        keeps = [("none", 1), *(("some", seed) for seed in range(5))]
        disks = [
            (step, disk.after_power_loss(random.Random(seed), keep))
            for keep, seed in keeps
            for step, disk in zip(steps, life.machine.disks(steps), strict=True)
        ]
    for step, image in disks:
        with _life(home, Disk(image), 2) as life:
            groups = [group.group_id for group in life.log.admin.list_consumer_groups()]
            found = life.log.admin.list_consumer_group_offsets("g")["g"]
            if {tp: each.offset for tp, each in found.items()} != ({place: 1} if groups else {}):
                raise Finding("torn", f"{groups} with {found} at step {step}")
            if groups and step == steps[-1]:
                raise Finding("invented", "the group is back")
            life.log.consumer(group_id="g").close()


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


def failed_sync(home: str) -> None:
    """A record whose fsync failed is not acknowledged, nor is any after it, by nobody; opened anew, all is copied."""
    with _life(home) as life:
        log, other = life.log, life.machine.open()
        topic = log.create_topic("a")
        topic.append(b"one", timestamp_ms=1, durability="fsync")
        other.topic("a").append(b"two", timestamp_ms=1)
        for attempt in range(2):
            if not attempt:
                life.machine.break_file("topics/a/0", ".log")
            with suppress(StorageError):
                topic.append(b"three", timestamp_ms=1, durability="fsync")
                raise Finding("poison", "a record is acknowledged whose fsync failed")
        with suppress(StorageError):
            other.topic("a").append(b"four", timestamp_ms=1)
            raise Finding("poison", "another process accepts a record after a failed fsync")
        (failed,) = life.machine.disks([life.machine.now])
        lost = failed.after_power_loss(random.Random(1), "none")
        life.reopen()
        topic = life.log.topic("a")
        if read(topic, 0) != [b"one", b"two", b"three"]:
            raise Finding("lost", "what the page cache still had is gone")
        topic.append(b"five", timestamp_ms=1, durability="fsync")
        (healed,) = life.machine.disks([life.machine.now])
        kept = healed.after_power_loss(random.Random(1), "none")
    for image, expected in (lost, [b"one"]), (kept, [b"one", b"two", b"three", b"five"]):
        with _life(home, Disk(image), 2) as life:
            found = read(life.log.topic("a"), 0)
            if found != expected:
                raise Finding("lost", f"{len(found)} records after the power loss, {len(expected)} were on disk")


def fenced(home: str) -> None:
    """Of two producers with one transactional id the older one commits nothing any more."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a", partitions=2)
        older, newer = (log.producer(transactional_id="t") for _ in range(2))
        older.begin_transaction()
        for number in range(2):
            older.send("a", b"older", partition=number)
        newer.init_transactions()
        with suppress(FencedError):
            older.commit_transaction()
            raise Finding("fenced", "a producer commits that was fenced")
        if any(read(topic, number) for number in range(2)):
            raise Finding("fenced", "the records of a fenced producer are there")


def offsets_without_journal(home: str) -> None:
    """The committed offsets of a transaction that a power loss takes are gone with it."""
    with _life(home) as life:
        log = life.log
        log.create_topic("a").append(b"in", timestamp_ms=1, durability="fsync")
        log.create_topic("b")
        producer, tp = log.producer(), TopicPartition("a", 0)
        with log.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.assign([tp])
            producer.begin_transaction()
            producer.send_many("b", [b"out", b"out"], partition=0)
            producer.send_offsets_to_transaction({tp: 1}, consumer.group_metadata())
            producer.commit_transaction()
        (disk,) = life.machine.disks([life.machine.now])
        images = [disk.after_power_loss(random.Random(seed), "some") for seed in range(40)]
    for image in images:
        with _life(home, Disk(image), 2) as life:
            count = len(read(life.log.topic("b"), 0))
            with life.log.consumer(group_id="g", enable_auto_commit=False) as consumer:
                consumer.assign([tp])
                found = consumer.committed(tp)[tp]
            if count != (0 if found is None else 2):
                raise Finding("torn", f"{count} records of a transaction are there, and its offset is {found}")


def spill_at_the_start(home: str) -> None:
    """A large transaction into an empty partition, cut short anywhere, leaves the partition as it was."""
    with _life(home) as life:
        log = life.log
        log.create_topic("a")
        producer = log.producer(transaction_buffer_bytes=1000)
        producer.begin_transaction()
        for _ in range(4):
            producer.send_many("a", [b"x" * 400] * 4, partition=0)
        producer.commit_transaction()
        steps = list(range(life.machine.now + 1))
        disks = [disk.copy() for disk in life.machine.disks(steps)]
    for step, disk in enumerate(disks):
        with _life(home, disk) as life:
            topic = life.log.create_topic("a", exist_ok=True)
            count = len(read(topic, 0))
            if count not in (0, 16):
                raise Finding("torn", f"{count} of 16 records are there; the producer was killed at step {step}")
            topic.append(b"after it", timestamp_ms=1)


def torn_slot(home: str) -> None:
    """A publication that is cut at any byte leaves the one before it."""
    with _life(home) as life:
        topic = life.log.create_topic("a")
        for number in range(6):
            topic.append(b"%d" % number, timestamp_ms=1)
        control = life.machine.recorder.find("topics/a/0/control")
        trace = life.machine.recorder.trace
        steps = [step for step, one in enumerate(trace) if one[:2] == ("write", control) and len(one[3]) < 1000]
        disks = []
        for disk in life.machine.disks(steps):
            after = disk.copy()
            after.cut(trace[steps[len(disks)]], random.Random(len(disks)))
            disks.append(after)
    for number, disk in enumerate(disks[-5:], 1):
        with _life(home, disk) as life:
            folder = life.log._partitions.writer(life.log._topics.find("a"), 0).folder
            control = folder.open_control(write=False)
            published = control.published()
            control.close()
            if published is None or published.end_offset != number:
                raise Finding("slots", f"the end is {published} where {number} records were published")


def transaction_killed(home: str) -> None:
    """A transaction whose producer is killed at any step is there with its offsets, or nothing of it is."""
    with _life(home) as life:
        log, tp = life.log, TopicPartition("a", 0)
        topic = log.create_topic("a", partitions=3)
        topic.append(b"in", partition=0, timestamp_ms=1)
        producer = log.producer()
        with log.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.assign([tp])
            consumer.commit({tp: 0})
            producer.begin_transaction()
            for number in (1, 2):
                producer.send_many("a", [b"out"] * 3, partition=number)
            producer.send_offsets_to_transaction({tp: 1}, consumer.group_metadata())
            begun = life.machine.now
            producer.commit_transaction()
        disks = [disk.copy() for disk in life.machine.disks(list(range(begun, life.machine.now + 1)))]
    seen = set()
    for disk in disks:
        with _life(home, disk) as life, life.log.consumer(group_id="g", enable_auto_commit=False) as consumer:
            topic = life.log.topic("a")
            consumer.assign([tp])
            found = (len(read(topic, 1)), len(read(topic, 2)), consumer.committed(tp)[tp].offset)
            if found not in ((0, 0, 0), (3, 3, 1)):
                raise Finding("torn", f"of a transaction of 3 and 3 records and an offset of 1 there is {found}")
            seen.add(found)
            for number in (1, 2):
                topic.append(b"after it", partition=number, timestamp_ms=1)
            if len(read(topic, 1)) != found[0] + 1:
                raise Finding("lost", "what was there before an append is not there after it")
    assert len(seen) == 2


def given_up(home: str) -> None:
    """A transaction that was given up, as its producer died, does not come back where others wrote since."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a", partitions=2)
        producer = log.producer()
        for number in range(2):
            topic.append(b"before", partition=number, timestamp_ms=1)
        producer.begin_transaction()
        for number in range(2):
            producer.send_many("a", [b"in it"] * 2, partition=number)
        begun = life.machine.now
        producer.commit_transaction()
        disks = [disk.copy() for disk in life.machine.disks(list(range(begun, life.machine.now + 1)))]
    for step, disk in enumerate(disks):
        with _life(home, disk) as life:
            topic = life.log.topic("a")
            for _ in range(2):  # as many as the transaction has there
                topic.append(b"after", partition=0, timestamp_ms=1, durability="fsync")
            expected = [read(topic, number) for number in range(2)]
            (after,) = life.machine.disks([life.machine.now])
            image = after.after_power_loss(random.Random(1), "all")
        with _life(home, Disk(image), 2) as life:
            found = [read(life.log.topic("a"), number) for number in range(2)]
            if found != expected:
                told = f"{list(map(len, found))} records instead of {list(map(len, expected))}"
                raise Finding("torn", f"{told} are there; the producer was killed at step {step} of the commit")


def unpublished(home: str) -> None:
    """Nobody sees what was written behind the end and not published."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a")
        topic.append(b"one", timestamp_ms=1)
        folder = log._partitions.writer(log._topics.find("a"), 0).folder
        write_behind_the_end(folder, _equal_values(2))
        if read(topic, 0) != [b"one"] or topic.end_offsets() != {0: 1}:
            raise Finding("invented", "records are read that were not published")


def deleted_records(home: str) -> None:
    """A power loss at any step of deleting leaves the old start or the new one, and transactions that are whole."""
    values = [b"%03d" % number * 100 for number in range(41)]
    promised: list[tuple[int, int]] = []
    with _life(home) as life:
        log = life.log
        topic, other = log.create_topic("a", segment_bytes=4096), log.create_topic("b")
        other.append(b"first", timestamp_ms=1)
        for value in values[:20]:
            topic.append(value, timestamp_ms=1)
        with log.producer(linger_ms=0) as producer, producer.transaction():
            producer.send("a", values[20], timestamp_ms=1)
            producer.send("b", b"second", timestamp_ms=1)
        first = life.machine.now
        log.admin.delete_records({TopicPartition("a", 0): 21})
        promised.append((life.machine.now, 21))
        for value in values[21:40]:
            topic.append(value, timestamp_ms=1)
        for setting in ("retention_bytes", "retention_ms"):
            topic.alter(**{setting: 4096})
            start = log.maintain().deleted[TopicPartition("a", 0)].log_start_offset
            promised.append((life.machine.now, start))
        topic.append(values[40], timestamp_ms=1)
        steps = list(range(first, life.machine.now + 1))
        images = [
            (step, disk.after_power_loss(random.Random(step), style))
            for step, disk in zip(steps, life.machine.disks(steps), strict=True)
            for style in STYLES
        ]
    if [start for _, start in promised][::2] != [21, 40]:
        raise Finding("failed", f"deleted up to {promised}")
    for step, image in images:
        least = max([start for at, start in promised if at <= step], default=0)
        try:
            _look_at_deleted(home, Disk(image), values, least)
        except CorruptLogError as error:
            raise Finding("refused", f"at step {step} of {first} to {steps[-1]}: {error}") from error


def undone_for_good(home: str) -> None:
    """A transaction that a power loss undid stays undone, also when the topic that told so was deleted since."""
    committed = TopicPartition("b", 0)
    with _life(home) as life:
        log = life.log
        for name in ("a", "b"):
            topic = log.create_topic(name)
            for _ in range(3):
                topic.append(b"first", timestamp_ms=1, durability="fsync")
        with log.consumer(group_id="g", enable_auto_commit=False) as consumer, log.producer() as producer:
            consumer.assign([committed])
            producer.begin_transaction()
            producer.send_many("a", [b"lost", b"lost"], partition=0)
            producer.send_offsets_to_transaction({committed: 3}, consumer.group_metadata())
            producer.commit_transaction()
        number = life.machine.recorder.find("topics/a/0/00000000000000000000.log")
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.cached()
    image.files[number] = image.files[number].replace(b"lost", b"\0\0\0\0")
    with _life(home, Disk(image), 2) as life:
        _look_at_undone(life, committed)
        with life.log.producer(durability="fsync") as producer, producer.transaction():
            producer.send_many("b", [b"next", b"next"], partition=0)  # so that the journal is durable from now on
            producer.send("a", b"next", timestamp_ms=1)
        life.log.delete_topic("a")
        disk, _ = _now(life)
    with _life(home, disk, 3) as life:
        _look_at_undone(life, committed)


def _look_at_undone(life: Life, committed: TopicPartition) -> None:
    with life.log.consumer(group_id="g", enable_auto_commit=False) as consumer:
        consumer.assign([committed])
        found = consumer.committed(committed)[committed]
    if found is not None:
        raise Finding("committed", f"{found} is committed, by a transaction that does not count")


def _look_at_deleted(home: str, disk: Disk, values: list[bytes], least: int) -> None:
    with _life(home, disk, 2) as life:
        log = life.log
        topic = log.topic("a")
        start, end = topic.beginning_offsets()[0], topic.end_offsets()[0]
        found = [(record.offset, record.value) for record in topic.read()]
        if found != list(enumerate(values))[start:end]:
            raise Finding("hole", f"{len(found)} records from {start} to {end}")
        if not least <= start <= end:
            raise Finding("lost", f"the log starts at {start}, {least} was promised")
        if (end > 20) != (log.topic("b").end_offsets()[0] > 1):
            raise Finding("torn", f"half a transaction: a ends at {end}, b at {log.topic('b').end_offsets()[0]}")
        if topic.append(b"more", timestamp_ms=1).offset != end:
            raise Finding("lost", "an append got another offset")
        log.maintain()
        report = log.verify()
        if not report.ok or any("below the log's start" in note.message for note in report.notes):
            raise Finding("refused", f"{report}")


def compacted(home: str) -> None:
    """A power loss at any step of compacting leaves the last record of each key, and nothing that was deleted."""
    sent: list[tuple[bytes, bytes | None]] = []
    begun: list[int] = []
    kept: list[int] = []
    with _life(home) as life:
        log = life.log
        topic, other = (
            log.create_topic("a", segment_bytes=4096, cleanup_policy="compact", delete_retention_ms=0),
            log.create_topic("b"),
        )
        other.append(b"first", timestamp_ms=1)

        def append(key: bytes, value: bytes | None) -> None:
            topic.append(value, key, timestamp_ms=1)
            sent.append((key, value))

        append(b"gone", b"value")
        for part in range(3):
            for number in range(30):
                append(b"key-%d" % (number % 5), b"%d.%03d" % (part, number) * 20)
            if part == 1:
                append(b"gone", None)
            with log.producer(linger_ms=0) as producer, producer.transaction():
                producer.send("a", b"in one", b"with another", timestamp_ms=1)
                producer.send("b", b"value", timestamp_ms=1)
            sent.append((b"with another", b"in one"))
            begun.append(life.machine.now)
            log.maintain(force=True)
            kept.append(len(list(topic.read())))
        append(b"last", b"value")
        steps = list(range(begun[0], life.machine.now + 1))
        images = [
            (step, disk.after_power_loss(random.Random(step), style))
            for step, disk in zip(steps, life.machine.disks(steps), strict=True)
            for style in STYLES
        ]
    if kept[-1] > len(sent) // 2:
        raise Finding("failed", f"nothing was compacted: {kept}")
    for step, image in images:
        try:
            _look_at_compacted(home, Disk(image), sent)
        except CorruptLogError as error:
            raise Finding("refused", f"at step {step} of {steps[0]} to {steps[-1]}: {error}") from error


def _look_at_compacted(home: str, disk: Disk, sent: list[tuple[bytes, bytes | None]]) -> None:
    with _life(home, disk, 2) as life:
        log = life.log
        topic = log.topic("a")
        end = topic.end_offsets()[0]
        _check_compacted(topic, sent[:end])
        if topic.append(b"more", b"another", timestamp_ms=1).offset != end:
            raise Finding("lost", "an append got another offset")
        log.maintain(force=True)
        _check_compacted(topic, [*sent[:end], (b"another", b"more")])
        report = log.verify()
        if not report.ok or any(note.kind == "leftover" for note in report.notes):
            raise Finding("refused", f"{report}")


def _check_compacted(topic: Any, sent: list[tuple[bytes, bytes | None]]) -> None:
    found = {record.offset: (record.key, record.value) for record in topic.read()}
    if any(record != sent[offset] for offset, record in found.items()):
        raise Finding("invented", "a record is another one")
    last = {key: offset for offset, (key, value) in enumerate(sent)}
    missing = [offset for offset in last.values() if offset not in found and sent[offset][1] is not None]
    if missing:
        raise Finding("lost", f"records {missing} of {len(sent)}")
    deleted = [offset for offset, (key, _) in found.items() if sent[last[key]][1] is None and last[key] not in found]
    if deleted:
        raise Finding("invented", f"records {deleted} were deleted, and are back without their tombstone")


def _losses(life: Life, first: int) -> list[dict]:
    """What power losses at each step from that one on leave."""
    steps = list(range(first, life.machine.now + 1))
    return [
        {"step": step, "disk": Disk(disk.after_power_loss(random.Random(step), style))}
        for step, disk in zip(steps, life.machine.disks(steps), strict=True)
        for style in STYLES
    ]


def compacted_transaction(home: str) -> None:
    """A transaction whose records were written anew, and name it no more, still is whole after a power loss."""
    with _life(home) as life:
        log = life.log
        topic = log.create_topic("a", segment_bytes=4096, repack=True)
        for name in "a", "b":
            (topic if name == "a" else log.create_topic("b")).append(b"first", timestamp_ms=1, durability="fsync")
        with log.producer() as producer, producer.transaction():
            for name in "a", "b":
                producer.send(name, b"in both", timestamp_ms=1)
        for _ in range(3):
            topic.append(b"value" * 500, timestamp_ms=1)
        begun = life.machine.now
        if not log.maintain(force=True).compacted:
            raise Finding("failed", "nothing was written anew")
        losses = _losses(life, begun)
    for loss in losses:
        with _life(home, loss["disk"], 2) as life:
            found = [b"in both" in read(life.log.topic(name), 0) for name in "ab"]
        if len(set(found)) > 1:
            raise Finding("torn", f"half a transaction after step {loss['step']}: {found}")


def sealed_late(home: str) -> None:
    """A segment that was sealed after its records were synced has its seal on disk before recovery begins behind it."""
    values = [b"%d;" % number * 750 for number in range(3)]  # the third begins another segment
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096, repack=True)
        for value in values:
            topic.append(value, timestamp_ms=1, durability="os" if value == values[-1] else "fsync")
        if not life.machine.rolled:
            raise Finding("failed", "no segment was sealed")
        begun = life.machine.now
        life.log.maintain(force=True)
        losses = _losses(life, begun)
    for loss in losses:
        with _life(home, loss["disk"], 2) as life:
            topic = life.log.topic("a")
            topic.append(b"more", timestamp_ms=1)
            found = read(topic, 0)
            report = life.log.verify()
        if not report.ok:
            raise Finding("refused", f"{report}")
        if found not in ([*values, b"more"], [*values[:-1], b"more"]):
            raise Finding("lost", f"{len(found)} of {len(values) + 1} records after step {loss['step']}")


def healed_in_part(home: str) -> None:
    """A power loss within a healing leaves every record, though some segments are copies and some are not."""
    values = [b"%d;" % number * 400 for number in range(8)]
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096)
        for value in values:
            topic.append(value, timestamp_ms=1, durability="fsync" if value == values[-1] else "os")
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.after_power_loss(random.Random(1), "none")
    with _life(home, Disk(image), 2) as life:
        life.machine.break_file("topics/a/0", ".log")
        with suppress(StorageError):
            read(life.log.topic("a"), 0)
        if life.machine.recorder.failing:
            raise Finding("failed", "nothing had to be synced")
        life.reopen()
        if read(life.log.topic("a"), 0) != values:
            raise Finding("lost", "a healing lost records")
        losses = _losses(life, 0)
    for loss in losses:
        with _life(home, loss["disk"], 3) as life:
            found = read(life.log.topic("a"), 0)
        if found != values:
            raise Finding("lost", f"{len(found)} of {len(values)} records after step {loss['step']} of a healing")


SCENARIOS: dict[str, Callable[[str], None]] = {
    "unpublished": unpublished,
    "stale-batches": stale_batches,
    "stale-seal": stale_seal,
    "stale-end-of-a-segment": stale_end_of_a_segment,
    "wrong-index": wrong_index,
    "damage": damage,
    "held-lock": held_lock,
    "recovery-on-demand": recovery_on_demand,
    "recovered-transaction": recovered_transaction,
    "new-group": new_group,
    "deleted-group": deleted_group,
    "maker-killed": maker_killed,
    "failed-sync": failed_sync,
    "fenced": fenced,
    "torn-slot": torn_slot,
    "transaction-killed": transaction_killed,
    "given-up": given_up,
    "deleted-records": deleted_records,
    "undone-for-good": undone_for_good,
    "compacted": compacted,
    "compacted-transaction": compacted_transaction,
    "sealed-late": sealed_late,
    "healed-in-part": healed_in_part,
    "offsets-without-journal": offsets_without_journal,
    "spill-at-the-start": spill_at_the_start,
    **SNAPSHOT_SCENARIOS,
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
    found = 0
    for name in sys.argv[1:] or SCENARIOS:
        try:
            play(name)
        except Finding as finding:
            sys.stdout.write(f"FOUND {finding} ({name})\n")
            found = 1
        else:
            sys.stdout.write(f"{name}: nothing was found\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
