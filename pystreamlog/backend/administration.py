"""What an `Admin` is given and what it returns, in plain values under Kafka's names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from pystreamlog.record.record import TopicPartition

__all__ = [
    "AlterConfigOp",
    "ClusterDescription",
    "ConfigEntry",
    "ConsumerGroupDescription",
    "ConsumerGroupListing",
    "GroupState",
    "ListOffsetsResultInfo",
    "LogDirDescription",
    "MemberDescription",
    "NewTopic",
    "Node",
    "OffsetSpec",
    "ReplicaInfo",
    "TopicDescription",
    "TopicListing",
    "TransactionDescription",
    "TransactionListing",
    "TransactionState",
]

OffsetSpec = Literal["earliest", "latest", "max_timestamp"] | int | datetime
"""Which offset `Admin.list_offsets` looks for: the first there is, the next record's, that of the first record with the
highest timestamp, or that of the first record not older than a time (ms since 1970, or an aware datetime)."""

GroupState = Literal["Empty", "Assigning", "Reconciling", "Stable"]
"""How a group stands: without members; about to be shared out; partitions are changing hands; everybody owns what it
shall."""

TransactionState = Literal["Empty", "PrepareCommit"]
"""How a transactional id stands: nobody commits with it, or somebody does just now."""


class NewTopic(msgspec.Struct, frozen=True):
    """A topic to be made.

    Attributes:
        name: 1 to 249 of a-z, A-Z, 0-9, `.`, `_` and `-`.
        num_partitions: How many partitions.
        replication_factor: Means nothing in a log without servers.
        configs: The topic's settings; the others get their defaults.
    """

    name: str
    num_partitions: int = 1
    replication_factor: int = 1
    configs: Mapping[str, Any] = MappingProxyType({})


class TopicListing(NamedTuple):
    """A topic that there is.

    Attributes:
        name: Its name.
        topic_id: 32 hexadecimal digits; a topic that is deleted and made again has another.
        is_internal: Its name starts with `__`.
    """

    name: str
    topic_id: str
    is_internal: bool


class TopicDescription(NamedTuple):
    """A topic.

    Attributes:
        name: Its name.
        topic_id: 32 hexadecimal digits; a topic that is deleted and made again has another.
        is_internal: Its name starts with `__`.
        partitions: How many it has.
        created_ms: When it was made, in ms since 1970.
    """

    name: str
    topic_id: str
    is_internal: bool
    partitions: int
    created_ms: int


class ConfigEntry(NamedTuple):
    """One setting of a topic.

    Attributes:
        name: Its name.
        value: What holds.
        default: What holds where nothing was said.
        is_default: Whether the two are equal.
        is_read_only: It cannot be altered.
    """

    name: str
    value: Any
    default: Any
    is_default: bool
    is_read_only: bool


class AlterConfigOp(NamedTuple):
    """One change of a setting.

    Attributes:
        name: The setting.
        value: What it shall be; nothing with "DELETE".
        op_type: "SET" it, or "DELETE" what was said, so that the default holds. "APPEND" adds words to a list and
            "SUBTRACT" takes them out: `cleanup_policy` is one, as `"compact,delete"`.
    """

    name: str
    value: Any = None
    op_type: Literal["SET", "DELETE", "APPEND", "SUBTRACT"] = "SET"


class ListOffsetsResultInfo(NamedTuple):
    """An offset that was looked for.

    Attributes:
        offset: It; -1 when there is no such record.
        timestamp_ms: Of the record there, in ms since 1970; -1 with "earliest" and "latest", and without a record.
    """

    offset: int
    timestamp_ms: int = -1


class ConsumerGroupListing(NamedTuple):
    """A consumer group that there is.

    Attributes:
        group_id: Its id.
        state: How it stands.
    """

    group_id: str
    state: GroupState


class MemberDescription(msgspec.Struct, frozen=True):
    """A member of a consumer group.

    Attributes:
        member_id: Its id, as in `Consumer.group_metadata()`.
        group_instance_id: The id of a static member.
        client_id: Host and pid, with a colon between: consumers have no name of their own here.
        host: Name of its host or container.
        pid: Its process there.
        state: "Stable" when it owns what it shall, "Reconciling" while it does not, "Left" for a static member that is
            gone and whose share waits for it.
        member_epoch: The group's generation when it joined.
        subscription: The topics it subscribes to by name, sorted.
        pattern: Or its regular expression.
        assignor: How it would share out.
        assignment: What it owns, sorted.
        target_assignment: What it shall own, sorted.
    """

    member_id: str
    group_instance_id: str | None
    client_id: str
    host: str
    pid: int
    state: Literal["Stable", "Reconciling", "Left"]
    member_epoch: int
    subscription: tuple[str, ...]
    pattern: str | None
    assignor: str
    assignment: tuple[TopicPartition, ...]
    target_assignment: tuple[TopicPartition, ...]


class ConsumerGroupDescription(msgspec.Struct, frozen=True):
    """A consumer group.

    Attributes:
        group_id: Its id.
        state: How it stands.
        group_epoch: Its generation, which rises with each new sharing out.
        partition_assignor: How it is shared out: the one that most members name; empty without members.
        members: Who belongs to it, in the order in which they joined.
    """

    group_id: str
    state: GroupState
    group_epoch: int
    partition_assignor: str
    members: tuple[MemberDescription, ...]


class TransactionListing(NamedTuple):
    """A transactional id that was used.

    Attributes:
        transactional_id: It. Of one that is too long for a file name, what that keeps of it.
        state: How it stands.
    """

    transactional_id: str
    state: TransactionState


class TransactionDescription(NamedTuple):
    """How a transactional id stands.

    Attributes:
        transactional_id: It.
        state: How it stands.
        producer_epoch: Of the newest producer with it; the others are fenced.
        holder: Who commits with it just now, in words; empty when nobody does.
    """

    transactional_id: str
    state: TransactionState
    producer_epoch: int
    holder: str


class ReplicaInfo(NamedTuple):
    """What a partition takes up.

    Attributes:
        size: Bytes on the disk, with indexes and with what is allocated ahead.
    """

    size: int


class LogDirDescription(msgspec.Struct, frozen=True):
    """A directory and what is in it.

    Attributes:
        replica_infos: What each partition takes up.
        total_bytes: Size of its file system.
        usable_bytes: What of that is free for this user.
    """

    replica_infos: Mapping[TopicPartition, ReplicaInfo]
    total_bytes: int
    usable_bytes: int


class Node(NamedTuple):
    """A server; here, the host.

    Attributes:
        id: Its number.
        host: Its name.
        port: -1 where there is none.
    """

    id: int
    host: str
    port: int


class ClusterDescription(NamedTuple):
    """A log and what serves it.

    Attributes:
        cluster_id: The log's id: 32 hexadecimal digits. A copy of its directory has the same.
        controller: Who decides; here, the host.
        nodes: All servers; here, the host.
    """

    cluster_id: str
    controller: Node
    nodes: tuple[Node, ...]
