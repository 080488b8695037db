"""What `poll` returns: a sequence of records that is built only as far as it is looked at.

A `Records` is a list of slices, each a range of one batch. The columns (`values`, `offsets`, …) come from the batches'
columns directly; `Record` objects are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Generic, TypeVar, overload

from pystreamlog.errors import CorruptLogError
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.record.record import Headers, Record, TopicPartition

__all__ = ["RecordSlice", "Records"]

K = TypeVar("K")
V = TypeVar("V")


class RecordSlice:
    """Records `start` to `stop` of one batch of one partition, with their deserialised keys and values if there are.

    Attributes:
        tp: The partition.
        start: Number of the first record in the batch.
        stop: Number behind the last.
    """

    __slots__ = ("_batch", "_keys", "_values", "start", "stop", "tp")

    def __init__(
        self,
        tp: TopicPartition,
        batch: Batch,
        start: int,
        stop: int,
        keys: list[Any] | None = None,
        values: list[Any] | None = None,
    ) -> None:
        self.tp = tp
        self.start = start
        self.stop = stop
        self._batch = batch
        self._keys = keys
        self._values = values

    def __len__(self) -> int:
        return self.stop - self.start

    def _corrupt(self, error: BatchError) -> CorruptLogError:
        topic, partition = self.tp
        base = self._batch.header.base_offset
        return CorruptLogError(
            f"partition {partition} of topic {topic!r}: the batch at offset {base} does not decode: {error}",
            path=f"{topic}/{partition}",
            position=base,
            found=str(error),
        )

    def _column(self, name: str) -> Any:
        try:
            return getattr(self._batch, name)(self.start, self.stop)
        except BatchError as error:
            raise self._corrupt(error) from error

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return self._batch.offset(self.start)

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return self._batch.offset(self.stop - 1)

    def keys(self) -> list[Any]:
        """Keys, deserialised if the consumer has a serde for them."""
        return self._keys if self._keys is not None else self._column("keys")

    def values(self) -> list[Any]:
        """Values, deserialised if the consumer has a serde for them."""
        return self._values if self._values is not None else self._column("values")

    def offsets(self) -> Sequence[int]:
        """Offsets."""
        return self._column("offsets")  # type: ignore[no-any-return]

    def raw_keys(self) -> list[bytes | None]:
        """Keys as they are stored."""
        return self._column("keys")  # type: ignore[no-any-return]

    def raw(self, offset: int) -> tuple[bytes | None, bytes | None]:
        """Key and value of the record at an offset of the slice, as they are stored."""
        number = self.offsets().index(offset)
        return self.raw_keys()[number], self._column("values")[number]

    def timestamps_ms(self) -> Sequence[int]:
        """Timestamps in ms."""
        return self._column("timestamps_ms")  # type: ignore[no-any-return]

    def headers(self) -> Sequence[Headers]:
        """Headers."""
        return self._column("headers")  # type: ignore[no-any-return]

    def records(self) -> Iterator[Record[Any, Any]]:
        """The records, built as they are taken."""
        topic, partition = self.tp
        offsets, timestamps = self.offsets(), self.timestamps_ms()
        return map(
            Record, repeat(topic), repeat(partition), offsets, timestamps, self.keys(), self.values(), self.headers()
        )


class Records(Sequence[Record[K, V]], Generic[K, V]):
    """Records in the order of their partitions, offsets ascending in each. Immutable.

    The columns are built at each access, at the cost of a list; keep what you need twice. Building `Record` objects
    costs about three times a column of values.
    """

    __slots__ = ("_built", "_length", "_slices")

    def __init__(self, slices: Sequence[RecordSlice] = ()) -> None:
        self._slices = slices
        self._length = sum(map(len, slices))
        self._built: list[Record[K, V]] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record[K, V]]:
        return iter(self._records())

    @overload
    def __getitem__(self, index: int) -> Record[K, V]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record[K, V]]: ...
    def __getitem__(self, index: int | slice) -> Record[K, V] | list[Record[K, V]]:
        return self._records()[index]

    def __repr__(self) -> str:
        tps = dict.fromkeys(part.tp for part in self._slices)
        return f"Records({self._length} records of {', '.join(f'{topic}-{number}' for topic, number in tps)})"

    def _records(self) -> list[Record[K, V]]:
        if self._built is None:
            self._built = list(chain.from_iterable(part.records() for part in self._slices))
        return self._built

    def _joined(self, name: str) -> list[Any]:
        return list(chain.from_iterable(getattr(part, name)() for part in self._slices))

    @property
    def slices(self) -> Sequence[RecordSlice]:
        """The slices that they consist of."""
        return self._slices

    @property
    def topics(self) -> list[str]:
        """Topic name of each record."""
        return list(chain.from_iterable([part.tp.topic] * len(part) for part in self._slices))

    @property
    def partitions(self) -> list[int]:
        """Partition of each record."""
        return list(chain.from_iterable([part.tp.partition] * len(part) for part in self._slices))

    @property
    def offsets(self) -> list[int]:
        """Offset of each record."""
        return self._joined("offsets")

    @property
    def timestamps_ms(self) -> list[int]:
        """Timestamp of each record, in ms since 1970."""
        return self._joined("timestamps_ms")

    @property
    def keys(self) -> list[K | None]:
        """Key of each record."""
        return self._joined("keys")

    @property
    def values(self) -> list[V | None]:
        """Value of each record; None is a tombstone."""
        return self._joined("values")

    @property
    def headers(self) -> list[Headers]:
        """Headers of each record."""
        return self._joined("headers")

    def last_offsets(self) -> dict[TopicPartition, int]:
        """Offset of the last record of each partition."""
        return {part.tp: part.last_offset for part in self._slices}

    def by_partition(self) -> dict[TopicPartition, Records[K, V]]:
        """The records of each partition."""
        groups: dict[TopicPartition, list[RecordSlice]] = {}
        for part in self._slices:
            groups.setdefault(part.tp, []).append(part)
        return {tp: Records(slices) for tp, slices in groups.items()}
