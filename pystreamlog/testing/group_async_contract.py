"""The contract of consumer groups on event loops: polling, loops, callbacks, cancelling, many members."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Consumer, Record, StreamLog, TopicPartition
from pystreamlog.errors import IllegalStateError, WakeupError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp
from pystreamlog.testing.group_driving import Member, Notes, drive, join

__all__ = ["GroupAsyncContract"]


class BrokenError(Exception):
    """What a broken callback raises."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it on an event loop of its own."""
    asyncio.run(asyncio.wait_for(main, PATIENCE))


async def until(done: Callable[[], bool]) -> None:
    """Let the loop's other tasks run until something has happened."""
    deadline = monotonic() + PATIENCE
    while not done():
        assert monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class GroupAsyncContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- reading

    def test_members_share_by_polling(self, log: StreamLog) -> None:
        """Each in a task of its own; what is sent while they rebalance comes once."""
        log.create_topic("events", partitions=4)
        seen: list[tuple[int, int]] = []
        shares: dict[str, set[TopicPartition]] = {}

        async def member(name: str, lives_until: asyncio.Event) -> None:
            async with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer:
                while not lives_until.is_set():
                    seen.extend((record.partition, record.offset) for record in await consumer.poll_async(0.02))
                    shares[name] = consumer.assignment()
            del shares[name]

        async def main() -> None:
            stops = [asyncio.Event() for _ in range(3)]
            tasks = [asyncio.create_task(member(str(number), stop)) for number, stop in enumerate(stops)]
            for number in range(10):
                fill(log, 40, partitions=4, first=40 * number)
                await asyncio.sleep(0)
            await until(lambda: sorted(map(len, shares.values())) == [1, 1, 2])
            stops[0].set()
            await tasks[0]
            await until(lambda: sorted(map(len, shares.values())) == [2, 2])
            fill(log, 40, partitions=4, first=400)
            await until(lambda: len(seen) >= 440)
            for stop in stops:
                stop.set()
            await asyncio.gather(*tasks)

        run(main())
        assert sorted(seen) == [(part, offset) for part in range(4) for offset in range(110)]

    def test_members_share_by_loops(self, log: StreamLog) -> None:
        """`async for` gives up and takes partitions between two records, and while it waits."""
        log.create_topic("events", partitions=2)
        seen: list[tuple[int, int]] = []

        async def member(consumer: Member) -> None:
            async for record in consumer:
                seen.append((record.partition, record.offset))
                await asyncio.sleep(0)

        async def main() -> None:
            notes = Notes()
            async with log.consumer("events", group_id="g", **notes.callbacks()) as first:
                task = asyncio.create_task(member(first))
                await until(lambda: len(notes.told) == 1)
                async with log.consumer("events", group_id="g") as second:
                    other = asyncio.create_task(member(second))
                    await until(lambda: len(notes.told) == 2)
                    assert [what for what, _ in notes.told] == ["assign", "revoke"]
                    fill(log, 200, partitions=2)
                    await until(lambda: len(seen) == 200)
                    second.wakeup()
                    await other
                await until(lambda: len(notes.told) == 3)
                fill(log, 20, partitions=2, first=200)
                await until(lambda: len(seen) == 220)
                first.wakeup()
                await task

        run(main())
        assert sorted(seen) == [(part, offset) for part in range(2) for offset in range(110)]

    def test_loop_commits_what_is_behind_it(self, log: StreamLog) -> None:
        """Never the record that is being handled, nor one fetched ahead."""
        fill(log, 10)

        async def main() -> None:
            async with join(log, auto_commit_interval_ms=0, max_poll_records=4) as consumer:
                async for record in consumer:
                    committed = consumer.committed(tp())[tp()]
                    assert committed is not None
                    assert committed.offset <= record.offset
                    if record.offset == 5:
                        assert committed.offset == 4
                        await consumer.commit_async()
                        assert consumer.committed(tp()) == {tp(): (6, "")}
                    if record.offset == 9:
                        break

        run(main())

    def test_cancelled_poll_loses_nothing(self, log: StreamLog) -> None:
        """However often it is cancelled, in whatever step of joining, sharing and reading; no position moves."""
        log.create_topic("events", partitions=4)
        total = 200

        async def main() -> None:
            seen: list[tuple[int, int]] = []
            members = [log.consumer("events", group_id="g", auto_offset_reset="earliest") for _ in range(3)]
            sent = turn = 0
            with log.producer() as producer:
                while sent < total or len(seen) < total:
                    tasks = [asyncio.create_task(member.poll_async(PATIENCE)) for member in members]
                    for _ in range(turn % 4):
                        await asyncio.sleep(0)
                    if sent < total:
                        producer.send("events", b"x", partition=sent % 4)
                        sent += 1
                    await asyncio.sleep(0.0005 * (turn % 3))
                    turn += 1
                    for task in tasks:
                        task.cancel()
                    for task in tasks:
                        with contextlib.suppress(asyncio.CancelledError):
                            records = await task
                            seen += zip(records.partitions, records.offsets, strict=True)
            assert sorted(seen) == [(part, offset) for part in range(4) for offset in range(total // 4)]
            for member in members:
                await member.close_async(commit=True)
            with log.consumer(group_id="g") as other:
                found = other.committed(*map(tp, range(4)))
            assert set(found.values()) == {(total // 4, "")}

        run(main())

    def test_hundreds_of_members_share_a_loop(self, log: StreamLog) -> None:
        """Without a thread each; together they read everything, each its own partition."""
        count = 200
        log.create_topic("events", partitions=count)
        seen: list[Record[bytes, bytes]] = []
        assigned: list[int] = [0] * count
        done = asyncio.Event()

        async def member(number: int) -> None:
            async with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer:
                while not done.is_set():
                    seen.extend(await consumer.poll_async(0.5))
                    assigned[number] = len(consumer.assignment())
                await consumer.close_async(commit=True)

        async def main() -> None:
            before = threading.active_count()
            tasks = [asyncio.create_task(member(number)) for number in range(count)]
            await until(lambda: assigned == [1] * count)
            assert threading.active_count() <= before + 1
            fill(log, 2 * count, partitions=count)
            await until(lambda: len(seen) >= 2 * count)
            assert threading.active_count() <= before + 1
            done.set()
            await asyncio.gather(*tasks)

        run(main())
        places = {(record.partition, record.offset) for record in seen}
        assert len(places) == len(seen) == 2 * count

    # --- callbacks

    def test_coroutine_callbacks_are_awaited(self, log: StreamLog) -> None:
        """By `poll_async` and `close_async`; what they commit and seek is honoured."""
        fill(log, 20, partitions=2)
        told: list[tuple[str, int]] = []

        async def on_assign(consumer: Member, added: list[TopicPartition]) -> None:
            await asyncio.sleep(0)
            for part in added:
                consumer.seek(part, 8)
            told.append(("assign", len(added)))

        async def on_revoke(consumer: Member, removed: list[TopicPartition]) -> None:
            await asyncio.sleep(0)
            assert set(removed) <= consumer.assignment()
            await consumer.commit_async(dict.fromkeys(removed, 5))
            told.append(("revoke", len(removed)))

        async def main() -> None:
            options: dict[str, Any] = {"on_assign": on_assign, "on_revoke": on_revoke, "enable_auto_commit": False}
            async with log.consumer("events", group_id="g", **options) as consumer:
                offsets: list[int] = []
                while len(offsets) < 4:
                    offsets += (await consumer.poll_async(PATIENCE)).offsets
                assert set(offsets) == {8, 9}
                with join(log, enable_auto_commit=False) as other:
                    while len(other.assignment()) < 1:
                        await consumer.poll_async(0.001)
                        other.poll(0)
                    (mine,) = other.assignment()
                    assert other.committed() == {mine: (5, "")}
                assert told == [("assign", 2), ("revoke", 1)]
            assert told[2:] == [("revoke", 1)]

        run(main())

    @pytest.mark.parametrize("name", ["on_assign", "on_revoke"])
    def test_coroutine_callback_is_refused_by_poll(self, log: StreamLog, name: str) -> None:
        """Which says so, and does not skip it in silence; the assignment is as it is to be."""
        called: list[str] = []

        async def callback(*_: object) -> None:
            called.append(name)

        fill(log, 4, partitions=2)
        config: dict[str, Any] = {name: callback}
        with log.consumer("events", group_id="g", auto_offset_reset="earliest", **config) as consumer:
            if name == "on_revoke":
                drive(consumer, until=lambda: bool(consumer.assignment()))
                with join(log), pytest.raises(IllegalStateError, match="poll_async"):
                    drive(consumer, until=lambda: False)
                assert len(consumer.assignment()) == 1
            else:
                with pytest.raises(IllegalStateError, match="poll_async"):
                    drive(consumer, until=lambda: False)
                assert len(consumer.assignment()) == 2
                assert len(take(consumer, 4)) == 4
        assert called == []

    def test_coroutine_callback_that_raises_leaves_poll_async(self, log: StreamLog) -> None:
        """The next one reads."""

        async def broken(*_: object) -> None:
            await asyncio.sleep(0)
            raise BrokenError

        async def main() -> None:
            fill(log, 2)
            options: dict[str, Any] = {"auto_offset_reset": "earliest", "on_assign": broken}
            async with log.consumer("events", group_id="g", **options) as consumer:
                with pytest.raises(BrokenError):
                    await consumer.poll_async(PATIENCE)
                assert consumer.assignment() == {tp()}
                assert len(await consumer.poll_async(PATIENCE)) == 2

        run(main())

    def test_coroutine_callback_may_not_poll(self, log: StreamLog) -> None:
        """It would wait for itself."""
        refused: list[object] = []

        async def on_assign(consumer: Consumer[Any, Any], _: list[TopicPartition]) -> None:
            with pytest.raises(IllegalStateError, match="callback"):
                await consumer.poll_async(0)
            with pytest.raises(IllegalStateError, match="callback"):
                await anext(consumer.__aiter__())
            refused.append(consumer)

        async def main() -> None:
            fill(log, 1)
            options: dict[str, Any] = {"auto_offset_reset": "earliest", "on_assign": on_assign}
            async with log.consumer("events", group_id="g", **options) as consumer:
                assert len(await consumer.poll_async(PATIENCE)) == 1
                assert refused == [consumer]

        run(main())

    def test_cancelled_in_a_callback(self, log: StreamLog) -> None:
        """The partitions are assigned, and the next `poll_async` reads them from where they were."""
        entered = asyncio.Event()

        async def on_assign(*_: object) -> None:
            entered.set()
            await asyncio.sleep(PATIENCE)

        async def main() -> None:
            fill(log, 4, partitions=2)
            options: dict[str, Any] = {"auto_offset_reset": "earliest", "on_assign": on_assign}
            async with log.consumer("events", group_id="g", **options) as consumer:
                task = asyncio.create_task(consumer.poll_async(PATIENCE))
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(consumer.assignment()) == 2
                count = 0
                while count < 4:
                    count += len(await consumer.poll_async(PATIENCE))

        run(main())

    # --- one user at a time

    def test_wakeup_during_a_rebalance(self, log: StreamLog) -> None:
        """`poll_async` raises, `async for` ends; both go on afterwards."""
        woken: list[str] = []

        async def wake(consumer: Member, _: list[TopicPartition]) -> None:
            consumer.wakeup()
            await asyncio.sleep(0)

        async def main() -> None:
            log.create_topic("events")
            for way in ("poll", "loop"):
                async with log.consumer("events", group_id=way, on_assign=wake) as consumer:
                    if way == "poll":
                        with pytest.raises(WakeupError):
                            await consumer.poll_async(PATIENCE)
                    else:
                        async for _ in consumer:
                            pytest.fail("there is no record")
                    woken.append(way)
                    fill(log, 1)
                    assert len(await consumer.poll_async(PATIENCE)) == 1

        run(main())
        assert woken == ["poll", "loop"]

    def test_second_task_is_refused(self, log: StreamLog) -> None:
        """While another awaits, in a group as elsewhere; the member stays one."""

        async def main() -> None:
            log.create_topic("events")
            async with log.consumer("events", group_id="g") as consumer:
                task = asyncio.create_task(consumer.poll_async(PATIENCE))
                await until(lambda: bool(consumer.group_metadata().member_id))
                for call in (lambda: consumer.poll_async(0), consumer.commit_async, consumer.close_async):
                    with pytest.raises(IllegalStateError):
                        await call()
                fill(log, 1)
                assert len(await task) == 1
                await consumer.commit_async()
                assert consumer.committed() == {tp(): (1, "")}

        run(main())
