"""`docs/reference/metrics.md`, made from the definitions of the metrics.

`python -m tests.docs.metrics_page`, run at the root of the repository, writes it; a test fails while it is outdated.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from pystreamlog.backend.metrics import DEFINITIONS, MetricDefinition
from pystreamlog.metrics.names import exported

__all__ = ["PAGE", "main", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"
WIDTH = 120

_HEAD = """
# Metrics

Everything that is measured. [Watch a log](../how-to/watch-a-log.md) shows how to get at it. Names are Kafka's, where
Kafka has such a metric.

- `...-total` only grows, from 0 when the client was made; `log.metrics()` has the sums of all clients that the open log
  has made, of those that are gone too.
- `...-rate`, `...-avg` and `...-max` look back over two samples of 30 s, as in Kafka (`metrics.num.samples`,
  `metrics.sample.window.ms`): over the last 30 to 60 s, and a rate over 30 s at least. An average of nothing is 0,
  where Kafka says NaN. Averages are over all batches or calls of the window.
- What is told *by* topic or partition stands in `metrics(by="topic")` and `metrics(by="partition")`, for an hour after
  it was last used.
- Times are in the unit that Kafka has for them. Exporters turn ms and ns into seconds, and leave rates out.

The columns: the name, the unit, what it is told by, what it says, and its names for Prometheus, without the prefix
`pystreamlog_`; OpenTelemetry has the same with dots: `pystreamlog.producer.record_send`.
"""

_SECTIONS = {
    "producer": (
        "Producers",
        "`Producer.metrics()`: of one producer, since it was made. A batch is counted when it is settled.",
    ),
    "consumer": ("Consumers", "`Consumer.metrics()`: of one consumer. Lags are looked up when they are asked for."),
    "log": (
        "Logs",
        (
            '`log.metrics(by="topic")` and `log.metrics(by="partition")`: what lies in the directory, whoever wrote '
            "it. Looked up when it is asked for, in some 0.1 ms for each partition."
        ),
    ),
    "group": (
        "Groups",
        (
            '`log.metrics(by="group")`: what every consumer group has committed, and how far that is from the end. '
            "Looked up when it is asked for, in some 0.1 ms for each committed offset."
        ),
    ),
}

_TAIL = """
## What is not measured

- `Topic.append` is no producer: its records count in `LogEndOffset` alone. So do those that other processes send.
- There is no `record-size-max`: nothing is measured for each record. `record-retry-total` and what else Kafka measures
  of its network has no meaning here: a record is written, or its delivery fails.
- `records-lag-avg`, and `records-lag-max` of a partition, are left to whoever collects `records-lag`.
"""


def _told_by(definition: MetricDefinition) -> str:
    return ", ".join(" and ".join(tags.split()) for tags in definition.tags if tags)


def _names(definition: MetricDefinition) -> str:
    names = [
        one.stem + "_total" * one.is_counter
        for (group, name, _), one in exported().items()
        if (group, name) == (definition.group, definition.name)
    ]
    return ", ".join(f"`{name}`" for name in names)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _section(group: str) -> Iterator[str]:
    title, opening = _SECTIONS[group]
    rows = ["| name | unit | by | meaning | exported |", "|---|---|---|---|---|"]
    for definition in DEFINITIONS.values():
        if definition.group == group:
            cells = (
                f"`{definition.name}`",
                definition.unit,
                _told_by(definition),
                definition.meaning,
                _names(definition),
            )
            rows.append("| " + " | ".join(cells) + " |")
    yield f"## {title}"
    yield _wrapped(opening)
    yield "\n".join(rows).replace("|  |", "| |").replace("|  |", "| |")


def page() -> str:
    """The whole page."""
    blocks = [block for group in _SECTIONS for block in _section(group)]
    return "\n\n".join([_HEAD.strip("\n"), *blocks, _TAIL.strip("\n")]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
