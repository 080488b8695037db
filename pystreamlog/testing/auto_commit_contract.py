"""The contract of automatic commits: what they commit and when, in polls, loops, rebalances and at the end."""
# ruff: noqa: ARG002, PLR2004 - interceptors have the arguments they are called with, and numbers are examples

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Record, StreamLog, TopicPartition
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp
from pystreamlog.testing.group_driving import drive, even, join, read

__all__ = ["AutoCommitContract"]

BY_HAND: dict[str, Any] = {"enable_auto_commit": False}
AT_ONCE: dict[str, Any] = {"auto_commit_interval_ms": 0}


class BrokenError(Exception):
    """What the application raises."""


class Noted:
    """An interceptor that notes commits."""

    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, Any]] = []

    def on_commit(self, offsets: dict[TopicPartition, Any]) -> None:
        """See what was committed."""
        self.commits.append(dict(offsets))
        offsets.clear()  # harms nobody


class Broken:
    """An interceptor that raises."""

    def on_commit(self, offsets: dict[TopicPartition, Any]) -> None:
        """Raise."""
        raise BrokenError


def offsets(log: StreamLog, *partitions: int) -> list[int | None]:
    """What group "g" has committed in these partitions of the topic, or in the first."""
    with log.consumer(group_id="g") as consumer:
        found = consumer.committed(*(tp(number) for number in partitions or (0,)))
    return [None if committed is None else committed.offset for committed in found.values()]


class AutoCommitContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- automatic commits

    def test_record_that_is_being_handled_is_not_committed(self, log: StreamLog) -> None:
        """By `poll`: what it returned is committed by the next one."""
        fill(log, 10)
        with join(log, max_poll_records=4, **AT_ONCE) as consumer:
            for committed in (0, 4, 8):
                assert consumer.poll(PATIENCE)
                assert offsets(log) == [committed]
            assert not consumer.poll(0)
            assert offsets(log) == [10]

    def test_loop_commits_what_is_behind_it(self, log: StreamLog) -> None:
        """Never the current record, nor one that was fetched ahead."""
        fill(log, 9, partitions=3)
        with join(log, max_poll_records=5, **AT_ONCE) as consumer:
            done = dict.fromkeys(range(3), 0)
            for number, record in enumerate(consumer, 1):
                assert all((offset or 0) <= done[part] for part, offset in enumerate(offsets(log, 0, 1, 2)))
                done[record.partition] += 1
                if number == 9:
                    break
            assert not consumer.poll(0)
            assert offsets(log, 0, 1, 2) == [3, 3, 3]

    def test_long_loop_commits_between_two_polls(self, log: StreamLog) -> None:
        """What it has moved past, though all its records are of one `poll`."""
        fill(log, 500)
        deadline = monotonic() + PATIENCE
        with join(log, **AT_ONCE) as consumer:
            for number, _ in enumerate(consumer):
                (committed,) = offsets(log)
                assert committed is not None
                assert committed <= number
                if committed:
                    break
                assert number < 499
                while number == 100 and monotonic() < deadline - PATIENCE + 0.3:
                    threading.Event().wait(0.05)

    @pytest.mark.parametrize("move", ["seek", "pause"])
    def test_seek_and_pause_in_a_loop_commit_nothing_unread(self, log: StreamLog, move: str) -> None:
        """What was given back of a partition is not moved past when the loop is done with the others."""
        fill(log, 6, partitions=2)
        seen: list[Record[Any, Any]] = []
        with join(log, **AT_ONCE) as consumer:
            first = next(consumer.__iter__())
            part = tp(first.partition)
            if move == "seek":
                consumer.seek(part, 0)
                consumer.pause(part)
            else:
                consumer.pause(part)
            seen = [next(consumer.__iter__()) for _ in range(3)]
            assert {record.partition for record in seen} == {1 - part.partition}
            fill(log, 1, partitions=2, partition=1 - part.partition)
            next(consumer.__iter__())  # moves past all before
            assert consumer.committed(part) == {part: (0 if move == "seek" else 1, "")}
            consumer.close()
        with join(log) as consumer:
            assert consumer.position(part) == (0 if move == "seek" else 1)

    def test_waiting_poll_commits(self, log: StreamLog) -> None:
        """What was moved past, once the interval is over."""
        fill(log, 5)
        with join(log, auto_commit_interval_ms=30) as consumer, log.consumer(group_id="g") as other:
            take(consumer, 5)
            consumer.poll(0)
            fill(log, 5, first=5)
            take(consumer, 5)
            thread = threading.Thread(target=consumer.poll, args=(PATIENCE,))
            thread.start()
            deadline = monotonic() + PATIENCE
            while other.committed(tp()) != {tp(): (10, "")} and monotonic() < deadline:
                thread.join(0.005)
            assert other.committed(tp()) == {tp(): (10, "")}
            assert thread.is_alive()
            fill(log, 1)
            thread.join(PATIENCE)

    def test_interval_is_kept(self, log: StreamLog) -> None:
        """A long one lets no `poll` commit after the first."""
        fill(log, 10)
        with join(log, auto_commit_interval_ms=600_000, max_poll_records=1) as consumer:
            consumer.poll(PATIENCE)
            consumer.poll(PATIENCE)
            (first,) = offsets(log)
            assert first in (0, 1)
            take(consumer, 5)
            assert offsets(log) == [first]

    def test_no_automatic_commit(self, log: StreamLog) -> None:
        """Neither in polls, nor at a rebalance, nor at the end."""
        fill(log, 20, partitions=2)
        with join(log, auto_commit_interval_ms=0, **BY_HAND) as consumer:
            take(consumer, 20)
            consumer.poll(0)
            with join(log, **BY_HAND) as other:
                seen = even(consumer, other, total=2)
                read(other, count=10 - len(seen))
                other.unsubscribe()
        assert offsets(log, 0, 1) == [0, 0]

    def test_rebalance_commits_what_was_moved_past(self, log: StreamLog) -> None:
        """So that the next owner reads nothing again, however long the interval."""
        fill(log, 20, partitions=2)
        with join(log, auto_commit_interval_ms=600_000) as first:
            take(first, 20)
            first.poll(0)
            fill(log, 20, partitions=2, first=20)
            take(first, 20)
            with join(log) as second:
                assert not even(first, second, total=2)
                (mine,) = second.assignment()
                assert second.position(mine) == 20

    def test_seek_is_what_is_committed_next(self, log: StreamLog) -> None:
        """By hand and automatically, back and forth, before anything was read and after."""
        fill(log, 10)
        for options in (BY_HAND, AT_ONCE):
            with join(log, **options) as consumer:
                for offset in (7, 2):
                    consumer.seek(tp(), offset)
                    if options is BY_HAND:
                        consumer.commit()
                    else:
                        consumer.poll(0)
                    assert offsets(log) == [offset]
                consumer.seek_to_end()
                consumer.commit()
                assert offsets(log) == [10]
                consumer.seek_to_beginning()
                consumer.commit()
                assert offsets(log) == [0]
                consumer.seek_to_timestamp(0)
                consumer.commit()

    # --- the end

    @pytest.mark.parametrize(
        ("commit", "automatic", "expected"),
        [(None, True, 4), (None, False, 0), (True, True, 6), (True, False, 6), (False, True, 0), (False, False, 0)],
    )
    def test_close_commits(self, log: StreamLog, *, commit: bool | None, automatic: bool, expected: int) -> None:
        """What was moved past, if that is automatic; all that was handed out, if that is said; or nothing."""
        fill(log, 10)
        for closing in (False, True):
            consumer = join(log, enable_auto_commit=automatic, auto_commit_interval_ms=600_000)
            consumer.commit({tp(): 0})
            consumer.poll(0, max_records=1)  # the first commit of all is due at once
            consumer.seek(tp(), 0)
            consumer.commit()
            assert len(consumer.poll(PATIENCE, max_records=4)) == 4
            assert len(consumer.poll(PATIENCE, max_records=2)) == 2
            if closing:
                asyncio.run(consumer.close_async(commit=commit))
            else:
                consumer.close(commit=commit)
            assert offsets(log) == [expected]
            consumer.close(commit=True)
            assert offsets(log) == [expected]

    @pytest.mark.parametrize("automatic", [True, False])
    def test_leaving_with_commits(self, log: StreamLog, *, automatic: bool) -> None:
        """Everything handed out; after an exception only what was moved past. Nothing, if commits are not automatic."""
        fill(log, 10)
        with join(log, enable_auto_commit=automatic) as consumer:
            take(consumer, 10)
        assert offsets(log) == [10 if automatic else 0]
        fill(log, 10, first=10)

        def fail() -> None:
            with join(log, enable_auto_commit=automatic) as consumer:
                consumer.seek(tp(), 10)
                consumer.poll(PATIENCE, max_records=4)
                consumer.poll(PATIENCE, max_records=2)
                raise BrokenError

        with pytest.raises(BrokenError):
            fail()
        assert offsets(log) == [14 if automatic else 0]

    @pytest.mark.parametrize("clean", [True, False])
    def test_leaving_with_in_a_loop(self, log: StreamLog, *, clean: bool) -> None:
        """The current record is committed after `break`, and not after an exception; nothing beyond it ever."""
        fill(log, 10)

        def run() -> None:
            with join(log) as consumer:
                for record in consumer:
                    if record.offset == 5:
                        if clean:
                            break
                        raise BrokenError

        async def run_async() -> None:
            async with join(log) as consumer:
                async for record in consumer:
                    if record.offset == 5:
                        if clean:
                            break
                        raise BrokenError

        for leave in (run, lambda: asyncio.run(run_async())):
            if clean:
                leave()
            else:
                with pytest.raises(BrokenError):
                    leave()
            assert offsets(log) == [6 if clean else 5]
            with join(log) as consumer:
                consumer.commit({tp(): 0})

    def test_records_handed_out_before_a_rebalance_are_not_lost(self, log: StreamLog) -> None:
        """Whoever leaves by an exception gives the next owner all that it did not move past."""
        fill(log, 20, partitions=2)
        seen: list[Record[Any, Any]] = []

        def fail() -> None:
            with join(log, max_poll_records=3) as failing:
                seen.extend(even(survivor, failing, total=2))
                take(failing, 3)
                raise BrokenError

        with join(log) as survivor:
            seen += take(survivor, 20)
            fill(log, 20, partitions=2, first=20)
            with pytest.raises(BrokenError):
                fail()
            seen += drive(survivor, until=lambda: len(survivor.assignment()) == 2)
            seen += read(survivor, count=40 - len(seen))
        assert len({(record.partition, record.offset) for record in seen}) == 40
