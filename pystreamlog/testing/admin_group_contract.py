"""The contract of an admin, about consumer groups and transactions."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

import pytest

from pystreamlog import OffsetAndMetadata, StreamLog
from pystreamlog.errors import (
    ConfigError,
    FencedError,
    GroupNotEmptyError,
    NotSupportedError,
    OffsetOutOfRangeError,
    UnknownGroupError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.admin_topic_contract import failures
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp, values
from pystreamlog.testing.group_driving import Member, drive, even, is_even, join, read

__all__ = ["AdminGroupContract"]


def commit(log: StreamLog, offset: int = 3, *, group_id: str = "g", partition: int = 0) -> None:
    """Have a group without members commit in a partition of topic "events"."""
    with log.consumer(group_id=group_id, enable_auto_commit=False) as consumer:
        consumer.assign([tp(partition)])
        consumer.commit({tp(partition): offset})


def state(log: StreamLog, group_id: str = "g") -> str:
    """How a group stands."""
    return log.admin.describe_consumer_groups(group_id)[group_id].state


def offsets(log: StreamLog, group_id: str = "g") -> dict[Any, int]:
    """What a group has committed."""
    found = log.admin.list_consumer_group_offsets(group_id)[group_id]
    return {place: committed.offset for place, committed in found.items()}


def stable(log: StreamLog, *members: Member, total: int) -> None:
    """Poll until the members share all evenly and the group knows."""
    even(*members, total=total)
    drive(*members, until=lambda: state(log) == "Stable")


class AdminGroupContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- looking

    def test_groups_are_listed_by_state(self, log: StreamLog) -> None:
        """All of them, or those in some states; looking makes none."""
        fill(log, 4)
        assert log.admin.list_consumer_groups() == []
        assert log.admin.list_consumer_group_offsets("g") == {"g": {}}
        assert log.admin.list_consumer_groups() == []
        commit(log, group_id="Empty one")
        with join(log) as member:
            stable(log, member, total=1)
            assert log.admin.list_consumer_groups() == [("Empty one", "Empty"), ("g", "Stable")]
            assert log.admin.list_consumer_groups(states="Stable") == [("g", "Stable")]
            assert log.admin.list_consumer_groups(states=["Assigning", "Reconciling"]) == []
        assert log.admin.list_consumer_groups(states="Empty") == [("Empty one", "Empty"), ("g", "Empty")]

    def test_groups_are_described(self, log: StreamLog) -> None:
        """Who belongs to them, and what each reads."""
        log.create_topic("events", partitions=4)
        with join(log) as one, join(log, group_instance_id="two", assignor="range") as two:
            stable(log, one, two, total=4)
            described = log.admin.describe_consumer_groups(["g"])["g"]
            assert (described.group_id, described.state) == ("g", "Stable")
            assert described.partition_assignor in ("uniform", "range")
            first, second = described.members
            assert (first.member_id, second.member_id) == tuple(c.group_metadata().member_id for c in (one, two))
            assert (first.group_instance_id, second.group_instance_id) == (None, "two")
            assert (first.assignor, second.assignor) == ("uniform", "range")
            for member, consumer in ((first, one), (second, two)):
                assert set(member.assignment) == set(consumer.assignment())
                assert member.assignment == member.target_assignment == tuple(sorted(member.assignment))
                assert member.subscription == ("events",)
                assert member.pattern is None
                assert member.state == "Stable"
                assert member.pid == os.getpid()
                assert member.client_id == f"{member.host}:{member.pid}"
                assert member.member_epoch == consumer.group_metadata().generation_id
        (left,) = log.admin.describe_consumer_groups("g")["g"].members
        assert (left.group_instance_id, left.state) == ("two", "Left")

    def test_pattern_of_a_member_is_described(self, log: StreamLog) -> None:
        """Instead of names."""
        log.create_topic("events")
        with log.consumer(group_id="g") as consumer:
            consumer.subscribe(pattern="ev.*")
            stable(log, consumer, total=1)
            (member,) = log.admin.describe_consumer_groups("g")["g"].members
            assert (member.subscription, member.pattern) == ((), "ev.*")

    def test_all_groups_are_tried(self, log: StreamLog) -> None:
        """Those that there are not come together."""
        fill(log, 1)
        commit(log, 0)
        for call in (log.admin.describe_consumer_groups, log.admin.delete_consumer_groups):
            with pytest.raises(ExceptionGroup) as caught:
                call(["x", "g", "y"])
            errors = failures(caught)
            assert [(type(e), e.group_id) for e in errors] == [(UnknownGroupError, "x"), (UnknownGroupError, "y")]
        assert log.admin.list_consumer_groups() == []

    @pytest.mark.parametrize("bad", ["", "\ud800"])
    def test_what_is_no_group_id_is_refused(self, log: StreamLog, bad: str) -> None:
        """By every call."""
        fill(log, 1)
        calls: list[Any] = [
            lambda: log.admin.describe_consumer_groups([bad]),
            lambda: log.admin.delete_consumer_groups([bad]),
            lambda: log.admin.list_consumer_group_offsets([bad]),
            lambda: log.admin.alter_consumer_group_offsets(bad, {tp(): 0}),
            lambda: log.admin.delete_consumer_group_offsets(bad, [tp()]),
            lambda: log.admin.remove_members_from_consumer_group(bad),
        ]
        for call in calls:
            with pytest.raises(ExceptionGroup) as caught:
                call()
            (error,) = failures(caught)
            assert isinstance(error, ConfigError)
            assert error.group_id == bad  # type: ignore[attr-defined]

    # --- deleting groups

    def test_deleted_group_begins_anew(self, log: StreamLog) -> None:
        """What it had committed is gone."""
        fill(log, 5)
        commit(log, 3)
        log.admin.delete_consumer_groups("g")
        assert log.admin.list_consumer_groups() == []
        with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer:
            assert values(take(consumer, 5)) == [b"0", b"1", b"2", b"3", b"4"]
        assert offsets(log) == {tp(): 5}

    def test_group_with_members_is_not_deleted(self, log: StreamLog) -> None:
        """Others of the same call are."""
        fill(log, 2)
        commit(log, 1, group_id="other")
        with join(log) as member:
            read(member, count=2)
            member.commit()
            with pytest.raises(ExceptionGroup) as caught:
                log.admin.delete_consumer_groups(["g", "other"])
            (error,) = failures(caught)
            assert isinstance(error, GroupNotEmptyError)
            assert error.group_id == "g"
            assert [group.group_id for group in log.admin.list_consumer_groups()] == ["g"]
            assert offsets(log) == {tp(): 2}
            fill(log, 1, first=2)
            assert values(read(member, count=1)) == [b"2"]
        log.admin.delete_consumer_groups("g")
        assert log.admin.list_consumer_groups() == []

    def test_static_member_that_may_come_back_keeps_its_group(self, log: StreamLog) -> None:
        """Until it is taken out."""
        log.create_topic("events")
        join(log, group_instance_id="one").close()
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_groups("g")
        assert isinstance(failures(caught)[0], GroupNotEmptyError)
        log.admin.remove_members_from_consumer_group("g", "one")
        log.admin.delete_consumer_groups("g")
        assert log.admin.list_consumer_groups() == []

    def test_users_of_a_deleted_group_are_told(self, log: StreamLog) -> None:
        """One that commits, and one that would join; the next consumer begins the group anew."""
        fill(log, 3)
        with log.consumer(group_id="g", enable_auto_commit=False) as assigned:
            assigned.assign([tp()])
            assigned.commit({tp(): 1})
            joining = log.consumer("events", group_id="g")
            log.admin.delete_consumer_groups("g")
            with pytest.raises(UnknownGroupError):
                assigned.commit({tp(): 2})
            with pytest.raises(UnknownGroupError):
                joining.poll(0)
            joining.close()
            commit(log, 3)
            with pytest.raises(UnknownGroupError):
                assigned.commit({tp(): 2})
        assert offsets(log) == {tp(): 3}

    # --- committed offsets

    def test_offsets_are_listed(self, log: StreamLog) -> None:
        """With their metadata; of all partitions, or of some."""
        fill(log, 8, partitions=3)
        fill(log, 2, topic="other")
        with log.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.assign([tp(0), tp(1), tp(0, "other")])
            consumer.commit({tp(1): OffsetAndMetadata(2, "so far"), tp(0): 1, tp(0, "other"): 2})
        commit(log, 3, group_id="h")
        found = log.admin.list_consumer_group_offsets(["g", "h", "none"])
        assert found["g"] == {tp(0): (1, ""), tp(1): (2, "so far"), tp(0, "other"): (2, "")}
        assert list(found["g"]) == sorted(found["g"])
        assert found["h"] == {tp(0): (3, "")}
        assert found["none"] == {}
        found = log.admin.list_consumer_group_offsets("g", partitions=[tp(1), tp(2), tp(0, "missing")])
        assert found == {"g": {tp(1): (2, "so far")}}
        log.delete_topic("events")
        log.create_topic("events", partitions=3)
        assert log.admin.list_consumer_group_offsets("g") == {"g": {tp(0, "other"): (2, "")}}

    def test_altered_offsets_are_where_a_group_goes_on(self, log: StreamLog) -> None:
        """Whether it was there before or not."""
        fill(log, 5, partitions=2, partition=0)
        for group_id, start in (("g", 4), ("new", 3)):
            log.admin.alter_consumer_group_offsets(group_id, {tp(): OffsetAndMetadata(start, "moved"), tp(1): 0})
            assert log.admin.list_consumer_group_offsets(group_id)[group_id][tp()] == (start, "moved")
            with log.consumer("events", group_id=group_id) as consumer:
                assert values(take(consumer, 5 - start)) == [b"%d" % number for number in range(start, 5)]
        log.admin.alter_consumer_group_offsets("g", {tp(): 1})
        with log.consumer("events", group_id="g") as consumer:
            assert values(take(consumer, 4)) == [b"1", b"2", b"3", b"4"]

    def test_all_offsets_are_tried(self, log: StreamLog) -> None:
        """Those that cannot be committed come together, and say which they are."""
        fill(log, 2)
        wrong: dict[Any, Any] = {tp(): 3, tp(1): 0, tp(0, "missing"): 0}
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.alter_consumer_group_offsets("g", wrong)
        found = [(type(error), error.topic, error.partition, error.group_id) for error in failures(caught)]
        assert found == [
            (OffsetOutOfRangeError, "events", 0, "g"),
            (UnknownPartitionError, "events", 1, "g"),
            (UnknownTopicError, "missing", 0, "g"),
        ]
        assert log.admin.list_consumer_groups() == []
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.alter_consumer_group_offsets("g", {tp(): OffsetAndMetadata(0, "x" * 5000)})
        assert isinstance(failures(caught)[0], ConfigError)
        with pytest.raises(ExceptionGroup):
            log.admin.alter_consumer_group_offsets("g", {tp(1): 0, tp(): 2})
        assert offsets(log) == {tp(): 2}

    def test_offsets_of_a_group_with_members_are_not_altered(self, log: StreamLog) -> None:
        """They are the members' own."""
        fill(log, 3)
        with join(log) as member:
            read(member, count=3)
            member.commit()
            with pytest.raises(ExceptionGroup) as caught:
                log.admin.alter_consumer_group_offsets("g", {tp(): 0})
            (error,) = failures(caught)
            assert isinstance(error, GroupNotEmptyError)
            assert error.group_id == "g"
        assert offsets(log) == {tp(): 3}

    def test_offsets_are_deleted(self, log: StreamLog) -> None:
        """Where something was committed; the others stay."""
        fill(log, 4, partitions=2)
        commit(log, 1)
        commit(log, 2, partition=1)
        log.admin.delete_consumer_group_offsets("g", [tp(1)])
        assert offsets(log) == {tp(): 1}
        log.admin.delete_consumer_group_offsets("g", [tp(1)])
        assert offsets(log) == {tp(): 1}
        commit(log, 1, partition=1)
        assert offsets(log) == {tp(): 1, tp(1): 1}
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_group_offsets("none", [tp()])
        assert isinstance(failures(caught)[0], UnknownGroupError)
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_group_offsets("g", [tp(0, "missing"), tp(2), tp(1)])
        found = [(type(error), error.topic, error.partition) for error in failures(caught)]
        assert found == [(UnknownTopicError, "missing", 0), (UnknownPartitionError, "events", 2)]
        assert offsets(log) == {tp(): 1}

    @pytest.mark.parametrize("by_pattern", [False, True])
    def test_offsets_that_members_read_are_not_deleted(self, log: StreamLog, by_pattern: bool) -> None:  # noqa: FBT001
        """Those of topics that nobody subscribes to any more are."""
        fill(log, 2)
        fill(log, 2, topic="other")
        log.admin.alter_consumer_group_offsets("g", {tp(): 1, tp(0, "other"): 1})
        with log.consumer(group_id="g", enable_auto_commit=False) as consumer:
            if by_pattern:
                consumer.subscribe(pattern="event.")
            else:
                consumer.subscribe(["events"])
            assert values(take(consumer, 1)) == [b"1"]
            with pytest.raises(ExceptionGroup) as caught:
                log.admin.delete_consumer_group_offsets("g", [tp(), tp(0, "other")])
            (error,) = failures(caught)
            assert isinstance(error, GroupNotEmptyError)
            assert (error.group_id, error.topic, error.partition) == ("g", "events", 0)  # type: ignore[attr-defined]
            assert offsets(log) == {tp(): 1}
            consumer.commit()
        assert offsets(log) == {tp(): 2}

    # --- members

    @pytest.mark.parametrize("assignor", ["uniform", "range"])
    def test_others_take_over_from_a_static_member_that_is_taken_out(self, log: StreamLog, assignor: str) -> None:
        """At once, and not only after its session timed out."""
        log.create_topic("events", partitions=4)
        with join(log, assignor=assignor) as stays:
            goes = join(log, assignor=assignor, group_instance_id="one", session_timeout_ms=3_600_000)
            stable(log, stays, goes, total=4)
            goes.close()
            log.admin.remove_members_from_consumer_group("g", ["one"])
            stable(log, stays, total=4)
            (member,) = log.admin.describe_consumer_groups("g")["g"].members
            assert member.group_instance_id is None

    def test_live_member_that_is_taken_out_joins_again(self, log: StreamLog) -> None:
        """It is told that it lost what it read, and what it does not commit is read again."""
        fill(log, 6, partitions=2)
        lost: list[Any] = []
        with join(log, on_lost=lambda _, tps: lost.extend(tps), enable_auto_commit=False) as member:
            read(member, count=6)
            before = member.group_metadata().member_id
            log.admin.remove_members_from_consumer_group("g")
            assert state(log) == "Empty"
            seen = drive(member, until=lambda: bool(lost) and is_even((member,), 2))
            assert {record.value for record in seen} <= {b"%d" % number for number in range(6)}
            assert sorted(lost) == [tp(0), tp(1)]
            assert member.group_metadata().member_id not in ("", before)

    def test_callable_assignor_shares_out_what_a_removed_member_had(self, log: StreamLog) -> None:
        """The members' own, which the admin does not have."""
        log.create_topic("events", partitions=3)
        calls: list[int] = []

        def everything_to_the_first(members: Any, topics: Any) -> Any:
            calls.append(len(members))
            shares: dict[str, list[Any]] = {member.member_id: [] for member in members}
            first = min(shares)
            shares[first] = [tp(n, name) for name, count in topics.items() for n in range(count)]
            return shares

        with join(log, assignor=everything_to_the_first) as one:
            two = join(log, assignor=everything_to_the_first, group_instance_id="two", session_timeout_ms=3_600_000)
            two.close()
            log.admin.remove_members_from_consumer_group("g", "two")
            drive(one, until=lambda: is_even((one,), 3) and calls[-1] == 1)

    def test_unknown_members_come_together(self, log: StreamLog) -> None:
        """The others are taken out."""
        log.create_topic("events")
        join(log, group_instance_id="one").close()
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.remove_members_from_consumer_group("g", ["x", "one", "y"])
        errors = failures(caught)
        assert [(type(error), error.group_instance_id) for error in errors] == [(ConfigError, "x"), (ConfigError, "y")]
        assert state(log) == "Empty"
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.remove_members_from_consumer_group("none")
        (error,) = failures(caught)
        assert isinstance(error, UnknownGroupError)
        assert error.group_id == "none"

    # --- transactions

    def test_transactional_ids_are_listed_and_described(self, log: StreamLog) -> None:
        """Once they were used, whatever their text is."""
        log.create_topic("events")
        assert log.admin.list_transactions() == []
        for transactional_id in ("Größe/1", "a b", "a b"):
            with log.producer(transactional_id=transactional_id) as producer, producer.transaction():
                producer.send("events", b"x")
        assert log.admin.list_transactions() == [("Größe/1", "Empty"), ("a b", "Empty")]
        assert log.admin.list_transactions(states="Empty") == [("Größe/1", "Empty"), ("a b", "Empty")]
        assert log.admin.list_transactions(states=["PrepareCommit"]) == []
        described = log.admin.describe_transactions(["a b", "Größe/1"])
        assert described["a b"].state == "Empty"
        assert described["a b"].producer_epoch > described["Größe/1"].producer_epoch > 0
        assert described["a b"].holder == ""
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.describe_transactions(["never", "a b"])
        (error,) = failures(caught)
        assert isinstance(error, ConfigError)
        assert error.transactional_id == "never"  # type: ignore[attr-defined]

    def test_fenced_producers_cannot_commit(self, log: StreamLog) -> None:
        """Nothing of their transactions is ever seen; a new one works."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as producer:
            producer.begin_transaction()
            producer.send("events", b"old")
            epochs = log.admin.fence_producers(["t", "never used"])
            assert set(epochs) == {"t", "never used"}
            assert log.admin.describe_transactions("t")["t"].producer_epoch == epochs["t"]
            with pytest.raises(FencedError):
                producer.commit_transaction()
        with log.producer(transactional_id="t") as producer, producer.transaction():
            producer.send("events", b"new")
        assert values(log.topic("events").read()) == [b"new"]
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.fence_producers(["", "t"])
        (error,) = failures(caught)
        assert isinstance(error, ConfigError)

    def test_no_transaction_hangs(self, log: StreamLog) -> None:
        """So none is there to be aborted: what is open holds up no reader."""
        fill(log, 1)
        with log.producer(transactional_id="t") as producer:
            producer.begin_transaction()
            producer.send("events", b"open")
            start = monotonic()
            assert values(log.topic("events").read()) == [b"0"]
            assert monotonic() - start < PATIENCE
            with pytest.raises(NotSupportedError, match="fence_producers"):
                log.admin.abort_transaction("t")
            producer.abort_transaction()
