"""Where a command begins to read: what `--offset`, `--timestamp` and `--from-beginning` say."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import attrs

from pystreamlog.backend.consumer import Consumer
from pystreamlog.clock import to_timestamp_ms
from pystreamlog.errors import ConfigError
from pystreamlog.record.record import TopicPartition

__all__ = ["Start", "parse_start", "parse_time"]


@attrs.frozen
class Start:
    """Where to begin in each partition.

    Attributes:
        place: `"earliest"`, `"latest"`, an offset, or so many records before the end if it is negative.
        timestamp_ms: Begin with the first record that is not older, in ms; None where `place` says it.
    """

    place: str | int
    timestamp_ms: int | None = None

    @property
    def reset(self) -> str | None:
        """The `auto_offset_reset` that says the same; None where none does."""
        return self.place if isinstance(self.place, str) and self.timestamp_ms is None else None

    def offsets(
        self, consumer: Consumer[Any, Any], partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """The first offset to read of each partition.

        Raises:
            ConfigError: The offset lies outside of what there is.
        """
        firsts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        if self.timestamp_ms is not None:
            found = consumer.offsets_for_times(dict.fromkeys(partitions, self.timestamp_ms))
            return {tp: ends[tp] if offset is None else offset for tp, offset in found.items()}
        if self.place == "earliest":
            return firsts
        if self.place == "latest":
            return ends
        assert isinstance(self.place, int)
        if self.place < 0:
            return {tp: max(firsts[tp], ends[tp] + self.place) for tp in partitions}
        for tp in partitions:
            if not firsts[tp] <= self.place <= ends[tp]:
                raise ConfigError(
                    f"offset {self.place} of partition {tp.partition} is not there: it has {firsts[tp]} to "
                    f"{ends[tp] - 1}, and {ends[tp]} will be the next"
                    if firsts[tp] < ends[tp]
                    else f"offset {self.place} of partition {tp.partition} is not there: it is empty, and {ends[tp]} "
                    "will be the next"
                )
        return dict.fromkeys(partitions, self.place)


def parse_start(
    offset: str | None, timestamp: str | None, *, from_beginning: bool, partition: int | None, default: str
) -> Start:
    """What the options say; at most one of them may say something.

    Raises:
        ConfigError: More than one does, or one makes no sense.
    """
    given = [name for name, said in (("--offset", offset), ("--timestamp", timestamp)) if said is not None]
    given += ["--from-beginning"] * from_beginning
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: each says where to begin")
    if timestamp is not None:
        return Start(0, parse_time(timestamp))
    if from_beginning:
        return Start("earliest")
    if offset is None or offset in ("earliest", "latest"):
        return Start(offset or default)
    try:
        place = int(offset)
    except ValueError:
        raise ConfigError(
            f"--offset is a number, earliest or latest, not {offset!r}; -10 begins ten records before the end"
        ) from None
    if place >= 0 and partition is None:
        raise ConfigError("--offset with a number needs --partition: each partition has offsets of its own")
    return Start(place)


def parse_time(text: str) -> int:
    """A time as milliseconds since 1970: a whole number is that already, else it is ISO 8601, in UTC without a zone.

    Raises:
        ConfigError: It is neither, or outside of 1970 to 9999.
    """
    try:
        when: datetime | int = int(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(
                f"{text!r} is no time: write 2026-03-01T12:00:00 (UTC, unless it names a zone), or milliseconds since "
                "1970"
            ) from None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
    return to_timestamp_ms(when)
