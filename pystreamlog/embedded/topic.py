"""A topic of the embedded log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import attrs

from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic
from pystreamlog.clock import SYSTEM, to_timestamp_ms
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import ConfigError, OffsetOutOfRangeError, RecordTooLargeError
from pystreamlog.record.batch import encode
from pystreamlog.record.partitioner import xxhash_partition
from pystreamlog.record.record import Headers, Record, RecordMetadata, TopicPartition
from pystreamlog.record.serde import Serde, dumps_with

__all__ = ["EmbeddedTopic"]

K = TypeVar("K")
V = TypeVar("V")

_LOCK_TIMEOUT = 60.0
_READ_RECORDS = 10_000


class EmbeddedTopic(Topic[K, V]):
    """A topic of a directory."""

    __slots__ = ("_partitions", "_sticky", "_topics")

    def __init__(
        self,
        name: str,
        topics: Topics,
        partitions: Partitions,
        key_serde: Serde[K] | None = None,
        value_serde: Serde[V] | None = None,
    ) -> None:
        super().__init__(name, key_serde, value_serde)
        self._topics = topics
        self._partitions = partitions
        self._sticky = 0

    @property
    def partitions(self) -> int:
        """See `Topic.partitions`."""
        return self._topics.find(self.name).partitions

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Topic.config`."""
        return attrs.asdict(self._topics.find(self.name).config)

    def append(
        self,
        value: V | None,
        key: K | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        durability: str | None = None,
    ) -> RecordMetadata:
        """See `Topic.append`."""
        state = self._topics.find(self.name)
        raw_value: Any = value
        raw_key: Any = key
        pairs: Headers = tuple(headers)  # type: ignore[arg-type]
        if pairs:
            from pystreamlog.embedded.producer import checked_headers  # noqa: PLC0415

            pairs = checked_headers(headers)
        if raw_value is not None and (self.value_serde is not None or type(raw_value) is not bytes):
            raw_value = dumps_with(self.value_serde, self.name, pairs, raw_value, "value")
        if raw_key is not None and (self.key_serde is not None or type(raw_key) is not bytes):
            raw_key = dumps_with(self.key_serde, self.name, pairs, raw_key, "key")
        size = len(raw_value or b"") + len(raw_key or b"")
        if pairs:
            size += sum(len(name.encode()) + len(content) for name, content in pairs)
        config = state.config
        if size > config.max_message_bytes:
            raise RecordTooLargeError(
                f"a record of {size} bytes exceeds max_message_bytes={config.max_message_bytes} of topic "
                f"{self.name!r}: raise it, or store less",
                size=size,
                limit=config.max_message_bytes,
            )
        if durability not in (None, "os", "fsync"):
            raise ConfigError(f"durability is 'os' or 'fsync', not {durability!r}")
        if partition is None:
            if raw_key is None:
                partition = self._sticky = (self._sticky + 1) % state.partitions
            else:
                partition = 0 if state.partitions == 1 else xxhash_partition(raw_key, state.partitions)
        stamp = SYSTEM.now_ms() if timestamp_ms is None else to_timestamp_ms(timestamp_ms)
        writer = self._partitions.writer(state, partition)
        batch = encode(
            (raw_value,),
            None if raw_key is None else (raw_key,),
            stamp,
            (pairs,) if pairs else None,
            log_append_time=config.message_timestamp_type == "LogAppendTime",
        )
        appended = writer.append(batch, _LOCK_TIMEOUT)
        if appended.rolled:
            self._partitions.sync_later(writer, appended.base_offset)
        if durability == "fsync":
            writer.sync(appended.base_offset + 1)
        if appended.timestamp_ms >= 0:
            stamp = appended.timestamp_ms
        return RecordMetadata(self.name, partition, appended.base_offset, stamp)

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
        state = self._topics.find(self.name)
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

    def _replay(self, state: Any, bounds: list[tuple[int, int, int]]) -> Iterator[Record[K, V]]:
        for number, begin, end in bounds:
            reader = self._partitions.reader(state, number)
            try:
                tp = TopicPartition(self.name, number)
                position = Position(tp, state.id, reader, self.key_serde, self.value_serde)
                position.seek(begin)
                while position.offset < end:
                    found: Records[K, V] = Records(position.take(min(_READ_RECORDS, end - position.offset)))
                    if not found:
                        break
                    for record in found:
                        if record.offset >= end:
                            break
                        yield record
            finally:
                reader.close()

    def beginning_offsets(self) -> dict[int, int]:
        """See `Topic.beginning_offsets`."""
        return {number: bounds[0] for number, bounds in self._bounds().items()}

    def end_offsets(self) -> dict[int, int]:
        """See `Topic.end_offsets`."""
        return {number: bounds[1] for number, bounds in self._bounds().items()}

    def _bounds(self) -> dict[int, tuple[int, int]]:
        state = self._topics.find(self.name)
        bounds = {}
        for number in range(state.partitions):
            reader = self._partitions.reader(state, number)
            try:
                bounds[number] = reader.offsets()
            finally:
                reader.close()
        return bounds

    def alter(self, **config: Any) -> None:
        """See `Topic.alter`."""
        self._topics.alter(self.name, config)

    def add_partitions(self, total: int) -> None:
        """See `Topic.add_partitions`."""
        self._topics.add_partitions(self.name, total)


def _bound(reader: Any, when: int | datetime | None, default: int, end: int) -> int:
    """The offset that a `start` or `stop` means."""
    if when is None:
        return default
    if isinstance(when, datetime):
        found: int | None = reader.offset_at(to_timestamp_ms(when))
        return end if found is None else found
    return when
