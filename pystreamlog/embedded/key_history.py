"""One key's records, deserialised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pystreamlog.coordination.key_reader import KeyReader
from pystreamlog.errors import SerdeError, UnknownTopicError
from pystreamlog.record.record import Record, TopicPartition
from pystreamlog.record.serde import Serde, loads_with
from pystreamlog.record.single import SingleRecord

__all__ = ["key_history"]

K = TypeVar("K")
V = TypeVar("V")


def key_history(
    tp: TopicPartition, reader: KeyReader, key: bytes, key_serde: Serde[K] | None, value_serde: Serde[V] | None
) -> Iterator[Record[K, V]]:
    """The records with a key, oldest first, up to the end at the call; closes the reader.

    Args:
        tp: The key's partition.
        reader: Reads it.
        key: The key as it is stored.
        key_serde: For keys.
        value_serde: For values.
    """
    try:
        found = reader.history(key)
        if reader.deleted() or not reader.exists():
            found = _gone(tp, reader)
    except BaseException:
        reader.close()
        raise
    return _records(tp, reader, found, key_serde, value_serde)


def _gone(tp: TopicPartition, reader: KeyReader) -> Iterator[SingleRecord]:
    """No records of a partition that was not made yet.

    Raises:
        UnknownTopicError: It was deleted.
    """
    if reader.deleted():
        raise UnknownTopicError(f"topic {tp.topic!r} was deleted", topic=tp.topic)
    return iter(())


def _records(
    tp: TopicPartition,
    reader: KeyReader,
    found: Iterator[SingleRecord],
    key_serde: Serde[K] | None,
    value_serde: Serde[V] | None,
) -> Iterator[Record[K, V]]:
    try:
        for single in found:
            key, value = _load(tp, single, key_serde, "key"), _load(tp, single, value_serde, "value")
            yield Record(*tp, single.offset, single.timestamp_ms, key, value, single.headers)
    finally:
        reader.close()


def _load(tp: TopicPartition, single: SingleRecord, serde: Serde[Any] | None, what: str) -> Any:
    """The deserialised key or value of a record.

    Raises:
        SerdeError: It does not deserialise; the error has the record.
    """
    data = single.key if what == "key" else single.value
    if serde is None or data is None:
        return data
    try:
        return loads_with(serde, tp.topic, single.headers, data, what)
    except SerdeError as error:
        raise SerdeError(
            f"{error}; it is the record at offset {single.offset} of partition {tp.partition}",
            topic=tp.topic,
            partition=tp.partition,
            offset=single.offset,
            key=single.key,
            value=single.value,
            headers=single.headers,
        ) from error.__cause__
