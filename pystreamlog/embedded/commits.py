"""What of a consumer's records was handed out, what of that the application moved past, and committing it.

A record is *handed out* when `poll` or a loop returns it, and *moved past* when the application comes for more. Only
what was moved past is committed automatically, so a crash in the middle of handling a record never skips it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from time import monotonic

from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.backend.records import Records, RecordSlice
from pystreamlog.clock import Clock
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group, GroupBusyError
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.offset_layout import encoded
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.coordination.transactions import GroupOffsets
from pystreamlog.embedded.assignment import Assignment
from pystreamlog.embedded.consumer_metrics import ConsumerMetrics
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.interest import checked_partition
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import CommitFailedError, ConfigError, OffsetOutOfRangeError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["Commits", "NeedsRoomError", "Offsets", "check_bounds", "checked_offsets", "retried"]

_log = logging.getLogger("pystreamlog")

Offsets = dict[TopicPartition, OffsetAndMetadata]

_RETRY_SECONDS = 0.002


class NeedsRoomError(Exception):
    """The group has no room for that many more committed offsets yet."""

    def __init__(self, count: int) -> None:
        super().__init__(f"no room for {count} more committed offsets")
        self.count = count


class Commits:
    """The commits of one consumer of a group. One user at a time.

    Args:
        group: The group.
        assignment: What the consumer reads.
        interceptors: Told what was committed.
        clock: Dates commits.
        partitions: The log's partitions.
        metrics: The consumer's.

    Attributes:
        metrics: As passed.
        partitions: The log's.
        by_hand: What was moved past is said by `finished`, not by what is handed out (`Consumer.process`).
        member_id: The consumer's id as a member; None while it is none.
        handed: The offset behind what was handed out last, by partition, until it is moved past.
        moved: The offset behind what was moved past, by partition, until it is committed.
        lost: Partitions that went before what was handed out of them was committed: for whoever would commit that in a
            transaction.
    """

    __slots__ = (
        "_assignment",
        "_clock",
        "_group",
        "_interceptors",
        "by_hand",
        "handed",
        "lost",
        "member_id",
        "metrics",
        "moved",
        "partitions",
    )

    def __init__(
        self,
        group: Group,
        assignment: Assignment,
        interceptors: Interceptors,
        clock: Clock,
        partitions: Partitions,
        metrics: ConsumerMetrics,
    ) -> None:
        self.partitions = partitions
        self.metrics = metrics
        self.by_hand = False
        self.member_id: str | None = None
        self.handed: dict[TopicPartition, int] = {}
        self.moved: dict[TopicPartition, int] = {}
        self.lost: set[TopicPartition] = set()
        self._group = group
        self._assignment = assignment
        self._interceptors = interceptors
        self._clock = clock

    # --- what was read

    def move_on(self) -> None:
        """The application comes for more: it has moved past all that was handed out."""
        if self.handed:
            self.moved.update(self.handed)
            self.handed.clear()

    def hand_out(self, taken: Iterable[RecordSlice]) -> None:
        """These records are returned."""
        if self.by_hand:
            return
        positions = self._assignment.positions
        for part in taken:
            self.handed[part.tp] = positions[part.tp].offset

    def finished(self, tp: TopicPartition, offset: int) -> None:
        """All records of an assigned partition below `offset` are finished."""
        self.moved[tp] = offset

    def sought(self, tp: TopicPartition, offset: int) -> None:
        """The application put a position elsewhere: that is where the group shall go on."""
        self.handed.pop(tp, None)
        self.moved[tp] = offset

    def forget(self, tp: TopicPartition) -> None:
        """A partition is read no more."""
        if tp in self.handed or tp in self.moved:
            self.lost.add(tp)
        self.handed.pop(tp, None)
        self.moved.pop(tp, None)

    def forget_all(self) -> None:
        """Nothing is read any more."""
        self.lost.update(self.handed, self.moved)
        self.handed.clear()
        self.moved.clear()

    # --- committing

    def wanted(self, what: object) -> Offsets:
        """The offsets that a call of `commit` means.

        Raises:
            ConfigError: It means none.
            CommitFailedError: One of the partitions is not assigned.
            OffsetOutOfRangeError: An offset lies outside its partition.
        """
        if what is None:
            return {tp: OffsetAndMetadata(offset) for tp, offset in (self.moved | self.handed).items()}
        if isinstance(what, Record):
            offsets = {TopicPartition(what.topic, what.partition): OffsetAndMetadata(what.offset + 1)}
        elif isinstance(what, Records):
            offsets = {tp: OffsetAndMetadata(offset + 1) for tp, offset in what.last_offsets().items()}
        elif isinstance(what, Mapping):
            offsets = checked_offsets(what)
        else:
            kind = type(what).__name__
            raise ConfigError(f"commit takes a Record, Records, or offsets by TopicPartition, not a {kind}")
        positions = self._assignment.positions
        for tp in offsets:
            if tp not in positions:
                raise CommitFailedError(
                    f"partition {tp.partition} of topic {tp.topic!r} is not assigned to this consumer: it comes with a "
                    "poll(), or was given up in one since; then its new owner reads on from what was committed"
                )
        if isinstance(what, Mapping):  # what was read lies below the end
            for tp, (offset, _) in offsets.items():
                check_bounds(tp, offset, positions[tp].reader.offsets()[1])
        return offsets

    def commit(self, offsets: Offsets, timeout: float | None = LOCK_TIMEOUT) -> None:
        """Commit these offsets of assigned partitions.

        Raises:
            CommitFailedError: The consumer lost one of them.
            GroupBusyError: `timeout` is 0, and another holds the group's lock.
            LockTimeoutError: Another held it for that long.
        """
        self._commit_entries(offsets, timeout)
        self.stand(offsets)

    def stand(self, offsets: Offsets) -> None:
        """What was committed by hand stands, though it be less than what was moved past."""
        for tp in offsets:
            self.moved.pop(tp, None)

    # --- in a transaction

    def of_transaction(self, offsets: Offsets) -> GroupOffsets:
        """These offsets as a transaction commits them.

        Raises:
            CommitFailedError: Partitions went after records of them were handed out, so that another may read these.
        """
        if self.lost:
            tp = min(self.lost)
            raise CommitFailedError(
                f"partition {tp.partition} of topic {tp.topic!r} went to another consumer before the transaction "
                "committed what this one had read of it: the new owner reads that again, so the transaction is aborted"
            )
        return GroupOffsets(self._group, self.member_id, self.entries(offsets))

    def rewind(self) -> None:
        """Go back to what is committed; where nothing is, to where the consumer begins."""
        self.forget_all()
        self.lost.clear()
        for position in self._assignment.positions.values():
            start = self.start_of(position)
            if start is None:
                self._assignment.reset(position)
            else:
                self._assignment.move(position, start)

    def _commit_entries(self, offsets: Offsets, timeout: float | None) -> None:
        if offsets:
            now = self.metrics.now
            started = now()
            self._group.commit(self.member_id, self.entries(offsets), timeout)
            self.metrics.commits.add(started, now())
            self.done(offsets)

    def commit_moved(self, timeout: float | None = 0) -> bool:
        """Commit what was moved past; False when the group's lock is busy."""
        positions = self._assignment.positions
        offsets = {tp: OffsetAndMetadata(offset) for tp, offset in self.moved.items() if tp in positions}
        try:
            self._commit_entries(offsets, timeout)
        except GroupBusyError:
            return False
        except CommitFailedError as error:
            _log.warning("%s", error)
            self.moved.clear()
        return True

    def commit_restarts(self) -> None:
        """Commit the starts that `auto_offset_reset` chose, at once: a crash before the first commit loses nothing."""
        restarted, self._assignment.restarted = self._assignment.restarted, {}
        try:
            self._commit_entries({tp: OffsetAndMetadata(offset) for tp, offset in restarted.items()}, 0)
        except CommitFailedError as error:
            _log.warning("%s", error)
        except BaseException as error:
            self._assignment.restarted = {**restarted, **self._assignment.restarted}
            if not isinstance(error, GroupBusyError):
                raise

    def entries(self, offsets: Offsets) -> dict[PartitionKey, Committed]:
        """Offsets as the group stores them."""
        now_ms = self._clock.now_ms()
        entries = {}
        for tp, (offset, metadata) in offsets.items():
            position = self._assignment.positions.get(tp)
            if position is not None:
                epoch = position.reader.epoch()
                entries[position.topic_id, tp.partition] = Committed(offset, epoch, now_ms, metadata)
        return entries

    def done(self, offsets: Offsets) -> None:
        """These offsets were committed."""
        for tp, (offset, _) in offsets.items():
            # What is moved past later goes on from here; less than what was committed is never committed by itself.
            if self.moved.get(tp, offset + 1) <= offset:
                del self.moved[tp]
            if self.handed.get(tp, offset + 1) <= offset:
                del self.handed[tp]
        if self._interceptors:
            self._interceptors.on_commit(offsets)

    # --- where to start

    def fix_starts(self, topic: TopicState, before: int | None) -> None:
        """Commit where reading a topic starts, for all partitions of which nothing is committed.

        What `auto_offset_reset` says goes for the partitions that a topic has when somebody subscribes to it. One that
        is added later starts at 0, as does a topic that is made later. Where the group was away meanwhile, what lies
        above the highest committed number came later: so that this also holds after a crash in between, the former are
        committed from the highest number down, the latter from the lowest up.

        Args:
            topic: The topic as it is.
            before: How many partitions it had when the group looked last; None when nobody subscribed to it then.

        Raises:
            NeedsRoomError: The group must reserve room first, which may wait for the disk; nothing was committed.
        """
        group = self._group
        known = group.committed_numbers(topic.id)
        if before is None:
            before = max(known, default=topic.partitions - 1) + 1
            if self._assignment.reset_policy == "none":
                before = topic.partitions
        later = [number for number in range(before, topic.partitions) if number not in known]
        earlier: list[int] = []
        if self._assignment.reset_policy != "none":
            earlier = sorted(set(range(before)) - known, reverse=True)
        if group.room() < len(earlier) + len(later):
            raise NeedsRoomError(len(earlier) + len(later))
        now_ms = self._clock.now_ms()
        for number in earlier:
            reader = self.partitions.reader(topic, number)
            try:
                start = Committed(self._assignment.start(reader), reader.epoch(), now_ms)
            finally:
                reader.close()
            group.store({(topic.id, number): start})
        for number in later:
            group.store({(topic.id, number): Committed(0, 0, now_ms)})

    # --- what was committed

    def committed(self, topic_id: bytes, partition: int, reader: PartitionReader) -> OffsetAndMetadata | None:
        """What the group has committed in a partition, no further than a recovery left it."""
        found = self._group.committed(topic_id, partition)
        if found is None:
            return None
        return OffsetAndMetadata(reader.clamped(found.offset, found.epoch), found.metadata)

    def start_of(self, position: Position) -> int | None:
        """Where the group goes on in a partition; None where nothing was committed."""
        committed = self._group.committed(position.topic_id, position.tp.partition)
        if committed is None:
            return None
        offset = position.reader.clamped(committed.offset, committed.epoch)
        if offset < committed.offset:
            _log.warning(
                "group %r committed offset %d of partition %d of topic %r, which a recovery cut at %d: going on there",
                self._group.group_id,
                committed.offset,
                position.tp.partition,
                position.tp.topic,
                offset,
            )
        return offset


