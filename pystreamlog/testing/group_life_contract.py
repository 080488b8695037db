"""The contract of members that are away or silent, and of where a group starts: at first, later, after a restart."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from time import time_ns
from typing import Any

import pytest

from pystreamlog import StreamLog, TopicPartition
from pystreamlog.errors import CommitFailedError, FencedError, IllegalStateError, NoOffsetError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp, values
from pystreamlog.testing.group_driving import Member, Notes, drive, even, join, read

__all__ = ["GroupLifeContract"]


class BrokenError(Exception):
    """What a broken callback raises."""


class GroupLifeContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- static members

    def test_static_member_comes_back_to_its_partitions(self, log: StreamLog) -> None:
        """Where it had left off; the others are told nothing, and do not get them meanwhile."""
        fill(log, 40, partitions=4)
        notes = Notes()
        with join(log, **notes.callbacks()) as other:
            static = join(log, group_instance_id="one")
            seen = even(other, static, total=4)
            seen += read(other, static, count=40 - len(seen))
            told, mine, member_id = list(notes.told), static.assignment(), static.group_metadata().member_id
            static.close(commit=True)
            fill(log, 4, partitions=4, first=40)
            assert len(read(other, count=2)) == 2
            with join(log, group_instance_id="one") as back:
                assert back.assignment() == mine
                assert {record.offset for record in read(back, other, count=2)} == {10}
                assert back.group_metadata().group_instance_id == "one"
                assert back.group_metadata().member_id != member_id
            assert notes.told == told

    def test_static_members_come_back_one_after_the_other(self, log: StreamLog) -> None:
        """A rolling restart moves nothing."""
        log.create_topic("events", partitions=6)
        with ExitStack() as stack:
            members = [stack.enter_context(join(log, group_instance_id=name)) for name in "abc"]
            even(*members, total=6)
            before = [member.assignment() for member in members]
            for number, name in enumerate("abc"):
                members[number].close()
                members[number] = stack.enter_context(join(log, group_instance_id=name))
            drive(*members, until=lambda: sum(len(member.assignment()) for member in members) == 6)
            assert [member.assignment() for member in members] == before

    def test_share_of_an_absent_static_member_goes_after_its_time(self, log: StreamLog) -> None:
        """To the others, who wait in `poll`; then it is a newcomer."""
        fill(log, 8, partitions=2)
        with join(log) as other:
            static = join(log, group_instance_id="one", session_timeout_ms=80)
            seen = even(other, static, total=2)
            seen += read(other, static, count=8 - len(seen))
            static.close(commit=True)
            other.poll(0)
            assert len(other.assignment()) == 1
            assert not drive(other, until=lambda: len(other.assignment()) == 2)
            with join(log, group_instance_id="one") as back:
                assert back.assignment() == set()
                assert not even(other, back, total=2)

    def test_second_live_static_member_is_fenced(self, log: StreamLog) -> None:
        """At its first `poll` and each later one; the first is undisturbed. It may come when that has left."""
        fill(log, 4, partitions=2)
        notes = Notes()
        with join(log, group_instance_id="one", **notes.callbacks()) as first:
            generation = first.group_metadata().generation_id
            second = log.consumer("events", group_id="g", group_instance_id="one", auto_offset_reset="earliest")
            for _ in range(2):
                with pytest.raises(FencedError, match="one"):
                    second.poll(0)
            assert second.assignment() == set()
            assert len(read(first, count=4)) == 4
            first.commit()
            assert (first.group_metadata().generation_id, len(notes.told)) == (generation, 1)
            with join(log, group_id="another", group_instance_id="one") as elsewhere:
                assert len(elsewhere.assignment()) == 2
        drive(second, until=lambda: len(second.assignment()) == 2)
        assert not second.poll(0)
        second.close()

    def test_static_member_that_comes_back_to_other_topics(self, log: StreamLog) -> None:
        """What it does not want any more goes to others."""
        fill(log, 4, topic="a", partitions=2)
        fill(log, 4, topic="b", partitions=2)
        with join(log, "a") as other:
            join(log, "a", group_instance_id="one").close()
            with join(log, "b", group_instance_id="one") as back:
                seen = drive(other, back, until=lambda: len(other.assignment()) == len(back.assignment()) == 2)
                read(other, back, count=8 - len(seen))
                assert {part.topic for part in back.assignment()} == {"b"}

    # --- members that were silent

    def test_silent_member_is_fenced(self, log: StreamLog) -> None:
        """Once another polls: its commit fails, its next `poll` calls `on_lost`, and it rejoins."""
        fill(log, 8, partitions=4)
        notes = Notes()
        with join(log, max_poll_interval_ms=50, **notes.callbacks()) as silent:
            records = take(silent, 8)
            other = join(log)
            seen = drive(other, until=lambda: len(other.assignment()) == 4)
            seen += read(other, count=8 - len(seen))
            other.commit()
            for what in (None, records[0], {tp(0): 1}):
                with pytest.raises(CommitFailedError):
                    silent.commit(what)
            assert set(other.committed().values()) == {(2, "")}
            assert [what for what, _ in notes.told] == ["assign"]
            assert not silent.poll(0)
            assert notes.told[1] == ("lost", [tp(number) for number in range(4)])
            assert not even(silent, other, total=4)
            assert notes.held() == silent.assignment()
            assert [what for what, _ in notes.told] == ["assign", "lost", "assign"]
            assert {silent.position(part) for part in silent.assignment()} == {2}
            other.close()

    def test_on_lost_is_on_revoke_by_default(self, log: StreamLog) -> None:
        """There a commit fails; what the next owner committed stays."""
        fill(log, 4)
        told: list[list[TopicPartition]] = []

        def on_revoke(consumer: Member, parts: list[TopicPartition]) -> None:
            told.append(parts)
            if len(told) == 1:
                with pytest.raises(CommitFailedError):
                    consumer.commit(dict.fromkeys(parts, 4))

        with join(log, max_poll_interval_ms=300, on_revoke=on_revoke) as silent:
            take(silent, 4)
            with join(log) as other:
                drive(other, until=lambda: other.assignment() == {tp()})
                silent.poll(0)
                assert told == [[tp()]]
                assert other.committed() == {tp(): (0, "")}

    @pytest.mark.parametrize("end", ["close", "unsubscribe", "commit"])
    def test_fenced_consumer_can_be_closed_and_unsubscribed(self, log: StreamLog, end: str) -> None:
        """What it read cannot be committed, which it says where a commit was asked for."""
        fill(log, 4)
        silent = join(log, max_poll_interval_ms=300)
        take(silent, 4)
        silent.seek(tp(), 3)
        with join(log) as other:
            drive(other, until=lambda: other.assignment() == {tp()})
            if end == "commit":
                with pytest.raises(CommitFailedError):
                    silent.close(commit=True)
            else:
                getattr(silent, end)()
            if end == "unsubscribe":
                assert silent.assignment() == set()
                with pytest.raises(IllegalStateError):
                    silent.poll(0)
            silent.close()
            assert other.committed() == {tp(): (0, "")}

    def test_named_topic_that_is_made_again_is_read(self, log: StreamLog) -> None:
        """Though the group noticed meanwhile that it was gone."""
        log.create_topic("events")
        log.create_topic("other")
        with join(log, "events", "other") as consumer:
            log.delete_topic("events")
            drive(consumer, until=lambda: consumer.assignment() == {tp(0, "other")})
            fill(log, 2)
            assert [record.topic for record in take(consumer, 2)] == ["events", "events"]

    def test_what_was_revoked_is_not_lost_too(self, log: StreamLog) -> None:
        """A callback takes so long that the others go on without the member: of each partition it is told once."""
        log.create_topic("events", partitions=2)
        revoked: list[Any] = []
        lost: list[Any] = []
        with join(log) as other:

            def on_revoke(_: Any, parts: list[TopicPartition]) -> None:
                revoked.extend(parts)
                if len(revoked) == 1:
                    drive(other, until=lambda: len(other.assignment()) == 2)

            other.unsubscribe()
            callbacks: dict[str, Any] = {"on_revoke": on_revoke, "on_lost": lambda _, parts: lost.extend(parts)}
            with join(log, max_poll_interval_ms=300, **callbacks) as slow:
                other.subscribe("events")
                drive(other, slow, until=lambda: bool(lost))
                assert sorted(revoked + lost) == [tp(0), tp(1)]

    def test_waiting_in_poll_counts_as_polling(self, log: StreamLog) -> None:
        """However long it waits."""
        log.create_topic("events", partitions=2)
        notes = Notes()
        with join(log, max_poll_interval_ms=400, **notes.callbacks()) as waiting, join(log) as other:
            even(waiting, other, total=2)
            thread = threading.Thread(target=waiting.poll, args=(1.0,))
            thread.start()
            while thread.is_alive():
                other.poll(0.05)
            thread.join(PATIENCE)
            assert len(other.assignment()) == len(waiting.assignment()) == 1
            assert "lost" not in [what for what, _ in notes.told]

    def test_next_of_a_loop_counts_as_polling(self, log: StreamLog) -> None:
        """Though the records come of one `poll`."""
        fill(log, 24)
        log.create_topic("other")
        with join(log, max_poll_interval_ms=400) as looping, join(log, "other") as other:
            for number, _ in enumerate(looping, 1):
                other.poll(0.05)
                if number == 20:
                    break
            assert looping.assignment() == {tp()}
            looping.commit()
            assert looping.committed() == {tp(): (20, "")}

    def test_on_lost_that_raises_leaves_poll(self, log: StreamLog) -> None:
        """The next `poll` rejoins."""

        def broken(*_: object) -> None:
            raise BrokenError

        log.create_topic("events", partitions=2)
        with join(log, max_poll_interval_ms=300, on_lost=broken) as silent, join(log) as other:
            assert len(silent.assignment()) == 2
            drive(other, until=lambda: len(other.assignment()) == 2)
            with pytest.raises(BrokenError):
                silent.poll(0)
            fill(log, 4, partitions=2)
            even(silent, other, total=2)

    # --- where a group starts

    def test_latest_is_fixed_by_the_first_poll(self, log: StreamLog) -> None:
        """At once: what is sent then is read by the next member, though the first never committed."""
        fill(log, 6, partitions=2)
        consumer = log.consumer("events", group_id="g")
        drive(consumer, until=lambda: len(consumer.assignment()) == 2)
        assert consumer.committed() == {tp(0): (3, ""), tp(1): (3, "")}
        fill(log, 4, partitions=2, first=6)
        consumer.close(commit=False)
        with log.consumer("events", group_id="g") as consumer:
            assert {record.value for record in take(consumer, 4)} == {b"6", b"7", b"8", b"9"}

    def test_latest_is_fixed_for_all_partitions(self, log: StreamLog) -> None:
        """Also those that another member takes later."""
        fill(log, 4, partitions=2)
        with log.consumer("events", group_id="g") as first:
            drive(first, until=lambda: len(first.assignment()) == 2)
            fill(log, 20, partitions=2)
            with log.consumer("events", group_id="g") as second:
                seen = even(first, second, total=2)
                assert len(seen + read(first, second, count=20 - len(seen))) == 20

    @pytest.mark.parametrize(("back", "start"), [(75, 1), (1000, 0), (1, 2)])
    def test_duration_starts_so_far_back(self, log: StreamLog, back: int, start: int) -> None:
        """And that is fixed, too."""
        now = time_ns() // 1_000_000
        log.create_topic("events")
        with log.producer() as producer:
            producer.send_many("events", [b"x"] * 2, timestamps_ms=[now - 100_000, now - 50_000]).result()
        consumer = log.consumer("events", group_id="g", auto_offset_reset=timedelta(seconds=back))
        drive(consumer, until=lambda: bool(consumer.assignment()))
        assert consumer.committed() == {tp(): (start, "")}
        consumer.close(commit=False)
        with join(log) as consumer:
            assert consumer.position(tp()) == start

    def test_none_needs_a_committed_offset(self, log: StreamLog) -> None:
        """Or a seek; the group has none until somebody commits."""
        fill(log, 4)
        with log.consumer("events", group_id="g", auto_offset_reset="none") as consumer:
            with pytest.raises(NoOffsetError) as caught:
                drive(consumer, until=lambda: False)
            assert (caught.value.topic, caught.value.partition) == ("events", 0)
            assert consumer.assignment() == {tp()}
            assert consumer.committed() == {tp(): None}
            with pytest.raises(NoOffsetError):
                consumer.position(tp())
            consumer.seek(tp(), 1)
            assert values(take(consumer, 3)) == [b"1", b"2", b"3"]
        with log.consumer("events", group_id="g", auto_offset_reset="none") as consumer:
            drive(consumer, until=lambda: bool(consumer.assignment()))
            assert consumer.position(tp()) == 4

    @pytest.mark.parametrize(
        "reset",
        [
            "latest",
            "earliest",
            "none",
            timedelta(0),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("present", [True, False])
    def test_partitions_added_later_start_at_0(self, log: StreamLog, reset: Any, *, present: bool) -> None:
        """Whatever `auto_offset_reset` says, and whether a member was there or not."""
        fill(log, 4, partitions=2)
        options: dict[str, Any] = {"group_id": "g", "auto_offset_reset": reset}
        with log.consumer(group_id="g", auto_offset_reset="earliest") as assigned:
            assigned.assign([tp(0), tp(1)])
            assigned.commit({tp(0): 2, tp(1): 2})
        with ExitStack() as stack:
            consumer = stack.enter_context(log.consumer("events", **options))
            drive(consumer, until=lambda: len(consumer.assignment()) == 2)
            if not present:
                consumer.close()
            log.topic("events").add_partitions(4)
            fill(log, 4, partitions=4, first=4)
            if not present:
                consumer = stack.enter_context(log.consumer("events", **options))
            seen = drive(consumer, until=lambda: len(consumer.assignment()) == 4)
            seen += read(consumer, count=4 - len(seen))
            assert sorted((record.partition, record.offset) for record in seen) == [(0, 2), (1, 2), (2, 0), (3, 0)]

    @pytest.mark.parametrize("reset", ["latest", "earliest", "none", timedelta(0)], ids=str)
    def test_restart_goes_on_at_the_committed_offset(self, log: StreamLog, reset: Any) -> None:
        """Whatever `auto_offset_reset` says."""
        fill(log, 10)
        with join(log) as consumer:
            consumer.commit({tp(): 6})
        fill(log, 2, first=10)
        with log.consumer("events", group_id="g", auto_offset_reset=reset) as consumer:
            assert values(take(consumer, 6)) == [b"%d" % number for number in range(6, 12)]

    def test_restart_after_an_open_of_the_log(self, log: StreamLog) -> None:
        """Nothing of a group needs a member that lives: everybody leaves, and all is as it was."""
        fill(log, 10, partitions=2)
        for count in (3, 3, 4):
            with join(log, max_poll_records=1) as consumer:
                for _ in range(count):
                    assert len(consumer.poll(PATIENCE)) == 1
        with join(log) as consumer:
            assert {consumer.position(tp(0)), consumer.position(tp(1))} == {5}

    def test_position_of_a_kept_partition_is_its_own(self, log: StreamLog) -> None:
        """Not what was committed meanwhile: a rebalance takes nothing back that was read."""
        fill(log, 20, partitions=2)
        with join(log, enable_auto_commit=False) as first:
            take(first, 20)
            with join(log, enable_auto_commit=False) as second:
                seen = even(first, second, total=2)
                assert {record.partition for record in seen} <= {part.partition for part in second.assignment()}
                (kept,) = first.assignment()
                assert first.position(kept) == 10
                read(second, count=10 - len(seen))
