"""Recovery of one partition after a power loss, after its files were copied, or on demand.

Steps, under the append lock (`recover`):

1. `walk` from the segment of the durable position: headers must verify and chain from there on, bodies above it.
2. The first batch that breaks ends the log, whatever follows: a power loss writes unsynced pages in any order.
3. But below what is known durable (the durable slot, or the durable offset in any valid header, also one behind the
   break) nothing may break: that is `CorruptLogError`, never a cut. Where nothing was lost since the last publication
   (same boot, same files), all that was published counts as durable. In a copy of the files it may just end early: it
   may have been made while they were written.
4. Remove the segments behind the cut, zero the rest of its segment, sync.
5. Start a new partition epoch (`epochs.json`), publish the end, and write the identity last.

Read-only openers do 1 to 3 only (`walk`) and read up to the end it found. Reads go by `pread`, where a bad sector is an
error and not a SIGBUS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from pystreamlog.errors import CorruptLogError, StorageError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Durable, Published, undecided
from pystreamlog.storage.coverage import covering
from pystreamlog.storage.epochs import Epoch, read_epochs, start_epoch
from pystreamlog.storage.files import NOT_TRIED
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.segment import Seal, Segment, parse_seal

__all__ = [
    "Judgement",
    "RecoveryReport",
    "Walk",
    "needs_recovery",
    "recover",
    "settle_end",
    "walk",
]

_CHUNK = 1 << 20
_PAGE = 4096
_FEW = 8
_MAGIC = batch_layout.MAGIC.to_bytes(4, "little")


class Walk(msgspec.Struct, frozen=True):
    """Where the log verifiably ends.

    Attributes:
        end: The published end that recovery will write, but for sequence and epoch.
        reason: Why it ends there.
        dropped: Bytes behind it that are not zero, as far as the file tells.
    """

    end: Published
    reason: str
    dropped: int


class Judgement(msgspec.Struct, frozen=True):
    """Which transactional records count in a partition whose end is looked for.

    Attributes:
        nonces: Of the transactions that count, as far as the partition may not be on disk.
        cut: Where a transaction begins that does not count; all from there on goes. None without.
        forgets: The journal has dropped entries, of transactions that are on disk everywhere.
    """

    nonces: frozenset[int] = frozenset()
    cut: Published | None = None
    forgets: bool = False


_NONE = Judgement()


class RecoveryReport(msgspec.Struct, frozen=True):
    """What a recovery did to one partition.

    Attributes:
        path: The partition's folder.
        epoch: The epoch it started.
        end_offset: Offset of the next record.
        published_offset: The same before, as far as it could be read; None when it could not.
        dropped: Bytes that were cut off.
        reason: Why the log ends there.
    """

    path: str
    epoch: int
    end_offset: int
    published_offset: int | None
    dropped: int
    reason: str


def needs_recovery(control: Control, boot_id: bytes) -> bool:
    """Whether the partition was last made sure of in another boot, or in another file than this."""
    identity = control.identity()
    return identity is None or identity.boot_id != boot_id or identity.inode != control.file.status().st_ino


def _is_copy(control: Control) -> bool:
    """Whether the partition was last made sure of in another file than this."""
    identity = control.identity()
    return identity is not None and identity.inode != control.file.status().st_ino


def walk(folder: Folder, control: Control, *, stop: Published | None = None, judgement: Judgement = _NONE) -> Walk:
    """Find where the log verifiably ends; changes nothing.

    Args:
        folder: The partition.
        control: Its control file.
        stop: Do not go past this published end, and believe all transactions below it; None to go as far as the chain
            holds.
        judgement: Which transactions count.

    Raises:
        CorruptLogError: Something breaks below what is known durable, or the log's start is missing.
    """
    last = control.published()
    walker = _Walker(folder, control.durable(), stop, last, judgement, copied=_is_copy(control))
    walker.begun = [known for known in read_epochs(folder) if last is not None and known.epoch <= last.epoch]
    return walker.walk()


class _Ahead:
    """A segment as a walk reads it: forwards, in large steps. A system call for each small batch took half the time."""

    __slots__ = ("_data", "_segment", "_start", "path", "segment_id")

    def __init__(self, segment: Segment) -> None:
        self.path = segment.file.path
        self.segment_id = segment.header.segment_id
        self._segment = segment
        self._start = 0
        self._data = b""

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file."""
        begin = position - self._start
        end = begin + size
        if begin < 0 or end > len(self._data):
            self._data = self._segment.read(position, max(size, _CHUNK))
            self._start, begin, end = position, 0, size
        return self._data[begin:end]

    def seal_at(self, position: int) -> Seal | None:
        """The segment's seal if it lies at `position`."""
        begin = position - self._start
        if self._data[begin : begin + 4] == _MAGIC:
            return None  # a batch does; most do
        data = self.read(position, layout.SEAL.size)
        return parse_seal(data, segment_id=self.segment_id, position=position)


