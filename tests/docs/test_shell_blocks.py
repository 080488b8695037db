"""Every console block of the docs runs: each page is one session of bash, block after block, in a fresh directory.

What a block may hold:

- `$ command`: a command, which runs to its end; lines behind it that begin with `> ` belong to it.
- Other lines: what it prints, its errors included. `...` in a line stands for any text, a line of only `...` for any
  lines. A command without such lines prints nothing.
- A command must succeed, unless `$ echo $?` comes next, which shows how it failed.

A block with a title, as in ```` ```json title="orders.jsonl" ````, is a file of that name: it lies in the directory
from the start. Only blocks with a prompt run; one that cannot run is preceded by the line `<!-- not run: why -->`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n\n?)?"
    r'(?P<indent>[ \t]*)```(?P<kind>\w+)(?: title="(?P<title>[\w.-]+)")?[ \t]*\n'
    r"(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
PROMPT, MORE, ANYTHING = "$ ", "> ", "..."
ANY_TEXT, ANY_LINES = r"[^\n]*", r"(?:[^\n]*\n)*"
STATUS_COMMAND = "echo $?"
MARK = "\x1e"
"""Stands before the exit status of each command; no page prints it."""


class Command(NamedTuple):
    """A command of a page, the line where it stands, and what it prints according to the page."""

    line: int
    text: str
    shown: list[str]


def commands_of(page: str) -> list[Command]:
    """The commands of a page that are to run, in their order."""
    commands: list[Command] = []
    for block in BLOCK.finditer(page):
        if block["kind"] != "console" or block["skip"]:
            continue
        first = page.count("\n", 0, block.start("text")) + 1
        begun = len(commands)
        for number, line in enumerate(textwrap.dedent(block["text"]).splitlines(), first):
            if line.startswith(PROMPT):
                commands.append(Command(number, line.removeprefix(PROMPT), []))
            elif len(commands) == begun:
                continue  # a block without a prompt, as of an installation
            elif line.startswith(MORE) and not commands[-1].shown:
                last = commands[-1]
                commands[-1] = last._replace(text=f"{last.text}\n{line.removeprefix(MORE)}")
            else:
                commands[-1].shown.append(line)
    return commands


def files_of(page: str) -> dict[str, str]:
    """The files that a page brings, by name."""
    return {
        block["title"]: textwrap.dedent(block["text"])
        for block in BLOCK.finditer(page)
        if block["title"] and not block["skip"]
    }


def fits(shown: list[str], printed: list[str]) -> bool:
    """Whether a command printed what its page shows."""
    pattern = "".join(
        ANY_LINES if line.strip() == ANYTHING else ANY_TEXT.join(map(re.escape, line.rstrip().split(ANYTHING))) + "\n"
        for line in shown
    )
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed)) is not None


def script_of(commands: list[Command]) -> str:
    """One program for bash; behind what a command printed come the mark and its exit status."""
    ran = "__status=$?; printf '%s%d\\n' $'\\x1e' $__status; (exit $__status)"
    ending = "trap 'kill $(jobs -p) 2>/dev/null' EXIT\n"  # what runs in the background would keep the pipe open
    return ending + "".join(f"{{ {command.text}\n}} </dev/null\n{ran}\n" for command in commands)


def run(commands: list[Command], directory: Path, binaries: Path) -> list[tuple[list[str], int]]:
    """Run commands; what each one printed, line by line, and its exit status."""
    python = shlex.quote(sys.executable)
    starts = "import sys; sys.argv[0] = 'pystreamlog'; from pystreamlog.__main__ import main; sys.exit(main())"
    for name, arguments in (("python", ""), ("pystreamlog", f"-P -c {shlex.quote(starts)}")):
        (binaries / name).write_text(f'#!/bin/sh\nexec {python} {arguments} "$@"\n', "utf-8")
        (binaries / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYSTREAMLOG_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"PATH": f"{binaries}{os.pathsep}{kept['PATH']}", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-c", script_of(commands)],
        cwd=directory,
        env={**kept, **own, "LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what was left in the background
        process.wait()
        process.stdout.close()
    *parts, rest = re.split(rf"{MARK}(\d+)\n", printed)
    done = [(text.splitlines(), int(status)) for text, status in zip(parts[::2], parts[1::2], strict=True)]
    assert len(done) == len(commands), f"bash ended early: {rest}"
    return done


def problems(commands: list[Command], done: list[tuple[list[str], int]]) -> list[str]:
    """What went otherwise than the page says, with the page's lines."""
    found = []
    followed = [*(command.text == STATUS_COMMAND for command in commands[1:]), False]
    for command, (printed, status), is_asked in zip(commands, done, followed, strict=True):
        told = "\n".join(printed)
        if status and not is_asked:
            found.append(f"line {command.line}: {command.text!r} ended with {status}:\n{told}")
        elif not fits(command.shown, printed):
            found.append(f"line {command.line}: {command.text!r} printed:\n{told}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_console_blocks_run(page, tmp_path):
    """The commands of a page run in their order, and print what the page shows."""
    text = page.read_text("utf-8")
    assert text.count("```console") == sum(block["kind"] == "console" for block in BLOCK.finditer(text))
    commands = commands_of(text)
    if not commands:
        return
    directory, binaries = tmp_path / "directory", tmp_path / "binaries"
    directory.mkdir()
    binaries.mkdir()
    for name, content in files_of(text).items():
        (directory / name).write_text(content, "utf-8")
    assert problems(commands, run(commands, directory, binaries)) == []


EXAMPLE = """# Page

```console
pip install something
```

<!-- not run: it never ends -->

```console
$ sleep 100000
```

```json title="two.jsonl"
1
2
```

1. Step

    ```console
    $ sleep 1000 &
    $ cat two.jsonl | tail -n 1
    2
    $ for each in a b; do
    >     echo $each
    > done
    a
    b
    $ false
    $ echo $?
    1
    ```
"""


def test_commands_are_found_with_their_lines(tmp_path):
    """Prompts, continuations, output and titles are told apart, and the example runs as it says."""
    commands = commands_of(EXAMPLE)
    assert [(command.line, command.shown) for command in commands] == [
        (21, []),
        (22, ["2"]),
        (24, ["a", "b"]),
        (29, []),
        (30, ["1"]),
    ]
    assert files_of(EXAMPLE) == {"two.jsonl": "1\n2\n"}
    (tmp_path / "two.jsonl").write_text("1\n2\n", "utf-8")
    (tmp_path / "binaries").mkdir()
    done = run(commands, tmp_path, tmp_path / "binaries")
    assert problems(commands, done) == []
    assert done[3] == ([], 1)
    assert len(problems(commands[:4], done[:4])) == 1, "a failure that nobody asks for"


@pytest.mark.parametrize(
    ("shown", "printed", "fit"),
    [
        (["a"], ["a"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        ([], ["a"], False),
        (["..."], [], True),
        (["..."], ["a", "b"], True),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a...c."], ["abbc."], True),
        (["a...c."], ["abbcd"], False),
        (["a...c"], ["ab", "c"], False),
        (["a"], ["a  "], True),
    ],
)
def test_output_fits_what_is_shown(shown, printed, fit):
    """Dots stand for any text of a line or for any lines, and everything else for itself."""
    assert fits(shown, printed) == fit