async def retried(call: Callable[[float], None], patience: float) -> None:
    """Make a call that needs the group's lock without blocking the event loop.

    Args:
        call: Takes the seconds to wait for the lock: 0, until the time is up.
        patience: Seconds. Then it is called in a thread, to say who holds the lock.
    """
    import asyncio  # noqa: PLC0415 - only for those who use it

    deadline = monotonic() + patience
    while monotonic() < deadline:
        try:
            return call(0)
        except GroupBusyError:
            await asyncio.sleep(_RETRY_SECONDS)
    return await asyncio.to_thread(call, _RETRY_SECONDS)


def checked_offsets(offsets: Mapping[TopicPartition, object]) -> Offsets:
    """Offsets by partition, as users pass them.

    Raises:
        ConfigError: They are something else.
    """
    return {checked_partition(tp): _checked_offset(offset) for tp, offset in offsets.items()}


def _checked_offset(value: object) -> OffsetAndMetadata:
    offset, metadata = value if isinstance(value, OffsetAndMetadata) else (value, "")
    if type(offset) is not int or not isinstance(metadata, str):
        raise ConfigError(f"an offset is an int or an OffsetAndMetadata(offset, metadata), not {value!r}")
    encoded(metadata)  # before anything is committed
    return OffsetAndMetadata(offset, metadata)


def check_bounds(tp: TopicPartition, offset: object, end: int) -> None:
    """Whether a partition that ends at `end` has, or will have next, that offset.

    Raises:
        OffsetOutOfRangeError: It has not.
    """
    if type(offset) is not int or not 0 <= offset <= end:
        raise OffsetOutOfRangeError(
            f"offset {offset!r} lies outside 0 to {end}, the end of partition {tp.partition} of topic {tp.topic!r}",
            topic=tp.topic,
            partition=tp.partition,
            offset=offset,
        )
