"""The `offsets` file of one consumer group: the committed offset of every partition that the group ever committed.

A commit is one `pwrite` of 128 bytes over the copy that does not rule: atomic, of constant cost, without growth. Of the
two slots of the table, and of the two copies of an entry, the valid one with the higher sequence rules.

Invariants:

1. Below the end of the last extent every entry has a valid copy: the pages of a new extent are written, with free
   entries, and synced before the table names them. So whatever is not valid there, zeros and a missing end of the file
   too, is damage, and the first commit into an entry never looks like it. Behind the last extent nothing has a meaning.
2. Only the table says what is an entry and what metadata: no text is ever taken for an entry.
3. Whenever nobody writes, both copies of an entry belong to the same partition, or both are free: taking and freeing an
   entry write both, one after the other. So a damaged copy costs at most the last commit, never the partition.
4. The table's sequence is odd while an entry is taken, freed or given metadata blocks, and both slots name the same
   extents afterwards. Who scanned the file at an even sequence knows every entry for as long as that sequence rules.
5. Writers hold the group's lock. Readers take none, and read again where they may have met a writer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from xxhash import xxh3_64_intdigest

from pystreamlog.coordination import offset_layout as layout
from pystreamlog.coordination.committed import Base, Committed, Origin, base_of
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.files import File, Files

__all__ = ["Committed", "OffsetStore"]

Key = tuple[bytes, int]
Trail = tuple[Origin, Base] | None

_ENTRIES_PER_PAGE = layout.PAGE_SIZE // layout.ENTRY_SIZE
_SCAN_SIZE = 64 << 10
"""Bytes a scan reads at once."""
_DAMAGE_LIMIT = 1 << 16  # entries; then a scan gives up: a large file without content must not take hours
_ATTEMPTS = 1000
"""How often a reader may meet a writer in one call: each time there are two commits between two of its calls."""


class OffsetStore:
    """An open offsets file; not for two threads at once.

    Methods raise what `File` raises, and `CorruptLogError` where a partition's offset cannot be told: an entry without
    a valid copy may have been anybody's, so that a partition that has no entry *may* have lost it. Intact entries are
    served beside damaged ones.
    """

    __slots__ = (
        "_blocks",
        "_damage",
        "_extents",
        "_free",
        "_free_blocks",
        "_numbers",
        "_positions",
        "_scanned",
        "_sequence",
        "file",
        "salt",
    )

    def __init__(self, file: File, salt: int) -> None:
        self.file = file
        self.salt = salt
        self._sequence = 0
        self._extents: tuple[int, ...] = ()
        # What the last scan found, and the even sequence of the table that it holds for; -1 when it may be outdated.
        self._scanned = -1
        self._positions: dict[Key, int] = {}
        self._free: list[int] = []
        self._blocks: set[int] = set()
        self._free_blocks: list[int] | None = None
        self._damage: tuple[int, object, object] | None = None
        self._numbers: dict[bytes, set[int]] = {}  # the keys of `_positions` by topic

    @staticmethod
    def image(*, log_id: bytes, group_id: str) -> bytes:
        """The bytes of a new file, of 2 pages, with 16 free entries."""
        return layout.image(log_id, group_id)

    @classmethod
    def open(cls, files: Files, name: str, *, log_id: bytes, group_id: str | None, write: bool) -> OffsetStore:
        """Open and check whose file it is; costs the same whatever is in it.

        Args:
            files: The door to the log's directory.
            name: The file, relative to it.
            log_id: The log's id, 16 bytes.
            group_id: The group whose file it must be; None for any.
            write: Whether `put` and `forget` will be called.

        Raises:
            FileNotFoundError: There is no such file.
            CorruptLogError: The header is damaged, or another log's or group's.
            IncompatibleFormatError: A newer version made it.
        """
        file = files.open(name, write=write)
        try:
            salt = layout.check_header(file.pread(layout.OFFSETS_HEADER.size, 0), file.path, log_id, group_id)
        except BaseException:
            file.close()
            raise
        return cls(file, salt)

    # --- what users of the file call ----------------------------------------------------------------------------------

    def get(self, topic_id: bytes, partition: int) -> Committed | None:
        """What was committed last for a partition; None when nothing was. Takes no lock.

        One system call for an entry that was found before or for a partition that was looked for in vain before, one
        more for metadata. A scan of the file when entries came or went since.

        Raises:
            CorruptLogError: No intact entry is the partition's while another is damaged or missing, or its own lost its
                metadata; the next `put` mends the latter.
        """
        found = self._locate(topic_id, partition)
        if found is None:
            return None
        position, start, copy = found
        metadata = self._metadata(copy, start)
        if metadata is None:
            return self._with_metadata(position, topic_id, partition)
        return Committed(copy[layout.OFFSET], copy[layout.EPOCH], copy[layout.TIMESTAMP], metadata)

    def next_sequence(self, topic_id: bytes, partition: int) -> int:
        """The least sequence that the copy written by the next `put` of that partition will have."""
        found = self._locate(topic_id, partition)
        return 1 if found is None else int(found[2][layout.SEQUENCE]) + 1

    def all(self) -> dict[Key, Committed]:
        """What was committed last for every (topic id, partition). Takes no lock; a scan and one `get` each.

        Raises:
            CorruptLogError: Any entry is damaged or missing.
        """
        self._index()
        if self._damage is not None:
            raise self._corrupt(*self._damage)
        values = {}
        for key in list(self._positions):
            value = self.get(*key)
            if value is not None:  # else somebody freed it since
                values[key] = value
        return values

    def numbers(self, topic_id: bytes) -> set[int]:
        """The partitions of a topic in which anything was committed; a scan where entries came or went since the last.

        Raises:
            CorruptLogError: Any entry is damaged or missing.
        """
        self._index()
        if self._damage is not None:
            raise self._corrupt(*self._damage)
        return set(self._numbers.get(topic_id, ()))

    def put(self, topic_id: bytes, partition: int, committed: Committed, origin: Origin | None = None) -> None:
        """Commit, for a transaction or for none; once this returns, every process sees it. Needs the group's lock.

        One `pread` and one `pwrite`, and one `pwrite` more for metadata. The first commit of a partition, and the first
        with metadata, cost two writes of the table more, and when the file must grow an `fdatasync`.

        Raises:
            ConfigError: The metadata has more than 4096 bytes, or a lone surrogate.
            CorruptLogError: As for `get`; a commit must not make a second entry for a partition.
        """
        assert committed.offset >= 0, committed
        metadata = layout.encoded(committed.metadata) if committed.metadata else b""
        found = self._locate(topic_id, partition)
        if found is not None:
            position, start, copy = found
            blocks = copy[layout.BLOCKS]
            if not metadata or (blocks and self._has_blocks(blocks)):
                key, trail = (topic_id, partition), self._trail(position, origin)
                position += layout.COPY_SIZE - start
                self._write(position, copy[layout.SEQUENCE] + 1, key, committed, blocks, metadata, trail)
                return
        self._put_with_room((topic_id, partition), committed, metadata, origin)

    def forget(self, topic_id: bytes, partition: int) -> None:
        """Remove a partition's commit, if there is one; its entry may become another's. Needs the group's lock.

        Raises:
            CorruptLogError: As for `get`.
        """
        key = topic_id, partition
        if self._locate(*key) is None or (position := self._find(key)) is None:
            return
        start, copy = self._entry(position)
        self._begin(self._extents)
        for sequence, at in ((1, layout.COPY_SIZE - start), (2, start)):
            raw = layout.packed_free(copy[layout.SEQUENCE] + sequence, copy[layout.BLOCKS], self.salt)
            self.file.pwrite(raw, position + at)
        del self._positions[key]
        self._numbers[topic_id].discard(partition)
        self._free.append(position)
        self._end()

    def entries(self) -> Iterator[tuple[Key, bytes, int]]:
        """Each partition's entry, and where its ruling copy starts. Takes no lock; a scan and a `pread` each."""
        self._index()
        for key, position in list(self._positions.items()):
            raw, start = self._pair(position, layout.COPY_SIZE)
            if start >= 0:
                yield key, raw, start

    def room(self) -> int:
        """How many partitions may be committed for the first time without the file growing; at most a scan."""
        self._index()
        return len(self._free)

    def reserve(self, count: int) -> None:
        """Have room for so many more partitions; one `fdatasync` when the file must grow. Needs the group's lock."""
        missing = count - self.room()
        if missing > 0:
            first, extents = self._grow(self._extents, metadata=False, pages=-(-missing // _ENTRIES_PER_PAGE))
            made = range(layout.extents_end(extents) - layout.ENTRY_SIZE, first - 1, -layout.ENTRY_SIZE)
            self._begin(extents)
            self._free = [*made, *self._free]
            self._end()

    def close(self) -> None:
        """Close the file; again is harmless."""
        self._positions = {}
        self._scanned = -1
        self.file.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def _pair(self, position: int, size: int) -> Key:
        """Two slots or copies of `size` bytes, and where in them the ruling one starts: -1 when neither is valid.

        A writer at work leaves the ruling one alone, but the bytes of one `pread` need not be of one moment. So the
        older one is believed only when a second look finds the same bytes; else an older commit could come back.
        """
        previous = None
        raw = b""
        for _ in range(_ATTEMPTS):
            raw = self.file.pread(2 * size, position)
            is_whole = len(raw) == 2 * size
            start = layout.newer(raw, size, self.salt) if is_whole else -1
            if start >= 0:
                return raw, start
            if raw == previous:
                return raw, layout.ruling(raw, size, self.salt) if is_whole else -1
            previous = raw
        return raw, -1

    def _locate(self, topic_id: bytes, partition: int) -> tuple[int, int, tuple[Any, ...]] | None:
        """A partition's entry: its position, the start of its ruling copy, that copy's fields."""
        key = topic_id, partition
        pread = self.file.pread
        for _ in range(_ATTEMPTS):
            position = self._positions.get(key)
            if position is None:
                position = self._find(key)
                if position is None:
                    return None
            raw = pread(layout.ENTRY_SIZE, position)
            start = layout.newer(raw, layout.COPY_SIZE, self.salt) if len(raw) == layout.ENTRY_SIZE else -1
            if start < 0:
                raw, start = self._pair(position, layout.COPY_SIZE)
            if start >= 0:
                copy = layout.unpack_copy(raw, start)
                if copy[layout.KEY] == key and copy[layout.FLAGS] == 0:
                    return position, start, copy
            # It is another's by now, or damaged: the scan will tell.
            self._positions.pop(key, None)
            self._scanned = -1
        raise self._corrupt(position or 0, "an entry at rest", "one that never stopped moving")

    def _find(self, key: Key) -> int | None:
        """Where a partition's entry is by now; None only if nothing is damaged that may have been it."""
        self._index()
        position = self._positions.get(key)
        if position is None and self._damage is not None:
            raise self._corrupt(*self._damage)
        return position

    def _entry(self, position: int) -> tuple[int, tuple[Any, ...]]:
        """The start and the fields of the ruling copy of an entry that the scan found."""
        raw, start = self._pair(position, layout.COPY_SIZE)
        if start < 0:
            raise self._corrupt(position, "a valid entry", raw[: layout.COPY_SIZE])
        return start, layout.unpack_copy(raw, start)

    def _with_metadata(self, position: int, topic_id: bytes, partition: int) -> Committed | None:
        """The commit of an entry whose metadata was not whole at first sight; None when it was freed meanwhile.

        Where a second look finds the same, no writer is at it: the metadata is lost. The offset holds without it.
        """
        previous = None
        for _ in range(_ATTEMPTS):
            raw, start = self._pair(position, layout.COPY_SIZE)
            copy = layout.unpack_copy(raw, start) if start >= 0 else None
            if copy is None or copy[layout.KEY] != (topic_id, partition) or copy[layout.FLAGS]:
                return self.get(topic_id, partition)
            metadata = self._metadata(copy, start)
            if metadata is None and raw == previous:
                metadata = ""
            if metadata is not None:
                return Committed(copy[layout.OFFSET], copy[layout.EPOCH], copy[layout.TIMESTAMP], metadata)
            previous = raw
        raise self._corrupt(position, "an entry at rest", "one that never stopped moving")

    def _metadata(self, copy: tuple[Any, ...], start: int) -> str | None:
        """The metadata of the copy at `start` of its entry; None when it is not whole."""
        size, blocks = copy[layout.METADATA_SIZE], copy[layout.BLOCKS]
        if not size:
            return ""
        if size > layout.METADATA_LIMIT or not self._has_blocks(blocks):
            return None
        raw = self.file.pread(size, layout.block(blocks, start))
        if len(raw) < size or xxh3_64_intdigest(raw) != copy[layout.METADATA_CHECKSUM]:
            return None
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return None

    # --- the extents and what is in them ------------------------------------------------------------------------------

    def _read_table(self) -> None:
        raw, start = self._pair(layout.TABLE_POSITION, layout.TABLE_SLOT.size)
        if start < 0:
            raise self._corrupt(layout.TABLE_POSITION, "a valid extent table", raw[:16])
        sequence, count, _, extents, _ = layout.TABLE_SLOT.unpack_from(raw, start)
        if count > layout.EXTENT_LIMIT:
            raise self._corrupt(layout.TABLE_POSITION + start, layout.EXTENT_LIMIT, count)
        self._sequence = sequence
        self._extents = struct.unpack_from(f"<{count}I", extents)

    def _has_blocks(self, blocks: int) -> bool:
        """Whether a pair of metadata blocks lies there, perhaps in an extent that another process made since."""
        if layout.is_pair(blocks, self._extents):
            return True
        self._read_table()
        return layout.is_pair(blocks, self._extents)

    def _index(self) -> None:
        """Know every entry; scans the file unless nothing came or went since the last scan."""
        for _ in range(_ATTEMPTS):
            self._read_table()
            sequence = self._sequence
            if self._scanned == sequence:
                return
            self._scan()
            if self._damage is None:
                return
            # An entry that moved while the scan went on may have been met twice.
            self._read_table()
            if self._sequence == sequence:
                return

    def _scan(self) -> None:
        """Find every entry: what is whose, what is free, which metadata blocks are in use."""
        self._positions, self._numbers, self._free, self._damage = {}, {}, [], None
        self._blocks, self._free_blocks = set(), None
        self._scanned = -1
        size = self.file.size()
        if size < layout.extents_end(self._extents):
            self._damage = size, layout.extents_end(self._extents), size
        damaged = 0
        for first, end in layout.ranges(self._extents, metadata=False):
            for chunk in range(first, min(end, size), _SCAN_SIZE):
                raw = self.file.pread(min(_SCAN_SIZE, end - chunk), chunk)
                for position in range(chunk, chunk + len(raw), layout.ENTRY_SIZE):
                    damaged += not self._take(raw, position - chunk, position)
                if damaged > _DAMAGE_LIMIT:
                    return
        if self._damage is None and not self._sequence & 1:
            self._scanned = self._sequence
        self._free.reverse()  # taken from the end, so that the lowest comes first

    def _take(self, data: bytes, at: int, position: int) -> bool:
        """Take the entry at `at` of `data` into the index; whether it is intact."""
        raw = data[at : at + layout.ENTRY_SIZE]
        start = layout.newer(raw, layout.COPY_SIZE, self.salt) if len(raw) == layout.ENTRY_SIZE else -1
        if start < 0:
            raw, start = self._pair(position, layout.COPY_SIZE)
        if start >= 0:
            copy = layout.unpack_copy(raw, start)
            if copy[layout.BLOCKS]:
                self._blocks.add(copy[layout.BLOCKS])
            if copy[layout.FLAGS] == layout.FLAG_FREE:
                self._free.append(position)
                return True
            key = copy[layout.KEY]
            if copy[layout.FLAGS] == 0 and copy[layout.OFFSET] >= 0 and key not in self._positions:
                self._positions[key] = position
                self._numbers.setdefault(key[0], set()).add(key[1])
                return True
        if self._damage is None:
            self._damage = position, "a valid entry", raw[: layout.COPY_SIZE]
        return False

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(
        self, position: int, sequence: int, key: Key, committed: Committed, blocks: int, metadata: bytes, trail: Trail
    ) -> None:
        """Write one copy, behind its metadata: what is killed between the two leaves the other copy, which rules."""
        checksum = 0
        if metadata:
            checksum = xxh3_64_intdigest(metadata)
            self.file.pwrite(metadata, layout.block(blocks, position))
        offset, epoch, timestamp = committed.offset, committed.epoch, committed.timestamp_ms
        if trail is None:
            raw = layout.pack_copy(sequence, *key, epoch, offset, timestamp, -1, 0, blocks, len(metadata), 0, checksum)
        else:
            by, base = trail
            head = sequence, *key, epoch, offset, timestamp, by.position, by.nonce
            raw = layout.pack_transacted(*head, blocks, len(metadata), 0, checksum, *base)
        self.file.pwrite(raw + layout.pack_checksum(xxh3_64_intdigest(raw, self.salt)), position)

    def _trail(self, position: int, origin: Origin | None) -> Trail:
        """What a copy says of the transaction that stores it."""
        if origin is None:
            return None
        return origin, base_of(*self._pair(position, layout.COPY_SIZE), self.salt, origin.durable)

    def _put_with_room(self, key: Key, committed: Committed, metadata: bytes, origin: Origin | None) -> None:
        """Commit into an entry or metadata blocks that must be found, or made, first."""
        position = self._find(key)
        self._scanned = -1  # until all is done
        extents = self._extents
        is_new = position is None
        if position is None:
            if not self._free:
                first, extents = self._grow(extents, metadata=False)
                self._free = list(range(layout.extents_end(extents) - layout.ENTRY_SIZE, first - 1, -layout.ENTRY_SIZE))
            position = self._free.pop()
        # The entries of an extent that was just made are not in the table, but in the file.
        start, copy = self._entry(position)
        if is_new and copy[layout.FLAGS] != layout.FLAG_FREE:
            raise self._corrupt(position, "a free entry", copy[layout.KEY])
        blocks = copy[layout.BLOCKS]
        if metadata and not layout.is_pair(blocks, extents):
            if self._free_blocks is None:
                size, end = self.file.size(), layout.extents_end(extents)
                if size < end:  # of a table that claims terabytes, the list alone would fill the memory
                    raise self._corrupt(size, end, size)
                self._free_blocks = [pair for pair in layout.pairs(extents) if pair not in self._blocks]
            if not self._free_blocks:
                first, extents = self._grow(extents, metadata=True)
                self._free_blocks = [pair for pair in layout.pairs(extents) if pair >= first]
            blocks = self._free_blocks.pop(0)
        self._begin(extents)
        sequence, trail = copy[layout.SEQUENCE] + 1, self._trail(position, origin)
        self._write(position + layout.COPY_SIZE - start, sequence, key, committed, blocks, metadata, trail)
        if is_new:  # then the other copy is nobody's, or was another's
            self._write(position + start, sequence + 1, key, committed, blocks, metadata, trail)
        self._positions[key] = position
        self._numbers.setdefault(key[0], set()).add(key[1])
        self._end()

    def _grow(self, extents: tuple[int, ...], *, metadata: bool, pages: int = 1) -> tuple[int, tuple[int, ...]]:
        """Write a new extent behind the others and sync it: its position, and the extents with it."""
        position = layout.extents_end(extents)
        before = sum(stop - first for first, stop in layout.ranges(extents, metadata=metadata)) // layout.PAGE_SIZE
        pages = max(before, layout.METADATA_PAIR_SIZE // layout.PAGE_SIZE if metadata else pages)
        if len(extents) == layout.EXTENT_LIMIT or pages >= layout.EXTENT_METADATA:
            raise self._corrupt(layout.TABLE_POSITION, f"fewer than {layout.EXTENT_LIMIT} extents", len(extents))
        data = bytes(pages * layout.PAGE_SIZE) if metadata else layout.free_page(self.salt) * pages
        self.file.pwrite(data, position)
        self.file.datasync()
        return position, (*extents, pages | (layout.EXTENT_METADATA if metadata else 0))

    def _begin(self, extents: tuple[int, ...]) -> None:
        """Say that entries are changing hands, over the table slot that does not rule."""
        self._scanned = -1
        if self._sequence & 1:  # somebody was killed at it, or the last slot is damaged; both slots must be equal first
            self._write_table(self._sequence + 1, self._extents)
        self._write_table(self._sequence + 1, extents)

    def _end(self) -> None:
        """Say that they have."""
        self._write_table(self._sequence + 1, self._extents)
        self._scanned = self._sequence if self._damage is None else -1

    def _write_table(self, sequence: int, extents: tuple[int, ...]) -> None:
        self.file.pwrite(layout.packed_table(sequence, extents, self.salt), layout.table_position(sequence))
        self._sequence, self._extents = sequence, extents

    def _corrupt(self, position: int, expected: object, found: object) -> CorruptLogError:
        return CorruptLogError(
            f"{self.file.path} is damaged at position {position}: {layout.REMEDY}",
            path=self.file.path,
            position=position,
            expected=expected,
            found=found,
        )
