"""The contract of assignors and of the callbacks that tell a member of a group what comes and goes."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from pystreamlog import StreamLog, TopicPartition
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError
from pystreamlog.testing.contract import Contract, fill, take, tp
from pystreamlog.testing.group_driving import Member, Notes, drive, even, join, read

__all__ = ["GroupCallbackContract"]

Shares = Mapping[str, Iterable[TopicPartition]]


class BrokenError(Exception):
    """What a broken callback raises."""


class GroupCallbackContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- assignors

    def test_uniform_gives_all_as_much(self, log: StreamLog) -> None:
        """Over all topics together, and moves no more than it must."""
        for name in ("a", "b", "c"):
            log.create_topic(name, partitions=2)
        with ExitStack() as stack:
            members: list[Member] = []
            for _ in range(3):
                members.append(stack.enter_context(join(log, "a", "b", "c")))
                before = {member: member.assignment() for member in members[:-1]}
                even(*members, total=6)
                assert all(member.assignment() <= kept for member, kept in before.items())
            assert [len(member.assignment()) for member in members] == [2, 2, 2]

    def test_range_lets_equal_topics_meet(self, log: StreamLog) -> None:
        """The same numbers of topics of equal shape are one member's."""
        for name in ("a", "b"):
            log.create_topic(name, partitions=5)
        with ExitStack() as stack:
            members = [stack.enter_context(join(log, "a", "b", assignor="range")) for _ in range(2)]
            drive(*members, until=lambda: sorted(len(member.assignment()) for member in members) == [4, 6])
            for member in members:
                numbers = [part.partition for part in sorted(member.assignment())]
                half = len(numbers) // 2
                assert numbers[:half] == numbers[half:] == list(range(numbers[0], numbers[0] + half))

    def test_what_most_members_say_counts(self, log: StreamLog) -> None:
        """One of three has another assignor."""
        for name in ("a", "b", "c"):
            log.create_topic(name, partitions=1)
        with ExitStack() as stack:
            members = [
                stack.enter_context(join(log, "a", "b", "c", assignor=name)) for name in ("uniform", "range", "range")
            ]
            drive(*members, until=lambda: sorted(len(member.assignment()) for member in members) == [0, 0, 3])

    def test_assignor_may_be_a_callable(self, log: StreamLog) -> None:
        """It is given the members and how many partitions there are."""
        log.create_topic("events", partitions=4)
        seen: list[tuple[dict[str, Any], dict[str, int]]] = []

        def first_takes_all(members: Sequence[Any], partitions: Mapping[str, int]) -> Shares:
            seen.append(({member.member_id: member for member in members}, dict(partitions)))
            first = min(members, key=lambda member: member.group_instance_id)
            return {first.member_id: [tp(number) for number in range(partitions["events"])]}

        options: dict[str, Any] = {"assignor": first_takes_all, "session_timeout_ms": 1}
        with join(log, group_instance_id="b", **options) as second:
            assert len(second.assignment()) == 4
            with join(log, group_instance_id="a", **options) as first:
                drive(first, second, until=lambda: len(first.assignment()) == 4)
                assert second.assignment() == set()
                members, partitions = seen[-1]
                assert partitions == {"events": 4}
                assert set(members) == {first.group_metadata().member_id, second.group_metadata().member_id}
                other = members[second.group_metadata().member_id]
                assert (other.group_instance_id, other.topics) == ("b", {"events"})
                assert other.assigned == {tp(number) for number in range(4)}
            drive(second, until=lambda: len(second.assignment()) == 4)

    @pytest.mark.parametrize(
        "answer",
        [
            lambda _: None,
            lambda _: {},
            lambda ids: {ids[0]: [tp(0)]},
            lambda ids: {ids[0]: [tp(0), tp(1), tp(1)]},
            lambda ids: {ids[0]: [tp(0), tp(1), tp(2)]},
            lambda ids: {ids[0]: [tp(0), tp(1), tp(0, "other")]},
            lambda ids: {ids[0]: [tp(0), 1]},
            lambda ids: {ids[0]: 5},
            lambda _: {"nobody": [tp(0), tp(1)]},
        ],
        ids=[
            "none",
            "nobody",
            "one-left-out",
            "one-twice",
            "one-too-many",
            "not-subscribed",
            "not-a-pair",
            "5",
            "name",
        ],
    )
    def test_wrong_answer_changes_nothing(self, log: StreamLog, answer: Callable[[list[str]], Any]) -> None:
        """It leaves `poll`; a later one goes on."""
        log.create_topic("events", partitions=2)
        log.create_topic("other")
        wrong = True

        def assignor(members: Sequence[Any], _: Mapping[str, int]) -> Any:
            ids = [member.member_id for member in members]
            return answer(ids) if wrong else {ids[0]: [tp(0), tp(1)]}

        with log.consumer("events", group_id="g", assignor=assignor) as consumer:
            for _ in range(2):
                with pytest.raises(ConfigError, match="assignor"):
                    consumer.poll(0)
                assert consumer.assignment() == set()
                assert not consumer.group_metadata().member_id
            wrong = False
            drive(consumer, until=lambda: len(consumer.assignment()) == 2)

    def test_assignor_that_raises_changes_nothing(self, log: StreamLog) -> None:
        """The member keeps what it has; nothing is lost, and a later `poll` does what was to be done."""
        topic = log.create_topic("events", partitions=2)
        broken = False

        def assignor(members: Sequence[Any], partitions: Mapping[str, int]) -> Shares:
            if broken:
                raise BrokenError
            return {members[0].member_id: [tp(number) for number in range(partitions["events"])]}

        with join(log, assignor=assignor) as member:
            generation = member.group_metadata().generation_id
            broken = True
            topic.add_partitions(3)
            fill(log, 6, partitions=3)
            with pytest.raises(BrokenError):
                drive(member, until=lambda: False)
            assert member.assignment() == {tp(0), tp(1)}
            assert member.group_metadata().generation_id == generation
            with pytest.raises(BrokenError), log.consumer("events", group_id="g", assignor=assignor) as other:
                drive(other, until=lambda: False)
            broken = False
            seen = drive(member, until=lambda: len(member.assignment()) == 3)
            read(member, count=6 - len(seen))

    # --- what callbacks are told

    def test_callbacks_are_told_of_changes_only(self, log: StreamLog) -> None:
        """In the polling thread, inside `poll`."""
        log.create_topic("events", partitions=4)
        notes = Notes()
        threads = set()

        def noting(what: Callable[..., None]) -> Callable[..., None]:
            def call(consumer: Member, parts: list[TopicPartition]) -> None:
                threads.add(threading.get_ident())
                what(consumer, parts)

            return call

        callbacks: dict[str, Any] = {name: noting(call) for name, call in notes.callbacks().items()}
        with log.consumer("events", group_id="g", **callbacks) as first:
            assert notes.told == []
            drive(first, until=lambda: bool(first.assignment()))
            assert notes.told == [("assign", [tp(number) for number in range(4)])]
            with join(log) as second:
                assert len(notes.told) == 1
                even(first, second, total=4)
                assert len(notes.told) == 2
                assert notes.held() == first.assignment()
            assert len(notes.told) == 2
            drive(first, until=lambda: len(first.assignment()) == 4)
            assert len(notes.told) == 3
            assert notes.told[2] == ("assign", notes.told[1][1])
        assert notes.told[3:] == [("revoke", [tp(number) for number in range(4)])]
        assert threads == {threading.get_ident()}

    def test_revoke_comes_before_assign(self, log: StreamLog) -> None:
        """Where both are due."""
        for name in ("a", "b", "c"):
            log.create_topic(name)
        notes = Notes()
        with join(log, "a", "b", **notes.callbacks()) as member:
            member.subscribe(["b", "c"])
            drive(member, until=lambda: len(notes.told) == 3)
            assert notes.told[1:] == [("revoke", [tp(0, "a")]), ("assign", [tp(0, "c")])]
            log.delete_topic("b")
            drive(member, until=lambda: len(notes.told) == 4)
            assert notes.told[3] == ("revoke", [tp(0, "b")])

    def test_close_and_unsubscribe_revoke(self, log: StreamLog) -> None:
        """Everything, while it may still be committed; without a `poll` there is nothing to revoke."""
        fill(log, 6, partitions=2)
        ends: list[Callable[[Member], None]] = [
            lambda consumer: consumer.close(),
            lambda consumer: consumer.unsubscribe(),
            lambda consumer: consumer.subscribe([]),
        ]
        for end in ends:
            notes = Notes()
            log.consumer("events", group_id="g", **notes.callbacks()).close()
            assert notes.told == []

            def on_revoke(consumer: Member, parts: list[TopicPartition], notes: Notes = notes) -> None:
                notes.on_revoke(consumer, parts)
                assert set(parts) == consumer.assignment()
                consumer.commit(dict.fromkeys(parts, 3))

            with join(log, on_assign=notes.on_assign, on_revoke=on_revoke, enable_auto_commit=False) as member:
                member.seek_to_beginning()
                take(member, 6)
                end(member)
                assert notes.told == [("assign", [tp(0), tp(1)]), ("revoke", [tp(0), tp(1)])]
            with log.consumer(group_id="g") as other:
                assert other.committed(tp(0), tp(1)) == {tp(0): (3, ""), tp(1): (3, "")}
                other.assign([tp(0), tp(1)])
                other.commit({tp(0): 0, tp(1): 0})
            assert len(notes.told) == 2

    def test_subscribe_brings_its_own_callbacks(self, log: StreamLog) -> None:
        """Which are told from then on."""
        log.create_topic("a")
        log.create_topic("b")
        before, after = Notes(), Notes()
        with join(log, "a", **before.callbacks()) as member:
            member.subscribe("b", **after.callbacks())
            drive(member, until=lambda: member.assignment() == {tp(0, "b")})
            assert before.told == [("assign", [tp(0, "a")])]
            assert after.told == [("revoke", [tp(0, "a")]), ("assign", [tp(0, "b")])]

    # --- what callbacks may do

    def test_commit_in_on_revoke_is_where_the_next_owner_starts(self, log: StreamLog) -> None:
        """Its partitions are still assigned there, and nobody else reads them yet."""
        fill(log, 40, partitions=4)

        def on_revoke(consumer: Member, parts: list[TopicPartition]) -> None:
            assert set(parts) <= consumer.assignment()
            assert {consumer.position(part) for part in parts} == {10}
            consumer.commit(dict.fromkeys(parts, 7))

        with join(log, on_revoke=on_revoke, enable_auto_commit=False) as first:
            take(first, 40)
            with join(log) as second:
                seen = drive(first, second, until=lambda: len(second.assignment()) == 2)
                seen += read(second, count=6 - len(seen))
                assert sorted(record.offset for record in seen) == [7, 7, 8, 8, 9, 9]

    def test_explicit_commit_in_on_revoke_outranks_the_automatic_one(self, log: StreamLog) -> None:
        """What the application says last counts."""
        fill(log, 10)

        def on_revoke(consumer: Member, parts: list[TopicPartition]) -> None:
            consumer.commit(dict.fromkeys(parts, 7))

        with join(log, on_revoke=on_revoke) as member:
            take(member, 10)
            member.poll(0)
        with join(log) as member:
            assert member.position(tp()) == 7

    def test_seek_in_callbacks_is_honoured(self, log: StreamLog) -> None:
        """In `on_assign` reading goes on there; in `on_revoke` the next owner does."""
        fill(log, 40, partitions=4)

        def on_assign(consumer: Member, parts: list[TopicPartition]) -> None:
            for part in parts:
                consumer.seek(part, 8)

        def on_revoke(consumer: Member, parts: list[TopicPartition]) -> None:
            for part in parts:
                consumer.seek(part, 6)

        with log.consumer("events", group_id="g", on_assign=on_assign, on_revoke=on_revoke) as first:
            assert {record.offset for record in take(first, 8)} == {8, 9}
            with join(log) as second:
                seen = drive(first, second, until=lambda: len(second.assignment()) == 2)
                seen += read(second, count=8 - len(seen))
                assert sorted(record.offset for record in seen) == [6, 6, 7, 7, 8, 8, 9, 9]

    def test_pause_in_on_assign_is_honoured(self, log: StreamLog) -> None:
        """Before any record was handed out."""
        fill(log, 4, partitions=2)

        def on_assign(consumer: Member, _: list[TopicPartition]) -> None:
            consumer.pause(tp(0))

        with log.consumer("events", group_id="g", auto_offset_reset="earliest", on_assign=on_assign) as consumer:
            assert {record.partition for record in take(consumer, 2)} == {1}
            assert not consumer.poll(0.01)
            consumer.resume()
            assert {record.partition for record in take(consumer, 2)} == {0}

    def test_callback_may_not_poll(self, log: StreamLog) -> None:
        """Nor take the next record of a loop; the error says so."""
        fill(log, 2)
        refused = []

        def on_assign(consumer: Member, _: list[TopicPartition]) -> None:
            for call in (lambda: consumer.poll(0), lambda: next(iter(consumer))):
                with pytest.raises(IllegalStateError, match="callback"):
                    call()
                refused.append(call)

        with log.consumer("events", group_id="g", auto_offset_reset="earliest", on_assign=on_assign) as consumer:
            assert len(take(consumer, 2)) == 2
            assert len(refused) == 2

    def test_callback_may_subscribe_and_unsubscribe(self, log: StreamLog) -> None:
        """It holds when it returns; what was given up is read by the others."""
        fill(log, 4, partitions=2)
        log.create_topic("other")

        def elsewhere(consumer: Member, parts: list[TopicPartition]) -> None:
            if parts[0].topic == "events":
                consumer.subscribe("other")

        def leave(consumer: Member, _: list[TopicPartition]) -> None:
            consumer.unsubscribe()

        with log.consumer("events", group_id="g", auto_offset_reset="earliest", on_assign=elsewhere) as moving:
            assert not drive(moving, until=lambda: moving.assignment() == {tp(0, "other")})
            with log.consumer("events", group_id="g", on_assign=leave) as leaving:
                with pytest.raises(IllegalStateError):
                    drive(leaving, moving, until=lambda: False)
                assert leaving.assignment() == set()
                with join(log) as other:
                    assert len(read(other, count=4)) == 4

    def test_callback_may_close(self, log: StreamLog) -> None:
        """`poll` raises `ClosedError`, and the consumer has left the group."""
        fill(log, 4, partitions=2)

        def on_revoke(consumer: Member, _: list[TopicPartition]) -> None:
            consumer.close()

        closing = join(log, on_revoke=on_revoke)
        with join(log) as other:
            with pytest.raises(ClosedError):
                drive(closing, until=lambda: False)
            seen = drive(other, until=lambda: len(other.assignment()) == 2)
            read(other, count=4 - len(seen))

    # --- callbacks that raise

    def test_on_assign_that_raises_leaves_poll(self, log: StreamLog) -> None:
        """What came is assigned all the same; the next `poll` reads it."""

        def broken(*_: object) -> None:
            raise BrokenError

        fill(log, 4, partitions=2)
        with log.consumer("events", group_id="g", auto_offset_reset="earliest", on_assign=broken) as consumer:
            with pytest.raises(BrokenError):
                drive(consumer, until=lambda: False)
            assert consumer.assignment() == {tp(0), tp(1)}
            assert len(take(consumer, 4)) == 4

    def test_on_revoke_that_raises_leaves_poll(self, log: StreamLog) -> None:
        """What was to go is gone, and what was to come has come: others get the former."""
        broken = True

        def on_revoke(*_: object) -> None:
            if broken:
                raise BrokenError

        log.create_topic("events", partitions=4)
        with join(log, on_revoke=on_revoke) as first, join(log) as second:
            with pytest.raises(BrokenError):
                drive(first, until=lambda: False)
            assert len(first.assignment()) == 2
            drive(second, until=lambda: len(second.assignment()) == 2)
            fill(log, 4, partitions=4)
            assert len(read(first, second, count=4)) == 4
            broken = False

    def test_on_revoke_that_raises_leaves_close(self, log: StreamLog) -> None:
        """And the consumer is closed, and has left."""

        def broken(*_: object) -> None:
            raise BrokenError

        fill(log, 2)
        member = join(log, on_revoke=broken)
        take(member, 2)
        with pytest.raises(BrokenError):
            member.close(commit=True)
        with pytest.raises(ClosedError):
            member.poll(0)
        with join(log) as other:
            assert other.assignment() == {tp()}
            assert other.position(tp()) == 2

    def test_on_revoke_that_raises_leaves_unsubscribe(self, log: StreamLog) -> None:
        """And the consumer is unsubscribed, and has left."""
        broken = True

        def on_revoke(*_: object) -> None:
            if broken:
                raise BrokenError

        fill(log, 2)
        with join(log, on_revoke=on_revoke) as member:
            take(member, 2)
            with pytest.raises(BrokenError):
                member.unsubscribe()
            broken = False
            assert member.assignment() == set()
            assert not member.group_metadata().member_id
            with join(log) as other:
                assert other.assignment() == {tp()}
