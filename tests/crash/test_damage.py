"""Damages to every kind of file, done to a log with everything in it: the short form of `tests.crash.damage`."""

from __future__ import annotations

import random

import pytest

from .damage import DAMAGES, Original, examine, run, table

pytestmark = pytest.mark.faults

COUNT = 45
SEED = 20_240


@pytest.mark.slow
def test_damage_is_detected_or_harmless(tmp_path):
    """Nothing wrong is read, nothing published is cut silently, and only errors of this library are raised."""
    counts = run(COUNT, SEED, tmp_path)
    assert sum(counts.values()) == COUNT
    outcomes = {outcome for _, _, outcome in counts}
    assert {"detected", "harmless"} <= outcomes, "\n".join(table(counts))
    assert len({damage for _, damage, _ in counts}) > len(DAMAGES) // 2


def test_undamaged_log_is_whole(tmp_path):
    """Without a damage, and in a copy, everything is read and verify says so: nothing is reported for nothing."""
    original = Original(tmp_path, SEED)
    for copied in (False, True):
        root = tmp_path / f"copied-{copied}"
        original.copy(root, copied=copied)
        assert examine(original, root, random.Random(SEED), copied=copied) == "harmless"
