"""The contract of commits: what each form commits, what is refused, who is told, and consumers without members."""
# ruff: noqa: ARG002, PLR2004 - interceptors have the arguments they are called with, and numbers are examples

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from pystreamlog import OffsetAndMetadata, StreamLog, TopicPartition
from pystreamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    IllegalStateError,
    OffsetOutOfRangeError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, fill, in_thread, take, tp, values
from pystreamlog.testing.group_driving import even, join, read

__all__ = ["CommitContract"]

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


class CommitContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- what is committed

    def test_nothing_commits_all_that_was_handed_out(self, log: StreamLog) -> None:
        """The whole last `Records`, of every partition; where nothing came since, nothing changes."""
        fill(log, 10, partitions=2)
        with join(log, **BY_HAND) as consumer:
            consumer.commit()
            assert offsets(log, 0, 1) == [0, 0]
            take(consumer, 10)
            consumer.commit()
            assert offsets(log, 0, 1) == [5, 5]
            consumer.commit()
            fill(log, 1, partitions=2)
            take(consumer, 1)
            consumer.commit()
            assert offsets(log, 0, 1) == [6, 5]

    def test_record_commits_the_offset_behind_it(self, log: StreamLog) -> None:
        """Of its partition only, also when it lies before what was committed."""
        fill(log, 10, partitions=2)
        with join(log, **BY_HAND) as consumer:
            records = take(consumer, 10)
            (record,) = [record for record in records if (record.partition, record.offset) == (1, 2)]
            consumer.commit()
            consumer.commit(record)
            assert offsets(log, 0, 1) == [5, 3]

    def test_records_commit_the_offsets_behind_their_last(self, log: StreamLog) -> None:
        """Of each partition, and of a part of them; none commit nothing."""
        fill(log, 10, partitions=2)
        with join(log, **BY_HAND) as consumer:
            consumer.pause()
            consumer.commit(consumer.poll(0))
            consumer.resume()
            records = consumer.poll(PATIENCE)
            consumer.commit(records.by_partition()[tp(1)])
            assert offsets(log, 0, 1) == [0, 5]
            consumer.commit(records)
            assert offsets(log, 0, 1) == [5, 5]

    def test_mapping_commits_these_offsets(self, log: StreamLog) -> None:
        """From the first to the end; with a text beside each, or none."""
        fill(log, 10, partitions=2)
        with join(log, **BY_HAND) as consumer:
            for first, second in ((0, 5), (5, 0), (3, 3)):
                consumer.commit({tp(0): first, tp(1): OffsetAndMetadata(second, "☃" * 1365)})
                assert consumer.committed() == {tp(0): (first, ""), tp(1): (second, "☃" * 1365)}
            consumer.commit({tp(1): OffsetAndMetadata(4, "x" * 4096)})
            assert consumer.committed()[tp(1)] == OffsetAndMetadata(4, "x" * 4096)
            consumer.commit({tp(1): OffsetAndMetadata(4)})
            assert consumer.committed(tp(1)) == {tp(1): OffsetAndMetadata(4, "")}
            consumer.commit({})
            assert consumer.position(tp(1)) == 0

    def test_commit_in_a_loop(self, log: StreamLog) -> None:
        """Up to and including the current record, though more were fetched ahead."""
        fill(log, 10)
        with join(log, **BY_HAND) as consumer:
            for number, record in enumerate(consumer, 1):
                if number % 2:
                    consumer.commit()
                else:
                    consumer.commit(record)
                assert offsets(log) == [number]
                if number == 10:
                    break

    def test_commit_in_a_loop_over_partitions(self, log: StreamLog) -> None:
        """Records of other partitions that were fetched ahead are not committed."""
        fill(log, 6, partitions=3)
        with join(log, **BY_HAND) as consumer:
            seen = dict.fromkeys(range(3), 0)
            for number, record in enumerate(consumer, 1):
                seen[record.partition] += 1
                consumer.commit()
                assert offsets(log, 0, 1, 2) == list(seen.values())
                if number == 6:
                    break

    def test_commit_async(self, log: StreamLog) -> None:
        """Has every form; another task that is polling holds it off."""
        fill(log, 10)

        async def main() -> None:
            async with join(log, **BY_HAND) as consumer:
                records = await consumer.poll_async(PATIENCE)
                for what, offset in (
                    (records[3], 4),
                    ({tp(): OffsetAndMetadata(2, "x")}, 2),
                    (None, 10),
                    (records, 10),
                ):
                    await consumer.commit_async(what)
                    assert consumer.committed(tp())[tp()] == (offset, "x" if offset == 2 else "")
                for bad, error in (
                    (5, ConfigError),
                    ({tp(): 11}, OffsetOutOfRangeError),
                    ({tp(1): 0}, CommitFailedError),
                ):
                    with pytest.raises(error):
                        await consumer.commit_async(bad)  # type: ignore[arg-type]  # wrong on purpose
                task = asyncio.create_task(consumer.poll_async(PATIENCE))
                await asyncio.sleep(0.01)
                with pytest.raises(IllegalStateError):
                    await consumer.commit_async()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_commit_is_seen_by_everybody_at_once(self, log: StreamLog) -> None:
        """And the next member goes on there."""
        fill(log, 10)
        with join(log, **BY_HAND) as consumer, log.consumer(group_id="g") as other:
            for offset in (3, 9, 0, 6):
                consumer.commit({tp(): offset})
                assert other.committed(tp()) == {tp(): (offset, "")}
        with join(log) as consumer:
            assert values(take(consumer, 4)) == [b"6", b"7", b"8", b"9"]

    def test_committed(self, log: StreamLog) -> None:
        """Of the assigned partitions, or of the named ones; None where nothing was."""
        fill(log, 4, partitions=2)
        log.create_topic("other", partitions=2)
        with join(log, **BY_HAND) as consumer:
            assert consumer.committed() == {tp(0): (0, ""), tp(1): (0, "")}
            assert consumer.committed(tp(1, "other")) == {tp(1, "other"): None}
            consumer.commit({tp(1): 2})
            assert consumer.committed(tp(1), tp(0, "other")) == {tp(1): (2, ""), tp(0, "other"): None}
            assert isinstance(consumer.committed()[tp(1)], OffsetAndMetadata)
            for unknown, error in ((tp(2), UnknownPartitionError), (tp(0, "none"), UnknownTopicError)):
                with pytest.raises(error):
                    consumer.committed(unknown)
            with pytest.raises(ConfigError):
                consumer.committed("events")  # type: ignore[arg-type]  # wrong on purpose
        with log.consumer(group_id="g") as nobody:
            assert nobody.committed() == {}

    # --- what is refused

    @pytest.mark.parametrize(
        ("what", "error"),
        [
            ({tp(0): 1, tp(1): -1}, OffsetOutOfRangeError),
            ({tp(0): 1, tp(1): 6}, OffsetOutOfRangeError),
            ({tp(0): 1, tp(1): 2**70}, OffsetOutOfRangeError),
            ({tp(0): 1, tp(1): OffsetAndMetadata(-1, "")}, OffsetOutOfRangeError),
            pytest.param({tp(0): 1, tp(1): OffsetAndMetadata(1, "x" * 4097)}, ConfigError),
            pytest.param({tp(0): 1, tp(1): OffsetAndMetadata(1, "☃" * 1366)}, ConfigError),
            pytest.param({tp(0): 1, tp(1): OffsetAndMetadata(1, "\ud800")}, ConfigError),
            ({tp(0): 1, tp(1): OffsetAndMetadata(1, b"x")}, ConfigError),  # type: ignore[arg-type]  # wrong on purpose
            ({tp(0): 1, tp(1): OffsetAndMetadata(1, None)}, ConfigError),  # type: ignore[arg-type]  # wrong on purpose
            ({tp(0): 1, tp(1): "1"}, ConfigError),
            ({tp(0): 1, tp(1): 1.0}, ConfigError),
            ({tp(0): 1, tp(1): True}, ConfigError),
            ({tp(0): 1, tp(1): None}, ConfigError),
            ({tp(0): 1, "events": 1}, ConfigError),
            ({tp(0): 1, 5: 1}, ConfigError),
            ({tp(0): 1, tp(2): 0}, CommitFailedError),
            ({tp(0): 1, tp(0, "other"): 0}, CommitFailedError),
            ([tp(0)], ConfigError),
            (tp(0), ConfigError),
            (5, ConfigError),
            ("events", ConfigError),
            (True, ConfigError),
        ],
        ids=lambda what: ascii(what).replace("TopicPartition", "")[:60],
    )
    def test_bad_commit_is_refused(self, log: StreamLog, what: Any, error: type[Exception]) -> None:
        """And nothing of it is committed."""
        fill(log, 10, partitions=2)
        log.create_topic("other")
        with join(log, **BY_HAND) as consumer:
            take(consumer, 10)
            with pytest.raises(error):
                consumer.commit(what)
            assert offsets(log, 0, 1) == [0, 0]
            consumer.commit()
            assert offsets(log, 0, 1) == [5, 5]

    def test_only_owned_partitions_are_committed(self, log: StreamLog) -> None:
        """Those that went are their new owner's, though their records were handed out here."""
        fill(log, 40, partitions=4)
        with join(log, **BY_HAND) as first:
            records = take(first, 40)
            with join(log, **BY_HAND) as second:
                seen = even(first, second, total=4)
                read(second, count=20 - len(seen))
                first.commit()
                gone = {tp(number) for number in range(4)} - first.assignment()
                assert second.assignment() == gone
                assert {
                    tp(number) for number, offset in enumerate(offsets(log, 0, 1, 2, 3)) if offset
                } == first.assignment()
                for record in records:
                    if tp(record.partition) in gone:
                        with pytest.raises(CommitFailedError):
                            first.commit(record)
                with pytest.raises(CommitFailedError):
                    first.commit(dict.fromkeys(map(tp, range(4)), 1))
                second.commit()
                assert offsets(log, 0, 1, 2, 3) == [10] * 4

    def test_consumer_without_a_group_commits_nothing(self, log: StreamLog) -> None:
        """Every call says that it has none; closing is fine."""
        fill(log, 2)

        async def commit_async() -> None:
            await consumer.commit_async()

        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            records = take(consumer, 2)
            for call in (
                consumer.commit,
                lambda: consumer.commit(records[0]),
                consumer.committed,
                lambda: consumer.committed(tp()),
                lambda: asyncio.run(commit_async()),
            ):
                with pytest.raises(IllegalStateError, match="group"):
                    call()

    def test_closed_consumer_commits_nothing(self, log: StreamLog) -> None:
        """It raises `ClosedError`, as does everything of a group."""
        fill(log, 2)
        consumer = join(log)
        (record, _) = take(consumer, 2)
        consumer.close()

        async def commit_async() -> None:
            await consumer.commit_async()

        for call in (
            consumer.commit,
            lambda: consumer.commit(record),
            lambda: asyncio.run(commit_async()),
            consumer.committed,
            lambda: consumer.committed(tp()),
            consumer.group_metadata,
        ):
            with pytest.raises(ClosedError):
                call()

    def test_other_threads_do_not_commit(self, log: StreamLog) -> None:
        """While a `poll` waits; afterwards they may."""
        fill(log, 1)
        with join(log, **BY_HAND) as consumer:
            take(consumer, 1)
            thread = threading.Thread(target=lambda: take(consumer, 1))
            thread.start()
            deadline = monotonic() + PATIENCE
            refused = False
            while not refused and monotonic() < deadline:
                try:
                    consumer.commit()
                except IllegalStateError:
                    refused = True
            assert refused
            fill(log, 1)
            thread.join(PATIENCE)
            in_thread(consumer.commit)
            assert offsets(log) == [2]

    # --- interceptors

    def test_interceptors_are_told_of_commits(self, log: StreamLog) -> None:
        """Once each, whatever committed; one that raises is skipped."""
        fill(log, 10, partitions=2)
        noted = Noted()
        with join(log, interceptors=[Broken(), noted], **BY_HAND) as consumer:
            noted.commits.clear()
            consumer.commit({tp(0): OffsetAndMetadata(1, "x")})
            assert noted.commits == [{tp(0): (1, "x")}]
            take(consumer, 10)
            consumer.commit()
            assert noted.commits[1:] == [{tp(0): (5, ""), tp(1): (5, "")}]
            with pytest.raises(CommitFailedError):
                consumer.commit({tp(5): 0})
            assert len(noted.commits) == 2
        assert len(noted.commits) == 2
        with join(log, interceptors=[Broken(), noted], **AT_ONCE) as consumer:
            del noted.commits[:]
            consumer.seek(tp(0), 3)
            consumer.poll(0)
            assert {tp(0): (3, "")} in noted.commits
            del noted.commits[:]
        assert noted.commits == [{tp(0): (5, "")}]
        with join(log, interceptors=[noted]) as consumer:
            consumer.poll(0)
            del noted.commits[:]
            consumer.seek(tp(1), 2)
            consumer.unsubscribe()
            assert noted.commits == [{tp(1): (2, "")}]

    # --- consumers that were assigned their partitions

    @pytest.mark.parametrize("automatic", [True, False])
    def test_start_of_an_assigned_consumer_is_committed(self, log: StreamLog, *, automatic: bool) -> None:
        """At once, and before the records that its first `poll` returns, which are not handled yet."""
        fill(log, 10)
        options: dict[str, Any] = {"auto_offset_reset": "earliest", "enable_auto_commit": automatic}
        consumer = log.consumer(group_id="g", **options)
        consumer.assign([tp()])
        take(consumer, 10)
        consumer.close(commit=False)
        assert offsets(log) == [0]

    def test_assigned_consumer_commits(self, log: StreamLog) -> None:
        """By hand and automatically, if the group has no members."""
        fill(log, 10, partitions=2)
        with log.consumer(group_id="g", auto_offset_reset="earliest", max_poll_records=4, **AT_ONCE) as consumer:
            consumer.assign([tp(1)])
            assert len(consumer.poll(PATIENCE)) == 4
            assert offsets(log, 0, 1) == [None, 0]
            consumer.commit()
            assert offsets(log, 0, 1) == [None, 4]
            consumer.poll(PATIENCE)
            consumer.poll(0)
            assert offsets(log, 0, 1) == [None, 5]
            consumer.commit({tp(1): 2})
            with pytest.raises(CommitFailedError):
                consumer.commit({tp(0): 0})
        with log.consumer(group_id="g", auto_offset_reset="earliest") as consumer:
            consumer.assign([tp(1)])
            assert consumer.position(tp(1)) == 2
            take(consumer, 3)
        assert offsets(log, 0, 1) == [None, 5]

    def test_assigned_consumer_does_not_commit_beside_members(self, log: StreamLog) -> None:
        """It would move their offsets; reading goes on."""
        fill(log, 10)
        with join(log) as member, log.consumer(group_id="g", auto_offset_reset="earliest", **AT_ONCE) as consumer:
            consumer.assign([tp()])
            (record, *_) = take(consumer, 10)
            for what in (None, record, {tp(): 5}):
                with pytest.raises(CommitFailedError):
                    consumer.commit(what)
            consumer.poll(0)
            assert offsets(log) == [0]
            take(member, 10)
            member.commit()
            member.unsubscribe()
            consumer.commit({tp(): 5})
            assert offsets(log) == [5]

    @pytest.mark.parametrize("to", ["other", "nothing", "unsubscribe"])
    def test_assigned_consumer_commits_what_it_gives_up(self, log: StreamLog, to: str) -> None:
        """What it moved past, if commits are automatic, as at a rebalance; interceptors are told the truth."""
        fill(log, 10, partitions=2)
        noted = Noted()
        ends: dict[str, Callable[[Any], None]] = {
            "other": lambda consumer: consumer.assign([tp(1)]),
            "nothing": lambda consumer: consumer.assign([]),
            "unsubscribe": lambda consumer: consumer.unsubscribe(),
        }
        with log.consumer(group_id="g", auto_offset_reset="earliest", interceptors=[noted]) as consumer:
            consumer.assign([tp(0)])
            take(consumer, 5)
            consumer.commit({tp(0): 1})
            consumer.seek(tp(0), 5)
            ends[to](consumer)
            consumer.assign([tp(1)])
            consumer.poll(0)
            told: dict[TopicPartition, Any] = {}
            for commit in noted.commits:
                told |= commit
            assert [told[tp(0)].offset] == offsets(log, 0)
            assert offsets(log, 0) == [5]
