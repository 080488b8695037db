"""What goes on in a log: records and bytes that come into topics, and how far behind groups are, look by look.

A look asks of each partition when its `control` was written last (one `stat`, 8 us), and reads the ends of those alone
that were written since; of groups likewise. So 10,000 idle topics cost 0.15 s a look. It takes no lock, and watches
nothing in the kernel, whose watches are the application's.

What was written within the last second is read again at the next look: a file's time is too coarse to tell whether it
was written once more.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import msgspec

from pystreamlog.backend.administration import GroupState
from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.extents import Extents
from pystreamlog.clock import SYSTEM, Clock
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import CorruptLogError, UnknownGroupError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["Activity", "ActivityWatch", "GroupActivity", "TopicActivity"]

_FRESH_NS = 1_000_000_000
_TURNS = 10
"""Each topic's settings, which say how many partitions it has, are read at every tenth look."""


@attrs.frozen
class TopicActivity:
    """A topic.

    Attributes:
        topic: Its name.
        partitions: How many it has.
        end_offset: The ends of all its partitions, added up.
        records_per_second: What came in since the last look; None at the first one.
        bytes_per_second: Likewise, as the files have it.
    """

    topic: str
    partitions: int
    end_offset: int
    records_per_second: float | None
    bytes_per_second: float | None


@attrs.frozen
class GroupActivity:
    """A group.

    Attributes:
        group_id: Its id.
        state: How it stands.
        members: How many it has.
        lag: What lies between its committed offsets and the ends.
        records_per_second: By how much its committed offsets rose since the last look; None at the first one.
    """

    group_id: str
    state: GroupState
    members: int
    lag: int
    records_per_second: float | None


@attrs.frozen
class Activity:
    """One look.

    Attributes:
        time_ms: When it was, in ms since 1970.
        seconds: Since the look before; None at the first one.
        topics: Most active first.
        groups: Likewise; among idle ones, those that are furthest behind.
        failures: What could not be looked at, and why.
    """

    time_ms: int
    seconds: float | None
    topics: list[TopicActivity]
    groups: list[GroupActivity]
    failures: list[str]


class _Partition(msgspec.Struct):
    """What was seen of a partition; `segment_base` and `position` tell where its writers were."""

    changed_ns: int = -1
    end: int = 0
    segment_base: int = 0
    position: int = 0


class _Topic(msgspec.Struct):
    """What was seen of a topic."""

    state: TopicState
    partitions: list[_Partition]
    records: int = 0
    bytes: int = 0
    is_new: bool = True


class _Group(msgspec.Struct):
    """What was seen of a group."""

    changed_ns: tuple[int, ...] = ()
    state: GroupState = "Empty"
    members: int = 0
    committed: dict[TopicPartition, int] = {}
    owned: frozenset[TopicPartition] = frozenset()
    records: int = 0
    is_new: bool = True


