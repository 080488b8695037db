"""What lies in a partition's files, item after item: segments with their batches, indexes, and the control file.

Damage is an item like any other, and ends no more than it must: a batch whose header holds tells where the next one
begins; else the rest of that segment cannot be told apart. Reads go by `pread`, take no lock, and change nothing.

Others may write meanwhile. So the control file is read again right before each segment: what lies behind the end that
it publishes then is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.cli.output import time_of
from pystreamlog.cli.record_json import json_of
from pystreamlog.errors import NotSupportedError, StreamLogError
from pystreamlog.record.batch import Batch, BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.compression import CODEC_NAMES
from pystreamlog.record.format import FLAG_LOG_APPEND_TIME, HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Durable, Identity, Published
from pystreamlog.storage.files import File
from pystreamlog.storage.segment import SegmentHeader, parse_seal, parse_segment_header
from pystreamlog.storage.slots import PAIRS, read_pairs
from pystreamlog.storage.verify_segment import check_columns

__all__ = ["Item", "control_items", "index_items", "published_end", "segment_items"]

_SLOTS = {"published": Published, "durable": Durable, "identity": Identity}
_NO_TIME = -1


class Item(msgspec.Struct, frozen=True):
    """One thing in a file.

    Attributes:
        kind: What it is: `segment`, `batch`, `record`, `seal`, `end`, `index`, `entry`, `control`, `slot`,
            `note` or `damage`.
        fields: What there is to tell, under Kafka's names where it has them.
    """

    kind: str
    fields: dict[str, Any]


def _damage(position: int, why: str) -> Item:
    return Item("damage", {"position": position, "why": why})


# --- segments


def segment_items(file: File, end: Published | None, *, records: bool) -> Iterator[Item]:
    """The header of a segment, its batches, and how it ends.

    Args:
        file: The segment.
        end: What its partition publishes; None when that is not known: then zeros end the segment.
        records: The records of the batches too.

    Raises:
        StorageError: The disk cannot read it.
    """
    size = file.size()
    try:
        header = parse_segment_header(file.pread(layout.SEGMENT_HEADER.size, 0), file.path)
    except StreamLogError as error:
        yield _damage(0, str(error))
        return
    yield Item("segment", _segment_fields(header, size))
    limit = size
    if end is not None and end.segment_base < header.base_offset:
        yield Item("end", {"position": layout.SEGMENT_HEADER.size, "offset": header.base_offset, "published": False})
        return
    is_active = end is not None and end.segment_base == header.base_offset and end.segment_id == header.segment_id
    if is_active and end is not None:
        limit = end.end_position
    yield from _batches(file, header, limit, is_active=is_active, is_known=end is not None, records=records)


def _batches(
    file: File, segment: SegmentHeader, limit: int, *, is_active: bool, is_known: bool, records: bool
) -> Iterator[Item]:
    position, offset, previous = layout.SEGMENT_HEADER.size, segment.base_offset, segment.checksum
    max_timestamp = segment.max_timestamp_before
    while True:
        if is_active and position >= limit:
            yield Item("end", {"position": position, "offset": offset, "published": True})
            return
        raw = file.pread(HEADER_SIZE, position)
        if raw[:8] == layout.SEAL_MAGIC:
            seal = parse_seal(raw, segment_id=segment.segment_id, position=position)
            expected = (offset, previous, max_timestamp)
            if seal is None or (seal.end_offset, seal.last_checksum, seal.max_timestamp) != expected:
                yield _damage(
                    position, f"the seal does not verify: how the log goes on at offset {offset} is not known"
                )
            else:
                fields = {"position": position, "endOffset": offset, "maxTimestamp": seal.max_timestamp}
                yield Item("seal", {**fields, "crc": seal.checksum, "isvalid": True})
            return
        if not is_known and not raw.strip(b"\0"):
            yield Item("end", {"position": position, "offset": offset, "published": None})
            return
        try:
            header = parse_header(raw, limit=limit - position)
            if header.segment_id != segment.segment_id:
                raise BatchError(f"the batch belongs to segment {header.segment_id:#x}")
        except BatchError as error:
            yield _damage(position, f"{error}; what follows in this segment, from offset {offset} on, cannot be told")
            return
        yield from _batch(file, header, position, offset, previous, records=records)
        position += header.size
        offset, previous = header.last_offset + 1, header.checksum
        max_timestamp = max(max_timestamp, header.max_timestamp)


def _batch(
    file: File, header: BatchHeader, position: int, offset: int, previous: int, *, records: bool
) -> Iterator[Item]:
    """A batch whose header holds, what is wrong with it, and its records."""
    wrong: list[str] = []
    if header.previous_checksum != previous:
        wrong.append("it does not follow the batch before it")
    if header.base_offset != offset:
        wrong.append(f"it begins with offset {header.base_offset} and not {offset}")
    batch: Batch | None = None
    note = ""
    try:
        batch = decode(header, file.pread(header.size - HEADER_SIZE, position + HEADER_SIZE))
        check_columns(batch)
    except BatchError as error:
        wrong.append(str(error))
        batch = None
    except NotSupportedError as error:
        note = str(error)
    yield Item("batch", _batch_fields(header, position, is_valid=not wrong))
    for why in wrong:
        yield _damage(position, why)
    if records and note:
        yield Item("note", {"position": position, "why": note})
    if records and batch is not None:
        yield from _records(batch)


def _records(batch: Batch) -> Iterator[Item]:
    """The records of a batch whose columns were checked."""
    count, label = batch.count, _time_label(batch.header)
    rows = zip(
        batch.offsets(0, count),
        batch.timestamps_ms(0, count),
        batch.keys(0, count),
        batch.values(0, count),
        batch.headers(0, count),
        batch.sequences(0, count) if batch.header.producer_id >= 0 else [-1] * count,
        strict=True,
    )
    for offset, timestamp, key, value, pairs, sequence in rows:
        fields = {
            "offset": offset,
            label: timestamp,
            "keySize": -1 if key is None else len(key),
            "valueSize": -1 if value is None else len(value),
            "sequence": sequence,
            "headers": [(name, json_of(content)) for name, content in pairs],
            "key": json_of(key),
            "payload": json_of(value),
        }
        yield Item("record", fields)


def _time_label(header: BatchHeader) -> str:
    return "LogAppendTime" if header.flags & FLAG_LOG_APPEND_TIME else "CreateTime"


def _segment_fields(header: SegmentHeader, size: int) -> dict[str, Any]:
    return {
        "baseOffset": header.base_offset,
        "segmentId": f"{header.segment_id:#018x}",
        "generation": header.generation,
        "partition": header.partition,
        "topicId": header.topic_id.hex(),
        "logId": header.log_id.hex(),
        "created": time_of(header.created_ms),
        "maxTimestampBefore": header.max_timestamp_before,
        "size": size,
        "crc": header.checksum,
        "isvalid": True,
    }


def _batch_fields(header: BatchHeader, position: int, *, is_valid: bool) -> dict[str, Any]:
    first = header.last_sequence - header.count + 1 if header.producer_id >= 0 else _NO_TIME
    return {
        "baseOffset": header.base_offset,
        "lastOffset": header.last_offset,
        "count": header.count,
        "baseSequence": first,
        "lastSequence": header.last_sequence,
        "producerId": header.producer_id,
        "partitionEpoch": header.epoch,
        "isTransactional": bool(header.transaction_nonce),
        "transactionNonce": header.transaction_nonce,
        "position": position,
        _time_label(header): header.max_timestamp,
        "size": header.size,
        "durableOffset": header.durable_offset,
        "compresscodec": CODEC_NAMES.get(header.codec, str(header.codec)),
        "previousCrc": header.previous_checksum,
        "crc": header.checksum,
        "isvalid": is_valid,
    }


# --- indexes


def index_items(file: File, segment: File | None, end: Published | None, *, sanity_only: bool) -> Iterator[Item]:
    """The entries of an index, each held against the segment beside it.

    Args:
        file: The index.
        segment: The segment, if it is there.
        end: What the partition publishes; behind it nothing is known.
        sanity_only: Look at the index alone.
    """
    size, header_size, entry_size = file.size(), layout.INDEX_HEADER.size, layout.INDEX_ENTRY.size
    raw = file.pread(header_size, 0)
    if len(raw) < header_size or raw[:8] != layout.INDEX_MAGIC or not _verifies(raw):
        yield _damage(0, "the index does not begin with a valid header: it is not believed")
        return
    _, segment_id, base_offset, _ = layout.INDEX_HEADER.unpack(raw)
    fields = {
        "baseOffset": base_offset,
        "segmentId": f"{segment_id:#018x}",
        "entries": (size - header_size) // entry_size,
    }
    yield Item("index", {**fields, "isvalid": True})
    beside = None if sanity_only else segment
    if beside is not None:
        try:
            known = parse_segment_header(beside.pread(layout.SEGMENT_HEADER.size, 0), beside.path)
        except StreamLogError:
            beside = None  # what is wrong with it is told where it is dumped
        else:
            if known.segment_id != segment_id:
                yield _damage(0, "it is the index of another segment of this name: it is not believed")
                return
    limit = (
        end.end_position
        if end is not None and end.segment_base == base_offset
        else beside.size()
        if beside is not None
        else 0
    )
    last_offset = last_position = -1
    for at in range(header_size, size - entry_size + 1, entry_size):
        raw = file.pread(entry_size, at)
        if len(raw) < entry_size or not _verifies(raw):
            yield _damage(at, "the entry's checksum does not match: it is not believed")
            continue
        offset, position, before, _ = layout.INDEX_ENTRY.unpack(raw)
        yield Item("entry", {"offset": offset, "position": position, "maxTimestampBefore": before})
        if offset <= last_offset or position <= last_position:
            yield _damage(at, f"the entry for offset {offset} does not rise above the one before it")
        last_offset, last_position = offset, position
        if beside is not None and position < limit and (why := _mismatch(beside, offset, position)):
            yield _damage(at, why)


def _verifies(raw: bytes) -> bool:
    checksum: int = layout.CHECKSUM.unpack_from(raw, len(raw) - 8)[0]
    return checksum == xxh3_64_intdigest(raw[:-8])


def _mismatch(segment: File, offset: int, position: int) -> str:
    """What is wrong with an entry; nothing if the batch at its position begins with its offset, or comes yet."""
    raw = segment.pread(HEADER_SIZE, position)
    if raw[:8] == layout.SEAL_MAGIC:
        return ""
    try:
        header = parse_header(raw)
    except BatchError as error:
        return f"index offset {offset}, position {position}: no batch begins there: {error}"
    if header.base_offset != offset:
        return f"index offset {offset}, position {position}: the log has offset {header.base_offset} there"
    return ""


# --- control


def published_end(file: File) -> Published | None:
    """What a control file publishes; None when both slots are damaged."""
    position, slot = PAIRS["published"]
    ruling = read_pairs(file)["published"].ruling
    if ruling < position:
        return None
    *fields, _ = slot.unpack(file.pread(slot.size, ruling))
    return Published(*fields)


def control_items(file: File) -> Iterator[Item]:
    """The header of a control file and its slots; those that were never written are left out."""
    raw = file.pread(layout.CONTROL_HEADER.size, 0)
    if len(raw) < layout.CONTROL_HEADER.size or raw[:8] != layout.CONTROL_MAGIC or not _verifies(raw):
        yield _damage(0, "the file does not begin with a valid control header")
        return
    _, version, partition, log_id, topic_id, _, checksum = layout.CONTROL_HEADER.unpack(raw)
    fields = {"version": version, "partition": partition, "topicId": topic_id.hex(), "logId": log_id.hex()}
    yield Item("control", {**fields, "crc": checksum, "isvalid": True})
    for name, pair in read_pairs(file).items():
        position, slot = PAIRS[name]
        for at in (position, position + layout.SLOT_STRIDE):
            raw = file.pread(slot.size, at)
            if at in pair.damaged:
                why = f"this {name} slot does not verify"
                yield _damage(at, why + (": the other one rules" if pair.ruling >= 0 else ""))
            elif len(raw) == slot.size and any(raw):
                *values, checksum = slot.unpack(raw)
                told = _slot_fields(msgspec.structs.asdict(_SLOTS[name](*values)))
                place = {"kind": name, "position": at, "rules": at == pair.ruling}
                yield Item("slot", {**place, **told, "crc": checksum, "isvalid": True})


def _slot_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a slot in camel case, ids as hex digits."""
    found = {}
    for name, value in values.items():
        first, *others = name.split("_")
        shown = value.hex() if isinstance(value, bytes) else f"{value:#018x}" if name == "segment_id" else value
        found[first + "".join(map(str.capitalize, others))] = shown
    return found
