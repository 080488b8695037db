"""The contract of a producer, and its settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar, overload

import attrs

from pystreamlog.backend.checks import callable_or_none, interceptors, serde_or_none, text_or_none
from pystreamlog.backend.closing import Closing
from pystreamlog.backend.consumer import Consumer
from pystreamlog.backend.delivery import Deliveries, Delivery
from pystreamlog.backend.group import GroupMetadata, OffsetAndMetadata
from pystreamlog.backend.metrics import By
from pystreamlog.backend.topic import Topic
from pystreamlog.backend.transaction import Transaction
from pystreamlog.coordination.names import check_text
from pystreamlog.errors import ConfigError
from pystreamlog.record.compression import Codec, parse_codec
from pystreamlog.record.format import NO_PRODUCER
from pystreamlog.record.identity import producer_number
from pystreamlog.record.partitioner import Partitioner, PartitionFunction, RoundRobinPartitioner, parse_partitioner
from pystreamlog.record.record import TopicPartition
from pystreamlog.record.serde import Serde
from pystreamlog.settings import integer, one_of

__all__ = ["Producer", "ProducerConfig", "ProducerOptions"]

K = TypeVar("K")
V = TypeVar("V")
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

_MIB = 1 << 20
_MAX_INT = 2**31 - 1


@attrs.frozen
class ProducerConfig:
    """A producer's settings, under Kafka's names.

    Attributes:
        key_serde: Turns keys into bytes; None takes bytes only. A `Topic`'s own serde wins over it. As Kafka's
            `key.serializer`.
        value_serde: Turns values into bytes, likewise. As Kafka's `value.serializer`.
        linger_ms: While records keep coming, how long they gather before they are written, in ms. 0 writes each at
            once.
        batch_size: How many bytes of records gather at most; a batch is written as soon as it has them.
        buffer_memory: How many bytes may wait to be written, over all partitions, before `send` blocks.
        max_request_size: The largest record accepted, key, value and headers together, in bytes.
        max_block_ms: How long `send` blocks when the buffer is full, and a transaction's call while another process
            holds a lock, in ms; then they raise `LockTimeoutError`.
        delivery_timeout_ms: How long a record may wait to be written, in ms; then its delivery fails.
        compression_type: How each batch is packed: `"none"`, `"gzip"`, `"lz4"` or `"zstd"`, the last three also with a
            level, as in `"zstd:3"`. lz4 and zstd need the extra of that name; zstd needs none from Python 3.14 on.
        durability: `"os"`: acknowledged when every process sees it, survives any process's crash. `"fsync"`:
            acknowledged when on disk, survives power loss. It stands where Kafka's `acks` does.
        partitioner: `"xxhash"`, `"murmur2"` (places keys as Kafka's Java clients do), `"round_robin"`, or a callable
            `(topic, key, value, partitions) -> partition`. Records without a key stick to one partition per batch. As
            Kafka's `partitioner.class`.
        transactional_id: Who sends in transactions: of all producers with this id, only the newest may. 1 to 32,767
            bytes of UTF-8; None for a producer that may send without a transaction, and whom nobody fences.
        transaction_buffer_bytes: How many bytes of a transaction are kept in memory; what is more goes into files that
            the commit makes part of the log.
        producer_id: A name for what this producer sends, the same each time that it is sent: a text of 1 to 32,767
            bytes. Each record then needs a `sequence`, and is written once per partition, however often it is sent,
            also by another process or after a crash. Records without a key go to the partition that their sequence
            says, 1,024 to each in turn; `round_robin` cannot be used: what is sent again must go where it went before.
        client_id: What metrics call the producer; None for `producer-1` and so on, or `producer-` and the
            `transactional_id`. If another client of the open log has the name, `-2` or a higher number is added.
        interceptors: Objects with any of `on_send(record)` and `on_acknowledgement(metadata, error)`. As Kafka's
            `interceptor.classes`.
        on_error: Called with each error that a batch failed with, in the writing thread.
    """

    key_serde: Serde[Any] | None = attrs.field(default=None, validator=serde_or_none)
    value_serde: Serde[Any] | None = attrs.field(default=None, validator=serde_or_none)
    linger_ms: int = attrs.field(default=5, validator=integer(0, _MAX_INT))
    batch_size: int = attrs.field(default=_MIB, validator=integer(1, 1 << 30))
    buffer_memory: int = attrs.field(default=64 * _MIB, validator=integer(1))
    max_request_size: int = attrs.field(default=_MIB, validator=integer(1, 1 << 30))
    max_block_ms: int = attrs.field(default=60_000, validator=integer(0, _MAX_INT))
    delivery_timeout_ms: int = attrs.field(default=120_000, validator=integer(1, _MAX_INT))
    compression_type: str = attrs.field(default="none")
    durability: str = attrs.field(default="os", validator=one_of("os", "fsync"))
    partitioner: str | PartitionFunction = attrs.field(default="xxhash")
    transactional_id: str | None = attrs.field(default=None, validator=text_or_none)
    transaction_buffer_bytes: int = attrs.field(default=256 * _MIB, validator=integer(1))
    producer_id: str | None = attrs.field(default=None)
    client_id: str | None = attrs.field(default=None, validator=text_or_none)
    interceptors: Sequence[object] = attrs.field(default=(), validator=interceptors)
    on_error: Callable[[BaseException], object] | None = attrs.field(default=None, validator=callable_or_none)
    codec: Codec | None = attrs.field(init=False)
    placing: Partitioner = attrs.field(init=False)
    producer_number: int = attrs.field(init=False)

    @codec.default
    def _default_codec(self) -> Codec | None:
        return parse_codec(self.compression_type)

    @placing.default
    def _default_placing(self) -> Partitioner:
        return parse_partitioner(self.partitioner)

    @producer_number.default
    def _default_producer_number(self) -> int:
        if self.producer_id is None:
            return NO_PRODUCER
        return producer_number(check_text(self.producer_id, "producer_id"))

    def __attrs_post_init__(self) -> None:
        if self.producer_id is not None and isinstance(self.placing, RoundRobinPartitioner):
            raise ConfigError(
                "partitioner='round_robin' sends a record to another partition each time, so with producer_id nobody "
                "could tell that it was sent before: use 'xxhash' or 'murmur2', or pass partition="
            )


class ProducerOptions(TypedDict, total=False):
    """The settings but the serdes as keyword arguments, for type checkers; `ProducerConfig` says what each means."""

    linger_ms: int
    batch_size: int
    buffer_memory: int
    max_request_size: int
    max_block_ms: int
    delivery_timeout_ms: int
    compression_type: str
    durability: Literal["os", "fsync"]
    partitioner: str | PartitionFunction
    transactional_id: str | None
    transaction_buffer_bytes: int
    producer_id: str | None
    client_id: str | None
    interceptors: Sequence[object]
    on_error: Callable[[BaseException], object] | None


class Producer(Closing, Generic[K, V]):
    """Sends records to topics. Safe from any thread; after a fork it works in the parent only.

    Nothing is dropped silently: what could not be written raises at its `Delivery`; what nobody looked at raises at
    `flush` or `close` as one `ExceptionGroup`. Unclosed producers flush at exit.
    """

    __slots__ = ()

    # A `Topic`'s own serdes win, so what may be sent to it is what it says, and not what the producer says.

    @overload
    def send(
        self,
        topic: Topic[KeyT, ValueT],
        value: ValueT | None,
        key: KeyT | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        sequence: int | None = None,
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> Delivery: ...
    @overload
    def send(
        self,
        topic: str,
        value: V | None,
        key: K | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        sequence: int | None = None,
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> Delivery: ...
    @abstractmethod
    def send(
        self,
        topic: str | Topic[Any, Any],
        value: Any,
        key: Any = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        sequence: int | None = None,
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> Delivery:
        """Buffer one record and return at once; one that comes after an idle spell is written at once.

        Order within a partition is the order of `send`.

        Args:
            topic: A name, or a `Topic`, whose serdes win over the producer's.
            value: The payload; None is a tombstone.
            key: Decides the partition.
            headers: Pairs of name and bytes.
            partition: The partition, instead of the key's.
            timestamp_ms: Milliseconds since 1970 or an aware datetime; now when None.
            sequence: The record's number in what `producer_id` sends, such as its line in a file: 0 to `2**63 - 1`.
                The numbers of a partition's records rise, with gaps as they come. One that is not above the highest
                that the id has appended to the partition was appended before: it is acknowledged, and not written
                again. Then its offset is the first one's if that lies in one of the id's last 64 batches there, else
                -1.
            expected_end: In a transaction: the offset that the record must get, or the commit raises
                `VersionConflictError` and nothing of the transaction is written. Without one, `Topic.append` has it.
            expected_version: In a transaction, on a topic with a `key_index`: how many records with its key must have
                been appended before it, those of the transaction included; likewise.

        Raises:
            ConfigError: A `sequence` without `producer_id`, or the other way round; an argument is of a wrong type; or
                the topic has a `key_index`, and a partition was named, or the partitioner is not `"xxhash"`.
            IllegalStateError: A record of the partition with a lower sequence was accepted, but could not be written:
                send again from that one on.
            SerdeError: Key or value could not be serialised.
            RecordTooLargeError: It exceeds `max_request_size` or the topic's `max_message_bytes`.
            InvalidRecordError: It has no key, and the topic is compacted.
            UnknownTopicError: There is no such topic.
            UnknownPartitionError: There is no such partition.
            LockTimeoutError: The buffer stayed full for `max_block_ms`; the error names who holds the lock.
            ClosedError: The producer was closed, or is the parent process's.
        """

    @overload
    def send_many(
        self,
        topic: Topic[KeyT, ValueT],
        values: Sequence[ValueT | None],
        keys: Sequence[KeyT | None] | None = None,
        *,
        headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | int | datetime | None = None,
        sequences: Sequence[int] | None = None,
    ) -> Deliveries: ...
    @overload
    def send_many(
        self,
        topic: str,
        values: Sequence[V | None],
        keys: Sequence[K | None] | None = None,
        *,
        headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | int | datetime | None = None,
        sequences: Sequence[int] | None = None,
    ) -> Deliveries: ...
    @abstractmethod
    def send_many(
        self,
        topic: str | Topic[Any, Any],
        values: Sequence[Any],
        keys: Sequence[Any] | None = None,
        *,
        headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | int | datetime | None = None,
        sequences: Sequence[int] | None = None,
    ) -> Deliveries:
        """Send columns of records: as `send` for each, without Python work per record. All or none are accepted.

        Args:
            topic: A name, or a `Topic`, whose serdes win over the producer's.
            values: One payload per record.
            keys: One key per record, or None.
            headers: Pairs of name and bytes per record, or None.
            partition: One partition for all, instead of the keys'.
            timestamps_ms: One per record or one for all; now when None.
            sequences: One per record; see `send`.

        Raises:
            ConfigError: The columns differ in length; and as for `send`.
            SerdeError, RecordTooLargeError, InvalidRecordError, IllegalStateError: As for `send`; `index` says which
                record.
            UnknownTopicError, UnknownPartitionError, LockTimeoutError, ClosedError: As for `send`.
        """

    @abstractmethod
    def flush(self, timeout: float | None = None) -> None:
        """Write everything sent so far.

        Args:
            timeout: Seconds; None waits as long as `delivery_timeout_ms` lets it.

        Raises:
            DeliveryTimeoutError: Not all was written in time; it stays buffered.
            ExceptionGroup: Records failed, and nobody looked at their deliveries.
        """

    @abstractmethod
    async def flush_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the twin of `flush`
        """As `flush`, without blocking the event loop."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the buffer is at most half full: an event loop's back-pressure, as `StreamWriter.drain`."""

    # --- transactions

    @abstractmethod
    def transaction(self, consumer: Consumer[Any, Any] | None = None) -> Transaction:
        """A transaction, for `with` or `async with`: what is sent within counts together, or not at all.

        Leaving the block commits; leaving it with an exception aborts. Inside, a `Delivery` has no result yet.

        Args:
            consumer: What it hands out in the block is committed with the transaction; an abort seeks it back to its
                committed offsets. It needs a group and `enable_auto_commit=False`.

        Raises:
            FencedError: A newer producer has the same `transactional_id`.
            IllegalStateError: Another transaction of this producer is open.
            ConfigError: The consumer commits by itself.
        """

    @abstractmethod
    def init_transactions(self) -> None:
        """Become the newest producer with this `transactional_id`, and fence the others; the first transaction does it.

        Raises:
            ConfigError: The producer has no `transactional_id`.
            FencedError: A newer producer has fenced this one.
            LockTimeoutError: An older one went on committing for `max_block_ms`.
        """

    @abstractmethod
    async def init_transactions_async(self) -> None:
        """As `init_transactions`, without blocking the event loop."""

    @abstractmethod
    def begin_transaction(self) -> None:
        """Have everything that is sent from now on belong to a transaction.

        Raises:
            FencedError: A newer producer has the same `transactional_id`.
            IllegalStateError: A transaction is open.
        """

    @abstractmethod
    def send_offsets_to_transaction(
        self, offsets: Mapping[TopicPartition, int | OffsetAndMetadata], group_metadata: GroupMetadata
    ) -> None:
        """Commit these offsets with the transaction.

        Args:
            offsets: Of the next record to read, by partition.
            group_metadata: What `Consumer.group_metadata` says of the consumer that owns the partitions.

        Raises:
            IllegalStateError: No transaction is open.
            OffsetOutOfRangeError: An offset lies outside of its partition.
        """

    @abstractmethod
    def commit_transaction(self) -> None:
        """Have everything count: all records are visible at once, and all offsets are committed. Aborts if it raises.

        Raises:
            FencedError: A newer producer has the same `transactional_id`.
            CommitFailedError: A consumer lost a partition whose offset was to be committed.
            VersionConflictError: A record expected something else.
            LockTimeoutError: Another process held a lock for `max_block_ms`.
            StorageError: The disk is full or failed. With `durability="fsync"`, if the fsync failed, the transaction
                counts, but may be lost with the machine.
            IllegalStateError: No transaction is open.
        """

    @abstractmethod
    async def commit_transaction_async(self) -> None:
        """As `commit_transaction`, without blocking the event loop."""

    @abstractmethod
    def abort_transaction(self) -> None:
        """Have nothing of the transaction ever have been; its deliveries fail with `TransactionAbortedError`.

        After a commit that raised, which has done that, it may be called once, as Kafka's clients do.

        Raises:
            IllegalStateError: No transaction is open.
        """

    @property
    @abstractmethod
    def client_id(self) -> str:
        """The setting `client_id`, or the name that the producer got without it; no other client of the log has it."""

    @overload
    def metrics(self, by: None = None) -> dict[str, float]: ...
    @overload
    def metrics(self, by: Literal["topic"]) -> dict[str, dict[str, float]]: ...
    @overload
    def metrics(self, by: Literal["partition"]) -> dict[TopicPartition, dict[str, float]]: ...
    @abstractmethod
    def metrics(self, by: By | None = None) -> Any:
        """What the producer measures, under Kafka's names, as `record-send-total`; from any thread, also after its end.

        It waits for nobody, and takes some 4 us for each partition that was written in the last minute.

        Args:
            by: None for the producer as a whole; `"topic"` or `"partition"` for some of it by the topics' names or by
                `TopicPartition`, of those written in the last hour.
        """
