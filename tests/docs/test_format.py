"""`docs/reference/format.md` says what the code does, and is enough to read a log by."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from xxhash import xxh3_64_intdigest

import pystreamlog
from pystreamlog.coordination import (
    directory,
    group_transaction,
    holders,
    last_run,
    offset_layout,
    sequence_admission,
    topics,
    transactional_ids,
)
from pystreamlog.coordination.offset_store import Committed, OffsetStore
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.record import batch, partitioner
from pystreamlog.record import format as record_layout
from pystreamlog.record.compression import CODEC_NAMES
from pystreamlog.storage import control, key_index_layout, producer_state, segment
from pystreamlog.storage import format as storage_layout
from pystreamlog.storage.files import Files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "format.md"

TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i32": "i", "i64": "q"}

# Marker of a table -> the struct in the constants blocks, and the fields' names where the code names them.
STRUCTS: dict[str, tuple[struct.Struct, tuple[str, ...] | None]] = {
    "control-header": (storage_layout.CONTROL_HEADER, None),
    "published-slot": (storage_layout.PUBLISHED_SLOT, (*control.Published.__struct_fields__, "checksum")),
    "durable-slot": (storage_layout.DURABLE_SLOT, (*control.Durable.__struct_fields__, "checksum")),
    "identity-slot": (storage_layout.IDENTITY_SLOT, (*control.Identity.__struct_fields__, "checksum")),
    "segment-header": (storage_layout.SEGMENT_HEADER, segment.SegmentHeader.__struct_fields__),
    "seal": (storage_layout.SEAL, segment.Seal.__struct_fields__),
    "batch-header": (record_layout.HEADER, batch.BatchHeader.__struct_fields__),
    "index-header": (storage_layout.INDEX_HEADER, None),
    "index-entry": (storage_layout.INDEX_ENTRY, None),
    "producers-header": (storage_layout.PRODUCERS_HEADER, producer_state.Snapshot.__struct_fields__),
    "producer": (storage_layout.PRODUCER, None),
    "producer-batch": (storage_layout.PRODUCER_BATCH, None),
    "offsets-header": (offset_layout.OFFSETS_HEADER, None),
    "extent-table": (offset_layout.TABLE_SLOT, None),
    "entry-copy": (offset_layout.ENTRY_COPY, None),
    "group-transaction": (group_transaction._TRANSACTION, None),
    "id-header": (transactional_ids._HEADER, None),
    "id-slot": (transactional_ids._SLOT, None),
    "keys-header": (key_index_layout.KEYS_HEADER, None),
    "keys-state": (key_index_layout.STATE_SLOT, None),
    "keys-leaf": (key_index_layout.LEAF_HEADER, None),
    "keys-entry": (key_index_layout.KEY_ENTRY, None),
    "maintenance-run": (storage_layout.MAINTENANCE_RUN, (*last_run.LastRun.__struct_fields__, "checksum")),
    "stamp": (struct.Struct(holders._STAMP.format + "Q"), None),
}


def marked(marker: str) -> str:
    """What follows a marker on the page, up to the next blank line behind its first block."""
    _, found, rest = PAGE.read_text("utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"the page has no <!-- {marker} -->"
    return rest.strip("\n").split("\n\n", 1)[0]


def table(marker: str) -> list[dict[str, str]]:
    """The rows of the table behind a marker, by the names of its columns; backquotes are taken off."""
    lines = [line.strip().strip("|") for line in marked(marker).splitlines()]
    names, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [{name: re.sub(r"^`([^`]*)`$", r"\1", cell) for name, cell in zip(names, row, strict=True)} for row in rows]


def code_of(kind: str) -> str:
    """The struct code of a type on the page."""
    plain = TYPES.get(kind)
    if plain:
        return plain
    name, count = re.fullmatch(r"(\w+)\[(\d+)\]", kind).groups()
    return f"{count}s" if name == "bytes" else f"{int(count) * struct.calcsize('<' + TYPES[name])}s"


@pytest.mark.parametrize("marker", STRUCTS)
def test_struct_is_as_the_page_says(marker):
    """Each field has the name, position and size that the constants block gives it."""
    layout, names = STRUCTS[marker]
    rows = table(f"struct: {marker}")
    position = 0
    for row in rows:
        assert (int(row["position"]), int(row["size"])) == (position, struct.calcsize("<" + code_of(row["type"])))
        position += int(row["size"])
    assert position == layout.size
    fields = re.findall(r"\d*[a-zA-Z]", layout.format.lstrip("<"))
    expanded = [
        code for field in fields for code in ([field[-1]] * int(field[:-1] or 1) if field[-1] != "s" else [field])
    ]
    assert [code_of(row["type"]) for row in rows] == expanded
    if names is not None:
        assert tuple(row["field"] for row in rows) == names


def test_batch_header_is_its_three_parts():
    """The page has one table; the code cuts it where the work is cut."""
    parts = (record_layout.PREFIX, record_layout.PLACE, record_layout.SUFFIX, record_layout.HEADER_CHECKSUM)
    assert sum(part.size for part in parts) == record_layout.HEADER_SIZE == record_layout.HEADER.size


@pytest.mark.parametrize(
    ("marker", "module"),
    [("storage", storage_layout), ("record", record_layout), ("offsets", offset_layout), ("keys", key_index_layout)],
)
def test_constants_are_as_the_page_says(marker, module):
    """Each constant of the page has its value in the constants block."""
    for row in table(f"constants: {marker}"):
        assert getattr(module, row["constant"]) == int(row["value"]), row["constant"]


@pytest.mark.parametrize(
    ("magic", "code"),
    [
        (storage_layout.CONTROL_MAGIC, "control-header"),
        (storage_layout.SEGMENT_MAGIC, "segment-header"),
        (storage_layout.SEAL_MAGIC, "seal"),
        (storage_layout.INDEX_MAGIC, "index-header"),
        (storage_layout.PRODUCERS_MAGIC, "producers-header"),
        (offset_layout.OFFSETS_MAGIC, "offsets-header"),
        (key_index_layout.KEYS_MAGIC, "keys-header"),
        (transactional_ids._MAGIC, "id-header"),
    ],
)
def test_magic_is_as_the_page_says(magic, code):
    """The page gives the eight bytes in hexadecimal."""
    assert f"`{magic.hex(' ')}`" in table(f"struct: {code}")[0]["meaning"]


def test_columns_are_as_the_page_says():
    """Each column has its number."""
    rows = table("columns")
    assert [int(row["number"]) for row in rows] == list(range(record_layout.COLUMN_COUNT))
    for row in rows:
        if row["column"]:
            assert getattr(record_layout, row["column"]) == int(row["number"])


def test_codecs_are_as_the_page_says():
    """Each codec has its number."""
    assert {int(row["codec"]): row["name"] for row in table("codecs")} == dict(CODEC_NAMES)


@pytest.mark.parametrize(("name", "contents"), [("log.json", directory._LogFile), ("topic.json", topics._TopicFile)])
def test_json_members_are_as_the_page_says(name, contents):
    """The page lists the members, in the order they are written."""
    assert tuple(row["member"] for row in table(f"json: {name}")) == contents.__struct_fields__


def test_topic_settings_are_as_the_page_says():
    """Every setting of a topic is on the page with its default: `topic.json` leaves defaults out."""
    documented = {row["setting"]: row["default"] for row in table("settings: topic")}
    assert documented == {field.name: str(field.default) for field in attrs.fields(TopicConfig)}


def test_partitions_are_as_the_page_says():
    """The example keys go where the page says."""
    lines = marked("partitions").splitlines()[2:]
    for line in lines:
        key, xxh3, of_4, of_12, murmur2, of_4_murmur2, of_12_murmur2 = (
            cell.strip().strip("`") for cell in line.strip("|").split("|")
        )
        data = key.replace("empty", "").encode()
        assert f"{xxh3_64_intdigest(data):016x}" == xxh3
        assert (partitioner.xxhash_partition(data, 4), partitioner.xxhash_partition(data, 12)) == (
            int(of_4),
            int(of_12),
        )
        assert partitioner.murmur2(data) == int(murmur2)
        places = partitioner.murmur2_partition(data, 4), partitioner.murmur2_partition(data, 12)
        assert places == (int(of_4_murmur2), int(of_12_murmur2))


# --- the worked example -----------------------------------------------------------------------------------------------


@pytest.fixture
def example() -> bytes:
    """The bytes of the page's hexadecimal dump."""
    data = b""
    for line in marked("example: segment").splitlines()[1:-1]:
        position, digits, text = re.fullmatch(r"([0-9a-f]{8}): ((?:[0-9a-f]{2} ){1,16}) *(.*)", line).groups()
        row = bytes.fromhex(digits)
        assert int(position, 16) == len(data)
        assert text == "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        data += row
    return data


