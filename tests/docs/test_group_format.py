"""`docs/reference/format.md` says what a group's folder holds, and is enough to read who belongs to the group."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

import pystreamlog
from pystreamlog.coordination import group_liveness, group_transaction, groups
from pystreamlog.coordination.group_state import GroupState, Member
from pystreamlog.coordination.names import encoded_id

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "format.md"


def first_column(marker: str) -> list[str]:
    """The first cells of the table behind a marker, without backquotes."""
    _, found, rest = PAGE.read_text("utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"the page has no <!-- {marker} -->"
    rows = rest.strip("\n").split("\n\n", 1)[0].splitlines()[2:]
    return [re.sub(r"^`([^`]*)`$", r"\1", row.strip("|").split("|")[0].strip()) for row in rows]


@pytest.mark.parametrize(
    ("marker", "contents"), [("group.json", groups._GroupFile), ("state", GroupState), ("member", Member)]
)
def test_fields_are_as_the_page_says(marker, contents):
    """The page lists the fields in the order in which they are written."""
    assert tuple(first_column(f"group: {marker}")) == contents.__struct_fields__


def test_places_are_as_the_page_says():
    """Of the locks, of the transaction, and of the table of polls."""
    places = [
        f"byte {0}",
        f"byte {group_liveness._MEMBER_BYTE} + slot",
        f"{group_transaction._TRANSACTION_POSITION}",
        f"{group_liveness._POLLS} + {group_liveness._TIME.size} x slot",
    ]
    assert first_column("group: control") == places


def page_name(group_id: str) -> str:
    """The folder's name, by the page's words alone."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789_-."
    name = "".join(chr(byte) if chr(byte) in plain else f"%{byte:02x}" for byte in group_id.encode())
    if name.startswith("."):
        name = "%2e" + name[1:]
    if len(name) > 200:
        name = name[:100] + "%%" + hashlib.sha256(group_id.encode()).hexdigest()
    return name


@pytest.mark.parametrize("group_id", ["billing", "Größe", "..", "a b/c", "x" * 200, "x" * 201, "☃" * 5000, "%"])
def test_folder_is_called_as_the_page_says(group_id):
    """Also where the id is no file name."""
    assert page_name(group_id) == encoded_id(group_id)


def page_state(data: bytes) -> list:
    """The ruling state of `members`, as plain arrays, by the page's words alone."""
    found = []
    for number, position in enumerate((0, 4194304)):
        magic, length, sequence, checksum = struct.unpack_from("<4sIQQ", data.ljust(position + 24, b"\0"), position)
        state = data[position + 24 : position + 24 + length]
        if magic == b"PSG1" and checksum == xxh3_64_intdigest(data[position : position + 16] + state):
            assert sequence % 2 == number
            found.append((sequence, state))
    return msgspec.msgpack.decode(max(found)[1])


def test_reader_written_from_the_page_sees_the_members(tmp_path):
    """Who belongs to the group, what each owns, and when each polled."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("events", partitions=4)
        with (
            log.consumer("events", group_id="Größe") as first,
            log.consumer(group_id="Größe", group_instance_id="fixed") as second,
        ):
            second.subscribe(pattern="even.*")
            while not len(first.assignment()) == len(second.assignment()) == 2:
                first.poll(0.01)
                second.poll(0.01)
            folder = tmp_path / "log" / "groups" / page_name("Größe")
            assert json.loads((folder / "group.json").read_bytes())["id"] == "Größe"
            names = first_column("group: state")
            state = dict(zip(names, page_state((folder / "members").read_bytes()), strict=True))
            members = [dict(zip(first_column("group: member"), member, strict=True)) for member in state["members"]]
            polls = (folder / "control").read_bytes()
            bells = sorted(path.name for path in (folder / "bells").iterdir())

            about = json.loads((tmp_path / "log" / "topics" / "events" / "topic.json").read_bytes())
            topic_id = bytes.fromhex(about["id"])
            assert state["topics"] == {topic_id: ["events", 4]}
            assert [member["id"] for member in members] == [c.group_metadata().member_id for c in (first, second)]
            assert [member["instance_id"] for member in members] == [None, "fixed"]
            assert [member["topics"] for member in members] == [["events"], []]
            assert members[1]["pattern"][0] == "even.*"
            assert [member["assignor"] for member in members] == ["uniform", "uniform"]
            assert bells == [str(member["slot"]) for member in members] == ["0", "1"]
            for member, consumer in zip(members, (first, second), strict=True):
                numbers = sorted(tp.partition for tp in consumer.assignment())
                assert member["owned"] == member["target"] == {topic_id: numbers}
                assert struct.unpack_from("<q", polls, 4096 + 8 * member["slot"])[0] > 0
