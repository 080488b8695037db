"""How exporters name metrics: in base units, with the unit in the name, as Prometheus and OpenTelemetry want it.

`txn-commit-time-ns-total` of a producer, in ns, becomes `producer_txn_commit_time_seconds_total`, in seconds. Rates are
left out: whoever collects counters computes them over any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from pystreamlog.backend.metrics import DEFINITIONS, Metric

__all__ = ["Exported", "exported", "values"]

_SECONDS = {"ms": 1e-3, "ns": 1e-9, "seconds": 1.0}
_LABELS = ("client-id", "group-id", "topic", "partition")


class Exported(msgspec.Struct, frozen=True):
    """A metric of one kind of thing, told by one set of tags, as it is exported.

    Attributes:
        metric: Its name here.
        stem: Its name elsewhere, with `_` between words, without prefix and without `_total`.
        unit: `"seconds"`, `"bytes"`, `"ratio"`, or nothing.
        scale: What values are multiplied with.
        is_counter: It only grows.
        labels: The tags, with `_` for `-`.
        meaning: What it says.
    """

    metric: str
    stem: str
    unit: str
    scale: float
    is_counter: bool
    labels: tuple[str, ...]
    meaning: str


def _words(name: str) -> list[str]:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower().split("-")


def exported() -> dict[tuple[str, str, tuple[str, ...]], Exported]:
    """Everything that is exported, by group, name and tags.

    A metric that is told by several sets of tags has a name for each: of a topic's numbers and its partitions', a sum
    over all would count everything twice.
    """
    found = {}
    for definition in DEFINITIONS.values():
        if definition.kind == "rate":
            continue
        name = definition.name.removesuffix("-total").removesuffix("-ns")
        words = [word for word in _words(name) if word != definition.group]
        unit, scale = definition.unit, 1.0
        if unit in _SECONDS:
            unit, scale = "seconds", _SECONDS[unit]
        elif unit not in ("bytes", "ratio"):
            unit = ""
        words = [unit if word == unit.rstrip("s") else word for word in words]
        if unit and unit not in words:
            words.append(unit)
        for text in definition.tags:
            tags = tuple(tag for tag in _LABELS if tag in text.split())
            inner = [tag for tag in tags if tag in ("topic", "partition")]
            level = inner[-1:] if len(definition.tags) > 1 else []
            stem = "_".join([definition.group, *level, *words])
            labels = tuple(tag.replace("-", "_") for tag in tags)
            found[definition.group, definition.name, tags] = Exported(
                definition.name, stem, unit, scale, definition.kind == "counter", labels, definition.meaning
            )
    return found


_EXPORTED = exported()


def values(metrics: Iterable[Metric]) -> dict[Exported, list[tuple[tuple[str, ...], float]]]:
    """What was measured, by how it is exported: the values of its labels, and the number in base units."""
    found: dict[Exported, list[tuple[tuple[str, ...], float]]] = {}
    for metric in metrics:
        tags = tuple(tag for tag in _LABELS if tag in metric.tags)
        one = _EXPORTED.get((metric.group, metric.name, tags))
        if one is not None:
            labels = tuple(metric.tags[tag] for tag in tags)
            found.setdefault(one, []).append((labels, metric.value * one.scale))
    return found
