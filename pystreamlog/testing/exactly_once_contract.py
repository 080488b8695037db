"""The contract of reading, writing and committing in one transaction: each record counts once, whatever goes wrong."""
# ruff: noqa: PLR2004, PT012 - numbers are examples, and what raises is a block

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from pystreamlog import Consumer, OffsetAndMetadata, Producer, StreamLog, TopicPartition
from pystreamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    FencedError,
    IllegalStateError,
    OffsetOutOfRangeError,
    TransactionAbortedError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp, values
from pystreamlog.testing.group_driving import drive, even, join, read
from pystreamlog.testing.transaction_contract import stored

__all__ = ["ExactlyOnceContract"]

BY_HAND: dict[str, Any] = {"enable_auto_commit": False}


class BrokenError(Exception):
    """What the application raises."""


class Noted:
    """An interceptor that notes commits."""

    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, OffsetAndMetadata]] = []

    def on_commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """See what was committed."""
        self.commits.append(dict(offsets))


def committed(log: StreamLog, *partitions: int, group_id: str = "g") -> list[int | None]:
    """What a group has committed in these partitions of the input, or in the first."""
    with log.consumer(group_id=group_id) as consumer:
        found = consumer.committed(*(tp(number) for number in partitions or (0,)))
    return [None if one is None else one.offset for one in found.values()]


def copy(consumer: Consumer[bytes, bytes], producer: Producer[bytes, bytes], count: int) -> None:
    """Copy records from the input to the output, in one transaction."""
    records = take(consumer, count)
    with producer.transaction(consumer=consumer):
        for record in records:
            producer.send("out", record.value)


