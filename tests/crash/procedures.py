"""What is done to a log while it is hurt: each operation with what may be left of it.

An `Operation` is used over and over, each time in this order:

1. `prepare(world)`: in the survivor, before. May do anything.
2. `ready(log, world)`: in the victim, unhurt; what it returns is handed to `act`.
3. `act(log, ready, ack)`: in the victim, hurt. Calls `ack(label)` after each part that was acknowledged to it.
4. `settle(world, acknowledged)`: in the survivor, after; `acknowledged` is what `ack` was called with. Raises
   `LostError` unless the operation happened wholly or not at all, and as far as it was acknowledged; tells `world`
   what came of it.

An operation that is added to `PROCEDURES` is killed, cut off and failed at each of its steps by all harnesses.
"""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pystreamlog
from pystreamlog import OffsetAndMetadata, TopicPartition
from pystreamlog.errors import UnknownTopicError

from .world import GROUP, PATIENCE, TOPIC, Key, LostError, World

__all__ = ["PROCEDURES", "Ack", "Operation"]

Ack = Callable[[str], None]


class Operation(ABC):
    """See the module.

    Attributes:
        name: Of the operation and its variant.
        config: Settings of the topic `TOPIC` that it needs.
    """

    def __init__(self, name: str, **config: Any) -> None:
        self.name = name
        self.config = config

    def __repr__(self) -> str:
        return self.name

    def prepare(self, world: World) -> None:  # noqa: B027 - most need it
        """See the module."""

    def ready(self, log: Any, world: World) -> Any:
        """See the module."""
        return None

    def leave(self, world: World) -> None:  # noqa: B027 - most need nothing
        """The world is about to be closed; let go of what belongs to it."""

    @abstractmethod
    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """See the module."""

    def use(self, log: Any) -> None:  # noqa: B027 - appending is use enough for most
        """Use what the operation uses, in a log that was opened after the accident; leaves no record."""

    @abstractmethod
    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """See the module."""


# --- records ----------------------------------------------------------------------------------------------------------


