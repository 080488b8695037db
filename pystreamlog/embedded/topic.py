"""A topic of the embedded log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from time import time_ns
from typing import Any, TypeVar, Unpack

import attrs

from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic, TopicOptions
from pystreamlog.clock import to_timestamp_ms
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.embedded.columns import checked_headers
from pystreamlog.embedded.expectations import check_expectations, keyless
from pystreamlog.embedded.key_history import key_history, not_indexed
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import ConfigError, OffsetOutOfRangeError, RecordTooLargeError, UnknownTopicError
from pystreamlog.record.batch import encode_one
from pystreamlog.record.encoded import Demands
from pystreamlog.record.partitioner import xxhash_partition
from pystreamlog.record.record import Headers, Record, RecordMetadata, TopicPartition
from pystreamlog.record.serde import Serde, dumps_with

__all__ = ["EmbeddedTopic"]

K = TypeVar("K")
V = TypeVar("V")

_LOCK_TIMEOUT = 60.0
_READ_RECORDS = 10_000
_METADATA_NS = 1_000_000_000


class EmbeddedTopic(Topic[K, V]):
    """A topic of a directory.

    Args:
        name: Its name.
        find: Finds a topic in the open log; at most a second old.
        topics: The log's topics.
        partitions: The log's partitions.
        key_serde: For keys.
        value_serde: For values.
    """

    __slots__ = (
        "_count",
        "_expires_ns",
        "_find",
        "_key_index",
        "_limit",
        "_log_append_time",
        "_partitions",
        "_raw",
        "_state",
        "_sticky",
        "_topics",
        "_wants_keys",
        "_writers",
    )

    def __init__(
        self,
        name: str,
        find: Callable[[str], TopicState],
        topics: Topics,
        partitions: Partitions,
        key_serde: Serde[K] | None = None,
        value_serde: Serde[V] | None = None,
    ) -> None:
        super().__init__(name, key_serde, value_serde)
        self._find = find
        self._topics = topics
        self._partitions = partitions
        self._sticky = 0
        self._state: TopicState | None = None
        self._writers: dict[int, PartitionWriter] = {}
        self._expires_ns = 0

    @property
    def partitions(self) -> int:
        """See `Topic.partitions`."""
        return self._find(self.name).partitions

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Topic.config`."""
        return attrs.asdict(self._find(self.name).config)

    def append(
        self,
        value: V | None,
        key: K | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        durability: str | None = None,
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> RecordMetadata:
        """See `Topic.append`."""
        now_ns = time_ns()
        if now_ns > self._expires_ns:
            self._refresh(now_ns)
        raw_value: Any = value
        raw_key: Any = key
        pairs: Headers = checked_headers(headers) if headers else ()
        if not self._raw or type(raw_value) is not bytes or (raw_key is not None and type(raw_key) is not bytes):
            if raw_value is not None:
                raw_value = dumps_with(self.value_serde, self.name, pairs, raw_value, "value")
            if raw_key is not None:
                raw_key = dumps_with(self.key_serde, self.name, pairs, raw_key, "key")
        if raw_key is None and self._wants_keys:
            raise keyless(self.name)
        named = partition
        if partition is None:
            partition = 0
            if self._count > 1:
                partition = self._place(raw_key)
        writer = self._writers.get(partition) or self._writer(partition, now_ns)
        stamp = now_ns // 1_000_000 if timestamp_ms is None else to_timestamp_ms(timestamp_ms)
        batch = encode_one(raw_value, raw_key, stamp, pairs, self._log_append_time)
        if batch.size > self._limit:
            self._check_size(raw_value, raw_key, pairs)
        if self._key_index or expected_end is not None or expected_version is not None:
            batch.demands = self._demands(raw_key, named, expected_end, expected_version)
        if durability is not None and durability not in ("os", "fsync"):
            raise ConfigError(f"durability is 'os' or 'fsync', not {durability!r}")
        try:
            append = writer.append if durability != "fsync" else writer.sync.append
            offset = append(batch, _LOCK_TIMEOUT)
        except UnknownTopicError:
            self._forget()  # the next call finds the topic that has the name then
            raise
        return RecordMetadata(self.name, partition, offset, batch.max_timestamp)

    def _demands(
        self, key: bytes | None, partition: int | None, expected_end: int | None, expected_version: int | None
    ) -> Demands:
        """What must hold for a record, and what a key index needs to know of it.

        Args:
            key: Its key.
            partition: The partition that was named; None when none was.
            expected_end: See `Topic.append`.
            expected_version: Likewise.
        """
        indexed = self._key_index
        if (
            indexed
            and key is not None
            and partition is expected_end is None
            and type(expected_version) is int
            and expected_version >= 0
        ):  # the most frequent condition, at a third of the cost of looking for others
            return Demands(keys=(key,), expected_versions=(expected_version,))
        check_expectations(
            self.name,
            self._count,
            key_index=indexed,
            key=key,
            partition=partition,
            expected_end=expected_end,
            expected_version=expected_version,
        )
        keys = (key,) if indexed and key is not None else None
        versions = None if expected_version is None else (expected_version,)
        return Demands(keys=keys, expected_end=expected_end, expected_versions=versions)

    def _refresh(self, now_ns: int) -> None:
        """Look at the topic again, once a second."""
        state = self._find(self.name)
        if self._state is None or self._state.id != state.id:
            self._writers = {}
        self._state = state
        self._count = state.partitions
        self._limit = state.config.max_message_bytes
        self._log_append_time = state.config.message_timestamp_type == "LogAppendTime"
        self._key_index = state.config.key_index
        self._wants_keys = state.config.compacts
        self._raw = self.key_serde is None and self.value_serde is None
        self._expires_ns = now_ns + _METADATA_NS
        for number in self._writers:
            self._partitions.writer(state, number)  # tells it the topic's latest settings

    def _writer(self, partition: int, now_ns: int) -> PartitionWriter:
        """The writer of a partition that was not written yet, or was added since the topic was looked at."""
        self._topics.forget(self.name)
        self._refresh(now_ns)
        assert self._state is not None
        writer = self._writers[partition] = self._partitions.writer(self._state, partition)
        return writer

    def _forget(self) -> None:
        """Look at the topic again, and whether it is the same, at the next `append`."""
        self._topics.forget(self.name)
        self._state = None
        self._expires_ns = 0

    def _place(self, key: bytes | None) -> int:
        """The partition of a key; those without one go round."""
        if key is None:
            self._sticky = (self._sticky + 1) % self._count
            return self._sticky
        return xxhash_partition(key, self._count)

    def _check_size(self, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        size = len(value or b"") + len(key or b"")
        size += sum(len(name.encode()) + len(content) for name, content in headers)
        if size > self._limit:
            raise RecordTooLargeError(
                f"a record of {size} bytes exceeds max_message_bytes={self._limit} of topic {self.name!r}: raise it, "
                f"or store less",
                size=size,
                limit=self._limit,
            )

    def read(
        self,
        *,
        partition: int | None = None,
        start: int | datetime | None = None,
        stop: int | datetime | None = None,
    ) -> Iterator[Record[K, V]]:
        """See `Topic.read`."""
        if partition is None and (type(start) is int or type(stop) is int):
            raise ConfigError("an offset needs its partition: pass partition=, or aware datetimes")
        state = self._find(self.name)
        numbers = range(state.partitions) if partition is None else (partition,)
        bounds = []
        for number in numbers:
            reader = self._partitions.reader(state, number)
            try:
                first, end = reader.offsets()
                begin = _bound(reader, start, first, end)
                if not first <= begin <= end:
                    raise OffsetOutOfRangeError(
                        f"offset {start!r} lies outside {first} to {end} in partition {number} of topic {self.name!r}",
                        topic=self.name,
                        partition=number,
                        offset=begin,
                    )
                bounds.append((number, begin, min(end, _bound(reader, stop, end, end))))
            finally:
                reader.close()
        return self._replay(state, bounds)

    def _replay(self, state: TopicState, bounds: list[tuple[int, int, int]]) -> Iterator[Record[K, V]]:
        for number, begin, end in bounds:
            reader = self._partitions.reader(state, number)
            try:
                tp = TopicPartition(self.name, number)
                position = Position(tp, state.id, reader, self.key_serde, self.value_serde)
                position.seek(begin)
                while position.offset < end:
                    found: Records[K, V] = Records(position.take(min(_READ_RECORDS, end - position.offset)))
                    if not found:
                        if reader.deleted() or not reader.exists():
                            raise UnknownTopicError(f"topic {self.name!r} was deleted", topic=self.name)
                        break
                    for record in found:
                        if record.offset >= end:
                            break
                        yield record
            finally:
                reader.close()

    def read_key(self, key: K) -> Iterator[Record[K, V]]:
        """See `Topic.read_key`."""
        state = self._find(self.name)
        if not state.config.key_index:
            raise not_indexed(self.name, "read_key")
        if key is None:
            raise ConfigError("read_key finds the records with a key: pass the key")
        raw: Any = dumps_with(self.key_serde, self.name, (), key, "key")
        partition = xxhash_partition(raw, state.partitions) if state.partitions > 1 else 0
        reader = self._partitions.key_reader(state, partition)
        return key_history(TopicPartition(self.name, partition), reader, raw, self.key_serde, self.value_serde)

    def beginning_offsets(self) -> dict[int, int]:
        """See `Topic.beginning_offsets`."""
        return {number: bounds[0] for number, bounds in self._bounds().items()}

    def end_offsets(self) -> dict[int, int]:
        """See `Topic.end_offsets`."""
        return {number: bounds[1] for number, bounds in self._bounds().items()}

    def _bounds(self) -> dict[int, tuple[int, int]]:
        state = self._find(self.name)
        bounds = {}
        for number in range(state.partitions):
            reader = self._partitions.reader(state, number)
            try:
                bounds[number] = reader.offsets()
            finally:
                reader.close()
        return bounds

    def durable_offsets(self) -> dict[int, int]:
        """See `Topic.durable_offsets`."""
        state = self._find(self.name)
        offsets = {}
        for number in range(state.partitions):
            reader = self._partitions.reader(state, number)
            try:
                offsets[number] = reader.durable_offset()
            finally:
                reader.close()
        return offsets

    def alter(self, **config: Unpack[TopicOptions]) -> None:
        """See `Topic.alter`."""
        self._find(self.name)
        self._topics.alter(self.name, dict(config))
        self._expires_ns = 0

    def add_partitions(self, total: int) -> None:
        """See `Topic.add_partitions`."""
        self._find(self.name)
        self._topics.add_partitions(self.name, total)
        self._expires_ns = 0


def _bound(reader: PartitionReader, when: int | datetime | None, default: int, end: int) -> int:
    """The offset that a `start` or `stop` means."""
    if when is None:
        return default
    if type(when) is int:
        return when
    if not isinstance(when, datetime):
        raise ConfigError(f"start and stop are offsets or aware datetimes, not {when!r}")
    found = reader.offset_at(to_timestamp_ms(when))
    return end if found is None else found
