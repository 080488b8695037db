"""The part of an admin that is about topics: they, their settings, and the offsets of their partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from pystreamlog.backend.administration import (
    AlterConfigOp,
    ConfigEntry,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
    TopicDescription,
    TopicListing,
)
from pystreamlog.clock import to_timestamp_ms
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.admin_context import AdminPart
from pystreamlog.embedded.attempts import Attempts, items
from pystreamlog.embedded.interest import checked_partition
from pystreamlog.errors import ConfigError, UnknownTopicError
from pystreamlog.record.record import TopicPartition
from pystreamlog.settings import unknown_setting
from pystreamlog.storage.reader import Cursor

__all__ = ["TopicAdmin"]

_FIELDS = {field.name: field for field in attrs.fields(TopicConfig)}
_READ_ONLY = frozenset({"key_index"})
_LISTS = frozenset({"cleanup_policy"})
_NOWHERE = ListOffsetsResultInfo(-1, -1)


class TopicAdmin(AdminPart):
    """See `Admin`."""

    __slots__ = ()

    def create_topics(
        self, new_topics: Iterable[NewTopic], *, validate_only: bool = False
    ) -> dict[str, TopicDescription]:
        """See `Admin.create_topics`."""
        self._changing()
        made = {}
        with Attempts("create_topics") as attempts:
            for new in new_topics:
                if not isinstance(new, NewTopic):
                    raise ConfigError(f"create_topics takes NewTopic(name, ...), not {new!r}")
                with attempts.about(topic=new.name):
                    if type(new.replication_factor) is not int:
                        message = f"topic {new.name!r}: replication_factor is a number, not {new.replication_factor!r}"
                        raise ConfigError(f"{message}: settings go into configs=")
                    state = self._context.topics.create(
                        new.name, new.num_partitions, new.configs, exist_ok=False, validate_only=validate_only
                    )
                    made[new.name] = _description(state)
        return made

    def delete_topics(self, topics: str | Iterable[str]) -> None:
        """See `Admin.delete_topics`."""
        self._changing()
        with Attempts("delete_topics") as attempts:
            for name in items(topics):
                with attempts.about(topic=name):
                    self._context.delete_topic(name)

    def list_topics(self, *, list_internal: bool = False) -> dict[str, TopicListing]:
        """See `Admin.list_topics`."""
        self._context.check_open()
        found = {}
        with Attempts("list_topics") as attempts:
            for name in self._context.topics.names():
                if name.startswith("__") and not list_internal:
                    continue
                with attempts.about(topic=name):
                    try:
                        state = self._context.topics.find_anew(name)
                    except UnknownTopicError:
                        continue  # deleted meanwhile
                    found[name] = TopicListing(name, state.id.hex(), name.startswith("__"))
        return found

    def describe_topics(self, topics: str | Iterable[str]) -> dict[str, TopicDescription]:
        """See `Admin.describe_topics`."""
        self._context.check_open()
        found = {}
        with Attempts("describe_topics") as attempts:
            for name in items(topics):
                with attempts.about(topic=name):
                    found[name] = _description(self._context.topics.find_anew(name))
        return found

    def create_partitions(self, new_partitions: Mapping[str, int], *, validate_only: bool = False) -> None:
        """See `Admin.create_partitions`."""
        self._changing()
        with Attempts("create_partitions") as attempts:
            for name, total in new_partitions.items():
                with attempts.about(topic=name):
                    self._context.topics.add_partitions(name, total, validate_only=validate_only)

    def describe_configs(self, topics: str | Iterable[str]) -> dict[str, dict[str, ConfigEntry]]:
        """See `Admin.describe_configs`."""
        self._context.check_open()
        found = {}
        with Attempts("describe_configs") as attempts:
            for name in items(topics):
                with attempts.about(topic=name):
                    found[name] = _entries(self._context.topics.find_anew(name).config)
        return found

    def incremental_alter_configs(
        self, changes: Mapping[str, Iterable[AlterConfigOp]], *, validate_only: bool = False
    ) -> None:
        """See `Admin.incremental_alter_configs`."""
        self._changing()
        with Attempts("incremental_alter_configs") as attempts:
            for name, ops in changes.items():
                with attempts.about(topic=name):
                    now = self._context.topics.find_anew(name).config
                    self._context.topics.alter(name, _values(ops, now), validate_only=validate_only)

    def list_offsets(
        self, topic_partition_offsets: Mapping[TopicPartition, OffsetSpec]
    ) -> dict[TopicPartition, ListOffsetsResultInfo]:
        """See `Admin.list_offsets`."""
        self._context.check_open()
        found = {}
        states: dict[str, TopicState] = {}
        with Attempts("list_offsets") as attempts:
            for tp, spec in topic_partition_offsets.items():
                topic, number = checked_partition(tp)
                with attempts.about(topic=topic, partition=number):
                    if topic not in states:
                        states[topic] = self._context.topics.find_anew(topic)
                    reader = self._context.partitions.reader(states[topic], number)
                    try:
                        found[tp] = _listed(reader, spec)
                    finally:
                        reader.close()
        return found

    def delete_records(self, records_to_delete: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """See `Admin.delete_records`."""
        self._changing()
        context, starts = self._context, {}
        with Attempts("delete_records") as attempts:
            for tp, offset in records_to_delete.items():
                topic, number = checked_partition(tp)
                with attempts.about(topic=topic, partition=number):
                    if type(offset) is not int:
                        raise ConfigError(f"records are deleted below an offset, or -1 for all, not {offset!r}")
                    writer = context.partitions.writer(context.topics.find_anew(topic), number)
                    starts[tp] = writer.delete_records(offset).log_start_offset
        return starts


def _description(state: TopicState) -> TopicDescription:
    internal = state.name.startswith("__")
    return TopicDescription(state.name, state.id.hex(), internal, state.partitions, state.created_ms)


def _entries(config: TopicConfig) -> dict[str, ConfigEntry]:
    entries = {}
    for name, field in _FIELDS.items():
        value = getattr(config, name)
        entries[name] = ConfigEntry(name, value, field.default, value == field.default, name in _READ_ONLY)
    return entries


def _values(ops: Iterable[AlterConfigOp], now: TopicConfig) -> dict[str, Any]:
    """What some changes of a topic make of its settings, as they are now.

    Raises:
        ConfigError: A setting is unknown, is named twice, or is no list; or a change is none.
    """
    values: dict[str, Any] = {}
    for op in ops:
        if not isinstance(op, AlterConfigOp):
            raise ConfigError(f"a change of a setting is an AlterConfigOp(name, value), not {op!r}")
        field = _FIELDS.get(op.name)
        if field is None:
            raise unknown_setting(op.name, _FIELDS, "topic")
        if op.name in values:
            raise ConfigError(f"{op.name} is named twice: make one change of it")
        if op.op_type in ("APPEND", "SUBTRACT") and op.name in _LISTS and isinstance(op.value, str):
            values[op.name] = _changed_list(getattr(now, op.name), op)
            continue
        if op.op_type in ("APPEND", "SUBTRACT"):
            raise ConfigError(f"{op.name} is no list to {op.op_type} to: SET it")
        if op.op_type not in ("SET", "DELETE"):
            raise ConfigError(f"op_type={op.op_type!r} is none of 'SET', 'DELETE', 'APPEND', 'SUBTRACT'")
        values[op.name] = op.value if op.op_type == "SET" else field.default
    return values


def _changed_list(now: str, op: AlterConfigOp) -> str:
    """A list of words with others behind it, or without them."""
    words = list(filter(None, now.split(",")))
    others = [word.strip() for word in op.value.split(",")]
    if op.op_type == "APPEND":
        return ",".join(dict.fromkeys([*words, *others]))
    return ",".join(word for word in words if word not in others)


def _listed(reader: PartitionReader, spec: object) -> ListOffsetsResultInfo:
    """The offset that a spec means in a partition."""
    if spec in ("earliest", "latest"):
        start, end = reader.offsets()
        return ListOffsetsResultInfo(start if spec == "earliest" else end)
    if spec == "max_timestamp":
        highest = reader.max_timestamp()
        offset = None if highest < 0 else reader.offset_at(highest)
        return _highest(reader) if offset is None else _at(reader, offset)
    if isinstance(spec, datetime) or type(spec) is int:
        offset = reader.offset_at(to_timestamp_ms(spec))
        return _NOWHERE if offset is None else _at(reader, offset)
    raise ConfigError(
        f"an offset to list is 'earliest', 'latest', 'max_timestamp', a time in ms or an aware datetime, not {spec!r}"
    )


def _at(reader: PartitionReader, offset: int) -> ListOffsetsResultInfo:
    """The first record from an offset on."""
    for batch, first in reader.fetch(Cursor(offset), max_records=1):
        return ListOffsetsResultInfo(batch.offset(first), batch.timestamps_ms(first, first + 1)[0])
    return _NOWHERE


def _highest(reader: PartitionReader) -> ListOffsetsResultInfo:
    """The first record with the highest timestamp, by reading all: the one that had it first was removed."""
    start, end = reader.offsets()
    cursor, best = Cursor(start), _NOWHERE
    while cursor.offset < end:
        found = reader.fetch(cursor, max_records=end - cursor.offset)
        if not found:
            break
        for batch, first in found:
            stop = batch.count
            for offset, when in zip(batch.offsets(first, stop), batch.timestamps_ms(first, stop), strict=True):
                if when > best.timestamp_ms:
                    best = ListOffsetsResultInfo(offset, when)
    return best