class Append(Operation):
    """`Topic.append`, record by record.

    Args:
        name: Of the variant.
        size: Of each value.
        partitions: Which partitions get one, in this order.
        durability: Of the appends.
        warm: The victim has appended before, so that its files are open.
        **config: Of the topic.
    """

    def __init__(
        self,
        name: str,
        *,
        size: int = 20,
        partitions: Sequence[int] = (0,),
        durability: str = "os",
        warm: bool = True,
        **config: Any,
    ) -> None:
        super().__init__(name, **config)
        self._size = size
        self._partitions = partitions
        self._durability = durability
        self._warm = warm
        self._values: list[bytes] = []
        self._first: list[bytes] = []

    def prepare(self, world: World) -> None:
        """Choose the values."""
        self._values = [world.value(self._size) for _ in self._partitions]
        self._first = [world.value() for _ in self._partitions] if self._warm else []

    def ready(self, log: Any, world: World) -> Any:
        """Open the files."""
        topic = log.topic(TOPIC)
        for partition, value in zip(self._partitions, self._first, strict=False):
            topic.append(value, partition=partition)
        return topic

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Append."""
        for partition, value in zip(self._partitions, self._values, strict=True):
            ready.append(value, partition=partition, durability=self._durability)
            ack("one")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """Each record is there or not, those that were acknowledged are."""
        for partition in sorted(set(self._partitions)):
            mine = [index for index, other in enumerate(self._partitions) if other == partition]
            first = [[self._first[index]] for index in mine] if self._warm else []
            batches = first + [[self._values[index]] for index in mine]
            count = len(first) + sum(index < len(acknowledged) for index in mine)
            there = world.settle((TOPIC, partition), batches, count)
            if there > len(first) + sum(index <= len(acknowledged) for index in mine):
                raise LostError(f"{self.name}: a record is there that was not tried yet")


class AppendFirst(Operation):
    """The first record of a partition, which makes the partition."""

    def __init__(self, name: str, durability: str = "os") -> None:
        super().__init__(name)
        self._durability = durability
        self._value = b""

    def prepare(self, world: World) -> None:
        """Make a topic that nobody used."""
        world.create("unused", 2)
        self._value = world.value()

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Append its first record."""
        log.topic("unused").append(self._value, partition=1, durability=self._durability)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It is there or not, as soon as somebody writes there; the partition works."""
        topic, own = world.log.topic("unused"), world.value()
        # A slot torn while it was written does not tell: who writes next finds out, and until then nothing is seen.
        seen = world.found("unused", 1)[1]
        topic.append(own, partition=1)
        found = world.found("unused", 1)[1]
        if found not in ([own], [self._value, own]) or ((seen or acknowledged) and found[0] == own):
            raise LostError(f"{len(seen)} records were seen, {len(found) - 1} are there, {len(acknowledged)} known")
        world.known["unused", 1] = found
        world.append("unused", 0)
        world.check()
        world.delete("unused")


class Produce(Operation):
    """A producer's batches, one for each partition, written by one flush."""

    def __init__(
        self, name: str, *, count: int = 20, size: int = 20, partitions: int = 3, durability: str = "os", **config: Any
    ) -> None:
        self._settings = {key: config.pop(key) for key in ("compression_type",) if key in config}
        super().__init__(name, **config)
        self._count = count
        self._size = size
        self._partitions = partitions
        self._durability = durability
        self._batches: dict[Key, list[bytes]] = {}

    def prepare(self, world: World) -> None:
        """Choose the values."""
        self._batches = {
            (TOPIC, partition): [world.value(self._size) for _ in range(self._count)]
            for partition in range(self._partitions)
        }

    def ready(self, log: Any, world: World) -> Any:
        """A producer that does not write by itself."""
        return log.producer(linger_ms=600_000, durability=self._durability, **self._settings)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Send everything, then flush."""
        for (topic, partition), values in self._batches.items():
            for index, value in enumerate(values):
                delivery = ready.send(topic, value, partition=partition)
                delivery.add_done_callback(lambda done, name=f"{partition} {index}": _told(done, name, ack))
        ready.flush()

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """In each partition some of the records are there, in order: one that failed is left out."""
        for key, values in self._batches.items():
            told = {values[int(index)] for number, index in map(str.split, acknowledged) if int(number) == key[1]}
            known = world.known[key]
            sent = set(world.found(*key)[key[1]][len(known) :])
            there = [value for value in values if value in sent]
            if world.settle(key, [[value] for value in there], 0) != len(there) or told - set(there):
                raise LostError(f"{key}: of {len(told)} acknowledged records {len(told & set(there))} are there")
            world.acknowledged += len(told)


def _told(delivery: Any, name: str, ack: Ack) -> None:
    if delivery.exception() is None:
        ack(name)


# --- committed offsets ------------------------------------------------------------------------------------------------


class Commit(Operation):
    """A consumer commits offsets.

    Args:
        name: Of the variant.
        partitions: Of how many partitions at once.
        metadata: A note with each.
        first: For the first time: in a group that was just made.
        before: So many other partitions were committed in it before; the file has room for 16.
    """

    def __init__(
        self, name: str, *, partitions: int = 1, metadata: str = "", first: bool = False, before: int = 0
    ) -> None:
        super().__init__(name)
        self._numbers = range(before, before + partitions)
        self._metadata = metadata
        self._first = first
        self._turn = 0
        self._group = GROUP
        self._tried: dict[TopicPartition, OffsetAndMetadata] = {}

    def prepare(self, world: World) -> None:
        """Choose the offsets."""
        self._turn += 1
        if self._numbers.stop > world.partitions:
            world.grow(self._numbers.stop)
        if self._first:
            self._group = f"fresh-{self._turn}"
            for partition in range(self._numbers.start):
                world.commit(0, self._group, partition)
            world.reader(self._group)
        ends = {partition: len(world.known[TOPIC, partition]) for partition in self._numbers}
        self._tried = {
            TopicPartition(TOPIC, partition): OffsetAndMetadata(end and self._turn % end, self._metadata)
            for partition, end in ends.items()
        }

    def ready(self, log: Any, world: World) -> Any:
        """A consumer of the group."""
        consumer = log.consumer(group_id=self._group, enable_auto_commit=False)
        consumer.assign(list(self._tried))
        return consumer

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Commit."""
        ready.commit(self._tried)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """Each offset is the old or the new one."""
        world.settle_commit(self._group, self._tried, acknowledged=bool(acknowledged))
        if self._first:
            for tp in self._tried:
                world.commit(0, self._group, tp.partition)
            world.dismiss(self._group)


