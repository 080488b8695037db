"""Single situations of snapshots and power losses, which `scenarios` plays with its own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pystreamlog.record.record import TopicPartition

from .disk import ROOT, STYLES, Disk, Image
from .expectation import Expectation, Finding
from .gaps import key_of
from .operations import Life, read
from .snapshots import LOG, check, contents, empty_disk, take

__all__ = ["SNAPSHOT_SCENARIOS"]

_COPY = "copy"
_LAST = 6
"""Steps in which a snapshot becomes one: `log.json` is made, and the directory gets its name."""
_VALUES = [b"%d;" % number * 750 for number in range(8)]  # two of them fill a segment


@contextmanager
def _life(home: str, disk: Disk | None = None, boot: int = 1) -> Iterator[Life]:
    life = Life(home, disk or empty_disk(), boot, Expectation(), random.Random(boot), folder=LOG)
    try:
        yield life
    finally:
        life.machine.end()


def _losses(life: Life, first: int, styles: Callable[[int], Sequence[str]]) -> Iterator[tuple[int, Image]]:
    """What power losses at each step from that one on leave."""
    steps, dice = list(range(first, life.machine.now + 1)), random.Random(first)
    for step, disk in zip(steps, life.machine.disks(steps), strict=True):
        for style in styles(step):
            yield step, disk.after_power_loss(dice, style)


def _fill(life: Life) -> None:
    """Two topics with full segments that are not on disk, a transaction over both, and what a group committed."""
    log, place = life.log, TopicPartition("a", 0)
    for name in "a", "b":
        topic = log.create_topic(name, segment_bytes=4096)
        topic.append(_VALUES[0], timestamp_ms=1, durability="fsync")
    with log.consumer(group_id="g", enable_auto_commit=False) as consumer, log.producer() as producer:
        consumer.assign([place])
        consumer.commit({place: 0})
        producer.begin_transaction()
        for name in "a", "b":
            producer.send(name, b"in both", partition=0, timestamp_ms=1)
        producer.send_offsets_to_transaction({place: 1}, consumer.group_metadata())
        producer.commit_transaction()
    for value in _VALUES[1:]:
        log.topic("a").append(value, timestamp_ms=1)


def taken(home: str, *, read_only: bool = False) -> None:
    """A power loss at any step of a snapshot, or after it, leaves a whole one or none; there is one if it was made."""
    with _life(home) as life:
        _fill(life)
        first = life.machine.now
        made = take(life, _COPY, read_only=read_only)
        life.log.topic("a").append(b"later", timestamp_ms=1)
        sent = read(life.log.topic("a"), 0)
        assert made is not None
        last = range(made.done - _LAST, made.done)
        losses = list(
            _losses(life, first, lambda step: ("some",) * 12 if step in last else ("none", STYLES[step % len(STYLES)]))
        )
    seen = set()
    for number, (step, image) in enumerate(losses):
        with _life(home, Disk(image), 2) as life:
            found = read(life.log.topic("a"), 0)
            if found != sent[: len(found)] or not found:
                raise Finding("lost", f"{len(found)} of {len(sent)} records of the log are there after step {step}")
            is_there = check(life, made, must=made.done <= step)
            if not is_there and number % 5 == 0:
                again = take(life, _COPY)
                (disk,) = life.machine.disks([life.machine.now])
                after = disk.after_power_loss(random.Random(step), "none")
                assert again is not None
                with _life(home, Disk(after), 3) as later:
                    check(later, again, must=True)
            if number % 5 == 1:
                contents(life.log)  # so that all of it is recovered
                report = life.log.verify()
                if not report.ok:
                    raise Finding("refused", f"the log after step {step}: {report}")
        seen.add((is_there, made.done <= step))
    assert {(False, False), (True, True)} <= seen


def taken_read_only(home: str) -> None:
    """The same with a process that may not write the log, and does not note there what it has on disk."""
    taken(home, read_only=True)


def undone_in_the_log(home: str) -> None:
    """A transaction that a power loss undoes is cut off in the log, and stays in a snapshot that has its files."""
    with _life(home) as life:
        _fill(life)
        made = take(life, _COPY, topics=["a"])  # it has no part in the other topic, and does not wait for its disk
        assert made is not None
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.after_power_loss(random.Random(1), "none")
    with _life(home, Disk(image), 2) as life:
        if read(life.log.topic("a"), 0) != _VALUES[:1] or read(life.log.topic("b"), 0) != _VALUES[:1]:
            raise Finding("failed", "the transaction was not undone")
        life.log.topic("a").append(b"instead", timestamp_ms=1)
        check(life, made, must=True, read_only=True)
        losses = list(_losses(life, 0, lambda step: ("none", STYLES[step % len(STYLES)])))
    for _, image in losses:
        with _life(home, Disk(image), 3) as life:
            read(life.log.topic("a"), 0)
            check(life, made, must=True)


def repaired(home: str) -> None:
    """A repair of a snapshot, or of the log, leaves the other's files as they are, also if it is cut short."""
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096)
        for value in _VALUES:
            topic.append(value, timestamp_ms=1, durability="fsync")
        life.log.snapshot(f"{life.machine.home}/{_COPY}")
        (disk,) = life.machine.disks([life.machine.now])
        image = disk.after_power_loss(random.Random(1), "all")
    number = _find(image, f"{LOG}/topics/a/0/{_SEGMENT}")
    if number != _find(image, f"{_COPY}/topics/a/0/{_SEGMENT}"):
        raise Finding("failed", "the segments are no links")
    damaged = bytearray(image.files[number])
    damaged[2000] ^= 1  # of the second record; it is the disk's fault, so it is so for both
    image.files[number] = bytes(damaged)
    for mine, other in (_COPY, LOG), (LOG, _COPY):
        with _life(home, Disk(image), 2) as life, life.machine.open(mine) as log:
            if not log.repair(cut_tail=True, force=True).done:
                raise Finding("failed", "nothing was repaired")
            losses = list(_losses(life, 0, lambda step: ("none", "all", STYLES[step % len(STYLES)])))
        for step, left in losses:
            there = _find(left, f"{other}/topics/a/0/{_SEGMENT}")
            if left.files.get(there) != damaged:
                raise Finding("lost", f"a repair of {mine} changed a file of {other}, by step {step}")


