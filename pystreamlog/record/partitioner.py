"""Chooses the partition of a record from its key.

The same key must go to the same partition in every process and for ever, so the two hashes are part of the contract:
``xxhash`` is XXH3-64 with seed 0, modulo the number of partitions; ``murmur2`` is what Kafka's Java clients do. Records
without a key go to `sticky`, the partition that the producer fills at the moment.

All of it may be called from any thread. A callable of the user is called in the thread that sends.
"""
# ruff: noqa: ARG002 -- all partitioners have the same signature, and few need all of it

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, repeat
from operator import index, mod
from struct import Struct
from types import MappingProxyType
from typing import Protocol

from xxhash import xxh3_64_intdigest

from pystreamlog.errors import ConfigError

__all__ = [
    "CallablePartitioner",
    "Murmur2Partitioner",
    "PartitionFunction",
    "Partitioner",
    "RoundRobinPartitioner",
    "XxhashPartitioner",
    "murmur2",
    "murmur2_partition",
    "parse_partitioner",
    "xxhash_partition",
]

PartitionFunction = Callable[[str, bytes | None, bytes | None, int], int]
"""What a user may give: called with topic, key, value and the number of partitions, returns a partition.

It is called once per record, in the order of the records, also for records without a key. An exception leaves ``send``.
"""

_MURMUR2_SEED = 0x9747B28C
_MURMUR2_FACTOR = 0x5BD1E995
_UINT32 = 0xFFFFFFFF
_INT31 = 0x7FFFFFFF
_WORDS = Struct("<I")


def xxhash_partition(key: bytes, count: int) -> int:
    """The partition of `key` among `count`: XXH3-64 with seed 0, modulo `count`."""
    return xxh3_64_intdigest(key) % count


def murmur2(key: bytes) -> int:
    """MurmurHash2 as Kafka's ``org.apache.kafka.common.utils.Utils.murmur2`` computes it: a signed 32-bit integer.

    Costs about 0.5 µs, and 0.2 µs per 4 bytes of key: pure Python, for those who share topics with Java clients.
    """
    size = len(key)
    whole = size & ~3
    value = _MURMUR2_SEED ^ size
    for (word,) in _WORDS.iter_unpack(key[:whole]):
        mixed = word * _MURMUR2_FACTOR & _UINT32
        value = (value * _MURMUR2_FACTOR ^ (mixed ^ mixed >> 24) * _MURMUR2_FACTOR) & _UINT32
    if size != whole:
        value = (value ^ int.from_bytes(key[whole:], "little")) * _MURMUR2_FACTOR & _UINT32
    value = (value ^ value >> 13) * _MURMUR2_FACTOR & _UINT32
    value ^= value >> 15
    return value if value <= _INT31 else value - (_UINT32 + 1)


def murmur2_partition(key: bytes, count: int) -> int:
    """The partition of `key` among `count` in Kafka's Java clients: the hash without its sign bit, modulo `count`."""
    return (murmur2(key) & _INT31) % count


class Partitioner(Protocol):
    """Chooses partitions, for one record or for columns of them."""

    def partition(self, topic: str, key: bytes | None, value: bytes | None, count: int, sticky: int) -> int:
        """The partition of one record.

        Args:
            topic: The topic's name.
            key: The record's key, or None.
            value: The record's value, or None.
            count: Partitions of the topic, at least 1.
            sticky: The partition for records without a key.

        Returns:
            A partition from 0 to ``count - 1``.

        Raises:
            ConfigError: A user's callable returned something else.
        """

    def partitions(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], count: int, sticky: int
    ) -> list[int]:
        """The partitions of many records, in their order; arguments and errors as for `partition`."""


class XxhashPartitioner:
    """Spreads keys by XXH3-64; the default."""

    __slots__ = ()

    def partition(self, topic: str, key: bytes | None, value: bytes | None, count: int, sticky: int) -> int:
        """The partition of one record."""
        return sticky if key is None else xxh3_64_intdigest(key) % count

    def partitions(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], count: int, sticky: int
    ) -> list[int]:
        """The partitions of many records."""
        digest = xxh3_64_intdigest
        # 47 ns per key; `map` over `mod` and `repeat` takes 54 ns, and cannot leave out records without a key.
        return [sticky if key is None else digest(key) % count for key in keys]


class Murmur2Partitioner:
    """Spreads keys as Kafka's Java clients do, so that both may write to topics that are joined by key."""

    __slots__ = ()

    def partition(self, topic: str, key: bytes | None, value: bytes | None, count: int, sticky: int) -> int:
        """The partition of one record."""
        return sticky if key is None else murmur2_partition(key, count)

    def partitions(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], count: int, sticky: int
    ) -> list[int]:
        """The partitions of many records; each distinct key is hashed once."""
        chosen = {key: sticky if key is None else murmur2_partition(key, count) for key in set(keys)}
        return list(map(chosen.__getitem__, keys))


class RoundRobinPartitioner:
    """Deals records to partitions in turn, per topic and whatever their keys; each instance starts at partition 0."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: dict[str, itertools.count[int]] = {}

    def partition(self, topic: str, key: bytes | None, value: bytes | None, count: int, sticky: int) -> int:
        """The partition of one record."""
        return next(self._turns_of(topic)) % count

    def partitions(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], count: int, sticky: int
    ) -> list[int]:
        """The partitions of many records."""
        return list(map(mod, islice(self._turns_of(topic), len(keys)), repeat(count)))

    def _turns_of(self, topic: str) -> itertools.count[int]:
        # One counter for all topics would send every record of a topic to the same partition when two topics of two
        # partitions are written by turns.
        turns = self._turns.get(topic)
        return self._turns.setdefault(topic, itertools.count()) if turns is None else turns


class CallablePartitioner:
    """Asks a user's function, and checks what it answers."""

    __slots__ = ("_choose",)

    def __init__(self, choose: PartitionFunction) -> None:
        self._choose = choose

    def partition(self, topic: str, key: bytes | None, value: bytes | None, count: int, sticky: int) -> int:
        """The partition of one record."""
        answer = self._choose(topic, key, value, count)
        try:
            chosen = index(answer)
        except TypeError:
            chosen = -1
        if not 0 <= chosen < count:
            raise ConfigError(
                f"the partitioner returned {answer!r} for a record of topic {topic!r}: "
                f"a partition is an integer from 0 to {count - 1}",
                topic=topic,
            )
        return chosen

    def partitions(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], count: int, sticky: int
    ) -> list[int]:
        """The partitions of many records."""
        choose = self.partition
        return [choose(topic, key, value, count, sticky) for key, value in zip(keys, values, strict=True)]


_PARTITIONERS: Mapping[str, Callable[[], Partitioner]] = MappingProxyType(
    {"xxhash": XxhashPartitioner, "murmur2": Murmur2Partitioner, "round_robin": RoundRobinPartitioner}
)


def parse_partitioner(spec: str | PartitionFunction) -> Partitioner:
    """The partitioner that a producer's ``partitioner`` names; a new one per call, as round robin counts.

    Args:
        spec: ``xxhash``, ``murmur2``, ``round_robin``, or a function of topic, key, value and number of partitions.

    Raises:
        ConfigError: The name is unknown, or `spec` is neither a name nor callable.
    """
    if isinstance(spec, str) and spec in _PARTITIONERS:
        return _PARTITIONERS[spec]()
    if callable(spec):
        return CallablePartitioner(spec)
    raise ConfigError(f"unknown partitioner {spec!r}: valid are {', '.join(_PARTITIONERS)}, or a callable")
