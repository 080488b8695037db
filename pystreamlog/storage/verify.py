"""Looking through one partition for damage: every byte that means something is checked, none is changed.

Takes no lock. What was published stays as it is until it is deleted or recovered, so a damage counts only if the
control file says the same before and after; else it must be found once more. What lies behind the published end at the
first look is somebody's work in progress, or was never published, and no damage.

Steps:

1. The control file: its header, and both slots of each pair.
2. Where the log ends: at the published end, or, when it must be recovered first, where recovery would end it.
3. Each segment on its own (`verify_segment`): a damage ends its walk, not that of the next one.
4. What the slots say of the log, epochs, files that are left over, and whatever does not belong there.

Reads go by `pread`, where a bad sector is an error and not a SIGBUS.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import attrs

from pystreamlog.errors import StorageError, StreamLogError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import REMEDY, Control, Published
from pystreamlog.storage.coverage import covering
from pystreamlog.storage.epochs import EPOCHS, read_epochs
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import CONTROL, Folder
from pystreamlog.storage.key_index_layout import KEYS_NAME
from pystreamlog.storage.producer_snapshots import SNAPSHOT_LIMIT
from pystreamlog.storage.producer_state import decode_snapshot
from pystreamlog.storage.recovery import Judgement, needs_recovery, walk
from pystreamlog.storage.segment import base_of
from pystreamlog.storage.slots import PAIRS, Pair, read_pairs
from pystreamlog.storage.verify_keys import survey_keys
from pystreamlog.storage.verify_segment import Passed, SegmentWalk, appends_behind

__all__ = ["CUT_MARK", "PartitionLook", "Ruling", "verify_partition"]

CUT_MARK = ".cut-"
"""In the name of a file that holds what a repair cut off."""

_LOOKS = 5


@attrs.define
class PartitionLook:
    """What was found in a partition.

    Attributes:
        end: Where it ends; None when that is not known.
        epoch: Its epoch.
        recovers: The next opening recovers it.
        segments: How many were looked through.
        batches: Likewise.
        records: Likewise.
        size: Bytes of them, headers and seals included.
        passed: How far the log verifies, from its first record on; None when it has no first segment.
        transactional: Some batch belongs to a transaction.
        broken: Something in its segments does not verify.
        epochs: The epochs that its batches name, each with the first offset.
    """

    end: Published | None = None
    epoch: int = 0
    recovers: bool = False
    segments: int = 0
    batches: int = 0
    records: int = 0
    size: int = 0
    passed: Passed | None = None
    transactional: bool = False
    broken: bool = False
    epochs: list[tuple[int, int]] = attrs.field(factory=list)


class Ruling(Protocol):
    """What a partition must know of the log's transactions."""

    def resolved(self, folder: Folder, slot: Published) -> Published:
        """The end that rules where a slot names a transaction."""

    def judgement(self, folder: Folder) -> Judgement:
        """Which transactions count in a partition that must be recovered."""


def verify_partition(
    folder: Folder, boot_id: bytes, findings: Findings, ruling: Ruling | None = None
) -> PartitionLook | None:
    """Look through a partition that was made; None when it went away meanwhile, with its topic.

    Args:
        folder: The partition.
        boot_id: This boot's.
        findings: Gets what is found.
        ruling: Tells of transactions.
    """
    looks: list[tuple[Findings, PartitionLook]] = []
    for _ in range(_LOOKS):
        found = Findings(findings.files, findings.looked_through)
        look = PartitionLook()
        looker = _Looker(folder, boot_id, found, look, ruling)
        try:
            before = looker.look()
            after = looker.state()
        except FileNotFoundError:
            return None
        finally:
            looker.close()
        if after is not None and after.flags & layout.FLAG_DELETED:
            return None
        looks.append((found, look))
        if not found.damages or before == after:
            break
        if len(looks) > 1:
            # Somebody writes, but what he wrote before the first look is damaged in both.
            known = {(each.path, each.position, each.kind) for each in looks[-2][0].damages}
            found.damages = [each for each in found.damages if (each.path, each.position, each.kind) in known]
            break
    found, look = looks[-1]
    # The walk that recovery would do, and the walk here, may meet the same.
    found.damages = list({(each.path, each.position, each.kind): each for each in found.damages}.values())
    findings.take(found)
    return look


