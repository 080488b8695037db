"""The life of a consumer in its group, as a table; the documentation's diagram is drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

__all__ = ["LIFE_CYCLE", "Event", "Stage"]


class Stage(Enum):
    """How a consumer stands to its group."""

    OUTSIDE = "outside"
    RECONCILING = "reconciling"
    STABLE = "stable"
    FENCED = "fenced"
    CLOSED = "closed"


class Event(Enum):
    """What moves a consumer from one stage to the next."""

    JOINED = "joined, in a poll"
    SETTLED = "owns what it shall"
    RESHARED = "the group shared out anew"
    FENCED = "did not poll for max_poll_interval_ms"
    TOLD = "on_lost returned"
    LEFT = "unsubscribed"
    CLOSED = "closed"


LIFE_CYCLE: Mapping[tuple[Stage, Event], Stage] = {
    (Stage.OUTSIDE, Event.JOINED): Stage.RECONCILING,
    (Stage.RECONCILING, Event.SETTLED): Stage.STABLE,
    (Stage.STABLE, Event.RESHARED): Stage.RECONCILING,
    (Stage.STABLE, Event.FENCED): Stage.FENCED,
    (Stage.RECONCILING, Event.FENCED): Stage.FENCED,
    (Stage.FENCED, Event.TOLD): Stage.OUTSIDE,
    (Stage.STABLE, Event.LEFT): Stage.OUTSIDE,
    (Stage.RECONCILING, Event.LEFT): Stage.OUTSIDE,
    (Stage.FENCED, Event.LEFT): Stage.OUTSIDE,
    (Stage.STABLE, Event.CLOSED): Stage.CLOSED,
    (Stage.RECONCILING, Event.CLOSED): Stage.CLOSED,
    (Stage.FENCED, Event.CLOSED): Stage.CLOSED,
    (Stage.OUTSIDE, Event.CLOSED): Stage.CLOSED,
}
"""What follows on what; nothing else may happen."""
