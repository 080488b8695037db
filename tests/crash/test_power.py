"""A real file system loses its power, over and over: what was acknowledged as on disk is there, and nothing is torn."""

from __future__ import annotations

import logging
import os
import subprocess

import pytest

from .kills import fast_folder
from .mounts import NOLOGFLUSH, Ext4, reason_against
from .power import Report, cut_power
from .world import LostError

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

CUTS = 60


@pytest.fixture
def disk():
    """An ext4 file system that is mounted."""
    if reason := reason_against(loop=True):
        pytest.skip(f"no power is cut here: {reason}")
    with fast_folder() as folder, Ext4(folder) as mounted:
        yield mounted


def test_power_cuts_lose_nothing_that_was_on_disk(disk, caplog):
    """Each partition is a prefix of what was sent; what was acknowledged at `"fsync"` is there."""
    caplog.set_level(logging.CRITICAL, "pystreamlog")
    report = Report()
    cut_power(disk, CUTS, 20, report)
    assert report.cuts == CUTS
    assert report.acknowledged["fsync"] > CUTS
    assert report.transactions
    assert report.lost_os, "nothing was lost at all: is the power really cut?"


def test_fsync_that_is_left_out_is_noticed(disk, caplog, monkeypatch):
    """The cuts are real: without any fsync, acknowledged records go."""
    caplog.set_level(logging.CRITICAL, "pystreamlog")
    monkeypatch.setattr("pystreamlog.storage.files.File.datasync", lambda _: None)
    with pytest.raises(LostError):
        cut_power(disk, CUTS, 21, Report())


def test_disk_is_given_back(disk):
    """Nothing stays mounted, and no loop device stays taken, whatever state they are in."""
    disk.cut(NOLOGFLUSH)
    device = disk._device
    disk.close()
    assert not os.path.ismount(disk.path)
    attached = subprocess.run(["losetup", "--list", "--output", "NAME"], capture_output=True, text=True, check=True)
    assert device not in attached.stdout.split()
