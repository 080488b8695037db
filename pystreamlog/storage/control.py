"""A partition's `control` file: where the partition ends, what of it is durable, and where it was written.

Three pairs of checksummed slots. A writer overwrites the older slot of a pair with one small `pwrite`, so a process
killed at any instruction leaves the newer one whole; the valid slot with the higher sequence rules.

- *published*: what readers may see. Written under the append lock.
- *durable*: what is on disk. Written under the sync lock.
- *identity*: boot id and inode at the last recovery. Written under the append lock, last.

Reading takes no lock. Bytes of a segment past the published end are garbage by definition.
"""

from __future__ import annotations

import mmap
import struct
from typing import TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files

__all__ = ["REMEDY", "Control", "Durable", "Identity", "Published", "undecided"]

REMEDY = (
    "restore the partition's folder from a copy, all its files together; without one, `pystreamlog dump "
    "--print-data-log` prints the records that its segments hold; `pystreamlog repair --force` makes one anew that was "
    "cut short, if the segments are whole and have no transactions"
)
"""What to do about a control file that is lost: where the log starts and ends, what is on disk and which transactions
count is written nowhere else."""


class Published(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What readers may see, in the order of the slot's fields; `end_offset` is the next record's.

    Attributes:
        sequence: Rises with every publication.
        segment_base: Base offset of the active segment.
        segment_id: Its random id.
        end_position: Bytes of it that are published, header included.
        end_offset: Offset of the next record.
        last_checksum: Of the last batch header, or of the segment header in an empty segment.
        max_timestamp: The highest of all records ever appended, in ms; -1 before the first.
        indexed_position: Position of the active segment's last index entry; 0 without one.
        log_start_offset: Records below it are deleted.
        epoch: Rises with every recovery.
        flags: `FLAG_DELETED`.
        pending_position: Journal position of a transaction that is being committed; -1 without.
        pending_nonce: Its nonce; 0 without.
    """

    sequence: int
    segment_base: int
    segment_id: int
    end_position: int
    end_offset: int
    last_checksum: int
    max_timestamp: int
    indexed_position: int
    log_start_offset: int
    epoch: int
    flags: int
    pending_position: int
    pending_nonce: int


class Durable(msgspec.Struct, frozen=True, gc=False):
    """What is on disk, in the order of the slot's fields: all records below `offset`, which ends at `position`."""

    sequence: int
    offset: int
    segment_base: int
    position: int
    flags: int
    reserved: int = 0


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Where the partition was last made sure of, in the order of the slot's fields."""

    sequence: int
    boot_id: bytes
    inode: int


_astuple = msgspec.structs.astuple
_pack_published = struct.Struct(layout.PUBLISHED_SLOT.format.removesuffix("Q")).pack
_pack_durable = struct.Struct(layout.DURABLE_SLOT.format.removesuffix("Q")).pack
_sequences = struct.Struct(f"<Q{layout.SLOT_STRIDE - 8}xQ").unpack_from
_pack_checksum = layout.CHECKSUM.pack

SlotT = TypeVar("SlotT", Published, Durable, Identity)


def _newest(data: bytes, position: int, layout_: struct.Struct, slot_type: type[SlotT]) -> SlotT | None:
    """The valid slot with the higher sequence of the pair at `position` of `data`."""
    size = layout_.size
    second = position + layout.SLOT_STRIDE
    if len(data) < second + size:
        return None
    first_sequence, second_sequence = _sequences(data, position)
    for start in (position, second) if first_sequence > second_sequence else (second, position):
        *fields, checksum = layout_.unpack_from(data, start)
        if xxh3_64_intdigest(data[start : start + size - 8]) == checksum:
            return slot_type(*fields)
    return None


class Control:
    """An open control file. The caller holds the lock that a write needs."""

    __slots__ = ("_durable", "_map", "_slot", "file", "log_id", "partition", "topic_id")

    def __init__(self, file: File, *, log_id: bytes, topic_id: bytes, partition: int) -> None:
        self.file = file
        self.log_id = log_id
        self.topic_id = topic_id
        self.partition = partition
        self._slot: Published | None = None
        self._durable: Durable | None = None
        self._map: mmap.mmap | None = None

    @classmethod
    def open(
        cls,
        files: Files,
        name: str,
        *,
        log_id: bytes,
        topic_id: bytes,
        partition: int,
        write: bool,
        map_reads: bool = False,
    ) -> Control:
        """Open and check whose control file it is.

        With `map_reads`, whether somebody published is seen in a map, without a system call. It is a map of another
        descriptor: that of a lock must never be mapped, as a map would keep the lock alive in a forked child.

        Raises:
            FileNotFoundError: The partition was not made yet, or is deleted.
            CorruptLogError: The file belongs to another partition, or its header is damaged.
            IncompatibleFormatError: A newer version made it.
        """
        file = files.open(name, write=write)
        control = cls(file, log_id=log_id, topic_id=topic_id, partition=partition)
        try:
            control._check_header()
            if map_reads and file.size() >= layout.CONTROL_SIZE:
                mapped = files.open(name)
                try:
                    control._map = mapped.map(layout.CONTROL_SIZE)
                finally:
                    mapped.close()
        except BaseException:
            file.close()
            raise
        return control

    def _check_header(self) -> None:
        header = layout.CONTROL_HEADER
        raw = self.file.pread(header.size, 0)
        if len(raw) < header.size:
            raise CorruptLogError(
                f"{self.file.path} has {len(raw)} bytes instead of {layout.CONTROL_SIZE}: {REMEDY}",
                path=self.file.path,
                expected=layout.CONTROL_SIZE,
                found=len(raw),
            )
        magic, version, partition, log_id, topic_id, _, checksum = header.unpack(raw)
        if magic != layout.CONTROL_MAGIC or checksum != xxh3_64_intdigest(raw[:-8]):
            raise CorruptLogError(
                f"{self.file.path} does not start with a valid control header: `pystreamlog repair` writes it anew if "
                f"the slots behind it are whole; else {REMEDY}",
                path=self.file.path,
                expected=layout.CONTROL_MAGIC,
                found=magic,
            )
        if version != layout.CONTROL_VERSION:
            raise IncompatibleFormatError(
                f"{self.file.path} has format version {version}, this release reads {layout.CONTROL_VERSION}: upgrade",
                path=self.file.path,
            )
        if (partition, log_id, topic_id) != (self.partition, self.log_id, self.topic_id):
            raise CorruptLogError(
                f"{self.file.path} belongs to partition {partition} of topic {topic_id.hex()}: files were swapped",
                path=self.file.path,
                expected=(self.partition, self.topic_id.hex()),
                found=(partition, topic_id.hex()),
            )

    @staticmethod
    def image(*, log_id: bytes, topic_id: bytes, partition: int, published: Published) -> bytes:
        """The bytes of a new control file without an identity."""
        image = bytearray(layout.CONTROL_SIZE)
        magic, version = layout.CONTROL_MAGIC, layout.CONTROL_VERSION
        head = layout.CONTROL_HEADER.pack(magic, version, partition, log_id, topic_id, 0, 0)[:-8]
        head += layout.CHECKSUM.pack(xxh3_64_intdigest(head))
        image[: len(head)] = head
        slot = _packed(layout.PUBLISHED_SLOT, published)
        position = layout.PUBLISHED_POSITION + (published.sequence & 1) * layout.SLOT_STRIDE
        image[position : position + len(slot)] = slot
        return bytes(image)

    def published(self) -> Published | None:
        """The published end; None when both slots are damaged. At most one system call."""
        slot = self._slot
        if slot is not None and self._map is not None:
            # Nobody published since it was parsed, or written by this process, when the newer sequence is still its.
            first, second = _sequences(self._map, layout.PUBLISHED_POSITION)
            if slot.sequence == max(first, second):
                return slot
        raw = self.file.pread(layout.SLOT_STRIDE + layout.PUBLISHED_SLOT.size, layout.PUBLISHED_POSITION)
        newest = _newest(raw, 0, layout.PUBLISHED_SLOT, Published)
        if newest != slot:
            self._slot = newest
        return self._slot

    def is_doubtful(self) -> bool:
        """Whether the published slot that rules may not be the last one: the other is damaged, or more is durable.

        Under the append lock it says so for certain. No process that was killed leaves a slot half written.
        """
        size, found = layout.PUBLISHED_SLOT.size, []
        for position in (layout.PUBLISHED_POSITION, layout.PUBLISHED_POSITION + layout.SLOT_STRIDE):
            raw = self.file.pread(size, position)
            *fields, checksum = layout.PUBLISHED_SLOT.unpack(raw)
            if xxh3_64_intdigest(raw[:-8]) == checksum:
                found.append(Published(*fields).end_offset)
            elif any(raw):
                return True
        return self.durable().offset > max(found, default=0)

    def publish(self, slot: Published) -> None:
        """Make `slot`, whose sequence is one above the last, what readers see. Needs the append lock."""
        raw = _pack_published(*_astuple(slot))
        position = layout.PUBLISHED_POSITION + (slot.sequence & 1) * layout.SLOT_STRIDE
        self.file.pwrite(raw + _pack_checksum(xxh3_64_intdigest(raw)), position)
        self._slot = slot

    def durable(self) -> Durable:
        """What is known to be on disk; offset 0 in no segment when nothing is. At most one system call."""
        slot = self._durable
        if slot is not None and self._map is not None:  # as in `published`
            first, second = _sequences(self._map, layout.DURABLE_POSITION)
            if slot.sequence == max(first, second):
                return slot
        raw = self.file.pread(layout.SLOT_STRIDE + layout.DURABLE_SLOT.size, layout.DURABLE_POSITION)
        self._durable = slot = _newest(raw, 0, layout.DURABLE_SLOT, Durable) or Durable(0, 0, -1, 0, 0)
        return slot

    def write_durable(self, slot: Durable) -> None:
        """Needs the sync lock."""
        raw = _pack_durable(*_astuple(slot))
        position = layout.DURABLE_POSITION + (slot.sequence & 1) * layout.SLOT_STRIDE
        self.file.pwrite(raw + _pack_checksum(xxh3_64_intdigest(raw)), position)
        self._durable = slot

    def identity(self) -> Identity | None:
        """Where the partition was last made sure of; None when that never was, or is damaged."""
        raw = self.file.pread(layout.SLOT_STRIDE + layout.IDENTITY_SLOT.size, layout.IDENTITY_POSITION)
        return _newest(raw, 0, layout.IDENTITY_SLOT, Identity)

    def write_identity(self, boot_id: bytes) -> None:
        """Say that the partition was made sure of in this boot, in this file. Needs the append lock."""
        last = self.identity()
        slot = Identity((last.sequence if last else 0) + 1, boot_id, self.file.status().st_ino)
        position = layout.IDENTITY_POSITION + (slot.sequence & 1) * layout.SLOT_STRIDE
        self.file.pwrite(_packed(layout.IDENTITY_SLOT, slot), position)

    def close(self) -> None:
        """Close the file and the map, and with the file give up a kernel lock held on its descriptor."""
        self._map = None
        self._slot = self._durable = None
        self.file.close()


def _packed(layout_: struct.Struct, slot: Published | Durable | Identity) -> bytes:
    raw = layout_.pack(*_astuple(slot), 0)[:-8]
    return raw + _pack_checksum(xxh3_64_intdigest(raw))


def undecided(path: str, position: int) -> CorruptLogError:
    """The error for a transaction that the journal has dropped if it was committed, where no slot tells whether it was.

    Args:
        path: The segment.
        position: Of its first batch.
    """
    return CorruptLogError(
        f"{path} at position {position}: a transaction that the journal does not have, and no slot of the partition's "
        f"control file tells whether it was committed: {REMEDY}",
        path=path,
        position=position,
    )
