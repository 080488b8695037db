"""`examples/quickstart.py`, which is the README's quick start."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_quickstart_reads_what_is_there(run_example):
    """The first run prints one order, the next one two, in order."""
    for count in (1, 2):
        completed = run_example("quickstart.py")
        assert (completed.returncode, completed.stderr) == (0, "")
        written, *orders, ends = completed.stdout.splitlines()
        assert written == f"written at offset {count - 1}"
        assert [order.split()[1] for order in orders] == [str(offset) for offset in range(count)]
        assert f": {count}" in ends


def test_quickstart_is_that_of_the_readme():
    """Who copies the one has the other."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"## Quick start\n\n```python\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    assert (ROOT / "examples" / "quickstart.py").read_text("utf-8").endswith(block[1])
