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

    cleanup_policy: Literal["delete", "compact", "compact,delete", "delete,compact", ""]
    delete_retention_ms: int
    min_compaction_lag_ms: int
    max_compaction_lag_ms: int
    min_cleanable_dirty_ratio: float
    repack: bool
    retention_ms: int
    retention_bytes: int
    segment_bytes: int
    segment_ms: int
    max_message_bytes: int
    message_timestamp_type: Literal["CreateTime", "LogAppendTime"]
    flush_messages: int
    flush_ms: int
    producer_id_expiration_ms: int
    key_index: bool


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
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> RecordMetadata:
        """Write one record; when it returns, every process sees it.

        With `expected_end` or `expected_version` it is written only if nobody else wrote first: the comparison and the
        write are one step for every process. A condition on the end costs nothing; a topic with `key_index` costs an
        append about twice its time, with a condition or without, however many keys and records there are.

        Args:
            value: The payload; None is a tombstone.
            key: Decides the partition.
            headers: Pairs of name and bytes.
            partition: The partition, instead of the key's; not in a topic with `key_index`.
            timestamp_ms: Milliseconds since 1970 or an aware datetime; now when None.
            durability: `"os"` (the default) or `"fsync"`.
            expected_end: The offset that the record must get: the end of its partition, which the key or `partition`
                says unless there is only one.
            expected_version: How many records with this key must have been appended before; 0 for a new key. Needs a
                key, and a topic with `key_index`.

        Raises:
            VersionConflictError: The end or the version is another (`expected`, `actual`); nothing was written.
            ConfigError: A condition that cannot be checked here; or a partition in a topic with `key_index`.
            SerdeError: Key or value could not be serialised.
            RecordTooLargeError: It exceeds the topic's `max_message_bytes`.
            InvalidRecordError: It has no key, and the topic is compacted.
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
    def read_key(self, key: K) -> Iterator[Record[K, V]]:
        """All records with one key, oldest first, up to the end at the call: an aggregate's events, for example.

        Costs a look-up of some 40 us per record, in batches of up to 100 kB, however large the log is. (Where the index
        is missing or damaged, and the log is read-only, the key's whole partition is read.)

        Args:
            key: The key; there may be no record with it.

        Raises:
            ConfigError: The topic was not made with `key_index=True`.
            SerdeError: The key could not be serialised, or a record does not deserialise.
            UnknownTopicError: The topic was deleted.
            CorruptLogError: The partition does not verify.
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
            ConfigError: A setting is unknown, out of range, or cannot be altered (`key_index`).
        """

    @abstractmethod
    def add_partitions(self, total: int) -> None:
        """Raise the number of partitions to `total`; from then on a key may go to another one.

        Raises:
            ConfigError: `total` is not above what there is, or the topic has a `key_index`.
        """
