"""The file of a partition's key index: an extendible hash table on disk.

A key is known by 16 bytes, its BLAKE2b under the file's own random salt, so that nobody can choose keys that crowd
into one leaf. The first `depth` bits of that id are the number of a slot in the directory, which holds the number of a
leaf: a page of up to 30 entries (id, offset of the key's last record, number of its records). A full leaf is split
into two; the directory doubles when the leaf's depth has reached its own. So a look-up is two reads, and no update
writes more than one page, or three for a split, but for the rare doubling (4 bytes per leaf).

The file is derived from the log and believed only as far as it proves itself. Every leaf carries a checksum, the file's
mark, its number and the bits its ids begin with, so a look-up trusts what it finds, *and that it finds nothing*, only
in the page where the key belongs. The state says up to which place in the log, known by the chain's checksum, the file
holds every record. An entry may be ahead of that place (a process was killed before it noted the place), never behind.

A process may be killed between any two writes:

- *an entry*: one write of its page. Entries are only ever raised, so noting a record twice changes nothing.
- *a split*: the state names the leaf before it, so the next holder of the lock does it again from its beginning (new
  leaf, directory, old leaf), unless the old leaf, which is written last, says that it is done.
- *a doubling*: the new directory is written behind everything before the state names it.

After a power loss pages may be of different times: then the partition's epoch is another, and the file is dropped.

Writers hold the partition's append lock. Readers take none: they compare the state before and after a look-up
(`KeyIndexFile.look`), and what they read while it was written fails its checksum.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Mapping
from typing import NoReturn

from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError
from pystreamlog.storage import key_index_layout as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import File, translated
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index_leaf import (
    BadKeyIndexError,
    entry_numbers,
    leaf_bytes,
    leaf_depth,
    leaf_records,
    parse_leaf,
    put_entry,
    raise_entries,
    sealed,
    search_leaf,
    split_entries,
    with_entry,
)
from pystreamlog.storage.key_index_state import (
    KeyPlace,
    Shape,
    directory_pages,
    newest_state,
    pack_moving,
    pack_tail,
    state_slot,
)

__all__ = ["KeyIndexFile", "remove_key_index"]

_PAGE = layout.PAGE_SIZE
_STRIDE = layout.SLOT_STRIDE
_HASH_BITS = 32
_SLOT_SIZE = 4
_PAGES_KEPT = 4096
"""Pages that `find_many` keeps for `note_many`."""
_CACHED_DEPTH = 20
"""A writer keeps a directory up to this depth, 4 MiB for some 5 million keys, in memory; larger ones it reads."""

_pack_checksum = struct.Struct("<Q").pack
_number_of = int.from_bytes
_hash = xxh3_64_intdigest
_pread = os.pread


def _name(folder: Folder) -> str:
    return f"{folder.path}/{layout.KEYS_NAME}"


def remove_key_index(folder: Folder) -> None:
    """Remove a partition's index, whatever has its name; the next one who needs it builds it. Needs the append lock."""
    try:
        folder.files.unlink(_name(folder))
    except CorruptLogError:  # a directory
        folder.files.remove_directory(_name(folder))


