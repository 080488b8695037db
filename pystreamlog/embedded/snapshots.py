"""Snapshots of the embedded log, as its users ask for them and are told of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pystreamlog.backend.snapshot import SnapshotReport
from pystreamlog.coordination.snapshot import take_snapshot
from pystreamlog.coordination.snapshot_cut import SnapshotSource
from pystreamlog.embedded.attempts import items
from pystreamlog.embedded.progress import Progress, check_progress
from pystreamlog.errors import ConfigError
from pystreamlog.record.record import TopicPartition

__all__ = ["snapshot"]


def snapshot(
    source: SnapshotSource,
    target: str | os.PathLike[str],
    topics: str | Iterable[str] | None,
    progress: Progress | None,
) -> SnapshotReport:
    """See `StreamLog.snapshot`."""
    names = None
    if topics is not None:
        try:
            names = items(topics)
        except TypeError as error:
            raise ConfigError(f"topics are names, not {topics!r}") from error
        if not names:
            raise ConfigError("name at least one topic, or leave topics out to take all")
    check_progress(progress)
    made = take_snapshot(source, target, names, progress)
    ends = {}
    for state in made.topics:
        for number in range(state.partitions):
            end = made.ends.get((state.id, number))
            ends[TopicPartition(state.name, number)] = 0 if end is None else end.end_offset
    return SnapshotReport(
        path=made.path,
        log_id=made.log_id.hex(),
        topics=tuple(state.name for state in made.topics),
        end_offsets=ends,
        groups=made.groups,
        segments_linked=sum(part.linked for part in made.parts),
        segments_copied=sum(part.copied for part in made.parts),
        bytes_linked=sum(part.linked_bytes for part in made.parts),
        bytes_copied=sum(part.copied_bytes for part in made.parts),
    )