class ActivityWatch:
    """Looks at a log, again and again. For one thread.

    Args:
        log: The open log.
        extents: Looks at its files.
        clock: Tells the time.
    """

    def __init__(self, log: StreamLog, extents: Extents, clock: Clock = SYSTEM) -> None:
        self._log = log
        self._extents = extents
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._looks = 0
        self._last: float | None = None
        self._failures: list[str] = []

    def look(self) -> Activity:
        """See what has come since the last look.

        Raises:
            StreamLogError: The log cannot be read at all.
        """
        self._failures = []
        now = self._clock.monotonic()
        seconds = None if self._last is None else max(now - self._last, 1e-3)
        self._last = now
        self._look_at_topics()
        self._look_at_groups()
        self._looks += 1
        topics = [
            TopicActivity(
                name,
                topic.state.partitions,
                sum(partition.end for partition in topic.partitions),
                None if topic.is_new or seconds is None else topic.records / seconds,
                None if topic.is_new or seconds is None else topic.bytes / seconds,
            )
            for name, topic in self._topics.items()
        ]
        groups = [
            GroupActivity(
                group_id,
                group.state,
                group.members,
                self._lag(group),
                None if group.is_new or seconds is None else group.records / seconds,
            )
            for group_id, group in self._groups.items()
        ]
        topics.sort(key=lambda each: (-(each.records_per_second or 0), -each.end_offset, each.topic))
        groups.sort(key=lambda each: (-(each.records_per_second or 0), -each.lag, each.group_id))
        for topic in self._topics.values():
            topic.is_new = False
        for group in self._groups.values():
            group.is_new = False
        return Activity(self._clock.now_ms(), seconds, topics, groups, self._failures)

    # --- topics

    def _look_at_topics(self) -> None:
        names = self._log.topics()
        for name in self._topics.keys() - set(names):
            del self._topics[name]
        fresh_ns = self._clock.now_ns() - _FRESH_NS
        changed: dict[TopicPartition, int] = {}
        for turn, name in enumerate(names):
            seen = self._topics.get(name)
            if seen is None or turn % _TURNS == self._looks % _TURNS:
                seen = self._look_at_settings(name)
                if seen is None:
                    continue
            seen.records = seen.bytes = 0
            for number, partition in enumerate(seen.partitions):
                changed_ns = self._extents.changed_ns(seen.state, number)
                if changed_ns != partition.changed_ns or changed_ns > fresh_ns:
                    changed[TopicPartition(name, number)] = changed_ns
        for place, end in self._ends(changed).items():
            self._take_in(place, changed[place], end)

    def _look_at_settings(self, name: str) -> _Topic | None:
        try:
            state = self._extents.topic(name)
        except UnknownTopicError:
            self._topics.pop(name, None)
            return None
        except CorruptLogError as error:
            self._failures.append(str(error))
            return self._topics.get(name)
        seen = self._topics.get(name)
        if seen is None or seen.state.id != state.id:
            seen = self._topics[name] = _Topic(state, [])
        seen.state = state
        seen.partitions += [_Partition() for _ in range(state.partitions - len(seen.partitions))]
        return seen

    def _ends(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The ends of partitions; one that fails is noted, and left out."""
        wanted = list(places)
        try:
            return {
                tp: found.offset for tp, found in self._log.admin.list_offsets(dict.fromkeys(wanted, "latest")).items()
            }
        except ExceptionGroup as group:
            failed = {(getattr(error, "topic", ""), getattr(error, "partition", -1)) for error in group.exceptions}
            self._failures += [str(error) for error in group.exceptions if not isinstance(error, UnknownTopicError)]
            left = [place for place in wanted if place not in failed]
            if len(left) == len(wanted):
                raise
            return self._ends(left)

    def _take_in(self, place: TopicPartition, changed_ns: int, end: int) -> None:
        topic = self._topics[place.topic]
        partition = topic.partitions[place.partition]
        try:
            slot = self._extents.published(topic.state, place.partition)
        except CorruptLogError as error:
            self._failures.append(str(error))
            return
        base, position = (0, 0) if slot is None else (slot.segment_base, slot.end_position)
        topic.records += max(0, end - partition.end)
        if base == partition.segment_base:
            topic.bytes += max(0, position - partition.position)
        else:
            rolled = self._extents.segment_sizes(topic.state, place.partition, partition.segment_base, base)
            topic.bytes += max(0, sum(rolled) - partition.position) + position
        partition.changed_ns, partition.end = changed_ns, end
        partition.segment_base, partition.position = base, position

    # --- groups

    def _look_at_groups(self) -> None:
        folders = self._extents.group_folders()
        for group_id in self._groups.keys() - set(folders.values()):
            del self._groups[group_id]
        fresh_ns = self._clock.now_ns() - _FRESH_NS
        for folder, group_id in folders.items():
            seen = self._groups.setdefault(group_id, _Group())
            seen.records = 0
            changed_ns = self._extents.group_changed_ns(folder)
            is_quiet = changed_ns == seen.changed_ns and max(changed_ns) < fresh_ns
            if is_quiet and not seen.members:  # members can die without a trace in a file
                continue
            try:
                self._look_at_group(group_id, seen)
            except ExceptionGroup as group:
                self._failures += [str(error) for error in group.exceptions if not isinstance(error, UnknownGroupError)]
                del self._groups[group_id]  # nobody knows its lag; the next look tries, and tells, again
                continue
            seen.changed_ns = changed_ns

    def _look_at_group(self, group_id: str, seen: _Group) -> None:
        admin = self._log.admin
        found = admin.describe_consumer_groups(group_id)[group_id]
        seen.state, seen.members = found.state, len(found.members)
        seen.owned = frozenset(place for member in found.members for place in member.assignment)
        # Asked about all partitions, the admin would look at all topics.
        known = None if seen.is_new or not seen.owned else seen.owned | seen.committed.keys()
        wanted = known and [place for place in known if self._is_there(place)]
        committed = admin.list_consumer_group_offsets(group_id, partitions=wanted)[group_id]
        for place, offset in committed.items():
            if place in seen.committed:
                seen.records += max(0, offset.offset - seen.committed[place])
        seen.committed = {place: offset.offset for place, offset in committed.items()}

    def _is_there(self, place: TopicPartition) -> bool:
        topic = self._topics.get(place.topic)
        return topic is not None and place.partition < len(topic.partitions)

    def _lag(self, group: _Group) -> int:
        return sum(
            max(0, self._topics[place.topic].partitions[place.partition].end - offset)
            for place, offset in group.committed.items()
            if self._is_there(place)
        )
