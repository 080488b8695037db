"""Calling users' interceptors: one that raises is logged and skipped, the others and the record go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pystreamlog.backend.delivery import PendingBatch
from pystreamlog.backend.records import Records
from pystreamlog.record.record import Headers, Record, RecordMetadata

__all__ = ["Interceptors"]

_log = logging.getLogger("pystreamlog")


class Interceptors:
    """Some interceptors, called in their order; false when there are none."""

    __slots__ = ("_interceptors",)

    def __init__(self, interceptors: Sequence[object]) -> None:
        self._interceptors = tuple(interceptors)

    def __bool__(self) -> bool:
        return bool(self._interceptors)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        results = []
        for interceptor in self._interceptors:
            method = getattr(interceptor, name, None)
            if method is not None:
                try:
                    results.append(method(*arguments))
                except Exception:  # an interceptor must not break what it watches
                    _log.exception("%s.%s raised and was skipped", type(interceptor).__name__, name)
        return results

    def on_send(self, topic: str, value: Any, key: Any, headers: Headers) -> tuple[Any, Any, Headers]:
        """Value, key and headers after each `on_send(record)`, which may return another record or None."""
        record: Record[Any, Any] = Record(topic, -1, -1, -1, key, value, headers)
        for interceptor in self._interceptors:
            for changed in Interceptors((interceptor,))._call("on_send", record):
                record = record if changed is None else changed
        return record.value, record.key, record.headers

    def on_acknowledgement(self, batch: PendingBatch) -> None:
        """Each `on_acknowledgement(metadata, error)`, once per record of a batch; one of the two is None."""
        for index in range(batch.count):
            metadata = None
            if batch.error is None:
                metadata = RecordMetadata(
                    batch.topic, batch.partition, batch.base_offset + index, batch.timestamp_ms(index)
                )
            self._call("on_acknowledgement", metadata, batch.error)

    def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any]:
        """The records after each `on_consume(records)`, which may return others or None."""
        for interceptor in self._interceptors:
            for changed in Interceptors((interceptor,))._call("on_consume", records):
                records = records if changed is None else changed
        return records
