"""One assigned partition of a consumer: where it reads, what it has fetched ahead, and what it hands out next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from pystreamlog.backend.records import RecordSlice
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.embedded.consumer_metrics import FetchTally
from pystreamlog.errors import CorruptLogError, SerdeError
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.record.record import Headers, TopicPartition
from pystreamlog.record.serde import Serde, loads_with
from pystreamlog.storage.reader import Cursor

__all__ = ["Position"]


class Position:
    """Reads one partition. One user at a time.

    Attributes:
        tp: The partition.
        topic_id: Its topic's id; another topic of that name has another.
        reader: Reads it.
        paused: Hands out nothing.
        given_up: Hands out nothing, as the group takes the partition away.
        offset: The offset of the next record to hand out; -1 until it is looked up.
        tally: Counts what is read.
        bounds: The partition's start and end when its lag was last looked up; None before.
    """

    __slots__ = (
        "_ahead",
        "_cursor",
        "_failure",
        "_key_serde",
        "_value_serde",
        "bounds",
        "given_up",
        "offset",
        "paused",
        "reader",
        "tally",
        "topic_id",
        "tp",
    )

    def __init__(
        self,
        tp: TopicPartition,
        topic_id: bytes,
        reader: PartitionReader,
        key_serde: Serde[Any] | None,
        value_serde: Serde[Any] | None,
        tally: FetchTally | None = None,
    ) -> None:
        self.tp = tp
        self.topic_id = topic_id
        self.reader = reader
        self.paused = False
        self.given_up = False
        self.offset = -1
        self.tally = FetchTally(0.0) if tally is None else tally
        self.bounds: tuple[int, int] | None = None
        self._cursor = Cursor(0)
        self._ahead: deque[tuple[Batch, int]] = deque()
        self._failure: SerdeError | None = None
        self._key_serde = key_serde
        self._value_serde = value_serde

    def seek(self, offset: int) -> None:
        """Go on from `offset`."""
        self._ahead.clear()
        self._failure = None
        self._cursor.move(offset)
        self.offset = offset

    def use(self, key_serde: Serde[Any] | None, value_serde: Serde[Any] | None) -> None:
        """Deserialise with these from now on."""
        self._key_serde = key_serde
        self._value_serde = value_serde
        self._failure = None

    def take(self, max_records: int) -> list[RecordSlice]:
        """The next records, moving the position past them; empty at the end.

        What fails leaves the position on the first record that was not returned: records before it come first, the
        error at the next call.

        Raises:
            SerdeError: The next record does not deserialise; the position stays on it.
            OffsetOutOfRangeError: The position lies before the log's start.
            CorruptLogError: The partition does not verify.
        """
        if self._failure is not None:
            raise self._failure
        if not self._ahead:
            self._fetch(max_records)
            if not self._ahead:
                self.offset = self._cursor.offset  # no record has an offset in between: compaction removed them
        first = self.offset
        slices: list[RecordSlice] = []
        left, size = max_records, 0
        try:
            while self._ahead and left > 0 and self._failure is None:
                batch, start = self._ahead[0]
                part = self._slice(batch, start, min(batch.count, start + left))
                if len(part):
                    self.offset = batch.offset(part.stop - 1) + 1
                    slices.append(part)
                    left -= len(part)
                    size += batch.header.size if len(part) == batch.count else _share(batch, part.start, part.stop)
                if part.stop < batch.count:
                    self._ahead[0] = batch, part.stop
                else:
                    self._ahead.popleft()
        except BatchError as error:
            if not slices:
                raise self._corrupt(error) from error
        except BaseException:  # Ctrl-C in a serde: nothing was handed out
            self.seek(first)
            raise
        if slices:
            tally = self.tally
            tally.records += max_records - left
            tally.bytes += size
        elif self._failure is not None:
            raise self._failure
        return slices

    def _fetch(self, max_records: int) -> None:
        """Read ahead; after a failure the cursor is where the position is, so that nothing is skipped."""
        started = monotonic()
        try:
            found = self.reader.fetch(self._cursor, max_records=max_records)
            if found:
                self._ahead.extend(found)
                size = found[0][0].header.size if len(found) == 1 else sum([batch.header.size for batch, _ in found])
                self.tally.fetched(started, monotonic(), size)
        except CorruptLogError:
            self.seek(self.offset)
            try:  # the batches before the damaged one, one by one
                self._ahead.extend(self.reader.fetch(self._cursor, max_records=1))
            except BaseException:
                self.seek(self.offset)
                raise
        except BaseException:
            self.seek(self.offset)
            raise

    def _corrupt(self, error: BatchError) -> CorruptLogError:
        topic, partition = self.tp
        return CorruptLogError(
            f"partition {partition} of topic {topic!r}: the batch at offset {self.offset} does not decode: {error}; "
            "restore it, or seek past it",
            path=f"{topic}/{partition}",
            position=self.offset,
            found=str(error),
        )

    def _slice(self, batch: Batch, start: int, stop: int) -> RecordSlice:
        """Records of a batch, deserialised if there are serdes; ends before the first that fails, which is kept."""
        if self._key_serde is None and self._value_serde is None:
            return RecordSlice(self.tp, batch, start, stop)
        raw_keys, raw_values = batch.keys(start, stop), batch.values(start, stop)
        headers = batch.headers(start, stop)
        keys, key_error = self._load(self._key_serde, raw_keys, headers, "key")
        values, value_error = self._load(self._value_serde, raw_values, headers, "value")
        good = min(len(keys), len(values))
        if good < stop - start:
            error = key_error if len(keys) == good else value_error
            assert error is not None
            self._failure = self._located(
                error, batch.offsets(start + good, start + good + 1)[0], raw_keys[good], raw_values[good], headers[good]
            )
        return RecordSlice(self.tp, batch, start, start + good, keys[:good], values[:good])

    def _located(
        self, error: SerdeError, offset: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> SerdeError:
        """The error with the record that it is about."""
        topic, partition = self.tp
        located = SerdeError(
            f"{error}; it is the record at offset {offset} of partition {partition}: seek past it to go on",
            topic=topic,
            partition=partition,
            offset=offset,
            key=key,
            value=value,
            headers=headers,
        )
        located.__cause__ = error.__cause__
        return located

    def _load(
        self, serde: Serde[Any] | None, column: Sequence[bytes | None], headers: Sequence[Headers], what: str
    ) -> tuple[list[Any], SerdeError | None]:
        """The deserialised column up to the first item that fails, and why that does."""
        if serde is None:
            return list(column), None
        loaded: list[Any] = []
        topic = self.tp.topic
        try:
            for data, pairs in zip(column, headers, strict=True):
                loaded.append(None if data is None else loads_with(serde, topic, pairs, data, what))
        except SerdeError as error:
            return loaded, error
        return loaded, None


def _share(batch: Batch, start: int, stop: int) -> int:
    """The share of some of a batch's records in its bytes; the shares of all add up to these."""
    size, count = batch.header.size, batch.count
    return size * stop // count - size * start // count
