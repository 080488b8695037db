"""What looking through a log, and repairing it, tells."""

from __future__ import annotations

from typing import Any

import attrs

from pystreamlog.storage.findings import Damage

__all__ = ["Damage", "RepairReport", "VerifyReport"]


@attrs.frozen
class VerifyReport:
    """What `StreamLog.verify` found.

    Attributes:
        path: The log.
        damages: What is lost, or cannot be trusted.
        notes: What is not as it was written, or not the log's, and costs nothing.
        topics: How many were looked through.
        partitions: Likewise, those that were used so far.
        segments: Likewise.
        batches: Likewise.
        records: Likewise.
        bytes: Of their segments.
    """

    path: str
    damages: tuple[Damage, ...]
    notes: tuple[Damage, ...]
    topics: int
    partitions: int
    segments: int
    batches: int
    records: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON."""
        return {"ok": self.ok, **attrs.asdict(self)}

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self._summary()}", *_listed(self.damages, self.notes)])

    def _summary(self) -> str:
        counted = f"{self.records:,} records in {self.partitions:,} partitions of {self.topics:,} topics"
        looked = f"{counted} ({self.bytes:,} bytes, {self.segments:,} segments, {self.batches:,} batches)"
        return f"{'whole' if self.ok else f'{len(self.damages):,} damaged places'}; {looked}"


@attrs.frozen
class RepairReport:
    """What `StreamLog.repair` did.

    Attributes:
        path: The log.
        done: What was changed, each with the file.
        damages: What is still damaged.
        notes: As in `VerifyReport`.
    """

    path: str
    done: tuple[str, ...]
    damages: tuple[Damage, ...]
    notes: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged any more."""
        return not self.damages

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON."""
        return {"ok": self.ok, **attrs.asdict(self)}

    def __str__(self) -> str:
        state = "whole" if self.ok else f"{len(self.damages):,} damaged places are left"
        lines = [f"{self.path}: {len(self.done):,} changes; {state}"]
        lines += [f"  did     {each}" for each in self.done]
        return "\n".join([*lines, *_listed(self.damages, self.notes)])


def _listed(damages: tuple[Damage, ...], notes: tuple[Damage, ...]) -> list[str]:
    return [f"  DAMAGE  {each}" for each in damages] + [f"  note    {each}" for each in notes]
