"""Repairing one partition: indexes that are wrong, an end that a damaged slot hides, epochs, and a damaged end cut off.

Needs the append and the sync lock. Steps:

1. Look through the partition (`verify_partition`), now that nobody writes.
2. Drop indexes that do not fit their segments.
3. If its batches verify, but not `epochs.json`: write that anew from the epochs that the batches name.
4. If its batches verify, but not the slots: recover, which publishes as far as the chain holds.
5. If they do not verify and may be cut: keep what will go, byte by byte, in files of their own
   (`<segment>.cut-<position>`), zero the rest of the segment, and recover, which ends the log there in a new epoch.

Nothing is cut below what is known to be on disk, unless forced. A segment that has other hard links, in a snapshot for
example, is not written to: a copy with a segment id of its own takes its place. A process that dies within leaves the
partition damaged at the same place, or repaired.
"""

from __future__ import annotations

import os

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, NotSupportedError, StreamLogError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import BatchError, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Durable
from pystreamlog.storage.epochs import EPOCHS, Epoch, read_epochs
from pystreamlog.storage.files import File
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.recovery import Judgement, recover
from pystreamlog.storage.verify import CUT_MARK, PartitionLook, Ruling, verify_partition
from pystreamlog.storage.verify_segment import Passed

__all__ = ["repair_partition"]

_CHUNK = 1 << 20
_MAGIC = batch_layout.MAGIC.to_bytes(4, "little")
_SEGMENT_ID = 24
_PREVIOUS = 72


def repair_partition(
    folder: Folder, control: Control, boot_id: bytes, ruling: Ruling | None, *, cut_tail: bool, force: bool
) -> list[str]:
    """Repair what can be; what was done, in words.

    Args:
        folder: The partition.
        control: Its control file, open for writing.
        boot_id: This boot's.
        ruling: Tells of transactions.
        cut_tail: Cut a damaged end off.
        force: Also below what is known to be on disk.

    Raises:
        NotSupportedError: The control file has other hard links, so that writing it would change a copy of the log.
        StorageError: The disk refused; repair again.
    """
    findings = Findings(folder.files)
    look = verify_partition(folder, boot_id, findings, ruling)
    if look is None:
        return []
    done = _drop_indexes(folder, findings)
    findings.damages = [each for each in findings.damages if each.kind != "keys"]
    if not findings.damages:
        return done
    if control.file.status().st_nlink > 1:
        raise NotSupportedError(f"{control.file.path} has other hard links: copy the log, and repair the copy")
    passed = look.passed
    whole = not look.broken
    if not whole and (not cut_tail or passed is None or not _may_cut(folder, control, passed, force=force)):
        return done
    if any(each.kind in ("epochs", "missing") and each.path.endswith(EPOCHS) for each in findings.damages):
        done.append(_renew_epochs(folder, look, control))
    if not whole:
        assert passed is not None
        done += _cut(folder, control, passed)
    elif not any(each.kind == "slot" for each in findings.damages):
        return done
    judgement = Judgement() if ruling is None else ruling.judgement(folder)
    report = recover(folder, control, boot_id, trust_published=False, judgement=judgement)
    done.append(f"{report.path}: ends at offset {report.end_offset} now, in epoch {report.epoch}")
    return done


def _drop_indexes(folder: Folder, findings: Findings) -> list[str]:
    dropped = [note.path for note in findings.notes if note.kind == "derived"]
    dropped += [damage.path for damage in findings.damages if damage.kind == "keys"]
    for path in dropped:
        folder.drop(os.path.basename(path))
    return [f"{path}: dropped, as it does not fit the log" for path in dropped]


def _renew_epochs(folder: Folder, look: PartitionLook, control: Control) -> str:
    """Write `epochs.json` from what the batches say; epochs without a record left are of no use."""
    seen = [Epoch(epoch, offset) for epoch, offset in look.epochs if epoch > layout.FIRST_EPOCH]
    published = control.published()
    last = max([layout.FIRST_EPOCH, *(epoch.epoch for epoch in seen)])
    if published is not None and published.epoch > last:
        seen.append(Epoch(published.epoch, published.end_offset))
    name = f"{folder.path}/{EPOCHS}"
    folder.files.write(name, msgspec.json.encode(seen))
    return f"{folder.files.path(name)}: written anew from the epochs that the batches name"


# --- cutting ----------------------------------------------------------------------------------------------------------


def _may_cut(folder: Folder, control: Control, passed: Passed, *, force: bool) -> bool:
    """Whether nothing that is known to be on disk, or to be the log's start, would go."""
    published = control.published()
    if published is not None and passed.offset < published.log_start_offset:
        return False
    try:
        read_epochs(folder)
    except StreamLogError as error:
        if not isinstance(error, CorruptLogError):
            return False
    return force or passed.offset >= _known_durable(folder, control, passed)


def _known_durable(folder: Folder, control: Control, passed: Passed) -> int:
    """Records below are known to be on disk, as the slot and the headers behind the cut say."""
    known = control.durable().offset
    for base in folder.segments():
        if base < passed.segment_base:
            continue
        file = folder.files.open(f"{folder.path}/{layout.segment_name(base)}")
        try:
            raw = file.pread(layout.SEGMENT_HEADER.size, 0)
            segment_id = int.from_bytes(raw[64:72], "little")
            position = passed.position if base == passed.segment_base else layout.SEGMENT_HEADER.size
            known = max([known, *_durable_offsets(file, position, segment_id)])
        finally:
            file.close()
    return known