def test_example_decodes(example):
    """The library reads the records out of the page's dump."""
    header = segment.parse_segment_header(example[:120], "the page")
    parsed = batch.parse_header(example[120:312], limit=len(example) - 120)
    assert (parsed.segment_id, parsed.previous_checksum) == (header.segment_id, header.checksum)
    decoded = batch.decode(parsed, example[312:])
    assert decoded.keys(0, 2) == [b"order-7", b"order-12"]
    assert decoded.values(0, 2) == [b'{"amount": 200}', None]
    assert decoded.headers(0, 2) == [(("trace", b"7"),), ()]
    assert list(decoded.timestamps_ms(0, 2)) == [1767225600000, 1767225600001]
    assert list(decoded.offsets(0, 2)) == [0, 1]


@pytest.mark.parametrize(("marker", "start"), [("segment-header", 0), ("batch-header", 120)])
def test_example_is_annotated_field_by_field(example, marker, start):
    """Each annotation stands at its field's position, has its bytes, and says their number."""
    fields = table(f"struct: {marker}")
    annotations = table(f"annotated: {marker}")
    assert [row["field"] for row in annotations] == [row["field"] for row in fields]
    for field, row in zip(fields, annotations, strict=True):
        position, size = start + int(field["position"]), int(field["size"])
        assert (int(row["position"]), bytes.fromhex(row["bytes"])) == (position, example[position : position + size])
        number = re.match(r"-?\d+", row["value"])
        if number and field["type"] in TYPES:
            assert struct.unpack("<" + TYPES[field["type"]], bytes.fromhex(row["bytes"])) == (int(number[0]),)


