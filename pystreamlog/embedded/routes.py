"""Where a producer's records of one topic go: its serdes, limits, partitions and their accumulators."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import floordiv, mod
from typing import Any

from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.accumulator import Accumulator
from pystreamlog.embedded.buffer import Buffer
from pystreamlog.embedded.columns import record_sizes, total_size
from pystreamlog.embedded.expectations import keyless
from pystreamlog.embedded.key_history import keys_decide
from pystreamlog.errors import (
    ConfigError,
    InvalidRecordError,
    RecordTooLargeError,
    StreamLogError,
    UnknownPartitionError,
)
from pystreamlog.record.batch import encode
from pystreamlog.record.encoded import EncodedBatch, demanding
from pystreamlog.record.identity import falls
from pystreamlog.record.record import Headers
from pystreamlog.record.serde import Serde

__all__ = ["COLUMN_BYTES", "Route"]

COLUMN_BYTES = 64 << 10
"""From this size on, what one `send_many` brings to a partition is a batch worth writing."""
_SEQUENCES_EACH = 1024
"""Consecutive sequences that go to one partition when records have no keys: what is sent again goes where it went."""


class Route:
    """One topic as a producer sends to it.

    Attributes:
        buffer: Where its accumulators belong: what is sent goes there or nowhere, also while a transaction ends.
        state: The topic as it was found.
        key_serde: Of the `Topic` that was passed, else of the producer.
        value_serde: Likewise.
        plain: There are no serdes and no interceptors: bytes pass as they are.
        quick: Nor have the producer's records sequences.
        count: Partitions.
        limit: The largest record accepted, in bytes.
        log_append_time: The log sets the timestamps.
        key_index: Keys have versions, so they stay in their partitions.
        expires_ns: When to look at the topic again.
        sticky: Partition for records without a key, until its batch is full.
        only: The accumulator of a topic of one partition; None with several.
    """

    __slots__ = (
        "_accumulators",
        "_config",
        "_partitions",
        "_placing",
        "buffer",
        "count",
        "expires_ns",
        "key_index",
        "key_serde",
        "limit",
        "log_append_time",
        "only",
        "plain",
        "quick",
        "state",
        "sticky",
        "value_serde",
        "wants_keys",
    )

    def __init__(
        self,
        state: TopicState,
        partitions: Partitions,
        config: ProducerConfig,
        serdes: tuple[Serde[Any] | None, Serde[Any] | None],
        buffer: Buffer,
        expires_ns: int,
        sticky: int,
    ) -> None:
        self.state = state
        self.buffer = buffer
        self.key_serde, self.value_serde = serdes
        self.plain = serdes == (None, None) and not config.interceptors
        self.quick = self.plain and config.producer_id is None
        self.count = state.partitions
        self.limit = min(config.max_request_size, state.config.max_message_bytes)
        self.log_append_time = state.config.message_timestamp_type == "LogAppendTime"
        self.key_index = state.config.key_index
        self.wants_keys = state.config.compacts
        if self.key_index and state.partitions > 1 and config.partitioner != "xxhash":
            raise ConfigError(
                f"topic {state.name!r} has a key index, so every producer must place a key as all others do: leave the "
                "producer's partitioner out"
            )
        self.expires_ns = expires_ns
        self.sticky = sticky % state.partitions
        self._partitions = partitions
        self._accumulators = buffer.accumulators(state)
        self._config = config
        self._placing = config.placing
        for partition in self._accumulators:
            partitions.writer(state, partition)  # tells it the topic's latest settings
        self.only = self.accumulator(0) if state.partitions == 1 else None

    def turn(self) -> None:
        """A batch is full: records without a key go to the next partition."""
        self.sticky = (self.sticky + 1) % self.count

    def place(self, key: bytes | None, value: bytes | None, sequence: int | None = None) -> Accumulator:
        """The accumulator of the partition that the partitioner chooses."""
        if self.only is not None:
            return self.only
        sticky = self.sticky if sequence is None else sequence // _SEQUENCES_EACH % self.count
        return self.accumulator(self._placing.partition(self.state.name, key, value, self.count, sticky))

    def places(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None, sequences: Sequence[int] | None
    ) -> list[int]:
        """The partitions that the partitioner chooses for columns of records."""
        if keys is None:
            keys = [None] * len(values)
        if sequences is None:
            return self._placing.partitions(self.state.name, keys, values, self.count, self.sticky)
        placed = self._placing.partitions(self.state.name, keys, values, self.count, -1)
        if -1 in placed:
            own = map(mod, map(floordiv, sequences, repeat(_SEQUENCES_EACH)), repeat(self.count))
            placed = [one if one >= 0 else other for one, other in zip(placed, own, strict=True)]
        return placed

    def named(self, partition: int) -> Accumulator:
        """The accumulator of a partition that the sender names.

        Raises:
            UnknownPartitionError: There is no such partition.
            ConfigError: The topic has a key index: keys decide.
        """
        if self.key_index:
            raise keys_decide(self.state.name)
        return self.accumulator(partition)

    def accumulator(self, partition: int) -> Accumulator:
        """The accumulator of a partition.

        Raises:
            UnknownPartitionError: There is no such partition.
        """
        accumulator = self._accumulators.get(partition)
        if accumulator is None:
            if type(partition) is not int or not 0 <= partition < self.count:
                raise UnknownPartitionError(
                    f"topic {self.state.name!r} has partitions 0 to {self.count - 1}, not {partition!r}",
                    topic=self.state.name,
                    partition=partition,
                )
            writer = self._partitions.writer(self.state, partition)
            tally = self.buffer.settlement.metrics.tally(self.state.name, partition)
            accumulator = Accumulator(self.state.name, partition, writer, tally)
            accumulator = self._accumulators.setdefault(partition, accumulator)
        return accumulator

    def check_sizes(self, values: Sequence[Any], keys: Sequence[Any] | None, headers: Sequence[Headers] | None) -> None:
        """Refuse columns with a record over the limit, or without a key where it needs one.

        Quick when all together are below the limit.
        """
        if self.wants_keys and (keys is None or None in keys):
            raise self.keyless(0 if keys is None else keys.index(None))
        if headers is None and total_size(values) + total_size(keys) <= self.limit:
            return
        sizes = record_sizes(values, keys, headers)
        largest = max(sizes)
        if largest > self.limit:
            raise self.too_large(largest, sizes.index(largest))

    def encoded(
        self,
        values: Sequence[Any],
        keys: Sequence[Any] | None,
        stamps: Sequence[int] | int,
        sequences: Sequence[int] | None,
    ) -> EncodedBatch | None:
        """The columns as a batch of their own, if they are of the size of one; None to go the way of single records.

        What is no bytes goes that way too, and is refused there by name.
        """
        first, config = values[0], self._config
        if type(first) is not bytes or not COLUMN_BYTES <= len(first) * len(values) <= config.batch_size:
            return None
        if sequences is not None and falls(sequences):
            return None
        if self.wants_keys and (keys is None or None in keys):
            return None
        number = config.producer_number
        try:
            encoded = encode(
                values,
                keys,
                stamps,
                codec=config.codec,
                log_append_time=self.log_append_time,
                producer_id=number,
                sequences=sequences,
            )
        except TypeError:
            return None
        if encoded.size > self.limit or config.codec is not None:
            largest = max(map(len, filter(None, values)), default=0)
            if keys is not None:
                largest += max(map(len, filter(None, keys)), default=0)
            if largest > self.limit:
                return None
        if sequences is not None or self.key_index:
            encoded.demands = demanding(keys if self.key_index else None, sequences or (), number)
        return encoded

    def refused(self, size: int) -> StreamLogError:
        """The error for a record over the limit, or without a key where it needs one."""
        return self.too_large(size) if size > self.limit else self.keyless()

    def keyless(self, index: int = 0) -> InvalidRecordError:
        """The error for a record without a key in a compacted topic."""
        return keyless(self.state.name, index)

    def too_large(self, size: int, index: int = 0) -> RecordTooLargeError:
        """The error for a record over the limit."""
        return RecordTooLargeError(
            f"a record of {size} bytes for topic {self.state.name!r} exceeds {self.limit}: raise the producer's "
            f"max_request_size and the topic's max_message_bytes, or send less at once",
            size=size,
            limit=self.limit,
            index=index,
        )
