"""Transactions that are hurt: all of it is there, in every partition and with its offsets, or nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from pystreamlog import OffsetAndMetadata, TopicPartition
from pystreamlog.backend.group import GroupMetadata
from pystreamlog.errors import FencedError

from .procedures import Ack, Operation
from .world import TOPIC, LostError, World

__all__ = ["TRANSACTED", "Transact", "small_journal"]

_GROUP = "copiers"
_ID = "copier"


def small_journal(log: Any) -> None:
    """Have this log's process start a new segment of the journal every few transactions."""
    writer = log._transactions._journal.writer
    writer.topic = msgspec.structs.replace(writer.topic, config=attrs.evolve(writer.topic.config, segment_bytes=4096))


class Transact(Operation):
    """A transaction over several partitions, with offsets of a group.

    Args:
        name: Of the variant.
        partitions: How many get records.
        count: Records in each.
        size: Of each value.
        durability: Of the producer.
        offsets: Of how many partitions it commits offsets.
        identified: With a transactional id.
        abort: Abort it in the end.
        journal: Roll the journal every few transactions.
        buffer: What is more than so many bytes spills into files.
        **config: Of the topic.

    Attributes:
        values: What it tries to append, by partition.
    """

    def __init__(
        self,
        name: str,
        *,
        partitions: int = 2,
        count: int = 2,
        size: int = 20,
        durability: str = "os",
        offsets: int = 1,
        identified: bool = True,
        abort: bool = False,
        journal: bool = False,
        buffer: int = 1 << 28,
        **config: Any,
    ) -> None:
        super().__init__(name, **config)
        self._partitions = partitions
        self._count = count
        self._size = size
        self._offsets = offsets
        self._abort = abort
        self._journal = journal
        self._settings: dict[str, Any] = {"durability": durability, "transaction_buffer_bytes": buffer}
        if buffer < 1 << 20:
            self._settings["batch_size"] = buffer  # a batch spills once it is full
        if identified:
            self._settings["transactional_id"] = _ID
        self._turn = 0
        self.values: dict[int, list[bytes]] = {}
        self._tried: dict[TopicPartition, OffsetAndMetadata] = {}

    def prepare(self, world: World) -> None:
        """Choose values and offsets."""
        self._turn += 1
        if self._journal:
            small_journal(world.log)
        self.values = {
            partition: [world.value(self._size) for _ in range(self._count)] for partition in range(self._partitions)
        }
        self._tried = {
            TopicPartition(TOPIC, partition): OffsetAndMetadata(self._turn % 2, f"turn {self._turn}")
            for partition in range(self._offsets)
        }
        world.reader(_GROUP)

    def ready(self, log: Any, world: World) -> Any:
        """A producer that may begin."""
        if self._journal:
            small_journal(log)
        producer = log.producer(**self._settings)
        if "transactional_id" in self._settings:
            producer.init_transactions()
        return producer

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Begin, send, commit."""
        ready.begin_transaction()
        for partition, values in self.values.items():
            for value in values:
                ready.send(TOPIC, value, partition=partition)
        if self._tried:
            ready.send_offsets_to_transaction(self._tried, GroupMetadata(_GROUP))
        if self._abort:
            ready.abort_transaction()
        else:
            ready.commit_transaction()
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """All or nothing; then the survivor's own transaction works."""
        happened: dict[str, bool] = {}
        for partition, values in self.values.items():
            found = world.found(TOPIC, partition)[partition]
            known = world.known[TOPIC, partition]
            if found[: len(known)] != known or found[len(known) :] not in ([], values):
                raise LostError(f"partition {partition}: {len(known)} known, {len(found)} found, torn or foreign")
            happened[f"partition {partition}"] = len(found) > len(known)
            world.known[TOPIC, partition] = found
        reader = world.reader(_GROUP)
        for tp, tried in self._tried.items():
            committed = reader.committed(tp)[tp]
            if committed not in (tried, world.offsets.get((_GROUP, *tp))):
                raise LostError(f"{tp}: committed at {committed}, tried {tried}")
            happened[f"offset of {tp.partition}"] = committed == tried
            if committed is not None:
                world.offsets[_GROUP, tp.topic, tp.partition] = committed
        if len(set(happened.values())) != 1:
            raise LostError(f"half a transaction: {happened}")
        is_there = set(happened.values()) == {True}
        if is_there == self._abort if acknowledged else is_there and self._abort:
            raise LostError(f"{'there' if is_there else 'not there'}, but it was {acknowledged}, abort={self._abort}")
        world.acknowledged += sum(map(len, self.values.values())) if is_there and acknowledged else 0
        self._own(world)

    def use(self, log: Any) -> None:
        """Commit the offsets that are committed, on disk."""
        tp = TopicPartition(TOPIC, 0)
        with log.consumer(group_id=_GROUP, enable_auto_commit=False) as reader:
            reader.assign([tp])
            found = reader.committed(tp)[tp]
        if found is not None:
            with log.producer(durability="fsync") as producer:
                producer.begin_transaction()
                producer.send_offsets_to_transaction({tp: found}, GroupMetadata(_GROUP))
                producer.commit_transaction()

    def _own(self, world: World) -> None:
        """The survivor's transaction, with the same id."""
        value = world.value()
        with world.log.producer(transactional_id=_ID) as producer, producer.transaction():
            for partition in range(self._partitions):
                producer.send(TOPIC, value, partition=partition)
        for partition in range(self._partitions):
            world.known[TOPIC, partition].append(value)


