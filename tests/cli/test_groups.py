"""`pystreamlog groups`: how far groups came and who is in them, and what a group with members refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog import TopicPartition


@pytest.fixture
def live(filled):
    """A group with a member that has read three records of each partition."""
    with (
        pystreamlog.open(filled) as log,
        log.consumer("orders", group_id="live", auto_offset_reset="earliest", enable_auto_commit=False) as consumer,
    ):
        while not consumer.assignment():
            consumer.poll(1.0)
        consumer.commit({TopicPartition("orders", number): 3 for number in range(2)})
        yield consumer


def test_groups_are_listed_by_state(on, live):
    """All of them, or those in some states, whatever the case."""
    assert on("groups", "list").rows == [["billing", "Empty"], ["live", "Stable"]]
    assert on("groups", "list", "--state", "stable,reconciling", "--json").json == [
        {"group_id": "live", "state": "Stable"}
    ]
    assert on("groups", "list", "--state", "dead").status == 2


def test_lag_and_members_are_described(on, live):
    """Kafka's columns: what was committed, the end, the lag, and the member with its host and process."""
    done = on("groups", "describe", "--all-groups")
    heads = "GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID"
    assert done.lines[0].split() == heads.split()
    member = live.group_metadata().member_id
    assert done.rows[0] == ["billing", "orders", "0", "4", "10", "6", "-", "-", "-"]
    assert done.rows[2][:7] == ["live", "orders", "0", "3", "10", "7", member]
    assert done.rows[2][8].endswith(f":{os.getpid()}")
    assert "'billing' has no active members" in done.err
    offsets = on("groups", "describe", "live", "--offsets", "--verbose", "--json").json
    assert [(row["partition"], row["lag"], row["pid"]) for row in offsets] == [(0, 7, os.getpid()), (1, 7, os.getpid())]


def test_members_and_states_are_described(on, live):
    """Who is in a group with which partitions, and how it stands."""
    (member,) = on("groups", "describe", "--group", "live", "--members", "--verbose", "--json").json
    assert member["pid"] == os.getpid()
    assert member["assignment"] == {"orders": [0, 1]}
    assert "orders(0,1)" in on("groups", "describe", "live", "--members", "--verbose").out
    (state,) = on("groups", "describe", "live", "--state", "--json").json
    assert (state["state"], state["members"]) == ("Stable", 1)
    assert on("groups", "describe", "live", "--state", "--members").status == 2
    assert on("groups", "describe").status == 2


def test_offset_of_a_topic_that_is_gone(on, filled):
    """A group that read a topic that was deleted can still be described."""
    with pystreamlog.open(filled) as log:
        log.delete_topic("orders")
    done = on("groups", "describe", "billing")
    assert (done.status, done.out) == (0, "")


def test_group_with_members_is_left_alone(on, live):
    """It is neither deleted nor reset, its offsets stay, and its id is named."""
    refused = [
        ("delete", "live", "--execute"),
        ("delete-offsets", "--group", "live", "--topic", "orders", "--execute"),
        ("reset-offsets", "--group", "live", "--all-topics", "--to-latest"),
        ("reset-offsets", "--group", "live", "--all-topics", "--to-latest", "--execute"),
    ]
    for arguments in refused:
        done = on("groups", *arguments)
        assert (done.status, done.out) == (1, "")
        assert "'live'" in done.err
        assert "members" in done.err
    assert live.committed(TopicPartition("orders", 0))[TopicPartition("orders", 0)].offset == 3


def test_members_are_taken_out(on, live):
    """The group is without members then, until the member polls again."""
    done = on("groups", "remove-members", "--group", "live", "--execute")
    assert done.lines == [f"removed {live.group_metadata().member_id}"]
    assert on("groups", "list", "--state", "empty").rows[-1] == ["live", "Empty"]


def test_groups_are_deleted_but_for_those_that_fail(on):
    """What was deleted is told, and what was not."""
    assert on("groups", "delete", "billing").status == 2
    done = on("groups", "delete", "missing", "--group", "billing", "--execute")
    assert (done.status, done.lines) == (1, ["deleted group billing"])
    assert "'missing'" in done.err
    assert on("groups", "list").out == ""


def test_offsets_are_deleted_by_partition(on):
    """Those of the named partitions, and no others."""
    done = on("groups", "delete-offsets", "--group", "billing", "--topic", "orders:1", "--execute")
    assert done.rows == [["billing", "orders", "1"]]
    assert [row[2] for row in on("groups", "describe", "billing").rows] == ["0"]
    assert on("groups", "delete-offsets", "--group", "billing", "--topic", "orders:7", "--execute").status == 1


def test_damaged_group_hides_no_other(on, filled):
    """What cannot be read is told once, and the others are listed, described and counted as ever."""
    with pystreamlog.open(filled) as log:
        log.admin.alter_consumer_group_offsets("shipping", {pystreamlog.TopicPartition("orders", 0): 1})
        log.admin.alter_consumer_group_offsets("archive", {pystreamlog.TopicPartition("orders", 0): 1})
    groups = Path(filled) / "groups"
    os.truncate(groups / "shipping" / "offsets", 5)
    (groups / "archive" / "group.json").write_bytes(b"{")
    for arguments in (["groups", "list"], ["groups", "describe", "--all-groups"]):
        done = on(*arguments)
        assert done.status == 1
        assert {row[0] for row in done.rows} == {"billing"}
        assert done.err.count("shipping") == 1
        assert done.err.count("archive") == 1
    reset = on("groups", "reset-offsets", "--all-groups", "--topic", "orders", "--to-earliest", "--execute")
    assert reset.status == 1
    assert {tuple(row[:3]) for row in reset.rows} == {("billing", "orders", "0"), ("billing", "orders", "1")}


def test_lag_of_a_damaged_group_is_not_zero(on, filled):
    """Who watches is told each time that it is not known."""
    os.truncate(Path(filled) / "groups" / "billing" / "offsets", 5)
    done = on("top", "--once", "--interval", "0.1", "--json")
    assert done.json["groups"] == []
    assert any("billing" in failure for failure in done.json["failures"])


def test_group_with_damaged_offsets_can_be_deleted(on, filled):
    """What fails because of it says so, as a command."""
    os.truncate(Path(filled, "groups", "billing", "offsets"), 5)
    for arguments in (
        ["groups", "list"],
        ["groups", "describe", "billing"],
        ["groups", "reset-offsets", "billing", "--to-earliest", "--topic", "orders", "--execute"],
        ["snapshot", str(Path(filled).parent / "snapshot")],
    ):
        done = on(*arguments)
        assert done.status == 1
        assert "delete the group, with `pystreamlog groups delete`, and set its offsets anew" in done.err
    assert on("groups", "delete", "billing", "--execute").lines == ["deleted group billing"]
    assert on("groups", "list").rows == []
    assert on("verify").status == 0
