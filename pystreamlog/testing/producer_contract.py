"""The contract of producers: what was sent is written, once, in order, or said to have failed."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Record, RecordMetadata, StreamLog, serde
from pystreamlog.errors import (
    ConfigError,
    RecordTooLargeError,
    SerdeError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, values

__all__ = ["ProducerContract"]


def stored(log: StreamLog, topic: str = "events") -> list[bytes | None]:
    """The payloads of a topic, partition after partition."""
    return values(log.topic(topic).read())


class ProducerContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- settings

    @pytest.mark.parametrize(
        "config",
        [
            {"linger_ms": -1},
            {"linger_ms": 1.5},
            {"linger_ms": True},
            {"batch_size": 0},
            {"buffer_memory": "1"},
            {"max_request_size": 0},
            {"max_block_ms": -1},
            {"delivery_timeout_ms": 0},
            {"compression_type": "rar"},
            {"compression_type": "gzip:99"},
            {"durability": "maybe"},
            {"partitioner": "random"},
            {"partitioner": 5},
            {"key_serde": "json"},
            {"value_serde": dict},
            {"interceptors": 5},
            {"on_error": 5},
        ],
        ids=str,
    )
    def test_bad_setting_is_refused(self, log: StreamLog, config: dict[str, Any]) -> None:
        """At construction; the message says which."""
        ((name, value),) = config.items()
        with pytest.raises(ConfigError) as caught:
            log.producer(**config)
        assert name in str(caught.value) or str(value).partition(":")[0] in str(caught.value)

    def test_unknown_setting_names_the_nearest(self, log: StreamLog) -> None:
        """Kafka's dotted names are near enough."""
        with pytest.raises(ConfigError, match="linger_ms"):
            log.producer(**{"linger.ms": 5})  # type: ignore[call-overload]  # wrong on purpose

    # --- one record

    @pytest.mark.parametrize("count", [1, 2, 40])
    @pytest.mark.parametrize("how", ["nobody waits", "flush", "close"])
    def test_record_that_shall_be_on_disk_is_acknowledged_whoever_waits(
        self, log: StreamLog, how: str, count: int
    ) -> None:
        """Soon, by a thread in the background; at the latest when the producer is flushed or closed."""
        topic = log.create_topic("events")
        acknowledged = threading.Semaphore(0)
        producer = log.producer(durability="fsync")
        deliveries = [producer.send("events", b"%d" % number) for number in range(count)]
        for delivery in deliveries:
            delivery.add_done_callback(lambda _: acknowledged.release())
        if how == "flush":
            producer.flush()
        elif how == "close":
            producer.close()
        for _ in deliveries:
            assert acknowledged.acquire(timeout=PATIENCE)
        assert [delivery.result(0).offset for delivery in deliveries] == list(range(count))
        assert topic.durable_offsets() == {0: count}
        assert stored(log) == [b"%d" % number for number in range(count)]
        assert producer.metrics()["record-send-total"] == count
        producer.close()

    def test_lone_record_does_not_wait_for_the_next_ones_linger(self, log: StreamLog) -> None:
        """It is written when it is sent; what gathers behind it has time of its own."""
        log.create_topic("events")
        with log.producer(durability="fsync", linger_ms=int(PATIENCE * 2000)) as producer:
            for _ in range(100):  # a quick disk may be done with the first before the next is sent
                producer.flush()
                lone = producer.send("events", b"lone")
                acknowledged = threading.Event()
                lone.add_done_callback(lambda _, seen=acknowledged: seen.set())  # type: ignore[misc]
                gathering = [producer.send("events", b"gathering") for _ in range(30)]
                assert acknowledged.wait(PATIENCE)
                if not all(each.done() for each in gathering):
                    return
        raise AssertionError("nothing ever gathered")

    def test_threads_that_send_for_the_disk_are_all_acknowledged(self, log: StreamLog) -> None:
        """Whichever thread writes and syncs; nobody asks for a result."""
        log.create_topic("events")
        acknowledged = threading.Semaphore(0)
        with log.producer(durability="fsync", linger_ms=1) as producer:

            def send() -> None:
                for _ in range(100):
                    producer.send("events", b"v").add_done_callback(lambda _: acknowledged.release())

            threads = [threading.Thread(target=send) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for _ in range(400):
                assert acknowledged.acquire(timeout=PATIENCE)
            assert producer.metrics()["record-send-total"] == 400
        assert len(stored(log)) == 400

    def test_sent_record_is_acknowledged(self, log: StreamLog) -> None:
        """With where it lies; and it can be read there."""
        topic = log.create_topic("events", partitions=2)
        with log.producer() as producer:
            delivery = producer.send("events", b"v", b"k", headers=[("h", b"1")], partition=1, timestamp_ms=5)
            assert delivery.result(PATIENCE) == RecordMetadata("events", 1, 0, 5)
            assert delivery.done()
            assert delivery.exception() is None
        (record,) = topic.read()
        assert record == Record("events", 1, 0, 5, b"k", b"v", (("h", b"1"),))

    def test_lone_record_is_written_at_once(self, log: StreamLog) -> None:
        """It waits for no linger: nothing says that another is coming."""
        topic = log.create_topic("events")
        with log.producer(linger_ms=60_000) as producer:
            delivery = producer.send("events", b"x")
            assert delivery.done()
            assert topic.end_offsets() == {0: 1}

    def test_lingering_records_are_written_in_the_end(self, log: StreamLog) -> None:
        """By themselves, when the linger is over, though nobody waits for them."""
        log.create_topic("events")
        written = threading.Event()
        with log.producer(linger_ms=20) as producer:
            deliveries = [producer.send("events", b"x") for _ in range(5)]
            deliveries[-1].add_done_callback(lambda _: written.set())
            assert written.wait(PATIENCE)
            assert all(delivery.done() for delivery in deliveries)

    def test_result_writes_what_it_waits_for(self, log: StreamLog) -> None:
        """It does not wait for the linger."""
        log.create_topic("events")
        with log.producer(linger_ms=600_000) as producer:
            deliveries = [producer.send("events", b"x") for _ in range(5)]
            assert [delivery.result(PATIENCE).offset for delivery in deliveries] == [0, 1, 2, 3, 4]

    def test_no_linger_writes_each_record_at_once(self, log: StreamLog) -> None:
        """With `linger_ms=0` a record is visible when `send` returns."""
        topic = log.create_topic("events")
        with log.producer(linger_ms=0) as producer:
            for count in range(1, 20):
                assert producer.send("events", b"x").done()
                assert topic.end_offsets() == {0: count}

    @pytest.mark.parametrize("durability", ["os", "fsync"])
    def test_flush_writes_everything(self, log: StreamLog, durability: Any) -> None:
        """When it returns, every delivery is done and every record visible."""
        topic = log.create_topic("events", partitions=3)
        with log.producer(linger_ms=600_000, durability=durability) as producer:
            deliveries = [producer.send("events", b"x", b"%d" % number) for number in range(100)]
            producer.flush()
            assert all(delivery.done() for delivery in deliveries)
            assert sum(topic.end_offsets().values()) == 100
            producer.flush(0)

    def test_leaving_with_flushes(self, log: StreamLog) -> None:
        """Also when the block is left by an exception."""
        log.create_topic("events")
        with log.producer(linger_ms=600_000) as producer:
            for number in range(10):
                producer.send("events", b"%d" % number)
        with contextlib.suppress(KeyError), log.producer(linger_ms=600_000) as producer:
            producer.send("events", b"a")
            producer.send("events", b"b")
            raise KeyError
        assert stored(log) == [b"%d" % number for number in range(10)] + [b"a", b"b"]

    @pytest.mark.parametrize(
        "config", [{}, {"linger_ms": 0}, {"batch_size": 100}, {"compression_type": "gzip"}], ids=str
    )
    def test_order_is_the_order_of_send(self, log: StreamLog, config: dict[str, Any]) -> None:
        """Within a partition, whichever way the records go."""
        log.create_topic("events")
        with log.producer(**config) as producer:
            for number in range(0, 600, 6):
                producer.send("events", b"%d" % number)
                producer.send("events", b"%d" % (number + 1), headers=[("h", b"")])
                producer.send_many("events", [b"%d" % (number + 2), b"%d" % (number + 3)])
                producer.send("events", b"%d" % (number + 4), timestamp_ms=7)
                producer.send("events", b"%d" % (number + 5), b"key")
        records = list(log.topic("events").read())
        assert values(records) == [b"%d" % number for number in range(600)]
        assert [record.key for record in records] == [None, None, None, None, None, b"key"] * 100
        assert [record.headers for record in records] == [(), (("h", b""),), (), (), (), ()] * 100
        assert [record.timestamp_ms for record in records][4::6] == [7] * 100

    def test_batch_that_is_full_is_written(self, log: StreamLog) -> None:
        """Whatever the linger; and no record is cut."""
        topic = log.create_topic("events")
        with log.producer(linger_ms=600_000, batch_size=1000) as producer:
            for _ in range(100):
                producer.send("events", b"x" * 99)
            assert topic.end_offsets()[0] >= 90

    def test_record_larger_than_a_batch_is_written(self, log: StreamLog) -> None:
        """`batch_size` bounds what gathers, not what is sent."""
        log.create_topic("events")
        with log.producer(batch_size=10) as producer:
            producer.send("events", b"x" * 5000)
            producer.send_many("events", [b"y" * 5000, b"z"])
        assert stored(log) == [b"x" * 5000, b"y" * 5000, b"z"]

    def test_record_over_the_limit_is_refused(self, log: StreamLog) -> None:
        """By `max_request_size`; key, value and headers count, and what was sent before stays."""
        log.create_topic("events")
        with log.producer(max_request_size=100) as producer:
            producer.send("events", b"v" * 60, b"k" * 20, headers=[("n" * 10, b"h" * 10)])
            with pytest.raises(RecordTooLargeError) as caught:
                producer.send("events", b"v" * 60, b"k" * 20, headers=[("n" * 10, b"h" * 11)])
            assert (caught.value.size, caught.value.limit) == (101, 100)
            with pytest.raises(RecordTooLargeError):
                producer.send("events", b"v" * 101)
            for large in (b"v" * 101, b"v" * 200_000):
                with pytest.raises(RecordTooLargeError) as caught:
                    producer.send_many("events", [b"1", b"2", large, b"4"])
                assert vars(caught.value)["index"] == 2
        assert stored(log) == [b"v" * 60]

    def test_unknown_topic_is_an_error(self, log: StreamLog) -> None:
        """At `send`, not later."""
        with log.producer() as producer:
            for call in (lambda: producer.send("events", b"x"), lambda: producer.send_many("events", [b"x"])):
                with pytest.raises(UnknownTopicError) as caught:
                    call()
                assert caught.value.topic == "events"

    def test_topic_is_named_or_passed(self, log: StreamLog) -> None:
        """A `Topic`'s serdes win over the producer's, each for itself."""
        text = log.create_topic("text", key_serde=serde.string)
        log.create_topic("numbers")
        with log.producer(key_serde=serde.int64, value_serde=serde.json) as producer:
            producer.send(text, b"1", "k").result()  # the topic has no serde for values, so the producer's is used
        with log.producer(value_serde=serde.int64) as producer:
            producer.send("numbers", 5).result()
            producer.send(log.topic("numbers", value_serde=serde.string), "t").result()
        assert [(record.key, record.value) for record in log.topic("text").read()] == [(b"k", b'"MQ=="')]
        assert stored(log, "numbers") == [b"\0" * 7 + b"\5", b"t"]

    # --- many records

    @pytest.mark.parametrize("count", [1, 2, 1000, 5000])
    @pytest.mark.parametrize("partitions", [1, 5])
    def test_columns_are_sent(self, log: StreamLog, count: int, partitions: int) -> None:
        """`Deliveries` says of each value where it lies, in the order of the values."""
        log.create_topic("events", partitions=partitions)
        payloads = [b"%d" % number * 7 for number in range(count)]
        keys = [b"%d" % (number % 10) for number in range(count)]
        stamps = list(range(count))
        headers = [[("n", b"%d" % number)] for number in range(count)]
        with log.producer() as producer:
            deliveries = producer.send_many("events", payloads, keys, headers=headers, timestamps_ms=stamps)
            assert len(deliveries) == count
            found = deliveries.result(PATIENCE)
            assert deliveries.done()
        assert found.topic == "events"
        assert list(found.timestamps_ms) == stamps
        records = {(record.partition, record.offset): record for record in log.topic("events").read()}
        for number, place in enumerate(zip(found.partitions, found.offsets, strict=True)):
            record = records.pop(place)
            assert (record.value, record.key, record.timestamp_ms) == (payloads[number], keys[number], number)
            assert record.headers == (("n", b"%d" % number),)
        assert not records

    @pytest.mark.parametrize("size", [1, 100, 1000])
    def test_columns_of_every_size_arrive(self, log: StreamLog, size: int) -> None:
        """Small columns gather, large ones are batches of their own, and all keep their order."""
        log.create_topic("events")
        sent = []
        with log.producer(linger_ms=10, batch_size=50_000) as producer:
            for round_ in range(20):
                payloads = [b"%d-%d-" % (round_, number) + b"x" * size for number in range(round_ * 7)]
                sent += payloads
                assert len(producer.send_many("events", payloads)) == len(payloads)
        assert stored(log) == sent

    def test_no_columns_at_all_are_sent_at_once(self, log: StreamLog) -> None:
        """An empty column is no error."""
        log.create_topic("events")
        with log.producer() as producer:
            deliveries = producer.send_many("events", [])
            assert deliveries.done()
            found = deliveries.result()
            assert (found.topic, list(found.offsets)) == ("events", [])

    def test_tombstones_and_missing_keys_in_columns(self, log: StreamLog) -> None:
        """None stays None, and is not empty."""
        log.create_topic("events")
        with log.producer() as producer:
            producer.send_many("events", [b"a", None, b"", None], [b"1", b"2", None, b""])
            producer.send_many("events", [None] * 3)
        assert [(record.value, record.key) for record in log.topic("events").read()] == [
            (b"a", b"1"),
            (None, b"2"),
            (b"", None),
            (None, b""),
            *[(None, None)] * 3,
        ]

    @pytest.mark.parametrize(
        "columns",
        [{"keys": [b"k"]}, {"headers": [()]}, {"timestamps_ms": [1]}, {"keys": []}, {"timestamps_ms": []}],
        ids=str,
    )
    def test_columns_of_unequal_length_are_refused(self, log: StreamLog, columns: dict[str, Any]) -> None:
        """None of the records is sent."""
        log.create_topic("events")
        with log.producer() as producer, pytest.raises(ConfigError):
            producer.send_many("events", [b"1", b"2"], **columns)
        assert stored(log) == []

    def test_column_is_accepted_as_a_whole_or_not(self, log: StreamLog) -> None:
        """One bad value among good ones: nothing is sent, and the error says which."""
        log.create_topic("events", partitions=3)
        keys = [b"%d" % number for number in range(50)]
        with log.producer() as producer:
            with pytest.raises(SerdeError) as caught:
                producer.send_many("events", [*[b"x"] * 30, "text", *[b"y"] * 19], keys)  # type: ignore[list-item]
            assert vars(caught.value)["index"] == 30
            with pytest.raises(UnknownPartitionError):
                producer.send_many("events", [b"x"] * 50, keys, partition=3)
        assert stored(log) == []

    def test_columns_may_be_any_sequence(self, log: StreamLog) -> None:
        """Tuples as well as lists; what the caller does with them afterwards changes nothing."""
        log.create_topic("events")
        payloads = [b"a", b"b"]
        with log.producer(linger_ms=600_000) as producer:
            producer.send("events", b"0")
            producer.send_many("events", payloads)
            payloads[0] = b"z"
            producer.send_many("events", (b"c", b"d"), (None, b"k"), timestamps_ms=(1, 2))
        assert stored(log) == [b"0", b"a", b"b", b"c", b"d"]

    # --- partitions

    def test_keyless_records_stick_to_a_partition_per_batch(self, log: StreamLog) -> None:
        """So batches stay large; over many batches all partitions get their share."""
        topic = log.create_topic("events", partitions=4)
        with log.producer(linger_ms=600_000) as producer:
            producer.send_many("events", [b"x"] * 10).result()
            assert sorted(topic.end_offsets().values()) == [0, 0, 0, 10]
            for _ in range(40):
                producer.send_many("events", [b"x"] * 10).result()
        assert min(topic.end_offsets().values()) > 0

    def test_keyless_records_spread_over_batches(self, log: StreamLog) -> None:
        """Also when they come one by one."""
        topic = log.create_topic("events", partitions=3)
        with log.producer(batch_size=200) as producer:
            for _ in range(300):
                producer.send("events", b"x" * 40)
        ends = topic.end_offsets()
        assert sum(ends.values()) == 300
        assert min(ends.values()) > 30

    def test_round_robin_deals_in_turn(self, log: StreamLog) -> None:
        """Whatever the keys."""
        topic = log.create_topic("events", partitions=3)
        with log.producer(partitioner="round_robin") as producer:
            for _ in range(3):
                producer.send("events", b"x", b"k")
            producer.send_many("events", [b"x"] * 6, [b"k"] * 6)
        assert topic.end_offsets() == {0: 3, 1: 3, 2: 3}

    def test_murmur2_places_keys_as_java_does(self, log: StreamLog) -> None:
        """Partitions that Kafka's Java producer chooses among 10."""
        log.create_topic("events", partitions=10)
        keys = [b"21", b"foobar", b"a-little-bit-long-string", b"abc"]
        hashes = [-973932308, -790332482, -985981536, 479470107]
        with log.producer(partitioner="murmur2") as producer:
            found = producer.send_many("events", [b""] * 4, keys).result().partitions
            assert [producer.send("events", b"", key).result().partition for key in keys] == list(found)
        assert list(found) == [(number & 0x7FFFFFFF) % 10 for number in hashes]

    def test_callable_chooses_the_partition(self, log: StreamLog) -> None:
        """It is asked with topic, key, value and the number of partitions; a partition that is given wins."""
        log.create_topic("events", partitions=4)
        asked = []

        def choose(topic: str, key: bytes | None, value: bytes | None, count: int) -> int:
            asked.append((topic, key, value, count))
            return 2

        with log.producer(partitioner=choose) as producer:
            assert producer.send("events", b"v", b"k").result().partition == 2
            assert producer.send("events", b"v", b"k", partition=1).result().partition == 1
            assert list(producer.send_many("events", [b"1", b"2"]).result().partitions) == [2, 2]
        assert asked == [("events", b"k", b"v", 4), ("events", None, b"1", 4), ("events", None, b"2", 4)]

    @pytest.mark.parametrize("answer", [-1, 4, "0", None, 1.0])
    def test_bad_answer_of_a_partitioner_is_an_error(self, log: StreamLog, answer: Any) -> None:
        """It leaves `send`, and nothing is sent."""
        log.create_topic("events", partitions=4)
        with log.producer(partitioner=lambda *_: answer) as producer:
            with pytest.raises(ConfigError):
                producer.send("events", b"v")
            with pytest.raises(ConfigError):
                producer.send_many("events", [b"v"])
        assert stored(log) == []

    def test_added_partition_is_used(self, log: StreamLog) -> None:
        """By a producer that knew the topic before, in a second or so."""
        topic = log.create_topic("events")
        with log.producer(partitioner="round_robin") as producer:
            producer.send("events", b"x").result()
            topic.add_partitions(2)
            deadline = monotonic() + PATIENCE
            while producer.send("events", b"y").result().partition != 1:
                assert monotonic() < deadline