# --- topics -----------------------------------------------------------------------------------------------------------


class CreateTopic(Operation):
    """Make a topic."""

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Make it."""
        log.create_topic("made", partitions=2, segment_bytes=5000)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It is there as it was meant to be, or it can be made."""
        is_there = "made" in world.log.topics()
        if acknowledged and not is_there:
            raise LostError("a topic that was made is not there")
        topic = world.log.create_topic("made", partitions=2, exist_ok=True, segment_bytes=5000)
        if topic.partitions != 2 or topic.config["segment_bytes"] != 5000:
            raise LostError(f"the topic is there with other settings: {topic.config}")
        world.append("made", 1)
        world.delete("made")


class AlterTopic(Operation):
    """Change a setting of a topic."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._before = 0

    def prepare(self, world: World) -> None:
        """Note what it is."""
        self._before = world.log.topic(TOPIC).config["max_message_bytes"]

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Change it."""
        log.topic(TOPIC).alter(max_message_bytes=self._before + 1)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It is the old or the new one."""
        world.log._topics.forget(TOPIC)  # a change of another process is seen within a second
        after = world.log.topic(TOPIC).config["max_message_bytes"]
        if after - self._before not in ((1,) if acknowledged else (0, 1)):
            raise LostError(f"max_message_bytes is {after}, was {self._before}")
        world.log.topic(TOPIC).alter(max_message_bytes=after + 1)


class AddPartitions(Operation):
    """Add a partition to a topic."""

    def prepare(self, world: World) -> None:
        """Make a topic with one partition."""
        world.create("growing")
        world.append("growing", 0)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Give it another."""
        log.topic("growing").add_partitions(2)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It has one or two; a second one works."""
        world.log._topics.forget("growing")
        count = world.log.topic("growing").partitions
        if count not in ((2,) if acknowledged else (1, 2)):
            raise LostError(f"the topic has {count} partitions")
        if count == 1:
            world.log.topic("growing").add_partitions(2)
        world.append("growing", 0)
        world.append("growing", 1)
        world.check()
        world.delete("growing")


class DeleteTopic(Operation):
    """Delete a topic with records in both of its partitions."""

    def prepare(self, world: World) -> None:
        """Make it."""
        world.create("doomed", 2)
        world.append("doomed", 0)
        world.append("doomed", 1)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Delete it."""
        log.delete_topic("doomed")
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It is gone, or can be read in whole and deleted; the name is free then."""
        is_there = "doomed" in world.log.topics()
        if is_there and acknowledged:
            raise LostError("a topic that was deleted is there")
        if is_there:
            world.check()
            world.delete("doomed")
        else:
            world.forget("doomed")
            world.log._topics.forget("doomed")
            try:
                world.log.topic("doomed").append(b"late", partition=0)
            except UnknownTopicError:
                pass
            else:
                raise LostError("a topic that is gone takes records")
        world.create("doomed", 1)
        world.append("doomed", 0)
        world.delete("doomed")


class DeleteOld(Operation):
    """Delete the first records of a partition, with their segments.

    Args:
        name: Of the variant.
        below: By hand, below this offset; by the topic's retention if None.
        transaction: The last of them are of a transaction that no disk has yet.
        **config: Of the topic.
    """

    COUNT = 30

    def __init__(self, name: str, *, below: int | None = None, transaction: bool = False, **config: Any) -> None:
        super().__init__(name)
        self._below = below
        self._transaction = transaction
        self._topic = {"segment_bytes": 4096, **config}
        self._values: list[bytes] = []

    def prepare(self, world: World) -> None:
        """Make a topic of three segments."""
        topic = world.log.create_topic("trimmed", **self._topic)
        self._values = [world.value(100) for _ in range(self.COUNT)]
        for value in self._values[: -2 if self._transaction else None]:
            topic.append(value)
        if self._transaction:
            other = world.value()
            with world.log.producer() as producer, producer.transaction():
                for value in self._values[-2:]:
                    producer.send("trimmed", value)
                producer.send(TOPIC, other, partition=1)
            world.known[TOPIC, 1].append(other)
        time.sleep(0.002)  # for who keeps what is no older than now

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Delete them."""
        if self._below is None:
            log.maintain()
        else:
            log.admin.delete_records({TopicPartition("trimmed", 0): self._below})
        ack("done")

    def use(self, log: Any) -> None:
        """Open what a failed fsync may have poisoned."""
        partition = log._partitions.writer(log._topics.find("trimmed"), 0)
        if self._transaction:
            log._transactions.prepare([partition])
        partition.ensure()

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """The log starts where it did, or where it shall; what was left half done is removed by the next run."""
        starts = {self._start(world, world.log)}
        with pystreamlog.open(world.path) as fresh:
            starts.add(self._start(world, fresh))
        if len(starts) != 1 or starts - {0, *self._later(world)} or (acknowledged and starts == {0}):
            raise LostError(f"the log starts at {starts}")
        topic = world.log.topic("trimmed")
        if topic.append(b"more").offset != self.COUNT:
            raise LostError("an append got another offset")
        world.log.maintain()
        report = world.log.verify()
        left = [note for note in report.notes if note.kind == "derived" or "below the log's start" in note.message]
        if not report.ok or left:
            raise LostError(f"a run left {left}: {report}")
        world.log.delete_topic("trimmed")

    def _start(self, world: World, log: Any) -> int:
        topic = log.topic("trimmed")
        start = topic.beginning_offsets()[0]
        found = [(record.offset, record.value) for record in topic.read()]
        if found != list(enumerate(self._values))[start:]:
            raise LostError(f"from {start} on there are {len(found)} records, or others: {found[:1]}")
        return start

    def _later(self, world: World) -> Sequence[int]:
        """Where the log may start afterwards."""
        return range(1, self.COUNT + 1) if self._below is None else (self._below,)


