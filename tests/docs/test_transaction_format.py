"""`docs/reference/format.md` is enough to read the journal of transactions, and to tell which end rules."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.coordination.journal import Entry, OffsetChange, Participant
from pystreamlog.coordination.names import encoded_id
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.storage.control import Published
from tests.docs.test_format import PAGE, PageReader, is_checked, table

SLOT = "<QqQqqQqqqIIqQ"


def fields(marker: str) -> tuple[str, ...]:
    """The fields of an array, in the page's order."""
    return tuple(row["field"] for row in table(f"journal: {marker}"))


@pytest.mark.parametrize(
    ("marker", "contents"),
    [("entry", Entry), ("participant", Participant), ("offset change", OffsetChange), ("committed", Committed)],
)
def test_fields_of_the_journal_are_as_the_page_says(marker, contents):
    """The page lists the fields in the order in which they are written."""
    assert fields(marker) == contents.__struct_fields__


def test_slot_in_the_journal_is_the_published_one():
    """All its fields but the checksum."""
    names = tuple(row["field"] for row in table("struct: published-slot"))
    assert names[:-1] == Published.__struct_fields__
    assert names[-1] == "checksum"


# --- a reader written from the page alone -----------------------------------------------------------------------------


class JournalReader(PageReader):
    """Reads `transactions/journal` by the page: a partition like others, but for where it lies and its topic id."""

    def __init__(self, log: Path) -> None:
        self.log_id = bytes.fromhex(json.loads((log / "log.json").read_bytes())["id"])
        self.topic_id, self.partition = b"pystreamlog:txns", 0
        self.folder = log / "transactions" / "journal"
        self.batches = self.seals = 0

    def entries(self) -> dict[int, dict]:
        """The published entries, by offset."""
        found = {}
        for offset, _, key, value, headers in self.read():
            assert (key, headers) == (None, ())
            entry = dict(zip(fields("entry"), msgspec.msgpack.decode(value), strict=True))
            assert entry["version"] == 1
            entry["participants"] = [
                dict(zip(fields("participant"), part, strict=True)) for part in entry["participants"]
            ]
            entry["offsets"] = [dict(zip(fields("offset change"), change, strict=True)) for change in entry["offsets"]]
            found[offset] = entry
        return found


class RulingReader(PageReader):
    """Reads one partition, and asks the journal where the slot names a transaction."""

    def __init__(self, log: Path, topic: str, partition: int) -> None:
        super().__init__(log, topic, partition)
        self.log = log

    def published(self) -> tuple:
        """Step 3, with "Who rules"."""
        end = super().published()
        if end[11] == -1:
            return end
        entry = JournalReader(self.log).entries().get(end[11])
        if entry is None or entry["nonce"] != end[12]:
            return end
        key = self.topic_id, self.partition
        new = [part["new"] for part in entry["participants"] if (part["topic_id"], part["partition"]) == key]
        return (*new[0], 0) if new else end


def publish(log: Path, topic: str, slot: tuple) -> None:
    """Overwrite the slot that does not rule, as the page says."""
    raw = struct.pack(SLOT, *slot)
    with (log / "topics" / topic / "0" / "control").open("r+b") as control:
        control.seek(256 + slot[0] % 2 * 256)
        control.write(raw + struct.pack("<Q", xxh3_64_intdigest(raw)))


@pytest.fixture
def committed(tmp_path):
    """A log with three commits: two topics, two topics and offsets, offsets alone."""
    path = tmp_path / "log"
    with pystreamlog.open(path) as log:
        log.create_topic("orders")
        log.create_topic("invoices")
        log.topic("orders").append(b"before")
        with (
            log.producer(transactional_id="Größe") as producer,
            log.consumer("orders", group_id="g", auto_offset_reset="earliest", enable_auto_commit=False) as consumer,
        ):
            with producer.transaction():
                producer.send("orders", b"one")
                producer.send("invoices", b"one")
            with producer.transaction(consumer=consumer):
                for record in consumer.poll(1.0):
                    producer.send("invoices", b"of " + record.value)
                producer.send("orders", b"two")
            producer.begin_transaction()
            producer.send_offsets_to_transaction(
                {TopicPartition("orders", 0): pystreamlog.OffsetAndMetadata(3, "by hand")}, consumer.group_metadata()
            )
            producer.commit_transaction()
        with log.producer() as producer, producer.transaction():  # one batch: needs no entry
            producer.send("orders", b"alone")
    return path


def records(path: Path, topic: str) -> list[bytes | None]:
    """What the library reads."""
    with pystreamlog.open(path, read_only=True) as log:
        return [record.value for record in log.topic(topic).read()]


