"""What a consumer reads: its partitions, its place in each, and which of them may have something new.

It is told what to read by the consumer's `Interest`, or by its `Membership` in a group.

A look costs what the traffic costs, and not what the number of partitions would: at first every partition is a
*candidate*; one that is found at its end is none until its `control` file changes. Where the kernel cannot tell what
changed, all are candidates each time, and topics are looked at once a second.

The order is always: watch, then look, then wait; what changes in between ends the wait.

Life of a partition here: *added* (its files may not exist yet; then the topic's folder is watched for them), read, and
*removed*: by the consumer, or when its topic was deleted and is read to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from datetime import timedelta
from time import monotonic
from typing import Any

from pystreamlog.backend.records import RecordSlice
from pystreamlog.clock import Clock
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import METADATA_MAX_AGE, Topics, TopicState
from pystreamlog.coordination.wakeups import Subscription
from pystreamlog.embedded.consumer_metrics import ConsumerMetrics
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import CorruptLogError, NoOffsetError, OffsetOutOfRangeError, UnknownTopicError
from pystreamlog.record.record import TopicPartition
from pystreamlog.record.serde import Serde

__all__ = ["ALL_TOPICS", "Assignment", "Serdes"]

_log = logging.getLogger("pystreamlog")

ALL_TOPICS = "topics"
"""Key of the watch on the folder of all topics; that of one topic's folder is `("topic", name)`."""

Serdes = tuple[Serde[Any] | None, Serde[Any] | None]
"""Of the keys and of the values of a topic."""