# --- snapshots --------------------------------------------------------------------------------------------------------


class TakeSnapshot(Operation):
    """A snapshot of records in several segments, transactions and committed offsets."""

    def __init__(self, name: str, **config: Any) -> None:
        super().__init__(name, **config)
        self._target = ""

    def prepare(self, world: World) -> None:
        """Have something new to take."""
        self._target = f"{world.path}-snapshot"
        world.append(partition=0, size=1500)
        values = [world.value(), world.value()]
        with world.log.producer() as producer, producer.transaction():
            for partition, value in enumerate(values):
                producer.send(TOPIC, value, partition=partition)
        for partition, value in enumerate(values):
            world.known[TOPIC, partition].append(value)
        world.commit(1)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Take it."""
        log.snapshot(self._target)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It is there, whole, or it is not; what was begun of it is removed by the next one."""
        if os.path.lexists(self._target):
            self._check(world)
            shutil.rmtree(self._target)
        elif acknowledged:
            raise LostError("the snapshot is gone")
        world.log.snapshot(self._target)
        self._check(world)
        shutil.rmtree(self._target)
        left = [entry for entry in os.listdir(os.path.dirname(self._target)) if "~" in entry]
        if left:
            raise LostError(f"{left} is left")

    def _check(self, world: World) -> None:
        with pystreamlog.open(self._target, create=False) as copy:
            report = copy.verify()
            if not report.ok or report.notes:
                raise LostError(f"the snapshot is not whole: {report}")
            for name, partition in world.known:
                values = [record.value for record in copy.topic(name).read(partition=partition)]
                found = [value for value in values if value not in world.probes]
                if found != world.known[name, partition]:
                    raise LostError(f"the snapshot has {len(found)} other records in partition {partition} of {name}")
                copy.topic(name).append(b"its own", partition=partition)


