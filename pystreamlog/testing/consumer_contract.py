"""The contract of consumers: polling, loops, columns, wake-ups, failures, threads and event loops."""
# ruff: noqa: ARG002, PLR2004 - callbacks have the arguments they are called with, and numbers are examples

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Awaitable
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Record, Records, StreamLog
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, WakeupError
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
    def test_bad_limit_is_refused(self, log: StreamLog, limit: Any) -> None:
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
            seen: list[Record[bytes, bytes]] = []
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

    # --- threads and tasks

    def test_second_thread_is_refused(self, log: StreamLog) -> None:
        """While the first is using the consumer; afterwards it may."""
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
                waiting.pause,
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

        async def loop(consumer: Any) -> None:
            found.append(len({(r.partition, r.offset) for r in [await anext(consumer) for _ in range(200)]}))

        def plain(consumer: Any) -> None:
            found.append(len({(r.partition, r.offset) for r in take(consumer, 200)}))

        threads = [threading.Thread(target=lambda c: asyncio.run(loop(c)), args=(c,)) for c in consumers[:3]]
        threads += [threading.Thread(target=plain, args=(c,)) for c in consumers[3:]]
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
