"""The embedded log: a directory that any number of processes open at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Unpack

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.checks import checked_serde
from pystreamlog.backend.consumer import Consumer, ConsumerConfig, ConsumerOptions
from pystreamlog.backend.log import StreamLog
from pystreamlog.backend.metrics import Metric, checked_by
from pystreamlog.backend.producer import Producer, ProducerConfig, ProducerOptions
from pystreamlog.backend.topic import Topic, TopicOptions
from pystreamlog.clock import SYSTEM, Clock
from pystreamlog.coordination.directory import open_directory
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.groups import Groups
from pystreamlog.coordination.journal import Participant
from pystreamlog.coordination.locks import register_inherited
from pystreamlog.coordination.maintenance import Maintenance
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.embedded.admin_context import AdminContext
from pystreamlog.embedded.attempts import items
from pystreamlog.embedded.commits import Offsets, check_bounds
from pystreamlog.embedded.consumer import EmbeddedConsumer
from pystreamlog.embedded.consumer_metrics import ConsumerMetrics
from pystreamlog.embedded.log_metrics import Clients, DirectoryMetrics, by_topic
from pystreamlog.embedded.producer import EmbeddedProducer
from pystreamlog.embedded.producer_metrics import ProducerMetrics
from pystreamlog.embedded.seeking import ConsumerContext
from pystreamlog.embedded.topic import EmbeddedTopic
from pystreamlog.embedded.transactional import TransactionContext
from pystreamlog.errors import ClosedError, UnknownPartitionError, UnknownTopicError
from pystreamlog.record.record import TopicPartition
from pystreamlog.record.serde import Serde
from pystreamlog.settings import build
from pystreamlog.storage.boot import boot_id

if TYPE_CHECKING:  # imported where they are needed: few processes do, and opening a log shall be quick
    from pystreamlog.backend.maintenance import MaintenanceReport
    from pystreamlog.backend.snapshot import SnapshotReport
    from pystreamlog.backend.verification import RepairReport, VerifyReport
    from pystreamlog.embedded.care import Care

__all__ = ["EmbeddedLog"]


class EmbeddedLog(StreamLog):
    """An open directory.

    Args:
        path: The directory.
        create: Make it if it is missing.
        read_only: Write nothing.
        auto_create_topics: Make topics when they are first named.
        mode: Permission bits of what is made.
        maintenance: Delete, compact and repack in the background as the topics' settings say.
        map_reads: Read through maps, else by `pread`.
        recover_always: Recover each partition at its first opening.
        allow_network_filesystem: Open it though its locks may not hold.
        clock: Tells the time.
        boot: Tells which boot of the machine this is.
    """

    __slots__ = (
        "__weakref__",
        "_auto_create",
        "_clients",
        "_clock",
        "_closed",
        "_context",
        "_files",
        "_groups",
        "_lock",
        "_log_id",
        "_maintenance",
        "_partitions",
        "_path",
        "_topics",
        "_transactions",
        "on_close",
    )

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        read_only: bool = False,
        auto_create_topics: bool = False,
        maintenance: bool = True,
        mode: int = 0o700,
        map_reads: bool = True,
        recover_always: bool = False,
        allow_network_filesystem: bool = False,
        clock: Clock = SYSTEM,
        boot: Callable[[], bytes] = boot_id,
    ) -> None:
        files, log_id, lineage = open_directory(
            path,
            create=create,
            read_only=read_only,
            mode=mode,
            allow_network_filesystem=allow_network_filesystem,
            clock=clock,
        )
        self._path = files.root
        self._files = files
        self._log_id = log_id
        self._clock = clock
        self._auto_create = auto_create_topics and not read_only
        self._topics = Topics(files, clock, read_only=read_only)
        self._context = context = PartitionContext(
            clock=clock,
            boot_id=boot,
            read_only=read_only,
            map_reads=map_reads,
            recover_always=recover_always,
            changing=self._topics.changing,
            recovered=set(),
            transactions=lambda: self._transactions,
            lineage=lineage,
        )
        self._partitions = Partitions(files, log_id, context)
        self._transactions = Transactions(
            files, log_id, context, self._participant, self._finish_group, self._partitions.sync_later
        )
        self._groups = Groups(
            files,
            log_id,
            clock,
            boot,
            self._topics.changing,
            self._transactions.find_entry,
            self._transactions.recover,
            durable=self._transactions.durable,
            read_only=read_only,
        )
        self._maintenance = Maintenance(files, self._topics, self._partitions, context, in_background=maintenance)
        self._topics.seen = self._maintenance.seen
        self._lock = threading.Lock()
        self._clients = Clients()
        self._closed = False
        self.on_close: Callable[[], None] = _nothing
        register_inherited(self)

    def __repr__(self) -> str:
        return f"StreamLog({self._path!r})"

    @property
    def path(self) -> str:
        """See `StreamLog.path`."""
        return self._path

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the log was closed: open it again")

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        exist_ok: bool = False,
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[TopicOptions],
    ) -> Topic[Any, Any]:
        """See `StreamLog.create_topic`."""
        self._check_open()
        topic = self._topic(name, key_serde, value_serde)
        self._topics.create(name, partitions, dict(config), exist_ok=exist_ok)
        return topic

    def topic(
        self, name: str, *, key_serde: Serde[Any] | None = None, value_serde: Serde[Any] | None = None
    ) -> Topic[Any, Any]:
        """See `StreamLog.topic`."""
        self._check_open()
        self._find(name)
        return self._topic(name, key_serde, value_serde)

    def _find(self, name: str) -> TopicState:
        """The topic of that name, made if the log makes topics by itself."""
        self._check_open()
        try:
            return self._topics.find(name)
        except UnknownTopicError:
            if not self._auto_create:
                raise
            return self._topics.create(name, 1, {}, exist_ok=True)

    def _existing(self, name: str) -> TopicState:
        """The topic of that name, never made."""
        self._check_open()
        return self._topics.find(name)

    def _participant(self, part: Participant) -> PartitionWriter | None:
        """The writer of a transaction's participant; None when its topic is gone."""
        try:
            state = self._topics.find(part.topic)
            return self._partitions.writer(state, part.partition) if state.id == part.topic_id else None
        except (UnknownTopicError, UnknownPartitionError):
            return None

    def _finish_group(self, group_id: str, following: int) -> None:
        self._groups.finish_transaction(group_id, following)

    def _entries(self, offsets: Offsets) -> dict[PartitionKey, Committed]:
        """Offsets of any partitions as a group stores them.

        Raises:
            UnknownTopicError, UnknownPartitionError: There is no such partition.
            OffsetOutOfRangeError: An offset lies outside of its partition.
        """
        entries, now_ms = {}, self._clock.now_ms()
        for tp, (offset, metadata) in offsets.items():
            state = self._find(tp.topic)
            reader = self._partitions.lookout(state, tp.partition)
            check_bounds(tp, offset, reader.offsets()[1])
            entries[state.id, tp.partition] = Committed(offset, reader.epoch(), now_ms, metadata)
        return entries

    def _topic(self, name: str, key_serde: Serde[Any] | None, value_serde: Serde[Any] | None) -> Topic[Any, Any]:
        checked_serde(key_serde, "key_serde")
        checked_serde(value_serde, "value_serde")
        return EmbeddedTopic(name, self._existing, self._topics, self._partitions, key_serde, value_serde)

    def topics(self) -> list[str]:
        """See `StreamLog.topics`."""
        self._check_open()
        return self._topics.names()

    def delete_topic(self, name: str) -> None:
        """See `StreamLog.delete_topic`."""
        self._check_open()

        def settle(state: TopicState, partition: int, timeout: float) -> None:
            self._partitions.writer(state, partition).settle(timeout)

        def flag(state: TopicState, partition: int, timeout: float) -> None:
            self._partitions.writer(state, partition).mark_deleted(timeout)

        self._partitions.forget(self._topics.delete(name, settle, flag))

    def producer(
        self,
        *,
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[ProducerOptions],
    ) -> Producer[Any, Any]:
        """See `StreamLog.producer`."""
        self._check_open()
        settings = build(ProducerConfig, {"key_serde": key_serde, "value_serde": value_serde, **config}, "producer")
        lent = TransactionContext(
            self._transactions, self._groups.open, self._groups.close_group, self._entries, self._partitions
        )
        metrics, clients = ProducerMetrics(monotonic), self._clients
        producer: EmbeddedProducer[Any, Any] = EmbeddedProducer(
            self._find,
            self._partitions,
            settings,
            lent,
            metrics,
            clients.names.of_producer(settings),
            clients.discard,
        )
        clients.add(producer, metrics.of_client)
        return producer

    def consumer(
        self,
        *topics: str | Topic[Any, Any],
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[ConsumerOptions],
    ) -> Consumer[Any, Any]:
        """See `StreamLog.consumer`."""
        self._check_open()
        settings = build(ConsumerConfig, {"key_serde": key_serde, "value_serde": value_serde, **config}, "consumer")
        group = None if settings.group_id is None else self._groups.open(settings.group_id)

        metrics, clients = ConsumerMetrics(monotonic), self._clients

        def forget(consumer: EmbeddedConsumer[Any, Any]) -> None:
            clients.discard(consumer)
            if group is not None:
                self._groups.close_group(group)

        context = ConsumerContext(
            self._find,
            self._topics,
            self._partitions,
            self._clock,
            self._dead_letter_producer,
            metrics,
            clients.names.of_consumer(settings),
        )
        consumer: EmbeddedConsumer[Any, Any] = EmbeddedConsumer(context, settings, group, forget)
        clients.add(consumer, metrics.of_client)
        if topics:
            try:
                consumer.subscribe(topics)
            except BaseException:
                consumer.close()
                raise
        return consumer

    def _dead_letter_producer(self) -> Producer[Any, Any]:
        """A producer that leaves it to topics what is too large, as they took it once."""
        return self.producer(max_request_size=1 << 30)

    @property
    def admin(self) -> Admin:
        """See `StreamLog.admin`."""
        self._check_open()
        from pystreamlog.embedded.admin import EmbeddedAdmin  # noqa: PLC0415 - see above

        return EmbeddedAdmin(self._admin_context())

    def _admin_context(self) -> AdminContext:
        return AdminContext(
            self._files,
            self._log_id,
            self._clock,
            self._context.boot_id,
            self._context.read_only,
            self._topics,
            self._partitions,
            self._groups,
            self._transactions,
            self.delete_topic,
            self._check_open,
        )

    def verify(self, *, progress: Callable[[int, int], object] | None = None) -> VerifyReport:
        """See `StreamLog.verify`."""
        self._check_open()
        return self._care().verify(progress)

    def repair(
        self, *, cut_tail: bool = False, force: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> RepairReport:
        """See `StreamLog.repair`."""
        self._check_open()
        return self._care().repair(progress, cut_tail=cut_tail, force=force)

    def _care(self) -> Care:
        from pystreamlog.embedded.care import Care  # noqa: PLC0415 - see above

        return Care(self._files, self._log_id, self._context)

    def snapshot(
        self,
        target: str | os.PathLike[str],
        *,
        topics: str | Iterable[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> SnapshotReport:
        """See `StreamLog.snapshot`."""
        self._check_open()
        from pystreamlog.coordination.snapshot_cut import SnapshotSource  # noqa: PLC0415 - see above
        from pystreamlog.embedded.snapshots import snapshot  # noqa: PLC0415 - see above

        source = SnapshotSource(
            self._files, self._log_id, self._context, self._topics, self._partitions, self._transactions
        )
        return snapshot(source, target, topics, progress)

    def maintain(self, *, topics: Iterable[str] | None = None, force: bool = False) -> MaintenanceReport:
        """See `StreamLog.maintain`."""
        from pystreamlog.backend.maintenance import (  # noqa: PLC0415 - see above
            CompactedSegments,
            DeletedSegments,
            MaintenanceReport,
        )

        self._check_open()
        done = self._maintenance.maintain(None if topics is None else items(topics), force=force)
        if done.errors:
            raise ExceptionGroup("maintenance failed in part", done.errors)
        deleted = {
            TopicPartition(*place): DeletedSegments(each.segments, each.bytes, each.log_start_offset)
            for place, each in done.deleted.items()
        }
        compacted = {
            TopicPartition(*place): CompactedSegments(
                each.segments_before,
                each.segments_after,
                each.records_before,
                each.records_after,
                each.bytes_before,
                each.bytes_after,
            )
            for place, each in done.compacted.items()
        }
        return MaintenanceReport(self._path, deleted, compacted, done.waits_ms)

    def pause_maintenance(self, pause: Callable[[], None], *, patience: float | None = None) -> None:
        """Have a function called now and then while `maintain` reads; what it raises ends that.

        Args:
            pause: The function.
            patience: For how many seconds to wait for another process that maintains the log, if not as usual.
        """
        self._maintenance.pause = pause
        if patience is not None:
            self._maintenance.patience = patience

    def metrics(self, by: str | None = None) -> Any:
        """See `StreamLog.metrics`."""
        if checked_by(by, ("topic", "partition", "group")) is None:
            return self._clients.totals()
        seen = DirectoryMetrics(self._admin_context())
        if by == "group":
            return seen.by_group()
        partitions = seen.by_partition()
        return by_topic(partitions) if by == "topic" else partitions

    def collect_metrics(self, *, logs: bool = True, groups: bool = True, partitions: bool = True) -> list[Metric]:
        """See `StreamLog.collect_metrics`."""
        if self._closed:
            return []
        found = self._clients.collect(partitions=partitions)
        seen = DirectoryMetrics(self._admin_context())
        try:
            return found + seen.collect(logs=logs, groups=groups, partitions=partitions)
        except ClosedError:  # meanwhile
            return []

    def close(self) -> None:
        """Close every producer and consumer of this log, and its files; again is harmless.

        Raises:
            ExceptionGroup: What closing the producers raised.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._maintenance.close()
        errors: list[Exception] = []
        for client in list(self._clients):
            try:
                if isinstance(client, EmbeddedConsumer):
                    client.close_with_log()
                else:
                    client.close()
            except Exception as error:  # noqa: BLE001 - a user's callback may raise anything
                errors.append(error)
        self._groups.close()
        self._partitions.close()
        self._transactions.close()
        self._topics.close()
        self._files.close()
        self.on_close()
        if errors:
            raise ExceptionGroup("closing the log failed in part", errors)

    def close_inherited(self) -> None:
        """In a forked child the log goes on, without the parent's producers and consumers."""
        self._clients.disown()
        self._lock = threading.Lock()
        self._clients = Clients()
        register_inherited(self)


def _nothing() -> None:
    """What closing a log means to a directory that stays."""
