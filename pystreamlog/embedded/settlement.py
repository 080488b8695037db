"""The end of a producer's batches: they are acknowledged or fail, are counted, and whoever asked to be told is told."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from pystreamlog.embedded.accumulator import RecordBatch
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.producer_metrics import ProducerMetrics

__all__ = ["Settlement"]

_log = logging.getLogger("pystreamlog")


class Settlement:
    """Settles the batches of one producer. Safe from any thread.

    Args:
        intercept: The producer's interceptors.
        on_error: Called with the error of each batch that failed; None for nobody.
        metrics: The producer's.
        delivery_timeout: How long before its deadline a batch was begun, in seconds.

    Attributes:
        metrics: As passed.
    """

    __slots__ = ("_delivery_timeout", "_failures", "_intercept", "_on_error", "metrics")

    def __init__(
        self,
        intercept: Interceptors,
        on_error: Callable[[Exception], object] | None,
        metrics: ProducerMetrics,
        delivery_timeout: float,
    ) -> None:
        self._intercept = intercept
        self._on_error = on_error
        self._failures: deque[RecordBatch] = deque()
        self.metrics = metrics
        self._delivery_timeout = delivery_timeout

    def settle(self, batch: RecordBatch) -> None:
        """Acknowledge a batch; or fail it, if it has an error."""
        error = batch.error
        try:
            if error is None:
                encoded = batch.encoded
                assert encoded is not None
                queued = batch.deadline and batch.deadline - self._delivery_timeout
                self.metrics.sent(
                    batch.accumulator.tally, batch.count, encoded.size, encoded.plain_size, queued, batch.sent
                )
            else:
                self._failures.append(batch)
        finally:  # Ctrl-C while it is counted leaves nobody waiting
            self._settle(batch, error)
        if error is not None and self._on_error is not None:
            try:
                self._on_error(error)  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001 - the writing thread must go on
                _log.exception("on_error raised")

    def fail_quietly(self, batch: RecordBatch, error: Exception) -> None:
        """Have a batch's deliveries raise; nothing else does, as the call that ends a transaction does too."""
        batch.error = error
        self._settle(batch, error)

    def _settle(self, batch: RecordBatch, error: BaseException | None) -> None:
        try:
            if error is not None:
                self.metrics.failed(batch.accumulator.tally, batch.count)
            if self._intercept:
                self._intercept.on_acknowledgement(batch)
        finally:  # Ctrl-C in an interceptor leaves nobody waiting
            batch.release()
            batch.settle(base_offset=batch.base_offset, error=error)

    def raise_failures(self) -> None:
        """Raise what failed and nobody looked at.

        Raises:
            ExceptionGroup: Of the errors, each with a note on how many records it is about.
        """
        errors: list[Exception] = []
        while self._failures:
            batch = self._failures.popleft()
            overlooked = batch.overlooked()
            if overlooked and isinstance(batch.error, Exception):
                batch.error.add_note(
                    f"{overlooked} records for partition {batch.partition} of topic {batch.topic!r} were not written"
                )
                errors.append(batch.error)
        if errors:
            raise ExceptionGroup("records were not written, and nobody looked at their deliveries", errors)