class Assignment:
    """The partitions of one consumer. One user at a time.

    Args:
        topics: The log's topics.
        partitions: The log's partitions.
        subscription: Watches for changes.
        clock: For `reset` by duration.
        reset: Where to start where there is no position: `auto_offset_reset`.
        metrics: The consumer's.

    Attributes:
        reset_policy: That.
        positions: The place in each partition.
        added: Partitions that came, until somebody takes note of them.
        removed: Partitions that went, likewise; those that a group takes are there before they are dropped.
        lost: Partitions that a group took without asking, likewise.
        ended: A topic was deleted and is read no more; likewise.
        shared: A group says what is read.
        awaiting: Partitions where a transaction was being committed at the last look.
        restarted: Where `reset` put positions, until somebody takes note of it.
        start_of: Tells where to start where the consumer does not say; None leaves it to `reset`.
    """

    __slots__ = (
        "_candidates",
        "_clock",
        "_looked_at",
        "_members",
        "_metrics",
        "_partitions",
        "_states",
        "_subscription",
        "_topics",
        "_unmade",
        "added",
        "awaiting",
        "ended",
        "lost",
        "positions",
        "removed",
        "reset_policy",
        "restarted",
        "shared",
        "start_of",
    )

    def __init__(
        self,
        topics: Topics,
        partitions: Partitions,
        subscription: Subscription,
        clock: Clock,
        reset: str | timedelta,
        metrics: ConsumerMetrics,
    ) -> None:
        self.positions: dict[TopicPartition, Position] = {}
        self.added: dict[TopicPartition, None] = {}
        self.removed: dict[TopicPartition, None] = {}
        self.lost: dict[TopicPartition, None] = {}
        self.ended = False
        self.shared = False
        self.awaiting: dict[TopicPartition, Position] = {}
        self.restarted: dict[TopicPartition, int] = {}
        self.start_of: Callable[[Position], int | None] = _anywhere
        self._topics = topics
        self._partitions = partitions
        self._subscription = subscription
        self._clock = clock
        self._metrics = metrics
        self.reset_policy = reset
        self._candidates: dict[TopicPartition, Position] = {}
        self._unmade: set[TopicPartition] = set()
        self._states: dict[str, TopicState] = {}
        self._members: dict[str, set[TopicPartition]] = {}
        self._looked_at = 0.0

    # --- what is read

    def replace(self, wanted: dict[TopicPartition, TopicState], serdes: Callable[[str], Serdes]) -> None:
        """Read exactly these partitions; the positions of those kept stay."""
        for tp, position in list(self.positions.items()):
            if tp not in wanted or wanted[tp].id != position.topic_id:
                self.drop(tp)
        for tp, state in wanted.items():
            kept = self.positions.get(tp)
            if kept is None:
                self.add(tp, state, serdes(tp.topic))
            else:
                kept.use(*serdes(tp.topic))

    def add(self, tp: TopicPartition, state: TopicState, serdes: Serdes, *, from_start: bool = False) -> None:
        """Read one more partition: from where `start_of` or `reset` says, or from its start.

        Raises:
            UnknownTopicError: The topic was deleted since it was found.
        """
        try:
            self._subscription.watch(("topic", tp.topic), self._topics.path(tp.topic))
        except FileNotFoundError as error:
            raise UnknownTopicError(f"topic {tp.topic!r} was deleted", topic=tp.topic) from error
        reader = self._partitions.reader(state, tp.partition)
        position = Position(tp, state.id, reader, *serdes, self._metrics.tally(tp))
        try:
            # All that may fail comes before it is there: without a start, `reset` would choose another later.
            self._watch_control(position)
            start = position.reader.offsets()[0] if from_start else self.start_of(position)
            if start is not None:
                position.seek(start)
            elif self.reset_policy not in ("earliest", "none"):
                # Fixed now: what is appended between the subscription and the first poll is read.
                self.reset(position)
        except BaseException:
            self._unmade.discard(tp)
            self.restarted.pop(tp, None)
            self._subscription.unwatch(tp)
            position.reader.close()
            raise
        self._states[tp.topic] = state
        self._members.setdefault(tp.topic, set()).add(tp)
        self.positions[tp] = position
        self._candidates[tp] = position
        self.added[tp] = None

    def drop(self, tp: TopicPartition, *, told: bool = False) -> None:
        """Read a partition no more.

        Args:
            tp: The partition.
            told: Whoever wants to know that it went was told.
        """
        position = self.positions.pop(tp)
        self._candidates.pop(tp, None)
        self._unmade.discard(tp)
        self._subscription.unwatch(tp)
        position.reader.close()
        self.restarted.pop(tp, None)
        if tp in self.added:
            del self.added[tp]  # it came and went before anybody took note
        elif not told:
            self.removed[tp] = None
        members = self._members[tp.topic]
        members.discard(tp)
        if not members:
            del self._members[tp.topic], self._states[tp.topic]
            self._subscription.unwatch(("topic", tp.topic))

    def close(self) -> None:
        """Close every reader."""
        for position in self.positions.values():
            position.reader.close()
        self.positions.clear()
        self._candidates.clear()

    def _watch_control(self, position: Position) -> None:
        """Watch a partition's control file, or note that the partition was not made yet."""
        folder = position.reader.folder
        try:
            self._subscription.watch(position.tp, folder.files.path(f"{folder.path}/control"))
        except FileNotFoundError:
            self._unmade.add(position.tp)
        else:
            self._unmade.discard(position.tp)

    # --- where it is read

    def reset(self, position: Position) -> None:
        """Put a position where `auto_offset_reset` says.

        Raises:
            NoOffsetError: It says "none".
        """
        reset = self.reset_policy
        if reset == "none":
            topic, partition = position.tp
            raise NoOffsetError(
                f"partition {partition} of topic {topic!r} has no position: seek first, or set auto_offset_reset",
                topic=topic,
                partition=partition,
            )
        position.seek(self.start(position.reader))
        self.restarted[position.tp] = position.offset

    def start(self, reader: PartitionReader) -> int:
        """The offset that `reset`, which is not "none", says for a partition."""
        start, end = reader.offsets()
        if self.reset_policy == "earliest":
            return start
        if not isinstance(self.reset_policy, timedelta):
            return end
        found = reader.offset_at(max(0, self._clock.now_ms() - self.reset_policy // timedelta(milliseconds=1)))
        return end if found is None else found

    def move(self, position: Position, offset: int) -> None:
        """Go on from `offset`, and look there."""
        position.seek(offset)
        self._candidates[position.tp] = position

    def awaken(self, position: Position) -> None:
        """Look at a partition at the next `take`."""
        self._candidates[position.tp] = position

    # --- what changed

    def note(self, changed: set[Hashable] | None) -> set[str] | None:
        """Take up what the subscription said: which partitions may have something new.

        Returns:
            The topics whose folders changed, and `ALL_TOPICS`; None when every topic is to be looked at.
        """
        if changed is None:
            self._candidates = dict(self.positions)
            now = monotonic()
            if self._subscription.polling and now - self._looked_at < METADATA_MAX_AGE:
                return set()
            self._looked_at = now
            return None
        topics = set()
        for key in changed:
            position = self.positions.get(key)  # type: ignore[call-overload]  # a key may be a partition, or not
            if position is not None:
                self._candidates[position.tp] = position
            elif key == ALL_TOPICS:
                topics.add(ALL_TOPICS)
            elif isinstance(key, tuple) and key[0] == "topic":
                topics.add(str(key[1]))
        return topics

    def known(self, name: str) -> bool:
        """Whether partitions of that topic are read."""
        return name in self._states

    def topics(self) -> list[str]:
        """The topics that are read."""
        return list(self._states)

    def look_at(self, name: str, serdes: Serdes, *, whole: bool) -> None:
        """Take up what came to a topic and give up what went: look again at its settings and its unmade partitions.

        Args:
            name: The topic.
            serdes: For partitions that came.
            whole: Read every partition of it, also those that come; else only those that are read already.
        """
        known = self._states.get(name)
        state = self._find(name)
        mine = set(self._members.get(name, ()))
        if known is not None and (state is None or state.id != known.id):
            for tp in mine:
                # What is open can be read to its end; a topic of the same name takes its place at once.
                if state is not None or not self.positions[tp].reader.exists():
                    self._end(tp)
                else:
                    self._candidates[tp] = self.positions[tp]
            mine = set()
        if state is None:
            return
        if whole:
            for number in range(state.partitions):
                tp = TopicPartition(name, number)
                if tp not in self.positions:
                    try:
                        self.add(tp, state, serdes, from_start=True)
                    except UnknownTopicError:
                        return
        self._look_at_unmade(mine)

    def look_at_unmade(self, name: str) -> None:
        """Take up which partitions of a topic were made."""
        self._look_at_unmade(self._members.get(name, set()))

    def _look_at_unmade(self, tps: set[TopicPartition]) -> None:
        for tp in self._unmade & tps:
            self._watch_control(self.positions[tp])
            self._candidates[tp] = self.positions[tp]

    def _find(self, name: str) -> TopicState | None:
        self._topics.forget(name)
        try:
            return self._topics.find(name)
        except UnknownTopicError:
            return None

    # --- taking records

    def take(self, limit: int) -> list[RecordSlice]:
        """Slices of the candidates in turn; those at their end are candidates no more.

        An error of one partition leaves what was taken of the others to be returned first, and is raised at the next
        call.
        """
        slices: list[RecordSlice] = []
        left = limit
        if self.awaiting:
            for tp, position in self.awaiting.items():
                position.reader.awaits_commit = False
                if self.positions.get(tp) is position:
                    self._candidates[tp] = position
            self.awaiting = {}
        try:
            for tp, position in list(self._candidates.items()):
                if position.paused or position.given_up:
                    continue
                found = self._take_from(position, left)
                if not found:
                    del self._candidates[tp]
                    if position.reader.awaits_commit:
                        self.awaiting[tp] = position
                    if found is None or position.reader.deleted():
                        self._end(tp)
                    continue
                slices += found
                left -= sum(map(len, found))
                # To the back of the line, so that a busy partition does not starve the others.
                del self._candidates[tp]
                self._candidates[tp] = position
                if left <= 0:
                    break
        except Exception:
            if not slices:
                raise
        except BaseException:
            self.give_back((part.tp, part.first_offset) for part in slices)
            raise
        return slices

    def _take_from(self, position: Position, limit: int) -> list[RecordSlice] | None:
        """The next records of one partition; None when its topic was deleted and its files are gone."""
        if position.offset < 0:
            # Ctrl-C may come anywhere: what the group committed is never passed over.
            if self.shared and (start := self.start_of(position)) is not None:
                position.seek(start)
            elif self.reset_policy != "none" and not position.reader.exists():
                position.seek(0)
            else:
                self.reset(position)
        try:
            return position.take(limit)
        except (OffsetOutOfRangeError, CorruptLogError) as error:
            state = self._find(position.tp.topic)
            if state is None or state.id != position.topic_id:
                return None  # its files are gone, or another topic's are in their place
            if isinstance(error, CorruptLogError) or self.reset_policy == "none":
                raise
            _log.warning("%s; going on as auto_offset_reset=%r says", error, self.reset_policy)
        self.reset(position)
        return position.take(limit)

    def give_back(self, records: Iterable[tuple[TopicPartition, int]]) -> None:
        """Put positions back to the first of these partitions and offsets, which were taken but not handed out."""
        first: dict[TopicPartition, int] = {}
        for tp, offset in records:
            first.setdefault(tp, offset)
        for tp, offset in first.items():
            position = self.positions.get(tp)
            if position is not None:
                self.move(position, offset)

    def _end(self, tp: TopicPartition) -> None:
        """A deleted topic was read to its end."""
        self.ended = True
        if self.shared:
            return  # the group takes it away
        _log.warning("topic %r was deleted: partition %d is no longer read", tp.topic, tp.partition)
        self.drop(tp)


def _anywhere(_: Position) -> int | None:
    """No start is known."""
    return None
