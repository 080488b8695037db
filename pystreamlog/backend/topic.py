"""The contract of a topic: append one record at once, replay without a group, ask for offsets, alter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack

from pystreamlog.record.record import Record, RecordMetadata
from pystreamlog.record.serde import Serde

__all__ = ["Topic", "TopicOptions"]

K = TypeVar("K")
V = TypeVar("V")


class TopicOptions(TypedDict, total=False):
    """The settings of a topic as keyword arguments, for type checkers; `TopicConfig` says what each means."""

    segment_bytes: int
    segment_ms: int
    max_message_bytes: int
    message_timestamp_type: Literal["CreateTime", "LogAppendTime"]
    flush_messages: int
    flush_ms: int
    producer_id_expiration_ms: int


class Topic(ABC, Generic[K, V]):
    """A topic of an open log. Safe from any thread; needs no closing.

    Attributes:
        name: The topic's name.
        key_serde: Turns keys into bytes and back; None leaves them bytes.
        value_serde: The same for values.
    """

    __slots__ = ("key_serde", "name", "value_serde")

    def __init__(self, name: str, key_serde: Serde[K] | None, value_serde: Serde[V] | None) -> None:
        self.name = name
        self.key_serde = key_serde
        self.value_serde = value_serde

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"

    @property
    @abstractmethod
    def partitions(self) -> int:
        """How many partitions it has."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """All its settings."""

    @abstractmethod
    def append(
        self,
        value: V | None,
        key: K | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        durability: str | None = None,
    ) -> RecordMetadata:
        """Write one record; when it returns, every process sees it.

        Args:
            value: The payload; None is a tombstone.
            key: Decides the partition.
            headers: Pairs of name and bytes.
            partition: The partition, instead of the key's.
            timestamp_ms: Milliseconds since 1970 or an aware datetime; now when None.
            durability: `"os"` (the default) or `"fsync"`.

        Raises:
            SerdeError: Key or value could not be serialised.
            RecordTooLargeError: It exceeds the topic's `max_message_bytes`.
            UnknownPartitionError: There is no such partition.
            UnknownTopicError: The topic was deleted.
            LockTimeoutError: Another process held the partition's lock for a minute.
            StorageError: The disk is full or failed; nothing was written.
        """

    @abstractmethod
    def read(
        self,
        *,
        partition: int | None = None,
        start: int | datetime | None = None,
        stop: int | datetime | None = None,
    ) -> Iterator[Record[K, V]]:
        """Replay records without a group, up to the end offsets at the call, partition after partition.

        Args:
            partition: Only this one.
            start: Where to begin: an offset (with `partition`) or an aware datetime; the log's start when None.
            stop: Where to end, exclusive: likewise.

        Raises:
            OffsetOutOfRangeError: `start` lies before the log's start or beyond its end.
            ConfigError: An offset without a partition.
            SerdeError: A record does not deserialise.
        """

    @abstractmethod
    def beginning_offsets(self) -> dict[int, int]:
        """The first offset of each partition."""

    @abstractmethod
    def end_offsets(self) -> dict[int, int]:
        """The offset of the next record of each partition."""

    @abstractmethod
    def durable_offsets(self) -> dict[int, int]:
        """Per partition, the offset below which every record is known to be on disk, and survives a power loss.

        It rises with each sync: of an append at `"fsync"`, of a full segment in the background, by the topic's
        `flush_ms` and `flush_messages`. What is above it may be on disk too.
        """

    @abstractmethod
    def alter(self, **config: Unpack[TopicOptions]) -> None:
        """Change settings; they hold for what is appended from now on, by other processes within a second.

        Raises:
            ConfigError: A setting is unknown or out of range.
        """

    @abstractmethod
    def add_partitions(self, total: int) -> None:
        """Raise the number of partitions to `total`; from then on a key may go to another one.

        Raises:
            ConfigError: `total` is not above what there is.
        """
