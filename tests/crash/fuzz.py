"""Bytes of any kind for everything that reads a file: only errors of this library come out, soon, in little memory.

`python -m tests.crash.fuzz --count N --seed S` runs it from the root of the repository.

1. A `Target` has valid images, the places of their checksums, and a function that reads one in every way there is.
2. `mutated` changes an image; mostly its checksums are counted anew, so that the checks behind them are met.
3. `budget` hands each target the worst megabytes that we could think of, and measures time and memory.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.clock import SYSTEM
from pystreamlog.coordination import offset_layout
from pystreamlog.coordination.directory import read_log_id
from pystreamlog.coordination.group_state import _AREA, GroupState, GroupTopic, Member, StateFile, _packed
from pystreamlog.coordination.groups import read_group_id
from pystreamlog.coordination.journal import OffsetChange, Participant, decoded, encoded
from pystreamlog.coordination.offset_store import Committed, OffsetStore
from pystreamlog.coordination.topics import Topics
from pystreamlog.coordination.transactional_ids import TransactionalId, check_image
from pystreamlog.coordination.verify_groups import verify_groups
from pystreamlog.errors import StreamLogError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import BatchError, decode, encode, parse_header
from pystreamlog.record.compression import parse_codec
from pystreamlog.record.format import HEADER_SIZE, padded
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.epochs import read_epochs
from pystreamlog.storage.files import Files
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import IndexEntry, build_index, find_offset, find_timestamp, read_entries
from pystreamlog.storage.producer_state import ProducerState, decode_snapshot, encode_snapshot
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import walk
from pystreamlog.storage.slots import read_pairs
from pystreamlog.storage.verify import verify_partition

__all__ = [
    "BUDGET_BYTES",
    "BUDGET_SECONDS",
    "MANY_HEADERS_BYTES",
    "Target",
    "Workshop",
    "budget",
    "forged",
    "fuzz",
    "main",
    "mutated",
    "read_batch",
]

BUDGET_SECONDS = 1.0
BUDGET_BYTES = 64 << 20
MANY_HEADERS_BYTES = 128 << 20
"""For one record with a million headers, of which each is a tuple: a packed batch may hold as many."""
_MEGABYTE = 1 << 20

LOG_ID = b"log-id-16-bytes."
TOPIC_ID = b"topic-id-16-byte"
BOOT = b"this-boot-of-it."
GROUP = "billing"
NUMBERS = [0, 1, 2, 7, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]

Checksums = list[tuple[int, int, int, int]]
"""Start and end of what a checksum is of, and where it lies; in the order in which they must be counted anew."""


class Target(NamedTuple):
    """Something that reads bytes.

    Attributes:
        name: What it is.
        images: Valid bytes of it.
        checksums: Where the checksums of an image lie.
        read: Reads bytes in every way there is.
    """

    name: str
    images: list[bytes]
    checksums: Callable[[bytes], Checksums]
    read: Callable[[bytes], None]


def no_checksums(_: bytes) -> Checksums:
    """Of files that have none."""
    return []


def trailing(size: int, *starts: int, seed: int = 0) -> Checksums:
    """Of structures of `size` bytes that end with their checksum."""
    return [(start, start + size - 8, start + size - 8, seed) for start in starts]


def mutated(draw: random.Random, target: Target) -> bytes:
    """An image, changed; mostly with checksums that hold."""
    data = bytearray(draw.choice(target.images))
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        used = [at for at in range(0, len(data), 16) if any(data[at : at + 16])] or [0]
        at = max(0, min(draw.choice(used) + draw.randrange(16), len(data) - 1))
        kind = draw.randrange(7)
        if kind == 0:
            data[at : at + 1] = draw.randbytes(1)
        elif kind == 1:
            data[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in data[at : at + 1])
        elif kind in (2, 3):
            width = draw.choice([1, 2, 4, 8])
            at -= at % width
            data[at : at + width] = (draw.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 4:
            size, source = draw.randint(1, 64), draw.randrange(max(1, len(data)))
            data[at : at + size] = data[source : source + size]
        elif kind == 5:
            del data[at : at + draw.choice([1, 8, 100])]
        else:
            data[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
    if draw.random() < 0.8:
        for start, end, place, seed in target.checksums(bytes(data)):
            if place + 8 <= len(data):
                data[place : place + 8] = xxh3_64_intdigest(bytes(data[start:end]), seed).to_bytes(8, "little")
    return bytes(data)


# --- batches ----------------------------------------------------------------------------------------------------------


def read_batch(data: bytes) -> None:
    """Parse and decode a batch, and take everything out of it."""
    with suppress(BatchError):
        header = parse_header(data, limit=len(data))
        batch = decode(header, data[HEADER_SIZE : header.size])
        count = batch.count
        for take in (batch.values, batch.keys, batch.headers, batch.offsets, batch.timestamps_ms):
            for start, stop in {(0, min(count, 500)), (count // 2, min(count, count // 2 + 2))}:
                with suppress(BatchError):
                    assert len(take(start, stop)) == stop - start
        for offset in (header.base_offset, 2**62):
            with suppress(BatchError):
                batch.index_of_offset(offset)
        with suppress(BatchError):
            batch.offset(count - 1)


def batch_images() -> list[bytes]:
    """Valid batches of many kinds."""
    values = [b"one", None, b"", b"three" * 20]
    images = []
    for keys in (None, [b"k", None, b"", b"kk"], [b"same", b"size", b"keys", b"only"]):
        for stamps in (5, [7, 5, 9, 5]):
            for headers in (None, [(), (("a", b"1"), ("é", b"")), (), (("b", b"22"),)]):
                for codec in ("none", "gzip", "zstd", "lz4"):
                    batch = encode(values, keys, stamps, headers, codec=parse_codec(codec))
                    head, _ = batch.place(3, 7, 9, 0, 1, 5)
                    images.append(head + b"".join(batch.parts))
    return images


def batch_checksums(data: bytes) -> Checksums:
    """The body's, then the header's."""
    return [(HEADER_SIZE, len(data), 16, 0), *trailing(HEADER_SIZE, 0)]


def forged(columns: dict[int, bytes], count: int, packed_by: str = "none", **fields: int) -> bytes:
    """A batch of these columns, with checksums that hold."""
    cells = [columns.get(number, b"") for number in range(batch_layout.COLUMN_COUNT)]
    body = b"".join(cell + bytes(-len(cell) & 7) for cell in cells)
    packer = parse_codec(packed_by)
    if packer is not None:
        body = packer.compress(body)
    size = len(body)
    body += bytes(-size & 7)
    header = {
        "magic": batch_layout.MAGIC,
        "version": batch_layout.VERSION,
        "codec": packer.id if packer else 0,
        "flags": 0,
        "size": HEADER_SIZE + padded(size),
        "count": count,
        "body_checksum": xxh3_64_intdigest(body),
        "segment_id": 7,
        "base_offset": 3,
        "last_offset": 2 + count,
        "base_timestamp": 5,
        "max_timestamp": 5,
        "durable_offset": 0,
        "previous_checksum": 9,
        "epoch": 1,
        "producer_epoch": -1,
        "producer_id": -1,
        "first_sequence": -1,
        "transaction_nonce": 0,
        "column_sizes": batch_layout.COLUMN_SIZES.pack(*map(len, cells)),
        "body_size": size,
        "reserved": 0,
    } | fields
    raw = batch_layout.HEADER.pack(*header.values(), 0)[:-8]
    return raw + struct.pack("<Q", xxh3_64_intdigest(raw)) + body


def worst_batches(*, quick: bool) -> Iterator[tuple[str, bytes]]:
    """Batches of about a megabyte, or that claim to be larger, that take the most to read."""
    values, keys = batch_layout.VALUE_OFFSETS, batch_layout.KEY_OFFSETS
    plain = _MEGABYTE - 4096
    codecs = ("zstd",) if quick else ("gzip", "lz4", "zstd")
    for codec, room in (("none", plain), *((codec, 8 << 20) for codec in codecs)):
        count = room // 4 - 8
        yield f"empty values, {codec}", forged({values: bytes(4 * count + 4)}, count, codec)
        count = room * 8 // 33 - 8
        columns = {values - 1: bytes((count + 7) // 8), values: bytes(4 * count + 4)}
        yield f"tombstones, {codec}", forged(columns, count, codec)
        count = room // 9 - 8
        columns = {keys - 1: bytes((count + 7) // 8), keys: bytes(4 * count + 4), values: bytes(4 * count + 4)}
        yield f"no keys, {codec}", forged(columns, count, codec)
        count = room // 16 - 8
        columns = {0: bytes(8 * count), 1: array("i", range(count)).tobytes(), values: bytes(4 * count + 4)}
        yield f"times and offsets, {codec}", forged(columns, count, codec)
        if quick and codec != "none":
            continue
        pairs = room // 8 - 100
        empty = bytes(4 * pairs + 4)
        columns = {values: bytes(8), 8: struct.pack("<2i", 0, pairs), 9: empty, 11: empty}
        yield f"headers, {codec}", forged(columns, 1, codec)
    count = plain // 5 - 100
    ramp = array("i", range(count + 1)).tobytes()
    yield "one byte each", forged({values: ramp, values + 1: bytes(count)}, count)
    uneven = array("i", [0, *(number // 2 for number in range(count))])
    yield "uneven", forged({values: uneven.tobytes(), values + 1: bytes(uneven[-1])}, count)
    yield "claims", forged({values: bytes(8)}, 1, size=2**32 - 8, body_size=2**32 - 200)


# --- files ------------------------------------------------------------------------------------------------------------


class Workshop:
    """A directory in which files are read; all targets. Close it after use.

    Args:
        root: Where; it must not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("topics/t", "groups/billing/bells", "transactions/ids"):
            (root / folder).mkdir(parents=True)
        self.files = Files(str(root))
        self.folder = Folder(self.files, "topics/t/0", LOG_ID, TOPIC_ID, 0)
        self.folder.create(boot_id=BOOT, now_ms=1)
        self._fill()
        topic = {"format": 1, "name": "t", "id": TOPIC_ID.hex(), "partitions": 4, "created_ms": 1}
        config = {"config": {"segment_bytes": 8192, "message_timestamp_type": "LogAppendTime"}}
        segment = "topics/t/0/00000000000000000000"
        self.targets = [
            Target("batch", batch_images(), batch_checksums, read_batch),
            self._json("log.json", {"format": 1, "id": LOG_ID.hex(), "created_ms": 1}, self._log_file),
            self._json("topics/t/topic.json", topic | config, self._topic_file),
            self._json("groups/billing/group.json", {"format": 1, "id": GROUP, "created_ms": 1}, self._group_file),
            self._json("topics/t/0/epochs.json", [[2, 10], [3, 20]], self._epochs_file),
            self._file("control", "topics/t/0/control", control_checksums, self._control_file),
            self._file("segment", f"{segment}.log", segment_checksums, self._segment_file),
            self._file("index", f"{segment}.index", index_checksums, self._index_file),
            self._file("producers", f"{segment}.producers", producers_checksums, self._producers_file),
            self._file("members", "groups/billing/members", no_checksums, self._members_file),
            self._file("offsets", "groups/billing/offsets", offsets_checksums, self._offsets_file),
            self._file("transactional id", "transactions/ids/copier-1", id_checksums, self._id_file),
            Target("journal entry", [self._journal_entry()], no_checksums, lambda data: void(decoded(data, "journal"))),
        ]

    def _fill(self) -> None:
        """Valid files of every kind."""
        control = self.folder.open_control(write=True)
        segment = self.folder.open_segment(0, write=True, map_reads=False)
        position, previous, offset = layout.SEGMENT_HEADER.size, segment.header.checksum, 0
        entries = []
        for number in range(6):
            batch = encode([b"value %d" % number, None], [b"k", b"l"], 5, codec=parse_codec("gzip"))
            head, checksum = batch.place(offset, segment.header.segment_id, previous, 0, 1, 5)
            entries.append(IndexEntry(offset, position, 5 if number else -1))
            segment.write(head, batch.parts, batch.size, position, 1 << 20)
            position, previous, offset = position + batch.size, checksum, offset + 2
        end = control.published()
        assert end is not None
        values = {"end_position": position, "end_offset": offset, "last_checksum": previous, "max_timestamp": 5}
        self.end = msgspec.structs.replace(end, sequence=end.sequence + 1, **values)
        control.publish(self.end)
        segment.close()
        control.close()
        segment_id = self.end.segment_id
        build_index(self.files, self.folder.path, segment_id=segment_id, base_offset=0, entries=entries)
        snapshot = encode_snapshot(
            ProducerState(),
            segment_id=segment_id,
            segment_base=0,
            position=position,
            offset=offset,
            last_checksum=previous,
        )
        self.files.write("topics/t/0/00000000000000000000.producers", snapshot)
        self.files.write("groups/billing/offsets", OffsetStore.image(log_id=LOG_ID, group_id=GROUP))
        store = self._store()
        store.put(TOPIC_ID, 0, Committed(5, 1, 7, "a note"))
        store.put(TOPIC_ID, 1, Committed(6, 1, 7))
        store.close()
        self.files.write("groups/billing/members", StateFile.image())
        state = StateFile(self.files.open("groups/billing/members", write=True))
        state.write(1, group_state())
        state.file.close()
        self.files.write("groups/billing/control", b"")
        identity = TransactionalId(self.files, LOG_ID, "copier-1")
        identity.take(1)
        identity.close()

    def close(self) -> None:
        """Close the directory."""
        self.files.close()

    def put(self, name: str, data: bytes) -> None:
        """Have a file hold these bytes."""
        (self.root / name).write_bytes(data)

    def _file(
        self, name: str, path: str, checksums: Callable[[bytes], Checksums], read: Callable[[], object]
    ) -> Target:
        original = (self.root / path).read_bytes()
        image = original if name == "offsets" else original[: len(original.rstrip(b"\0")) + 64]

        def put_and_read(data: bytes) -> None:
            self.put(path, data)
            try:
                read()
            finally:
                self.put(path, original)

        return Target(name, [image], checksums, put_and_read)

    def _json(self, path: str, value: object, read: Callable[[], object]) -> Target:
        self.put(path, msgspec.json.encode(value))
        return self._file(path.rpartition("/")[2], path, no_checksums, read)

    # Each reads its file in every way there is.

    def _log_file(self) -> None:
        read_log_id(self.files)

    def _topic_file(self) -> None:
        Topics(self.files, SYSTEM, read_only=True).find_anew("t")

    def _group_file(self) -> None:
        read_group_id(self.files, "groups/billing")

    def _epochs_file(self) -> None:
        with suppress(StreamLogError):
            read_epochs(self.folder)
        self._partition()

    def _control_file(self) -> None:
        self._partition()
        control = self.folder.open_control(write=False)
        try:
            end = control.published()
            control.durable()
            control.identity()
            read_pairs(control.file)
            for stop in (None, end):
                with suppress(StreamLogError):
                    walk(self.folder, control, stop=stop)
            if end is not None:
                self._read_all(control, end)
        finally:
            control.close()

    def _segment_file(self) -> None:
        self._control_file()
        control = self.folder.open_control(write=False)
        try:
            self._read_all(control, self.end)
        finally:
            control.close()

    def _index_file(self) -> None:
        where = {"segment_id": self.end.segment_id, "base_offset": 0}
        for number in (0, 3, 11, 2**62):
            find_offset(self.files, self.folder.path, offset=number, **where)
            find_timestamp(self.files, self.folder.path, timestamp_ms=number, **where)
        for _ in read_entries(self.files, self.folder.path, **where):
            pass
        self._partition()
        control = self.folder.open_control(write=False)
        try:
            assert self._read_all(control, self.end) == list(range(12)), "an index made records wrong"
        finally:
            control.close()

    def _producers_file(self) -> None:
        data = (self.root / "topics/t/0/00000000000000000000.producers").read_bytes()
        decode_snapshot(data)
        self._partition()

    def _read_all(self, control: Control, end: Published) -> list[int]:
        found: list[int] = []
        for start in (5, 0):
            found = []
            reader = LogReader(self.folder, control, map_reads=False)
            cursor = Cursor(start)
            try:
                while batches := reader.fetch(cursor, end, max_records=1000, max_bytes=1 << 20):
                    for batch, first in batches:
                        batch.values(first, batch.count)
                        found += batch.offsets(first, batch.count)
            except (StreamLogError, BatchError):
                pass
            finally:
                reader.close()
        return found

    def _partition(self) -> None:
        verify_partition(self.folder, BOOT, Findings(self.files))

    def _members_file(self) -> None:
        file = self.files.open("groups/billing/members")
        try:
            StateFile(file).read()
        finally:
            file.close()

    def _store(self) -> OffsetStore:
        return OffsetStore.open(self.files, "groups/billing/offsets", log_id=LOG_ID, group_id=GROUP, write=True)

    def _offsets_file(self) -> None:
        verify_groups(self.files, LOG_ID, Findings(self.files))
        store = self._store()
        try:
            for read in (store.all, store.room, lambda: store.numbers(TOPIC_ID)):
                with suppress(StreamLogError):
                    read()
            for partition in range(3):
                with suppress(StreamLogError):
                    store.get(TOPIC_ID, partition)
            with suppress(StreamLogError):
                store.put(TOPIC_ID, 0, Committed(9, 1, 8, "another"))
                assert store.get(TOPIC_ID, 0) == Committed(9, 1, 8, "another")
        finally:
            store.close()

    def _id_file(self) -> None:
        data = (self.root / "transactions/ids/copier-1").read_bytes()
        with suppress(StreamLogError):
            check_image(data, "an id", LOG_ID, None)
        identity = TransactionalId(self.files, LOG_ID, "copier-1")
        try:
            identity.take(1)
        finally:
            identity.close()

    def _journal_entry(self) -> bytes:
        part = Participant("t", TOPIC_ID, 0, self.end, self.end)
        change = OffsetChange(GROUP, TOPIC_ID, 0, 3, None, Committed(5, 1, 7, "a note"))
        entry, _ = encoded(77, (part,), (change,), 5)
        return msgspec.msgpack.encode(entry)


