"""The part of a producer that keeps transactions.

While one is open, what is sent goes into a `TransactionBuffer`, and nothing is written. The commit takes it from there
(`coordination.transactions`), with what the consumers of the transaction have handed out.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from pystreamlog.backend.consumer import Consumer
from pystreamlog.backend.group import GroupMetadata, OffsetAndMetadata
from pystreamlog.backend.producer import Producer, ProducerConfig
from pystreamlog.backend.transaction import Transaction
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.coordination.transactional_ids import TransactionalId
from pystreamlog.coordination.transactions import CommitResult, GroupOffsets
from pystreamlog.embedded.commits import Offsets, checked_offsets
from pystreamlog.embedded.producer_metrics import ProducerMetrics
from pystreamlog.embedded.seeking import SeekingConsumer
from pystreamlog.embedded.transaction_buffer import TransactionBuffer
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, StorageError, StreamLogError
from pystreamlog.record.record import TopicPartition

__all__ = ["TransactionContext", "TransactionalProducer"]

K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger("pystreamlog")


class TransactionContext(msgspec.Struct, frozen=True):
    """What a log lends to its producers for transactions.

    Attributes:
        transactions: The log's.
        open_group: Opens a consumer group.
        close_group: Gives it back.
        entries: Offsets as a group stores them.
        partitions: The log's.
    """

    transactions: Transactions
    open_group: Callable[[str], Group]
    close_group: Callable[[Group], None]
    entries: Callable[[Offsets], dict[PartitionKey, Committed]]
    partitions: Partitions


class _Open:
    """An open transaction: what was sent, and what is committed with it."""

    __slots__ = ("buffer", "by_hand", "consumers")

    def __init__(self, buffer: TransactionBuffer) -> None:
        self.buffer = buffer
        self.consumers: list[SeekingConsumer[Any, Any]] = []
        self.by_hand: dict[GroupMetadata, dict[PartitionKey, Committed]] = {}


class TransactionalProducer(Producer[K, V]):
    """The calls of a producer that are about transactions.

    Args:
        config: The producer's settings.
        lent: What the log lends it.
        metrics: What it counts.
    """

    __slots__ = ("_config", "_identity", "_lent", "_metrics", "_transaction", "_was_aborted")

    def __init__(self, config: ProducerConfig, lent: TransactionContext, metrics: ProducerMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._lent = lent
        self._identity: TransactionalId | None = None
        self._transaction: _Open | None = None
        self._was_aborted = False

    @abstractmethod
    def _begin_buffer(self) -> TransactionBuffer:
        """Have what is sent from now on go into a new buffer."""

    @abstractmethod
    def _end_buffer(self) -> None:
        """Have what is sent from now on go where it went before."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `ClosedError` when the producer was closed, or is the parent process's."""

    # --- Kafka's five calls

    def init_transactions(self) -> None:
        """See `Producer.init_transactions`."""
        transactional_id = self._config.transactional_id
        if transactional_id is None:
            raise ConfigError("init_transactions() needs a transactional_id: pass one to log.producer(...)")
        self._check_open()
        if self._transaction is not None:
            raise IllegalStateError("a transaction is open: commit or abort it first")
        started = self._metrics.now()
        try:
            self._lent.transactions.prepare(())
            if self._identity is None:
                self._identity = self._lent.transactions.identity(transactional_id)
            self._identity.take(self._config.max_block_ms / 1000)
        finally:
            self._metrics.spend("txn-init-time-ns-total", started)

    async def init_transactions_async(self) -> None:
        """See `Producer.init_transactions_async`."""
        await _in_thread(self.init_transactions)

    def begin_transaction(self) -> None:
        """See `Producer.begin_transaction`."""
        self._check_open()
        if self._transaction is not None:
            raise IllegalStateError("a transaction is open already: commit or abort it first")
        if self._config.transactional_id is not None and self._identity is None:
            self.init_transactions()
        started = self._metrics.now()
        try:
            if self._identity is not None:
                self._identity.check()
            self._was_aborted = False
            self._transaction = _Open(self._begin_buffer())
        finally:
            self._metrics.spend("txn-begin-time-ns-total", started)

    def _current(self) -> _Open:
        self._check_open()
        if self._transaction is None:
            raise IllegalStateError("no transaction is open: call begin_transaction() first, or use transaction()")
        return self._transaction

    def send_offsets_to_transaction(
        self, offsets: Mapping[TopicPartition, int | OffsetAndMetadata], group_metadata: GroupMetadata
    ) -> None:
        """See `Producer.send_offsets_to_transaction`."""
        current = self._current()
        if not isinstance(group_metadata, GroupMetadata):
            raise ConfigError(f"group_metadata is what consumer.group_metadata() returns, not {group_metadata!r}")
        started = self._metrics.now()
        try:
            entries = self._lent.entries(checked_offsets(offsets))  # refuses what cannot be committed
            current.by_hand.setdefault(group_metadata, {}).update(entries)
        finally:
            self._metrics.spend("txn-send-offsets-time-ns-total", started)

    def commit_transaction(self) -> None:
        """See `Producer.commit_transaction`."""
        current = self._current()
        started = self._metrics.now()
        try:
            self._commit(current)
        finally:
            self._metrics.spend("txn-commit-time-ns-total", started)

    def _commit(self, current: _Open) -> None:
        result = CommitResult()
        groups: list[Group] = []
        failure: StorageError | None = None
        try:
            current.buffer.end_with("the transaction is being committed: begin another")
            handed = [(consumer, *consumer.committing()) for consumer in current.consumers]
            offsets = [change for _, _, change in handed if change.offsets]
            for metadata, by_hand in current.by_hand.items():
                groups.append(self._lent.open_group(metadata.group_id))
                offsets.append(GroupOffsets(groups[-1], metadata.member_id or None, by_hand))
            batches = current.buffer.batches()
            try:
                if batches or offsets:
                    self._lent.transactions.commit(
                        current.buffer.encoded(batches),
                        current.buffer.spilled,
                        _merged(offsets),
                        self._identity,
                        timeout=self._config.max_block_ms / 1000,
                        durable=self._config.durability == "fsync",
                        result=result,
                    )
                else:
                    if self._identity is not None:
                        self._identity.check()
                    result.committed = True
            except StorageError as error:
                failure = error
                raise
            finally:
                if result.committed:
                    self._leave(current)
                    for consumer, told, _ in handed:
                        consumer.committed_by_transaction(told)
                    current.buffer.acknowledge(batches, result.first_offsets, failure)
        except BaseException as error:
            if not result.committed:
                self._abort(current, error)
                self._was_aborted = True
            raise
        finally:
            current.buffer.close()
            for group in groups:
                self._lent.close_group(group)

    async def commit_transaction_async(self) -> None:
        """See `Producer.commit_transaction_async`."""
        await _in_thread(self.commit_transaction)

    def abort_transaction(self) -> None:
        """See `Producer.abort_transaction`."""
        if self._transaction is None and self._was_aborted:
            self._was_aborted = False
            return
        self._abort(self._current(), None)

    def _leave(self, current: _Open) -> None:
        if self._transaction is current:
            self._transaction = None
            self._end_buffer()

    def _abort(self, current: _Open, cause: BaseException | None) -> None:
        """Give up everything, and have the consumers begin where they began."""
        started = self._metrics.now()
        try:
            self._give_up(current, cause)
        finally:
            self._metrics.spend("txn-abort-time-ns-total", started)

    def _give_up(self, current: _Open, cause: BaseException | None) -> None:
        self._leave(current)
        try:
            current.buffer.abort(cause)
            current.buffer.close()
        finally:
            for consumer in current.consumers:
                try:
                    consumer.rewind()
                except ClosedError:
                    continue
                except StreamLogError:
                    if cause is None:
                        raise
                    _log.warning("a consumer could not be rewound after an abort", exc_info=True)

    # --- `with`

    def transaction(self, consumer: Consumer[Any, Any] | None = None) -> Transaction:
        """See `Producer.transaction`."""
        return _Transaction(self, consumer)

    def attach(self, consumer: Consumer[Any, Any]) -> None:
        """Commit with the open transaction what a consumer hands out."""
        current = self._current()
        if not isinstance(consumer, SeekingConsumer):
            raise ConfigError(f"a transaction commits the offsets of a consumer of this log, not of {consumer!r}")
        consumer.check_transactional(self._lent.partitions)
        if consumer not in current.consumers:
            current.consumers.append(consumer)

    def begin_with(self, consumer: Consumer[Any, Any] | None) -> None:
        """Begin a transaction that commits the offsets of a consumer."""
        self.begin_transaction()
        if consumer is not None:
            try:
                self.attach(consumer)
            except BaseException:
                self.abort_transaction()
                raise

    def end_with(self, error: BaseException | None) -> None:
        """Commit; or abort because of an error, unless that was done."""
        if error is None:
            self.commit_transaction()
        elif self._transaction is not None:
            self._abort(self._transaction, error)


