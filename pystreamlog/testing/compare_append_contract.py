"""The contract of compare and append: conditions on a partition's end and a key's version, and reading by key."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from pystreamlog import StreamLog, Topic, serde
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    SerdeError,
    TransactionAbortedError,
    UnknownPartitionError,
    UnknownTopicError,
    VersionConflictError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, values

__all__ = ["CompareAppendContract"]


def indexed(log: StreamLog, **settings: Any) -> Topic[bytes, bytes]:
    """A topic with a key index."""
    return log.create_topic("events", key_index=True, **settings)


class CompareAppendContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- the end of a partition

    def test_expected_end_is_the_offset_that_the_record_gets(self, log: StreamLog) -> None:
        """On any topic, however the records before it were written."""
        topic = log.create_topic("events")
        assert topic.append(b"a", expected_end=0).offset == 0
        with log.producer() as producer:
            producer.send_many("events", [b"b"] * 10).result()
        assert topic.append(b"c", b"key", expected_end=11).offset == 11

    @pytest.mark.parametrize("expected", [0, 1, 4, 2**60])
    def test_another_end_is_a_conflict(self, log: StreamLog, expected: int) -> None:
        """The error tells both ends, and nothing is written."""
        topic = log.create_topic("events")
        for _ in range(3):
            topic.append(b"x")
        with pytest.raises(VersionConflictError) as caught:
            topic.append(b"y", expected_end=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 3)
        assert (caught.value.topic, caught.value.partition, caught.value.key) == ("events", 0, None)
        assert topic.end_offsets() == {0: 3}
        assert topic.append(b"z", expected_end=3).offset == 3

    def test_expected_end_is_that_of_the_records_partition(self, log: StreamLog) -> None:
        """A key's, or one that is named; without either nobody could know which end is meant."""
        topic = log.create_topic("events", partitions=4)
        key_partition = topic.append(b"x", b"key").partition
        assert topic.append(b"x", b"key", expected_end=1).partition == key_partition
        other = (key_partition + 1) % 4
        assert topic.append(b"x", b"key", partition=other, expected_end=0).partition == other
        with pytest.raises(ConfigError, match="partition"):
            topic.append(b"x", expected_end=0)
        with pytest.raises(UnknownPartitionError):
            topic.append(b"x", partition=4, expected_end=0)

    @pytest.mark.parametrize("wrong", [-1, "0", 1.0, True])
    def test_condition_that_is_no_number_is_refused(self, log: StreamLog, wrong: Any) -> None:
        """Both of them, whatever the topic holds."""
        topic = indexed(log)
        for condition in ("expected_end", "expected_version"):
            with pytest.raises(ConfigError, match=condition):
                topic.append(b"x", b"key", **{condition: wrong})
        assert topic.end_offsets() == {0: 0}

    # --- the version of a key

    def test_version_is_the_number_of_the_keys_records(self, log: StreamLog) -> None:
        """Tombstones count, and other keys do not."""
        topic = indexed(log)
        for version, value in enumerate((b"a", None, b"c", b"")):
            topic.append(value, b"key", expected_version=version)
            topic.append(b"x", b"other%d" % version, expected_version=0)
        assert values(topic.read_key(b"key")) == [b"a", None, b"c", b""]

    @pytest.mark.parametrize("expected", [0, 1, 3, 2**60])
    def test_another_version_is_a_conflict(self, log: StreamLog, expected: int) -> None:
        """The error tells both numbers, and nothing is written."""
        topic = indexed(log)
        for _ in range(2):
            topic.append(b"x", b"key")
        with pytest.raises(VersionConflictError) as caught:
            topic.append(b"y", b"key", expected_version=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 2)
        assert (caught.value.topic, caught.value.partition, caught.value.key) == ("events", 0, b"key")
        assert values(topic.read()) == [b"x", b"x"]
        topic.append(b"y", b"key", expected_version=2)

    def test_conditions_can_be_combined(self, log: StreamLog) -> None:
        """Both must hold; one that does not leaves no trace in what the other counts."""
        topic = indexed(log)
        topic.append(b"a", b"key")
        topic.append(b"b", b"other")
        for end, version in ((1, 1), (2, 0)):
            with pytest.raises(VersionConflictError):
                topic.append(b"x", b"key", expected_end=end, expected_version=version)
        assert topic.append(b"c", b"key", expected_end=2, expected_version=1).offset == 2
        assert values(topic.read_key(b"key")) == [b"a", b"c"]

    def test_version_needs_a_key_and_an_index(self, log: StreamLog) -> None:
        """The errors say what to do."""
        with pytest.raises(ConfigError, match="key_index=True"):
            log.create_topic("plain").append(b"x", b"key", expected_version=0)
        with pytest.raises(ConfigError, match="pass the key"):
            indexed(log).append(b"x", expected_version=0)

    def test_every_way_of_writing_counts(self, log: StreamLog) -> None:
        """One by one, in batches small and large, packed or not, with keys that repeat in one, and beside none."""
        topic = indexed(log)
        counts = {b"a": 0, b"b": 0, b"": 0}
        chance = random.Random(5)  # noqa: S311 - no secret
        for codec in ("none", "gzip"):
            with log.producer(compression_type=codec) as producer:
                for size in (1, 3, 40, 3000):
                    keys = [chance.choice([*counts, None]) for _ in range(size)]
                    producer.send_many("events", [b"%d" % size * 30] * size, keys)
                    for key in keys[:5]:
                        producer.send("events", None if key else b"v", key, headers=[("a", b"b")])
                    for key in counts:
                        counts[key] += keys.count(key) + keys[:5].count(key)
        for key, count in counts.items():
            with pytest.raises(VersionConflictError) as caught:
                topic.append(b"x", key, expected_version=2**40)
            assert caught.value.actual == count
            topic.append(b"last", key, expected_version=count)
            assert len(values(topic.read_key(key))) == count + 1

    def test_what_was_sent_before_counts_once(self, log: StreamLog) -> None:
        """A producer with an id sends records again, in other batches: their keys have each but once."""
        topic = indexed(log)
        keys: list[bytes | None] = [None if number % 5 == 4 else b"%d" % (number % 3) for number in range(900)]
        values_ = [b"%d" % number * 40 for number in range(900)]
        for first, stop in ((0, 500), (300, 900), (0, 900)):
            with log.producer(producer_id="ingest") as producer:
                sequences = range(first, stop)
                producer.send_many("events", values_[first:stop], keys[first:stop], sequences=sequences).result()
                producer.send("events", values_[stop - 1], keys[stop - 1], sequence=stop - 1).result()
        for key in (b"0", b"1", b"2"):
            expected = [value for value, other in zip(values_, keys, strict=True) if other == key]
            assert values(topic.read_key(key)) == expected
            topic.append(b"last", key, expected_version=len(expected))

    def test_records_without_keys_have_no_version(self, log: StreamLog) -> None:
        """They are taken, and stand between the others."""
        topic = indexed(log)
        for _ in range(3):
            topic.append(b"nobody's")
            topic.append(b"mine", b"key")
        with log.producer() as producer:
            producer.send_many("events", [b"nobody's"] * 1000).result()
        topic.append(b"mine", b"key", expected_version=3)
        assert values(topic.read_key(b"key")) == [b"mine"] * 4

    def test_optimistic_threads_lose_no_update(self, log: StreamLog) -> None:
        """Eight threads read, add one, and append if nobody else did: every one of them counts once."""
        topic = log.create_topic("events", key_index=True, key_serde=serde.string, value_serde=serde.int64)
        topic.append(0, "counter")
        errors: list[BaseException] = []

        def increment() -> None:
            try:
                for _ in range(15):
                    while True:
                        seen = values(topic.read_key("counter"))
                        assert seen[-1] is not None
                        try:
                            topic.append(seen[-1] + 1, "counter", expected_version=len(seen))
                        except VersionConflictError:
                            continue
                        break
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        threads = [threading.Thread(target=increment) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE * 4)
        assert not errors
        assert values(topic.read_key("counter")) == list(range(121))

    # --- in transactions

    def test_conditions_hold_for_a_whole_transaction(self, log: StreamLog) -> None:
        """What the transaction sent before counts; one that does not hold leaves nothing of it."""
        events, other = indexed(log), log.create_topic("other")
        events.append(b"0", b"key")
        with log.producer() as producer:
            with producer.transaction():
                producer.send("events", b"1", b"key", expected_version=1)
                producer.send("other", b"x", expected_end=0)
                producer.send("events", b"2", b"key", expected_version=2, expected_end=2)
                producer.send("events", b"3", b"key")
                producer.send("other", b"y", expected_end=1)
            assert values(events.read_key(b"key")) == [b"0", b"1", b"2", b"3"]
            for end, version in ((None, 4), (9, None)):
                producer.begin_transaction()
                producer.send("other", b"never")
                producer.send("events", b"never", b"key")
                delivery = producer.send("events", b"never", b"key", expected_end=end, expected_version=version)
                with pytest.raises(VersionConflictError) as caught:
                    producer.commit_transaction()
                assert caught.value.expected == (version or end)
                with pytest.raises(TransactionAbortedError):
                    delivery.result()
        events.append(b"4", b"key", expected_version=4, expected_end=4)
        assert values(other.read()) == [b"x", b"y"]
        assert values(events.read_key(b"key")) == [b"0", b"1", b"2", b"3", b"4"]

    def test_conditions_outside_of_a_transaction_are_refused(self, log: StreamLog) -> None:
        """A batch of a producer has many records' fates: `Topic.append` is for one."""
        indexed(log)
        with log.producer() as producer:
            for end, version in ((0, None), (None, 0)):
                with pytest.raises(ConfigError, match="transaction"):
                    producer.send("events", b"x", b"key", expected_end=end, expected_version=version)

    # --- reading by key

    def test_read_key_yields_the_keys_records_in_order(self, log: StreamLog) -> None:
        """With everything that was written, over all partitions and segments."""
        topic = indexed(log, partitions=3, segment_bytes=65536)
        chance = random.Random(3)  # noqa: S311 - no secret
        expected: dict[bytes, list[tuple[Any, ...]]] = {}
        with log.producer(linger_ms=0) as producer:
            for number in range(600):
                key = b"key%d" % chance.randrange(40)
                value = None if number % 9 == 0 else b"%d " % number * chance.randrange(200)
                headers = (("number", b"%d" % number),) if number % 3 == 0 else ()
                written = producer.send("events", value, key, headers=headers, timestamp_ms=1000 + number).result()
                fields = (written.partition, written.offset, 1000 + number, key, value, headers)
                expected.setdefault(key, []).append(fields)
        for key, records in expected.items():
            found = [
                (record.partition, record.offset, record.timestamp_ms, record.key, record.value, record.headers)
                for record in topic.read_key(key)
            ]
            assert found == records
        assert list(topic.read_key(b"nobody")) == []

    def test_read_key_of_an_empty_topic_is_empty(self, log: StreamLog) -> None:
        """Also of a partition that was never used."""
        assert list(indexed(log, partitions=2).read_key(b"key")) == []

    def test_read_key_ends_where_the_log_ended_at_the_call(self, log: StreamLog) -> None:
        """Not when the first record is taken."""
        topic = indexed(log)
        topic.append(b"before", b"key")
        reading = topic.read_key(b"key")
        topic.append(b"after", b"key")
        assert values(reading) == [b"before"]
        assert values(topic.read_key(b"key")) == [b"before", b"after"]

    def test_read_key_uses_the_serdes(self, log: StreamLog) -> None:
        """Of the topic; what does not deserialise raises with the record, after those before it."""
        indexed(log)
        topic = log.topic("events", key_serde=serde.int64, value_serde=serde.json)
        topic.append({"n": 1}, 7)
        topic.append(None, 7)
        log.topic("events").append(b"x", serde.int64.dumps(7))
        reading = topic.read_key(7)
        assert [(record.key, record.value) for record in (next(reading), next(reading))] == [(7, {"n": 1}), (7, None)]
        with pytest.raises(SerdeError) as caught:
            next(reading)
        assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("events", 0, 2)
        assert (caught.value.key, caught.value.value) == (serde.int64.dumps(7), b"x")
        with pytest.raises(SerdeError):
            topic.read_key("seven")  # type: ignore[arg-type]

    def test_read_key_needs_a_key_and_an_index(self, log: StreamLog) -> None:
        """The errors say what to do."""
        with pytest.raises(ConfigError, match="key_index=True"):
            log.create_topic("plain").read_key(b"key")
        with pytest.raises(ConfigError, match="key"):
            indexed(log).read_key(None)  # type: ignore[arg-type]

    def test_read_key_of_a_deleted_topic_is_an_error(self, log: StreamLog) -> None:
        """And after the log was closed."""
        topic = indexed(log)
        topic.append(b"x", b"key")
        log.delete_topic("events")
        with pytest.raises(UnknownTopicError):
            list(topic.read_key(b"key"))
        other = log.create_topic("other", key_index=True)
        log.close()
        with pytest.raises(ClosedError):
            other.read_key(b"key")

    # --- what such a topic refuses

    def test_keys_stay_in_their_partitions(self, log: StreamLog) -> None:
        """No partition can be added or named, and no producer places keys in its own way."""
        topic = indexed(log, partitions=2)
        with pytest.raises(ConfigError, match="key index"):
            topic.add_partitions(3)
        assert topic.partitions == 2
        with pytest.raises(ConfigError, match="leave partition out"):
            topic.append(b"x", b"key", partition=0)
        with log.producer() as producer:
            with pytest.raises(ConfigError, match="leave partition out"):
                producer.send("events", b"x", b"key", partition=0)
            with pytest.raises(ConfigError, match="leave partition out"):
                producer.send_many("events", [b"x"], [b"key"], partition=0)
        for partitioner in ("murmur2", "round_robin", lambda *_: 0):
            with log.producer(partitioner=partitioner) as producer, pytest.raises(ConfigError, match="partitioner"):
                producer.send("events", b"x", b"key")
        assert topic.end_offsets() == {0: 0, 1: 0}

    @pytest.mark.parametrize("made", [True, False])
    def test_key_index_cannot_be_altered(self, log: StreamLog, made: bool) -> None:  # noqa: FBT001
        """Neither way; other settings can."""
        topic = log.create_topic("events", key_index=made)
        with pytest.raises(ConfigError, match="key_index"):
            topic.alter(key_index=not made)
        topic.alter(key_index=made, segment_ms=5)
        assert (topic.config["key_index"], topic.config["segment_ms"]) == (made, 5)

    @pytest.mark.parametrize("wrong", [1, "yes", None])
    def test_key_index_is_true_or_false(self, log: StreamLog, wrong: Any) -> None:
        """Nothing else."""
        with pytest.raises(ConfigError, match="key_index"):
            log.create_topic("events", key_index=wrong)
