"""What errors advise can be typed into a shell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pystreamlog


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["topics", "describe", "gone"], "`pystreamlog topics create gone` makes it"),
        (["groups", "describe", "gone"], "`pystreamlog groups list` tells"),
        (["groups", "delete", "billing", "--execute"], "`pystreamlog groups remove-members`"),
        (["transactions", "describe", "gone"], "`pystreamlog transactions list` tells"),
    ],
)
def test_advice_is_for_a_shell(on, filled, arguments, advice):
    """What an error advises can be typed."""
    with pystreamlog.open(filled) as log, log.consumer("orders", group_id="billing") as consumer:
        consumer.poll(0)
        assert advice in on(*arguments).err


def test_advice_without_a_log(run, tmp_path):
    """A missing log is made by a command; a missing `log.json` by nothing but a copy."""
    assert "`pystreamlog topics create` makes it" in run("--log", tmp_path / "missing", "topics", "list").err


def test_log_file_is_missing(on, filled):
    """That a directory of a log is none is not said of it."""
    os.remove(Path(filled) / "log.json")
    for arguments in (["verify"], ["topics", "create", "other"], ["topics", "list"]):
        done = on(*arguments)
        assert done.status == 1
        assert "restore that from a copy" in done.err


def test_tilde_that_no_shell_expanded(run, tmp_path):
    """As in --log=~/data: no directory is called so by mistake."""
    done = run("--log", "~/data", "topics", "create", "orders")
    assert done.status == 2
    assert "./~/data" in done.err
    assert not (tmp_path / "~").exists()
    assert run("--log", "./~/data", "topics", "create", "orders").status == 0
    assert run("--log", "./~/data", "topics", "list").lines == ["orders"]
