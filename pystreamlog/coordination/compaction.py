"""Compacting and repacking the partitions of a log: which segments are written anew, and when.

The caller holds `maintenance.lock`, so there is never more than one who does it. Of a partition, in these steps:

1. `due` looks at the headers of its segments and says whether there is something to do. It is cheap, and remembers a no.
2. What one that died left is removed, and that is on disk: else a record that is compacted away below might still be
   read from there, behind the tombstone that deleted it.
3. Recovery is told to begin at the active segment (`PartitionWriter.settle`).
4. Which records stay is found out by reading all (`storage.survivors`). Damage is met here, when nothing was changed.
5. Groups of adjacent segments are written anew and take their places, the oldest first (`storage.rewriting`,
   `PartitionWriter.replace_segments`). So the segments without a key twice are the first ones at any time.

A tombstone stays for `delete_retention_ms` after it was compacted first: its segment's header says until when. Segments
with different times are not merged, or one of them would never come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from pystreamlog.coordination.open_files import with_descriptors
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import OffsetOutOfRangeError
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.coverage import left_over, read_header
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import needs_recovery
from pystreamlog.storage.retention import is_older
from pystreamlog.storage.rewriting import LARGE_BYTES, LARGE_RECORDS, Source, rewrite
from pystreamlog.storage.sealed import corrupt, sealed_batches
from pystreamlog.storage.segment import SegmentHeader
from pystreamlog.storage.survivors import DEFAULT_BUDGET, Part, Survivors, find_survivors

__all__ = ["Compacted", "Compaction", "Due"]

_FOR_EVER = 1 << 62
_SAMPLE = 32
"""Batches at the beginning of a segment that tell whether it is worth repacking."""


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


class _Sealed(msgspec.Struct, frozen=True):
    """A sealed segment: its header, bytes of its file, and what the next one's header says."""

    header: SegmentHeader
    size: int
    following: SegmentHeader

    @property
    def base(self) -> int:
        return self.header.base_offset

    @property
    def end(self) -> int:
        return self.following.base_offset

    @property
    def is_clean(self) -> bool:
        return bool(self.header.flags & layout.FLAG_COMPACTED)


