"""The contract of records: keys, values, headers and timestamps come out as they went in, or not at all."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pystreamlog import Record, Records, StreamLog, serde
from pystreamlog.errors import ConfigError, SerdeError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, tp, values

__all__ = ["RecordContract"]

LAST_MS = 253_402_300_799_999
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)
NOON_MS = 1_715_947_200_000


@dataclass
class Order:
    """A value with a type."""

    id: int
    note: str = ""


class RecordContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- bytes, headers and timestamps

    def test_empty_bytes_are_not_none(self, log: StreamLog) -> None:
        """An empty value, a tombstone, an empty key and no key are four things."""
        topic = log.create_topic("events")
        for value, key in ((b"", b""), (None, b"k"), (b"", None), (None, None)):
            topic.append(value, key)
        assert [(record.value, record.key) for record in topic.read()] == [
            (b"", b""),
            (None, b"k"),
            (b"", None),
            (None, None),
        ]

    @pytest.mark.parametrize(
        ("when", "stored"),
        [
            (0, 0),
            (LAST_MS, LAST_MS),
            (NOON, NOON_MS),
            (datetime(1970, 1, 1, tzinfo=UTC), 0),
            (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), LAST_MS),
            (datetime(2024, 5, 17, 14, tzinfo=UTC).replace(tzinfo=UTC) - timedelta(hours=2), NOON_MS),
        ],
    )
    def test_timestamp_is_stored(self, log: StreamLog, when: datetime | int, stored: int) -> None:
        """Milliseconds or an aware datetime, from 1970 to 9999."""
        topic = log.create_topic("events")
        assert topic.append(b"x", timestamp_ms=when).timestamp_ms == stored
        (record,) = topic.read()
        assert record.timestamp_ms == stored
        assert record.timestamp.tzinfo is UTC

    @pytest.mark.parametrize(
        "when",
        [-1, LAST_MS + 1, datetime(2024, 1, 1), datetime(1969, 12, 31, 23, tzinfo=UTC), 1.5, "1", True],  # noqa: DTZ001
    )
    def test_bad_timestamp_is_refused(self, log: StreamLog, when: Any) -> None:
        """Before 1970, after 9999, naive, or no time at all; by every way of writing, and nothing is written."""
        topic = log.create_topic("events")
        with pytest.raises(ConfigError):
            topic.append(b"x", timestamp_ms=when)
        with log.producer() as producer:
            with pytest.raises(ConfigError):
                producer.send("events", b"x", timestamp_ms=when)
            with pytest.raises(ConfigError):
                producer.send_many("events", [b"x"], timestamps_ms=when)
            with pytest.raises(ConfigError):
                producer.send_many("events", [b"x", b"y"], timestamps_ms=[1, when])
        assert topic.end_offsets() == {0: 0}

    def test_record_is_stamped_with_now(self, log: StreamLog) -> None:
        """When the caller gives no timestamp."""
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        log.create_topic("events").append(b"x")
        (record,) = log.topic("events").read()
        assert before <= record.timestamp <= datetime.now(UTC)

    def test_log_append_time_stamps_by_itself(self, log: StreamLog) -> None:
        """What the caller gives is ignored, and the acknowledgement says what was stored."""
        topic = log.create_topic("events", message_timestamp_type="LogAppendTime")
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        written = [topic.append(b"a", timestamp_ms=5).timestamp_ms]
        with log.producer() as producer:
            written.append(producer.send("events", b"b", timestamp_ms=6).result().timestamp_ms)
            written += producer.send_many("events", [b"c", b"d"], timestamps_ms=[7, 8]).result().timestamps_ms
        records = list(topic.read())
        assert [record.timestamp_ms for record in records] == written
        assert all(before <= record.timestamp <= datetime.now(UTC) for record in records)

    @pytest.mark.parametrize("value", ["text", 5, 1.5, {"a": 1}, ["a"], object()], ids=type)
    def test_value_that_needs_a_serde_is_refused(self, log: StreamLog, value: Any) -> None:
        """The error says that a serde is missing; the same for keys, and nothing is written."""
        topic = log.create_topic("events")
        with log.producer() as producer:
            for arguments in ((value, None), (b"x", value)):
                with pytest.raises(SerdeError, match="serde"):
                    topic.append(*arguments)
                with pytest.raises(SerdeError, match="serde"):
                    producer.send("events", *arguments)
                with pytest.raises(SerdeError, match="serde"):
                    producer.send_many("events", [b"y", arguments[0]], [b"k", arguments[1]])
        assert topic.end_offsets() == {0: 0}

    @pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"xabx")[1:3]], ids=type)
    def test_what_is_like_bytes_is_copied(self, log: StreamLog, value: Any) -> None:
        """A buffer that changes after the call changes no record."""
        topic = log.create_topic("events")
        if isinstance(value, bytearray):
            value = bytearray(value)  # changed below
        with log.producer(linger_ms=1000) as producer:
            topic.append(value, value)
            producer.send("events", value, value)
            producer.send_many("events", [value], [value])
            if isinstance(value, bytearray):
                value[:] = b"zz"
        assert [(record.value, record.key) for record in topic.read()] == [(b"ab", b"ab")] * 3

    @pytest.mark.parametrize(
        "headers",
        [5, "ab", [5], [("a",)], [("a", "b")], [(b"a", b"b")], [("a", b"b", 1)], [("\ud800", b"")], {"a": b"b"}],
    )
    def test_bad_headers_are_refused(self, log: StreamLog, headers: Any) -> None:
        """Headers are pairs of str and bytes."""
        topic = log.create_topic("events")
        with log.producer() as producer:
            with pytest.raises(ConfigError):
                topic.append(b"x", headers=headers)
            with pytest.raises(ConfigError):
                producer.send("events", b"x", headers=headers)
            with pytest.raises(ConfigError):
                producer.send_many("events", [b"x"], headers=[headers])
        assert topic.end_offsets() == {0: 0}

    # --- serdes

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (serde.bytes_, b"\0\xff"),
            (serde.string, "ünï\0"),
            (serde.json, {"a": [1, None, "x"]}),
            (serde.json, None),
            (serde.msgpack, {"a": b"\0"}),
            (serde.int64, -(2**63)),
            (serde.float64, 1e300),
            (serde.struct(Order), Order(5, "n")),
        ],
        ids=lambda part: type(part).__name__,
    )
    def test_serde_brings_keys_and_values_back(self, log: StreamLog, kind: serde.Serde[Any], value: Any) -> None:
        """By every way of writing and reading."""
        topic = log.create_topic("events", key_serde=kind, value_serde=kind)
        topic.append(value, value)
        with log.producer(key_serde=kind, value_serde=kind) as producer:
            producer.send("events", value, value)
            producer.send(topic, value, value)
            producer.send_many("events", [value], [value])
        assert [(record.value, record.key) for record in topic.read()] == [(value, value)] * 4
        with log.consumer(topic, auto_offset_reset="earliest") as consumer:
            records = consumer.poll(10)
        assert (records.keys, records.values) == ([value] * 4, [value] * 4)

    def test_none_never_reaches_a_serde(self, log: StreamLog) -> None:
        """It is a tombstone, or no key."""
        topic = log.create_topic("events", key_serde=serde.string, value_serde=serde.string)
        topic.append(None, "k")
        topic.append("v")
        assert [(record.value, record.key) for record in topic.read()] == [(None, "k"), ("v", None)]

    def test_value_that_the_serde_refuses_is_an_error(self, log: StreamLog) -> None:
        """`SerdeError` with what the serde raised as its cause, and nothing is written."""
        topic = log.create_topic("events", value_serde=serde.int64)
        with pytest.raises(SerdeError) as caught:
            topic.append("no number")  # type: ignore[arg-type]  # wrong on purpose
        assert caught.value.__cause__ is not None
        with pytest.raises(SerdeError):
            topic.append(2**63)
        assert topic.end_offsets() == {0: 0}

    def test_consumer_deserialises(self, log: StreamLog) -> None:
        """By its own serdes, or those of a subscribed `Topic`, each for itself."""
        fill(log, 2, key=b"1")
        topic = log.topic("events", value_serde=serde.json)
        for consumer in (
            log.consumer("events", key_serde=serde.string, value_serde=serde.json, auto_offset_reset="earliest"),
            log.consumer(topic, key_serde=serde.string, value_serde=serde.string, auto_offset_reset="earliest"),
        ):
            with consumer:
                records = consumer.poll(PATIENCE)
                assert (records.keys, records.values) == (["1", "1"], [0, 1])

    def test_serde_may_know_topic_and_headers(self, log: StreamLog) -> None:
        """`dumps_for` and `loads_for` are called instead of `dumps` and `loads`."""

        class Tagging:
            def dumps(self, value: str) -> bytes:
                raise AssertionError(value)

            def loads(self, data: bytes) -> str:
                raise AssertionError(data)

            def dumps_for(self, topic: str, headers: Any, value: str) -> bytes:
                return f"{topic} {headers[0][0]} {value}".encode()

            def loads_for(self, topic: str, headers: Any, data: bytes) -> str:
                return f"{topic} {headers[0][0]} < {data.decode()}"

        log.create_topic("events")
        with log.producer(value_serde=Tagging()) as producer:
            producer.send("events", "x", headers=[("h", b"")]).result()
        with log.consumer("events", value_serde=Tagging(), auto_offset_reset="earliest") as consumer:
            assert consumer.poll(PATIENCE).values == ["events h < events h x"]

    @pytest.mark.parametrize("place", [0, 1, 4])
    def test_record_that_does_not_deserialise(self, log: StreamLog, place: int) -> None:
        """Those before it come first; then the error with its raw bytes, again and again; `seek` goes past it."""
        log.create_topic("events")
        with log.producer() as producer:
            payloads = [b"%d" % number for number in range(5)]
            payloads[place] = b"not json"
            producer.send_many("events", payloads, [b"k"] * 5, headers=[[("h", b"1")]] * 5).result()
        with log.consumer("events", value_serde=serde.json, auto_offset_reset="earliest") as consumer:
            if place:
                assert consumer.poll(PATIENCE).values == list(range(place))
            for _ in range(2):
                assert consumer.position(tp()) == place
                with pytest.raises(SerdeError) as caught:
                    consumer.poll(PATIENCE)
                error = caught.value
                assert (error.topic, error.partition, error.offset) == ("events", 0, place)
                assert (error.key, error.value, error.headers) == (b"k", b"not json", (("h", b"1"),))
                assert error.__cause__ is not None
            consumer.seek(tp(), place + 1)
            assert consumer.poll(0).values == list(range(place + 1, 5))

    def test_loop_stops_at_a_record_that_does_not_deserialise(self, log: StreamLog) -> None:
        """A key as well as a value; after `seek` the loop goes on."""
        log.create_topic("events")
        with log.producer() as producer:
            producer.send_many("events", [b"0", b"1", b"2"], [b"0", b"x", b"2"]).result()
        with log.consumer("events", key_serde=serde.json, auto_offset_reset="earliest") as consumer:
            assert next(iter(consumer)).key == 0
            with pytest.raises(SerdeError) as caught:
                next(iter(consumer))
            assert caught.value.key == b"x"
            consumer.seek(tp(), caught.value.offset + 1)
            assert next(iter(consumer)).key == 2

    def test_failing_partition_keeps_nothing_of_others_back(self, log: StreamLog) -> None:
        """What was taken of other partitions is returned; the error comes with the next call."""
        log.create_topic("events", partitions=3)
        with log.producer() as producer:
            for number, payload in enumerate([b"0", b"x", b"2"]):
                producer.send("events", payload, partition=number)
        with log.consumer("events", value_serde=serde.json, auto_offset_reset="earliest") as consumer:
            seen: list[Any] = []
            for _ in range(10):
                try:
                    seen += consumer.poll(0).values
                except SerdeError as error:
                    consumer.seek(tp(error.partition), error.offset + 1)
                    break
            while records := consumer.poll(0):
                seen += records.values
            assert sorted(seen) == [0, 2]

    # --- columns

    def test_columns_are_those_of_the_records(self, log: StreamLog) -> None:
        """Without building records, and the same."""
        log.create_topic("events", partitions=2)
        with log.producer() as producer:
            for number in range(20):
                producer.send(
                    "events",
                    None if number % 5 == 0 else b"v%d" % number,
                    None if number % 3 == 0 else b"k%d" % number,
                    headers=[("h", b"%d" % number)] if number % 4 == 0 else (),
                    partition=number % 2,
                    timestamp_ms=number,
                )
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            records = consumer.poll(PATIENCE)
        assert len(records) == 20
        assert records.topics == [record.topic for record in records] == ["events"] * 20
        assert records.partitions == [record.partition for record in records]
        assert records.offsets == [record.offset for record in records] == [*range(10), *range(10)]
        assert records.timestamps_ms == [record.timestamp_ms for record in records]
        assert records.keys == [record.key for record in records]
        assert records.values == [record.value for record in records]
        assert records.headers == [record.headers for record in records]
        assert {record.timestamp_ms: record for record in records}[4] == Record(
            "events", 0, 2, 4, b"k4", b"v4", (("h", b"4"),)
        )

    def test_records_are_a_sequence(self, log: StreamLog) -> None:
        """They can be indexed, sliced, counted and walked again."""
        fill(log, 10)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            records = consumer.poll(PATIENCE)
        assert isinstance(records, Records)
        assert records
        assert (records[0].value, records[-1].value) == (b"0", b"9")
        assert values(records[2:4]) == [b"2", b"3"]
        assert list(records) == list(records) == records[:]
        assert records[3] in records
        with pytest.raises(IndexError):
            records[10]

    def test_records_are_grouped_by_partition(self, log: StreamLog) -> None:
        """`by_partition` tells them apart, of several topics too."""
        for topic in ("a", "b"):
            fill(log, 6, topic=topic, partitions=2)
        with log.consumer("a", "b", auto_offset_reset="earliest") as consumer:
            records = consumer.poll(PATIENCE)
        groups = records.by_partition()
        assert set(groups) == {tp(0, "a"), tp(1, "a"), tp(0, "b"), tp(1, "b")}
        assert sum(map(len, groups.values())) == len(records) == 12
        for (topic, partition), group in groups.items():
            assert set(group.topics) == {topic}
            assert set(group.partitions) == {partition}
            assert group.offsets == list(range(len(group)))
        seen = [(record.topic, record.partition) for record in records]
        assert [part for number, part in enumerate(seen) if not number or seen[number - 1] != part] == list(groups)