class _Transaction(Transaction):
    """See `Transaction`."""

    __slots__ = ("_consumer", "_producer")

    def __init__(self, producer: TransactionalProducer[Any, Any], consumer: Consumer[Any, Any] | None) -> None:
        self._producer = producer
        self._consumer = consumer

    def send_offsets(self, consumer: Consumer[Any, Any]) -> None:
        """See `Transaction.send_offsets`."""
        self._producer.attach(consumer)

    def __enter__(self) -> Self:
        self._producer.begin_with(self._consumer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer.end_with(error)

    async def __aenter__(self) -> Self:
        await _in_thread(lambda: self._producer.begin_with(self._consumer))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _in_thread(lambda: self._producer.end_with(error))


def _merged(offsets: list[GroupOffsets]) -> list[GroupOffsets]:
    """One change per group: its lock is taken once.

    Raises:
        ConfigError: Two members of one group.
    """
    by_group: dict[Group, GroupOffsets] = {}
    for change in offsets:
        known = by_group.setdefault(change.group, change)
        if known.member_id != change.member_id:
            raise ConfigError(
                f"a transaction commits the offsets of one member of group {change.group.group_id!r}, not of two"
            )
        if known is not change:
            by_group[change.group] = known._replace(offsets={**known.offsets, **change.offsets})
    return list(by_group.values())


async def _in_thread(call: Callable[[], None]) -> None:
    """Make a call that may wait for locks and the disk; also when it is cancelled it is over when this returns."""
    import asyncio  # noqa: PLC0415 - only for those who use it

    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