def void(_: object) -> None:
    """Nothing."""


def group_state() -> GroupState:
    """A group's state with everything in it."""
    member = Member("m", 0, "static", 1, 2, "host", ["t"], (".*", 0), "uniform", 1, 2, 3, {TOPIC_ID: [0]}, {}, 4)
    return GroupState(1, BOOT, {TOPIC_ID: GroupTopic("t", 2)}, [member])


# Where checksums lie.


def control_checksums(_: bytes) -> Checksums:
    """Of the header and of every slot."""
    found = trailing(layout.CONTROL_HEADER.size, 0)
    for position, slot in (
        (layout.PUBLISHED_POSITION, layout.PUBLISHED_SLOT),
        (layout.DURABLE_POSITION, layout.DURABLE_SLOT),
        (layout.IDENTITY_POSITION, layout.IDENTITY_SLOT),
    ):
        found += trailing(slot.size, position, position + layout.SLOT_STRIDE)
    return found


def segment_checksums(data: bytes) -> Checksums:
    """Of the header and of every batch that can be found."""
    found = trailing(layout.SEGMENT_HEADER.size, 0)
    position = layout.SEGMENT_HEADER.size
    while data[position : position + 4] == b"PSLB" and len(data) >= position + HEADER_SIZE:
        size = int.from_bytes(data[position + 8 : position + 12], "little")
        found.append((position + HEADER_SIZE, position + size, position + 16, 0))
        found += trailing(HEADER_SIZE, position)
        position += max(size, 8)
    return found