class Compaction:
    """See the module.

    Args:
        partitions: The log's.
        context: What these have in common.
        pause: Called now and then while segments are read; what it raises ends the run.
        budget: Bytes of memory for the keys of a pass.
        hashed: The hash of a key.
    """

    def __init__(
        self,
        partitions: Partitions,
        context: PartitionContext,
        *,
        pause: Callable[[], None] = lambda: None,
        budget: int = DEFAULT_BUDGET,
        hashed: Callable[[bytes], int] = hash,
    ) -> None:
        self._partitions = partitions
        self._context = context
        self._pause = pause
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
        has_left_over = bool(left_over(folder, end.segment_base)) or _cleaned(folder) != []
        segments = _sealed(folder, end)
        if segments is None:
            return Due(left_over=True), 0
        until, roll, compact = _FOR_EVER, False, False
        if config.compacts:
            eligible = _eligible(folder, control, end, segments, now_ms - config.min_compaction_lag_ms)
            dirty = _dirty(eligible)
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
                behind = _dirty(segments)
                base = behind[0].base if behind else end.segment_base
                oldest = _first_timestamp(folder, control, end, base)
                if oldest is not None:
                    is_late = oldest + config.max_compaction_lag_ms <= now_ms
                    compact |= is_late and bool(dirty)
                    active = _first_timestamp(folder, control, end, end.segment_base)
                    roll = active is not None and active + config.max_compaction_lag_ms <= now_ms
                    if not is_late:
                        until = min(until, oldest + config.max_compaction_lag_ms)
        repack = config.repack and not compact and any(_packed_size(folder, control, end, each) for each in segments)
        return Due(has_left_over, roll, compact or roll, repack), until

    # --- doing it

    def run(self, topic: TopicState, partition: int, due: Due, *, keep_tombstones: bool = False) -> Compacted | None:
        """Do what is due; None when nothing was written anew.

        Args:
            topic: The partition's topic.
            partition: Its number.
            due: What `due` said.
            keep_tombstones: Also those that have had their time, as the clock cannot be trusted.

        Raises:
            CorruptLogError: A segment does not verify; nothing of it was changed.
            StorageError: The disk is full or failed. Each segment is the old one or the new one.
            UnknownTopicError: The topic was deleted.
        """
        writer = self._partitions.writer(topic, partition)
        folder = writer.folder
        if due.roll:
            writer.roll()
        self._remove_left_over(writer)
        if not due.compact and not due.repack:
            return None
        control = with_descriptors(lambda: folder.open_control(write=False))
        try:
            end = control.published()
            if end is None or not writer.settle(end.segment_base):
                return None
            segments = _sealed(folder, end)
            if segments is None:
                return None
            now_ms, config = self._context.clock.now_ms(), topic.config
            try:
                if due.compact:
                    youngest_ms = now_ms - config.min_compaction_lag_ms
                    eligible = _eligible(folder, control, end, segments, youngest_ms)
                    keep_tombstones |= config.key_index  # or a version would be that of an earlier record
                    return self._compact(writer, eligible, config, now_ms, keep_tombstones=keep_tombstones)
                return self._repack(writer, control, end, segments)
            except FileNotFoundError:
                return None  # deleted, or replaced by a repair: there is nothing to do, or another time
        finally:
            control.close()

    def _remove_left_over(self, writer: PartitionWriter) -> None:
        folder = writer.folder
        for name in _cleaned(folder):
            folder.drop(name)
        writer.ensure()
        with writer.locked(_LOCK_SECONDS) as end:
            active = end.segment_base
        bases = left_over(folder, active)
        if bases:
            folder.files.sync_directory(folder.path)  # the name of the one that covers them may not be on disk
            writer.remove_segments(bases)

    def _compact(
        self,
        writer: PartitionWriter,
        segments: list[_Sealed],
        config: TopicConfig,
        now_ms: int,
        *,
        keep_tombstones: bool,
    ) -> Compacted | None:
        dirty_from = len(segments) - len(_dirty(segments))
        parts = [
            Part(
                each.base,
                place < dirty_from,
                drop_tombstones=not keep_tombstones and place < dirty_from and _is_over(each.header, now_ms),
            )
            for place, each in enumerate(segments)
        ]
        if not parts:
            return None
        drops = {part.base for part in parts if part.drop_tombstones}
        ids = {each.base: each.header.segment_id for each in segments}

        def read(base: int) -> Iterator[Batch]:
            path = writer.folder.files.path(f"{writer.folder.path}/{layout.segment_name(base)}")
            try:
                for batch, _, _ in sealed_batches(writer.folder, base, ids[base], self._pause):
                    yield batch
            except BatchError as error:
                raise corrupt(path, 0, str(error)) from error

        try:
            found = find_survivors(parts, read, budget=self._budget, hashed=self._hashed)
        except BatchError as error:
            raise corrupt(writer.folder.files.path(writer.folder.path), 0, str(error)) from error
        horizon = layout.NO_HORIZON if config.key_index else now_ms + config.delete_retention_ms
        done = None
        looked = segments[: found.parts]
        for group, until in _groups(looked, dirty_from, found, config.segment_bytes, horizon, drops):
            changed = any(found.kept[each.base] < found.records[each.base] for each in group)
            if len(group) == 1 and group[0].is_clean and not changed and until == group[0].header.delete_horizon_ms:
                continue
            result = self._rewrite(writer, group, found, layout.FLAG_COMPACTED, until)
            if result is None:
                break
            done = result if done is None else done.plus(result)
        return done

    def _repack(
        self, writer: PartitionWriter, control: Control, end: Published, segments: list[_Sealed]
    ) -> Compacted | None:
        limit, done = writer.topic.config.segment_bytes, None
        for group in _small_groups(writer.folder, control, end, segments, limit):
            result = self._rewrite(writer, group, None, 0, layout.NO_HORIZON)
            if result is None:
                break
            done = result if done is None else done.plus(result)
        return done

    def _rewrite(
        self, writer: PartitionWriter, group: Sequence[_Sealed], found: Survivors | None, flags: int, horizon_ms: int
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
            placed = writer.replace_segments(rewritten, [(each.base, each.header.segment_id) for each in group])
        finally:
            if not placed:
                folder.drop(rewritten.name)
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


_LOCK_SECONDS = 10.0


# --- looking at segments ----------------------------------------------------------------------------------------------


def _cleaned(folder: Folder) -> list[str]:
    """Files that were being written anew."""
    return [name for name in folder.files.list(folder.path) if name.endswith(layout.CLEANED_SUFFIX)]


def _sealed(folder: Folder, end: Published) -> list[_Sealed] | None:
    """The sealed segments, oldest first; None when they do not follow each other: something is left over."""
    bases = [base for base in folder.segments_from(end.log_start_offset) if base <= end.segment_base]
    found: list[_Sealed] = []
    headers = [read_header(folder, base) for base in bases]
    for header, following in pairwise(headers):
        if header is None or following is None or header.end_offset not in (-1, following.base_offset):
            return None
        try:
            size = folder.files.status(f"{folder.path}/{layout.segment_name(header.base_offset)}").st_size
        except FileNotFoundError:
            return None
        found.append(_Sealed(header, size, following))
    return found


def _dirty(segments: Sequence[_Sealed]) -> list[_Sealed]:
    """The segments from the first on that was not compacted."""
    for place, each in enumerate(segments):
        if not each.is_clean:
            return list(segments[place:])
    return []


def _eligible(
    folder: Folder, control: Control, end: Published, segments: list[_Sealed], youngest_ms: int
) -> list[_Sealed]:
    """The segments below the first with a record that is younger than that."""
    reader = LogReader(folder, control, map_reads=False)
    try:
        for place, each in enumerate(segments):
            if not each.is_clean and not is_older(reader, each.base, each.end, end, youngest_ms + 1):
                return segments[:place]
    except OffsetOutOfRangeError:
        return []  # deleted meanwhile
    finally:
        reader.close()
    return segments


def _first_timestamp(folder: Folder, control: Control, end: Published, base: int) -> int | None:
    """The timestamp of the first record in a segment, in ms; None without one."""
    reader = LogReader(folder, control, map_reads=False)
    try:
        cursor = Cursor(base)
        reader.place_at(cursor, base)
        for header in reader.headers(cursor, end):
            return header.base_timestamp
    except OffsetOutOfRangeError:
        return None
    finally:
        reader.close()
    return None


def _packed_size(folder: Folder, control: Control, end: Published, segment: _Sealed) -> int:
    """About how many bytes a segment takes when its batches are gathered; 0 if they are large, or were gathered.

    The batches at its beginning tell.
    """
    if segment.header.is_rewritten:
        return 0
    reader = LogReader(folder, control, map_reads=False)
    records = size = batches = 0
    try:
        cursor = Cursor(segment.base)
        reader.place_at(cursor, segment.base)
        for header in reader.headers(cursor, end):
            if header.base_offset >= segment.end or batches == _SAMPLE:
                break
            records, size, batches = records + header.count, size + header.size, batches + 1
    except OffsetOutOfRangeError:
        return 0
    finally:
        reader.close()
    if not batches or records >= batches * LARGE_RECORDS // 2 or size >= batches * LARGE_BYTES // 2:
        return 0
    return max(1, segment.size * (size - batches * HEADER_SIZE) // size)


# --- groups -----------------------------------------------------------------------------------------------------------


def _is_over(header: SegmentHeader, now_ms: int) -> bool:
    """Whether the tombstones of a compacted segment have had their time."""
    return header.delete_horizon_ms != layout.NO_HORIZON and header.delete_horizon_ms <= now_ms


def _groups(
    segments: Sequence[_Sealed], dirty_from: int, found: Survivors, limit: int, horizon_ms: int, drops: set[int]
) -> Iterator[tuple[list[_Sealed], int]]:
    """Groups of adjacent segments that fit into one, each with until when its tombstones stay."""
    group: list[_Sealed] = []
    size, until = layout.SEGMENT_HEADER.size + layout.SEAL.size, layout.NO_HORIZON
    start = size
    for place, each in enumerate(segments):
        if place >= dirty_from:
            own = horizon_ms if each.base in found.tombstones else layout.NO_HORIZON
        else:
            own = layout.NO_HORIZON if each.base in drops else each.header.delete_horizon_ms
        left = each.size * found.kept[each.base] // max(1, found.records[each.base])
        differs = layout.NO_HORIZON not in (own, until) and own != until
        if group and (size + left > limit or differs):
            yield group, until
            group, size, until = [], start, layout.NO_HORIZON
        group.append(each)
        size += left
        until = max(until, own)
    if group:
        yield group, until


def _small_groups(
    folder: Folder, control: Control, end: Published, segments: Sequence[_Sealed], limit: int
) -> Iterator[list[_Sealed]]:
    """Groups of adjacent segments with small batches that fit into one."""
    group: list[_Sealed] = []
    size = 0
    for each in segments:
        packed = _packed_size(folder, control, end, each)
        if group and (not packed or size + packed > limit):
            yield group
            group, size = [], 0
        if packed:
            group.append(each)
            size += packed
    if group:
        yield group
