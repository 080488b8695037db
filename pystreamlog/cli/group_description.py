"""What `pystreamlog groups describe` tells: rows of offsets, members and states, under Kafka's headings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.administration import ConsumerGroupDescription
from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.cli.running import Trials
from pystreamlog.errors import UnknownPartitionError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["HEADS", "NUMBERS", "committed_offsets", "end_offsets", "member_rows", "offset_rows", "state_row", "table"]

Row = dict[str, Any]

HEADS: Mapping[str, Mapping[str, str]] = {
    "offsets": {
        "group_id": "GROUP",
        "topic": "TOPIC",
        "partition": "PARTITION",
        "current_offset": "CURRENT-OFFSET",
        "log_end_offset": "LOG-END-OFFSET",
        "lag": "LAG",
        "consumer_id": "CONSUMER-ID",
        "host": "HOST",
        "client_id": "CLIENT-ID",
    },
    "members": {
        "group_id": "GROUP",
        "consumer_id": "CONSUMER-ID",
        "host": "HOST",
        "client_id": "CLIENT-ID",
        "pid": "PID",
        "state": "STATE",
        "partitions": "#PARTITIONS",
    },
    "state": {
        "group_id": "GROUP",
        "state": "STATE",
        "group_epoch": "EPOCH",
        "assignment_strategy": "ASSIGNMENT-STRATEGY",
        "members": "#MEMBERS",
    },
}
"""The columns of each table, by the names that JSON has for them."""

_VERBOSE: Mapping[str, Mapping[str, str]] = {
    "offsets": {"group_instance_id": "GROUP-INSTANCE-ID", "metadata": "METADATA"},
    "members": {
        "group_instance_id": "GROUP-INSTANCE-ID",
        "member_epoch": "MEMBER-EPOCH",
        "subscription": "SUBSCRIPTION",
        "assignment": "ASSIGNMENT",
        "target_assignment": "TARGET-ASSIGNMENT",
    },
    "state": {},
}
NUMBERS = frozenset(
    {"PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "PID", "#PARTITIONS", "#MEMBERS", "EPOCH", "MEMBER-EPOCH"}
)


def table(view: str, rows: Iterable[Row], *, verbose: bool) -> tuple[list[str], list[list[str]]]:
    """The headings and the cells of a table.

    Args:
        view: "offsets", "members" or "state".
        rows: Of that view.
        verbose: With the columns that few want to see.
    """
    columns = {**HEADS[view], **(_VERBOSE[view] if verbose else {})}
    return list(columns.values()), [[_shown(row[name]) for name in columns] for row in rows]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{topic}({','.join(map(str, numbers))})" for topic, numbers in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ",".join(value) or "-"
    return "-" if value is None or value == "" else str(value)


def committed_offsets(
    admin: Admin, group_ids: list[str], trials: Trials
) -> dict[str, dict[TopicPartition, OffsetAndMetadata]]:
    """What groups have committed, by group; a group of which that cannot be told is left out.

    Args:
        admin: The log's.
        group_ids: The groups.
        trials: Notes what fails.
    """
    try:
        return admin.list_consumer_group_offsets(group_ids)  # looks at all topics, once
    except ExceptionGroup:
        found: dict[str, dict[TopicPartition, OffsetAndMetadata]] = {}
        for group_id in group_ids:
            with trials.trying():
                found.update(admin.list_consumer_group_offsets(group_id))
        return found


def end_offsets(admin: Admin, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The ends of those of some partitions that there still are."""
    wanted = list(places)
    try:
        return {place: found.offset for place, found in admin.list_offsets(dict.fromkeys(wanted, "latest")).items()}
    except ExceptionGroup as group:
        gone, others = group.split((UnknownTopicError, UnknownPartitionError))
        if others is not None or gone is None:
            raise
        missing = {(getattr(error, "topic", ""), getattr(error, "partition", -1)) for error in gone.exceptions}
        return end_offsets(admin, [place for place in wanted if place not in missing])


def offset_rows(
    admin: Admin, group: ConsumerGroupDescription, committed: Mapping[TopicPartition, OffsetAndMetadata]
) -> list[Row]:
    """A row per partition in which a group committed, or that a member owns.

    Raises:
        ExceptionGroup: Of `CorruptLogError`: a partition's end cannot be told.
    """
    owners = {place: member for member in group.members for place in member.assignment}
    places = sorted({*committed, *owners})
    ends = end_offsets(admin, places)
    rows = []
    for place in places:
        known, owner, end = committed.get(place), owners.get(place), ends.get(place)
        offset = known and known.offset
        rows.append(
            {
                "group_id": group.group_id,
                "topic": place.topic,
                "partition": place.partition,
                "current_offset": offset,
                "log_end_offset": end,
                "lag": None if offset is None or end is None else end - offset,
                "consumer_id": owner and owner.member_id,
                "host": owner and owner.host,
                "client_id": owner and owner.client_id,
                "pid": owner and owner.pid,
                "group_instance_id": owner and owner.group_instance_id,
                "metadata": known and known.metadata,
            }
        )
    return rows


def member_rows(group: ConsumerGroupDescription) -> list[Row]:
    """A row per member."""
    return [
        {
            "group_id": group.group_id,
            "consumer_id": member.member_id,
            "host": member.host,
            "client_id": member.client_id,
            "pid": member.pid,
            "state": member.state,
            "partitions": len(member.assignment),
            "group_instance_id": member.group_instance_id,
            "member_epoch": member.member_epoch,
            "subscription": list(member.subscription) if member.pattern is None else [member.pattern],
            "assignment": _by_topic(member.assignment),
            "target_assignment": _by_topic(member.target_assignment),
        }
        for member in group.members
    ]


def _by_topic(places: Iterable[TopicPartition]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for topic, number in places:
        found.setdefault(topic, []).append(number)
    return found


def state_row(group: ConsumerGroupDescription) -> Row:
    """How a group stands."""
    return {
        "group_id": group.group_id,
        "state": group.state,
        "group_epoch": group.group_epoch,
        "assignment_strategy": group.partition_assignor,
        "members": len(group.members),
    }
