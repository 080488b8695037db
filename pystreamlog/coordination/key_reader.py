"""One key's records out of a partition with a key index, without a lock and while others write it.

The index knows a key's last record, and each record the one before it. Neither is believed without the record: it must
be where it was said to be, with that key, and the version below that of the record behind it.

Where the index is missing, behind, damaged or wrong, the partition's writer is asked, which looks after it under the
append lock. Where nothing may be written, or that does not help, the whole partition is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

from pystreamlog.coordination.open_files import made_room
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.errors import CorruptLogError, LockTimeoutError, OffsetOutOfRangeError, ReadOnlyError, StorageError
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.record.single import SingleRecord, key_at, links_at, record_at
from pystreamlog.storage.control import Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index import NotIndexedError, newest
from pystreamlog.storage.key_index_file import KeyIndexFile
from pystreamlog.storage.key_index_leaf import BadKeyIndexError
from pystreamlog.storage.point_reader import PointReader
from pystreamlog.storage.reader import Cursor

__all__ = ["KeyReader"]

_KEPT = 4096
"""Batches that are kept from the way back, so that few records are looked up twice."""
_KEPT_BYTES = 8 << 20


class KeyReader(PartitionReader):
    """Reads the records of keys. One user at a time, but for `try_close`.

    Args:
        folder: The partition.
        context: The log's.
        recover: Recovers the partition when that is needed and the log may be written.
        ask: The offset of a key's last record, -1 without one, as the partition's writer knows it under the append
            lock; with True, after building the index anew.
    """

    __slots__ = ("_ask", "_batch", "_index", "_points")

    def __init__(
        self,
        folder: Folder,
        context: PartitionContext,
        recover: Callable[[], None],
        ask: Callable[[bytes, bool], int],
    ) -> None:
        super().__init__(folder, context, recover)
        self._ask = ask
        self._points = PointReader(folder, map_reads=context.map_reads)
        self._index: KeyIndexFile | None = None
        self._batch: Batch | None = None

    def history(self, key: bytes) -> Iterator[SingleRecord]:
        """The records with that key, oldest first, up to the end at the call.

        Costs a look-up per batch that holds one, whatever else the partition holds; 8 bytes of memory per record, and
        some MiB of batches.

        Raises:
            CorruptLogError: The partition does not verify.
        """
        for attempt in range(3):
            try:
                # Without the lock; else what the writer says under it; else what a new index says.
                last = None if not attempt else self._ask(key, attempt == 2)  # noqa: PLR2004 - the last one
                with self._mutex:
                    return self._history(key, last)
            except NotIndexedError:
                self._close_index()
            except (ReadOnlyError, LockTimeoutError):
                break
            except StorageError as error:
                if not made_room(error):
                    break
        return self._scan(key)

    def _history(self, key: bytes, last: int | None) -> Iterator[SingleRecord]:
        if self._reader is None and self._open() is None:
            return iter(())
        self.recent = True
        end = self._published()
        if end is None or end.end_offset == end.log_start_offset:
            return iter(())
        if last is None:
            if self._in_memory is not None:
                raise NotIndexedError("it was written in another boot")
            assert self._reader is not None
            last, end = newest(self._key_index(), self._reader, key, self._ends())
        kept: dict[int, tuple[Batch, int]] = {}
        offsets = array("q")
        offset, size, version = last, 0, -1
        last_batch: Batch | None = None
        while offset >= 0:
            found = self._at(offset, end)
            if found is None:
                if not offsets:
                    raise NotIndexedError(f"there is no record at offset {offset}")
                break  # compaction has removed it, and what came before it
            batch, number = found
            its_version, previous = links_at(batch, number)
            if key_at(batch, number) != key or previous >= offset or (offsets and its_version != version - 1):
                if not offsets:
                    raise NotIndexedError(f"the record at offset {offset} has another key")
                path = self.folder.files.path(self.folder.path)
                raise CorruptLogError(
                    f"{path}: the record at offset {offsets[-1]} says that the one before it with its key is at offset "
                    f"{offset}, where another is: restore the partition from a copy",
                    path=path,
                    position=offset,
                )
            offsets.append(offset)
            if len(kept) < _KEPT and size < _KEPT_BYTES:
                kept[offset] = found
                size += batch.size if batch is not last_batch else 0
            last_batch = batch
            offset, version = previous, its_version
        offsets.reverse()
        return self._records(offsets, kept, end)

    def _key_index(self) -> KeyIndexFile:
        if self._index is None:
            try:
                self._index = KeyIndexFile.open(self.folder, write=False)
            except (FileNotFoundError, BadKeyIndexError) as error:
                raise NotIndexedError(str(error)) from error
        return self._index

    def _ends(self) -> Iterator[Published]:
        end = self._published()
        assert end is not None
        yield end

    def _at(self, offset: int, end: Published) -> tuple[Batch, int] | None:
        """The batch with the record at an offset, and its number in it; None where there is none."""
        if not end.log_start_offset <= offset < end.end_offset:
            return None
        batch = self._batch  # a key's records often share one
        if batch is None or not batch.header.base_offset <= offset <= batch.header.last_offset:
            batch = self._points.batch_at(offset, end)
        try:
            if batch is None:
                assert self._reader is not None
                try:
                    found = self._reader.fetch(Cursor(offset), end, max_records=1, max_bytes=1)
                except OffsetOutOfRangeError:
                    return None
                if not found:
                    return None
                batch = found[0][0]
            self._batch = batch
            number = batch.index_of_offset(offset)
            return (batch, number) if number < batch.count and batch.offset(number) == offset else None
        except BatchError as error:
            raise self._undecodable(error, offset) from error

    def _undecodable(self, error: BatchError, offset: int) -> CorruptLogError:
        path = self.folder.files.path(self.folder.path)
        return CorruptLogError(
            f"{path}: the batch that holds offset {offset} does not decode: {error}; restore the partition from a copy",
            path=path,
            position=offset,
            found=str(error),
        )

    def _records(
        self, offsets: Sequence[int], kept: dict[int, tuple[Batch, int]], end: Published
    ) -> Iterator[SingleRecord]:
        """The records at these offsets, which were seen to be there."""
        for offset in offsets:
            found = kept.pop(offset, None)
            if found is None:
                with self._mutex:
                    if self._reader is None:
                        self._open()
                    found = self._at(offset, end)
                if found is None:
                    continue  # compacted meanwhile
            yield self._record(*found)

    def _record(self, batch: Batch, number: int) -> SingleRecord:
        try:
            return record_at(batch, number)
        except BatchError as error:
            raise self._undecodable(error, batch.header.base_offset) from error

    def _scan(self, key: bytes) -> Iterator[SingleRecord]:
        """The records with that key, by reading everything."""
        start, stop = self.offsets()
        cursor = Cursor(start)
        while cursor.offset < stop:
            found = self.fetch(cursor, max_records=1)
            if not found:
                return
            for batch, first in found:
                try:
                    keys = batch.keys(first, batch.count)
                except BatchError as error:
                    raise self._undecodable(error, batch.header.base_offset) from error
                for number, other in enumerate(keys, first):
                    if other == key and batch.offset(number) < stop:
                        yield self._record(batch, number)

    def _close_index(self) -> None:
        with self._mutex:
            index, self._index = self._index, None
            if index is not None:
                index.close()

    def _close_files(self) -> None:
        super()._close_files()
        self._points.close()
        self._batch = None
        index, self._index = self._index, None
        if index is not None:
            index.close()
