"""The contract of producers with an id: each record is written once, however often and by whomever it is sent."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import sleep, time_ns
from typing import Any

import pytest

from pystreamlog import Delivery, Producer, Record, RecordMetadata, StreamLog
from pystreamlog.errors import ConfigError
from pystreamlog.testing.contract import PATIENCE, Contract, in_thread, values

__all__ = ["IdempotenceContract"]

WINDOW = 64
"""Batches of an id in a partition whose records' offsets are told."""


def stored(log: StreamLog) -> list[bytes | None]:
    """The payloads of the topic, partition after partition."""
    return values(log.topic("events").read())


def numbers(sequences: Sequence[int]) -> list[bytes]:
    """A payload for each sequence."""
    return [b"%d" % sequence for sequence in sequences]


def send(log: StreamLog, sequences: Sequence[int], *, name: str = "ingest", **options: Any) -> list[RecordMetadata]:
    """Send the records of these sequences one by one, through a producer of its own; what was acknowledged."""
    with log.producer(producer_id=name, linger_ms=600_000, **options) as producer:
        deliveries = [producer.send("events", b"%d" % sequence, sequence=sequence) for sequence in sequences]
        return [delivery.result(PATIENCE) for delivery in deliveries]


def offsets(acknowledged: list[RecordMetadata]) -> list[int]:
    """Where they lie."""
    return [metadata.offset for metadata in acknowledged]


def offsets_of(deliveries: list[Delivery]) -> list[RecordMetadata]:
    """What was acknowledged."""
    return [delivery.result(PATIENCE) for delivery in deliveries]


class IdempotenceContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- settings and arguments

    @pytest.mark.parametrize("name", ["", 5, b"bytes", "\ud800", "x" * 32_768], ids=repr)
    def test_bad_id_is_refused(self, log: StreamLog, name: Any) -> None:
        """At construction."""
        with pytest.raises(ConfigError, match="producer_id"):
            log.producer(producer_id=name)

    def test_round_robin_is_refused(self, log: StreamLog) -> None:
        """It would send a record to another partition the second time."""
        with pytest.raises(ConfigError, match="round_robin"):
            log.producer(producer_id="ingest", partitioner="round_robin")

    def test_sequence_needs_an_id(self, log: StreamLog) -> None:
        """The message says where that is passed."""
        log.create_topic("events")
        with log.producer() as producer:
            with pytest.raises(ConfigError, match="producer_id"):
                producer.send("events", b"x", sequence=1)
            with pytest.raises(ConfigError, match="producer_id"):
                producer.send_many("events", [b"x"], sequences=[1])
        assert stored(log) == []

    def test_id_needs_sequences(self, log: StreamLog) -> None:
        """A record without one would be written each time, which is not what an id is for."""
        log.create_topic("events")
        with log.producer(producer_id="ingest") as producer:
            with pytest.raises(ConfigError, match="sequence="):
                producer.send("events", b"x")
            with pytest.raises(ConfigError, match="sequences="):
                producer.send_many("events", [b"x"])
        assert stored(log) == []

    @pytest.mark.parametrize("sequence", [-1, 1 << 63, 1.0, True, "1", b"1"], ids=repr)
    def test_bad_sequence_is_refused(self, log: StreamLog, sequence: Any) -> None:
        """Before anything is accepted."""
        log.create_topic("events")
        with log.producer(producer_id="ingest") as producer:
            with pytest.raises(ConfigError, match="sequence"):
                producer.send("events", b"x", sequence=sequence)
            with pytest.raises(ConfigError, match="sequence"):
                producer.send_many("events", [b"x", b"y"], sequences=[0, sequence])
        assert stored(log) == []

    def test_sequences_are_as_many_as_values(self, log: StreamLog) -> None:
        """Columns have equal lengths."""
        log.create_topic("events")
        with log.producer(producer_id="ingest") as producer, pytest.raises(ConfigError, match="equal"):
            producer.send_many("events", [b"x", b"y"], sequences=[1])

    # --- sent again

    def test_record_is_written_once(self, log: StreamLog) -> None:
        """Sent again by the next producer of that id, it is acknowledged with where it lies."""
        topic = log.create_topic("events")
        topic.append(b"somebody else's")
        first = send(log, range(5))
        again = send(log, range(8))
        assert offsets(first) == [1, 2, 3, 4, 5]
        assert offsets(again) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert stored(log) == [b"somebody else's", *numbers(range(8))]

    def test_sequences_have_gaps(self, log: StreamLog) -> None:
        """They rise, and that is all. What lies in a gap behind the highest counts as sent."""
        log.create_topic("events")
        assert offsets(send(log, [7, 9, 2**63 - 2])) == [0, 1, 2]
        assert offsets(send(log, [0, 7, 8, 9, 10, 2**63 - 2, 2**63 - 1])) == [-1, 0, -1, 1, -1, 2, 3]
        assert stored(log) == numbers([7, 9, 2**63 - 2, 2**63 - 1])

    def test_record_sent_twice_by_one_producer(self, log: StreamLog) -> None:
        """Before it is written, or after."""
        log.create_topic("events")
        sequences = [0, 1, 2, 2, 1, 0, 3, 0, 1, 2, 3, 4]
        assert offsets(send(log, sequences)) == [0, 1, 2, 2, 1, 0, 3, 0, 1, 2, 3, 4]
        assert stored(log) == numbers(range(5))

    def test_ids_know_nothing_of_each_other(self, log: StreamLog) -> None:
        """Nor of producers without one."""
        log.create_topic("events")
        assert offsets(send(log, range(3), name="a")) == [0, 1, 2]
        assert offsets(send(log, range(3), name="b")) == [3, 4, 5]
        with log.producer() as producer:
            producer.send("events", b"plain")
        assert offsets(send(log, range(4), name="b")) == [3, 4, 5, 7]
        assert offsets(send(log, range(4), name="a")) == [0, 1, 2, 8]

    @pytest.mark.parametrize("key", [True, False], ids=["keys", "no keys"])
    def test_partitions_count_apart(self, log: StreamLog, key: bool) -> None:  # noqa: FBT001 - a parameter
        """What is sent again goes where it went before, with a key and without."""
        log.create_topic("events", partitions=4)
        rounds = []
        for _ in range(2):
            with log.producer(producer_id="ingest") as producer:
                deliveries = [
                    producer.send("events", b"%d" % number, b"%d" % (number % 13) if key else None, sequence=number)
                    for number in range(0, 40_000, 100)
                ]
                rounds.append([(one.partition, one.offset) for one in [each.result(PATIENCE) for each in deliveries]])
        assert rounds[0] == rounds[1]
        assert {partition for partition, _ in rounds[0]} == {0, 1, 2, 3}
        assert sorted(stored(log), key=lambda value: int(value or 0)) == numbers(range(0, 40_000, 100))

    def test_two_producers_take_turns(self, log: StreamLog) -> None:
        """Both go through the same source at once: each record is written by one of them."""
        log.create_topic("events")
        one: Producer[bytes, bytes]
        with (
            log.producer(producer_id="ingest", linger_ms=0) as one,
            log.producer(producer_id="ingest", linger_ms=0) as other,
        ):
            turns = [one, other, other, one, other, one, one]
            for number in range(70):
                first = turns[number % 7].send("events", b"%d" % number, sequence=number)
                second = turns[(number + 3) % 7].send("events", b"%d" % number, sequence=number)
                assert first.result(PATIENCE).offset == second.result(PATIENCE).offset == number
        assert stored(log) == numbers(range(70))

    def test_producers_in_threads(self, log: StreamLog) -> None:
        """Four producers with one id, each through the whole source."""
        log.create_topic("events", partitions=2)

        def work() -> list[tuple[int, int]]:
            with log.producer(producer_id="ingest", batch_size=300) as producer:
                deliveries = [
                    producer.send("events", b"%d" % number, b"%d" % (number % 5), sequence=number)
                    for number in range(1000)
                ]
                return [(one.partition, one.offset) for one in [each.result(PATIENCE) for each in deliveries]]

        async def together() -> list[list[tuple[int, int]]]:
            return await asyncio.gather(*[asyncio.to_thread(work) for _ in range(4)])

        found = asyncio.run(together())
        assert sorted(stored(log), key=lambda value: int(value or 0)) == numbers(range(1000))
        places = dict(zip(range(1000), zip(*found, strict=True), strict=True))
        assert all(len({place for place in several if place[1] >= 0}) <= 1 for several in places.values())

    def test_topic_made_again_knows_nothing(self, log: StreamLog) -> None:
        """It is another topic."""
        log.create_topic("events")
        send(log, range(3))
        log.delete_topic("events")
        log.create_topic("events")
        assert offsets(send(log, range(3))) == [0, 1, 2]

    # --- many at once

    def test_columns_are_written_once(self, log: StreamLog) -> None:
        """In the size that is a batch of its own, and in one that is not."""
        log.create_topic("events", partitions=3)
        for size in (1, 2000):
            payloads, keys = [b"x" * size] * 300, numbers(range(300))
            for sequences in (range(300), list(range(0, 600, 2))):
                name = f"{size} {sequences}"
                with log.producer(producer_id=name) as producer:
                    first = producer.send_many("events", payloads, keys, sequences=sequences).result(PATIENCE)
                    again = producer.send_many("events", payloads, keys, sequences=sequences).result(PATIENCE)
                with log.producer(producer_id=name) as producer:
                    third = producer.send_many("events", payloads, keys, sequences=sequences).result(PATIENCE)
                assert first.partitions == again.partitions == third.partitions
                assert list(first.offsets) == list(again.offsets) == list(third.offsets)
        assert len(stored(log)) == 4 * 300

    @pytest.mark.parametrize("compression", ["none", "gzip"])
    @pytest.mark.parametrize("step", [1, 3])
    def test_batch_half_of_which_was_written(self, log: StreamLog, compression: str, step: int) -> None:
        """The rest is written as it was sent: keys, headers, timestamps, tombstones."""
        topic = log.create_topic("events")
        count = 200
        payloads: list[bytes | None] = [b"%d" % number * 40 if number % 3 else None for number in range(count)]
        keys = [b"k%d" % number if number % 4 else None for number in range(count)]
        headers = [[("h", b"%d" % number)] if number % 5 else [] for number in range(count)]
        stamps = [1000 + number * 7 % 50 for number in range(count)]
        sequences = range(0, count * step, step)

        def pieces(stop: int, producer: Producer[bytes, bytes]) -> list[int]:
            sent = producer.send_many(
                "events",
                payloads[:stop],
                keys[:stop],
                headers=headers[:stop],
                timestamps_ms=stamps[:stop],
                sequences=sequences[:stop],
            )
            return list(sent.result(PATIENCE).offsets)

        for stop in (30, 31, 120, count, 17):
            with log.producer(producer_id="ingest", compression_type=compression) as producer:
                assert pieces(stop, producer) == list(range(stop))
        expected = [
            Record("events", 0, number, stamps[number], keys[number], payloads[number], tuple(headers[number]))
            for number in range(count)
        ]
        assert list(topic.read()) == expected

    def test_columns_that_fall_are_sent_piece_by_piece(self, log: StreamLog) -> None:
        """As if each record had been sent by itself."""
        log.create_topic("events")
        sequences = [0, 1, 2, 1, 2, 3, 3, 9, 4]
        with log.producer(producer_id="ingest") as producer:
            sent = producer.send_many("events", numbers(sequences), sequences=sequences)
            assert list(sent.result(PATIENCE).offsets) == [0, 1, 2, 1, 2, 3, 3, 4, -1]
        assert stored(log) == numbers([0, 1, 2, 3, 9])

    # --- how much is remembered

    def test_offsets_of_the_last_batches_are_told(self, log: StreamLog) -> None:
        """Of older ones it is known that they were written, and not where."""
        log.create_topic("events")
        count = WINDOW + 10
        with log.producer(producer_id="ingest", linger_ms=0) as producer:
            for number in range(count):
                sequences = [3 * number, 3 * number + 1 + number % 2]
                producer.send_many("events", numbers(sequences), sequences=sequences).result(PATIENCE)
        wanted = [3 * number for number in range(count)]
        assert offsets(send(log, wanted)) == [-1] * 10 + [2 * number for number in range(10, count)]
        assert len(stored(log)) == 2 * count

    def test_id_expires(self, log: StreamLog) -> None:
        """Once it has appended nothing for so long, what it sends again is written again."""
        topic = log.create_topic("events")
        send(log, range(3))
        send(log, range(3))
        assert len(stored(log)) == 3
        topic.alter(producer_id_expiration_ms=1)
        started = time_ns()
        while time_ns() - started < 5_000_000:
            sleep(0.001)
        assert offsets(send(log, range(2))) == [3, 4]
        topic.alter(producer_id_expiration_ms=600_000)
        assert offsets(send(log, range(3))) == [3, 4, 5]

    # --- in all ways to send

    def test_durable_records_are_written_once(self, log: StreamLog) -> None:
        """Those that were written before are acknowledged once they are on disk too."""
        log.create_topic("events")
        send(log, range(10))
        assert offsets(send(log, range(5, 20), durability="fsync")) == list(range(5, 20))
        assert offsets(send(log, range(20), durability="fsync")) == list(range(20))
        assert stored(log) == numbers(range(20))

    def test_on_an_event_loop(self, log: StreamLog) -> None:
        """Awaiting tells the same, and nothing blocks."""
        log.create_topic("events")

        async def work(count: int) -> list[int]:
            async with log.producer(producer_id="ingest") as producer:
                deliveries = [producer.send("events", b"%d" % number, sequence=number) for number in range(count)]
                many = producer.send_many("events", numbers(range(count, 50)), sequences=range(count, 50))
                found = [(await delivery).offset for delivery in deliveries]
                return found + list((await many).offsets)

        assert asyncio.run(work(10)) == list(range(50))
        assert asyncio.run(work(30)) == list(range(50))
        assert stored(log) == numbers(range(50))

    def test_timestamps_of_the_log(self, log: StreamLog) -> None:
        """What the log stamped when a record came first is not told again: -1."""
        topic = log.create_topic("events", message_timestamp_type="LogAppendTime")
        send(log, range(3))
        with log.producer(producer_id="ingest") as producer:
            sent = producer.send_many("events", numbers(range(5)), sequences=range(5)).result(PATIENCE)
        assert list(sent.timestamps_ms[:3]) == [-1, -1, -1]
        assert [record.timestamp_ms for record in topic.read()][3:] == list(sent.timestamps_ms[3:])
        assert min(sent.timestamps_ms[3:]) > 0

    def test_interceptors_see_where_records_lie(self, log: StreamLog) -> None:
        """Those that were written before too; and what an interceptor changes does not count for the sequence."""
        log.create_topic("events")

        class Noted:
            def __init__(self) -> None:
                self.acknowledged: list[int] = []

            def on_send(self, record: Record[Any, Any]) -> Record[Any, Any]:
                return Record(record.topic, -1, -1, -1, record.key, b"seen " + (record.value or b""), record.headers)

            def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
                assert error is None
                assert metadata is not None
                self.acknowledged.append(metadata.offset)

        for count in (3, 5):
            noted = Noted()
            send(log, range(count), interceptors=[noted])
            assert noted.acknowledged == list(range(count))
        assert stored(log) == [b"seen %d" % number for number in range(5)]

    def test_callbacks_see_where_records_lie(self, log: StreamLog) -> None:
        """As `result` does."""
        log.create_topic("events")
        send(log, range(3))
        found: list[int] = []
        with log.producer(producer_id="ingest") as producer:
            for number in range(5):
                delivery = producer.send("events", b"%d" % number, sequence=number)
                delivery.add_done_callback(lambda one: found.append(one.result().offset))
        assert found == list(range(5))

    def test_sent_in_another_thread(self, log: StreamLog) -> None:
        """A producer may be used by any thread."""
        log.create_topic("events")
        with log.producer(producer_id="ingest") as producer:
            producer.send("events", b"0", sequence=0)
            delivery = in_thread(lambda: producer.send("events", b"1", sequence=1))
            again = in_thread(lambda: producer.send("events", b"0", sequence=0))
            assert (delivery.result(PATIENCE).offset, again.result(PATIENCE).offset) == (1, 0)

    # --- transactions

    @pytest.mark.parametrize("durability", ["os", "fsync"])
    @pytest.mark.parametrize("partitions", [1, 2])
    def test_transactions_write_once(self, log: StreamLog, durability: str, partitions: int) -> None:
        """What an aborted one held is new when it is sent again; what a committed one held is told by the next."""
        log.create_topic("events", partitions=partitions)
        options: dict[str, Any] = {"producer_id": "ingest", "durability": durability}
        with log.producer(**options) as producer:

            def sent(sequences: Sequence[int]) -> list[Delivery]:
                return [
                    producer.send("events", b"%d" % one, sequence=one, partition=one % partitions) for one in sequences
                ]

            offsets_of(sent(range(3)))
            producer.begin_transaction()
            aborted = sent(range(2, 9))
            producer.abort_transaction()
            assert all(delivery.exception() for delivery in aborted)
            with producer.transaction():
                first = sent(range(3, 6))
                twice = sent(range(2 + partitions, 6))
            with producer.transaction():
                again = sent(range(3, 8))
            with producer.transaction():
                third = sent(range(3, 8))
            found = [[(one.partition, one.offset) for one in offsets_of(some)] for some in (first, twice, again, third)]
        assert found[2][:3] == found[0]
        assert found[1][-1] == found[0][-1]
        assert found[3] == found[2]
        assert sorted(value or b"" for value in stored(log)) == numbers(range(8))

    def test_segments_are_rolled(self, log: StreamLog) -> None:
        """What is known does not end with a segment."""
        log.create_topic("events", segment_bytes=4096)
        sequences = range(0, 3000, 3)
        with log.producer(producer_id="ingest", batch_size=20) as producer:
            sent = [producer.send("events", b"%d" % number, sequence=number) for number in sequences]
            first = offsets([delivery.result(PATIENCE) for delivery in sent])
        assert first == list(range(1000))
        again = offsets(send(log, sequences))
        assert again[-200:] == first[-200:]
        assert set(again[:200]) == {-1}
        assert len(stored(log)) == 1000
