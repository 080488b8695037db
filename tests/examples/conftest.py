"""Examples are programs: they are run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_example(tmp_path):
    """Runs an example in an empty directory, and returns the completed process."""

    def run(name, *arguments, path=(), timeout=100):
        workplace = tmp_path / "workplace"
        temporary = tmp_path / "temporary"
        workplace.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        completed = subprocess.run(
            [sys.executable, ROOT / "examples" / name, *arguments],
            cwd=workplace,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
                "PYTHONWARNINGS": "error",
                "TMPDIR": str(temporary),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert list(temporary.iterdir()) == []
        return completed

    return run