_SEGMENT = f"{0:020}.log"


def _find(image: Image, path: str) -> int:
    """The number of a file."""
    number = ROOT
    for part in path.split("/"):
        number = image.folders[number][part]
    return number


def compacted_since(home: str) -> None:
    """A snapshot keeps what the log compacts and deletes, at whatever step of that the power fails."""
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096, cleanup_policy="compact")
        for number in range(len(_VALUES)):
            value = b"%d;" % number * 750
            topic.append(value, key_of(value), timestamp_ms=1)
        made = take(life, _COPY)
        assert made is not None
        first = life.machine.now
        life.log.maintain(force=True)
        life.log.admin.delete_records({TopicPartition("a", 0): len(_VALUES)})
        if contents(life.log).records["a", 0][2]:
            raise Finding("failed", "nothing was compacted and deleted")
        losses = list(_losses(life, first, lambda step: ("none", "all", STYLES[step % len(STYLES)])))
    for _, image in losses:
        with _life(home, Disk(image), 2) as life:
            contents(life.log)
            check(life, made, must=True)


def compacted_meanwhile(home: str) -> None:
    """A segment that is sealed and joined with others once the cut is known is no damage: the cut is taken anew."""
    values = [b"%02d;" % number * 100 for number in range(70)]
    with _life(home) as life:
        topic = life.log.create_topic("a", segment_bytes=4096, cleanup_policy="compact")
        for value in values[:40]:
            topic.append(value, key_of(value), timestamp_ms=1)
        folder = f"{life.machine.path}/topics/a/0"
        last = max(entry for entry in os.listdir(folder) if entry.endswith(".log"))

        def meanwhile() -> None:
            if os.path.exists(f"{folder}/{last}"):
                for value in values[40:]:
                    topic.append(value, key_of(value), timestamp_ms=1)
                life.log.maintain(force=True)

        made = take(life, _COPY, meanwhile=meanwhile)
        assert made is not None
        if os.path.exists(f"{folder}/{last}"):
            raise Finding("failed", "the segment is still there")
        (disk,) = life.machine.disks([made.done])
        image = disk.after_power_loss(random.Random(1), "none")
    with _life(home, Disk(image), 2) as life:
        check(life, made, must=True)


def swept(home: str) -> None:
    """What is left of a snapshot that was whole is no log any more, at whatever step of its removal the power fails."""
    with _life(home) as life:
        _fill(life)
        made = take(life, _COPY)
        assert made is not None
        (disk,) = life.machine.disks([made.done - 2])  # all but the directory's name, and that on disk
        image = disk.after_power_loss(random.Random(1), "all")
    with _life(home, Disk(image), 2) as life:
        if not any(entry.startswith(f"~{_COPY}") for entry in os.listdir(life.machine.home)):
            raise Finding("failed", "nothing is left of the snapshot")
        second = take(life, _COPY)
        assert second is not None
        begun = {one.contents.log_id: one.contents for one in (made, second)}
        losses = list(_losses(life, 0, lambda step: ("none", "some", STYLES[step % len(STYLES)])))
    for step, image in losses:
        with _life(home, Disk(image), 3) as life:
            check(life, second, must=second.done <= step, begun=begun)


SNAPSHOT_SCENARIOS: dict[str, Callable[[str], None]] = {
    "snapshot-taken": taken,
    "snapshot-taken-read-only": taken_read_only,
    "snapshot-swept": swept,
    "snapshot-undone-in-the-log": undone_in_the_log,
    "snapshot-compacted-since": compacted_since,
    "snapshot-compacted-meanwhile": compacted_meanwhile,
    "snapshot-repaired": repaired,
}
"""Every one by name."""
