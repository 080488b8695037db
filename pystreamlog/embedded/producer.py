"""The producer of the embedded log: what it sends is `sending`'s, what belongs together `transactional`'s."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from pystreamlog.backend.metrics import By, checked_by
from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.producer_metrics import ProducerMetrics
from pystreamlog.embedded.sending import SendingProducer
from pystreamlog.embedded.transactional import TransactionContext

__all__ = ["EmbeddedProducer"]

_log = logging.getLogger("pystreamlog")

K = TypeVar("K")
V = TypeVar("V")


class EmbeddedProducer(SendingProducer[K, V]):
    """Sends records to the topics of a directory.

    Args:
        find_topic: Finds, or makes, a topic by name.
        partitions: The log's partitions.
        config: The producer's settings.
        lent: What the log lends it for transactions.
        metrics: What it counts.
        client_id: Its name among the log's clients.
        forget: Called when it is closed.
    """

    __slots__ = ("__weakref__", "_client_id", "_forget")

    def __init__(
        self,
        find_topic: Callable[[str], TopicState],
        partitions: Partitions,
        config: ProducerConfig,
        lent: TransactionContext,
        metrics: ProducerMetrics,
        client_id: str,
        forget: Callable[[EmbeddedProducer[Any, Any]], None],
    ) -> None:
        super().__init__(find_topic, partitions, config, lent, metrics)
        self._client_id = client_id
        self._forget = forget
        closing_at_exit(self)

    # --- waiting

    def flush(self, timeout: float | None = None) -> None:
        """See `Producer.flush`."""
        self._plain_buffer.check_open()
        started = self._metrics.now()
        try:
            self._plain_buffer.flush(timeout)
        finally:
            self._metrics.spend("flush-time-ns-total", started)

    async def flush_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the twin of `flush`
        """See `Producer.flush_async`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        await asyncio.get_running_loop().run_in_executor(None, self.flush, timeout)

    async def drain(self) -> None:
        """See `Producer.drain`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        buffer = self._plain_buffer  # what a transaction keeps waits for its commit
        while buffer.buffered > self._config.buffer_memory // 2:
            await asyncio.get_running_loop().run_in_executor(None, buffer.write_quietly)

    @property
    def client_id(self) -> str:
        """See `Producer.client_id`."""
        return self._client_id

    def metrics(self, by: By | None = None) -> Any:
        """See `Producer.metrics`."""
        if checked_by(by) == "topic":
            return self._metrics.by_topic()
        if by == "partition":
            return self._metrics.by_partition()
        total = self._config.buffer_memory
        return {
            **self._metrics.of_client(),
            "buffer-total-bytes": total,
            "buffer-available-bytes": max(0, total - self._plain_buffer.buffered),
        }

    # --- life

    def close(self) -> None:
        """Write everything that was sent, and end; again is harmless.

        Raises:
            ExceptionGroup: Records failed, and nobody looked at their deliveries.
        """
        buffer = self._plain_buffer
        if not buffer.shut("the producer was closed: make another"):
            return
        self._routes = self._plain_routes = {}
        try:
            if self._transaction is not None:
                self._abort(self._transaction, None)
            buffer.flush(None)
        finally:
            buffer.end()
            if self._identity is not None:
                self._identity.close()
            self._forget(self)

    def close_at_exit(self) -> None:
        """See `Owned.close_at_exit`."""
        try:
            self.close()
        except Exception:  # noqa: BLE001 - nobody is left to raise to
            _log.exception("records were lost at exit")

    def disown(self) -> None:
        """See `Owned.disown`."""
        self._routes = self._plain_routes = {}
        self._transaction = None
        for buffer in {self._buffer, self._plain_buffer}:
            buffer.disown("the producer belongs to the process that this one was forked from: make another")
        self._buffer = self._plain_buffer
