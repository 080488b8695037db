"""The contract of subscriptions: which partitions a consumer reads, as topics and partitions come and go."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Consumer, StreamLog, TopicPartition, serde
from pystreamlog.errors import (
    ConfigError,
    IllegalStateError,
    InvalidTopicError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp, values

__all__ = ["SubscriptionContract"]

Told = list[tuple[str, list[TopicPartition]]]


def poll_until(consumer: Consumer[Any, Any], done: Callable[[], bool]) -> list[Any]:
    """Poll until something has happened; the values that came meanwhile."""
    seen: list[Any] = []
    deadline = monotonic() + PATIENCE
    while not done():
        assert monotonic() < deadline
        seen += consumer.poll(0.1).values
    return seen


class SubscriptionContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- by name

    def test_every_partition_is_read(self, log: StreamLog) -> None:
        """Of every subscribed topic, and of no other."""
        for topic in ("a", "b", "c"):
            fill(log, 3, topic=topic, partitions=3)
        with log.consumer("a", "c", auto_offset_reset="earliest") as consumer:
            assert consumer.assignment() == {tp(number, topic) for topic in ("a", "c") for number in range(3)}
            assert {record.topic for record in take(consumer, 6)} == {"a", "c"}

    @pytest.mark.parametrize("topics", ["a", ["a"], ("a", "b"), {"b"}])
    def test_topics_may_be_one_or_several(self, log: StreamLog, topics: Any) -> None:
        """A name is no list of letters."""
        log.create_topic("a")
        log.create_topic("b")
        with log.consumer() as consumer:
            consumer.subscribe(topics)
            assert {part.topic for part in consumer.assignment()} == set(topics)

    def test_topics_may_be_topics(self, log: StreamLog) -> None:
        """Each deserialised by its own serdes."""
        fill(log, 1, topic="a")
        fill(log, 1, topic="b")
        with log.consumer(auto_offset_reset="earliest", value_serde=serde.json) as consumer:
            consumer.subscribe([log.topic("a", value_serde=serde.string), "b"])
            assert {record.topic: record.value for record in take(consumer, 2)} == {"a": "0", "b": 0}

    def test_subscription_replaces_the_last_one(self, log: StreamLog) -> None:
        """What is kept keeps its position, and gets the new serdes."""
        fill(log, 4, topic="a")
        fill(log, 4, topic="b")
        with log.consumer("a", auto_offset_reset="earliest") as consumer:
            consumer.poll(PATIENCE, max_records=2)
            consumer.subscribe([log.topic("a", value_serde=serde.json), "b"])
            assert consumer.position(tp(0, "a")) == 2
            seen: list[tuple[str, Any]] = [(record.topic, record.value) for record in take(consumer, 6)]
            assert [value for topic, value in seen if topic == "a"] == [2, 3]
            consumer.subscribe("b")
            assert consumer.assignment() == {tp(0, "b")}

    def test_unknown_topic_is_an_error(self, log: StreamLog) -> None:
        """And nothing of the call holds."""
        log.create_topic("a")
        with pytest.raises(UnknownTopicError):
            log.consumer("a", "unknown")
        with log.consumer("a") as consumer:
            with pytest.raises(UnknownTopicError):
                consumer.subscribe(["unknown", "a"])
            with pytest.raises(InvalidTopicError):
                consumer.subscribe([5])  # type: ignore[list-item]  # wrong on purpose
            assert consumer.assignment() == {tp(0, "a")}
            assert not consumer.poll(0)

    def test_topics_or_a_pattern(self, log: StreamLog) -> None:
        """One of the two, and the pattern a regular expression of text."""
        log.create_topic("a")
        bad: list[dict[str, Any]] = [{}, {"topics": "a", "pattern": "a"}, {"pattern": "("}, {"pattern": 5}]
        with log.consumer() as consumer:
            for arguments in [*bad, {"pattern": re.compile(b"a")}]:
                with pytest.raises(ConfigError):
                    consumer.subscribe(**arguments)
            with pytest.raises(IllegalStateError):
                consumer.poll(0)

    def test_unsubscribed_consumer_reads_nothing(self, log: StreamLog) -> None:
        """No topics, or no partitions, are the same; then both ways are open again."""
        log.create_topic("events")
        with log.consumer() as consumer:
            ways: list[tuple[Callable[[], None], Callable[[], None]]] = [
                (lambda: consumer.subscribe("events"), consumer.unsubscribe),
                (lambda: consumer.assign([tp()]), consumer.unsubscribe),
                (lambda: consumer.subscribe(pattern=".*"), lambda: consumer.subscribe([])),
                (lambda: consumer.assign([tp()]), lambda: consumer.assign([])),
            ]
            for begin, end in ways:
                begin()
                assert consumer.assignment() == {tp()}
                end()
                assert consumer.assignment() == set()
                with pytest.raises(IllegalStateError):
                    consumer.poll(0)

    # --- by partition

    def test_assigned_partitions_are_read(self, log: StreamLog) -> None:
        """Exactly these; those kept by the next `assign` keep their positions."""
        fill(log, 9, partitions=3)
        with log.consumer(auto_offset_reset="earliest") as consumer:
            consumer.assign([tp(0), tp(2)])
            assert values(take(consumer, 6)) in (
                [b"0", b"3", b"6", b"2", b"5", b"8"],
                [b"2", b"5", b"8", b"0", b"3", b"6"],
            )
            consumer.assign([tp(2), tp(1)])
            assert consumer.assignment() == {tp(1), tp(2)}
            assert (consumer.position(tp(2)), consumer.position(tp(1))) == (3, 0)
            assert values(take(consumer, 3)) == [b"1", b"4", b"7"]

    def test_unknown_partition_cannot_be_assigned(self, log: StreamLog) -> None:
        """And nothing of the call holds."""
        log.create_topic("events", partitions=2)
        with log.consumer() as consumer:
            consumer.assign([tp(1)])
            for bad in (tp(2), tp(-1), TopicPartition("events", "0")):  # type: ignore[arg-type]  # wrong on purpose
                with pytest.raises(UnknownPartitionError):
                    consumer.assign([tp(0), bad])
            with pytest.raises(UnknownTopicError):
                consumer.assign([tp(0), tp(0, "unknown")])
            assert consumer.assignment() == {tp(1)}

    def test_subscribe_and_assign_exclude_each_other(self, log: StreamLog) -> None:
        """Until `unsubscribe`."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            with pytest.raises(IllegalStateError):
                consumer.assign([tp()])
            consumer.unsubscribe()
            consumer.assign([tp()])
            for arguments in ({"topics": "events"}, {"pattern": "e.*"}):
                with pytest.raises(IllegalStateError):
                    consumer.subscribe(**arguments)  # type: ignore[arg-type]  # a dict of both

    # --- by pattern

    def test_pattern_matches_whole_names(self, log: StreamLog) -> None:
        """Names that start with `__` are nobody's business."""
        for name in ("orders", "orders-eu", "old-orders", "__orders", "x"):
            log.create_topic(name)
        with log.consumer() as consumer:
            for pattern in ("orders.*", re.compile("ORDERS.*", re.IGNORECASE)):
                consumer.subscribe(pattern=pattern)
                assert {part.topic for part in consumer.assignment()} == {"orders", "orders-eu"}
            consumer.subscribe(pattern=".*")
            assert {part.topic for part in consumer.assignment()} == {"orders", "orders-eu", "old-orders", "x"}

    def test_pattern_takes_up_topics_made_later(self, log: StreamLog) -> None:
        """From their first record, whatever `auto_offset_reset` says; also when there was none at first."""
        with log.consumer() as consumer:
            consumer.subscribe(pattern="orders.*")
            assert not consumer.poll(0.01)
            for name in ("orders-eu", "other", "orders-us"):
                fill(log, 2, topic=name, partitions=2)
            seen = take(consumer, 4)
            assert {(record.topic, record.partition) for record in seen} == {
                (name, number) for name in ("orders-eu", "orders-us") for number in range(2)
            }
            assert not consumer.poll(0.01)

    # --- partitions that come

    def test_added_partitions_are_read_from_their_start(self, log: StreamLog) -> None:
        """Whatever `auto_offset_reset` says."""
        fill(log, 3)
        for reset in ("latest", "earliest", "none"):
            topic = log.topic("events")
            with log.consumer("events", auto_offset_reset=reset) as consumer:
                consumer.seek_to_end()
                assert not consumer.poll(0)
                added = topic.partitions
                topic.add_partitions(added + 1)
                topic.append(b"first", partition=added)
                topic.append(b"second", partition=added)
                assert values(take(consumer, 2)) == [b"first", b"second"]

    def test_assigned_consumer_takes_up_no_partitions(self, log: StreamLog) -> None:
        """It reads what it was told to."""
        topic = log.create_topic("events")
        with log.consumer() as consumer:
            consumer.assign([tp(0)])
            topic.add_partitions(2)
            topic.append(b"x", partition=1)
            topic.append(b"y", partition=0)
            assert values(take(consumer, 1)) == [b"y"]
            assert consumer.assignment() == {tp(0)}

    # --- topics that go

    def test_deleted_topic_is_read_no_more(self, log: StreamLog) -> None:
        """The others are; no error."""
        fill(log, 4, topic="doomed", partitions=2)
        fill(log, 1, topic="kept")
        with log.consumer("doomed", "kept", auto_offset_reset="earliest") as consumer:
            take(consumer, 5)
            log.delete_topic("doomed")
            poll_until(consumer, lambda: consumer.assignment() == {tp(0, "kept")})
            fill(log, 1, topic="kept")
            assert len(take(consumer, 1)) == 1

    def test_deleted_topic_without_records(self, log: StreamLog) -> None:
        """Neither of whose partitions was ever used; assigned ones go as well."""
        for subscribe in (True, False):
            log.create_topic("doomed", partitions=2)
            with log.consumer() as consumer:
                if subscribe:
                    consumer.subscribe("doomed")
                else:
                    consumer.assign([tp(0, "doomed"), tp(1, "doomed")])
                consumer.poll(0)
                log.delete_topic("doomed")
                poll_until(consumer, lambda: not consumer.assignment())

    def test_topic_made_again_is_read_from_its_start(self, log: StreamLog) -> None:
        """By whoever subscribed to its name or a pattern, after a `poll` between or none."""
        for between in (True, False):
            for arguments in ({"topics": "events"}, {"pattern": "e.*"}):
                fill(log, 3, partitions=2)
                with log.consumer() as consumer:
                    consumer.subscribe(**arguments)  # type: ignore[arg-type]  # a dict of both
                    consumer.poll(0)
                    log.delete_topic("events")
                    if between:
                        poll_until(consumer, lambda: not consumer.assignment())
                    log.create_topic("events")
                    fill(log, 2, first=10)
                    seen: list[bytes | None] = []
                    seen += poll_until(consumer, lambda: consumer.assignment() == {tp(0)})
                    assert seen + values(take(consumer, 2 - len(seen))) == [b"10", b"11"]
                log.delete_topic("events")

    # --- callbacks

    def test_callbacks_are_told_of_changes(self, log: StreamLog) -> None:
        """Inside `poll`, with the changes only; a seek there holds."""
        told: Told = []

        def on_assign(consumer: Consumer[Any, Any], added: list[TopicPartition]) -> None:
            told.append(("added", added))
            for part in added:
                consumer.seek(part, min(1, consumer.end_offsets([part])[part]))

        def on_revoke(_: Consumer[Any, Any], removed: list[TopicPartition]) -> None:
            told.append(("removed", removed))

        topic = log.create_topic("events", partitions=2)
        fill(log, 4, partitions=2)
        with log.consumer("events", on_assign=on_assign, on_revoke=on_revoke) as consumer:
            assert told == []
            assert {record.offset for record in take(consumer, 2)} == {1}
            assert told == [("added", [tp(0), tp(1)])]
            topic.add_partitions(3)
            topic.append(b"skipped", partition=2)
            topic.append(b"read", partition=2)
            assert values(take(consumer, 1)) == [b"read"]
            assert told[1:] == [("added", [tp(2)])]
            log.create_topic("other")
            consumer.subscribe("other")
            consumer.poll(0)
            assert told[2:] == [("removed", [tp(0), tp(1), tp(2)]), ("added", [tp(0, "other")])]
            log.delete_topic("other")
            poll_until(consumer, lambda: len(told) > 4)
            assert told[4:] == [("removed", [tp(0, "other")])]

    def test_subscribe_brings_its_own_callbacks(self, log: StreamLog) -> None:
        """Which are told from then on; `unsubscribe` revokes at once; `assign` tells nobody."""
        told: Told = []
        log.create_topic("events")
        with log.consumer(on_assign=lambda _, parts: told.append(("wrong", parts))) as consumer:
            consumer.subscribe(
                "events",
                on_assign=lambda _, parts: told.append(("added", parts)),
                on_revoke=lambda _, parts: told.append(("removed", parts)),
            )
            consumer.poll(0)
            consumer.unsubscribe()
            assert told == [("added", [tp()]), ("removed", [tp()])]
            consumer.assign([tp()])
            consumer.poll(0)
            assert len(told) == 2

    def test_callback_that_raises_leaves_poll(self, log: StreamLog) -> None:
        """After the assignment is as it is to be; the next `poll` goes on."""

        def broken(*_: object) -> None:
            raise ValueError("on_assign is broken")

        fill(log, 3)
        with log.consumer("events", auto_offset_reset="earliest", on_assign=broken) as consumer:
            with pytest.raises(ValueError, match="on_assign is broken"):
                consumer.poll(PATIENCE)
            assert consumer.assignment() == {tp()}
            assert len(take(consumer, 3)) == 3

    def test_coroutine_callback_is_awaited(self, log: StreamLog) -> None:
        """By `poll_async` and `async for`; `poll` cannot, and says so."""
        told: Told = []

        async def on_assign(consumer: Consumer[Any, Any], added: list[TopicPartition]) -> None:
            await asyncio.sleep(0)
            consumer.seek_to_beginning(*added)
            told.append(("added", added))

        async def main() -> None:
            for name in ("a", "b"):
                fill(log, 2, topic=name)
                async with log.consumer(name, on_assign=on_assign) as consumer:
                    if name == "a":
                        assert len(await consumer.poll_async(PATIENCE)) == 2
                    else:
                        assert (await anext(consumer.__aiter__())).offset == 0

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert told == [("added", [tp(0, "a")]), ("added", [tp(0, "b")])]
        with log.consumer("a", on_assign=on_assign) as consumer, pytest.raises(IllegalStateError, match="poll_async"):
            consumer.poll(0)