# --- compaction -------------------------------------------------------------------------------------------------------


class Rewrite(Operation):
    """Compact or repack a partition of several segments.

    Args:
        name: Of the variant.
        again: It was compacted before, and has tombstones that have had their time.
        **config: Of the topic.
    """

    COUNT = 60

    def __init__(self, name: str, *, again: bool = False, **config: Any) -> None:
        super().__init__(name)
        self._again = again
        self._topic = {"segment_bytes": 4096, **config}
        self._compacts = config.get("cleanup_policy") == "compact"
        self._sent: list[tuple[bytes, bytes | None]] = []

    def prepare(self, world: World) -> None:
        """Make a topic of some segments, with a key that is deleted."""
        topic = world.log.create_topic("rewritten", **self._topic)
        self._sent = []
        for number in range(self.COUNT):
            key = b"gone" if number in (0, 20) else b"key-%d" % (number % 4)
            value = None if number == 20 else world.value(100)
            topic.append(value, key)
            self._sent.append((key, value))
            if self._again and number == self.COUNT // 2:
                world.log.maintain(force=True)
        time.sleep(0.002)  # the tombstone's time is over then

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Write it anew."""
        log.maintain(force=True)
        ack("done")

    def use(self, log: Any) -> None:
        """Open what a failed fsync may have poisoned."""
        log._partitions.writer(log._topics.find("rewritten"), 0).ensure()

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """Nothing that must stay is gone, nothing comes back; what was left half done, the next run does."""
        counts = {self._look(world.log)}
        with pystreamlog.open(world.path) as fresh:
            counts.add(self._look(fresh))
        if len(counts) != 1 or (acknowledged and self._compacts and counts == {self.COUNT}):
            raise LostError(f"there are {counts} records")
        topic = world.log.topic("rewritten")
        if topic.append(b"more", b"another").offset != self.COUNT:
            raise LostError("an append got another offset")
        self._sent.append((b"another", b"more"))
        world.log.maintain(force=True)
        left = self._look(world.log)
        if left == len(self._sent) and self._compacts:
            raise LostError("the next run did nothing")
        report = world.log.verify()
        notes = [note for note in report.notes if note.kind in ("derived", "leftover") or ".cleaned" in note.path]
        if not report.ok or notes:
            raise LostError(f"a run left {notes}: {report}")
        world.log.delete_topic("rewritten")

    def _look(self, log: Any) -> int:
        found = list(log.topic("rewritten").read())
        offsets = [record.offset for record in found]
        if offsets != sorted(set(offsets)):
            raise LostError(f"offsets {offsets}")
        if any((record.key, record.value) != self._sent[record.offset] for record in found):
            raise LostError("a record is another one")
        last = {key: offset for offset, (key, _) in enumerate(self._sent)}
        wanted = set(range(len(self._sent))) if not self._compacts else {last[key] for key in last if key != b"gone"}
        if not wanted <= set(offsets):
            raise LostError(f"records {sorted(wanted - set(offsets))} are gone")
        if 0 in offsets and 20 not in offsets:
            raise LostError("a record that was deleted came back")
        return len(found)


# --- groups -----------------------------------------------------------------------------------------------------------


class CreateGroup(Operation):
    """Make a group, by its first consumer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._turn = 0

    def prepare(self, world: World) -> None:
        """Choose a name."""
        self._turn += 1

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Make it."""
        log.consumer(group_id=f"group-{self._turn}")
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """It works."""
        world.commit(1, f"group-{self._turn}")
        world.dismiss(f"group-{self._turn}")


class Member(Operation):
    """A consumer joins a group that the survivor is a member of, or leaves it.

    Args:
        name: Of the variant.
        leave: Hurt it while it leaves, else while it joins.
    """

    GROUP = "members"

    def __init__(self, name: str, *, leave: bool) -> None:
        super().__init__(name)
        self._leave = leave
        self._survivor: Any = None

    def prepare(self, world: World) -> None:
        """The survivor owns everything."""
        if self._survivor is None:
            self._survivor = world.log.consumer(TOPIC, group_id=self.GROUP, auto_offset_reset="earliest")
        self._own_all(world)

    def leave(self, world: World) -> None:
        """Close the survivor's member."""
        if self._survivor is not None:
            self._survivor.close()
            self._survivor = None

    def _own_all(self, world: World) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self._survivor.assignment()) < world.partitions:
            self._survivor.poll(0.005)
            if time.monotonic() > deadline:
                raise LostError(f"the survivor has {self._survivor.assignment()} for {PATIENCE} s")

    def ready(self, log: Any, world: World) -> Any:
        """A consumer, joined if it is to leave; the survivor is in its own process, so nothing is shared yet."""
        consumer = log.consumer(TOPIC, group_id=self.GROUP)
        if self._leave:
            consumer.poll(0)
        return consumer

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Join, or leave."""
        if self._leave:
            ready.close()
        else:
            ready.poll(0)
            ready.poll(0)
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """The survivor owns everything again, and commits."""
        self._own_all(world)
        self._survivor.poll(0)
        self._survivor.commit()


# --- all --------------------------------------------------------------------------------------------------------------


def _procedures() -> list[Callable[[], Operation]]:
    made: list[Callable[[], Operation]] = []
    for durability in ("os", "fsync"):
        made += [
            lambda d=durability: Append(f"append one, {d}", durability=d),
            lambda d=durability: Append(f"append, files not open, {d}", durability=d, warm=False),
            lambda d=durability: Append(f"append 70 kB, {d}", durability=d, size=70_000),
            lambda d=durability: Append(f"append to 3 partitions, {d}", durability=d, partitions=(0, 1, 2)),
            lambda d=durability: Append(
                f"append that rolls, {d}", durability=d, size=3000, partitions=(0, 0), segment_bytes=4096
            ),
            lambda d=durability: AppendFirst(f"append the first, {d}", d),
            lambda d=durability: Produce(f"produce to 1 partition, {d}", partitions=1, durability=d),
            lambda d=durability: Produce(f"produce to 3 partitions, {d}", durability=d),
            lambda d=durability: Produce(
                f"produce batches that roll, {d}", partitions=2, count=3, size=1200, durability=d, segment_bytes=4096
            ),
        ]
    made += [
        lambda: Commit("commit one offset"),
        lambda: Commit("commit 3 offsets", partitions=3),
        lambda: Commit("commit with metadata", partitions=2, metadata="a note"),
        lambda: Commit("commit for the first time", partitions=2, first=True),
        lambda: Commit("commit for which the file grows", partitions=2, metadata="why", first=True, before=15),
        lambda: CreateTopic("create topic"),
        lambda: AlterTopic("alter topic"),
        lambda: AddPartitions("add partitions"),
        lambda: DeleteTopic("delete topic"),
        lambda: DeleteOld("delete records", below=20),
        lambda: DeleteOld("delete records of a transaction", below=29, transaction=True),
        lambda: DeleteOld("delete all records", below=30),
        lambda: DeleteOld("retention by size", retention_bytes=4096),
        lambda: DeleteOld("retention by age", retention_ms=0),
        lambda: TakeSnapshot("snapshot", segment_bytes=4096),
        lambda: Rewrite("compact", cleanup_policy="compact", delete_retention_ms=0),
        lambda: Rewrite("compact again", again=True, cleanup_policy="compact", delete_retention_ms=0),
        lambda: Rewrite("repack", repack=True),
        lambda: CreateGroup("create group"),
        lambda: Member("join group", leave=False),
        lambda: Member("leave group", leave=True),
    ]
    return made


PROCEDURES = _procedures()
