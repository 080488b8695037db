"""What `pystreamlog topics describe` tells of a topic, from a few bytes of each partition."""

from __future__ import annotations

from typing import Any

import attrs

from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.extents import Extents
from pystreamlog.cli.output import bytes_of, print_line, print_table, time_of
from pystreamlog.errors import OffsetOutOfRangeError
from pystreamlog.record.record import TopicPartition

__all__ = ["DescribedPartition", "DescribedTopic", "described", "show"]

_HEADS = ("PARTITION", "START", "END", "RECORDS", "BYTES", "SEGMENTS", "FIRST", "LAST", "RECORDS/S", "BYTES/S")
_NUMBERS = frozenset(_HEADS) - {"FIRST", "LAST"}


@attrs.frozen
class DescribedPartition:
    """A partition and what it holds.

    Attributes:
        partition: Its number.
        start_offset: The first offset there is.
        end_offset: The next record's.
        records: The offsets between the two.
        bytes: Size of its segment files; None where nobody knows.
        segments: How many; likewise.
        disk_bytes: What it takes up on the disk, with indexes and what is allocated ahead.
        first_timestamp_ms: Of the first record there is; None without one.
        last_timestamp_ms: Of the last one; likewise.
        records_per_second: The mean from the first record to the last; None where no time lies between.
        bytes_per_second: Likewise.
    """

    partition: int
    start_offset: int
    end_offset: int
    records: int
    bytes: int | None
    segments: int | None
    disk_bytes: int
    first_timestamp_ms: int | None
    last_timestamp_ms: int | None
    records_per_second: float | None
    bytes_per_second: float | None


@attrs.frozen
class DescribedTopic:
    """A topic and what it holds.

    Attributes:
        name: Its name.
        topic_id: 32 hexadecimal digits.
        created_ms: When it was made, in ms since 1970.
        configs: The settings that differ from their defaults.
        partitions: Each partition.
    """

    name: str
    topic_id: str
    created_ms: int
    configs: dict[str, Any]
    partitions: list[DescribedPartition]


def described(log: StreamLog, extents: Extents | None, name: str) -> DescribedTopic:
    """A topic and what it holds.

    Args:
        log: The open log.
        extents: Looks at its files.
        name: The topic.

    Raises:
        ExceptionGroup: Of `UnknownTopicError`, `CorruptLogError`.
        UnknownTopicError: It was deleted meanwhile.
    """
    admin = log.admin
    topic = admin.describe_topics(name)[name]
    configs = {entry.name: entry.value for entry in admin.describe_configs(name)[name].values() if not entry.is_default}
    places = [TopicPartition(name, number) for number in range(topic.partitions)]
    starts = admin.list_offsets(dict.fromkeys(places, "earliest"))
    firsts = admin.list_offsets(dict.fromkeys(places, 0))  # the first record not older than 1970
    ends = admin.list_offsets(dict.fromkeys(places, "latest"))
    (directory,) = admin.describe_log_dirs(name).values()
    state = extents and extents.topic(name)
    found = []
    for place in places:
        number = place.partition
        extent = extents.extent(state, number) if extents and state else None
        records = ends[place].offset - starts[place].offset
        first, last = (
            firsts[place].timestamp_ms,
            _last_timestamp_ms(log, place, ends[place].offset) if records else None,
        )
        seconds = (last - first) / 1000 if last is not None and last > first >= 0 else 0
        found.append(
            DescribedPartition(
                number,
                starts[place].offset,
                ends[place].offset,
                records,
                extent and extent.bytes,
                extent and extent.segments,
                directory.replica_infos[place].size,
                first if records and first >= 0 else None,
                last,
                records / seconds if seconds else None,
                extent.bytes / seconds if extent and seconds else None,
            )
        )
    return DescribedTopic(name, topic.topic_id, topic.created_ms, configs, found)


def _last_timestamp_ms(log: StreamLog, place: TopicPartition, end: int) -> int | None:
    """The timestamp of the last record below an end; None where deletion was faster."""
    try:
        for record in log.topic(place.topic).read(partition=place.partition, start=end - 1):
            return record.timestamp_ms
    except OffsetOutOfRangeError:
        pass
    return None


def show(topic: DescribedTopic) -> None:
    """Print a topic for people."""
    print_line(
        f"{topic.name}: {len(topic.partitions)} partitions, made {time_of(topic.created_ms)}, id {topic.topic_id}"
    )
    if topic.configs:
        print_line("settings: " + ", ".join(f"{name}={value}" for name, value in topic.configs.items()))
    rows = [
        (
            each.partition,
            each.start_offset,
            each.end_offset,
            each.records,
            "-" if each.bytes is None else bytes_of(each.bytes),
            "-" if each.segments is None else each.segments,
            time_of(each.first_timestamp_ms),
            time_of(each.last_timestamp_ms),
            "-" if each.records_per_second is None else f"{each.records_per_second:,.1f}",
            "-" if each.bytes_per_second is None else bytes_of(each.bytes_per_second),
        )
        for each in topic.partitions
    ]
    print_table(_HEADS, rows, right=_NUMBERS)
    print_line("")