class Initialize(Operation):
    """A producer takes over a transactional id that the survivor's producer has."""

    def __init__(self, name: str, *, first: bool) -> None:
        super().__init__(name)
        self._first = first
        self._turn = 0
        self._older: Any = None

    @property
    def _id(self) -> str:
        return f"{_ID}-{self._turn}" if self._first else _ID

    def prepare(self, world: World) -> None:
        """The survivor's producer has it, unless it is to be the first."""
        self._turn += 1
        if not self._first:
            self._older = world.log.producer(transactional_id=_ID)
            self._older.init_transactions()

    def ready(self, log: Any, world: World) -> Any:
        """The newer one."""
        return log.producer(transactional_id=self._id)

    def act(self, log: Any, ready: Any, ack: Ack) -> None:
        """Take over."""
        ready.init_transactions()
        ack("done")

    def settle(self, world: World, acknowledged: Sequence[str]) -> None:
        """The older one is fenced if the newer one was told so; one that comes later works."""
        if not self._first:
            fenced = not self._transact(world, self._older)
            if acknowledged and not fenced:
                raise LostError("a producer goes on though a newer one took over its id")
            self._older.close()
        with world.log.producer(transactional_id=self._id) as newest:
            if not self._transact(world, newest):
                raise LostError("the newest producer is fenced")

    def _transact(self, world: World, producer: Any) -> bool:
        """Whether a transaction of that producer goes through."""
        value = world.value()
        try:
            with producer.transaction():
                producer.send(TOPIC, value, partition=0)
        except FencedError:
            return False
        world.known[TOPIC, 0].append(value)
        return True


TRANSACTED = [
    lambda: Transact("transact, os"),
    lambda: Transact("transact, fsync", durability="fsync"),
    lambda: Transact("transact in 3 partitions, 3 offsets, fsync", partitions=3, offsets=3, durability="fsync"),
    lambda: Transact("transact in 1 partition, os", partitions=1, offsets=0, identified=False),
    lambda: Transact("transact offsets alone", partitions=0, offsets=2),
    lambda: Transact("transact with a roll, os", size=2000, segment_bytes=4096),
    lambda: Transact("transact with a roll, fsync", size=2000, segment_bytes=4096, durability="fsync"),
    lambda: Transact("transact while the journal rolls, os", journal=True),
    lambda: Transact("transact while the journal rolls, fsync", journal=True, durability="fsync"),
    lambda: Transact("transact what spills, os", size=3000, count=4, buffer=5000),
    lambda: Transact("transact what spills, fsync", size=3000, count=4, buffer=5000, durability="fsync"),
    lambda: Transact("abort", abort=True),
    lambda: Transact("abort what spilled", abort=True, size=3000, count=4, buffer=5000),
    lambda: Initialize("take a transactional id", first=True),
    lambda: Initialize("take over a transactional id", first=False),
]
"""As `PROCEDURES`."""
