"""The contract of consumer groups: who reads which partition, as members, topics and partitions come and go."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Consumer, Record, StreamLog, TopicPartition, serde
from pystreamlog.errors import ConfigError, IllegalStateError, UnknownTopicError, WakeupError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, in_thread, take, tp, values
from pystreamlog.testing.group_driving import Notes, drive, even, join, read

__all__ = ["GroupContract"]


def places(records: list[Record[Any, Any]]) -> list[tuple[str, int, int]]:
    """Where records lie."""
    return sorted((record.topic, record.partition, record.offset) for record in records)


class GroupContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- members that come and go

    def test_one_member_reads_everything(self, log: StreamLog) -> None:
        """It joins in its first `poll`, within its time-out; before that it reads nothing."""
        fill(log, 8, partitions=4)
        with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer:
            assert consumer.assignment() == set()
            assert not consumer.group_metadata().member_id
            assert len(take(consumer, 8)) == 8
            assert consumer.assignment() == {tp(number) for number in range(4)}

    def test_second_member_takes_over_its_share(self, log: StreamLog) -> None:
        """Together they read everything once, what was read before the second came included."""
        fill(log, 40, partitions=4)
        with join(log, max_poll_records=3) as first, join(log, max_poll_records=3) as second:
            seen = even(first, second, total=4)
            seen += read(first, second, count=40 - len(seen))
            fill(log, 40, partitions=4, first=40)
            seen += read(first, second, count=40)
        assert places(seen) == [("events", part, offset) for part in range(4) for offset in range(20)]

    def test_each_reads_its_own(self, log: StreamLog) -> None:
        """Records come from the partitions in `assignment`, and no others."""
        log.create_topic("events", partitions=4)
        with join(log) as first, join(log) as second:
            even(first, second, total=4)
            fill(log, 40, partitions=4)
            for member in (first, second):
                seen = read(member, count=20)
                assert {tp(record.partition) for record in seen} == member.assignment()

    def test_leaving_member_hands_over(self, log: StreamLog) -> None:
        """To all that are left; they go on behind what it had read."""
        fill(log, 30, partitions=6)
        with join(log) as first, join(log) as second:
            third = join(log)
            seen = even(first, second, third, total=6)
            seen += read(first, second, third, count=30 - len(seen))
            third.poll(0)
            third.close()
            assert not even(first, second, total=6)
            fill(log, 30, partitions=6, first=30)
            assert len(read(first, second, count=30)) == 30

    def test_member_that_waits_is_woken_by_a_change(self, log: StreamLog) -> None:
        """A `poll` without a time-out gives up what it must, and takes what becomes free."""
        log.create_topic("events", partitions=2)
        notes = Notes()
        with join(log, **notes.callbacks()) as waiting:
            thread = threading.Thread(target=waiting.poll, args=(None,))
            thread.start()
            second = join(log)
            even_at = monotonic() + PATIENCE
            while not second.assignment() and monotonic() < even_at:
                second.poll(0.01)
            assert [what for what, _ in notes.told] == ["assign", "revoke"]
            (mine,) = second.assignment()
            second.close()
            while len(notes.told) < 3 and monotonic() < even_at:
                thread.join(0.001)
            assert notes.told[2] == ("assign", [mine])
            fill(log, 1, partitions=2)
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def test_nobody_stops_reading_what_it_keeps(self, log: StreamLog) -> None:
        """Between the polls of a rebalance, and though the newcomer does not poll again: kept positions stay."""
        notes = Notes()
        fill(log, 4, partitions=4)
        with join(log, **notes.callbacks()) as first:
            read(first, count=4)
            second = join(log)
            for number in range(1, 20):
                fill(log, 4, partitions=4, first=4 * number)
                records = take(first, 2)
                assert {tp(record.partition) for record in records} == first.assignment()
                assert records[0].offset == records[1].offset == number
            assert len(first.assignment()) == 2
            (_, added), (what, revoked) = notes.told
            assert what == "revoke"
            assert set(added) - set(revoked) == first.assignment()
            assert second.assignment() == set()
            assert {record.offset for record in read(second, count=38)} == set(range(1, 20))
            assert second.assignment() == set(revoked)
            second.close()

    def test_more_members_than_partitions(self, log: StreamLog) -> None:
        """Those without one wait, and take over from those that leave."""
        fill(log, 20, partitions=2)
        with ExitStack() as stack:
            members = [stack.enter_context(join(log)) for _ in range(5)]
            seen = drive(*members, until=lambda: sum(len(member.assignment()) == 1 for member in members) == 2)
            seen += read(*members, count=20 - len(seen))
            for count in (4, 3, 2, 1):
                members.sort(key=lambda member: len(member.assignment()))
                members.pop().close()
                expected = [1] * min(2, count) if count > 1 else [2]
                fill(log, 2, partitions=2)

                def is_shared(expected: list[int] = expected) -> bool:
                    sizes = sorted(filter(None, (len(member.assignment()) for member in members)))
                    return sizes == expected

                came = drive(*members, until=is_shared)
                seen += came + read(*members, count=2 - len(came))
        assert len(places(seen)) == len(set(places(seen))) == 28

    def test_groups_read_independently(self, log: StreamLog) -> None:
        """Each group gets everything, and commits for itself."""
        fill(log, 10, partitions=2)
        with join(log, group_id="one") as one, join(log, group_id="two") as two:
            assert len(read(one, count=10)) == len(read(two, count=10)) == 10
            one.commit()
            assert {committed.offset for committed in one.committed().values() if committed} == {5}
            assert {committed.offset for committed in two.committed().values() if committed} == {0}
            assert one.assignment() == two.assignment()

    def test_members_come_and_go_in_threads(self, log: StreamLog) -> None:
        """While records arrive: each is read once, as nobody crashes."""
        log.create_topic("events", partitions=6)
        total = 3000
        seen: list[tuple[int, int]] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run(lives: int) -> None:
            try:
                for _ in range(lives):
                    with log.consumer(
                        "events", group_id="g", auto_offset_reset="earliest", max_poll_records=20
                    ) as member:
                        for _ in range(15):
                            records = member.poll(0.01)
                            seen.extend(zip(records.partitions, records.offsets, strict=True))
                with log.consumer("events", group_id="g", auto_offset_reset="earliest") as member:
                    while not done.is_set():
                        records = member.poll(0.01)
                        seen.extend(zip(records.partitions, records.offsets, strict=True))
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        threads = [threading.Thread(target=run, args=(lives,)) for lives in (0, 1, 2, 3)]
        for thread in threads:
            thread.start()
        for first in range(0, total, 100):
            fill(log, 100, partitions=6, first=first)
        deadline = monotonic() + PATIENCE
        while len(seen) < total and not errors and monotonic() < deadline:
            threads[0].join(0.01)
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert errors == []
        assert set(seen) == {(part, offset) for part in range(6) for offset in range(total // 6)}
        assert [place for place, times in Counter(seen).items() if times > 1] == []

    # --- topics and partitions that come and go

    def test_added_partitions_are_shared_out(self, log: StreamLog) -> None:
        """And what is in them is read, though they were written before anybody looked."""
        topic = log.create_topic("events", partitions=2)
        with join(log) as first, join(log) as second:
            even(first, second, total=2)
            kept = first.assignment()
            topic.add_partitions(6)
            fill(log, 12, partitions=6)
            seen = even(first, second, total=6)
            seen += read(first, second, count=12 - len(seen))
            assert kept <= first.assignment()
            assert places(seen) == [("events", part, offset) for part in range(6) for offset in range(2)]

    def test_topics_made_for_a_pattern_are_shared_out(self, log: StreamLog) -> None:
        """Others, and internal ones, are not; the pattern needs no topic at first."""
        with ExitStack() as stack:
            members = []
            for _ in range(2):
                member = stack.enter_context(log.consumer(group_id="g", auto_offset_reset="earliest"))
                member.subscribe(pattern="orders.*|__.*")
                assert not member.poll(0)
                members.append(member)
            for name in ("orders-eu", "other", "__orders", "orders-us"):
                fill(log, 4, topic=name, partitions=2)
            seen = even(*members, total=4)
            seen += read(*members, count=8 - len(seen))
            assert {record.topic for record in seen} == {"orders-eu", "orders-us"}

    def test_topic_made_for_a_pattern_is_read_from_its_start(self, log: StreamLog) -> None:
        """Also with "latest": it came after the subscription, so all of it is new. As without a group."""
        with log.consumer(group_id="g") as consumer:
            consumer.subscribe(pattern="orders.*")
            assert not consumer.poll(0)
            fill(log, 4, topic="orders", partitions=2)
            seen = drive(consumer, until=lambda: len(consumer.assignment()) == 2)
            fill(log, 2, topic="orders", partitions=2, first=4)
            while b"5" not in values(seen):
                seen += consumer.poll(PATIENCE)
            assert len(seen) == 6

    def test_deleted_topic_goes_from_everybody(self, log: StreamLog) -> None:
        """The others are kept, without an error."""
        fill(log, 4, topic="doomed", partitions=4)
        fill(log, 4, topic="kept", partitions=4)
        with join(log, "doomed", "kept") as first, join(log, "doomed", "kept") as second:
            seen = even(first, second, total=8)
            seen += read(first, second, count=8 - len(seen))
            log.delete_topic("doomed")
            even(first, second, total=4)
            fill(log, 4, topic="kept", partitions=4)
            assert {record.topic for record in read(first, second, count=4)} == {"kept"}

    @pytest.mark.parametrize("between", [True, False])
    def test_topic_made_again_inherits_no_offsets(self, log: StreamLog, *, between: bool) -> None:
        """Whether members saw that it was gone or not; its first record is read."""
        fill(log, 10, partitions=2)
        with join(log) as first, join(log) as second:
            seen = even(first, second, total=2)
            read(first, second, count=10 - len(seen))
            for member in (first, second):
                member.commit()
            log.delete_topic("events")
            if between:
                drive(first, second, until=lambda: not first.assignment() | second.assignment())
            log.create_topic("events", partitions=2)
            fill(log, 4, first=10, partitions=2)
            assert {record.value for record in read(first, second, count=4)} == {b"10", b"11", b"12", b"13"}
            even(first, second, total=2)

    def test_topic_made_again_while_nobody_was_there(self, log: StreamLog) -> None:
        """Its offsets are not those of its namesake."""
        fill(log, 5)
        with join(log) as consumer:
            take(consumer, 5)
        log.delete_topic("events")
        fill(log, 7)
        with join(log) as consumer:
            assert consumer.position(tp()) == 0
            assert len(take(consumer, 7)) == 7

    def test_other_topics_are_subscribed_while_a_member(self, log: StreamLog) -> None:
        """At the next `poll`; what is kept stays, what goes is read by others who want it."""
        fill(log, 4, topic="a", partitions=4)
        fill(log, 4, topic="b", partitions=4)
        with join(log, "a") as first, join(log, "a") as second:
            seen = even(first, second, total=4)
            seen += read(first, second, count=4 - len(seen))
            first.subscribe(["b"])
            seen += drive(first, second, until=lambda: len(first.assignment()) == len(second.assignment()) == 4)
            seen += read(first, second, count=8 - len(seen))
            assert {part.topic for part in first.assignment()} == {"b"}
            assert {part.topic for part in second.assignment()} == {"a"}
            first.subscribe(pattern="a|b")
            seen += even(first, second, total=8)
            assert {part.topic for part in second.assignment()} == {"a"}
            with pytest.raises(UnknownTopicError):
                first.subscribe(["a", "unknown"])
            even(first, second, total=8)
            assert not read(first, second, count=0)

    def test_members_want_different_topics(self, log: StreamLog) -> None:
        """Each reads only what it subscribed to, by its own serdes."""
        for name in ("a", "b", "both"):
            fill(log, 4, topic=name, partitions=2)
        with log.consumer(group_id="g", auto_offset_reset="earliest") as first, join(log, "b", "both") as second:
            first.subscribe([log.topic("a", value_serde=serde.json), "both"])
            seen: list[Record[Any, Any]] = list(even(first, second, total=6))
            seen += read(first, second, count=12 - len(seen))
            assert {part.topic for part in first.assignment()} == {"a", "both"}
            assert {part.topic for part in second.assignment()} == {"b", "both"}
            assert {record.value for record in seen if record.topic == "a"} == {0, 1, 2, 3}
            assert len(set(places(seen))) == 12

    # --- leaving and coming back

    def test_unsubscribed_member_has_left(self, log: StreamLog) -> None:
        """The others take over at once, behind what it moved past; it may come back."""
        fill(log, 8, partitions=4)
        with join(log) as first, join(log) as second:
            seen = even(first, second, total=4)
            seen += read(first, second, count=8 - len(seen))
            second.unsubscribe()
            assert second.assignment() == set()
            assert not second.group_metadata().member_id
            with pytest.raises(IllegalStateError):
                second.poll(0)
            assert not drive(first, until=lambda: len(first.assignment()) == 4)
            second.subscribe("events")
            assert not even(first, second, total=4)
            second.subscribe([])
            assert not drive(first, until=lambda: len(first.assignment()) == 4)

    def test_subscribe_and_assign_exclude_each_other(self, log: StreamLog) -> None:
        """Until `unsubscribe`, before the first `poll` and after it; nothing changes."""
        log.create_topic("events", partitions=2)
        with log.consumer("events", group_id="g") as consumer:
            for _ in range(2):
                with pytest.raises(IllegalStateError):
                    consumer.assign([tp()])
                drive(consumer, until=lambda: len(consumer.assignment()) == 2)
            consumer.unsubscribe()
            consumer.assign([tp(1)])
            assert consumer.assignment() == {tp(1)}
            for arguments in ({"topics": "events"}, {"pattern": "e.*"}):
                with pytest.raises(IllegalStateError):
                    consumer.subscribe(**arguments)  # type: ignore[arg-type]  # a dict of both
            assert consumer.assignment() == {tp(1)}
            consumer.unsubscribe()
            consumer.subscribe("events")
            drive(consumer, until=lambda: len(consumer.assignment()) == 2)

    def test_assigned_consumer_is_no_member(self, log: StreamLog) -> None:
        """It reads beside the group what it was told to, from the committed offset on, and takes nothing away."""
        fill(log, 10)
        with join(log) as member, log.consumer(group_id="g", auto_offset_reset="earliest") as other:
            take(member, 10)
            member.commit({tp(): 4})
            other.assign([tp()])
            assert len(take(other, 6)) == 6
            assert not other.group_metadata().member_id
            assert member.assignment() == {tp()}
            other.close(commit=False)

    # --- who a member is

    def test_group_metadata(self, log: StreamLog) -> None:
        """Outside of the group -1 and no id; the generation rises with each change of members."""
        log.create_topic("events", partitions=2)
        with log.consumer("events", group_id="g") as consumer:
            assert consumer.group_metadata() == ("g", -1, "", None)
            drive(consumer, until=lambda: bool(consumer.assignment()))
            first = consumer.group_metadata()
            assert (first.group_id, first.group_instance_id) == ("g", None)
            assert first.generation_id >= 0
            with join(log, group_instance_id="fixed") as second:
                other = second.group_metadata()
                assert other.group_instance_id == "fixed"
                assert other.member_id != first.member_id
                assert other.generation_id > first.generation_id
            consumer.unsubscribe()
            assert consumer.group_metadata() == ("g", -1, "", None)
        with log.consumer("events") as lone, pytest.raises(IllegalStateError):
            lone.group_metadata()

    @pytest.mark.parametrize(
        "group_id",
        [
            "billing",
            "Ünïcode ☃ 💥",
            "../x",
            ".",
            "..",
            "/etc/passwd",
            "x" * 10_000,
            "☃" * 10_000,
            " ",
            "a b\n\t",
            "\0",
            "%",
            "~new-group",
            "CON",
            "x.",
        ],
        ids=lambda text: ascii(text)[:12],
    )
    def test_group_id_is_any_text(self, log: StreamLog, group_id: str) -> None:
        """It is no file name, and no other group's."""
        fill(log, 5)
        with join(log, group_id=group_id) as consumer:
            take(consumer, 5)
        with log.consumer("events", group_id=group_id) as consumer:
            assert consumer.group_metadata().group_id == group_id
            assert consumer.committed(tp()) == {tp(): (5, "")}
        assert log.topics() == ["events"]

    def test_group_ids_are_told_apart(self, log: StreamLog) -> None:
        """By case, by spaces, by how they are composed, and by the end of long ones."""
        fill(log, 1)
        ids = ["A", "a", "a ", " a", "é", "e\u0301", "%41", "%61", "x" * 300 + "1", "x" * 300 + "2"]
        for group_id in ids:
            with join(log, group_id=group_id) as consumer:
                assert consumer.committed() == {tp(): (0, "")}
                take(consumer, 1)

    @pytest.mark.parametrize("group_id", ["", 5, b"g", "\ud800", "x" * 40_000, True, ["g"]], ids=lambda x: ascii(x)[:9])
    def test_bad_group_id_is_refused(self, log: StreamLog, group_id: Any) -> None:
        """At construction."""
        with pytest.raises(ConfigError, match="group_id"):
            log.consumer(group_id=group_id)

    @pytest.mark.parametrize(
        "config",
        [
            {"group_instance_id": ""},
            {"group_instance_id": 5},
            {"group_instance_id": "\ud800"},
            {"assignor": "sticky"},
            {"assignor": 5},
            {"enable_auto_commit": "yes"},
            {"auto_commit_interval_ms": -1},
            {"max_poll_interval_ms": 0},
            {"session_timeout_ms": 0},
            {"session_timeout_ms": 1.5},
            {"on_lost": "x"},
        ],
        ids=ascii,
    )
    def test_bad_setting_is_refused(self, log: StreamLog, config: dict[str, Any]) -> None:
        """At construction; the message says which."""
        (name,) = config
        with pytest.raises(ConfigError, match=name):
            log.consumer(group_id="g", **config)

    def test_instance_needs_a_group(self, log: StreamLog) -> None:
        """Nobody else would know of it."""
        with pytest.raises(ConfigError, match="group_id"):
            log.consumer(group_instance_id="fixed")

    # --- one user at a time

    def test_wakeup_during_a_rebalance(self, log: StreamLog) -> None:
        """Ends the `poll` or the next; the member goes on where it was."""
        fill(log, 4, partitions=2)

        def wake(consumer: Consumer[Any, Any], _: list[TopicPartition]) -> None:
            consumer.wakeup()

        with join(log) as first, log.consumer("events", group_id="g", on_assign=wake, on_revoke=wake) as second:
            seen: list[Any] = []
            woken = 0
            deadline = monotonic() + PATIENCE
            while not second.assignment() or not woken:
                assert monotonic() < deadline
                seen += first.poll(0.002)
                try:
                    seen += second.poll(0.002)
                except WakeupError:
                    woken += 1
            assert woken == 1
            seen += read(first, second, count=4 - len(seen))
            assert len(set(places(seen))) == 4

    def test_second_thread_is_refused(self, log: StreamLog) -> None:
        """While a member is in a callback, as at any other time; it stays a member."""
        log.create_topic("events")
        calls: list[Callable[[], object]] = []

        def on_assign(consumer: Consumer[Any, Any], _: list[TopicPartition]) -> None:
            calls.extend(
                [
                    lambda: consumer.poll(0),
                    consumer.commit,
                    consumer.committed,
                    consumer.unsubscribe,
                    lambda: consumer.subscribe("events"),
                    consumer.close,
                ]
            )
            for call in calls:
                with pytest.raises(IllegalStateError, match="another thread"):
                    in_thread(call)
            consumer.wakeup()

        with log.consumer("events", group_id="g", on_assign=on_assign) as consumer:
            with pytest.raises(WakeupError):
                drive(consumer, until=lambda: False)
            assert len(calls) == 6
            fill(log, 1)
            assert len(take(consumer, 1)) == 1