def test_reader_written_from_the_page_reads_every_entry(committed):
    """Nonces, ends and offsets of each commit, in their order."""
    entries = JournalReader(committed).entries()
    assert list(entries) == [0, 1, 2]
    ids = {name: PageReader(committed, name, 0).topic_id for name in ("orders", "invoices")}
    ends: dict[bytes, int] = {ids["orders"]: 1, ids["invoices"]: 0}
    for entry in list(entries.values())[:2]:
        keys = [(part["topic_id"], part["partition"]) for part in entry["participants"]]
        assert keys == sorted((topic_id, 0) for topic_id in ids.values())
        for part in entry["participants"]:
            assert ids[part["topic"]] == part["topic_id"]
            assert (part["old"][4], part["old"][11:]) == (ends[part["topic_id"]], [-1, 0])
            assert part["new"][10] & 4
            ends[part["topic_id"]] = part["new"][4]
    assert ends == {ids["orders"]: 3, ids["invoices"]: 3}
    assert entries[2]["participants"] == []
    first, second = (entries[number]["offsets"] for number in (1, 2))
    assert [(change["group_id"], change["topic_id"], change["partition"]) for change in first + second] == [
        ("g", ids["orders"], 0)
    ] * 2
    assert (first[0]["old"][0], first[0]["new"][0]) == (0, 2)
    assert (second[0]["old"], second[0]["new"][0]) == (first[0]["new"], 3)
    assert second[0]["new"][fields("committed").index("metadata")] == "by hand"
    assert second[0]["sequence"] > first[0]["sequence"]


def test_batches_have_the_nonce_of_their_entry(committed):
    """And those of a transaction of one batch have none."""
    entries = JournalReader(committed).entries()
    data = (committed / "topics" / "orders" / "0" / f"{0:020d}.log").read_bytes()
    position, nonces = 120, []
    while data[position : position + 4] == b"PSLB":
        nonces += struct.unpack_from("<Q", data, position + 104)
        position += struct.unpack_from("<I", data, position + 8)[0]
    assert nonces == [0, entries[0]["nonce"], entries[1]["nonce"], 0]


def test_end_of_a_named_transaction_is_as_the_page_says(committed):
    """A slot that names an entry: the new end rules; with another nonce the old one, for the page and the library."""
    entries = JournalReader(committed).entries()
    part = next(part for part in entries[1]["participants"] if part["topic"] == "invoices")
    sequence, whole = PageReader(committed, "invoices", 0).published()[0], records(committed, "invoices")
    for step, nonce in enumerate((entries[1]["nonce"], entries[1]["nonce"] ^ 1), 1):
        publish(committed, "invoices", (sequence + step, *part["old"][1:11], 1, nonce))
        seen = [record[3] for record in RulingReader(committed, "invoices", 0).read()]
        assert seen == records(committed, "invoices")
        assert seen == (whole if step == 1 else whole[:1])


def test_writer_publishes_what_rules(committed):
    """Whoever takes the lock next writes the ruling end down, and goes on behind it."""
    entries = JournalReader(committed).entries()
    part = next(part for part in entries[1]["participants"] if part["topic"] == "invoices")
    sequence, whole = PageReader(committed, "invoices", 0).published()[0], records(committed, "invoices")
    publish(committed, "invoices", (sequence + 1, *part["old"][1:11], 1, entries[1]["nonce"]))
    with pystreamlog.open(committed) as log:
        log.topic("invoices").append(b"next")
    end = PageReader(committed, "invoices", 0).published()
    assert (end[0], end[4], end[10] & 4, end[11], end[12]) == (sequence + 3, 4, 4, -1, 0)
    assert records(committed, "invoices") == [*whole, b"next"]


def test_group_names_its_transaction_as_the_page_says(committed):
    """The slot in `control` of the group; once all is stored, it names none."""
    control = committed / "groups" / "g" / "control"
    raw = control.read_bytes()[256:280]
    assert is_checked(raw)
    assert struct.unpack("<qQ", raw[:16]) == (-1, 0)
    entries = JournalReader(committed).entries()
    named = struct.pack("<qQ", 1, entries[1]["nonce"])
    with control.open("r+b") as file:
        file.seek(256)
        file.write(named + struct.pack("<Q", xxh3_64_intdigest(named)))
    with pystreamlog.open(committed) as log, log.consumer(group_id="g") as observer:
        observer.assign([TopicPartition("orders", 0)])
        assert observer.committed()[TopicPartition("orders", 0)].offset == entries[1]["offsets"][0]["new"][0] == 2


def test_transactional_id_is_as_the_page_says(committed):
    """Where its file lies, whose it is, and which epoch its newest producer has."""
    data = (committed / "transactions" / "ids" / encoded_id("Größe")).read_bytes()
    log_id = bytes.fromhex(json.loads((committed / "log.json").read_bytes())["id"])
    assert len(data) == 2048
    assert is_checked(data[:48])
    assert struct.unpack_from("<8sII16sQ", data) == (b"PSLTXI\r\n", 1, 0, log_id, xxh3_64_intdigest("Größe".encode()))
    slots = [data[position : position + 16] for position in (256, 512)]
    assert [struct.unpack_from("<Q", slot)[0] for slot in slots if is_checked(slot)] == [0, 1]


def test_page_names_every_place_of_transactions():
    """The folder's files are in the page's tree."""
    tree = PAGE.read_text("utf-8").partition("## The directory")[2].partition("### log.json")[0]
    for name in ("transactions/", "journal/", "ids/<encoded transactional id>", "recovery.lock", "undone"):
        assert re.search(rf"^ *{re.escape(name)} ", tree, re.MULTILINE), name
