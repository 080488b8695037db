"""What users send and get: a record, where it lies, and what an acknowledgement says.

`Record` is a msgspec struct outside the garbage collector: built by the hundred thousand, it costs a third of a named
tuple and a fifth of an attrs class (``benches/reading.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

import msgspec

from pystreamlog.clock import to_datetime

__all__ = ["BatchMetadata", "Headers", "Record", "RecordMetadata", "TopicPartition"]

K = TypeVar("K")
V = TypeVar("V")

Headers = tuple[tuple[str, bytes], ...]
"""Header names and values in the order they were given; names may repeat."""


class TopicPartition(NamedTuple):
    """A topic's name and the number of one of its partitions; hashable.

    Attributes:
        topic: The topic's name.
        partition: The partition's number, from 0.
    """

    topic: str
    partition: int


class Record(msgspec.Struct, Generic[K, V], frozen=True, gc=False):
    """One event as a consumer gets it; immutable.

    Attributes:
        topic: The topic's name.
        partition: The partition it lies in.
        offset: Its number in that partition, from 0.
        timestamp_ms: Milliseconds since 1970, set by the producer (``CreateTime``) or the log (``LogAppendTime``).
        key: What decides the partition and what compaction keeps apart; None without one.
        value: The payload; None with a key is a tombstone.
        headers: Pairs of name and bytes, in order.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: K | None
    value: V | None
    headers: Headers = ()

    @property
    def timestamp(self) -> datetime:
        """`timestamp_ms` as an aware UTC datetime."""
        return to_datetime(self.timestamp_ms)


class RecordMetadata(msgspec.Struct, frozen=True, gc=False):
    """Where an acknowledged record lies.

    Attributes:
        topic: The topic's name.
        partition: The partition it was appended to.
        offset: Its offset there; -1 if it was appended before, by the same `producer_id`, too long ago to tell.
        timestamp_ms: The timestamp it was stored with.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class BatchMetadata(msgspec.Struct, frozen=True):
    """Where the records of one `send_many` lie; the columns are as long as its values and in their order.

    Attributes:
        topic: The topic's name.
        partitions: Partition of each record.
        offsets: Offset of each record in its partition.
        timestamps_ms: Stored timestamp of each record.
    """

    topic: str
    partitions: Sequence[int]
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
