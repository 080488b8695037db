"""One assigned partition of a consumer: where it reads, what it has fetched ahead, and what it hands out next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from pystreamlog.backend.records import RecordSlice
from pystreamlog.coordination.partition import PartitionReader
from pystreamlog.errors import SerdeError
from pystreamlog.record.batch import Batch
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
        offset: The offset of the next record to hand out; -1 until it is looked up.
    """

    __slots__ = (
        "_ahead",
        "_cursor",
        "_failure",
        "_key_serde",
        "_value_serde",
        "offset",
        "paused",
        "reader",
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
    ) -> None:
        self.tp = tp
        self.topic_id = topic_id
        self.reader = reader
        self.paused = False
        self.offset = -1
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

    def take(self, max_records: int) -> list[RecordSlice]:
        """The next records, moving the position past them; empty at the end.

        Raises:
            SerdeError: The next record does not deserialise; the position stays on it.
            OffsetOutOfRangeError: The position lies before the log's start.
            CorruptLogError: The partition does not verify.
        """
        if self._failure is not None:
            raise self._failure
        if not self._ahead:
            self._ahead.extend(self.reader.fetch(self._cursor, max_records=max_records))
        slices: list[RecordSlice] = []
        left = max_records
        while self._ahead and left > 0:
            batch, start = self._ahead.popleft()
            stop = min(batch.count, start + left)
            part = self._slice(batch, start, stop)
            if len(part):
                slices.append(part)
                left -= len(part)
                self.offset = batch.offsets(part.stop - 1, part.stop)[0] + 1
            if part.stop < batch.count:
                self._ahead.appendleft((batch, part.stop))
            if self._failure is not None:
                if not slices:
                    raise self._failure
                break
        return slices

    def _slice(self, batch: Batch, start: int, stop: int) -> RecordSlice:
        """Records of a batch, deserialised if there are serdes; ends before the first that fails, which is kept."""
        if self._key_serde is None and self._value_serde is None:
            return RecordSlice(self.tp, batch, start, stop)
        keys, values = batch.keys(start, stop), batch.values(start, stop)
        headers = batch.headers(start, stop)
        columns: list[list[Any]] = []
        for serde, column, what in ((self._key_serde, keys, "key"), (self._value_serde, values, "value")):
            loaded = list(column) if serde is None else self._load(serde, column, headers, what)
            columns.append(loaded)
        good = min(map(len, columns))
        if good < stop - start:
            offset = batch.offsets(start + good, start + good + 1)[0]
            what, serde = ("key", self._key_serde) if len(columns[0]) == good else ("value", self._value_serde)
            data = keys[good] if what == "key" else values[good]
            try:
                loads_with(serde, self.tp.topic, headers[good], data, what)  # type: ignore[arg-type]
            except SerdeError as error:
                topic, partition = self.tp
                self._failure = SerdeError(
                    f"{error}; it is the record at offset {offset} of partition {partition}: seek past it to go on",
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    key=keys[good],
                    value=values[good],
                    headers=headers[good],
                )
                self._failure.__cause__ = error.__cause__
        return RecordSlice(self.tp, batch, start, start + good, columns[0][:good], columns[1][:good])

    def _load(
        self, serde: Serde[Any], column: Sequence[bytes | None], headers: Sequence[Headers], what: str
    ) -> list[Any]:
        """The deserialised column, up to the first item that fails."""
        loaded: list[Any] = []
        topic = self.tp.topic
        try:
            for data, pairs in zip(column, headers, strict=True):
                loaded.append(None if data is None else loads_with(serde, topic, pairs, data, what))
        except SerdeError:
            pass
        return loaded
