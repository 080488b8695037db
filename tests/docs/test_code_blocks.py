"""Every Python block of the README and the docs runs: each page is one program, block after block.

A block with a title, as in ```` ```python title="watch.py" ````, is a file of that name: it is saved beside the program
and run as a script of its own where it stands on the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r'^(?P<indent>[ \t]*)```python(?: title="(?P<title>[\w-]+\.py)")?[ \t]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$',
    re.DOTALL | re.MULTILINE,
)
# The first line of a page is its heading, so the program has room for this there.
FIRST_LINE = (
    "import subprocess, sys; "
    'run_script = lambda name: subprocess.run([sys.executable, "-W", "error", name], check=True)'
)


def program_of(text: str) -> tuple[str, dict[str, str]]:
    """The program of a page, on the page's own line numbers, and the scripts that it runs."""
    lines = [FIRST_LINE] + [""] * text.count("\n")
    scripts: dict[str, str] = {}
    for block in BLOCK.finditer(text):
        code = textwrap.dedent(block["code"])
        fence = text.count("\n", 0, block.start())
        title = block["title"]
        if title is None:
            lines[fence + 1 : fence + 1 + code.count("\n")] = code.splitlines()
        else:
            assert title not in scripts, f"two blocks are called {title}"
            scripts[title] = code
            lines[fence] = f"run_script({title!r})"
    return "\n".join(lines) + "\n", scripts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path):
    """The blocks of a page run in their order, without an error or a warning."""
    text = page.read_text("utf-8")
    program, scripts = program_of(text)
    assert text.count("```python") == len(BLOCK.findall(text)), "a Python block that the test cannot read"
    if not BLOCK.search(text):
        return
    for name, code in scripts.items():
        (tmp_path / name).write_text(code, "utf-8")
    (tmp_path / "page.py").write_text(program, "utf-8")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def test_program_keeps_the_lines_of_the_page():
    """A traceback names the line of the page."""
    page = '# Page\n\n```python\na = 1\n```\n\n```python title="b.py"\nb = 2\n```\n\n1. Step\n\n'
    program, scripts = program_of(page + "    ```python\n    c = 3\n    ```\n")
    lines = program.splitlines()
    assert (lines[3], lines[6], lines[13]) == ("a = 1", "run_script('b.py')", "c = 3")
    assert scripts == {"b.py": "b = 2\n"}


def test_readme_has_a_quick_start_of_fifteen_lines():
    """The first Python block of the README is short enough to be read at once."""
    first = BLOCK.search((ROOT / "README.md").read_text("utf-8"))
    assert first is not None
    assert len(first["code"].splitlines()) <= 15