def test_example_is_annotated_column_by_column(example):
    """Each annotated column lies where the batch header's sizes put it."""
    sizes = struct.unpack_from("<16I", example, 120 + 112)
    names = {int(row["number"]): row["column"] for row in table("columns")}
    position, expected = 312, []
    for number, size in enumerate(sizes):
        if size:
            expected.append((position, names[number], example[position : position + size]))
        position += record_layout.padded(size)
    rows = table("annotated: columns")
    assert [(int(row["position"]), row["column"], bytes.fromhex(row["bytes"])) for row in rows] == expected
    assert position == len(example)


# --- a reader written from the page alone -----------------------------------------------------------------------------


def is_checked(data: bytes, seed: int = 0) -> bool:
    """A structure that ends with the checksum of what stands before."""
    return struct.unpack("<Q", data[-8:])[0] == xxh3_64_intdigest(data[:-8], seed)


def padded(size: int) -> int:
    """Columns and batches begin at multiples of 8."""
    return -(-size // 8) * 8


class PageReader:
    """Reads one partition by `docs/reference/format.md`, "Reading"; knows nothing of the library's code."""

    key_index = False

    def __init__(self, log: Path, topic: str, partition: int) -> None:
        self.log_id = bytes.fromhex(json.loads((log / "log.json").read_bytes())["id"])
        about = json.loads((log / "topics" / topic / "topic.json").read_bytes())
        assert (about["format"], about["name"]) == (1, topic)
        self.topic_id = bytes.fromhex(about["id"])
        self.partition = partition
        self.folder = log / "topics" / topic / str(partition)
        self.batches = self.seals = 0
        self.key_index = about["config"].get("key_index", False)
        self.keys: dict[bytes, tuple[int, int]] = {}
        self.producers: dict[int, list[tuple[list[int], int, bool]]] = {}

    def published(self) -> tuple:
        """Steps 2 and 3."""
        data = (self.folder / "control").read_bytes()
        magic, version, partition, log_id, topic_id = struct.unpack_from("<8sII16s16s", data)
        assert (magic, version, partition) == (b"PSLCTL\r\n", 1, self.partition)
        assert (log_id, topic_id) == (self.log_id, self.topic_id)
        assert is_checked(data[:64])
        slots = [data[position : position + 104] for position in (256, 512)]
        return max(struct.unpack("<QqQqqQqqqIIqQQ", slot) for slot in slots if is_checked(slot))

    def identity(self) -> tuple:
        """Boot id and inode of the last recovery."""
        data = (self.folder / "control").read_bytes()
        slots = [data[position : position + 40] for position in (1280, 1536)]
        return max(struct.unpack("<Q16sQQ", slot) for slot in slots if is_checked(slot))[1:3]

    def segment(self, base: int) -> tuple[bytes, int, int]:
        """Step 5: the file, its id and its header's checksum."""
        data = (self.folder / f"{base:020d}.log").read_bytes()
        fields = struct.unpack_from("<8sII16s16sIIqQqqqqQQ", data)
        assert is_checked(data[:120])
        assert fields[:2] == (b"PSLSEG\r\n", 1)
        assert (fields[3], fields[4], fields[5], fields[7]) == (self.log_id, self.topic_id, self.partition, base)
        return data, fields[8], fields[14]

    def indexed(self, data: bytes, base: int, segment_id: int, wanted: int) -> int:
        """The position of the last index entry at or before an offset, 120 without one."""
        index = (self.folder / f"{base:020d}.index").read_bytes()
        assert struct.unpack_from("<8sQq", index) == (b"PSLIDX\r\n", segment_id, base)
        assert is_checked(index[:32])
        place = 120
        for start in range(32, len(index) - 31, 32):
            assert is_checked(index[start : start + 32])
            offset, position, _ = struct.unpack_from("<qqq", index, start)
            if offset <= wanted:
                assert struct.unpack_from("<q", data, position + 32) == (offset,)
                place = position
        return place

    def read(self, wanted: int = 0, *, by_index: bool = False):
        """Steps 4 to 6: (offset, timestamp, key, value, headers) of every record from `wanted` on."""
        end = self.published()
        _, active_base, active_id, end_position, end_offset = end[:5]
        bases = sorted(int(path.stem) for path in self.folder.glob("*.log") if "~" not in path.name)
        base = max(base for base in bases if base <= min(wanted, active_base))
        data, segment_id, previous = self.segment(base)
        position, due = 120, base
        if by_index:
            position = self.indexed(data, base, segment_id, wanted)
            previous = previous if position == 120 else None
        while not (segment_id == active_id and position == end_position):
            if segment_id != active_id and data[position : position + 8] == b"PSLSEAL\n":
                assert is_checked(data[position : position + 56])
                seal = struct.unpack_from("<8sQqqQq", data, position)
                assert (seal[1], seal[3]) == (segment_id, position)
                assert previous in (None, seal[4])
                assert seal[2] >= due
                assert seal[2] > base
                base, position = seal[2], 120
                data, segment_id, previous = self.segment(base)
                self.seals += 1
                continue
            limit = (end_position if segment_id == active_id else len(data)) - position
            records = self.decode(data[position : position + limit], segment_id, previous)
            assert due <= records[0][0] <= records[-1][0] < end_offset
            due = records[-1][0] + 1
            yield from (record for record in records if record[0] >= wanted)
            (previous,) = struct.unpack_from("<Q", data, position + 184)
            position += struct.unpack_from("<I", data, position + 8)[0]
            self.batches += 1

    def decode(self, data: bytes, segment_id: int, previous: int | None):
        """The records of the batch at the start of `data`, checked in the page's order."""
        magic, version, codec, flags, size, count, body_checksum = struct.unpack_from("<4sBBHIIQ", data)
        assert (magic, version, flags & ~1) == (b"PSLB", 1, 0)
        assert is_checked(data[:192])
        assert size <= len(data)
        batch_segment, base, last, base_timestamp, max_timestamp = struct.unpack_from("<Qqqqq", data, 24)
        (previous_checksum,) = struct.unpack_from("<Q", data, 72)
        sizes = struct.unpack_from("<16I", data, 112)
        body_size, reserved = struct.unpack_from("<II", data, 176)
        assert (size, reserved) == (192 + padded(body_size), 0)
        assert count >= 1
        assert 0 <= base <= last
        assert batch_segment == segment_id
        assert previous in (None, previous_checksum)
        body = data[192:size]
        assert xxh3_64_intdigest(body) == body_checksum
        whole = sum(map(padded, sizes))
        if codec:
            assert codec == 1
            added = sizes[14] + sizes[15]
            stream = zlib.decompressobj(wbits=31)
            unpacked = stream.decompress(body[: body_size - added], whole - added + 1)
            assert stream.eof
            body = unpacked + body[len(body) - added :]
        assert len(body) == whole
        cells, position = [], 0
        for column_size in sizes:
            cells.append(body[position : position + column_size])
            position += padded(column_size)
        offsets = self.offsets(cells[1], base, last, count)
        timestamps = struct.unpack(f"<{count}q", cells[0]) if cells[0] else [base_timestamp] * count
        assert max(timestamps) == max_timestamp
        keys = self.binary(cells[2], cells[3], cells[4], count) if cells[3] else [None] * count
        values = self.binary(cells[5], cells[6], cells[7], count)
        headers = [()] * count
        if cells[8]:
            firsts = struct.unpack(f"<{count + 1}i", cells[8])
            names = self.binary(b"", cells[9], cells[10], firsts[-1])
            contents = self.binary(b"", cells[11], cells[12], firsts[-1])
            pairs = [(name.decode(), content) for name, content in zip(names, contents, strict=True)]
            headers = [tuple(pairs[start:stop]) for start, stop in pairwise(firsts)]
        assert len(cells[14]) == len(cells[15]) == (8 * count if self.key_index and cells[3] else 0)
        if cells[14]:
            versions, links = (struct.unpack(f"<{count}q", cells[column]) for column in (14, 15))
            for offset, key, version, link in zip(offsets, keys, versions, links, strict=True):
                last, records = self.keys.get(key, (-1, 0)) if key is not None else (-1, -1)
                assert (link, version) == (last, records)
                if key is not None:
                    self.keys[key] = offset, records + 1
        (number, last_sequence) = struct.unpack_from("<qq", data, 88)
        if number >= 0:
            sequences = list(range(last_sequence - count + 1, last_sequence + 1))
            if cells[13]:
                sequences = list(struct.unpack(f"<{count}q", cells[13]))
            assert sequences == sorted(set(sequences))
            assert sequences[-1] == last_sequence
            self.producers.setdefault(number, []).append((sequences, base, bool(cells[13])))
        return list(zip(offsets, timestamps, keys, values, headers, strict=True))

    @staticmethod
    def offsets(deltas: bytes, base: int, last: int, count: int) -> list[int]:
        """The offsets of a batch's records."""
        offsets = list(range(base, last + 1))
        if deltas:
            offsets = [base + delta for delta in struct.unpack(f"<{count}i", deltas)]
            assert offsets == sorted(set(offsets))
            assert offsets[0] >= base
            assert offsets[-1] == last
        assert len(offsets) == count
        return offsets

    @staticmethod
    def binary(validity: bytes, offsets: bytes, data: bytes, count: int) -> list[bytes | None]:
        """A binary column."""
        bounds = struct.unpack(f"<{count + 1}i", offsets)
        assert (bounds[0], bounds[-1]) == (0, len(data))
        there = [not validity or bool(validity[number // 8] >> number % 8 & 1) for number in range(count)]
        return [data[start:stop] if ok else None for (start, stop), ok in zip(pairwise(bounds), there, strict=True)]


@pytest.fixture
def written(tmp_path):
    """A log of several segments with keys, tombstones, headers, timestamps, gzip, small and large batches."""
    path = tmp_path / "log"
    start = 1_767_225_600_000
    with pystreamlog.open(path) as log:
        orders = log.create_topic("orders", segment_bytes=65536)
        log.create_topic("stamped", message_timestamp_type="LogAppendTime")
        with log.producer(compression_type="gzip") as producer:
            for round_ in range(40):
                count = 200
                producer.send_many(
                    "orders",
                    [None if index % 7 == 3 else b"value %d " % index * (index % 90) for index in range(count)],
                    [None if index % 5 == 2 else b"key %d" % index for index in range(count)],
                    headers=[[("trace", b"%d" % index), ("größe", b"")][: index % 3] for index in range(count)],
                    timestamps_ms=[start + round_ * 1000 + index * 13 % 17 for index in range(count)],
                    partition=0,
                ).result()
        with log.producer() as producer:
            for round_ in range(60):
                producer.send_many("orders", [b"%d" % round_ * 300] * 20, timestamps_ms=start + round_).result()
        for number in range(20):
            orders.append(b"", b"alone") if number % 2 else orders.append(None, b"alone", headers=[("one", b"\0")])
        orders.append(b"\xff" * 100_000)
        log.topic("stamped").append(b"now")
        with log.producer() as producer:
            producer.send_many("stamped", [b"a", b"b"], timestamps_ms=[5, 6]).result()
    return path


def records_of(path: Path, topic: str) -> list[tuple]:
    """What the library reads."""
    with pystreamlog.open(path, read_only=True) as log:
        return [
            (record.offset, record.timestamp_ms, record.key, record.value, record.headers)
            for record in log.topic(topic).read()
        ]


def test_reader_written_from_the_page_reads_every_record(written):
    """The page is enough to read a log: the same records come out, over seals, codecs and absent columns."""
    expected = records_of(written, "orders")
    reader = PageReader(written, "orders", 0)
    assert list(reader.read()) == expected
    assert len(expected) == 40 * 200 + 60 * 20 + 20 + 1
    assert reader.seals >= 5
    assert reader.batches >= 100


def test_reader_written_from_the_page_reads_what_was_compacted(tmp_path):
    """With gaps in batches, between them, and between segments; and timestamps that the log set."""
    with pystreamlog.open(tmp_path, maintenance=False) as log:
        for topic in ("orders", "stamped"):
            config = {"message_timestamp_type": "LogAppendTime"} if topic == "stamped" else {}
            made = log.create_topic(topic, cleanup_policy="compact", segment_bytes=8192, **config)
            for number in range(400):
                made.append(b"%d" % number, b"key-%d" % (number % 7 if number % 9 else number))
        report = log.maintain()
        assert len(report.compacted) == 2
    for topic in ("orders", "stamped"):
        expected = records_of(tmp_path, topic)
        assert len(expected) < 150
        reader = PageReader(tmp_path, topic, 0)
        assert list(reader.read()) == expected
        assert reader.seals
        for wanted in range(0, 400, 37):
            there = [record for record in expected if record[0] >= wanted]
            assert list(PageReader(tmp_path, topic, 0).read(wanted)) == there


def test_reader_written_from_the_page_starts_anywhere(written):
    """Any offset can be looked up, by the segments' names and by their indexes."""
    expected = records_of(written, "orders")
    for wanted in (0, 1, 199, 200, 3777, 8000, 9100, len(expected) - 1):
        assert list(PageReader(written, "orders", 0).read(wanted)) == expected[wanted:]
    with_index = [path for path in (written / "topics" / "orders" / "0").glob("*.index") if path.stat().st_size > 32]
    assert with_index
    for path in with_index:
        wanted = struct.unpack_from("<q", path.read_bytes(), 32)[0] + 1
        assert list(PageReader(written, "orders", 0).read(wanted, by_index=True)) == expected[wanted:]


def test_reader_written_from_the_page_reads_times_that_the_log_set(written):
    """With flag 1, all records of a batch share the time of the append."""
    expected = records_of(written, "stamped")
    assert list(PageReader(written, "stamped", 0).read()) == expected
    assert expected[1][1] == expected[2][1] > 1_700_000_000_000


def test_reader_written_from_the_page_reads_sequences(tmp_path, monkeypatch):
    """Those of each batch, with gaps and without; and a snapshot of the producers says the same."""
    monkeypatch.setattr(sequence_admission, "_ROLLED_INTERVAL", 1000)
    path = tmp_path / "log"
    sent = {"ingest": range(400), "größe": range(5, 3000, 7)}
    with pystreamlog.open(path) as log:
        log.create_topic("events")
        for name, sequences in sent.items():
            with log.producer(producer_id=name, compression_type="gzip", linger_ms=0) as producer:
                for part in (sequences[:30], sequences[30:80], sequences[80:]):
                    producer.send_many("events", [b"x"] * len(part), sequences=part).result()
        with log.producer(producer_id="ingest") as producer:
            producer.send("events", b"last", sequence=1000).result()
    reader = PageReader(path, "events", 0)
    list(reader.read())
    numbers = {
        name: int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") & (1 << 63) - 1
        for name in sent
    }
    for name, sequences in sent.items():
        found = [one for batch, _, _ in reader.producers[numbers[name]] for one in batch]
        assert found == list(sequences) + ([1000] if name == "ingest" else [])
    data = next((path / "topics" / "events" / "0").glob("*.producers")).read_bytes()
    assert is_checked(data)
    _, segment_id, base, position, offset, last_checksum, count = struct.unpack_from("<8sQqqqQq", data)
    segment_bytes, its_id, _ = reader.segment(base)
    assert (segment_id, data[:8]) == (its_id, b"PSLPID\r\n")
    assert struct.unpack_from("<q", segment_bytes, position + 32) == (offset,)
    assert struct.unpack_from("<Q", segment_bytes, position + 72) == (last_checksum,)
    place, seen = 56, {}
    for _ in range(count):
        number, last_sequence, _, kept = struct.unpack_from("<4q", data, place)
        batches = list(struct.iter_unpack("<3q", data[place + 32 : place + 32 + 24 * kept]))
        assert batches[-1][0] == last_sequence
        seen[number] = batches
        place += 32 + 24 * kept
    assert place == len(data) - 8
    assert seen == {
        number: [
            (sequences[-1], first, -len(sequences) if gaps else len(sequences))
            for sequences, first, gaps in reader.producers[number]
            if first < offset
        ]
        for number in seen
    }


def page_key(folder: Path, reader: PageReader, key: bytes) -> tuple[int, int] | None:
    """By "Key index": offset of a key's last record and the number of its records, in an index that is level."""
    data = (folder / "keys.index").read_bytes()
    magic, version, partition, log_id, topic_id, salt = struct.unpack_from("<8sII16s16s16s", data)
    assert (magic, version, partition) == (b"PSLKEY\r\n", 1, reader.partition)
    assert (log_id, topic_id) == (reader.log_id, reader.topic_id)
    assert is_checked(data[:72])
    slots = [data[position : position + 96] for position in (256, 512)]
    state = max(struct.unpack("<QQIIqqqQQQQIIQ", slot) for slot in slots if is_checked(slot))
    _, _, epoch, depth, end_offset, base, position, last_checksum, directory, pages, split = state[:11]
    end = reader.published()
    assert (epoch, end_offset, base, position, last_checksum) == (end[9], end[4], end[1], end[3], end[5])
    assert split == 0
    assert len(data) >= pages * 1024
    key_id = hashlib.blake2b(key, digest_size=16, salt=salt).digest()
    bits = int.from_bytes(key_id, "big")
    (page,) = struct.unpack_from("<I", data, directory * 1024 + 4 * (bits >> 128 - depth))
    leaf = data[page * 1024 : (page + 1) * 1024]
    assert is_checked(leaf)
    mark, number, prefix, leaf_depth, count = struct.unpack_from("<8sQIHH", leaf)
    assert (mark, number) == (salt[:8], page)
    assert bits >> 128 - leaf_depth == prefix >> 32 - leaf_depth
    for index in range(count):
        found, offset, records = struct.unpack_from("<16sqq", leaf, 54 + 32 * index)
        assert leaf[24 + index] == found[15]
        if found == key_id:
            return offset, records
    return None


def test_reader_written_from_the_page_follows_keys(tmp_path):
    """Every record's version and link are as the page says, packed or not, and the index knows the last of each."""
    path = tmp_path / "log"
    with pystreamlog.open(path) as log:
        topic = log.create_topic("orders", key_index=True, segment_bytes=65536)
        for codec in ("none", "gzip"):
            with log.producer(compression_type=codec) as producer:
                for round_ in range(8):
                    keys = [None if index % 7 == 3 else b"key %d" % (index * round_ % 300) for index in range(400)]
                    producer.send_many("orders", [b"value %d" % index * 5 for index in range(400)], keys).result()
        for number in range(50):
            topic.append(b"", b"" if number % 2 else b"alone")
        topic.append(b"nobody's")
    expected = records_of(path, "orders")
    reader = PageReader(path, "orders", 0)
    assert list(reader.read()) == expected
    assert len(reader.keys) == len({record[2] for record in expected} - {None}) > 250
    assert reader.seals
    for key, known in reader.keys.items():
        assert page_key(reader.folder, reader, key) == known
    assert page_key(reader.folder, reader, b"nobody") is None


def test_identity_is_of_this_boot_and_file(written):
    """The page says how a reader tells that the published end can be trusted."""
    reader = PageReader(written, "orders", 0)
    boot_id, inode = reader.identity()
    assert boot_id == pystreamlog.storage.boot.boot_id()
    assert inode == (reader.folder / "control").stat().st_ino


def test_epochs_are_as_the_page_says(written):
    """A recovery lists the epoch that it starts."""
    folder = written / "topics" / "orders" / "0"
    assert not (folder / "epochs.json").exists()
    assert PageReader(written, "orders", 0).published()[9] == 1
    end = len(records_of(written, "orders"))
    with pystreamlog.open(written, recover="always") as log:
        log.topic("orders").append(b"after")
    assert json.loads((folder / "epochs.json").read_bytes()) == [[2, end]]
    assert PageReader(written, "orders", 0).published()[9] == 2
    assert list(PageReader(written, "orders", 0).read()) == records_of(written, "orders")


# --- a reader of offsets, written from the page alone -----------------------------------------------------------------


def page_offsets(data: bytes, log_id: bytes, group_id: str) -> dict[tuple[bytes, int], tuple]:
    """By "A group's offsets": (offset, epoch, timestamp, metadata) of each (topic id, partition)."""
    header = struct.unpack_from("<8sII16sQQ", data)
    assert is_checked(data[:48])
    assert header[:2] == (b"PSLOFF\r\n", 1)
    assert header[3:5] == (log_id, xxh3_64_intdigest(group_id.encode()))
    seed = header[4]
    slots = [data[position : position + 512] for position in (512, 1024)]
    _, count, slot = max((*struct.unpack_from("<QI", slot), slot) for slot in slots if is_checked(slot, seed))
    committed: dict[tuple[bytes, int], tuple] = {}
    begin = 4096
    for extent in struct.unpack_from(f"<{count}I", slot, 16):
        end = begin + 4096 * (extent & 0x7FFFFFFF)
        assert end <= len(data)
        for position in range(begin, end, 256) if extent < 2147483648 else ():
            copies = []
            for number in (0, 1):
                raw = data[position + 128 * number : position + 128 * number + 128]
                fields = struct.unpack("<Q16sIIqqqQQIIQ32sQ", raw)
                block = fields[8] + 4096 * number
                metadata = data[block : block + fields[9]] if fields[9] else b""
                if metadata and xxh3_64_intdigest(metadata) != fields[11]:
                    metadata = b""
                if is_checked(raw, seed):
                    copies.append((*fields, metadata))
            ruling = max(copies)
            if ruling[10] == 0:
                assert ruling[1:3] not in committed
                committed[ruling[1:3]] = (ruling[4], ruling[3], ruling[5], ruling[-1].decode())
        begin = end
    return committed


def test_reader_written_from_the_page_reads_every_offset(tmp_path):
    """The page is enough to read a group's offsets: over several extents, with metadata, with free entries."""
    files = Files(str(tmp_path))
    owner = {"log_id": b"log-id-16-bytes.", "group_id": "größe"}
    files.write("offsets", OffsetStore.image(**owner))
    store = OffsetStore.open(files, "offsets", **owner, write=True)
    for number in range(500):
        topic_id = bytes([number % 3]) * 16
        for offset in range(1 + number % 4):
            metadata = "größe" * (number * offset % 400) if number % 5 == 0 else ""
            store.put(topic_id, number, Committed(offset, 1 + number, 1_767_225_600_000 + offset, metadata))
        if number % 11 == 0:
            store.forget(topic_id, number)
    data = (tmp_path / "offsets").read_bytes()
    expected = {
        key: (value.offset, value.epoch, value.timestamp_ms, value.metadata) for key, value in store.all().items()
    }
    assert len(expected) == 500 - 46
    assert page_offsets(data, **owner) == expected
    position, start, _ = store._locate(bytes([1]) * 16, 7)
    assert page_offsets(data[: position + start] + b"damage" + data[position + start + 6 :], **owner)[
        bytes([1]) * 16, 7
    ] == (2, 8, 1_767_225_600_002, "")
    store.close()
    files.close()
