"""How a command line names topics, partitions, offsets and times: texts become what the admin takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import typer

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.administration import ConsumerGroupListing
from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.running import Trials
from pystreamlog.clock import MAX_TIMESTAMP_MS, SYSTEM, to_timestamp_ms
from pystreamlog.errors import ConfigError, UnknownPartitionError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = [
    "ago_ms",
    "argument_or_option",
    "check_place",
    "chosen_groups",
    "matching_topics",
    "parse_duration_ms",
    "parse_partitions",
    "parse_time_ms",
    "parse_topic",
    "partitions_of",
    "places_of",
    "readable_groups",
    "unknown_partition",
]

Given = TypeVar("Given", str, list[str])

_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_MOST_PARTITIONS = 100_000


def parse_partitions(text: str) -> list[int]:
    """Partitions, as `0`, `0,2` or `0-3`; each once, in order.

    Raises:
        ConfigError: The text is none of these.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < _MOST_PARTITIONS:
            raise ConfigError(f"{text!r} names no partitions: write 0 or 0,2 or 0-3")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def parse_topic(text: str) -> tuple[str, list[int] | None]:
    """A topic, with all its partitions or, as `orders:0,1`, some; None stands for all.

    Raises:
        ConfigError: What stands behind the colon names no partitions.
    """
    name, separator, numbers = text.partition(":")
    return name, parse_partitions(numbers) if separator else None


def argument_or_option(argument: Given | None, option: Given | None, name: str, *, example: str = "") -> Given | None:
    """What was given either as an argument or as an option.

    Args:
        argument: What stands for itself on the command line.
        option: What stands behind the option.
        name: The option.
        example: A command line that gives it, where one of both must be; empty where none need be.

    Raises:
        ConfigError: Both were given, or neither that must be.
    """
    if argument and option:
        raise ConfigError(f"{_shown(argument)} is named beside {name} {_shown(option)}: name all in one way")
    if not (argument or option) and example:
        raise ConfigError(f"nothing says which: `{example}`, or with {name}")
    return argument or option


def _shown(given: str | list[str]) -> str:
    return given if isinstance(given, str) else " ".join(given)


def places_of(admin: Admin, texts: Iterable[str]) -> list[TopicPartition]:
    """The partitions that some texts name, each as `parse_topic` takes it.

    Raises:
        ConfigError: A text is wrong.
        ExceptionGroup: Of `UnknownTopicError`.
        UnknownPartitionError: A topic has no such partition.
    """
    wanted = [parse_topic(text) for text in texts]
    counts = partitions_of(admin, [name for name, _ in wanted])
    places: dict[TopicPartition, None] = {}
    for name, numbers in wanted:
        for number in range(counts[name]) if numbers is None else numbers:
            if number >= counts[name]:
                raise unknown_partition(name, number, counts[name])
            places[TopicPartition(name, number)] = None
    return list(places)


def partitions_of(admin: Admin, topics: Iterable[str]) -> Mapping[str, int]:
    """How many partitions topics have.

    Raises:
        ExceptionGroup: Of `UnknownTopicError`.
    """
    return {name: topic.partitions for name, topic in admin.describe_topics(list(topics)).items()}


def chosen_groups(log: StreamLog, trials: Trials, *named: Iterable[str] | None, all_groups: bool) -> list[str]:
    """The groups that a command line names, each once, or all that can be read; the others are told.

    Raises:
        typer.BadParameter: It names none, or some beside all.
    """
    groups = list(dict.fromkeys(each for names in named for each in names or ()))
    if bool(groups) == all_groups:
        raise typer.BadParameter("say which groups: --group GROUP, or --all-groups")
    return [listing.group_id for listing in readable_groups(log, trials)] if all_groups else groups


def readable_groups(log: StreamLog, trials: Trials) -> list[ConsumerGroupListing]:
    """All groups; a damaged one is told, and hides none of the others."""
    found: list[ConsumerGroupListing] = []
    complete = False
    with trials.trying():
        found = log.admin.list_consumer_groups()
        complete = True
    if complete:
        return found
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - for damaged groups only

    with opened_extents(log) as extents:
        for group_id in sorted(extents.group_folders().values()) if extents else ():
            with suppress(ExceptionGroup):  # it has been told
                state = log.admin.describe_consumer_groups(group_id)[group_id].state
                found.append(ConsumerGroupListing(group_id, state))
    return found


def check_place(admin: Admin, place: TopicPartition) -> None:
    """See that there is such a partition.

    Raises:
        ExceptionGroup: Of `UnknownTopicError`.
        UnknownPartitionError: The topic has no such partition.
    """
    count = partitions_of(admin, [place.topic])[place.topic]
    if not 0 <= place.partition < count:
        raise unknown_partition(place.topic, place.partition, count)


def unknown_partition(topic: str, partition: int, count: int) -> UnknownPartitionError:
    """The error for a partition that a topic has not."""
    return UnknownPartitionError(
        f"topic {topic!r} has partitions 0 to {count - 1}, not {partition}", topic=topic, partition=partition
    )


def matching_topics(log: StreamLog, texts: Iterable[str]) -> list[str]:
    """The topics that texts name: each a topic's name, or a regular expression that names match as a whole.

    Raises:
        ConfigError: A text is no regular expression.
        UnknownTopicError: No topic matches one.
    """
    names = log.topics()
    found: dict[str, None] = {}
    for text in texts:
        if text in names:
            found[text] = None
            continue
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ConfigError(f"{text!r} is neither a topic nor a regular expression: {error}") from error
        matched = list(filter(pattern.fullmatch, names))
        if not matched:
            raise UnknownTopicError(f"no topic is called {text!r}, or matches it", topic=text)
        found.update(dict.fromkeys(matched))
    return sorted(found)


def parse_time_ms(text: str) -> int:
    """A time in ms since 1970: a number of these, or ISO 8601, as 2026-03-01T12:00:00.000+01:00; UTC without a zone.

    Raises:
        ConfigError: The text is neither, or lies outside 1970 to 9999.
    """
    if text.isascii() and text.isdigit():
        return to_timestamp_ms(int(text[:20]))
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no time: write 2026-03-01T12:00:00 (UTC), or ms since 1970") from error
    return to_timestamp_ms(when if when.tzinfo else when.replace(tzinfo=UTC))


def parse_duration_ms(text: str) -> int:
    """A length of time in ms, as Kafka's `PnDTnHnMnS`: P7D, PT1H30M, PT0.5S.

    Raises:
        ConfigError: The text is none.
    """
    found = _DURATION.fullmatch(text)
    if not found or not any(found.groups()) or text[-1] in "Tt":
        raise ConfigError(f"{text!r} is no length of time: write P7D, PT1H30M or P1DT12H")
    days, hours, minutes, seconds = found.groups("0")
    try:
        length = timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    except (OverflowError, ValueError) as error:
        raise ConfigError(f"{text!r} is longer than anything has lasted") from error
    return length // timedelta(milliseconds=1)


def ago_ms(length_ms: int) -> int:
    """The time that was so long ago, or 1970 if that is later, in ms since then."""
    return min(MAX_TIMESTAMP_MS, max(0, SYSTEM.now_ms() - length_ms))
