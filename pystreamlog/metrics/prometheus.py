"""An open log's metrics for Prometheus, through `prometheus_client` (the extra `metrics`)."""

from __future__ import annotations

from collections.abc import Iterable

from pystreamlog.backend.log import StreamLog
from pystreamlog.errors import ConfigError
from pystreamlog.metrics.names import Exported, exported, values

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise ConfigError(
        "pystreamlog.metrics.prometheus needs prometheus-client: pip install 'pystreamlog[metrics]'"
    ) from missing

__all__ = ["LogCollector"]

_PREFIX = "pystreamlog_"


class LogCollector(Collector):
    """Collects an open log's metrics at each scrape: register it, as in `REGISTRY.register(LogCollector(log))`.

    Once the log is closed there is nothing to collect. Two logs need two registries, or two processes: their numbers
    would have the same names.

    Args:
        log: The log.
        logs: Also look at the sizes and offsets of all topics.
        groups: Also look at the lag of all consumer groups.
        partitions: Tell by partition what can be told so; else by topic at most. With 10,000 partitions a scrape has
            some 200,000 lines.
    """

    def __init__(self, log: StreamLog, *, logs: bool = True, groups: bool = True, partitions: bool = True) -> None:
        self._log = log
        self._logs = logs
        self._groups = groups
        self._partitions = partitions

    def describe(self) -> Iterable[Metric]:
        """What there is to collect, without collecting it."""
        return [_family(one) for one in exported().values()]

    def collect(self) -> Iterable[Metric]:
        """What is measured now."""
        measured = self._log.collect_metrics(logs=self._logs, groups=self._groups, partitions=self._partitions)
        families = []
        for one, rows in values(measured).items():
            family = _family(one)
            for labels, value in rows:
                family.add_metric(labels, value)
            families.append(family)
        return families


def _family(one: Exported) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if one.is_counter else GaugeMetricFamily
    return kind(_PREFIX + one.stem, f"{one.meaning} ({one.metric})", labels=one.labels)
