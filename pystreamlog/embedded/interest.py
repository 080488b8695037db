"""Which topics a consumer wants, by name or by pattern, and how it wants them deserialised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.group_change import matching
from pystreamlog.coordination.group_state import GroupTopic
from pystreamlog.coordination.names import check_text
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.wakeups import Subscription
from pystreamlog.embedded.assignment import ALL_TOPICS, Assignment, Serdes
from pystreamlog.errors import ConfigError, UnknownPartitionError, UnknownTopicError
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
        shared: A group shares the topics out: what is read is its business.

    Attributes:
        whole: Every partition of the topics is wanted.
        pattern: What the names of wanted topics match; None when they were named.
    """

    __slots__ = (
        "_assignment",
        "_default",
        "_find_topic",
        "_partitions",
        "_serdes",
        "_shared",
        "_subscription",
        "_topics",
        "pattern",
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
        *,
        shared: bool,
    ) -> None:
        self.whole = False
        self._shared = shared
        self._find_topic = find_topic
        self._topics = topics
        self._partitions = partitions
        self._assignment = assignment
        self._subscription = subscription
        self._default = serdes
        self._serdes: dict[str, Serdes] = {}
        self.pattern: re.Pattern[str] | None = None

    def in_topics(self, topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]]) -> bool:
        """Read these topics, and no others; False when there are none.

        Raises:
            UnknownTopicError: One does not exist; nothing was changed.
        """
        listed = [topics] if isinstance(topics, str | Topic) else _checked_topics(topics)
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
        check_text(compiled.pattern, "pattern")
        # Watched before they are listed, so that no topic made meanwhile is missed.
        self._subscription.watch(ALL_TOPICS, self._topics.path())
        self._become([self._topics.find(name) for name in matching(compiled, self._topics.names())], {}, compiled)

    def in_partitions(self, partitions: Iterable[TopicPartition]) -> bool:
        """Read exactly these partitions; False when there are none.

        Raises:
            UnknownTopicError, UnknownPartitionError: There is no such partition; nothing was changed.
        """
        wanted = {}
        for tp in partitions:
            topic, number = checked_partition(tp)
            wanted[TopicPartition(topic, number)] = self._existing(topic, number)
        self.end()
        self._assignment.replace(wanted, self.serdes_of)
        return bool(wanted)

    def end(self) -> None:
        """Want no topics."""
        self.whole = False
        self.pattern = None
        self._serdes = {}
        self._subscription.unwatch(ALL_TOPICS)

    def _become(self, states: list[TopicState], serdes: dict[str, Serdes], pattern: re.Pattern[str] | None) -> None:
        if pattern is None:
            self._subscription.unwatch(ALL_TOPICS)
        self.whole = True
        self.pattern = pattern
        self._serdes = serdes
        if self._shared:
            for tp, position in self._assignment.positions.items():
                position.use(*self.serdes_of(tp.topic))
            return
        self._assignment.replace(
            {TopicPartition(state.name, number): state for state in states for number in range(state.partitions)},
            self.serdes_of,
        )

    def _find(self, name: str) -> TopicState:
        """The topic as it is now: what comes to it later is read from its start."""
        self._topics.forget(name)
        return self._find_topic(name)

    def serdes_of(self, name: str) -> Serdes:
        """How a topic is deserialised."""
        return self._serdes.get(name, self._default)

    @property
    def names(self) -> tuple[str, ...]:
        """The topics that were named."""
        return tuple(self._serdes)

    def wanted(self) -> list[str]:
        """The topics that are wanted now; named ones that do not exist, too."""
        return list(self._serdes) if self.pattern is None else matching(self.pattern, self._topics.names())

    def watch_for_topics(self) -> None:
        """Have topics that come and go reported; again is harmless."""
        self._subscription.watch(ALL_TOPICS, self._topics.path())

    def differs_from(self, shared: Mapping[bytes, GroupTopic]) -> bool:
        """Whether the topics are others now than those that a group shares out, by topic id."""
        wanted = set(self.wanted())
        if not all(map(self._exists, wanted)):
            self.watch_for_topics()  # before the look that counts, so that one made meanwhile is not missed
        names = {topic.name for topic in shared.values()}
        for name in wanted | names:
            try:
                found = self._topics.find_anew(name)
            except UnknownTopicError:
                if name in names:
                    return True
                continue
            known = shared.get(found.id)
            if known is None or known.partitions != found.partitions:
                return True
        return False

    def _exists(self, name: str) -> bool:
        try:
            self._topics.find_anew(name)
        except UnknownTopicError:
            return False
        return True

    def topic_id(self, tp: TopicPartition) -> bytes:
        """The id of any partition's topic, assigned or not.

        Raises:
            UnknownTopicError, UnknownPartitionError: There is no such partition.
        """
        topic, number = checked_partition(tp)
        position = self._assignment.positions.get(tp)
        if position is not None:
            return position.topic_id
        return self._existing(topic, number).id

    def _existing(self, topic: str, number: int) -> TopicState:
        """The topic, if it has such a partition."""
        state = self._find(topic)
        if type(number) is not int or not 0 <= number < state.partitions:
            raise UnknownPartitionError(
                f"topic {topic!r} has partitions 0 to {state.partitions - 1}, not {number!r}",
                topic=topic,
                partition=number,
            )
        return state

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
            if self.pattern is not None:
                names.update(name for name in self.wanted() if not assignment.known(name))
        for name in names:
            assignment.look_at(name, self.serdes_of(name), whole=self.whole)
        gone = [name for name in self._serdes if not assignment.known(name)]
        if gone:  # a subscribed topic that was deleted may be made again
            self.watch_for_topics()
            for name in gone:
                assignment.look_at(name, self.serdes_of(name), whole=self.whole)


def checked_partition(tp: object) -> TopicPartition:
    """A partition as it was named, which may be a plain pair.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(tp, tuple) or len(tp) != 2 or not isinstance(tp[0], str):  # noqa: PLR2004 - a pair
        hint = ": unpack it, as in pause(*partitions)" if isinstance(tp, list | set | frozenset) else ""
        raise ConfigError(f"a partition is a TopicPartition(topic, partition), not {tp!r}{hint}")
    return TopicPartition(*tp)


def _checked_topics(topics: Any) -> list[Any]:
    """Topics as they were listed.

    Raises:
        ConfigError: It is a regular expression, or has a list in it.
    """
    listed = [topics] if isinstance(topics, re.Pattern) else list(topics)
    for topic in listed:
        if isinstance(topic, re.Pattern | list | tuple | set | frozenset):
            raise ConfigError(
                f"a topic is a name or a Topic, not {topic!r}; for a regular expression: subscribe(pattern=...)"
            )
    return listed
