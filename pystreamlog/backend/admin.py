"""The contract of an admin: topics, settings, offsets, consumer groups and transactions looked at and changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.record.record import TopicPartition

if TYPE_CHECKING:  # or each program would wait for classes that only a few use
    from pystreamlog.backend.administration import (
        AlterConfigOp,
        ClusterDescription,
        ConfigEntry,
        ConsumerGroupDescription,
        ConsumerGroupListing,
        GroupState,
        ListOffsetsResultInfo,
        LogDirDescription,
        NewTopic,
        OffsetSpec,
        TopicDescription,
        TopicListing,
        TransactionDescription,
        TransactionListing,
        TransactionState,
    )

__all__ = ["Admin"]


class Admin(ABC):
    """Kafka's AdminClient over an open log (`log.admin`). Safe from any thread; needs no closing.

    A call about several items tries all of them. If any fails, it raises one `ExceptionGroup` of what failed, also when
    there was one item only; each error says by an attribute (`topic`, `partition`, `group_id`, `transactional_id`,
    `group_instance_id`) what it is about. The other items are done. Where a call takes names, a single one may be
    passed as it is.

    What only looks works in a log that is read-only, and takes no lock that anybody waits for. What changes raises
    `ReadOnlyError` there, and `ClosedError` is raised by everything after the log was closed.
    """

    __slots__ = ()

    # --- topics

    @abstractmethod
    def create_topics(
        self, new_topics: Iterable[NewTopic], *, validate_only: bool = False
    ) -> dict[str, TopicDescription]:
        """Make topics; what was made, by name.

        Args:
            new_topics: The topics.
            validate_only: Check everything, and make nothing.

        Raises:
            ExceptionGroup: Of `TopicExistsError`, `InvalidTopicError`, `ConfigError`, `StorageError`.
        """

    @abstractmethod
    def delete_topics(self, topics: str | Iterable[str]) -> None:
        """Delete topics with all their records, while others read and write them: they get `UnknownTopicError`.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`, `LockTimeoutError`.
        """

    @abstractmethod
    def list_topics(self, *, list_internal: bool = False) -> dict[str, TopicListing]:
        """The topics there are, by name, sorted; those whose names start with `__` only with `list_internal`.

        Raises:
            ExceptionGroup: Of `CorruptLogError`: a topic's settings are damaged. `StreamLog.topics` tells names only.
        """

    @abstractmethod
    def describe_topics(self, topics: str | Iterable[str]) -> dict[str, TopicDescription]:
        """Topics by name.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`.
        """

    @abstractmethod
    def create_partitions(self, new_partitions: Mapping[str, int], *, validate_only: bool = False) -> None:
        """Raise the number of partitions of topics; from then on a key may go to another one.

        Args:
            new_partitions: How many each topic shall have in all.
            validate_only: Check everything, and change nothing.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`; of `ConfigError` where a topic has as many, or has a `key_index`.
        """

    @abstractmethod
    def describe_configs(self, topics: str | Iterable[str]) -> dict[str, dict[str, ConfigEntry]]:
        """All settings of topics, by topic and name.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`.
        """

    @abstractmethod
    def incremental_alter_configs(
        self, changes: Mapping[str, Iterable[AlterConfigOp]], *, validate_only: bool = False
    ) -> None:
        """Change settings of topics; the others stay. All changes of one topic are made in one step, or none.

        They hold for what is appended from now on, by other processes within a second.

        Args:
            changes: By topic.
            validate_only: Check everything, and change nothing.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`; of `ConfigError` where a setting is unknown, out of range, cannot be
                altered, is named twice, or is no list.
        """

    @abstractmethod
    def list_offsets(
        self, topic_partition_offsets: Mapping[TopicPartition, OffsetSpec]
    ) -> dict[TopicPartition, ListOffsetsResultInfo]:
        """Offsets of partitions: the earliest, the latest (the next record's), at a time, or of the highest timestamp.

        Costs a few reads each, however large a partition is. (Where the record with the highest timestamp was removed,
        "max_timestamp" reads the partition.)

        Raises:
            ExceptionGroup: Of `UnknownTopicError`, `UnknownPartitionError`; of `ConfigError` where it is none of these.
        """

    @abstractmethod
    def delete_records(self, records_to_delete: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Delete the records below an offset of each partition, for good; on disk when it returns.

        Segments that lie below it wholly are removed, and give their space back. Who reads one of them finishes it; who
        comes later follows `auto_offset_reset`.

        Args:
            records_to_delete: What each partition starts with then; -1 for its end, which deletes all.

        Returns:
            The first offset of each partition: more than asked where it started later already.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`, `UnknownPartitionError`; of `OffsetOutOfRangeError` beyond an end;
                of `ConfigError` where a topic has a `key_index`; of `LockTimeoutError`, `StorageError`.
        """

    # --- consumer groups

    @abstractmethod
    def list_consumer_groups(
        self, *, states: GroupState | Iterable[GroupState] | None = None
    ) -> list[ConsumerGroupListing]:
        """The consumer groups there are, sorted by id: those in one of these states, or all.

        Raises:
            ExceptionGroup: Of `CorruptLogError`: a group's files are damaged.
        """

    @abstractmethod
    def describe_consumer_groups(self, group_ids: str | Iterable[str]) -> dict[str, ConsumerGroupDescription]:
        """Consumer groups by id, with their members and what these own.

        A member that died, or has not polled for `max_poll_interval_ms`, is none, though its group may not know yet.

        Raises:
            ExceptionGroup: Of `UnknownGroupError`, `CorruptLogError`.
        """

    @abstractmethod
    def delete_consumer_groups(self, group_ids: str | Iterable[str]) -> None:
        """Delete consumer groups without members, with all that they have committed; on disk when it returns.

        A consumer that was made before and has not joined yet, or that was assigned its partitions and commits, gets
        `UnknownGroupError`; the next one to be made begins the group anew. A static member counts as one until its
        `session_timeout_ms` is over. A group whose committed offsets are damaged can be deleted too.

        Raises:
            ExceptionGroup: Of `UnknownGroupError`, `GroupNotEmptyError`, `LockTimeoutError`; of `CorruptLogError` where
                something else of the group is damaged.
        """

    @abstractmethod
    def list_consumer_group_offsets(
        self, group_ids: str | Iterable[str], *, partitions: Iterable[TopicPartition] | None = None
    ) -> dict[str, dict[TopicPartition, OffsetAndMetadata]]:
        """What groups have committed, by group; of these partitions, or of all.

        A partition in which a group has committed nothing is missing; a group that there is not has committed nothing,
        as in Kafka. An offset that a recovery after a power loss cut is told as it holds now.

        Raises:
            ExceptionGroup: Of `CorruptLogError`.
        """

    @abstractmethod
    def alter_consumer_group_offsets(
        self, group_id: str, offsets: Mapping[TopicPartition, int | OffsetAndMetadata]
    ) -> None:
        """Commit offsets for a group without members, made if it is missing; on disk when it returns.

        Raises:
            ExceptionGroup: Of `GroupNotEmptyError`: it has members that subscribe, and nothing was committed; of
                `UnknownTopicError`, `UnknownPartitionError`, `OffsetOutOfRangeError`, `ConfigError` per partition.
        """

    @abstractmethod
    def delete_consumer_group_offsets(self, group_id: str, partitions: Iterable[TopicPartition]) -> None:
        """Delete what a group has committed in some partitions; on disk when it returns.

        A partition in which it has committed nothing is passed over.

        Raises:
            ExceptionGroup: Of `UnknownGroupError`; of `GroupNotEmptyError` for each partition to whose topic a member
                subscribes; of `UnknownTopicError`, `UnknownPartitionError`.
        """

    @abstractmethod
    def remove_members_from_consumer_group(
        self, group_id: str, group_instance_ids: str | Iterable[str] | None = None
    ) -> None:
        """Take members out of a group; the others share out what they owned, at once.

        A consumer that still lives loses its partitions, as if it had not polled for too long, and joins again with its
        next poll: end its process first to be rid of it.

        Args:
            group_id: The group.
            group_instance_ids: Of static members; None takes out all members, static or not.

        Raises:
            ExceptionGroup: Of `UnknownGroupError`; of `ConfigError` where no member has that `group_instance_id`.
        """

    # --- transactions

    @abstractmethod
    def list_transactions(
        self, *, states: TransactionState | Iterable[TransactionState] | None = None
    ) -> list[TransactionListing]:
        """The transactional ids that were ever used, sorted: those in one of these states, or all.

        An open transaction is in its producer's memory only and shows nowhere; nobody waits for it, and it ends with
        its process. So only a commit under way tells an id from one at rest.

        Raises:
            ExceptionGroup: Of `CorruptLogError`.
        """

    @abstractmethod
    def describe_transactions(self, transactional_ids: str | Iterable[str]) -> dict[str, TransactionDescription]:
        """How transactional ids stand.

        Raises:
            ExceptionGroup: Of `ConfigError` where no producer ever used an id; of `CorruptLogError`.
        """

    @abstractmethod
    def fence_producers(self, transactional_ids: str | Iterable[str]) -> dict[str, int]:
        """Fence all producers with these ids: their transactions cannot commit any more; the new epochs, by id.

        A commit under way is waited for. Returns when none of them can commit; a producer learns it from its next call,
        by `FencedError`.

        Raises:
            ExceptionGroup: Of `ConfigError` where an id is none; of `LockTimeoutError` where a commit took a minute.
        """

    @abstractmethod
    def abort_transaction(self, transactional_id: str) -> None:
        """Abort a transaction that hangs in the log. In a log without servers none can.

        What is not committed is in no partition there, holds up no reader, and ends with its process: to keep a
        producer from committing, `fence_producers`.

        Raises:
            NotSupportedError: Always, in a log without servers.
        """

    # --- the log

    @abstractmethod
    def describe_log_dirs(self, topics: str | Iterable[str] | None = None) -> dict[str, LogDirDescription]:
        """What the partitions of these topics, or of all, take up on the disk, by directory; here, that is one.

        Raises:
            ExceptionGroup: Of `UnknownTopicError`, `CorruptLogError`.
        """

    @abstractmethod
    def describe_cluster(self) -> ClusterDescription:
        """The log's id, and what serves it: this host."""
