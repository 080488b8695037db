"""The contract of an open log: topics, and the producers and consumers that work on them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.closing import Closing
from pystreamlog.backend.consumer import Consumer, ConsumerOptions
from pystreamlog.backend.metrics import GroupPartition, Metric
from pystreamlog.backend.producer import Producer, ProducerOptions
from pystreamlog.backend.topic import Topic, TopicOptions
from pystreamlog.record.record import TopicPartition
from pystreamlog.record.serde import Serde

if TYPE_CHECKING:  # or each program would wait for classes that only a few use
    from pystreamlog.backend.maintenance import MaintenanceReport
    from pystreamlog.backend.snapshot import SnapshotReport
    from pystreamlog.backend.verification import RepairReport, VerifyReport

__all__ = ["StreamLog"]

K = TypeVar("K")
V = TypeVar("V")


class StreamLog(Closing):
    """An open log. Safe from any thread, and after a fork in the child too.

    Attributes:
        path: Where it lies.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def path(self) -> str:
        """Where it lies."""

    @overload
    def create_topic(
        self,
        name: str,
        *,
        key_serde: Serde[K],
        value_serde: Serde[V],
        partitions: int = 1,
        exist_ok: bool = False,
        **config: Unpack[TopicOptions],
    ) -> Topic[K, V]: ...
    @overload
    def create_topic(
        self,
        name: str,
        *,
        value_serde: Serde[V],
        partitions: int = 1,
        exist_ok: bool = False,
        **config: Unpack[TopicOptions],
    ) -> Topic[bytes, V]: ...
    @overload
    def create_topic(
        self,
        name: str,
        *,
        key_serde: Serde[K],
        partitions: int = 1,
        exist_ok: bool = False,
        **config: Unpack[TopicOptions],
    ) -> Topic[K, bytes]: ...
    @overload
    def create_topic(
        self, name: str, *, partitions: int = 1, exist_ok: bool = False, **config: Unpack[TopicOptions]
    ) -> Topic[bytes, bytes]: ...
    @abstractmethod
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
        """Make a topic.

        Args:
            name: 1 to 249 of a-z, A-Z, 0-9, `.`, `_` and `-`.
            partitions: How many; they can be added to, never taken away.
            exist_ok: Return the topic as it is when it exists with that number of partitions.
            key_serde: Of the returned `Topic`; not stored.
            value_serde: Likewise.
            **config: The topic's settings.

        Raises:
            TopicExistsError: It exists, and `exist_ok` is False or its partition count differs.
            InvalidTopicError: The name breaks the rule, or differs from another topic's only in case.
            ConfigError: A setting is unknown or out of range.
            ReadOnlyError: The log is read-only.
        """

    @overload
    def topic(self, name: str) -> Topic[bytes, bytes]: ...
    @overload
    def topic(self, name: str, *, key_serde: Serde[K], value_serde: Serde[V]) -> Topic[K, V]: ...
    @overload
    def topic(self, name: str, *, value_serde: Serde[V]) -> Topic[bytes, V]: ...
    @overload
    def topic(self, name: str, *, key_serde: Serde[K]) -> Topic[K, bytes]: ...
    @abstractmethod
    def topic(
        self, name: str, *, key_serde: Serde[Any] | None = None, value_serde: Serde[Any] | None = None
    ) -> Topic[Any, Any]:
        """The topic of that name.

        Raises:
            UnknownTopicError: There is none, and the log was not opened with `auto_create_topics`.
        """

    @abstractmethod
    def topics(self) -> list[str]:
        """The names of all topics, sorted."""

    @abstractmethod
    def delete_topic(self, name: str) -> None:
        """Delete a topic with all its records, while others read and write it: they get `UnknownTopicError`.

        Raises:
            UnknownTopicError: There is none.
            LockTimeoutError: A process held the lock of a partition for ten seconds, or that of topics for a minute.
        """

    @overload
    def producer(
        self, *, key_serde: Serde[K], value_serde: Serde[V], **config: Unpack[ProducerOptions]
    ) -> Producer[K, V]: ...
    @overload
    def producer(self, *, value_serde: Serde[V], **config: Unpack[ProducerOptions]) -> Producer[bytes, V]: ...
    @overload
    def producer(self, *, key_serde: Serde[K], **config: Unpack[ProducerOptions]) -> Producer[K, bytes]: ...
    @overload
    def producer(self, **config: Unpack[ProducerOptions]) -> Producer[bytes, bytes]: ...
    @abstractmethod
    def producer(
        self,
        *,
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[ProducerOptions],
    ) -> Producer[Any, Any]:
        """A producer; its settings are those of `ProducerConfig`.

        Raises:
            ConfigError: A setting is unknown or out of range, or a codec's library is missing.
        """

    @overload
    def consumer(
        self, *topics: str, key_serde: Serde[K], value_serde: Serde[V], **config: Unpack[ConsumerOptions]
    ) -> Consumer[K, V]: ...
    @overload
    def consumer(
        self, *topics: str, value_serde: Serde[V], **config: Unpack[ConsumerOptions]
    ) -> Consumer[bytes, V]: ...
    @overload
    def consumer(self, *topics: str, key_serde: Serde[K], **config: Unpack[ConsumerOptions]) -> Consumer[K, bytes]: ...
    @overload
    def consumer(self, *topics: str, **config: Unpack[ConsumerOptions]) -> Consumer[bytes, bytes]: ...
    @overload
    def consumer(self, *topics: Topic[K, V], **config: Unpack[ConsumerOptions]) -> Consumer[K, V]: ...
    @overload
    def consumer(
        self,
        *topics: str | Topic[Any, Any],
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[ConsumerOptions],
    ) -> Consumer[Any, Any]: ...
    @abstractmethod
    def consumer(
        self,
        *topics: str | Topic[Any, Any],
        key_serde: Serde[Any] | None = None,
        value_serde: Serde[Any] | None = None,
        **config: Unpack[ConsumerOptions],
    ) -> Consumer[Any, Any]:
        """A consumer, subscribed to `topics` if there are any; its settings are those of `ConsumerConfig`.

        Raises:
            UnknownTopicError: A named topic does not exist.
            ConfigError: A setting is unknown or out of range.
        """

    @property
    @abstractmethod
    def admin(self) -> Admin:
        """Looks at topics, settings, offsets, groups and transactions, and changes them: Kafka's AdminClient."""

    @abstractmethod
    def verify(self, *, progress: Callable[[int, int], object] | None = None) -> VerifyReport:
        """Look through the whole log for damage; reads every byte that means something, and changes none.

        Others may write meanwhile. It goes on after a damage. Works on a log that is read-only, and takes no lock.

        Args:
            progress: Called in this thread after each segment, with the bytes looked through so far and those of all
                segments. What it raises ends the look.
        """

    @abstractmethod
    def repair(
        self, *, cut_tail: bool = False, force: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> RepairReport:
        """Drop indexes that are wrong, publish what a damaged slot hides, and, when told, cut damaged ends off.

        Args:
            cut_tail: Cut each damaged partition where the damage begins. What is cut off is kept, byte by byte, in
                files beside the segments whose names have `.cut-` in them; a new partition epoch begins.
            force: Cut even what is known to be on disk. Without it, such a damage is left: restore it from a copy.
            progress: As `verify` calls it; the log is looked through before and after.

        Raises:
            ReadOnlyError: The log is read-only.
            LockTimeoutError: Another process held a partition's lock for a minute.
            StorageError: The disk is full or failed. Nothing is lost; repair again.
        """

    @abstractmethod
    def snapshot(
        self,
        target: str | os.PathLike[str],
        *,
        topics: str | Iterable[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> SnapshotReport:
        """Make a consistent copy of the log, or of some topics, while it is being written; it is a log of its own.

        Opening it is restoring it. It has another id, and goes its own way from there: nothing that is written to one
        of the two is seen in the other. Sealed segments are hard links where the file system has them, so a large log
        takes no longer than a small one; what is being written to is copied. On another file system all is copied.

        It has, of each partition, the records up to an offset; of transactions all records and committed offsets in
        its topics, or none; and no committed offset that lies beyond the end of its partition. What it has of
        partitions without transactions need not be of one moment. Groups have no members there, and transactional ids
        begin anew. Nobody waits for it: it takes no lock.

        Works on a log that is read-only, and on one that other processes change: a topic that is deleted meanwhile is
        left out. The directory gets its name when all of it is on disk. A process that is killed before leaves a
        directory beside it whose name begins with `~`; the next snapshot to the same place removes it.

        Args:
            target: The directory to make, or an empty one. The one that it lies in must exist.
            topics: The names of the topics to take; None for all. Groups that committed nothing there are left out.
            progress: Called in this thread after each piece that was copied, with the bytes copied so far and those to
                be copied in all, which may turn out to be more. What it raises ends the snapshot.

        Returns:
            What was made.

        Raises:
            ConfigError: There is something at the target, which is left as it is; it lies within the log; the directory
                that it would lie in is missing; or no topic is named.
            UnknownTopicError: There is no such topic, or it was deleted meanwhile.
            ReadOnlyError: The target may not be written; or the log is read-only, and has transactions to recover.
            StorageError: The disk is full or failed, or a sync of the log failed before. Nothing is left.
            CorruptLogError: A file of the log is missing or damaged. Not all damage is seen: see `verify`.
        """

    @abstractmethod
    def maintain(self, *, topics: Iterable[str] | None = None, force: bool = False) -> MaintenanceReport:
        """Delete now what the topics' retention lets go, and compact or repack what is due.

        A process that uses such a topic does so by itself every few minutes, unless the log was opened with
        `maintenance=False`; it has a process of its own compact and repack, as this call keeps a core busy. Readers
        that are in the middle of a segment finish it.

        - **Retention**: whole segments go, from the oldest on: one whose newest record is too old, or without which the
          partition still has `retention_bytes`.
        - **Compaction** (`cleanup_policy="compact"`): of each key the last record stays, at least. What is in the
          active segment is not looked at.
        - **Repacking** (`repack=True`): small batches become large ones.

        After the clock jumped by more than 24 hours nothing is deleted or compacted for an hour (`waits_ms`): a wrong
        clock would make everything old.

        Args:
            topics: Names; None for all topics.
            force: Compact whatever `min_cleanable_dirty_ratio` says, also after the clock jumped.

        Raises:
            UnknownTopicError: There is no such topic.
            ReadOnlyError: The log is read-only.
            LockTimeoutError: Another process is at it.
            ExceptionGroup: What could not be done; the other partitions are done.
        """

    @overload
    def metrics(self, by: None = None) -> dict[str, float]: ...
    @overload
    def metrics(self, by: Literal["topic"]) -> dict[str, dict[str, float]]: ...
    @overload
    def metrics(self, by: Literal["partition"]) -> dict[TopicPartition, dict[str, float]]: ...
    @overload
    def metrics(self, by: Literal["group"]) -> dict[GroupPartition, dict[str, float]]: ...
    @abstractmethod
    def metrics(self, by: Literal["topic", "partition", "group"] | None = None) -> Any:
        """What is measured of the log, under Kafka's names.

        Args:
            by: None for the counters (`...-total`) of all producers and consumers that this open log has made, summed
                up, of those that are gone too; waits for nobody, and works after the end.

                `"topic"` and `"partition"` for sizes, segments and, of partitions, first and next offset;
                `"group"` for the lag of every consumer group, by `GroupPartition`: in each partition, from what it has
                committed to the end. These look at the directory, and see what all processes do. What they cannot look
                at they leave out, and log; `collect_metrics` counts it.

        Raises:
            ClosedError: The log was closed, and `by` needs the directory.
        """

    @abstractmethod
    def collect_metrics(self, *, logs: bool = True, groups: bool = True, partitions: bool = True) -> list[Metric]:
        """All that is measured, in one list: for exporters. Reads only; after the log was closed, it is empty.

        Args:
            logs: With what `metrics(by="topic")` and `metrics(by="partition")` tell.
            groups: With what `metrics(by="group")` tells.
            partitions: With what is told by partition of clients and of the log; else by topic at most.
        """
