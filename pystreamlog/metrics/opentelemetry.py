"""An open log's metrics for OpenTelemetry, through `opentelemetry-api` (the extra `metrics`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import monotonic
from weakref import ref

from pystreamlog.backend.log import StreamLog
from pystreamlog.errors import ConfigError
from pystreamlog.metrics.names import Exported, exported, values

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ImportError as missing:
    raise ConfigError(
        "pystreamlog.metrics.opentelemetry needs opentelemetry-api: pip install 'pystreamlog[metrics]'"
    ) from missing

__all__ = ["instrument"]

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1", "": "1"}
_FRESH_SECONDS = 0.5
"""The callbacks of one collection follow each other closely; what the first one saw is good for all."""


def instrument(
    log: StreamLog,
    meter_provider: MeterProvider | None = None,
    *,
    logs: bool = True,
    groups: bool = True,
    partitions: bool = True,
) -> None:
    """Have an open log observed at each collection, by instruments named `pystreamlog.producer.request_latency_avg...`.

    The log is held weakly. Once it is closed, nothing is observed any more. A meter provider takes one log: the
    instruments of two would have the same names.

    Args:
        log: The log.
        meter_provider: Where the instruments are made; None for the program's.
        logs: Also look at the sizes and offsets of all topics.
        groups: Also look at the lag of all consumer groups.
        partitions: Tell by partition what can be told so; else by topic at most.
    """
    meter = (meter_provider or get_meter_provider()).get_meter("pystreamlog")
    look = _Look(log, logs=logs, groups=groups, partitions=partitions)
    for one in exported().values():
        make = meter.create_observable_counter if one.is_counter else meter.create_observable_gauge
        name = "pystreamlog." + one.stem.replace("_", ".", 1)
        make(name, callbacks=[_observing(look, one)], unit=_UNITS[one.unit], description=one.meaning)


def _observing(look: _Look, one: Exported) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, dict(zip(one.labels, labels, strict=True))) for labels, value in look.values(one)]

    return observe


class _Look:
    """One look at the log, shared by the callbacks of a collection. Safe from any thread."""

    def __init__(self, log: StreamLog, *, logs: bool, groups: bool, partitions: bool) -> None:
        self._log = ref(log)
        self._logs = logs
        self._groups = groups
        self._partitions = partitions
        self._lock = threading.Lock()
        self._values: dict[Exported, list[tuple[tuple[str, ...], float]]] = {}
        self._looked_at = -_FRESH_SECONDS
        self._told: set[Exported] = set()

    def values(self, one: Exported) -> list[tuple[tuple[str, ...], float]]:
        """The numbers of one metric, which nobody was told since the last look; else there is another look."""
        with self._lock:
            now = monotonic()
            if one in self._told or now - self._looked_at > _FRESH_SECONDS:
                log = self._log()
                measured = (
                    []
                    if log is None
                    else log.collect_metrics(logs=self._logs, groups=self._groups, partitions=self._partitions)
                )
                self._values, self._told = values(measured), set()
                self._looked_at = monotonic()
            self._told.add(one)
            return self._values.get(one, [])
