"""A log, and what must be in it: the survivor's side of every harness.

The survivor has the log open before anything happens to it, and goes on using the same objects afterwards. It knows
what was acknowledged to whom; after each accident it looks at what is there, tells whether that may be, and takes it
over into what it knows. Values are made from their number, so that one torn or foreign byte is seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any

import pystreamlog
from pystreamlog import OffsetAndMetadata, TopicPartition
from pystreamlog.errors import StreamLogError

__all__ = ["GROUP", "PATIENCE", "TOPIC", "Key", "LostError", "World", "value_of"]

Key = tuple[str, int]
"""A topic's name and a partition."""

TOPIC = "events"
GROUP = "readers"
_MANY = 10
"""So many partitions are not all appended to after each accident."""
PATIENCE = 10.0
"""Seconds in which a survivor must be through with everything, locks of the dead included."""


class LostError(AssertionError):
    """The log holds something else than it may."""


def value_of(number: int, size: int) -> bytes:
    """The value of that number: at least `size` bytes that no other number has."""
    head = b"%d:" % number
    return head + Random(number).randbytes(max(0, size - len(head)))


class _Recoveries(logging.Handler):
    """Collects what the library says about recoveries."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        if record.getMessage().startswith("recovered"):
            self.messages.append(record.getMessage())


class World:
    """A log, and what is known to be in it.

    Args:
        path: Where the log is, or is to be.
        partitions: Of the topic `TOPIC`.
        **config: Its settings.

    Attributes:
        log: The survivor's.
        known: Every record that must be there, by partition, in order.
        offsets: What was committed last, by group, topic and partition.
        probes: Values that somebody may have appended to `TOPIC` beside the operation; they are not seen until `adopt`.
        recoveries: What was said about recoveries, of which there must be none while the machine is up.
        checked: Records that were compared so far.
    """

    def __init__(self, path: str, *, partitions: int = 3, **config: Any) -> None:
        self.path = path
        self.log = pystreamlog.open(path)
        self.partitions = partitions
        self.config = config
        self.known: dict[Key, list[bytes]] = {}
        self.offsets: dict[tuple[str, str, int], OffsetAndMetadata] = {}
        self.checked = 0
        self.acknowledged = 0
        self.probes: set[bytes] = set()
        self._numbers = count()
        self._readers: dict[str, Any] = {}
        self._recoveries = _Recoveries()
        self._logger = logging.getLogger("pystreamlog")
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self._recoveries)
        self._logger.propagate, self._propagate = False, self._logger.propagate
        self.create(TOPIC, partitions, **config)
        for partition in range(partitions):
            self.append(TOPIC, partition)

    @property
    def recoveries(self) -> list[str]:
        """See the class; copies of the log do not count."""
        return [message for message in self._recoveries.messages if f"{self.path}/" in message]

    def close(self) -> None:
        """Close the log; nothing is removed."""
        self._logger.removeHandler(self._recoveries)
        self._logger.setLevel(self._level)
        self._logger.propagate = self._propagate
        for reader in self._readers.values():
            reader.close(commit=False)
        self.log.close()

    # --- what the survivor does

    def value(self, size: int = 20) -> bytes:
        """A value that was never used."""
        return value_of(next(self._numbers), size)

    def create(self, name: str, partitions: int = 1, **config: Any) -> None:
        """Make a topic."""
        self.log.create_topic(name, partitions=partitions, **config)
        for partition in range(partitions):
            self.known[name, partition] = []

    def grow(self, partitions: int) -> None:
        """Give `TOPIC` more partitions."""
        self.log.topic(TOPIC).add_partitions(partitions)
        for partition in range(self.partitions, partitions):
            self.known[TOPIC, partition] = []
        self.partitions = partitions

    def forget(self, name: str) -> None:
        """A topic is gone."""
        for key in [key for key in self.known if key[0] == name]:
            del self.known[key]

    def delete(self, name: str) -> None:
        """Delete a topic."""
        self.log.delete_topic(name)
        self.forget(name)

    def append(self, name: str = TOPIC, partition: int = 0, size: int = 20, durability: str = "os") -> None:
        """Append one record; it must get the next offset."""
        value = self.value(size)
        done = self.log.topic(name).append(value, partition=partition, durability=durability)
        known = self.known.setdefault((name, partition), [])
        if done.offset != len(known) and not self.probes:
            raise LostError(f"{name}-{partition}: appended at {done.offset} instead of {len(known)}")
        known.append(value)
        self.acknowledged += 1

    def reader(self, group: str = GROUP) -> Any:
        """The survivor's consumer in a group; it reads what it is told to."""
        reader = self._readers.get(group)
        if reader is None:
            reader = self._readers[group] = self.log.consumer(group_id=group, enable_auto_commit=False)
        if len(reader.assignment()) < self.partitions:
            reader.assign([TopicPartition(TOPIC, partition) for partition in range(self.partitions)])
        return reader

    def dismiss(self, group: str) -> None:
        """Close that consumer, and expect nothing more of its group."""
        self._readers.pop(group).close(commit=False)
        for key in [key for key in self.offsets if key[0] == group]:
            del self.offsets[key]

    def commit(self, offset: int, group: str = GROUP, partition: int = 0) -> None:
        """Commit an offset, and see that it counts."""
        tp = TopicPartition(TOPIC, partition)
        reader = self.reader(group)
        reader.commit({tp: offset})
        if reader.committed(tp)[tp].offset != offset:
            raise LostError(f"{group}: committed {offset}, found {reader.committed(tp)[tp]}")
        self.offsets[group, TOPIC, partition] = OffsetAndMetadata(offset)

    # --- what the survivor sees

    def found(self, name: str, partition: int | None = None, log: Any = None) -> dict[int, list[bytes]]:
        """The values of a topic's partitions, or of one, read from the start; offsets must be dense."""
        topic = (log or self.log).topic(name)
        values: dict[int, list[bytes]] = {}
        for record in topic.read(partition=partition):
            mine = values.setdefault(record.partition, [])
            if record.offset != len(mine):
                raise LostError(f"{name}-{record.partition}: offset {record.offset} after {len(mine) - 1}")
            mine.append(record.value)
        for number, end in topic.end_offsets().items():
            if partition in (None, number) and end != len(values.setdefault(number, [])):
                raise LostError(f"{name}-{number}: {len(values[number])} records below the end {end}")
        self.checked += sum(map(len, values.values()))
        if self.probes:
            values = {number: [value for value in mine if value not in self.probes] for number, mine in values.items()}
        return values

    def settle(self, key: Key, batches: Sequence[Sequence[bytes]], acknowledged: int) -> int:
        """What came of appending these batches to a partition, one after the other; it is known from now on.

        Args:
            key: The partition.
            batches: What somebody tried to append, in this order.
            acknowledged: How many of the batches were.

        Returns:
            How many are there.
        """
        known = self.known.setdefault(key, [])
        found = self.found(*key)[key[1]]
        if found[: len(known)] != known:
            raise LostError(f"{key}: {difference(known, found)}")
        rest = found[len(known) :]
        there = 0
        while rest and there < len(batches) and rest[: len(batches[there])] == list(batches[there]):
            rest = rest[len(batches[there]) :]
            there += 1
        if rest:
            raise LostError(
                f"{key}: {len(rest)} records at the end were never sent, or are there in part: {rest[0][:40]!r}"
            )
        if there < acknowledged:
            raise LostError(f"{key}: {acknowledged} batches were acknowledged, {there} are there")
        self.known[key] = found
        self.acknowledged += sum(map(len, batches[:acknowledged]))
        return there

    def settle_commit(
        self, group: str, tried: Mapping[TopicPartition, OffsetAndMetadata], *, acknowledged: bool
    ) -> None:
        """What came of a commit: each partition has the old or the new offset; the new ones if it was acknowledged."""
        reader = self.reader(group)
        for tp, new in tried.items():
            found = reader.committed(tp)[tp]
            old = self.offsets.get((group, *tp))
            if found != new and (acknowledged or found != old):
                raise LostError(f"{group}: {tp} is committed at {found}; tried {new}, before {old}")
            if found is not None:
                self.offsets[group, tp.topic, tp.partition] = found

    def adopt(self, acknowledged: Mapping[int, Sequence[bytes]]) -> None:
        """From now on the probes are known; those that were acknowledged, by partition, must be there."""
        self.check()
        self.probes = set()
        for partition, found in self.found(TOPIC).items():
            known = self.known[TOPIC, partition]
            known[:] = found
            if lost := set(acknowledged.get(partition, ())) - set(found):
                raise LostError(f"{TOPIC}-{partition}: {len(lost)} acknowledged records are not there")

    def check(self, log: Any = None) -> None:
        """Everything that is known is there, and nothing else."""
        other = log or self.log
        for name in dict.fromkeys(name for name, _ in self.known):
            found = self.found(name, log=other)
            for partition, values in found.items():
                known = self.known[name, partition]
                if values != known:
                    raise LostError(f"{name}-{partition}: {difference(known, values)}")
        groups: dict[str, dict[TopicPartition, OffsetAndMetadata]] = {}
        for (group, topic, partition), committed in self.offsets.items():
            groups.setdefault(group, {})[TopicPartition(topic, partition)] = committed
        for group, offsets in groups.items():
            with _consumer(other, group) as consumer:
                found_offsets = consumer.committed(*offsets)
            if found_offsets != offsets:
                raise LostError(f"{group}: committed {found_offsets} instead of {offsets}")

    def carry_on(self, *, torn: bool = False) -> None:
        """The survivor goes on at once: appends, reads, commits, makes and removes a topic; a new opener agrees.

        Nothing had to be recovered, unless a write was torn: then who opens the partition looks what was behind it.
        """
        began = time.monotonic()
        for partition in range(self.partitions) if self.partitions < _MANY else (0,):
            self.append(TOPIC, partition)
        self.commit(len(self.known[TOPIC, 0]))
        self.create("passing")
        self.append("passing")
        self.delete("passing")
        self.check()
        with pystreamlog.open(self.path) as fresh:
            if set(fresh.topics()) != {name for name, _ in self.known}:
                raise LostError(f"a new opener sees the topics {fresh.topics()}")
            self.check(fresh)
        if self.recoveries and not torn:
            raise LostError(f"something had to be recovered: {self.recoveries}")
        self._recoveries.messages.clear()
        if time.monotonic() - began > PATIENCE:
            raise LostError(f"the survivor was held up for {time.monotonic() - began:.1f} s")


@contextmanager
def _consumer(log: Any, group: str) -> Iterator[Any]:
    consumer = log.consumer(group_id=group, enable_auto_commit=False)
    try:
        yield consumer
    finally:
        consumer.close(commit=False)


def difference(known: Sequence[bytes], found: Sequence[bytes]) -> str:
    """Where two lists of values part."""
    for index, (left, right) in enumerate(zip(known, found, strict=False)):
        if left != right:
            return f"record {index} is {right[:40]!r} instead of {left[:40]!r}"
    return f"{len(found)} records instead of {len(known)}"


def exists(log: Any, name: str) -> bool:
    """Whether there is such a topic by now."""
    if name in log.topics():
        return True
    try:
        log.topic(name)
    except StreamLogError:
        return False
    return False