def index_checksums(data: bytes) -> Checksums:
    """Of the header and of every entry."""
    entry = layout.INDEX_ENTRY.size
    return trailing(entry, *range(0, len(data), entry))


def producers_checksums(data: bytes) -> Checksums:
    """Of the whole, at its end."""
    return trailing(len(data), 0)


def offsets_checksums(_: bytes) -> Checksums:
    """Of the header, the table, and every copy."""
    found = trailing(offset_layout.OFFSETS_HEADER.size, 0)
    size, copy, salt = offset_layout.TABLE_SLOT.size, offset_layout.COPY_SIZE, offset_layout.salt(GROUP)
    found += trailing(size, offset_layout.TABLE_POSITION, offset_layout.TABLE_POSITION + size, seed=salt)
    copies = range(offset_layout.PAGE_SIZE, 2 * offset_layout.PAGE_SIZE, copy)
    return found + trailing(copy, *copies, seed=salt)


def id_checksums(_: bytes) -> Checksums:
    """Of the header and of both slots."""
    return [*trailing(48, 0), *trailing(16, 256, 512)]


# --- fuzzing ----------------------------------------------------------------------------------------------------------


def fuzz(count: int, seed: int, workshop: Workshop) -> Counter[str]:
    """Many mutations of every target; how many each got.

    Raises:
        AssertionError: Something else came out than an error of this library.
    """
    counts: Counter[str] = Counter()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        target = draw.choice(workshop.targets[:1] * 6 + workshop.targets)
        packed = target.name == "members" and draw.random() < 0.8
        data = packed_state(draw) if packed else mutated(draw, target)
        began = perf_counter()
        try:
            read(target, data)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, number {number}: {error}") from error
        seconds = perf_counter() - began
        assert seconds < 20 * BUDGET_SECONDS, f"seed {seed}, number {number}: {target.name} took {seconds:.1f} s"
        counts[target.name] += 1
    return counts


