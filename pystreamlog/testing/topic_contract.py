"""The contract of topics: made, found, appended to, replayed, altered and deleted."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pystreamlog import StreamLog, serde
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    InvalidTopicError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    SerdeError,
    TopicExistsError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import Contract, values

__all__ = ["TopicContract"]

LAST_MS = 253_402_300_799_999
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)
NOON_MS = 1_715_947_200_000


class TopicContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- making and finding

    def test_created_topic_is_found(self, log: StreamLog) -> None:
        """A topic has the name, partitions and settings that it was made with."""
        made = log.create_topic("events", partitions=3, segment_bytes=65536)
        found = log.topic("events")
        assert (made.name, found.name, found.partitions) == ("events", "events", 3)
        assert found.config["segment_bytes"] == 65536

    def test_topics_are_listed_by_name(self, log: StreamLog) -> None:
        """Names come sorted, and nothing is there at first."""
        assert log.topics() == []
        for name in ("b", "a.x", "A-1", "c_"):
            log.create_topic(name)
        assert log.topics() == ["A-1", "a.x", "b", "c_"]

    def test_unknown_topic_is_an_error(self, log: StreamLog) -> None:
        """The error names the topic."""
        with pytest.raises(UnknownTopicError) as caught:
            log.topic("events")
        assert caught.value.topic == "events"

    def test_auto_create_makes_the_topic_that_is_named(self) -> None:
        """Whoever names it, it has one partition."""
        with self.open_log(auto_create_topics=True) as log, log.producer() as producer:
            assert log.topic("found").partitions == 1
            producer.send("sent", b"x").result()
            log.consumer("consumed").close()
            assert log.topics() == ["consumed", "found", "sent"]

    def test_topic_is_not_made_twice(self, log: StreamLog) -> None:
        """A second creation says that it exists, unless that is welcome."""
        log.create_topic("events", partitions=2)
        with pytest.raises(TopicExistsError) as caught:
            log.create_topic("events", partitions=2)
        assert caught.value.topic == "events"
        assert log.create_topic("events", partitions=2, exist_ok=True).partitions == 2

    def test_existing_topic_is_returned_as_it_is(self, log: StreamLog) -> None:
        """`exist_ok` changes no setting."""
        log.create_topic("events", max_message_bytes=1000)
        again = log.create_topic("events", exist_ok=True, max_message_bytes=2000)
        assert again.config["max_message_bytes"] == 1000

    def test_another_partition_count_is_an_error(self, log: StreamLog) -> None:
        """Even with `exist_ok`: keys would go elsewhere than the caller thinks."""
        log.create_topic("events", partitions=2)
        with pytest.raises(TopicExistsError):
            log.create_topic("events", partitions=3, exist_ok=True)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "a/b", "a\0b", "a b", "é", "a" * 250, "\ud800", "a:b", "a~", None, 5, b"a"]
    )
    def test_bad_topic_name_is_refused(self, log: StreamLog, name: Any) -> None:
        """By everything that takes a name, and nothing is made."""
        with pytest.raises(InvalidTopicError):
            log.create_topic(name)
        with pytest.raises((InvalidTopicError, UnknownTopicError)):
            log.topic(name)
        with log.producer() as producer, pytest.raises((InvalidTopicError, UnknownTopicError)):
            producer.send(name, b"x")
        assert log.topics() == []

    def test_longest_topic_name_works(self, log: StreamLog) -> None:
        """249 characters of every kind that is allowed."""
        name = ("aZ09._-" * 40)[:249]
        log.create_topic(name).append(b"x")
        assert values(log.topic(name).read()) == [b"x"]

    def test_names_that_differ_in_case_only_are_refused(self, log: StreamLog) -> None:
        """Such a log could not be copied to every file system."""
        log.create_topic("orders")
        with pytest.raises(InvalidTopicError):
            log.create_topic("Orders")

    @pytest.mark.parametrize("partitions", [0, -1, 1.0, "1", True, None, 10**9])
    def test_bad_partition_count_is_refused(self, log: StreamLog, partitions: Any) -> None:
        """A partition count is a whole number from 1."""
        with pytest.raises(ConfigError):
            log.create_topic("events", partitions=partitions)
        assert log.topics() == []

    @pytest.mark.parametrize(
        "config",
        [
            {"segment_bytes": "1"},
            {"segment_bytes": 1.5},
            {"segment_bytes": True},
            {"segment_bytes": 0},
            {"segment_ms": -5},
            {"max_message_bytes": 0},
            {"message_timestamp_type": "now"},
        ],
        ids=str,
    )
    def test_bad_setting_is_refused(self, log: StreamLog, config: dict[str, Any]) -> None:
        """At the creation and at a change; the message says which."""
        (name,) = config
        with pytest.raises(ConfigError, match=name):
            log.create_topic("events", **config)
        topic = log.create_topic("events")
        with pytest.raises(ConfigError, match=name):
            topic.alter(**config)

    def test_unknown_setting_names_the_nearest(self, log: StreamLog) -> None:
        """A typing error is told from a setting that does not exist."""
        with pytest.raises(ConfigError, match="segment_bytes"):
            log.create_topic("events", segment_byte=5)  # type: ignore[call-overload]  # wrong on purpose
        assert log.topics() == []

    def test_altered_setting_holds_from_then_on(self, log: StreamLog) -> None:
        """The others stay as they were."""
        topic = log.create_topic("events", segment_bytes=65536)
        topic.append(b"12345678")
        topic.alter(max_message_bytes=4)
        assert (topic.config["max_message_bytes"], topic.config["segment_bytes"]) == (4, 65536)
        with pytest.raises(RecordTooLargeError):
            log.topic("events").append(b"12345")

    def test_partitions_are_added(self, log: StreamLog) -> None:
        """Records stay where they are, and the new partitions can be written."""
        topic = log.create_topic("events")
        topic.append(b"old")
        topic.add_partitions(3)
        assert topic.partitions == log.topic("events").partitions == 3
        assert topic.append(b"new", partition=2).offset == 0
        assert topic.end_offsets() == {0: 1, 1: 0, 2: 1}

    @pytest.mark.parametrize("total", [2, 1, 0, -1, "3", None])
    def test_partitions_are_never_taken_away(self, log: StreamLog, total: Any) -> None:
        """A total that is not above what there is, is refused."""
        topic = log.create_topic("events", partitions=2)
        with pytest.raises(ConfigError):
            topic.add_partitions(total)
        assert topic.partitions == 2

    # --- deleting

    def test_deleted_topic_is_gone(self, log: StreamLog) -> None:
        """From the list and for everybody who names it."""
        topic = log.create_topic("events", partitions=2)
        topic.append(b"x")
        log.delete_topic("events")
        assert log.topics() == []
        with pytest.raises(UnknownTopicError):
            topic.append(b"y")
        with pytest.raises(UnknownTopicError):
            log.topic("events")
        with pytest.raises(UnknownTopicError):
            log.delete_topic("events")

    def test_topic_made_again_is_empty(self, log: StreamLog) -> None:
        """Offsets start at 0, also through the objects of the old one."""
        old = log.create_topic("events", partitions=2)
        old.append(b"old", partition=1)
        log.delete_topic("events")
        new = log.create_topic("events")
        assert new.end_offsets() == {0: 0}
        assert new.append(b"new").offset == 0
        assert values(old.read()) == [b"new"]

    # --- appending

    def test_appended_record_is_visible(self, log: StreamLog) -> None:
        """To every reader as soon as the call returns, with all that was given."""
        topic = log.create_topic("events", partitions=2)
        headers = (("trace", b"\0\xff"), ("trace", b""), ("ünicode", b"2"))
        written = topic.append(b"value", b"key", headers=headers, partition=1, timestamp_ms=NOON_MS)
        assert (written.topic, written.partition, written.offset, written.timestamp_ms) == ("events", 1, 0, NOON_MS)
        (record,) = log.topic("events").read()
        assert (record.topic, record.partition, record.offset) == ("events", 1, 0)
        assert (record.key, record.value, record.headers) == (b"key", b"value", headers)
        assert (record.timestamp_ms, record.timestamp) == (NOON_MS, NOON)

    def test_offsets_rise_by_partition(self, log: StreamLog) -> None:
        """Each partition counts for itself."""
        topic = log.create_topic("events", partitions=2)
        offsets = [topic.append(b"x", partition=number).offset for number in (0, 0, 1, 0, 1)]
        assert offsets == [0, 1, 0, *offsets[3:]]
        assert (offsets[3] >= 2, offsets[4] >= 1) == (True, True)
        assert topic.beginning_offsets() == {0: 0, 1: 0}
        assert topic.end_offsets() == {0: offsets[3] + 1, 1: offsets[4] + 1}

    def test_same_key_goes_to_the_same_partition(self, log: StreamLog) -> None:
        """Through whichever way it is written; different keys spread."""
        topic = log.create_topic("events", partitions=8)
        keys = [b"%d" % number for number in range(40)]
        first = [topic.append(b"", key).partition for key in keys]
        with log.producer() as producer:
            second = [producer.send("events", b"", key).result().partition for key in keys]
            third = producer.send_many("events", [b""] * 40, keys).result().partitions
        assert first == second == list(third)
        assert len(set(first)) > 4

    @pytest.mark.parametrize("partition", [-1, 2, "0", 1.0, 10**30])
    def test_unknown_partition_is_an_error(self, log: StreamLog, partition: Any) -> None:
        """By every way of writing and reading, and nothing is written."""
        topic = log.create_topic("events", partitions=2)
        with pytest.raises(UnknownPartitionError):
            topic.append(b"x", partition=partition)
        with pytest.raises(UnknownPartitionError):
            topic.read(partition=partition)
        with log.producer() as producer:
            with pytest.raises(UnknownPartitionError) as caught:
                producer.send("events", b"x", partition=partition)
            with pytest.raises(UnknownPartitionError):
                producer.send_many("events", [b"x"], partition=partition)
        assert (caught.value.topic, caught.value.partition) == ("events", partition)
        assert topic.end_offsets() == {0: 0, 1: 0}

    def test_record_over_the_topics_limit_is_refused(self, log: StreamLog) -> None:
        """Key, value and headers count; the error tells both sizes."""
        topic = log.create_topic("events", max_message_bytes=100)
        topic.append(b"v" * 50, b"k" * 30, headers=[("n" * 10, b"h" * 10)])
        with pytest.raises(RecordTooLargeError) as caught:
            topic.append(b"v" * 50, b"k" * 30, headers=[("n" * 10, b"h" * 11)])
        assert (caught.value.size, caught.value.limit) == (101, 100)
        assert topic.end_offsets() == {0: 1}

    def test_append_can_be_durable(self, log: StreamLog) -> None:
        """`"fsync"` and `"os"` both return when the record is visible; anything else is refused."""
        topic = log.create_topic("events")
        assert topic.append(b"x", durability="fsync").offset == 0
        assert topic.append(b"x", durability="os").offset == 1
        with pytest.raises(ConfigError):
            topic.append(b"x", durability="maybe")
        assert topic.end_offsets() == {0: 2}

    # --- replaying

    def test_read_goes_partition_after_partition(self, log: StreamLog) -> None:
        """Offsets ascending in each."""
        topic = log.create_topic("events", partitions=3)
        for number in range(9):
            topic.append(b"%d" % number, partition=number % 3)
        assert values(topic.read()) == [b"0", b"3", b"6", b"1", b"4", b"7", b"2", b"5", b"8"]
        assert values(topic.read(partition=1)) == [b"1", b"4", b"7"]

    def test_read_of_an_empty_topic_is_empty(self, log: StreamLog) -> None:
        """Also of partitions that were never used."""
        topic = log.create_topic("events", partitions=2)
        assert list(topic.read()) == []
        assert list(topic.read(partition=1, start=0, stop=0)) == []

    def test_read_ends_where_the_log_ended_at_the_call(self, log: StreamLog) -> None:
        """Not when the first record is taken, and not never."""
        topic = log.create_topic("events")
        topic.append(b"before")
        reading = topic.read()
        topic.append(b"after")
        assert values(reading) == [b"before"]

    def test_read_between_offsets(self, log: StreamLog) -> None:
        """The start is included and the stop is not."""
        topic = log.create_topic("events")
        with log.producer() as producer:
            producer.send_many("events", [b"%d" % number for number in range(10)]).result()
        assert values(topic.read(partition=0, start=3, stop=6)) == [b"3", b"4", b"5"]
        assert values(topic.read(partition=0, start=8)) == [b"8", b"9"]
        assert values(topic.read(partition=0, stop=2)) == [b"0", b"1"]
        assert list(topic.read(partition=0, start=5, stop=5)) == []
        assert list(topic.read(partition=0, start=5, stop=2)) == []
        assert list(topic.read(partition=0, start=10)) == []
        assert values(topic.read(partition=0, start=9, stop=99)) == [b"9"]

    def test_read_between_times(self, log: StreamLog) -> None:
        """From the first record not older than the start to the first not older than the stop."""
        topic = log.create_topic("events", partitions=2)
        for number in range(10):
            topic.append(b"%d" % number, partition=number % 2, timestamp_ms=NOON_MS + 1000 * number)
        start, stop = NOON + timedelta(seconds=2), NOON + timedelta(seconds=7)
        assert values(topic.read(start=start, stop=stop)) == [b"2", b"4", b"6", b"3", b"5"]
        assert values(topic.read(partition=0, start=start)) == [b"2", b"4", b"6", b"8"]
        assert list(topic.read(start=NOON + timedelta(days=1))) == []

    @pytest.mark.parametrize("start", [-1, 4, 2**70])
    def test_read_from_outside_is_an_error(self, log: StreamLog, start: int) -> None:
        """The error says where, and comes at the call."""
        topic = log.create_topic("events")
        for _ in range(3):
            topic.append(b"x")
        with pytest.raises(OffsetOutOfRangeError) as caught:
            topic.read(partition=0, start=start)
        assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("events", 0, start)

    @pytest.mark.parametrize("bounds", [{"start": 0}, {"stop": 5}])
    def test_offset_without_partition_is_refused(self, log: StreamLog, bounds: dict[str, Any]) -> None:
        """An offset means nothing over several partitions."""
        topic = log.create_topic("events", partitions=2)
        with pytest.raises(ConfigError):
            topic.read(**bounds)

    @pytest.mark.parametrize("bound", ["x", 1.5, True, datetime(2024, 1, 1)])  # noqa: DTZ001 - naive on purpose
    def test_bad_bound_is_refused(self, log: StreamLog, bound: Any) -> None:
        """Neither an offset nor an aware datetime."""
        topic = log.create_topic("events")
        for bounds in ({"start": bound}, {"stop": bound}):
            with pytest.raises(ConfigError):
                topic.read(partition=0, **bounds)

    def test_read_raises_after_the_records_before(self, log: StreamLog) -> None:
        """A record that does not deserialise takes nobody with it."""
        log.create_topic("events")
        with log.producer() as producer:
            producer.send_many("events", [b"1", b"2", b"x", b"4"]).result()
        reading = log.topic("events", value_serde=serde.json).read()
        assert [next(reading).value, next(reading).value] == [1, 2]
        with pytest.raises(SerdeError) as caught:
            next(reading)
        assert (caught.value.offset, caught.value.value) == (2, b"x")

    # --- use after close

    def test_topic_of_a_closed_log_is_closed(self) -> None:
        """Everything but its name."""
        log = self.open_log()
        topic = log.create_topic("events")
        topic.append(b"x")
        log.close()
        for call in (
            lambda: topic.append(b"y"),
            lambda: list(topic.read()),
            lambda: topic.partitions,
            lambda: topic.config,
            topic.beginning_offsets,
            topic.end_offsets,
            lambda: topic.add_partitions(5),
            lambda: topic.alter(segment_ms=5),
        ):
            with pytest.raises(ClosedError):
                call()
        assert topic.name == "events"