class _Walker:
    """The state of one walk.

    Attributes:
        begun: Epochs that were published, oldest first. What carries an older epoch than the one its offset lies in was
            cut off once: a block of the disk that was given back to the file came with its former contents.
    """

    def __init__(
        self,
        folder: Folder,
        durable: Durable,
        stop: Published | None,
        last: Published | None,
        judgement: Judgement,
        *,
        copied: bool,
    ) -> None:
        self._folder = folder
        self._durable = durable
        self._stop = stop
        self._last = last
        self._judgement = judgement
        self._copied = copied
        self.begun: list[Epoch] = []
        self._least = 0
        # Without a slot that says it, no lower than what the batches say, and than what a new partition begins with.
        self._epoch = last.epoch if last else layout.FIRST_EPOCH
        self._flags = last.flags if last else 0
        if last is None or last.end_offset < durable.offset:
            # What lies between such a slot and the segment where the walk begins is not seen: there may be some.
            self._flags |= layout.FLAG_TRANSACTIONAL | layout.FLAG_PRODUCERS
        self._log_start = 0
        self._was_rewritten = False
        self._is_poisoned = last is None or bool(last.flags & layout.FLAG_POISONED)
        self._generation = 0
        self._known_durable = max(durable.offset, stop.end_offset if stop else 0)

    def walk(self) -> Walk:
        """Go from segment to segment until one does not end in a seal."""
        # Where the log starts cannot be read any more, it starts with the first record there is.
        bases = self._folder.segments_from(self._last.log_start_offset if self._last else 0)
        self._log_start = start = self._last.log_start_offset if self._last else min(bases, default=0)
        if not bases or bases[0] > start:
            path = self._folder.files.path(self._folder.path)
            raise CorruptLogError(
                f"{path} has no segment that holds offset {start}, where the log starts: restore it from a copy",
                path=path,
                expected=start,
                found=bases[0] if bases else None,
            )
        covers = covering(self._folder, start, below=bases[0])
        if covers is not None:
            # By its name a segment that is left over holds the start; what it leads to may be gone.
            bases = [base for base in self._folder.segments() if base >= covers]
        base = self._durable.segment_base if self._durable.segment_base in bases else bases[0]
        end, reason = self._walk_segment(self._folder.open_segment(base, map_reads=False))
        while not reason:
            try:
                segment = self._folder.open_segment(end.end_offset, map_reads=False)
            except (FileNotFoundError, CorruptLogError) as error:
                reason = f"the next segment cannot be used ({error})"
                break
            header = segment.header
            # A healing that was cut short left some segments copies, of a higher generation, and some not.
            is_copied = self._is_poisoned and header.generation != self._generation
            # Else a segment that was appended to since was left as a dead process had filled and sealed it.
            follows = header.previous_checksum == end.last_checksum or self._was_rewritten or is_copied
            if header.max_timestamp_before != end.max_timestamp or not follows:
                segment.close()
                reason = "the next segment does not follow this one"
                break
            end, reason = self._walk_segment(segment)
        return self._judge(end, reason, bases)

    def _walk_segment(self, segment: Segment) -> tuple[Published, str]:
        """The end in this segment, and why the log ends there; an empty reason when a seal follows."""
        header = segment.header
        self._was_rewritten, self._generation = header.is_rewritten, header.generation
        position, offset, previous = layout.SEGMENT_HEADER.size, header.base_offset, header.checksum
        max_timestamp = header.max_timestamp_before
        size = segment.file.size()
        ahead = _Ahead(segment)
        try:
            while True:
                reason = self._stop_here(header.segment_id, position, offset, size)
                if reason:
                    break
                seal = ahead.seal_at(position)
                if seal is not None and seal.last_checksum == previous:
                    if header.is_rewritten:  # the last records may be gone, and the youngest
                        offset, max_timestamp = seal.end_offset, seal.max_timestamp
                    break
                try:
                    batch = self._batch(ahead, position, size - position, offset, previous)
                except BatchError as error:
                    reason = str(error)
                    break
                position, offset, previous = position + batch.size, batch.last_offset + 1, batch.checksum
                max_timestamp = max(max_timestamp, batch.max_timestamp)
                self._epoch = max(self._epoch, batch.epoch)
                self._flags |= layout.FLAG_PRODUCERS if batch.producer_id >= 0 else 0
                self._flags |= layout.FLAG_TRANSACTIONAL if batch.transaction_nonce else 0
                self._known_durable = max(self._known_durable, batch.durable_offset)
        finally:
            segment.close()
        last = self._last
        end = Published(
            last.sequence if last else 0,
            header.base_offset,
            header.segment_id,
            position,
            offset,
            previous,
            max_timestamp,
            0,
            self._log_start,
            self._epoch,
            self._flags,
            -1,
            0,
        )
        return end, reason

    def _stop_here(self, segment_id: int, position: int, offset: int, size: int) -> str:
        stop = self._stop
        if stop is not None and stop.segment_id == segment_id and position >= stop.end_position:
            return "the published end"
        cut = self._judgement.cut
        if cut is not None and offset >= cut.end_offset:  # healing may have changed the segment's id
            return "a transaction follows that is not whole"
        return "the end of the file" if position + layout.SEAL.size > size else ""

    def _batch(self, ahead: _Ahead, position: int, limit: int, offset: int, previous: int) -> BatchHeader:
        header = parse_header(ahead.read(position, HEADER_SIZE), limit=limit)
        if header.segment_id != ahead.segment_id or header.previous_checksum != previous:
            raise BatchError("the batch does not follow the one before it")
        if header.base_offset < offset:
            raise BatchError(f"offset {header.base_offset} after {offset - 1}")
        while self.begun and self.begun[0].start_offset <= header.base_offset:
            self._least = self.begun.pop(0).epoch
        if header.epoch < self._least:
            raise BatchError(f"a batch of epoch {header.epoch} in epoch {self._least}: it was cut off before")
        if header.last_offset >= self._durable.offset:
            nonce = header.transaction_nonce
            if nonce and self._stop is None and nonce not in self._judgement.nonces:
                if self._judgement.forgets and self._last is None and self._durable.segment_base < 0:
                    raise undecided(ahead.path, position)
                raise BatchError("the batch belongs to a transaction that was not committed")
            decode(header, ahead.read(position + HEADER_SIZE, header.size - HEADER_SIZE))
        return header

    def _judge(self, end: Published, reason: str, bases: list[int]) -> Walk:
        """The walk's result, unless something durable lies behind its end."""
        segment = self._folder.open_segment(end.segment_base, map_reads=False)
        path, dropped = segment.file.path, 0
        try:
            if self._stop is None or self._stop.segment_id != segment.header.segment_id:
                dropped = self._scan(segment, end.end_position)
            for base in bases:
                if base > end.segment_base and self._stop is None:
                    dropped += self._scan_file(base)
        finally:
            segment.close()
        if end.end_offset < self._known_durable and not self._ends_early(end, bases):
            raise CorruptLogError(
                f"{path} at position {end.end_position}: {reason}, but records up to offset {self._known_durable} are "
                f"known to be on disk: restore the file from a copy",
                path=path,
                position=end.end_position,
                expected=self._known_durable,
                found=end.end_offset,
            )
        return Walk(end, reason, dropped)

    def _ends_early(self, end: Published, bases: list[int]) -> bool:
        """Whether these are files copied while they were written, and this is where the copying overtook the writing.

        There the copy has zeros up to a page boundary, or its file ends; damage has data.
        """
        if not self._copied:
            return False
        segment = self._folder.open_segment(end.segment_base, map_reads=False)
        try:
            position, length = end.end_position, segment.file.size()
            if segment.seal_at(position) is not None:
                return bases[-1] <= end.segment_base
            stop = position + HEADER_SIZE
            with suppress(BatchError):
                stop = position + parse_header(segment.read(position, HEADER_SIZE)).size
            if stop >= length:
                return True
            last = -(-stop // _PAGE) * _PAGE
            boundaries = range((position // _PAGE + 1) * _PAGE, stop, _PAGE)
            tail = segment.read(stop - _FEW, last - stop + _FEW)
            return not any(tail) or any(not any(segment.read(place - _FEW, _FEW)) for place in boundaries)
        finally:
            segment.close()

    def _scan_file(self, base: int) -> int:
        try:
            segment = self._folder.open_segment(base, map_reads=False)
        except (CorruptLogError, FileNotFoundError):
            return 0
        try:
            return self._scan(segment, layout.SEGMENT_HEADER.size)
        finally:
            segment.close()

    def _scan(self, segment: Segment, position: int) -> int:
        """Bytes from `position` to the last one that is not zero; learns the durable offsets of valid headers there."""
        start, last = position, position
        while True:
            chunk = segment.read(position, _CHUNK + HEADER_SIZE)
            if not chunk:
                return last - start
            filled = len(chunk.rstrip(b"\0"))
            last = max(last, position + filled) if filled else last
            found = chunk.find(_MAGIC)
            while 0 <= found < _CHUNK:
                try:
                    header = parse_header(chunk[found : found + HEADER_SIZE])
                except BatchError:
                    pass
                else:
                    if header.segment_id == segment.header.segment_id:
                        self._known_durable = max(self._known_durable, header.durable_offset)
                found = chunk.find(_MAGIC, found + 1)
            if len(chunk) <= _CHUNK:
                return last - start
            position += _CHUNK


def recover(
    folder: Folder, control: Control, boot_id: bytes, *, trust_published: bool, judgement: Judgement = _NONE
) -> RecoveryReport:
    """Cut the partition to what verifies and start a new epoch. Needs the append and the sync lock.

    Args:
        folder: The partition.
        control: Its control file, open for writing.
        boot_id: This boot's.
        trust_published: Nothing was lost since the last publication (same boot, same files): do not go past it.
        judgement: Which transactions count.

    Raises:
        CorruptLogError: Something breaks below what is known durable. Nothing was changed.
        StorageError: The result could not be written; recovery starts anew at the next open. Where an fsync failed, the
            partition is poisoned, and stays so when it is recovered: `heal` it then.
    """
    published, durable = control.published(), control.durable()
    # In the boot, and the files, in which it was written, what is on disk here need not be so in the other partitions
    # of a transaction. And what an fsync failed to write, perhaps that of an earlier recovery, is to be healed first.
    is_elsewhere = needs_recovery(control, boot_id)
    result = walk(folder, control, stop=published if trust_published else None, judgement=judgement)
    end = result.end
    with _poisoning(control):
        _cut(folder, durable, end)
    end = msgspec.structs.replace(end, epoch=start_epoch(folder, end))
    settle_end(control, end, on_disk=is_elsewhere and not end.flags & layout.FLAG_POISONED)
    control.write_identity(boot_id)
    control.file.datasync()
    return RecoveryReport(
        path=folder.files.path(folder.path),
        epoch=end.epoch,
        end_offset=end.end_offset,
        published_offset=published.end_offset if published else None,
        dropped=result.dropped,
        reason=result.reason,
    )


@contextmanager
def _poisoning(control: Control) -> Iterator[None]:
    """Poison the partition if an fsync fails: that of the next recovery would say that all is well."""
    try:
        yield
    except StorageError as error:
        published = control.published()
        if error.errno not in NOT_TRIED and published is not None:
            flags = published.flags | layout.FLAG_POISONED
            with suppress(StorageError):
                control.publish(msgspec.structs.replace(published, sequence=published.sequence + 1, flags=flags))
        raise


def settle_end(control: Control, end: Published, *, on_disk: bool) -> None:
    """Publish an end, on disk; into both slots, so that no other is left beside it.

    Args:
        control: The partition's.
        end: The end.
        on_disk: All below is, in every partition that shares a transaction with this one: then it is durable.
    """
    slot, published = control.durable(), control.published()
    sequence = published.sequence if published else end.sequence
    if on_disk:
        slot = Durable(slot.sequence, end.end_offset, end.segment_base, end.end_position, slot.flags)
    for step in (1, 2):
        control.write_durable(msgspec.structs.replace(slot, sequence=slot.sequence + step))
        control.publish(msgspec.structs.replace(end, sequence=sequence + step))
    control.file.datasync()


def _cut(folder: Folder, durable: Durable, end: Published) -> None:
    """Remove the segments behind the end, zero the rest of its segment, and sync what is left."""
    for base in folder.segments_from(end.log_start_offset):
        if base > end.segment_base:
            folder.files.unlink(f"{folder.path}/{layout.segment_name(base)}")
            folder.drop_derived(base)
        elif durable.segment_base <= base < end.segment_base:
            segment = folder.open_segment(base, write=True, map_reads=False)
            try:
                segment.file.datasync()
            finally:
                segment.close()
    folder.drop(layout.segment_name(end.segment_base, layout.INDEX_SUFFIX))
    name = f"{folder.path}/{layout.segment_name(end.segment_base)}"
    file = folder.files.open(name, write=True)
    try:
        if file.status().st_nlink > 1:  # a snapshot has it too, and what is cut off here counts there
            with folder.files.made_whole(name) as copy:
                file.copy_to(copy, 0, end.end_position)
        else:
            position = end.end_position
            while chunk := file.pread(_CHUNK, position):
                if chunk.strip(b"\0"):
                    file.pwrite(bytes(len(chunk)), position)
                position += len(chunk)
            file.datasync()
    finally:
        file.close()
    folder.files.sync_directory(folder.path)