def _durable_offsets(file: File, position: int, segment_id: int) -> list[int]:
    """The durable offsets of every valid batch header of a segment from a position on, wherever it lies."""
    found = [0]
    while chunk := file.pread(_CHUNK + HEADER_SIZE, position):
        at = chunk.find(_MAGIC)
        while 0 <= at < _CHUNK:
            try:
                header = parse_header(chunk[at : at + HEADER_SIZE])
            except BatchError:
                pass
            else:
                if header.segment_id == segment_id:
                    found.append(header.durable_offset)
            at = chunk.find(_MAGIC, at + 1)
        position += _CHUNK
    return found


def _cut(folder: Folder, control: Control, passed: Passed) -> list[str]:
    """Keep what lies behind a place, and take it out of the log; `recover` finds the end there."""
    files, done = folder.files, []
    name = f"{folder.path}/{layout.segment_name(passed.segment_base)}"
    file = files.open(name, write=True)
    try:
        kept = _keep(folder, file, name, passed.position)
        if kept:
            done.append(f"{files.path(kept)}: keeps what was cut off {files.path(name)} at position {passed.position}")
        for base in folder.segments():
            if base > passed.segment_base:
                source = f"{folder.path}/{layout.segment_name(base)}"
                target = _free_name(folder, f"{source}{CUT_MARK}0")
                files.rename(source, target)
                done.append(f"{files.path(target)}: was the segment {layout.segment_name(base)}")
            if base >= passed.segment_base:
                folder.drop_derived(base)
        files.sync_directory(folder.path)
        if file.status().st_nlink > 1:
            passed = _copied(folder, file, name, passed)
        else:
            _zero(file, passed.position)
    finally:
        file.close()
    durable = control.durable()
    if durable.offset > passed.offset:
        slot = Durable(durable.sequence, passed.offset, passed.segment_base, passed.position, durable.flags)
        for step in (1, 2):
            control.write_durable(msgspec.structs.replace(slot, sequence=slot.sequence + step))
    return done


def _keep(folder: Folder, file: File, name: str, position: int) -> str:
    """Copy what lies behind a position, but for the zeros at its end, to a file of its own; its name, if it has any."""
    end, at = position, position
    while chunk := file.pread(_CHUNK, at):
        filled = len(chunk.rstrip(b"\0"))
        end = at + filled if filled else end
        at += len(chunk)
    if end == position:
        return ""
    target = _free_name(folder, f"{name}{CUT_MARK}{position}")
    copy = folder.files.create(target)
    try:
        _copy(file, copy, position, end, position)
        copy.datasync()
    finally:
        copy.close()
    return target


def _free_name(folder: Folder, name: str) -> str:
    """The name, or with a number behind it: what an earlier repair kept stays."""
    names = [name, *(f"{name}.{number}" for number in range(1, 1000))]
    return next(each for each in names if not folder.files.exists(each))


def _copy(source: File, target: File, position: int, end: int, origin: int) -> None:
    while position < end:
        chunk = source.pread(min(_CHUNK, end - position), position)
        if not chunk:
            break
        target.pwrite(chunk, position - origin)
        position += len(chunk)


def _zero(file: File, position: int) -> None:
    while chunk := file.pread(_CHUNK, position):
        if chunk.strip(b"\0"):
            file.pwrite(bytes(len(chunk)), position)
        position += len(chunk)
    file.datasync()


def _copied(folder: Folder, source: File, name: str, passed: Passed) -> Passed:
    """Put a copy in the place of a segment that has other hard links, up to where it verifies.

    It gets an id of its own, so that nobody who has the old file open goes on to write there; ids and chain in the
    headers of its batches follow.
    """
    head = bytearray(source.pread(layout.SEGMENT_HEADER.size, 0))
    segment_id = os.urandom(8)
    head[12:16] = (int.from_bytes(head[12:16], "little") + 1).to_bytes(4, "little")
    head[64:72] = segment_id
    previous = layout.CHECKSUM.pack(xxh3_64_intdigest(bytes(head[:-8])))
    head[-8:] = previous
    temporary = f"{name}~{os.urandom(6).hex()}"
    target = folder.files.create(temporary)
    try:
        target.pwrite(bytes(head), 0)
        position = len(head)
        while position < passed.position:
            raw = bytearray(source.pread(HEADER_SIZE, position))
            size = parse_header(bytes(raw)).size
            raw[_SEGMENT_ID : _SEGMENT_ID + 8] = segment_id
            raw[_PREVIOUS : _PREVIOUS + 8] = previous
            previous = layout.CHECKSUM.pack(xxh3_64_intdigest(bytes(raw[:-8])))
            raw[-8:] = previous
            target.pwrite(bytes(raw), position)
            _copy(source, target, position + HEADER_SIZE, position + size, 0)
            position += size
        target.datasync()
        folder.files.rename(temporary, name)
    except BaseException:
        folder.files.unlink(temporary)
        raise
    finally:
        target.close()
    folder.files.sync_directory(folder.path)
    new_id = int.from_bytes(segment_id, "little")
    return msgspec.structs.replace(passed, segment_id=new_id, last_checksum=int.from_bytes(previous, "little"))
