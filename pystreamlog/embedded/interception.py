"""Calling users' interceptors: one that raises is logged and skipped, the others and the record go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pystreamlog.backend.delivery import PendingBatch
from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.backend.records import Records
from pystreamlog.record.record import Headers, Record, RecordMetadata, TopicPartition

__all__ = ["Interceptors"]

_log = logging.getLogger("pystreamlog")


class Interceptors:
    """Some interceptors, called in their order; false when there are none."""

    __slots__ = ("_interceptors",)

    def __init__(self, interceptors: Sequence[object]) -> None:
        self._interceptors = tuple(interceptors)

    def __bool__(self) -> bool:
        return bool(self._interceptors)

    def on_send(self, topic: str, value: object, key: object, headers: Headers) -> tuple[Any, Any, Headers]:
        """Value, key and headers after each `on_send(record)`, which may return another record or None."""
        record: Record[Any, Any] = Record(topic, -1, -1, -1, key, value, headers)
        for interceptor in self._interceptors:
            record = _changed(interceptor, "on_send", record, Record)
        return record.value, record.key, record.headers

    def on_acknowledgement(self, batch: PendingBatch) -> None:
        """Each `on_acknowledgement(metadata, error)`, once per record of a batch; one of the two is None."""
        methods = [(one, method) for one in self._interceptors if (method := _method(one, "on_acknowledgement"))]
        for index in range(batch.count) if methods else ():
            metadata = None
            if batch.error is None:
                metadata = RecordMetadata(batch.topic, batch.partition, batch.offset(index), batch.timestamp_ms(index))
            for interceptor, method in methods:
                try:
                    method(metadata, batch.error)
                except Exception:  # noqa: BLE001 - whatever a user's method raises
                    _skipped(interceptor, "on_acknowledgement")

    def on_commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Each `on_commit(offsets)`."""
        for interceptor in self._interceptors:
            method = _method(interceptor, "on_commit")
            if method is not None:
                try:
                    method(dict(offsets))
                except Exception:  # noqa: BLE001 - whatever a user's method raises
                    _skipped(interceptor, "on_commit")

    def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any]:
        """The records after each `on_consume(records)`, which may return others or None."""
        for interceptor in self._interceptors:
            records = _changed(interceptor, "on_consume", records, Records)
        return records


def _method(interceptor: object, name: str) -> Callable[..., Any] | None:
    return getattr(interceptor, name, None)


def _changed(interceptor: object, name: str, what: Any, kind: type) -> Any:
    """What a method makes of a record or records; the same when it returns None, or raises."""
    method = _method(interceptor, name)
    if method is None:
        return what
    try:
        answer = method(what)
        if answer is None:
            return what
        if not isinstance(answer, kind):
            raise TypeError(f"{name} returned a {type(answer).__name__}, not a {kind.__name__} or None")
    except Exception:  # noqa: BLE001 - whatever a user's method raises
        _skipped(interceptor, name)
        return what
    return answer


def _skipped(interceptor: object, name: str) -> None:
    _log.exception("%s.%s raised and was skipped", type(interceptor).__name__, name)
