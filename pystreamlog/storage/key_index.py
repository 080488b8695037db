"""The key index as a partition's writers and readers use it: brought up to the log's end, dropped when it is wrong.

`KeyIndex` is the writer's: under the append lock it walks the batches that the file does not hold yet, and builds it
anew, from an empty one and the same walk, when it is missing, damaged, or of another history of the log. A build that
is killed is gone on with by the next one.

`newest` is the reader's: without a lock it takes what the file says and looks through the batches behind the file's
place itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import compress

from pystreamlog.errors import CorruptLogError, OffsetOutOfRangeError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.storage import key_index_layout as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index_file import KeyIndexFile, remove_key_index
from pystreamlog.storage.key_index_leaf import BadKeyIndexError
from pystreamlog.storage.key_index_state import KeyPlace
from pystreamlog.storage.reader import Cursor, LogReader

__all__ = ["KeyIndex", "NotIndexedError", "newest"]

_log = logging.getLogger("pystreamlog")

_FETCH_BYTES = 1 << 20
_FETCH_RECORDS = 1 << 16
_GATHERED = 1 << 14
"""Keys that a build notes at once: memory stays bounded, and keys that share a page share its write."""
_READER_BATCHES = 256
"""What is behind the file's place, and more than so many batches, is for a writer to note, not for readers to walk."""


class NotIndexedError(Exception):
    """The index cannot tell, and a writer should look after it."""


def _start_of(end: Published) -> KeyPlace:
    """The place before everything."""
    return KeyPlace(end.epoch, end.log_start_offset, 0, 0, 0)


def _check(place: KeyPlace | Published, end: Published) -> None:
    """Raise unless `place` may be one of the log that ends at `end`; what lies between them, the chain tells."""
    if (
        place.epoch != end.epoch
        or place.end_offset > end.end_offset
        or (place.end_offset == end.end_offset and place.end_position and place.last_checksum != end.last_checksum)
    ):
        raise BadKeyIndexError("the index is of another history of the log")


