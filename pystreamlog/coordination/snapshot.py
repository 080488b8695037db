"""A snapshot: a log of its own, made of hard links and copies, of what a log has at one moment.

It has a new id, so nobody takes one for the other; its `log.json` names the ids that linked segments may carry. What is
locked, or written in place, is never shared: each `control` is made anew, and so are the groups, without members. The
journal begins anew, as all transactions are whole and on disk. Transactional ids are left behind: they fence off
producers of this log, of which none has the snapshot open.

`log.json` is written last, and the directory gets its name after that: it is a whole log, or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from pystreamlog.coordination.committed import Committed
from pystreamlog.coordination.directory import write_log_file
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.groups import group_folder, group_images
from pystreamlog.coordination.journal import TRANSACTIONS, journal_folder
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.coordination.snapshot_cut import Cut, SnapshotSource, take_cut
from pystreamlog.coordination.snapshot_target import SnapshotTarget
from pystreamlog.coordination.topics import TopicState, is_current, topic_image
from pystreamlog.errors import CorruptLogError, StorageError, UnknownTopicError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.partition_copy import MovedError, PartitionCopy, copy_partition
from pystreamlog.storage.recovery import needs_recovery

__all__ = ["Progress", "Snapshot", "take_snapshot"]

_ATTEMPTS = 5
"""How often partitions may be recovered, healed or compacted while they are copied."""
_MANY_FILES = 500
"""From so many on, one sync of the whole machine comes first: then those of the files find little to do. It waits for
what other programs have written, too; so many syncs of a file each may take longer."""
_LONG_LINEAGE = 64
"""Ids; above that it is looked up which of them segments still carry."""
_ALL_SYNCED = 1 << 62

Progress = Callable[[int, int], object]
"""Called with the bytes that were copied, and that are to be copied in all."""


class Snapshot(msgspec.Struct, frozen=True):
    """What was made.

    Attributes:
        path: The directory.
        log_id: The snapshot's id, 16 bytes.
        topics: The topics in it.
        ends: Where each partition ends that was made.
        groups: How many groups are in it.
        parts: What became of each of those partitions.
    """

    path: str
    log_id: bytes
    topics: list[TopicState]
    ends: dict[PartitionKey, Published]
    groups: int
    parts: list[PartitionCopy]


def take_snapshot(
    source: SnapshotSource,
    target: str | os.PathLike[str],
    names: Sequence[str] | None,
    progress: Progress | None,
) -> Snapshot:
    """Make a snapshot; it is on disk when this returns.

    Args:
        source: The log.
        target: Where it goes.
        names: The topics; None for all.
        progress: See `Progress`.

    Raises:
        ConfigError: It cannot go there.
        UnknownTopicError: A topic that is named does not exist, or was deleted meanwhile.
        StorageError: The disk is full or failed; or an fsync of a partition failed before.
        ReadOnlyError: The target may not be written; or see `take_cut`.
        CorruptLogError: Something does not verify.
    """
    for name in names or ():
        source.topics.find_anew(name)
    place = SnapshotTarget(target, source.files)
    try:
        for _ in range(_ATTEMPTS):
            files = place.begin()
            try:
                builder = _Builder(source, files, names, progress)
                try:
                    made = builder.build(place.path)
                finally:
                    builder.close()
            except MovedError:
                place.abandon()
                continue
            place.finish()
            return made
    finally:
        place.close()
    path = source.files.root
    raise StorageError(
        f"{path}: its partitions were recovered, healed or compacted at each of {_ATTEMPTS} attempts to copy them: "
        "call again",
        path=path,
    )


class _Builder:
    """Builds one snapshot in an empty directory."""

    def __init__(
        self, source: SnapshotSource, files: Files, names: Sequence[str] | None, progress: Progress | None
    ) -> None:
        import uuid  # noqa: PLC0415 - needed for a snapshot only

        self._source = source
        self._files = files
        self._names = names
        self._progress = progress
        self._done = self._total = 0
        self._id = uuid.uuid4().bytes
        self._lineage = (source.log_id, *source.context.lineage)
        self._used: set[bytes] = set()
        self._written: list[str] = []
        self._folders: list[str] = []

    def close(self) -> None:
        """Close the door."""
        self._files.close()

    def build(self, path: str) -> Snapshot:
        """Make everything, and have it on disk; `path` is where it goes."""
        source = self._source
        now_ms = source.clock.now_ms()
        cut = take_cut(source, self._names)
        self._folder("topics")
        self._total = self._size(cut)
        self._tell(0)
        parts: dict[PartitionKey, PartitionCopy] = {}
        topics = []
        for state in cut.topics:
            try:
                parts |= self._topic(state, cut, now_ms)
                topics.append(state)
            except UnknownTopicError:
                if self._names is not None:
                    raise
                self._drop(f"topics/{state.name}")
        self._groups(cut, {state.id for state in topics}, now_ms)
        if source.transactions.exists():
            self._folder(TRANSACTIONS)
            journal_folder(self._files, self._id).create(boot_id=source.context.boot_id(), now_ms=now_ms)
        self._sync()
        lineage = self._lineage
        if len(lineage) > _LONG_LINEAGE:
            lineage = tuple(log_id for log_id in lineage if log_id in self._used)
        write_log_file(self._files, self._id, lineage, created_ms=now_ms)
        self._done = self._total
        self._tell(0)
        ends = {key: part.end for key, part in parts.items()}
        return Snapshot(path, self._id, topics, ends, len(cut.offsets), list(parts.values()))

    # --- topics

    def _topic(self, state: TopicState, cut: Cut, now_ms: int) -> dict[PartitionKey, PartitionCopy]:
        folder = state.folder(0).rpartition("/")[0]
        self._folder(folder)
        self._put(f"{folder}/topic.json", topic_image(state))
        numbers = [number for number in range(state.partitions) if (state.id, number) in cut.ends]
        try:
            return {(state.id, number): self._copied(state, number, cut, now_ms) for number in numbers}
        except (FileNotFoundError, CorruptLogError, MovedError) as error:
            # The topic's name may be that of another one by now.
            if not is_current(self._partition(self._source.files, self._source.log_id, state, 0)):
                raise UnknownTopicError(f"topic {state.name!r} was deleted", topic=state.name) from error
            if isinstance(error, FileNotFoundError):
                path = self._source.files.path(f"topics/{state.name}")
                message = f"{path} lacks {error.filename!r}: restore it from a copy"
                raise CorruptLogError(message, path=path) from error
            raise

    def _copied(self, state: TopicState, number: int, cut: Cut, now_ms: int) -> PartitionCopy:
        source = self._source
        end = cut.ends[state.id, number]
        folder = self._partition(source.files, source.log_id, state, number)
        target = self._partition(self._files, self._id, state, number)
        unsynced = self._synced(folder, state, end)
        done = copy_partition(
            folder,
            target,
            end,
            boot_id=source.context.boot_id(),
            now_ms=now_ms,
            unsynced_from=unsynced,
            copied=self._tell,
        )
        if len(self._lineage) > _LONG_LINEAGE:
            self._used |= {_log_id(target, base) for base in target.segments()}
        self._folders.append(target.path)
        self._written += done.written
        return done

    def _partition(self, files: Files, log_id: bytes, state: TopicState, number: int) -> Folder:
        lineage = self._lineage if log_id == self._id else self._source.context.lineage
        return Folder(files, state.folder(number), log_id, state.id, number, lineage)

    def _synced(self, folder: Folder, state: TopicState, end: Published) -> int:
        """Have sealed segments on disk, which are shared; those from the base offset on that is returned may not be.

        Where the log may be written that is done as its writers do it: a failure poisons the partition.
        """
        source = self._source
        control = folder.open_control(write=False)
        try:
            # What a copy says of the disk is true of other files.
            is_elsewhere = needs_recovery(control, source.context.boot_id())
            durable = -1 if is_elsewhere else control.durable().segment_base
        finally:
            control.close()
        if durable >= end.segment_base or end.segment_base == end.log_start_offset:
            return _ALL_SYNCED
        if source.context.read_only:
            return durable
        source.partitions.writer(state, folder.partition).sync.data(end)
        return _ALL_SYNCED

    def _drop(self, folder: str) -> None:
        """Remove what was made of a topic that is gone."""
        self._files.remove_directory(folder)
        self._written = [name for name in self._written if not name.startswith(f"{folder}/")]
        self._folders = [name for name in self._folders if name != folder and not name.startswith(f"{folder}/")]

    # --- groups

    def _groups(self, cut: Cut, topic_ids: set[bytes], now_ms: int) -> None:
        if cut.offsets:
            self._folder("groups")
        for group_id, committed in cut.offsets.items():
            self._group(group_id, {key: each for key, each in committed.items() if key[0] in topic_ids}, now_ms)

    def _group(self, group_id: str, committed: dict[PartitionKey, Committed], now_ms: int) -> None:
        folder = group_folder(group_id)
        self._folder(folder)
        self._folder(f"{folder}/bells")
        for entry, image in group_images(self._id, group_id, now_ms, journal_offset=0).items():
            self._put(f"{folder}/{entry}", image)
        self._put(f"{folder}/control", b"")
        name = f"{folder}/offsets"
        store = OffsetStore.open(self._files, name, log_id=self._id, group_id=group_id, write=True)
        try:
            store.reserve(len(committed))
            for key, each in committed.items():
                store.put(*key, each)
        finally:
            store.close()

    # --- files

    def _folder(self, name: str) -> None:
        self._files.make_directory(name)
        self._folders.append(name)

    def _put(self, name: str, data: bytes) -> None:
        file = self._files.create(name)
        try:
            file.pwrite(data, 0)
        finally:
            file.close()
        self._written.append(name)

    def _sync(self) -> None:
        """Have all files on disk, then their names."""
        if len(self._written) > _MANY_FILES:
            self._files.sync_everything()
        for name in self._written:
            file = self._files.open(name)
            try:
                file.datasync()
            finally:
                file.close()
        for name in reversed(self._folders):
            self._files.sync_directory(name)
        self._files.sync_directory("")  # a power loss may keep the name of `log.json`, and not these

    # --- progress

    def _size(self, cut: Cut) -> int:
        """The bytes that are to be copied, as far as one can know."""
        source = self._source
        total = sum(end.end_position for end in cut.ends.values())
        if self._progress is None or source.files.status(".").st_dev == self._files.status(".").st_dev:
            return total
        for state in cut.topics:
            for number in range(state.partitions):
                end = cut.ends.get((state.id, number))
                if end is not None:
                    total += _sealed_size(source.files, state.folder(number), end)
        return total

    def _tell(self, size: int) -> None:
        self._done += size
        self._total = max(self._total, self._done)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _sealed_size(files: Files, folder: str, end: Published) -> int:
    """The bytes of a partition's sealed segments."""
    try:
        found = files.regular(folder)
    except FileNotFoundError:
        return 0
    active, suffix = layout.segment_name(end.segment_base), layout.SEGMENT_SUFFIX
    return sum(size for name, (_, size) in found.items() if name.endswith(suffix) and name < active)


def _log_id(folder: Folder, base: int) -> bytes:
    """The id of the log that made a segment."""
    segment = folder.open_segment(base, map_reads=False)
    try:
        return segment.header.log_id
    finally:
        segment.close()