class ExactlyOnceContract(Contract):
    """Runs against whatever `open_log` opens."""

    @pytest.fixture
    def topics(self, log: StreamLog) -> StreamLog:
        """A log with ten records in two partitions of the input, and an output."""
        fill(log, 10, partitions=2)
        log.create_topic("out")
        return log

    # --- commit and abort

    def test_offsets_are_committed_with_the_records(self, topics: StreamLog) -> None:
        """At the same moment: before there is neither, after there are both."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            records = take(consumer, 10)
            with producer.transaction(consumer=consumer):
                for record in records:
                    producer.send("out", record.value)
                assert committed(topics, 0, 1) == [0, 0]
                assert stored(topics, "out") == []
            assert committed(topics, 0, 1) == [5, 5]
            assert stored(topics, "out") == values(records)
            assert consumer.committed() == {tp(0): (5, ""), tp(1): (5, "")}

    def test_exception_rewinds(self, topics: StreamLog) -> None:
        """The records come again, and neither records nor offsets are left."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            copy(consumer, producer, 10)
            fill(topics, 4, partitions=2, first=10)
            for _ in range(2):
                with pytest.raises(BrokenError), producer.transaction(consumer=consumer):
                    for record in take(consumer, 4):
                        producer.send("out", record.value)
                    raise BrokenError
                assert committed(topics, 0, 1) == [5, 5]
                assert consumer.position(tp(0)) == 5
            copy(consumer, producer, 4)
            assert committed(topics, 0, 1) == [7, 7]
        assert sorted(stored(topics, "out")) == sorted(b"%d" % number for number in range(14))

    def test_abort_before_anything_was_committed_goes_back_to_the_start(self, topics: StreamLog) -> None:
        """To where the group began."""
        with (
            topics.consumer("events", group_id="new", auto_offset_reset="earliest", **BY_HAND) as consumer,
            topics.producer() as producer,
        ):
            with pytest.raises(BrokenError), producer.transaction(consumer=consumer):
                take(consumer, 10)
                raise BrokenError
            assert len(take(consumer, 10)) == 10

    def test_loop_counts_what_it_handed_out(self, topics: StreamLog) -> None:
        """Up to and including the current record, and an abort gives back what it got ahead."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            first, second = values(self._some(consumer, producer, 3)), values(self._some(consumer, producer, 4))
            with pytest.raises(BrokenError), producer.transaction(consumer=consumer):
                next(iter(consumer))
                raise BrokenError
            third = values(self._some(consumer, producer, 3))
            assert committed(topics, 0, 1) == [5, 5]
        assert stored(topics, "out") == first + second + third
        assert len(set(first + second + third)) == 10

    @staticmethod
    def _some(consumer: Consumer[bytes, bytes], producer: Producer[bytes, bytes], count: int) -> list[Any]:
        records: list[Any] = []
        with producer.transaction(consumer=consumer):
            for record in consumer:
                producer.send("out", record.value)
                records.append(record)
                if len(records) == count:
                    break
        return records

    def test_nothing_read_commits_nothing(self, topics: StreamLog) -> None:
        """Records that a transaction sends by itself are committed all the same."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            with producer.transaction(consumer=consumer):
                producer.send("out", b"x")
            with producer.transaction(consumer=consumer):
                pass
        assert committed(topics, 0, 1) == [0, 0]
        assert stored(topics, "out") == [b"x"]

    def test_offsets_alone(self, topics: StreamLog) -> None:
        """A transaction that only reads: records may be filtered out."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            with producer.transaction(consumer=consumer):
                take(consumer, 10)
            assert committed(topics, 0, 1) == [5, 5]
            assert not consumer.poll(0)

    def test_commits_are_told(self, topics: StreamLog) -> None:
        """Interceptors of the consumer hear of them; aborts they do not."""
        noted = Noted()
        with join(topics, interceptors=[noted], **BY_HAND) as consumer, topics.producer() as producer:
            noted.commits.clear()
            with pytest.raises(BrokenError), producer.transaction(consumer=consumer):
                take(consumer, 10)
                raise BrokenError
            assert noted.commits == []
            copy(consumer, producer, 10)
        assert noted.commits == [{tp(0): OffsetAndMetadata(5, ""), tp(1): OffsetAndMetadata(5, "")}]

    def test_closing_the_consumer_adds_nothing(self, topics: StreamLog) -> None:
        """What an aborted transaction had read is not committed by leaving `with`."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            take(consumer, 10)
            producer.begin_transaction()
            producer.send("out", b"x")
            with pytest.raises(IllegalStateError), producer.transaction(consumer=consumer):
                pass
            producer.abort_transaction()
            with suppress(BrokenError), producer.transaction(consumer=consumer):
                raise BrokenError
        assert committed(topics, 0, 1) == [0, 0]
        assert stored(topics, "out") == []

    # --- by hand

    def test_send_offsets(self, topics: StreamLog) -> None:
        """What the consumer will have handed out by the end, also later in the block; twice is once."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            with producer.transaction() as tx:
                for record in consumer.poll(PATIENCE, max_records=3):
                    producer.send("out", record.value)
                tx.send_offsets(consumer)
                tx.send_offsets(consumer)
                for record in take(consumer, 7):
                    producer.send("out", record.value)
            assert committed(topics, 0, 1) == [5, 5]
        assert len(stored(topics, "out")) == 10

    def test_offsets_of_two_consumers(self, topics: StreamLog) -> None:
        """Of two groups, and of two topics."""
        fill(topics, 3, topic="others")
        with (
            join(topics, **BY_HAND) as first,
            join(topics, "others", group_id="h", **BY_HAND) as second,
            topics.producer() as producer,
            producer.transaction(consumer=first) as tx,
        ):
            tx.send_offsets(second)
            take(first, 10)
            take(second, 3)
        assert committed(topics, 0, 1) == [5, 5]
        with topics.consumer(group_id="h") as consumer:
            assert consumer.committed(tp(0, "others")) == {tp(0, "others"): (3, "")}

    def test_send_offsets_to_transaction(self, topics: StreamLog) -> None:
        """Kafka's way: any offsets, with texts; the last of a partition counts; the position stays."""
        with join(topics, **BY_HAND) as consumer, topics.producer(transactional_id="t") as producer:
            take(consumer, 10)
            producer.begin_transaction()
            group = consumer.group_metadata()
            producer.send_offsets_to_transaction({tp(0): 1, tp(1): OffsetAndMetadata(2, "two")}, group)
            producer.send_offsets_to_transaction({tp(0): OffsetAndMetadata(3, "☃" * 1365)}, group)
            producer.send_offsets_to_transaction({}, group)
            assert committed(topics, 0, 1) == [0, 0]
            producer.commit_transaction()
            assert consumer.committed() == {tp(0): (3, "☃" * 1365), tp(1): (2, "two")}
            assert consumer.position(tp(0)) == 5
            producer.begin_transaction()
            producer.send_offsets_to_transaction({tp(0): 4, tp(1): 4}, group)
            producer.abort_transaction()
            assert committed(topics, 0, 1) == [3, 2]

    def test_offsets_of_a_group_without_members(self, topics: StreamLog) -> None:
        """A consumer that assigned its partitions, and one that assigned none."""
        with topics.consumer(group_id="g", **BY_HAND) as consumer, topics.producer() as producer:
            consumer.assign([tp(0)])
            consumer.seek(tp(0), 2)
            copy(consumer, producer, 3)
            assert committed(topics, 0, 1) == [5, None]
            producer.begin_transaction()
            producer.send_offsets_to_transaction({tp(1): 4}, consumer.group_metadata())
            producer.commit_transaction()
            assert committed(topics, 0, 1) == [5, 4]

    def test_wrong_offsets_are_refused(self, topics: StreamLog) -> None:
        """At the call, which leaves the transaction as it was."""
        with join(topics, **BY_HAND) as consumer, topics.producer() as producer:
            group = consumer.group_metadata()
            with pytest.raises(IllegalStateError):
                producer.send_offsets_to_transaction({tp(0): 1}, group)
            producer.begin_transaction()
            for offset in (-1, 6):
                with pytest.raises(OffsetOutOfRangeError):
                    producer.send_offsets_to_transaction({tp(0): offset}, group)
            with pytest.raises(UnknownPartitionError):
                producer.send_offsets_to_transaction({tp(7): 0}, group)
            with pytest.raises(UnknownTopicError):
                producer.send_offsets_to_transaction({tp(0, "nowhere"): 0}, group)
            for wrong in ({tp(0): "1"}, {"events": 1}, {tp(0): OffsetAndMetadata(1, "x" * 5000)}):
                with pytest.raises(ConfigError):
                    producer.send_offsets_to_transaction(wrong, group)  # type: ignore[arg-type]
            with pytest.raises(ConfigError):
                producer.send_offsets_to_transaction({tp(0): 1}, "g")  # type: ignore[arg-type]
            producer.commit_transaction()
        assert committed(topics, 0, 1) == [0, 0]

    # --- who may not

    def test_consumer_that_commits_by_itself_is_refused(self, topics: StreamLog) -> None:
        """And so is one without a group, of another log, or that is closed; no transaction is open afterwards."""
        closed = topics.consumer(group_id="g", **BY_HAND)
        closed.close()
        with (
            self.open_log() as elsewhere,
            topics.consumer("events", group_id="g") as automatic,
            topics.consumer("events") as alone,
            elsewhere.consumer(group_id="g", **BY_HAND) as other,
            topics.producer() as producer,
        ):
            refused: list[tuple[Any, type[Exception]]] = [
                (automatic, ConfigError),
                (alone, IllegalStateError),
                (other, ConfigError),
                (closed, ClosedError),
                ("events", ConfigError),
            ]
            for consumer, error in refused:
                with pytest.raises(error), producer.transaction(consumer=consumer):
                    pytest.fail("it was let in")
                with producer.transaction() as tx:
                    with pytest.raises(error):
                        tx.send_offsets(consumer)
                    producer.send("out", b"x")
        assert len(stored(topics, "out")) == 5

    def test_consumer_closed_before_the_commit(self, topics: StreamLog) -> None:
        """What it has read cannot be committed: the transaction is aborted."""
        with topics.producer() as producer:
            consumer = join(topics, **BY_HAND)
            with pytest.raises(ClosedError), producer.transaction(consumer=consumer):
                take(consumer, 10)
                delivery = producer.send("out", b"x")
                consumer.close()
            assert isinstance(delivery.exception(), TransactionAbortedError)
        assert stored(topics, "out") == []
        assert committed(topics, 0, 1) == [0, 0]

    def test_two_members_of_one_group_are_refused(self, topics: StreamLog) -> None:
        """Their offsets are committed by one transaction each."""
        with join(topics, **BY_HAND) as first, join(topics, **BY_HAND) as second, topics.producer() as producer:
            even(first, second, total=2)
            with pytest.raises(ConfigError), producer.transaction(consumer=first) as tx:
                fill(topics, 10, partitions=2)
                assert first.poll(PATIENCE)
                assert second.poll(PATIENCE)
                tx.send_offsets(second)
                producer.send("out", b"x")
        assert stored(topics, "out") == []

    # --- partitions that go

    def test_member_that_lost_its_partition_commits_nothing(self, topics: StreamLog) -> None:
        """It did not poll for too long, another took over: nothing of its transaction is visible, and it goes on."""
        with (
            topics.producer() as producer,
            join(topics, max_poll_interval_ms=150, **BY_HAND) as late,
            join(topics, **BY_HAND) as other,
        ):
            even(late, other, total=2)
            for member in (late, other):
                with producer.transaction(consumer=member):
                    pass  # what was read while the members came together needs no copy
            fill(topics, 2, partitions=2, first=10)
            with pytest.raises(CommitFailedError), producer.transaction(consumer=late):
                for record in take(late, 1):
                    producer.send("out", record.value)
                seen = drive(other, until=lambda: len(other.assignment()) == 2)
            assert stored(topics, "out") == []
            with producer.transaction(consumer=other):
                for record in [*seen, *read(other, count=2 - len(seen))]:
                    producer.send("out", record.value)
        assert sorted(stored(topics, "out")) == [b"10", b"11"]
        assert committed(topics, 0, 1) == [6, 6]

    def test_partition_given_up_between_two_polls_fails_the_commit(self, topics: StreamLog) -> None:
        """Its records were sent, but the new owner reads them again; they would count twice."""
        with join(topics, **BY_HAND) as first, topics.producer() as producer:
            with pytest.raises(CommitFailedError), producer.transaction(consumer=first):
                for record in take(first, 10):
                    producer.send("out", record.value)
                second = join(topics, **BY_HAND)
                even(first, second, total=2)
            with second:
                assert stored(topics, "out") == []
                self._copy_all(producer, first, second)
        assert sorted(stored(topics, "out")) == sorted(b"%d" % number for number in range(10))

    @staticmethod
    def _copy_all(producer: Producer[bytes, bytes], *members: Consumer[bytes, bytes]) -> None:
        for member in members:
            member.seek_to_beginning()
            copy(member, producer, 5)

    def test_on_revoke_may_commit(self, topics: StreamLog) -> None:
        """Before the partition goes: then nothing is lost, nothing comes twice."""
        with topics.producer() as producer:

            def on_revoke(_: Consumer[Any, Any], removed: list[TopicPartition]) -> None:
                if removed and committed(topics, 0, 1) == [0, 0]:
                    producer.commit_transaction()

            with join(topics, on_revoke=on_revoke, **BY_HAND) as first:
                producer.begin_transaction()
                records = take(first, 10)
                for record in records:
                    producer.send("out", record.value)
                producer.send_offsets_to_transaction({tp(0): 5, tp(1): 5}, first.group_metadata())
                with join(topics, **BY_HAND) as second:
                    assert even(first, second, total=2) == []
                    assert not first.poll(0)
                    assert not second.poll(0)
        assert committed(topics, 0, 1) == [5, 5]
        assert len(stored(topics, "out")) == 10

    def test_fenced_producer_commits_no_offsets(self, topics: StreamLog) -> None:
        """The records come again."""
        with (
            join(topics, **BY_HAND) as consumer,
            topics.producer(transactional_id="t") as old,
            topics.producer(transactional_id="t") as new,
        ):
            with pytest.raises(FencedError), old.transaction(consumer=consumer):
                for record in take(consumer, 10):
                    old.send("out", record.value)
                new.init_transactions()
            assert committed(topics, 0, 1) == [0, 0]
            copy(consumer, new, 10)
        assert len(stored(topics, "out")) == 10

    # --- event loops

    def test_copying_on_an_event_loop(self, topics: StreamLog) -> None:
        """`async with` within `async for`; an abort brings the record again."""
        aborted = False

        async def work() -> None:
            nonlocal aborted
            async with topics.producer() as producer:
                consumer = topics.consumer("events", group_id="g", auto_offset_reset="earliest", **BY_HAND)
                async with consumer:
                    done = 0
                    async for record in consumer:
                        with suppress(BrokenError):
                            async with producer.transaction(consumer=consumer):
                                producer.send("out", record.value)
                                if record.offset == 3 and not aborted:
                                    aborted = True
                                    raise BrokenError
                                done += 1
                        if done == 10:
                            break

        asyncio.run(asyncio.wait_for(work(), PATIENCE))
        assert sorted(stored(topics, "out")) == sorted(b"%d" % number for number in range(10))
        assert committed(topics, 0, 1) == [5, 5]