class _Looker:
    """One look at one partition."""

    def __init__(
        self, folder: Folder, boot_id: bytes, found: Findings, look: PartitionLook, ruling: Ruling | None
    ) -> None:
        self._folder = folder
        self._boot_id = boot_id
        self._found = found
        self._look = look
        self._ruling = ruling
        self._control: Control | None = None
        self._name = f"{folder.path}/{CONTROL}"

    def close(self) -> None:
        """Close the control file."""
        if self._control is not None:
            self._control.close()

    def state(self) -> Published | None:
        """The published slot as it is now."""
        return self._control.published() if self._control is not None else None

    def look(self) -> Published | None:
        """Look through everything; the published slot at the beginning.

        Raises:
            FileNotFoundError: The partition is gone.
        """
        folder, found = self._folder, self._found
        try:
            self._control = control = folder.open_control(write=False)
        except FileNotFoundError:
            if not folder.files.exists(folder.path):
                raise
            found.damage(self._name, "missing", f"the partition has no control file: {REMEDY}")
            self._look_at_segments(None, 0)
            self._look_around(None)
            return None
        except StreamLogError as error:
            found.error(error, self._name, "control")
            self._look_at_segments(None, 0)
            self._look_around(None)
            return None
        durable = control.durable()  # before the published slot: it is never ahead of that
        published = control.published()
        pairs = read_pairs(control.file)
        end = self._end(control, published)
        self._look.end, self._look.epoch = end, end.epoch if end else 0
        if published is not None and published.flags & layout.FLAG_POISONED and not self._look.recovers:
            found.note(self._name, "recovery", "a sync failed: nothing is appended until the log is opened anew")
        if end is not None and not self._look.recovers and durable.offset > end.end_offset:
            found.damage(
                self._name,
                "slot",
                "records that are known to be on disk lie behind the published end, whose slot may be an older one: "
                "repair publishes what verifies",
                position=layout.PUBLISHED_POSITION,
                expected=f"an end of {durable.offset} or above",
                found=end.end_offset,
            )
        walker = self._look_at_segments(end, durable.offset)
        if end is not None and walker is not None and not walker.broken:
            self._durable_place(durable.segment_base, durable.position, durable.offset, end)
        self._slots(pairs, end, published)
        self._look_at_epochs(end, walker)
        self._look_around(end, published)
        return published

    def _end(self, control: Control, published: Published | None) -> Published | None:
        """Where the log ends: as published, or where the next opening will find its end."""
        folder, found = self._folder, self._found
        moved = needs_recovery(control, self._boot_id)
        ruling = self._ruling
        if published is not None and not moved:
            return published if ruling is None else ruling.resolved(folder, published)
        self._look.recovers = True
        try:
            judgement = Judgement() if ruling is None else ruling.judgement(folder)
            end = walk(folder, control, stop=None, judgement=judgement).end
        except FileNotFoundError:
            return published
        except StreamLogError as error:
            found.error(error, folder.path, "batch")
            return published
        published_offset = published.end_offset if published else "not known"
        lost = max(0, published.end_offset - end.end_offset) if published else 0
        why = "it was last written in another boot, or its files were copied" if moved else "no slot is valid"
        found.note(
            self._name,
            "recovery",
            f"the next opening recovers the partition ({why}): it ends at offset {end.end_offset}"
            + (f"; {lost} records were published, but never known to be on disk, and are gone" if lost else ""),
            expected=f"a published end of {published_offset}",
            found=end.end_offset,
        )
        return end

    # --- the log

    def _look_at_segments(self, end: Published | None, durable: int) -> SegmentWalk | None:
        """Each segment, oldest first."""
        folder, found = self._folder, self._found
        start, bases = self._segments(end)
        first = bases[0] if bases and bases[0] <= start else start
        walker = SegmentWalk(folder, end, found, self._look, self._is_deleted, start=first, durable=durable)
        keys = None if self._look.recovers else survey_keys(folder, end, self.state, found)
        walker.keyed_below = keys[0] if keys is not None else 0
        if end is not None:
            for base in bases:
                if base > end.segment_base:
                    self._leftover(base)
            bases = [base for base in bases if base <= end.segment_base]
        if not bases or bases[0] > start:
            found.damage(
                folder.path,
                "missing",
                f"there is no segment that holds offset {start}, where the log starts: restore it from a copy",
                expected=layout.segment_name(start),
                found=layout.segment_name(bases[0]) if bases else "no segment",
            )
            walker.broken = True
        for base in bases:
            following = walker.next_base
            if following is not None and base < following and self._is_covered(base):
                continue
            if following is not None and base != following:
                self._misplaced(base, following, walker)
            walker.walk(base)
        if end is not None and (not bases or bases[-1] != end.segment_base):
            name = f"{folder.path}/{layout.segment_name(end.segment_base)}"
            found.damage(
                name,
                "missing",
                f"the active segment is missing, with the records below offset {end.end_offset}: restore it",
            )
            walker.broken = True
        if keys is not None and not walker.broken and not start and walker.keyed > keys[1]:
            message = "the key index lacks records: what it says of a key may be old; repair drops it"
            name = f"{folder.path}/{KEYS_NAME}"
            found.damage(name, "keys", message, expected=f"{walker.keyed} records", found=keys[1])
        self._look.passed, self._look.broken, self._look.epochs = walker.passed, walker.broken, walker.epochs
        return walker

    def _segments(self, end: Published | None) -> tuple[int, list[int]]:
        """Where the log starts, and its segments from there on; notes those that a deletion left."""
        folder = self._folder
        bases = folder.segments()
        if end is None:
            return min(bases, default=0), bases
        start = end.log_start_offset
        if not bases or bases[0] > start:
            now = self._control.published() if self._control is not None else None
            start = max(start, now.log_start_offset if now is not None else 0)  # it may have been raised meanwhile
        kept = folder.segments_from(start)
        covers = covering(folder, start, below=kept[0]) if kept else None
        kept = kept if covers is None else [base for base in bases if base >= covers]
        for base in bases:
            if kept and base < kept[0]:
                self._found.note(
                    f"{folder.path}/{layout.segment_name(base)}",
                    "leftover",
                    "a segment below the log's start, of a process that died while deleting: `maintain` removes it",
                )
        return start, kept

    def _is_deleted(self, base: int) -> bool:
        """Whether the segment of that base offset was deleted, or compacted into the one before, meanwhile."""
        now = self._control.published() if self._control is not None else None
        if now is not None and base < now.log_start_offset:
            return True
        return covering(self._folder, base, below=base) is not None

    def _misplaced(self, base: int, following: int, walker: SegmentWalk) -> None:
        """A segment does not begin where the one before it ends."""
        folder, found = self._folder, self._found
        if base > following:
            found.damage(
                f"{folder.path}/{layout.segment_name(following)}",
                "missing",
                f"the segment with the records {following} to {base - 1} is missing: restore it from a copy",
            )
        else:
            found.damage(
                f"{folder.path}/{layout.segment_name(base)}",
                "swapped",
                "no segment of the log begins here: it does not belong to this place; remove the file",
                expected=layout.segment_name(following),
                found=layout.segment_name(base),
            )
        walker.lose_track()

    def _is_covered(self, base: int) -> bool:
        """Whether a segment is left over from a compaction; notes it."""
        if covering(self._folder, base, below=base) is None:
            return False
        message = "a segment that was compacted into the one before, by a process that died then: `maintain` removes it"
        self._found.note(f"{self._folder.path}/{layout.segment_name(base)}", "leftover", message)
        return True

    def _leftover(self, base: int) -> None:
        self._found.note(
            f"{self._folder.path}/{layout.segment_name(base)}",
            "leftover",
            "a segment behind the end, of a process that died before it was published: the next one takes its place",
        )

    def _durable_place(self, base: int, position: int, offset: int, end: Published) -> None:
        """The durable slot must name a place of the log that is there."""
        if base < 0 or offset > end.end_offset or base not in self._folder.segments():
            return
        segment = self._folder.open_segment(base, map_reads=False)
        try:
            size = segment.file.size()
        finally:
            segment.close()
        if position > size or base > offset:
            self._found.damage(
                self._name,
                "slot",
                "the durable slot names a place that the log does not have: recovery would not know what is on disk",
                position=layout.DURABLE_POSITION,
                expected=f"a position of {size} at most",
                found=f"position {position}, offset {offset}",
            )

    # --- the slots

    def _slots(self, pairs: dict[str, Pair], end: Published | None, before: Published | None) -> None:
        for name, pair in pairs.items():
            ruling, damaged = pair.ruling, pair.damaged
            if ruling < 0 and (damaged or name != "durable"):
                self._found.damage(
                    self._name,
                    "slot",
                    f"both {name} slots are damaged: the next opening recovers the partition from its batches",
                    position=PAIRS[name][0],
                    expected="a slot with a valid checksum",
                    found="none",
                )
                continue
            hidden = (
                name == "published"
                and end is not None
                and not self._look.recovers
                and end.pending_position < 0
                and self._hides(end, before, damaged=bool(damaged))
            )
            for position in damaged:
                if hidden:
                    continue  # told with what it hides
                self._found.note(
                    self._name,
                    "slot",
                    f"one of the two {name} slots is damaged: the other one rules, and the next write mends it",
                    position=position,
                )
            if hidden:
                self._found.damage(
                    self._name,
                    "slot",
                    "batches follow behind the published end, and a slot is damaged or an older one: they may have "
                    "been published; repair publishes them, else the next append overwrites them",
                    position=damaged[0] if damaged else ruling,
                    expected="the end of the last batch",
                    found=f"offset {end.end_offset}" if end is not None else "",
                )

    def _hides(self, end: Published, before: Published | None, *, damaged: bool) -> bool:
        """Whether an append lies behind the end that was published, most likely.

        One may be that of a process that died before it published; it is not where a slot is damaged, nor are two.
        """
        behind = appends_behind(self._folder, end)
        return (behind > 1 or (behind == 1 and damaged)) and self.state() == before

    # --- epochs

    def _look_at_epochs(self, end: Published | None, walker: SegmentWalk | None) -> None:
        name = f"{self._folder.path}/{EPOCHS}"
        try:
            epochs = read_epochs(self._folder)
        except StreamLogError as error:
            self._found.error(error, name, "epochs")
            return
        if end is None or walker is None:
            return
        starts = [(epoch.epoch, epoch.start_offset) for epoch in epochs]
        rises = all(first[0] < second[0] and first[1] <= second[1] for first, second in pairwise(starts))
        if not rises or any(epoch <= layout.FIRST_EPOCH or start < 0 for epoch, start in starts):
            self._found.damage(name, "epochs", "epochs and their offsets must rise: restore the file from a copy")
            return
        if walker.broken:
            return
        if self._look.recovers:
            walker.check_epochs(name, starts, complete=False)
            return
        last = starts[-1][0] if starts else layout.FIRST_EPOCH
        if last != end.epoch:
            self._found.damage(
                name,
                "epochs" if starts else "missing",
                "the partition's last recovery is not in the list: committed offsets of before may be taken for valid "
                "ones; restore the file from a copy",
                expected=f"epoch {end.epoch}",
                found=f"epoch {last}",
            )
        walker.check_epochs(name, starts, complete=True)

    # --- what lies around

    def _look_around(self, end: Published | None, before: Published | None = None) -> None:
        """Files of the folder that are none of the log's, and what lies behind its end."""
        folder, found = self._folder, self._found
        bases = set(folder.segments())
        for entry in sorted(folder.files.list(folder.path)):
            name = f"{folder.path}/{entry}"
            if "~" in entry:
                found.note(name, "temporary", "left by a process that was killed: the next roll removes it")
            elif entry.endswith(layout.CLEANED_SUFFIX):
                found.note(name, "temporary", "left by a compaction, unless one is at work: the next one removes it")
            elif CUT_MARK in entry:
                found.note(name, "cut", "bytes that a repair cut off and kept: remove it when you do not need them")
            elif (
                entry != KEYS_NAME
                and entry.endswith(layout.INDEX_SUFFIX)
                and base_of(entry, layout.INDEX_SUFFIX) not in bases
            ):
                found.note(name, "derived", "an index without its segment: repair drops it")
            elif entry.endswith(layout.PRODUCERS_SUFFIX):
                self._snapshot(name, base_of(entry, layout.PRODUCERS_SUFFIX), bases)
            elif (
                entry not in (CONTROL, EPOCHS, KEYS_NAME, f"{CONTROL}.1.lock")
                and base_of(entry, layout.INDEX_SUFFIX) not in bases
                and base_of(entry, layout.SEGMENT_SUFFIX) not in bases
            ):
                found.note(name, "foreign", "nothing of the log's: it is ignored")
        if end is not None and not self._look.recovers:
            self._behind(end, before)

    def _snapshot(self, name: str, base: int, bases: set[int]) -> None:
        """A snapshot of producers is derived, as an index is."""
        try:
            whole = decode_snapshot(self._folder.files.read(name, limit=SNAPSHOT_LIMIT)) is not None
        except FileNotFoundError:
            return  # an older one was removed
        except StreamLogError:
            whole = False
        if not whole or base not in bases:
            message = "a snapshot of producers that does not fit the log: it is not believed, and repair drops it"
            self._found.note(name, "derived", message)

    def _behind(self, end: Published, before: Published | None) -> None:
        try:
            segment = self._folder.open_segment(end.segment_base, map_reads=False)
        except (FileNotFoundError, StreamLogError):
            return
        try:
            raw = segment.read(end.end_position, 1 << 16)
            if raw.strip(b"\0") and self.state() == before:
                self._found.note(
                    f"{self._folder.path}/{layout.segment_name(end.segment_base)}",
                    "leftover",
                    "bytes behind the end, which were never published: the next append overwrites them",
                    position=end.end_position,
                )
        except StorageError:
            return  # nothing there has a meaning
        finally:
            segment.close()