def packed_state(draw: random.Random) -> bytes:
    """A state of a group whose MessagePack was changed, with a checksum that holds."""
    return _packed(2, mutated(draw, Target("", [msgspec.msgpack.encode(group_state())], no_checksums, void)))


def read(target: Target, data: bytes) -> None:
    """Hand bytes to a target; errors of this library are what may come out."""
    try:
        target.read(data)
    except StreamLogError:
        return
    except Exception as error:
        raise AssertionError(f"{target.name}: {error!r}") from error


# --- the budget -------------------------------------------------------------------------------------------------------


def worst_files(target: Target) -> Iterator[tuple[str, bytes]]:
    """Megabytes that take the most to read."""
    image = target.images[0]
    yield "zeros", bytes(_MEGABYTE)
    yield "ones", b"\xff" * _MEGABYTE
    yield "its beginning, often", (image * (_MEGABYTE // len(image) + 1))[:_MEGABYTE]
    yield "zeros behind it", image.ljust(_MEGABYTE, b"\0")
    yield "brackets", b"[" * _MEGABYTE
    yield "braces", b'{"a":' * (_MEGABYTE // 5)
    yield "numbers", b"[" + b"1," * (_MEGABYTE // 2 - 1) + b"1]"
    yield "pairs", b"[" + b"[1,1]," * (_MEGABYTE // 6 - 1) + b"[1,1]]"
    yield "text", b'"' + b"a" * (_MEGABYTE - 2) + b'"'
    yield "digits", b"1" * _MEGABYTE
    if target.name in ("members", "journal entry"):
        for name, state in (
            ("arrays in arrays", b"\x91" * _MEGABYTE),
            ("maps in maps", b"\x81" * _MEGABYTE),
            ("a large count", b"\xdd\xff\xff\xff\xff" * 1000),
            ("a large map", b"\x94\x01\xc4\x00\xdf\xff\xff\xff\xff"),
            ("many topics", b"\x94\x01\xc4\x00\xdf\x00\x02\x00\x00" + b"\xc4\x01a\x92\xa1b\x01" * (_MEGABYTE // 8)),
            ("many members", b"\x94\x01\xc4\x00\x80\xdd\x00\x0f\x00\x00" + b"\x90" * (_MEGABYTE - 20)),
        ):
            yield name, _packed(2, state) if target.name == "members" else state
    if target.name == "offsets":
        raw = bytearray(image.ljust(_MEGABYTE, b"\0"))
        for extents in ((2**31 - 1,) * 122, (2**31 - 1, 2**32 - 1), (255,)):
            for sequence in (90, 91):
                at = offset_layout.table_position(sequence)
                slot = offset_layout.packed_table(sequence, extents, offset_layout.salt(GROUP))
                raw[at : at + len(slot)] = slot
            yield f"{len(extents)} extents", bytes(raw)
        free = offset_layout.free_page(offset_layout.salt(GROUP)) * 254
        yield "free entries", bytes(raw[: offset_layout.PAGE_SIZE]) + free
    if target.name == "members":
        yield "an area of zeros", (_packed(2, b"\xc0") + bytes(_MEGABYTE)).ljust(_AREA, b"\0")


def budget(workshop: Workshop, *, quick: bool = False) -> list[tuple[str, float, int]]:
    """Every target with its worst megabytes, or some of them: what, seconds, bytes beyond the input."""
    found = []
    for target in workshop.targets:
        for name, data in worst_batches(quick=quick) if target.name == "batch" else worst_files(target):
            began = process_time()
            read(target, data)
            seconds = process_time() - began
            tracemalloc.start()
            try:
                read(target, data)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            found.append((f"{target.name}: {name}", seconds, peak))
    return found


def main() -> int:
    """Run from the command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many mutations (10,000)")
    parser.add_argument("--seed", type=int, help="of all that is random (a new one)")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    began = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder) / "log")
        sys.stdout.write(f"seed {seed}\n")
        counts = fuzz(options.count, seed, workshop)
        for name, count in sorted(counts.items()):
            sys.stdout.write(f"{name:16}{count:>12,}\n")
        sys.stdout.write(f"{sum(counts.values()):,} in {monotonic() - began:.0f} s\n")
        over = 0
        for name, seconds, peak in sorted(budget(workshop), key=lambda row: -row[2]):
            limit = MANY_HEADERS_BYTES if "headers" in name else BUDGET_BYTES
            bad = seconds > BUDGET_SECONDS or peak > limit
            over += bad
            if bad or peak > BUDGET_BYTES // 4 or seconds > BUDGET_SECONDS / 4:
                sys.stdout.write(f"{name:44}{seconds:7.2f} s{peak / 2**20:8.1f} MiB{' OVER' if bad else ''}\n")
        workshop.close()
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
