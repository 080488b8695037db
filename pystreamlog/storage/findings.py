"""What a look at a log's files finds: damages, which cost data, and notes, which cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from pystreamlog.errors import CorruptLogError, IncompatibleFormatError, StreamLogError
from pystreamlog.storage.files import Files

__all__ = ["DAMAGE_KINDS", "NOTE_KINDS", "Damage", "Findings"]

DAMAGE_KINDS = {
    "batch": "a batch of records does not verify: its header, its checksum, its place or its columns",
    "committed": "a group committed an offset beyond the partition's end",
    "control": "the header of a control file is damaged",
    "end": "the partition ends elsewhere than was published",
    "entry": "an entry of a group's committed offsets is damaged",
    "epochs": "the list of partition epochs is damaged, or does not fit the records",
    "file": "a file, or a folder, is of another kind than the log made it",
    "format": "a file was made by a newer release, or belongs to no log",
    "group": "a group's own files are damaged",
    "keys": "a key index lacks records, and does not show it to its readers",
    "log": "`log.json` is damaged",
    "missing": "a file is missing",
    "offsets": "offsets are missing, or out of order",
    "seal": "the seal of a rolled segment is damaged",
    "segment": "the header of a segment is damaged, or does not follow the segment before",
    "slot": "both slots of a pair are damaged, or a slot tells of what is not there",
    "swapped": "a file is another's",
    "topic": "a `topic.json` is damaged",
    "transaction": "a transaction's files are damaged",
    "unreadable": "the system cannot read a file",
}
"""What a damage can be."""

NOTE_KINDS = {
    "codec": "batches are packed by a codec whose library is not installed here: they were not checked",
    "committed": "a committed offset lies beyond a cut, or belongs to a topic that is gone",
    "cut": "bytes that a repair cut off and kept",
    "derived": "an index, or a snapshot of producers, is wrong: it is never believed, and repair drops it",
    "entry": "one of two copies is damaged: the other one rules",
    "foreign": "nothing of the log's",
    "leftover": "bytes that were never published",
    "members": "who belongs to a group is not known: its members join anew",
    "recovery": "the next opening recovers the partition",
    "slot": "one slot of a pair is damaged: the other one rules",
    "temporary": "left by a process that was killed",
}
"""What a note can be."""

_SHOWN = 120


@attrs.frozen
class Damage:
    """One thing that is not as the log writes it.

    Attributes:
        path: The file, or the folder.
        position: Where in it, in bytes; 0 where that says nothing.
        kind: What it is, in one word.
        expected: What should be there.
        found: What is there.
        message: What it means and what to do.
    """

    path: str
    position: int
    kind: str
    expected: str
    found: str
    message: str

    def __str__(self) -> str:
        place = f" at position {self.position}" if self.position else ""
        compared = f" (expected {self.expected}, found {self.found})" if self.expected or self.found else ""
        return f"{self.path}{place}: {self.message}{compared}"


class Findings:
    """Collects what a look finds; not for two threads.

    Args:
        files: The door to the log's directory.
        looked_through: Called with the bytes of each segment that was looked through.
    """

    __slots__ = ("damages", "files", "looked_through", "notes")

    def __init__(self, files: Files, looked_through: Callable[[int], object] = lambda _: None) -> None:
        self.files = files
        self.looked_through = looked_through
        self.damages: list[Damage] = []
        self.notes: list[Damage] = []

    def damage(
        self, name: str, kind: str, message: str, *, position: int = 0, expected: object = "", found: object = ""
    ) -> None:
        """Something is lost or cannot be trusted; `name` is relative to the log's directory."""
        assert kind in DAMAGE_KINDS, kind
        self.damages.append(Damage(self.files.path(name), position, kind, _shown(expected), _shown(found), message))

    def note(
        self, name: str, kind: str, message: str, *, position: int = 0, expected: object = "", found: object = ""
    ) -> None:
        """Something costs nothing, but somebody may wonder."""
        assert kind in NOTE_KINDS, kind
        self.notes.append(Damage(self.files.path(name), position, kind, _shown(expected), _shown(found), message))

    def error(self, error: StreamLogError, name: str, kind: str) -> None:
        """What an error of reading a file says, as a damage."""
        path = getattr(error, "path", "") or self.files.path(name)
        if isinstance(error, CorruptLogError):
            if isinstance(error.expected, tuple):  # whose file it is: log, topic, partition, group
                kind = "swapped"
            position, expected, found = error.position, _shown(error.expected), _shown(error.found)
        else:
            kind = "format" if isinstance(error, IncompatibleFormatError) else "unreadable"
            position, expected, found = 0, "", ""
        message = str(error).removeprefix(path).strip(" :")
        self.damages.append(Damage(path, position, kind, expected, found, message))

    def take(self, other: Findings) -> None:
        """Take over what another one collected."""
        self.damages += other.damages
        self.notes += other.notes


def _shown(value: object) -> str:
    """A value for a report: short, and printable whatever a file holds."""
    text = "" if value is None else value if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
