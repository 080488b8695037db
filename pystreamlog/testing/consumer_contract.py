"""The contract of consumers: polling, loops, columns, wake-ups, failures, threads and event loops."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Awaitable
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Record, Records, StreamLog, serde
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, SerdeError, WakeupError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, in_thread, take, tp, values

__all__ = ["ConsumerContract"]


class ConsumerContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- settings

    @pytest.mark.parametrize(
        "config",
        [
            {"auto_offset_reset": "first"},
            {"auto_offset_reset": 5},
            {"max_poll_records": 0},
            {"max_poll_records": "5"},
            {"isolation_level": "none"},
            {"key_serde": "json"},
            {"value_serde": 5},
            {"interceptors": "x"},
            {"on_assign": 5},
            {"on_revoke": "x"},
        ],
        ids=str,
    )
    def test_bad_setting_is_refused(self, log: StreamLog, config: dict[str, Any]) -> None:
        """At construction; the message says which."""
        (name,) = config
        with pytest.raises(ConfigError, match=name):
            log.consumer(**config)

    def test_unknown_setting_names_the_nearest(self, log: StreamLog) -> None:
        """Kafka's dotted names are near enough."""
        with pytest.raises(ConfigError, match="auto_offset_reset"):
            log.consumer(**{"auto.offset.reset": "latest"})  # type: ignore[call-overload]  # wrong on purpose

    # --- polling

    def test_poll_returns_what_is_there(self, log: StreamLog) -> None:
        """At once and in order; then what comes."""
        fill(log, 3)
        with log.consumer("events", auto_offset_reset="earliest") as consumer, log.producer() as producer:
            assert values(consumer.poll(PATIENCE)) == [b"0", b"1", b"2"]
            assert not consumer.poll(0)
            producer.send("events", b"3").result()
            assert values(consumer.poll(PATIENCE)) == [b"3"]

    def test_poll_waits_for_the_first_record(self, log: StreamLog) -> None:
        """Though it comes from another thread, into a partition that was never used."""
        log.create_topic("events", partitions=4)
        with log.consumer("events", auto_offset_reset="earliest") as consumer, log.producer() as producer:
            for number in range(4):
                timer = threading.Timer(0.02, producer.send, ["events", b"%d" % number], {"partition": number})
                timer.start()
                assert values(consumer.poll(PATIENCE)) == [b"%d" % number]
                timer.join(PATIENCE)

    def test_poll_ends_with_its_timeout(self, log: StreamLog) -> None:
        """Empty, and not before; 0 does not wait."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            for timeout in (0, 0.05):
                start = monotonic()
                records = consumer.poll(timeout)
                assert monotonic() - start >= timeout
                assert not records
                assert (len(records), list(records), records.values) == (0, [], [])
                assert records.by_partition() == {}

    def test_poll_returns_at_most_so_many(self, log: StreamLog) -> None:
        """By the setting or by the call; what is left comes next."""
        fill(log, 25)
        with log.consumer("events", auto_offset_reset="earliest", max_poll_records=10) as consumer:
            sizes = [len(consumer.poll(PATIENCE)) for _ in range(2)]
            sizes += [len(consumer.poll(PATIENCE, max_records=limit)) for limit in (1, 3, 100)]
            assert sizes == [10, 10, 1, 3, 1]

    @pytest.mark.parametrize("limit", [0, -1, "5", 1.5, True])
    def test_bad_limit_is_refused(self, log: StreamLog, limit: Any) -> None:  # noqa: ANN401 - of any type
        """`max_records` is a whole number from 1."""
        log.create_topic("events")
        with log.consumer("events") as consumer, pytest.raises(ConfigError):
            consumer.poll(0, max_records=limit)

    def test_poll_needs_something_to_read(self, log: StreamLog) -> None:
        """Before `subscribe` or `assign` it would wait for ever."""
        with log.consumer() as consumer:
            with pytest.raises(IllegalStateError):
                consumer.poll(0)
            with pytest.raises(IllegalStateError):
                next(iter(consumer))

    def test_no_partition_starves(self, log: StreamLog) -> None:
        """Every partition gets its turn though one is always full."""
        fill(log, 1000, partitions=3, partition=0)
        fill(log, 1, partitions=3, partition=1)
        fill(log, 1, partitions=3, partition=2)
        with log.consumer("events", auto_offset_reset="earliest", max_poll_records=10) as consumer:
            seen = {part for _ in range(4) for part in consumer.poll(PATIENCE).partitions}
            assert seen == {0, 1, 2}

    def test_every_record_comes_once_and_in_order(self, log: StreamLog) -> None:
        """While two threads write four partitions."""
        log.create_topic("events", partitions=4)
        with log.consumer("events", max_poll_records=37) as consumer, log.producer() as producer:

            def send(name: bytes) -> None:
                for number in range(500):
                    producer.send("events", b"%d" % number, name + b"%d" % (number % 20))

            threads = [threading.Thread(target=send, args=(name,)) for name in (b"a", b"b")]
            for thread in threads:
                thread.start()
            seen = []
            deadline = monotonic() + PATIENCE
            while len(seen) < 1000 and monotonic() < deadline:
                seen += consumer.poll(0.1)
            for thread in threads:
                thread.join(PATIENCE)
            assert not consumer.poll(0.05)
        assert len(seen) == len({(record.partition, record.offset) for record in seen}) == 1000
        for key in {record.key for record in seen}:
            mine = [int(record.value or b"") for record in seen if record.key == key]
            assert mine == sorted(mine)

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

    # --- loops

    def test_loop_hands_out_record_after_record(self, log: StreamLog) -> None:
        """And waits for more."""
        fill(log, 5)
        seen = []
        with log.consumer("events", auto_offset_reset="earliest", max_poll_records=2) as consumer:
            timer = threading.Timer(0.02, fill, [log, 1], {"first": 5})
            timer.start()
            for record in consumer:
                seen.append(record.value)
                if len(seen) == 6:
                    break
            timer.join(PATIENCE)
        assert seen == [b"%d" % number for number in range(6)]

    def test_broken_off_loop_loses_nothing(self, log: StreamLog) -> None:
        """What it fetched ahead comes again: by the next loop, by `poll`, at the position, and in the lag."""
        fill(log, 100, partitions=2)
        seen = []
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            for _ in range(3):
                for number, record in enumerate(consumer, 1):
                    seen.append((record.partition, record.offset))
                    if number == 7:
                        break
                positions = {part: consumer.position(part) for part in consumer.assignment()}
                assert sum(positions.values()) == len(seen)
                assert sum(consumer.lag().values()) == 100 - len(seen)
            seen += [(record.partition, record.offset) for record in take(consumer, 100 - len(seen))]
        assert len(seen) == len(set(seen)) == 100

    def test_seek_within_a_loop_holds(self, log: StreamLog) -> None:
        """The next record is the one that was sought."""
        fill(log, 10)
        seen = []
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            for record in consumer:
                seen.append(record.offset)
                if seen == [0, 1]:
                    consumer.seek(tp(), 8)
                if record.offset == 9:
                    break
        assert seen == [0, 1, 8, 9]

    def test_pause_within_a_loop_holds(self, log: StreamLog) -> None:
        """The partition's next record comes after `resume`."""
        fill(log, 20, partitions=2)
        seen = []
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            for record in consumer:
                seen.append((record.partition, record.offset))
                if len(seen) == 1:
                    paused = record.partition
                    consumer.pause(tp(paused))
                if len(seen) == 11:
                    consumer.resume(tp(paused))
                if len(seen) == 20:
                    break
        assert [part for part, _ in seen] == [paused, *[1 - paused] * 10, *[paused] * 9]
        assert len(set(seen)) == 20

    def test_asynchronous_loop(self, log: StreamLog) -> None:
        """Hands out what is there and waits for more; broken off, it loses nothing."""
        fill(log, 10)

        async def main() -> None:
            seen = []
            async with log.consumer("events", auto_offset_reset="earliest") as consumer:
                for _ in range(2):
                    async for record in consumer:
                        seen.append(record.offset)
                        if len(seen) % 4 == 0:
                            break
                assert consumer.position(tp()) == 8
                seen += [record.offset for record in await consumer.poll_async(PATIENCE)]
                asyncio.get_running_loop().call_later(0.02, fill, log, 1)
                async for record in consumer:
                    seen.append(record.offset)
                    break
            assert seen == list(range(11))

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    # --- wake-ups

    def test_wakeup_from_a_thread_ends_poll(self, log: StreamLog) -> None:
        """The consumer works on."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            timer = threading.Timer(0.02, consumer.wakeup)
            timer.start()
            with pytest.raises(WakeupError):
                consumer.poll(PATIENCE)
            timer.join(PATIENCE)
            fill(log, 1)
            assert len(consumer.poll(PATIENCE)) == 1

    def test_wakeup_before_the_wait_ends_the_next(self, log: StreamLog) -> None:
        """Once."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            in_thread(consumer.wakeup)
            consumer.wakeup()
            with pytest.raises(WakeupError):
                consumer.poll(PATIENCE)
            assert not consumer.poll(0)

    def test_wakeup_from_a_signal_handler(self, log: StreamLog) -> None:
        """Ends a wait of the main thread."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            before = signal.signal(signal.SIGALRM, lambda *_: consumer.wakeup())
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(WakeupError):
                    consumer.poll(PATIENCE)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def test_wakeup_ends_a_loop_and_loses_nothing(self, log: StreamLog) -> None:
        """Before the next record, though more were fetched ahead; the next loop goes on with them."""
        fill(log, 10)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            seen = []
            for record in consumer:
                seen.append(record.offset)
                if len(seen) == 3:
                    consumer.wakeup()
            assert seen == [0, 1, 2]
            assert consumer.position(tp()) == 3
            assert [record.offset for record in take(consumer, 7)] == list(range(3, 10))

    def test_wakeup_ends_a_waiting_loop(self, log: StreamLog) -> None:
        """`for` and `async for` alike."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            timer = threading.Timer(0.02, consumer.wakeup)
            timer.start()
            assert list(consumer) == []
            timer.join(PATIENCE)

            async def main() -> None:
                asyncio.get_running_loop().call_later(0.02, consumer.wakeup)
                async for _ in consumer:
                    pytest.fail("there is no record")
                asyncio.get_running_loop().call_later(0.02, consumer.wakeup)
                with pytest.raises(WakeupError):
                    await consumer.poll_async(PATIENCE)

            asyncio.run(asyncio.wait_for(main(), PATIENCE))

    # --- serdes

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

            def dumps_for(self, topic: str, headers: Any, value: str) -> bytes:  # noqa: ANN401
                return f"{topic} {headers[0][0]} {value}".encode()

            def loads_for(self, topic: str, headers: Any, data: bytes) -> str:  # noqa: ANN401
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
            with pytest.raises(SerdeError):
                while True:
                    seen += consumer.poll(0).values
            consumer.seek(tp(1), 1)
            while records := consumer.poll(0):
                seen += records.values
            assert sorted(seen) == [0, 2]

    # --- interceptors

    def test_interceptor_changes_what_poll_returns(self, log: StreamLog) -> None:
        """It gets what was found, and returns records or None."""
        fill(log, 6, partitions=2)
        seen = []

        class Only:
            def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any] | None:
                seen.append(len(records))
                return records.by_partition().get(tp(1))

        with log.consumer("events", auto_offset_reset="earliest", interceptors=[object(), Only()]) as consumer:
            records = consumer.poll(PATIENCE)
            assert set(records.partitions) <= {1}
        assert seen == [6]

    def test_interceptor_that_drops_everything_ends_no_wait(self, log: StreamLog) -> None:
        """`poll` looks on at once for what comes behind."""
        fill(log, 10)

        class Late:
            def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any]:
                return records if records[0].offset >= 8 else Records()

        with log.consumer(
            "events", auto_offset_reset="earliest", interceptors=[Late()], max_poll_records=2
        ) as consumer:
            assert consumer.poll(PATIENCE).offsets == [8, 9]

    def test_broken_interceptor_is_logged_and_skipped(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """No record is lost by it."""
        fill(log, 3)

        class Broken:
            def on_consume(self, records: Records[Any, Any]) -> None:
                raise ValueError("on_consume is broken")

        with log.consumer("events", auto_offset_reset="earliest", interceptors=[Broken()]) as consumer:
            with caplog.at_level(logging.ERROR, "pystreamlog"):
                assert values(consumer.poll(PATIENCE)) == [b"0", b"1", b"2"]
        assert "on_consume is broken" in caplog.text

    # --- threads and tasks

    def test_second_thread_is_refused(self, log: StreamLog) -> None:
        """While the first is using the consumer; afterwards it may."""
        log.create_topic("events")
        with log.consumer("events") as consumer:
            inside, leave = threading.Event(), threading.Event()

            class Waits:
                def on_consume(self, records: Records[Any, Any]) -> None:
                    inside.set()
                    assert leave.wait(PATIENCE)

            fill(log, 1)
            with log.consumer("events", auto_offset_reset="earliest", interceptors=[Waits()]) as waiting:
                thread = threading.Thread(target=waiting.poll, args=(PATIENCE,))
                thread.start()
                assert inside.wait(PATIENCE)
                for call in (
                    lambda: waiting.poll(0),
                    lambda: next(iter(waiting)),
                    lambda: waiting.seek(tp(), 0),
                    lambda: waiting.pause(),
                    lambda: waiting.subscribe("events"),
                    waiting.assignment,
                    waiting.close,
                ):
                    with pytest.raises(IllegalStateError):
                        call()
                waiting.metrics()
                leave.set()
                thread.join(PATIENCE)
                assert in_thread(lambda: waiting.position(tp())) == 1

    def test_second_task_is_refused(self, log: StreamLog) -> None:
        """A task that awaits `poll_async` is using the consumer, though its thread does other things."""
        log.create_topic("events")

        async def main() -> None:
            async with log.consumer("events") as consumer:
                task = asyncio.create_task(consumer.poll_async(PATIENCE))
                await asyncio.sleep(0.01)
                with pytest.raises(IllegalStateError):
                    await consumer.poll_async(0)
                with pytest.raises(IllegalStateError):
                    consumer.seek_to_end()
                with pytest.raises(IllegalStateError):
                    await anext(consumer.__aiter__())
                fill(log, 1)
                assert len(await task) == 1
                consumer.seek_to_beginning()

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_cancelled_poll_moves_nothing(self, log: StreamLog) -> None:
        """However often it is cancelled, every record comes once."""
        log.create_topic("events")

        async def main() -> None:
            async with log.consumer("events") as consumer:
                with log.producer() as producer:
                    seen: list[int] = []
                    sent = 0
                    while sent < 100 or len(seen) < sent:
                        task = asyncio.create_task(consumer.poll_async(PATIENCE))
                        await asyncio.sleep(0)
                        if sent < 100:
                            producer.send("events", b"x")
                            sent += 1
                        await asyncio.sleep(0.0005 * (sent % 3))
                        task.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            seen += (await task).offsets
                    assert seen == list(range(100))

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_hundreds_of_consumers_share_a_loop(self, log: StreamLog) -> None:
        """Without a thread each; all are woken by the records that are theirs."""
        log.create_topic("events", partitions=4)

        async def one() -> int:
            async with log.consumer("events") as consumer:
                return len(await consumer.poll_async(PATIENCE))

        async def main() -> None:
            before = threading.active_count()
            tasks = [asyncio.create_task(one()) for _ in range(300)]
            await asyncio.sleep(0.2)
            assert threading.active_count() == before
            assert not any(task.done() for task in tasks)
            with log.producer() as producer:
                producer.send("events", b"x")
            assert await asyncio.gather(*tasks) == [1] * 300

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_consumers_in_threads_and_loops_together(self, log: StreamLog) -> None:
        """Each gets every record, whichever way it waits."""
        log.create_topic("events", partitions=2)
        found: list[int] = []
        consumers = [log.consumer("events") for _ in range(6)]

        async def loop(consumer: Any) -> None:  # noqa: ANN401 - a consumer
            found.append(len({(r.partition, r.offset) for r in [await anext(consumer) for _ in range(200)]}))

        def plain(consumer: Any) -> None:  # noqa: ANN401 - a consumer
            found.append(len({(r.partition, r.offset) for r in take(consumer, 200)}))

        targets = [lambda c=c: asyncio.run(loop(c)) for c in consumers[:3]]  # type: ignore[misc]
        targets += [lambda c=c: plain(c) for c in consumers[3:]]  # type: ignore[misc]
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        fill(log, 200, partitions=2)
        for thread in threads:
            thread.join(PATIENCE)
        assert found == [200] * 6
        for consumer in consumers:
            consumer.close()

    # --- the end

    def test_closed_consumer_is_closed(self, log: StreamLog) -> None:
        """Closing again is harmless; everything else raises `ClosedError`."""
        fill(log, 5)
        consumer = log.consumer("events", auto_offset_reset="earliest")
        assert next(iter(consumer)).offset == 0
        consumer.close()
        consumer.close()
        consumer.wakeup()

        def awaited(awaitable: Awaitable[Any]) -> None:
            async def main() -> None:
                await awaitable

            asyncio.run(main())

        for call in (
            lambda: consumer.poll(0),
            lambda: next(iter(consumer)),
            lambda: awaited(consumer.poll_async(0)),
            lambda: awaited(anext(consumer.__aiter__())),
            lambda: consumer.subscribe("events"),
            lambda: consumer.assign([tp()]),
            consumer.unsubscribe,
            consumer.assignment,
            lambda: consumer.position(tp()),
            lambda: consumer.seek(tp(), 0),
            consumer.seek_to_beginning,
            consumer.seek_to_end,
            lambda: consumer.seek_to_timestamp(0),
            lambda: consumer.offsets_for_times({tp(): 0}),
            lambda: consumer.beginning_offsets([tp()]),
            lambda: consumer.end_offsets([tp()]),
            consumer.lag,
            consumer.pause,
            consumer.resume,
            consumer.paused,
        ):
            with pytest.raises(ClosedError):
                call()
        asyncio.run(consumer.close_async())

    def test_closing_the_log_ends_a_waiting_poll(self) -> None:
        """In another thread, and in another task: `ClosedError`, and the log is closed."""
        log = self.open_log()
        log.create_topic("events")
        consumer = log.consumer("events")
        errors: list[BaseException] = []
        waiting = threading.Event()

        def poll() -> None:
            waiting.set()
            try:
                consumer.poll(PATIENCE)
            except ClosedError as error:
                errors.append(error)

        async def main() -> None:
            task = asyncio.create_task(log.consumer("events").poll_async(PATIENCE))
            await asyncio.sleep(0.01)
            log.close()
            with pytest.raises(ClosedError):
                await task

        thread = threading.Thread(target=poll)
        thread.start()
        assert waiting.wait(PATIENCE)
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert len(errors) == 1

    def test_metrics_tell_the_lag(self, log: StreamLog) -> None:
        """And what was consumed; from any thread."""
        fill(log, 10)
        with log.consumer("events", auto_offset_reset="earliest", max_poll_records=4) as consumer:
            consumer.poll(PATIENCE)
            metrics = in_thread(consumer.metrics)
            assert (metrics["records-consumed-total"], metrics["records-lag-max"]) == (4, 6)
            assert log.metrics()["records-consumed-total"] == 4
