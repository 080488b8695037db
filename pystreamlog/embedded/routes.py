"""Where a producer's records of one topic go: its serdes, limits, partitions and their accumulators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.accumulator import Accumulator
from pystreamlog.embedded.columns import record_sizes, total_size
from pystreamlog.embedded.expectations import keys_decide
from pystreamlog.errors import ConfigError, RecordTooLargeError, UnknownPartitionError
from pystreamlog.record.record import Headers
from pystreamlog.record.serde import Serde

__all__ = ["Route"]


class Route:
    """One topic as a producer sends to it.

    Attributes:
        state: The topic as it was found.
        key_serde: Of the `Topic` that was passed, else of the producer.
        value_serde: Likewise.
        plain: There are no serdes and no interceptors: bytes pass as they are.
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
        "_partitions",
        "_placing",
        "count",
        "expires_ns",
        "key_index",
        "key_serde",
        "limit",
        "log_append_time",
        "only",
        "plain",
        "state",
        "sticky",
        "value_serde",
    )

    def __init__(
        self,
        state: TopicState,
        partitions: Partitions,
        config: ProducerConfig,
        serdes: tuple[Serde[Any] | None, Serde[Any] | None],
        accumulators: dict[int, Accumulator],
        expires_ns: int,
        sticky: int,
    ) -> None:
        self.state = state
        self.key_serde, self.value_serde = serdes
        self.plain = serdes == (None, None) and not config.interceptors
        self.count = state.partitions
        self.limit = min(config.max_request_size, state.config.max_message_bytes)
        self.log_append_time = state.config.message_timestamp_type == "LogAppendTime"
        self.key_index = state.config.key_index
        if self.key_index and state.partitions > 1 and config.partitioner != "xxhash":
            raise ConfigError(
                f"topic {state.name!r} has a key index, so every producer must place a key as all others do: leave the "
                "producer's partitioner out"
            )
        self.expires_ns = expires_ns
        self.sticky = sticky % state.partitions
        self._partitions = partitions
        self._accumulators = accumulators
        self._placing = config.placing
        for partition in accumulators:
            partitions.writer(state, partition)  # tells it the topic's latest settings
        self.only = self.accumulator(0) if state.partitions == 1 else None

    def turn(self) -> None:
        """A batch is full: records without a key go to the next partition."""
        self.sticky = (self.sticky + 1) % self.count

    def place(self, key: bytes | None, value: bytes | None) -> Accumulator:
        """The accumulator of the partition that the partitioner chooses."""
        if self.only is not None:
            return self.only
        return self.accumulator(self._placing.partition(self.state.name, key, value, self.count, self.sticky))

    def places(self, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> list[int]:
        """The partitions that the partitioner chooses for columns of records."""
        if keys is None:
            keys = [None] * len(values)
        return self._placing.partitions(self.state.name, keys, values, self.count, self.sticky)

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
            accumulator = self._accumulators.setdefault(partition, Accumulator(self.state.name, partition, writer))
        return accumulator

    def check_sizes(self, values: Sequence[Any], keys: Sequence[Any] | None, headers: Sequence[Headers] | None) -> None:
        """Refuse columns with a record over the limit; quick when all together are below it."""
        if headers is None and total_size(values) + total_size(keys) <= self.limit:
            return
        sizes = record_sizes(values, keys, headers)
        largest = max(sizes)
        if largest > self.limit:
            raise self.too_large(largest, sizes.index(largest))

    def too_large(self, size: int, index: int = 0) -> RecordTooLargeError:
        """The error for a record over the limit."""
        return RecordTooLargeError(
            f"a record of {size} bytes for topic {self.state.name!r} exceeds {self.limit}: raise the producer's "
            f"max_request_size and the topic's max_message_bytes, or send less at once",
            size=size,
            limit=self.limit,
            index=index,
        )
