"""The contract of positions: where a consumer starts, where it is, and how it is sent elsewhere."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import Any

import pytest

from pystreamlog import StreamLog, TopicPartition
from pystreamlog.errors import (
    ConfigError,
    IllegalStateError,
    NoOffsetError,
    OffsetOutOfRangeError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp, values

__all__ = ["PositionContract"]

NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)
NOON_MS = 1_715_947_200_000


def fill_at(log: StreamLog, *timestamps_ms: int) -> None:
    """Send one record per timestamp."""
    log.create_topic("events", exist_ok=True)
    with log.producer() as producer:
        producer.send_many("events", [b"x"] * len(timestamps_ms), timestamps_ms=timestamps_ms).result()


class PositionContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- where it starts

    def test_earliest_starts_with_the_first_record(self, log: StreamLog) -> None:
        """Of every partition."""
        fill(log, 4, partitions=2)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            assert {consumer.position(tp(0)), consumer.position(tp(1))} == {0}
            assert len(take(consumer, 4)) == 4

    def test_latest_is_fixed_at_the_subscription(self, log: StreamLog) -> None:
        """What is sent between it and the first `poll` is read, and what was there before is not."""
        fill(log, 3)
        with log.consumer("events") as subscribed, log.consumer() as assigned:
            assigned.assign([tp()])
            fill(log, 2, first=3)
            for consumer in (subscribed, assigned):
                assert consumer.position(tp()) == 3
                assert values(consumer.poll(PATIENCE)) == [b"3", b"4"]

    def test_latest_in_a_partition_that_was_never_used(self, log: StreamLog) -> None:
        """Its first record is read."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            assert consumer.position(tp()) == 0
            fill(log, 1)
            assert values(consumer.poll(PATIENCE)) == [b"0"]

    def test_none_needs_a_seek(self, log: StreamLog) -> None:
        """Until then everything that needs a position raises."""
        fill(log, 3)
        with log.consumer("events", auto_offset_reset="none") as consumer:
            for call in (lambda: consumer.poll(0), lambda: consumer.position(tp()), consumer.lag):
                with pytest.raises(NoOffsetError) as caught:
                    call()
                assert (caught.value.topic, caught.value.partition) == ("events", 0)
            consumer.seek(tp(), 1)
            assert values(consumer.poll(PATIENCE)) == [b"1", b"2"]

    def test_duration_starts_so_far_back(self, log: StreamLog) -> None:
        """At the first record that is not older; at the end if all are."""
        now = time_ns() // 1_000_000
        fill_at(log, now - 100_000, now - 50_000, now)
        for back, start in ((75, 1), (1000, 0), (1, 2)):
            with log.consumer("events", auto_offset_reset=timedelta(seconds=back)) as consumer:
                assert consumer.position(tp()) == start
        fill_at(log, *[now - 99_000] * 2)
        with log.consumer("events", auto_offset_reset=timedelta.max) as consumer:
            assert consumer.position(tp()) == 0

    def test_duration_starts_at_the_end_if_all_are_older(self, log: StreamLog) -> None:
        """What comes is read."""
        fill_at(log, 1000, 2000)
        with log.consumer("events", auto_offset_reset=timedelta(hours=1)) as consumer:
            fill(log, 1)
            assert consumer.poll(PATIENCE).offsets == [2]

    def test_duration_into_the_future_is_refused(self, log: StreamLog) -> None:
        """It would mean nothing."""
        with pytest.raises(ConfigError):
            log.consumer(auto_offset_reset=timedelta(seconds=-1))

    # --- where it is

    def test_position_is_the_next_record(self, log: StreamLog) -> None:
        """It follows what `poll` returned, and the lag is what is left."""
        fill(log, 10)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            assert (consumer.position(tp()), consumer.lag()) == (0, {tp(): 10})
            consumer.poll(PATIENCE, max_records=4)
            assert (consumer.position(tp()), consumer.lag()) == (4, {tp(): 6})
            take(consumer, 6)
            assert (consumer.position(tp()), consumer.lag()) == (10, {tp(): 0})

    def test_partition_may_be_a_plain_pair(self, log: StreamLog) -> None:
        """A `TopicPartition` is one."""
        fill(log, 3)
        pair: Any = ("events", 0)
        with log.consumer() as consumer:
            consumer.assign([pair])
            consumer.seek(pair, 2)
            assert consumer.position(pair) == 2
            (found,) = consumer.end_offsets([pair])
            assert isinstance(found, TopicPartition)

    @pytest.mark.parametrize("bad", ["events", ("events",), 5, None, (5, 0), ("events", 0, 0)])
    def test_what_is_no_partition_is_refused(self, log: StreamLog, bad: Any) -> None:
        """By everything that takes one."""
        fill(log, 1)
        with log.consumer("events") as consumer, log.consumer() as other:
            for call in (
                lambda: consumer.position(bad),
                lambda: consumer.seek(bad, 0),
                lambda: consumer.pause(bad),
                lambda: consumer.end_offsets([bad]),
                lambda: consumer.offsets_for_times({bad: 0}),
                lambda: other.assign([bad]),
            ):
                with pytest.raises(ConfigError):
                    call()

    def test_partition_that_is_not_assigned(self, log: StreamLog) -> None:
        """Has no position, and cannot be sought or paused."""
        fill(log, 2, partitions=2)
        with log.consumer() as consumer:
            consumer.assign([tp(0)])
            for call in (
                lambda: consumer.position(tp(1)),
                lambda: consumer.seek(tp(1), 0),
                lambda: consumer.seek_to_beginning(tp(1)),
                lambda: consumer.seek_to_end(tp(1)),
                lambda: consumer.seek_to_timestamp(0, tp(1)),
                lambda: consumer.pause(tp(1)),
                lambda: consumer.resume(tp(1)),
            ):
                with pytest.raises(IllegalStateError):
                    call()

    # --- seeking

    def test_seek_goes_to_an_offset(self, log: StreamLog) -> None:
        """Back, forth, to the end, and before the first `poll`."""
        fill(log, 10)
        with log.consumer("events", max_poll_records=2) as consumer:
            for offset in (3, 8, 0, 9):
                consumer.seek(tp(), offset)
                assert consumer.position(tp()) == offset
                assert consumer.poll(PATIENCE)[0].offset == offset
            consumer.seek(tp(), 10)
            assert not consumer.poll(0)
            fill(log, 1, first=10)
            assert consumer.poll(PATIENCE).offsets == [10]

    @pytest.mark.parametrize("offset", [-1, 11, 2**70, 1.0, "5", None, True])
    def test_seek_outside_is_an_error(self, log: StreamLog, offset: Any) -> None:
        """It moves nothing."""
        fill(log, 10)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            consumer.poll(PATIENCE, max_records=2)
            with pytest.raises(OffsetOutOfRangeError) as caught:
                consumer.seek(tp(), offset)
            assert (caught.value.topic, caught.value.partition) == ("events", 0)
            assert consumer.position(tp()) == 2

    def test_seek_to_beginning_and_end(self, log: StreamLog) -> None:
        """Of the named partitions, or of all."""
        fill(log, 10, partitions=2)
        with log.consumer("events") as consumer:
            consumer.seek_to_beginning(tp(0))
            assert (consumer.position(tp(0)), consumer.position(tp(1))) == (0, 5)
            consumer.seek_to_beginning()
            assert (consumer.position(tp(0)), consumer.position(tp(1))) == (0, 0)
            consumer.seek_to_end(tp(1))
            assert (consumer.position(tp(0)), consumer.position(tp(1))) == (0, 5)
            assert set(consumer.poll(PATIENCE).partitions) == {0}
            consumer.seek_to_end()
            assert not consumer.poll(0)

    def test_seek_to_a_time(self, log: StreamLog) -> None:
        """Milliseconds or an aware datetime: the first record not older, or the end."""
        fill_at(log, *(NOON_MS + 1000 * number for number in range(5)))
        with log.consumer("events") as consumer:
            for when, offset in (
                (0, 0),
                (NOON_MS + 1, 1),
                (NOON_MS + 2000, 2),
                (NOON + timedelta(seconds=3), 3),
                (NOON + timedelta(seconds=4, milliseconds=1), 5),
                (datetime(9999, 12, 31, tzinfo=UTC), 5),
            ):
                consumer.seek_to_timestamp(when)
                assert consumer.position(tp()) == offset
            consumer.seek_to_timestamp(NOON, tp())
            assert consumer.position(tp()) == 0

    @pytest.mark.parametrize("when", [datetime(2024, 1, 1), -1, "now", 1.5, None])  # noqa: DTZ001 - naive on purpose
    def test_bad_time_is_refused(self, log: StreamLog, when: Any) -> None:
        """Naive, before 1970, or no time at all."""
        fill(log, 1)
        with log.consumer("events") as consumer:
            with pytest.raises(ConfigError):
                consumer.seek_to_timestamp(when)
            with pytest.raises(ConfigError):
                consumer.offsets_for_times({tp(): when})

    def test_offsets_for_times(self, log: StreamLog) -> None:
        """The first record not older, wherever times go back and forth; None where all are older."""
        fill_at(log, 1000, 3000, 2000, 5000)
        with log.consumer() as consumer:
            for when, offset in ((0, 0), (1000, 0), (1001, 1), (2500, 1), (3001, 3), (5000, 3), (5001, None)):
                assert consumer.offsets_for_times({tp(): when}) == {tp(): offset}
            with pytest.raises(UnknownPartitionError):
                consumer.offsets_for_times({tp(5): 0})
            with pytest.raises(UnknownTopicError):
                consumer.offsets_for_times({tp(0, "unknown"): 0})

    def test_bounds_of_any_partition(self, log: StreamLog) -> None:
        """It need not be assigned, nor have been used."""
        fill(log, 3, partitions=2, partition=0)
        with log.consumer() as consumer:
            assert consumer.beginning_offsets([tp(0), tp(1)]) == {tp(0): 0, tp(1): 0}
            assert consumer.end_offsets([tp(0), tp(1)]) == {tp(0): 3, tp(1): 0}
            with pytest.raises(UnknownPartitionError):
                consumer.end_offsets([tp(2)])
            with pytest.raises(UnknownTopicError):
                consumer.beginning_offsets([tp(0, "unknown")])

    # --- pausing

    def test_paused_partition_is_not_read(self, log: StreamLog) -> None:
        """Until `resume`; its position stays."""
        fill(log, 10, partitions=2)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            consumer.pause(tp(0))
            assert consumer.paused() == {tp(0)}
            assert set(consumer.poll(PATIENCE).partitions) == {1}
            assert not consumer.poll(0.01)
            assert consumer.position(tp(0)) == 0
            consumer.resume(tp(0))
            assert consumer.paused() == set()
            assert consumer.poll(PATIENCE).partitions == [0] * 5

    def test_everything_is_paused_without_names(self, log: StreamLog) -> None:
        """And resumed; what came meanwhile is there."""
        fill(log, 2, partitions=2)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            consumer.pause()
            assert consumer.paused() == consumer.assignment() == {tp(0), tp(1)}
            fill(log, 2, partitions=2, first=2)
            assert not consumer.poll(0.01)
            consumer.resume()
            assert len(take(consumer, 4)) == 4

    def test_paused_partition_can_be_sought(self, log: StreamLog) -> None:
        """It stays paused."""
        fill(log, 5)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            consumer.pause(tp())
            consumer.seek(tp(), 3)
            assert not consumer.poll(0)
            consumer.resume(tp())
            assert consumer.poll(PATIENCE).offsets == [3, 4]
