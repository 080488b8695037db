"""The contract of an open log: topics, and the producers and consumers that work on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar, Unpack, overload

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.closing import Closing
from pystreamlog.backend.consumer import Consumer, ConsumerOptions
from pystreamlog.backend.maintenance import MaintenanceReport
from pystreamlog.backend.producer import Producer, ProducerOptions
from pystreamlog.backend.topic import Topic, TopicOptions
from pystreamlog.backend.verification import RepairReport, VerifyReport
from pystreamlog.record.serde import Serde

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
            LockTimeoutError: A process held a partition's lock for a minute.
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
    def verify(self) -> VerifyReport:
        """Look through the whole log for damage; reads every byte that means something, and changes none.

        Others may write meanwhile. It goes on after a damage. Works on a log that is read-only, and takes no lock.
        """

    @abstractmethod
    def repair(self, *, cut_tail: bool = False, force: bool = False) -> RepairReport:
        """Drop indexes that are wrong, publish what a damaged slot hides, and, when told, cut damaged ends off.

        Args:
            cut_tail: Cut each damaged partition where the damage begins. What is cut off is kept, byte by byte, in
                files beside the segments whose names have `.cut-` in them; a new partition epoch begins.
            force: Cut even what is known to be on disk. Without it, such a damage is left: restore it from a copy.

        Raises:
            ReadOnlyError: The log is read-only.
            LockTimeoutError: Another process held a partition's lock for a minute.
            StorageError: The disk is full or failed. Nothing is lost; repair again.
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

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Counters of all that was opened through this log."""
