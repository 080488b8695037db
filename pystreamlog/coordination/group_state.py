"""Who belongs to a consumer group and who reads what: the file `members`, replaced as a whole at each change.

The file has two areas, each with a checksummed image of the whole state. A writer, who holds the group's lock,
overwrites the older one by a single `pwrite`; so a process killed at any instruction leaves the newer one whole, and a
reader, who takes no lock, sees one state or the next. Nothing is synced: after a power loss nobody is a member any
more. Committed offsets are another matter, and another file (`offset_store`).

An area is, little-endian:

| bytes | field |
|---|---|
| 0-3 | magic and version, `PSG1` |
| 4-7 | length of the state in bytes |
| 8-15 | sequence, which rises by one with each change; area `sequence & 1` holds it |
| 16-23 | xxh3-64 of the bytes before and of the state |
| 24-… | the state as MessagePack |

The second area begins at 4 MiB; between them is a hole, which takes no space on disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import NotSupportedError
from pystreamlog.storage.files import File

__all__ = ["GroupState", "GroupTopic", "Member", "PartitionKey", "Share", "StateFile", "keys_of", "share_of"]

PartitionKey = tuple[bytes, int]
"""A partition of the topic with that id; a topic that was deleted and made again has another id."""

Share = dict[bytes, list[int]]
"""Partition numbers, ascending, by topic id."""

_AREA = 4 << 20
_HEAD = struct.Struct("<4sIQ")
_CHECKSUM = struct.Struct("<Q")
_START = _HEAD.size + _CHECKSUM.size
_MAGIC = b"PSG1"
_FIRST_READ = 16 << 10
_READS = 100
"""How often a reader tries again: each time a writer must have replaced both areas meanwhile."""


class GroupTopic(msgspec.Struct, array_like=True):
    """A topic that the group shares out, and how many partitions it had then."""

    name: str
    partitions: int


class Member(msgspec.Struct, array_like=True):
    """A member of the group.

    Attributes:
        id: Random; a member that was fenced and joins again has another.
        slot: Number of its lock, of its bell and of its place in the table of polls.
        instance_id: `group_instance_id` of a static member.
        pid: Its process.
        namespace: Inode of that process's pid namespace; 0 where there are none.
        host: Name of its host or container.
        topics: The names it subscribes to.
        pattern: Or the regular expression, as pattern and flags.
        assignor: Name of how it would share out.
        max_poll_interval_ms: It is fenced when it does not poll for that long.
        session_timeout_ms: Its share waits for that long when it is static and gone.
        epoch: The group's generation when it joined.
        owned: What it owns; nobody else may own it.
        target: What it shall own.
        left_ns: Monotonic time at which it was found gone, if it is static; else 0.
    """

    id: str
    slot: int
    instance_id: str | None
    pid: int
    namespace: int
    host: str
    topics: list[str]
    pattern: tuple[str, int] | None
    assignor: str
    max_poll_interval_ms: int
    session_timeout_ms: int
    epoch: int
    owned: Share = {}
    target: Share = {}
    left_ns: int = 0


class GroupState(msgspec.Struct, array_like=True):
    """A group as it was at one sequence; not to be changed once it was written.

    Attributes:
        generation: Rises with each new sharing out.
        boot: Boot id of the machine when it was written: monotonic times of another mean nothing.
        topics: What is shared out, by topic id.
        members: In the order in which they joined.
        unshared: Whoever changed it left it to the members to share out anew.
    """

    generation: int = 0
    boot: bytes = b""
    topics: dict[bytes, GroupTopic] = {}
    members: list[Member] = []
    unshared: bool = False

    def member(self, member_id: str) -> Member | None:
        """The member of that id, if it still is one."""
        for member in self.members:
            if member.id == member_id:
                return member
        return None

    def is_settled(self) -> bool:
        """Whether every member owns what it shall."""
        return all(member.owned == member.target for member in self.members)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(GroupState).decode


def keys_of(share: Share) -> Iterator[PartitionKey]:
    """The partitions of a share one by one."""
    for topic_id, numbers in share.items():
        for number in numbers:
            yield topic_id, number


def share_of(keys: Iterator[PartitionKey] | set[PartitionKey] | list[PartitionKey]) -> Share:
    """Partitions as a share."""
    share: Share = {}
    for topic_id, number in sorted(keys):
        share.setdefault(topic_id, []).append(number)
    return share


class StateFile:
    """The open file `members`. Writing needs the group's lock; reading is safe from any thread.

    Attributes:
        file: The file.
    """

    __slots__ = ("file",)

    def __init__(self, file: File) -> None:
        self.file = file

    @staticmethod
    def image() -> bytes:
        """The bytes of a new file: a group without members, sequence 0."""
        return _packed(0, _encode(GroupState()))

    def heads(self) -> bytes:
        """What changes whenever the state does: the heads of both areas. Two small `pread`s."""
        pread = self.file.pread
        return pread(_START, 0) + pread(_START, _AREA)

    def read(self) -> tuple[int, GroupState] | None:
        """The newest state, a new object each time, and its sequence; None when both areas are damaged."""
        found = self._newest()
        if found is None:
            return None
        sequence, payload = found
        try:
            return sequence, _decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None

    def _newest(self) -> tuple[int, bytes] | None:
        areas: list[tuple[int, bytes]] = []
        for _ in range(_READS):
            heads = self.heads()
            areas = [area for area in (self._area(0), self._area(_AREA)) if area is not None]
            # Else a writer was there, and what was found may be older than what was seen before.
            if heads == self.heads() or (areas and max(areas)[0] >= _newest_of(heads)):
                break
        return max(areas, default=None)

    def _area(self, position: int) -> tuple[int, bytes] | None:
        raw = self.file.pread(_FIRST_READ, position)
        if len(raw) < _START:
            return None
        magic, length, sequence = _HEAD.unpack_from(raw)
        if magic != _MAGIC or length > _AREA - _START:
            return None
        if len(raw) < _START + length:
            raw += self.file.pread(_START + length - len(raw), position + len(raw))
        payload = raw[_START : _START + length]
        (checksum,) = _CHECKSUM.unpack_from(raw, _HEAD.size)
        if len(payload) < length or checksum != xxh3_64_intdigest(raw[: _HEAD.size] + payload):
            return None
        return sequence, payload

    def write(self, sequence: int, state: GroupState) -> None:
        """Replace the state; needs the lock. `sequence` is one above the last.

        Raises:
            NotSupportedError: More than an area holds: some 500,000 partitions, or 20 members that name 10,000 topics.
        """
        payload = _encode(state)
        if len(payload) > _AREA - _START:
            raise NotSupportedError(
                f"the state of this group would have {len(payload)} bytes, of at most {_AREA - _START}: subscribe to a "
                "pattern instead of naming many topics, or use several groups"
            )
        self.file.pwrite(_packed(sequence, payload), (sequence & 1) * _AREA)


def _packed(sequence: int, payload: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, len(payload), sequence)
    return head + _CHECKSUM.pack(xxh3_64_intdigest(head + payload)) + payload


def _newest_of(heads: bytes) -> int:
    """The higher sequence of what `StateFile.heads` returned, be it valid or not."""
    starts = range(0, len(heads) - _START + 1, _START)
    return max((int(_HEAD.unpack_from(heads, start)[2]) for start in starts), default=0)
