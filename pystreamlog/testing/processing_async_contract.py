"""The contract of `Consumer.process_async`: what differs from `process`, and that the rest does not."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, cast

import pytest

from pystreamlog import Consumer, Record, StreamLog, TopicPartition, serde
from pystreamlog.errors import ConfigError, IllegalStateError, SerdeError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp
from pystreamlog.testing.processing_contract import reader
from pystreamlog.testing.processing_driving import BrokenError, Handler, committed, eventually, processing, send

__all__ = ["ProcessingAsyncContract"]


async def soon(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class Gates:
    """A coroutine function as a handler: it notes what it does, and waits for the gates of some offsets."""

    def __init__(self, *blocked: int) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self.cancelled: list[int] = []
        self.gates = {offset: asyncio.Event() for offset in blocked}

    async def __call__(self, record: Record[Any, Any]) -> None:
        """Handle a record."""
        self.begun.append(record.offset)
        try:
            if record.offset in self.gates:
                await self.gates[record.offset].wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(record.offset)
            await asyncio.sleep(0)  # tidies up
            raise
        self.done.append(record.offset)


def run(log: StreamLog, test: Callable[[Consumer[Any, Any]], Awaitable[None]], **options: Any) -> None:
    """Run a coroutine with a consumer."""

    async def main() -> None:
        async with reader(log, **options) as consumer, asyncio.timeout(PATIENCE):
            await test(consumer)

    asyncio.run(main())


class ProcessingAsyncContract(Contract):
    """Runs against whatever `open_log` opens."""

    def test_settings_are_checked(self, log: StreamLog) -> None:
        """As for `process`; something must be subscribed."""
        log.create_topic("events")

        async def test(consumer: Consumer[Any, Any]) -> None:
            for options in ({"workers": 0}, {"on_failure": "dead_letter"}, {"order": "x"}):
                with pytest.raises(ConfigError, match=next(iter(options))):
                    await consumer.process_async(print, **cast("Any", options))
            with pytest.raises(ConfigError, match="callable"):
                await consumer.process_async(None)  # type: ignore[arg-type]  # wrong on purpose
            consumer.unsubscribe()
            with pytest.raises(IllegalStateError):
                await consumer.process_async(print)

        run(log, test)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_as_many_run_as_there_are_workers(self, log: StreamLog, workers: int) -> None:
        """And no more; each key in order."""
        send(log, *(b"%d" % (number % 7) for number in range(200)))
        running, most, seen = 0, 0, []

        async def test(consumer: Consumer[Any, Any]) -> None:
            async def handle(record: Record[bytes, bytes]) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                for _ in range(record.offset % 3 + 1):
                    await asyncio.sleep(0)
                running -= 1
                seen.append(record)
                if len(seen) == 200:
                    consumer.wakeup()

            await consumer.process_async(handle, workers=workers, max_in_flight=50)

        run(log, test)
        assert most == workers
        for number in range(7):
            assert [one.offset for one in seen if one.key == b"%d" % number] == list(range(number, 200, 7))
        assert committed(log) == 200

    def test_plain_function_is_called(self, log: StreamLog) -> None:
        """In the event loop's thread; the loop's other tasks get their turns."""
        fill(log, 5000)
        turns, seen = 0, []

        async def test(consumer: Consumer[Any, Any]) -> None:
            async def turn() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            def handle(record: Record[Any, Any]) -> None:
                seen.append(record.offset)
                if record.offset == 4999:
                    consumer.wakeup()

            other = asyncio.create_task(turn())
            await consumer.process_async(handle)
            other.cancel()

        run(log, test)
        assert seen == list(range(5000))
        assert turns > 3

    def test_other_tasks_may_not_use_the_consumer(self, log: StreamLog) -> None:
        """Neither handlers nor anybody else, until it returns."""
        fill(log, 1)

        async def test(consumer: Consumer[Any, Any]) -> None:
            async def handle(_: object) -> None:
                for call in (consumer.assignment, consumer.close):
                    with pytest.raises(IllegalStateError):
                        call()
                consumer.wakeup()

            await consumer.process_async(handle)
            assert consumer.assignment() == {tp()}

        run(log, test)

    def test_wakeup_drains(self, log: StreamLog) -> None:
        """As `process` does: running handlers end, gaps are filled, the rest is read later."""
        send(log, b"a", b"a", b"b", b"a")

        async def test(consumer: Consumer[Any, Any]) -> None:
            handler = Gates(0)
            running = asyncio.create_task(consumer.process_async(handler, workers=2))
            await soon(lambda: handler.done == [2])
            consumer.wakeup()
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert handler.begun == [0, 2]
            handler.gates[0].set()
            await running
            assert handler.done == [2, 0, 1]
            assert consumer.position(tp()) == 3

        run(log, test)
        assert committed(log) == 3

    def test_cancelling_loses_no_record(self, log: StreamLog) -> None:
        """Running handlers are cancelled and awaited; the finished prefix is committed; the rest comes again."""
        send(log, b"a", b"b", b"c", b"d", b"e", b"e")

        async def test(consumer: Consumer[Any, Any]) -> None:
            handler = Gates(1, 3, 4)
            running = asyncio.create_task(consumer.process_async(handler, workers=3))
            await soon(lambda: sorted(handler.begun) == [0, 1, 2, 3, 4])
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert sorted(handler.cancelled) == [1, 3, 4]
            assert sorted(handler.begun) == [0, 1, 2, 3, 4]
            assert committed(log) == consumer.position(tp()) == 1
            handler.gates.clear()
            running = asyncio.create_task(consumer.process_async(handler, workers=3))
            await soon(lambda: committed(log) == 6)
            consumer.wakeup()
            await running
            assert sorted(handler.done) == [0, 1, 2, 2, 3, 4, 5]

        run(log, test)

    def test_cancelling_while_it_waits(self, log: StreamLog) -> None:
        """Nothing runs; it can be used on."""
        fill(log, 3)

        async def test(consumer: Consumer[Any, Any]) -> None:
            handler = Gates()
            for count in (3, 6):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await consumer.process_async(handler)
                await soon(lambda count=count: committed(log) == count)  # type: ignore[misc]  # a default only binds it
                fill(log, 3)
            assert handler.done == list(range(6))

        run(log, test)

    def test_stop_waits_for_the_others(self, log: StreamLog) -> None:
        """They are not cancelled; then the handler's error is raised."""
        send(log, b"a", b"b", b"c")

        async def test(consumer: Consumer[Any, Any]) -> None:
            handler = Gates(1)

            async def handle(record: Record[Any, Any]) -> None:
                await handler(record)
                if record.offset == 0:
                    raise BrokenError

            running = asyncio.create_task(consumer.process_async(handle, workers=2, retries=2, retry_backoff_ms=5))
            await soon(lambda: handler.done.count(0) == 3)
            await asyncio.sleep(0.02)
            assert not running.done()
            handler.gates[1].set()
            with pytest.raises(BrokenError):
                await running
            assert handler.cancelled == []
            assert 1 in handler.done
            assert consumer.position(tp()) == 0

        run(log, test)
        assert committed(log) <= 0

    def test_cancelled_handler_stops(self, log: StreamLog) -> None:
        """One that cancels itself counts as failed, and is not tried again."""
        fill(log, 2)

        async def test(consumer: Consumer[Any, Any]) -> None:
            async def handle(_: object) -> None:
                raise asyncio.CancelledError

            with pytest.raises(asyncio.CancelledError):
                await consumer.process_async(handle, on_failure="skip")
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()
            assert consumer.position(tp()) == 0

        run(log, test)

    def test_failures_become_dead_letters(self, log: StreamLog) -> None:
        """Records that nobody could handle, and those that do not deserialise."""
        log.create_topic("dead")
        log.create_topic("events")
        with log.producer() as producer:
            for number in range(9):
                producer.send("events", b"{" if number == 5 else b"%d" % number, b"key")

        async def test(consumer: Consumer[Any, Any]) -> None:
            async def handle(record: Record[Any, Any]) -> None:
                await asyncio.sleep(0)
                if (record.value or 0) % 4 == 0:
                    raise BrokenError

            running = asyncio.create_task(
                consumer.process_async(handle, workers=4, retries=0, on_failure="dead_letter", dead_letter_topic="dead")
            )
            await soon(lambda: committed(log) == 9)
            consumer.wakeup()
            await running

        run(log, test, value_serde=serde.json)
        assert [record.value for record in log.topic("dead").read()] == [b"0", b"4", b"{", b"8"]

    def test_poison_stops(self, log: StreamLog) -> None:
        """And is raised."""
        fill(log, 3)
        log.topic("events").append(b"{")

        async def test(consumer: Consumer[Any, Any]) -> None:
            with pytest.raises(SerdeError):
                await consumer.process_async(print, workers=2)
            assert consumer.position(tp()) == 3

        run(log, test, value_serde=serde.json)
        assert committed(log) == 3

    def test_revoked_partition_is_drained(self, log: StreamLog) -> None:
        """Its running handler ends, then a coroutine callback is awaited, then the next owner begins."""
        fill(log, 20, partitions=2)
        told: list[object] = []

        async def on_revoke(consumer: Consumer[Any, Any], tps: list[TopicPartition]) -> None:
            await asyncio.sleep(0)
            told.extend(found.offset for found in consumer.committed(*tps).values() if found is not None)

        async def test(first: Consumer[Any, Any]) -> None:
            handler = Gates(2)
            running = asyncio.create_task(first.process_async(handler, workers=2, order="partition"))
            await soon(lambda: handler.begun.count(2) == 2)
            other = Handler()
            with reader(log) as second, processing(second, other):
                await soon(lambda: second.group_metadata().member_id)
                for _ in range(50):
                    await asyncio.sleep(0.002)
                assert other.begun == []
                assert not told
                handler.gates[2].set()
                await asyncio.to_thread(eventually, lambda: len(other.done) == 7)
                assert told == [3]
            await soon(lambda: len(handler.done) == 13)
            first.wakeup()
            await running

        run(log, test, on_revoke=on_revoke)

    def test_log_reads_on_afterwards(self, log: StreamLog) -> None:
        """The same consumer polls where processing ended."""
        fill(log, 3)

        async def test(consumer: Consumer[Any, Any]) -> None:
            handler = Gates()
            running = asyncio.create_task(consumer.process_async(handler))
            await soon(lambda: handler.done == [0, 1, 2])
            consumer.wakeup()
            await running
            fill(log, 1)
            records = await consumer.poll_async(PATIENCE)
            assert records.offsets == [3]

        run(log, test)
        with reader(log) as consumer:
            fill(log, 1)
            assert take(consumer, 1)[0].offset == 4