class KeyIndex:
    """A partition's index in a process that appends to it. Every call under the append lock.

    Args:
        folder: The partition.
        reader: Reads it; closed with the index.

    Attributes:
        end: The published end before which the file holds every record; None when it must `catch_up` first.
    """

    __slots__ = ("_file", "_folder", "_reader", "_single", "_tentative", "end")

    def __init__(self, folder: Folder, reader: LogReader) -> None:
        self._folder = folder
        self._reader = reader
        self._file: KeyIndexFile | None = None
        self._tentative: dict[bytes, tuple[int, int]] = {}
        self._single: tuple[bytes, int, int] | None = None
        self.end: Published | None = None

    def catch_up(self, end: Published, *, anew: bool = False) -> None:
        """Hold every record before `end`; costs what was appended since, or everything when the index must be built.

        Args:
            end: The published end.
            anew: Build it, whatever it holds.

        Raises:
            CorruptLogError: The partition does not verify.
            StorageError: No space.
        """
        self.end = None
        if anew:
            self._drop("it was found to be wrong")
        try:
            self._catch_up(end)
        except BadKeyIndexError as error:
            self._drop(str(error))
            try:
                self._catch_up(end)
            except BadKeyIndexError as again:
                path = self._path()
                raise CorruptLogError(f"{path} is damaged as soon as it is written: {again}", path=path) from again
        self.end = end

    def _catch_up(self, end: Published) -> None:
        file = self._file
        if file is not None:
            file.refresh()
            if file.place.end_offset != end.end_offset and not file.is_current():
                self._close_file()  # who removed or replaced it may have gone on with another
                file = None
        if file is None:
            try:
                file = KeyIndexFile.open(self._folder, write=True)
            except FileNotFoundError:
                file = KeyIndexFile.create(self._folder, _start_of(end))
            self._file = file
        _check(file.place, end)
        if file.place.end_offset < end.end_offset or not file.place.end_position:
            self._walk(file, end)

    def look_after(self, end: Published, *, anew: bool) -> None:
        """As `catch_up`, for all: with a new file where somebody removed the one that this process uses."""
        if self._file is not None and not self._file.is_current():
            self._close_file()
        self.catch_up(end, anew=anew)

    def _path(self) -> str:
        return self._folder.files.path(f"{self._folder.path}/{layout.KEYS_NAME}")

    def _drop(self, reason: str) -> None:
        _log.warning("%s is built anew: %s", self._path(), reason)
        self._close_file()
        remove_key_index(self._folder)

    def _walk(self, file: KeyIndexFile, end: Published) -> None:
        """Note what lies between the file's place and `end`."""
        place = file.place
        entries: dict[bytes, tuple[int, int]] = {}
        identify = file.identify
        try:
            for batch, cursor in batches_behind(self._reader, place, end):
                if batch.has(batch_layout.KEY_OFFSETS):
                    keys, offsets, versions = _keyed(batch)
                    entries.update(
                        zip(map(identify, keys), zip(offsets, map(_next, versions), strict=True), strict=True)
                    )
                if len(entries) >= _GATHERED:
                    file.note(entries)
                    file.advance(_place_at(cursor, end))
                    entries.clear()
        except (CorruptLogError, OffsetOutOfRangeError) as error:
            if place.end_position:
                raise BadKeyIndexError(f"the log does not go on from where the index ends: {error}") from error
            raise
        if entries:
            file.note(entries)
        file.advance(end)

    # --- one batch after the other

    def look_up(self, key: bytes) -> tuple[int, int]:
        """The offset of a key's last record (-1 without one) and the number of its records, with what was assumed.

        Raises:
            CorruptLogError, StorageError: The index was damaged, and could not be built anew.
        """
        if self._single is not None:
            self._gather()
        if self._tentative:
            assumed = self._tentative.get(key)
            if assumed is not None:
                return assumed
        end = self.end
        assert end is not None
        try:
            found = self._file.find(key)  # type: ignore[union-attr]  # open, as there is an end
            if found is not None and not 0 <= found[0] < end.end_offset:
                raise BadKeyIndexError(f"{self._path()} knows of offset {found[0]}; the log ends at {end.end_offset}")
        except BadKeyIndexError as error:
            _log.warning("%s", error)
            self.catch_up(end, anew=True)
            assert self._file is not None
            found = self._file.find(key)
        return (-1, 0) if found is None else found

    def look_up_many(self, keys: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """What `look_up` says of each key."""
        if self._single is not None:
            self._gather()
        assumed = self._tentative
        end = self.end
        assert end is not None
        wanted = [key for key in keys if key not in assumed] if assumed else keys
        try:
            found = self._file.find_many(wanted)  # type: ignore[union-attr]  # open, as there is an end
            last = max((numbers[0] for numbers in found.values()), default=-1)
            if last >= end.end_offset:
                raise BadKeyIndexError(f"{self._path()} knows of offset {last}; the log ends at {end.end_offset}")
        except BadKeyIndexError as error:
            _log.warning("%s", error)
            self.catch_up(end, anew=True)
            assert self._file is not None
            found = self._file.find_many(wanted)
        if assumed:
            found.update((key, assumed[key]) for key in keys if key in assumed)
        return found

    def assume(self, entries: dict[bytes, tuple[int, int]]) -> None:
        """Of each key, offset and number of records when what is being written is published."""
        if self._single is not None:
            self._gather()
        self._tentative.update(entries)

    def assume_single(self, key: bytes, offset: int, records: int) -> None:
        """As `assume`, for the only record of a batch, which most often is the only one of all."""
        if self._single is not None:
            self._gather()
        self._single = key, offset, records

    def _gather(self) -> None:
        single, self._single = self._single, None
        if single is not None:
            self._tentative[single[0]] = single[1:]

    def keep(self, end: Published) -> None:
        """What was assumed is published.

        Raises:
            StorageError, BadKeyIndexError: It could not be noted; the next `catch_up` does it.
        """
        if self._tentative:
            self._gather()
        single, self._single = self._single, None
        self.end = None
        file = self._file
        assert file is not None
        if single is not None:
            file.note_one(*single)
        elif self._tentative:
            tentative, self._tentative = self._tentative, {}
            file.note_many(tentative)
        file.advance(end)
        self.end = end

    def lose_track(self) -> None:
        """Something was published that was not assumed: the next one must `catch_up`."""
        self.forget()
        self.end = None

    def forget(self) -> None:
        """What was assumed was not published, or nothing was."""
        self._single = None
        if self._tentative:
            self._tentative = {}
        if self._file is not None:
            self._file.forget()

    def _close_file(self) -> None:
        self.end = None
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close the files; again is harmless."""
        self._close_file()
        self.forget()
        self._reader.close()


def _next(version: int) -> int:
    return version + 1


def _place_at(cursor: Cursor, end: Published) -> KeyPlace:
    """Where a cursor stands behind a batch."""
    assert cursor.previous is not None
    return KeyPlace(end.epoch, cursor.offset, cursor.segment_base, cursor.position, cursor.previous)


def batches_behind(reader: LogReader, place: KeyPlace | Published, end: Published) -> Iterator[tuple[Batch, Cursor]]:
    """Each batch from a place to an end, with the cursor behind it; the chain is checked from the place on."""
    cursor = Cursor(place.end_offset)
    if place.end_position:
        cursor.segment_base, cursor.position = place.segment_base, place.end_position
        cursor.floor, cursor.previous = place.end_offset, place.last_checksum
    while cursor.offset < end.end_offset:
        for batch, _ in reader.fetch(cursor, end, max_records=1, max_bytes=1):
            yield batch, cursor


def _keyed(batch: Batch) -> tuple[list[bytes], list[int], list[int]]:
    """Keys, offsets and versions of the records that have a key."""
    offset = batch.header.base_offset
    if not batch.has(batch_layout.KEY_VERSIONS):
        raise CorruptLogError(
            f"the batch at offset {offset} has keys without versions, in a topic with a key index: this library "
            f"did not write it; restore it from a copy",
            position=offset,
        )
    try:
        keys = batch.keys(0, batch.count)
        offsets, versions = batch.offsets(0, batch.count), batch.numbers(batch_layout.KEY_VERSIONS, "q", 0, batch.count)
    except BatchError as error:
        raise CorruptLogError(
            f"the batch at offset {batch.header.base_offset} does not decode: {error}",
            position=batch.header.base_offset,
        ) from error
    if None in keys:
        there = [key is not None for key in keys]
        return list(compress(keys, there)), list(compress(offsets, there)), list(compress(versions, there))  # type: ignore[arg-type]
    return keys, list(offsets), list(versions)  # type: ignore[return-value]


def newest(file: KeyIndexFile, reader: LogReader, key: bytes, published: Iterator[Published]) -> tuple[int, Published]:
    """The offset of a key's last record (-1 without one), and the end up to which it is that. Takes no lock.

    Args:
        file: The index.
        reader: The log.
        key: The key.
        published: Yields the published end, each time as it is then.

    Raises:
        NotIndexedError: The index is too far behind, damaged, or of another history.
    """
    try:
        looked = file.look(key)
        if looked is None:
            raise NotIndexedError("it was changed meanwhile")
        place, found = looked
        end = next(published)  # only now: it is not before the place
        _check(place, end)
        offset = -1 if found is None else found[0]
        for number, (batch, _) in enumerate(batches_behind(reader, place, end)):
            if number > _READER_BATCHES:
                raise NotIndexedError("it is too far behind")
            if batch.has(batch_layout.KEY_OFFSETS):
                keys, offsets, _ = _keyed(batch)
                if key in keys:
                    offset = offsets[len(keys) - 1 - keys[::-1].index(key)]
    except (BadKeyIndexError, CorruptLogError, OffsetOutOfRangeError) as error:
        raise NotIndexedError(str(error)) from error
    return offset, end