class KeyIndexFile:
    """An open key index. One user at a time; who writes holds the append lock."""

    __slots__ = (
        "_fd",
        "_file",
        "_folder",
        "_hasher",
        "_looked",
        "_mark",
        "_pages",
        "_place",
        "_places",
        "_sequence",
        "_shape",
        "_slots",
        "_tail",
        "_write",
    )

    def __init__(self, folder: Folder, file: File, *, write: bool) -> None:
        self._folder = folder
        self._file = file
        self._fd = file.fd
        self._write = write
        self._slots: array[int] | None = None
        self._shape = Shape(0, 0, 0, 0, 0, 0)
        self._place: KeyPlace | Published
        self._pages: dict[int, bytes] = {}
        self._places: dict[bytes, tuple[bytes, int, int]] = {}
        self._looked: tuple[bytes, bytes, int, bytes, int] | None = None
        self._check_header()
        self.refresh()

    # --- making and opening

    @classmethod
    def create(cls, folder: Folder, place: KeyPlace) -> KeyIndexFile:
        """Make an index without keys that holds every record before `place`, over whatever has its name.

        It is not synced: after a power loss nobody would use it.
        """
        files, name = folder.files, _name(folder)
        salt = os.urandom(16)
        mark = _number_of(salt[:8], "little")
        head = layout.KEYS_HEADER.pack(
            layout.KEYS_MAGIC, layout.KEYS_VERSION, folder.partition, folder.log_id, folder.topic_id, salt, 0
        )[:-8]
        head += _pack_checksum(_hash(head))
        slot = state_slot(0, Shape(0, 0, 1, 3, 0, 0), place)
        first = head.ljust(layout.STATE_POSITION, b"\0") + slot
        pages = (first, (2).to_bytes(_SLOT_SIZE, "little"), leaf_bytes(mark, 2, 0, 0, []))
        temporary = f"{name}~{os.urandom(6).hex()}"
        file = files.create(temporary)
        try:
            for number, page in enumerate(pages):
                file.pwrite(page.ljust(_PAGE, b"\0"), number * _PAGE)
            try:
                files.rename(temporary, name)
            except CorruptLogError:  # a directory has the name
                remove_key_index(folder)
                files.rename(temporary, name)
            file.path = files.path(name)
            return cls(folder, file, write=True)
        except BaseException:
            file.close()
            files.unlink(temporary)
            raise

    @classmethod
    def open(cls, folder: Folder, *, write: bool) -> KeyIndexFile:
        """Open a partition's index.

        Raises:
            FileNotFoundError: There is none.
            BadKeyIndexError: It is damaged, or another partition's.
        """
        try:
            file = folder.files.open(_name(folder), write=write)
        except CorruptLogError as error:
            raise BadKeyIndexError(str(error)) from error
        try:
            return cls(folder, file, write=write)
        except BaseException:
            file.close()
            raise

    def _bad(self, what: str) -> NoReturn:
        raise BadKeyIndexError(f"{self._file.path}: {what}")

    def _check_header(self) -> None:
        raw = self._file.pread(layout.KEYS_HEADER.size, 0)
        if len(raw) < layout.KEYS_HEADER.size:
            self._bad(f"{len(raw)} bytes are too few for a header")
        magic, version, partition, log_id, topic_id, salt, checksum = layout.KEYS_HEADER.unpack(raw)
        if magic != layout.KEYS_MAGIC or checksum != _hash(raw[:-8]):
            self._bad("no valid header")
        folder = self._folder
        if (version, partition, log_id, topic_id) != (
            layout.KEYS_VERSION,
            folder.partition,
            folder.log_id,
            folder.topic_id,
        ):
            self._bad("the index of another partition, or of another release")
        self._mark = _number_of(salt[:8], "little")
        from hashlib import blake2b  # noqa: PLC0415 - brings OpenSSL, and few topics have a key index

        self._hasher = blake2b(digest_size=layout.KEY_ID_SIZE, salt=salt)

    def is_current(self) -> bool:
        """Whether the file still has its name: an index may be removed at any time."""
        try:
            found = self._folder.files.status(_name(self._folder))
        except FileNotFoundError:
            return False
        status = self._file.status()
        return (found.st_ino, found.st_dev) == (status.st_ino, status.st_dev)

    def close(self) -> None:
        """Close the file; again is harmless."""
        self._file.close()
        self._fd = -1

    # --- the state

    def refresh(self) -> None:
        """Look at the state again, as another process may have changed it; who may write finishes what one began.

        Raises:
            BadKeyIndexError: There is no valid one.
        """
        self.forget()
        raw = self._file.pread(_STRIDE + layout.STATE_SLOT.size, layout.STATE_POSITION)
        self._sequence, shape, self._place = newest_state(raw)
        if self._slots is not None and self._shape.structure != shape.structure:
            self._slots = None
        self._shape = shape
        self._tail = pack_tail(shape.directory, shape.pages, shape.split, shape.split_depth, 0)
        if self._write:
            if shape.split:
                self._finish_split()
            if self._slots is None and shape.depth <= _CACHED_DEPTH:
                self._slots = self._read_directory()

    @property
    def place(self) -> KeyPlace | Published:
        """Up to where in the log it holds every record, as of the last `refresh`."""
        return self._place

    def advance(self, place: KeyPlace | Published) -> None:
        """Every record before `place` is noted. Needs the append lock."""
        self._place = place
        self.forget()
        self._sequence = sequence = self._sequence + 1
        shape = self._shape
        raw = pack_moving(  # as `_slot`, in half the time: every append comes here
            sequence,
            shape.structure,
            place.epoch,
            shape.depth,
            place.end_offset,
            place.segment_base,
            place.end_position,
            place.last_checksum,
        )
        raw += self._tail
        self._file.pwrite(raw + _pack_checksum(_hash(raw)), layout.STATE_POSITION + (sequence & 1) * _STRIDE)

    def _reshape(self) -> None:
        """Write the shape, which was changed."""
        shape = self._shape
        shape.structure += 1
        self._tail = pack_tail(shape.directory, shape.pages, shape.split, shape.split_depth, 0)
        self.advance(self._place)

    def _read_directory(self) -> array[int]:
        """The leaves' numbers."""
        size = _SLOT_SIZE << self._shape.depth
        raw = self._file.pread(size, self._shape.directory * _PAGE)
        if len(raw) != size:
            self._bad("its directory is cut short")
        return array("I", raw)

    def survey(self) -> tuple[KeyPlace | Published, int] | None:
        """Check every leaf: the place up to which the index holds, and how many records it has; None under a writer.

        Raises:
            BadKeyIndexError: Something does not verify; while others write, that may pass.
        """
        self.refresh()
        before, place = self._shape, self._place
        if before.split:
            return None
        if self._file.size() < before.pages * _PAGE:
            self._bad("it is cut short")
        directory, records, last = self._read_directory(), 0, -1
        for slot, number in enumerate(directory):
            if number == last:
                continue
            last = number
            page = self._file.pread(_PAGE, number * _PAGE)
            prefix, depth, count = parse_leaf(page, self._mark, number)
            if ((slot << (_HASH_BITS - before.depth)) ^ prefix) >> (_HASH_BITS - depth) or depth > before.depth:
                self._bad(f"page {number} is not where it belongs")
            records += leaf_records(page, count)
        self.refresh()
        same = (self._shape.structure, self._place) == (before.structure, place) and not self._shape.split
        return (place, records) if same else None

    # --- looking up

    def identify(self, key: bytes) -> bytes:
        """The id of a key in this file."""
        hasher = self._hasher.copy()
        hasher.update(key)
        return hasher.digest()

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Offset of a key's last record and the number of its records; None for a key that is not noted.

        Costs two reads, whatever the file's size.

        Raises:
            BadKeyIndexError: The page does not verify.
        """
        hasher = self._hasher.copy()
        hasher.update(key)
        key_id = hasher.digest()
        number, page, at = self._locate(key_id)
        self._looked = key, key_id, number, page, at
        return entry_numbers(page, at + layout.KEY_ID_SIZE) if at >= 0 else None

    def find_many(self, keys: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """What `find` says of each key, -1 and 0 for one that is not noted; a `note_many` of them costs half then."""
        found: dict[bytes, tuple[int, int]] = {}
        identify, locate, pages, places = self.identify, self._locate, self._pages, self._places
        for key in keys:
            key_id = identify(key)
            number, page, at = locate(key_id)
            if len(pages) < _PAGES_KEPT:
                pages[number] = page
                places[key] = key_id, number, at
            found[key] = entry_numbers(page, at + layout.KEY_ID_SIZE) if at >= 0 else (-1, 0)
        return found

    def forget(self) -> None:
        """The lock was given back since the last `find`."""
        self._looked = None
        if self._places:
            self._places, self._pages = {}, {}

    def look(self, key: bytes) -> tuple[KeyPlace | Published, tuple[int, int] | None] | None:
        """As `find`, without the append lock: with the place up to which that holds; None to try again later.

        Raises:
            BadKeyIndexError: Something does not verify; while others write, that may pass.
        """
        self.refresh()
        before, place = self._shape, self._place
        if before.split:
            return None
        found = self.find(key)
        self.refresh()
        return None if self._shape.split or self._shape.structure != before.structure else (place, found)

    def _locate(self, key_id: bytes) -> tuple[int, bytes, int]:
        """The leaf where an id belongs: its number, its bytes, and where in it the entry lies, or -1."""
        shape, slots = self._shape, self._slots
        bits = _number_of(key_id[:4], "big")
        slot = bits >> (_HASH_BITS - shape.depth)
        try:  # not through `File.pread`: its calls would be a sixth of the look-up
            if slots is not None:
                number = slots[slot]
            else:
                position = shape.directory * _PAGE + slot * _SLOT_SIZE
                number = _number_of(_pread(self._fd, _SLOT_SIZE, position), "little")
            page = _pread(self._fd, _PAGE, number * _PAGE)
        except OSError as error:
            raise translated(error, self._file.path) from error
        prefix, depth, count = parse_leaf(page, self._mark, number)
        if (bits ^ prefix) >> (_HASH_BITS - depth) or depth > shape.depth:
            self._bad(f"page {number} is not where it belongs")
        return number, page, search_leaf(page, key_id, count)

    # --- noting

    def note(self, entries: Mapping[bytes, tuple[int, int]]) -> None:
        """Raise entries: of each id, the offset of its last record and the number of its records.

        Needs the append lock. Costs a page per key, less where keys share one.

        Raises:
            BadKeyIndexError: A page does not verify.
            StorageError: No space; some entries may have been raised.
        """
        self._looked = None
        rest = sorted(entries.items(), reverse=True)
        while rest:
            number, page, at = self._locate(rest[-1][0])
            raised, room = raise_entries(page, at, rest)
            if raised is not None:
                self._file.pwrite(raised, number * _PAGE)
            if not room:
                self._split(number, depth=leaf_depth(page))

    def note_one(self, key: bytes, offset: int, records: int) -> None:
        """Raise the entry of one key; cheaper by half when it was found just before, under the same lock.

        Raises:
            BadKeyIndexError, StorageError: As for `note`.
        """
        looked, self._looked = self._looked, None
        if looked is not None and looked[0] == key and looked[4] >= 0:
            _, key_id, number, page, at = looked
            self._file.pwrite(with_entry(page, at, key_id, offset, records), number * _PAGE)
        else:
            self.note({self.identify(key): (offset, records)})

    def note_many(self, entries: Mapping[bytes, tuple[int, int]]) -> None:
        """As `note_one` for each key.

        Raises:
            BadKeyIndexError, StorageError: As for `note`.
        """
        pages, places = self._pages, self._places
        self.forget()
        rest: dict[bytes, tuple[int, int]] = {}
        raised: dict[int, bytearray] = {}
        for key, (offset, records) in entries.items():
            key_id, number, at = places.get(key) or (self.identify(key), 0, -1)
            if at < 0:
                rest[key_id] = offset, records
                continue
            page = raised.get(number)
            if page is None:
                page = raised[number] = bytearray(pages[number])
            put_entry(page, at, key_id, offset, records)
        for number, page in raised.items():
            self._file.pwrite(sealed(page), number * _PAGE)
        if rest:
            self.note(rest)

    # --- growing

    def _split(self, number: int, *, depth: int) -> None:
        """Split a full leaf into two; doubles the directory first where that is needed."""
        shape = self._shape
        if depth == shape.depth:
            self._double()
        shape.split, shape.split_depth = number, depth
        self._reshape()
        self._finish_split()

    def _finish_split(self) -> None:
        """Split the leaf that the state names, from the beginning, unless only the state is left to write."""
        self._looked = None
        shape = self._shape
        number, depth, new = shape.split, shape.split_depth, shape.pages
        page = self._file.pread(_PAGE, number * _PAGE)
        prefix, found_depth, count = parse_leaf(page, self._mark, number)
        if found_depth not in (depth, depth + 1) or found_depth > shape.depth:
            self._bad(f"page {number} is not the one that was being split")
        if found_depth == depth:
            bit = _HASH_BITS - depth - 1
            lower, upper = split_entries(page, count, bit)
            self._file.pwrite(leaf_bytes(self._mark, new, prefix | 1 << bit, depth + 1, upper), new * _PAGE)
            first = (prefix | 1 << bit) >> (_HASH_BITS - shape.depth)
            slots = array("I", [new]) * (1 << (shape.depth - depth - 1))
            self._write_pages(slots.tobytes(), shape.directory * _PAGE + first * _SLOT_SIZE)
            self._file.pwrite(leaf_bytes(self._mark, number, prefix, depth + 1, lower), number * _PAGE)
            if self._slots is not None:
                self._slots[first : first + len(slots)] = slots
        shape.split = shape.split_depth = 0
        shape.pages = new + 1
        self._reshape()

    def _double(self) -> None:
        """Write a directory of twice the size behind everything; the old one's pages are given up."""
        shape = self._shape
        if shape.depth == layout.DEPTH_LIMIT:
            self._bad("its directory is full")
        old = self._read_directory()
        new = array("I", bytes(2 * len(old) * _SLOT_SIZE))
        new[0::2] = new[1::2] = old
        self._write_pages(new.tobytes(), shape.pages * _PAGE)
        shape.directory = shape.pages
        shape.depth += 1
        shape.pages += directory_pages(shape.depth)
        self._slots = new if shape.depth <= _CACHED_DEPTH else None
        self._reshape()

    def _write_pages(self, data: bytes, position: int) -> None:
        """Write page by page; see `PAGE_SIZE`."""
        start = 0
        while start < len(data):
            stop = start + _PAGE - (position + start) % _PAGE
            self._file.pwrite(data[start:stop], position + start)
            start = stop
