"""Writing records that nobody could handle to a topic of their own, as they were stored."""

from __future__ import annotations

from typing import Any

from pystreamlog.backend.delivery import Delivery
from pystreamlog.backend.processing import dead_letter_headers
from pystreamlog.backend.producer import Producer
from pystreamlog.embedded.work import Task
from pystreamlog.errors import SerdeError

__all__ = ["DeadLetters"]


class DeadLetters:
    """Writes to one dead letter topic. Safe from any thread.

    Args:
        producer: Without serdes; it is closed with this.
        topic: The topic's name.
    """

    __slots__ = ("_producer", "_topic")

    def __init__(self, producer: Producer[Any, Any], topic: str) -> None:
        self._producer = producer
        self._topic = topic

    def send(self, task: Task, error: BaseException) -> Delivery:
        """Send a record with its raw key and value, its own headers, and those that say why.

        It keeps its timestamp, as in Kafka Streams, if it could be read.
        """
        source, record = task.source, task.record
        if isinstance(source, SerdeError):
            key, value, headers = source.key, source.value, source.headers
        else:
            assert record is not None
            (key, value), headers = source.raw(task.offset), record.headers
        return self._producer.send(
            self._topic,
            value,
            key,
            headers=(*headers, *dead_letter_headers(error, *task.part.tp, task.offset)),
            timestamp_ms=None if record is None else record.timestamp_ms,
        )

    def close(self) -> None:
        """Close the producer."""
        self._producer.close()

    async def close_async(self) -> None:
        """As `close`, without blocking the event loop."""
        await self._producer.close_async()
