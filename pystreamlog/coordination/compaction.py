"""Compacting and repacking the partitions of a log: which segments are written anew, and when.

The caller holds `maintenance.lock`, so there is never more than one who does it. Of a partition, in these steps:

1. `due` looks at the headers of its segments and says whether there is something to do. It remembers a no.
2. What one that died left is removed, and that is on disk: else a record that is compacted away below might still be
   read from there, behind the tombstone that deleted it.
3. Recovery is told to begin at the active segment (`replacing.settle`).
4. Which records stay is found out by reading all (`storage.survivors`). Damage is met here, when nothing was changed.
5. Groups of adjacent segments are written anew and take their places, the oldest first (`storage.rewriting`,
   `replacing.replace_segments`). So the segments without a key twice are the first ones at any time.

A tombstone stays for `delete_retention_ms` after it was compacted first: its segment's header says until when. Segments
with different times are not merged, or one of them would never come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from pystreamlog.coordination.compaction_plan import (
    SealedSegment,
    dirty_of,
    eligible_of,
    first_timestamp,
    groups_of,
    is_over,
    packed_size,
    sealed_segments,
    small_groups,
)
from pystreamlog.coordination.open_files import with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.replacing import being_rewritten, remove_left_over, replace_segments, settle
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.coordination.topics import TopicState
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.recovery import needs_recovery
from pystreamlog.storage.rewriting import Source, rewrite
from pystreamlog.storage.sealed import corrupt, sealed_batches, sealed_batches_back
from pystreamlog.storage.survivors import DEFAULT_BUDGET, Part, Survivors, find_survivors

__all__ = ["Compacted", "Compaction", "Due"]

_FOR_EVER = 1 << 62


def _go_on() -> None:
    """Do not pause."""


class Compacted(msgspec.Struct, frozen=True):
    """What was done to a partition, of the segments that were written anew.

    Attributes:
        records_before: Their records.
        records_after: Those that are left.
        bytes_before: Their files.
        bytes_after: Those that took their places.
        segments_before: How many there were.
        segments_after: How many took their places.
    """

    records_before: int = 0
    records_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    segments_before: int = 0
    segments_after: int = 0

    def plus(self, other: Compacted) -> Compacted:
        """Both."""
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Compacted(*map(sum, zip(mine, others, strict=True)))


class Due(msgspec.Struct, frozen=True):
    """What is to be done to a partition.

    Attributes:
        left_over: Something that died before.
        roll: Begin another segment first: the active one has a record that waited too long.
        compact: Keep the last record of each key.
        repack: Gather small batches.
    """

    left_over: bool = False
    roll: bool = False
    compact: bool = False
    repack: bool = False

    def __bool__(self) -> bool:
        return self.left_over or self.roll or self.compact or self.repack


class Compaction:
    """See the module.

    Args:
        partitions: The log's.
        context: What these have in common.
        budget: Bytes of memory for the keys of a pass.
        hashed: The hash of a key.
    """

    def __init__(
        self,
        partitions: Partitions,
        context: PartitionContext,
        *,
        budget: int = DEFAULT_BUDGET,
        hashed: Callable[[bytes], int] = hash,
    ) -> None:
        self._partitions = partitions
        self._context = context
        self._pause: Callable[[], None] = _go_on
        self._budget = budget
        self._hashed = hashed
        self._quiet: dict[tuple[bytes, int], tuple[Published, TopicConfig, int]] = {}

    # --- whether there is something to do

    def due(self, topic: TopicState, partition: int, *, force: bool = False) -> Due:
        """What is to be done to a partition now.

        Args:
            topic: Its topic.
            partition: Its number.
            force: Whatever `min_cleanable_dirty_ratio` says.

        Raises:
            FileNotFoundError: It went away.
            StreamLogError: It does not verify, or the disk failed.
        """
        config, key = topic.config, (topic.id, partition)
        writer = self._partitions.writer(topic, partition)
        control = with_descriptors(lambda: writer.folder.open_control(write=False))
        try:
            if needs_recovery(control, self._context.boot_id()):
                writer.ensure()
            end = control.published()
            if end is None or end.flags & (layout.FLAG_DELETED | layout.FLAG_POISONED):
                return Due()
            now_ms = self._context.clock.now_ms()
            quiet = self._quiet.get(key)
            if quiet is not None and not force and quiet[1] == config and now_ms < quiet[2]:
                same = quiet[0].segment_base == end.segment_base and quiet[0].log_start_offset == end.log_start_offset
                if same and (config.max_compaction_lag_ms < 0 or quiet[0].end_offset == end.end_offset):
                    return Due()
            found, until = self._look(writer.folder, control, end, config, now_ms, force=force)
        finally:
            control.close()
        if not found:
            self._quiet[key] = end, config, until
        return found

    def _look(
        self, folder: Folder, control: Control, end: Published, config: TopicConfig, now_ms: int, *, force: bool
    ) -> tuple[Due, int]:
        """What is to be done, and until when nothing is if nothing else happens."""
        segments, has_left_over = sealed_segments(folder, end), bool(being_rewritten(folder))
        if segments is None:
            return Due(left_over=True), 0
        until, roll, compact = _FOR_EVER, False, False
        if config.compacts:
            eligible = eligible_of(folder, control, end, segments, now_ms=now_ms, lag_ms=config.min_compaction_lag_ms)
            dirty = dirty_of(eligible)
            total = sum(each.size for each in eligible)
            size = sum(each.size for each in dirty)
            compact = bool(dirty) and (force or size >= config.min_cleanable_dirty_ratio * total)
            horizons = [each.header.delete_horizon_ms for each in eligible if each.is_clean]
            horizons = [each for each in horizons if each != layout.NO_HORIZON]
            compact |= min(horizons, default=_FOR_EVER) <= now_ms
            until = min([until, *horizons])
            if len(eligible) < len(segments):
                until = min(until, now_ms + max(1, config.min_compaction_lag_ms // 10))
            if config.max_compaction_lag_ms >= 0:
                behind = dirty_of(segments)
                base = behind[0].base if behind else end.segment_base
                oldest = first_timestamp(folder, control, end, base)
                if oldest is not None:
                    is_late = oldest + config.max_compaction_lag_ms <= now_ms
                    compact |= is_late and bool(dirty)
                    active = first_timestamp(folder, control, end, end.segment_base)
                    roll = active is not None and active + config.max_compaction_lag_ms <= now_ms
                    if not is_late:
                        until = min(until, oldest + config.max_compaction_lag_ms)
        repack = config.repack and not compact and any(packed_size(folder, control, end, each) for each in segments)
        return Due(has_left_over, roll, compact or roll, repack), until

    def forget_all_but(self, topic_ids: Collection[bytes]) -> None:
        """Forget what is remembered of other topics: they were deleted."""
        self._quiet = {key: quiet for key, quiet in self._quiet.items() if key[0] in topic_ids}

    # --- doing it

    def run(
        self,
        topic: TopicState,
        partition: int,
        due: Due,
        *,
        keep_tombstones: bool = False,
        pause: Callable[[], None] = _go_on,
    ) -> Compacted | None:
        """Do what is due; None when nothing was written anew.

        Args:
            topic: The partition's topic.
            partition: Its number.
            due: What `due` said.
            keep_tombstones: Also those that have had their time, as the clock cannot be trusted.
            pause: Called now and then while segments are read; what it raises ends the run.

        Raises:
            CorruptLogError: A segment does not verify; nothing of it was changed.
            StorageError: The disk is full or failed. Each segment is the old one or the new one.
            UnknownTopicError: The topic was deleted.
        """
        writer = self._partitions.writer(topic, partition)
        folder, self._pause = writer.folder, pause
        if due.roll:
            writer.ensure()
            with writer.locked(SETTLE_TIMEOUT) as found:
                writer.roll_locked(found)
        remove_left_over(writer)
        if not due.compact and not due.repack:
            return None
        control = with_descriptors(lambda: folder.open_control(write=False))
        try:
            end = control.published()
            if end is None or not settle(writer, end.segment_base, self._context.transactions()):
                return None
            segments = sealed_segments(folder, end)
            if segments is None:
                return None
            now_ms, config = self._context.clock.now_ms(), topic.config
            try:
                if due.compact:
                    lag_ms = config.min_compaction_lag_ms
                    eligible = eligible_of(folder, control, end, segments, now_ms=now_ms, lag_ms=lag_ms)
                    keep_tombstones |= config.key_index  # or a version would be that of an earlier record
                    return self._compact(writer, eligible, config, now_ms, keep_tombstones=keep_tombstones)
                return self._repack(writer, control, end, segments)
            except FileNotFoundError:
                return None  # deleted, or replaced by a repair: there is nothing to do, or another time
        finally:
            control.close()
            self._pause = _go_on  # what it belongs to shall not be kept alive

    def _compact(
        self,
        writer: PartitionWriter,
        segments: list[SealedSegment],
        config: TopicConfig,
        now_ms: int,
        *,
        keep_tombstones: bool,
    ) -> Compacted | None:
        dirty_from = len(segments) - len(dirty_of(segments))
        parts = [
            Part(
                each.base,
                place < dirty_from,
                drop_tombstones=not keep_tombstones and place < dirty_from and is_over(each.header, now_ms),
            )
            for place, each in enumerate(segments)
        ]
        if not parts:
            return None
        drops = {part.base for part in parts if part.drop_tombstones}
        ids = {each.base: each.header.segment_id for each in segments}

        def read(base: int, backwards: bool) -> Iterator[Batch]:  # noqa: FBT001 - as it is called for
            if backwards:
                return sealed_batches_back(writer.folder, base, ids[base], self._pause)
            return (batch for batch, _, _ in sealed_batches(writer.folder, base, ids[base], self._pause))

        try:
            found = find_survivors(parts, read, budget=self._budget, hashed=self._hashed)
        except BatchError as error:
            raise corrupt(writer.folder.files.path(writer.folder.path), 0, str(error)) from error
        horizon = layout.NO_HORIZON if config.key_index else now_ms + config.delete_retention_ms
        done = None
        for group, until in groups_of(segments, dirty_from, found, config.segment_bytes, horizon, drops):
            changed = any(found.kept[each.base] < found.records[each.base] for each in group)
            if len(group) == 1 and group[0].is_clean and not changed and until == group[0].header.delete_horizon_ms:
                continue
            result = self._rewrite(writer, group, found, layout.FLAG_COMPACTED, until)
            if result is None:
                break
            done = result if done is None else done.plus(result)
        return done

    def _repack(
        self, writer: PartitionWriter, control: Control, end: Published, segments: list[SealedSegment]
    ) -> Compacted | None:
        limit, done = writer.topic.config.segment_bytes, None
        for group in small_groups(writer.folder, control, end, segments, limit):
            result = self._rewrite(writer, group, None, 0, layout.NO_HORIZON)
            if result is None:
                break
            done = result if done is None else done.plus(result)
        return done

    def _rewrite(
        self,
        writer: PartitionWriter,
        group: Sequence[SealedSegment],
        found: Survivors | None,
        flags: int,
        horizon_ms: int,
    ) -> Compacted | None:
        """Write a group of adjacent segments anew, and put the new one in their place; None if they have changed."""
        folder, first, last = writer.folder, group[0].header, group[-1]
        header = msgspec.structs.replace(
            first,
            generation=max(each.header.generation for each in group) + 1,
            flags=flags,
            end_offset=last.end,
            delete_horizon_ms=horizon_ms,
        )

        def sources() -> Iterator[Source]:
            for each in group:
                batches = sealed_batches(folder, each.base, each.header.segment_id, self._pause)
                if found is None or found.kept[each.base] == found.records[each.base]:
                    yield Source(each.base, batches, None)
                elif found.kept[each.base]:
                    yield Source(each.base, batches, found.marks(each.base))

        rewritten = rewrite(
            folder,
            header,
            sources(),
            max_timestamp=last.following.max_timestamp_before,
            durable_offset=last.end,
        )
        placed = False
        try:
            placed = replace_segments(writer, rewritten, [(each.base, each.header.segment_id) for each in group])
        finally:
            if not placed:
                folder.drop(rewritten.name)
                folder.drop(rewritten.index)
        if not placed:
            return None
        return Compacted(
            sum(found.records[each.base] for each in group) if found is not None else rewritten.records,
            rewritten.records,
            sum(each.size for each in group),
            rewritten.size,
            len(group),
            1,
        )
