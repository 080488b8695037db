"""Which topics a consumer wants, by name or by pattern, and how it wants them deserialised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.wakeups import Subscription
from pystreamlog.embedded.assignment import ALL_TOPICS, Assignment, Serdes
from pystreamlog.errors import ConfigError, UnknownPartitionError
from pystreamlog.record.record import TopicPartition

__all__ = ["Interest", "checked_partition"]


class Interest:
    """The subscription of one consumer; nothing at first. One user at a time.

    Args:
        find_topic: Finds, or makes, a topic by name.
        topics: The log's topics.
        partitions: The log's partitions.
        assignment: What is read.
        subscription: Watches for changes.
        serdes: Those of topics that come without.
    """

    __slots__ = (
        "_assignment",
        "_default",
        "_find_topic",
        "_partitions",
        "_pattern",
        "_serdes",
        "_subscription",
        "_topics",
        "whole",
    )

    def __init__(
        self,
        find_topic: Callable[[str], TopicState],
        topics: Topics,
        partitions: Partitions,
        assignment: Assignment,
        subscription: Subscription,
        serdes: Serdes,
    ) -> None:
        self.whole = False
        self._find_topic = find_topic
        self._topics = topics
        self._partitions = partitions
        self._assignment = assignment
        self._subscription = subscription
        self._default = serdes
        self._serdes: dict[str, Serdes] = {}
        self._pattern: re.Pattern[str] | None = None

    def in_topics(self, topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]]) -> bool:
        """Read these topics, and no others; False when there are none.

        Raises:
            UnknownTopicError: One does not exist; nothing was changed.
        """
        listed = [topics] if isinstance(topics, str | Topic) else list(topics)
        serdes: dict[str, Serdes] = {}
        states = []
        for topic in listed:
            if isinstance(topic, Topic):
                name = topic.name
                serdes[name] = topic.key_serde or self._default[0], topic.value_serde or self._default[1]
            else:
                name = topic
                serdes[name] = self._default
            states.append(self._find(name))
        self._become(states, serdes, None)
        return bool(states)

    def in_pattern(self, pattern: str | re.Pattern[str]) -> None:
        """Read every topic whose whole name matches, and no others."""
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(f"pattern={pattern!r} is no regular expression: {error}") from error
        if not isinstance(compiled.pattern, str):
            raise ConfigError(f"pattern={pattern!r} matches bytes, but names are text: pass a str")
        # Watched before they are listed, so that no topic made meanwhile is missed.
        self._subscription.watch(ALL_TOPICS, self._topics.path())
        self._become([self._topics.find(name) for name in self._matching(compiled)], {}, compiled)

    def in_partitions(self, partitions: Iterable[TopicPartition]) -> bool:
        """Read exactly these partitions; False when there are none.

        Raises:
            UnknownTopicError, UnknownPartitionError: There is no such partition; nothing was changed.
        """
        wanted = {}
        for tp in partitions:
            topic, number = checked_partition(tp)
            state = self._find(topic)
            if type(number) is not int or not 0 <= number < state.partitions:
                raise UnknownPartitionError(
                    f"topic {topic!r} has partitions 0 to {state.partitions - 1}, not {number!r}",
                    topic=topic,
                    partition=number,
                )
            wanted[TopicPartition(topic, number)] = state
        self.end()
        self._assignment.replace(wanted, self._serdes_of)
        return bool(wanted)

    def end(self) -> None:
        """Want no topics."""
        self.whole = False
        self._pattern = None
        self._serdes = {}
        self._subscription.unwatch(ALL_TOPICS)

    def _become(self, states: list[TopicState], serdes: dict[str, Serdes], pattern: re.Pattern[str] | None) -> None:
        if pattern is None:
            self._subscription.unwatch(ALL_TOPICS)
        self.whole = True
        self._pattern = pattern
        self._serdes = serdes
        self._assignment.replace(
            {TopicPartition(state.name, number): state for state in states for number in range(state.partitions)},
            self._serdes_of,
        )

    def _find(self, name: str) -> TopicState:
        """The topic as it is now: what comes to it later is read from its start."""
        self._topics.forget(name)
        return self._find_topic(name)

    def _serdes_of(self, name: str) -> Serdes:
        return self._serdes.get(name, self._default)

    def _matching(self, pattern: re.Pattern[str]) -> list[str]:
        return [name for name in self._topics.names() if not name.startswith("__") and pattern.fullmatch(name)]

    @contextmanager
    def reader_of(self, tp: TopicPartition) -> Iterator[PartitionReader]:
        """The reader of any partition, assigned or not.

        Raises:
            UnknownTopicError, UnknownPartitionError: There is no such partition.
        """
        topic, number = checked_partition(tp)
        position = self._assignment.positions.get(tp)
        if position is not None:
            yield position.reader
            return
        reader = self._partitions.reader(self._find_topic(topic), number)
        try:
            yield reader
        finally:
            reader.close()

    def look(self, changed: set[str] | None) -> None:
        """Take up topics and partitions that came, and give up those that went.

        Args:
            changed: Topics whose folders changed, and `ALL_TOPICS`; None looks at all.
        """
        assignment = self._assignment
        names = set(assignment.topics()) if changed is None else set(filter(assignment.known, changed))
        if changed is None or ALL_TOPICS in changed:
            names.update(self._serdes)
            if self._pattern is not None:
                names.update(name for name in self._matching(self._pattern) if not assignment.known(name))
        for name in names:
            assignment.look_at(name, self._serdes_of(name), whole=self.whole)
        gone = [name for name in self._serdes if not assignment.known(name)]
        if gone:  # a subscribed topic that was deleted may be made again
            self._subscription.watch(ALL_TOPICS, self._topics.path())
            for name in gone:
                assignment.look_at(name, self._serdes_of(name), whole=self.whole)


def checked_partition(tp: object) -> TopicPartition:
    """A partition as it was named, which may be a plain pair.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(tp, tuple) or len(tp) != 2 or not isinstance(tp[0], str):  # noqa: PLR2004 - a pair
        raise ConfigError(f"a partition is a TopicPartition(topic, partition), not {tp!r}")
    return TopicPartition(*tp)
