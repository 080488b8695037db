"""`docs/reference/commands.md`, made from the command line itself: all commands, what they take, and what it means.

`python -m tests.docs.commands_page`, run at the root of the repository, writes it; a test fails while it is outdated.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pystreamlog.cli.app import app

__all__ = ["PAGE", "main", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "commands.md"
WIDTH = 120
SHARED = ("log", "json", "help")
"""Said once, above all commands."""

_HEAD = """\
# Commands

`pystreamlog`, or `python -m pystreamlog`, works on a log from a shell, with the extra `cli`: `pip install
"pystreamlog[cli]"`. `demo`, `verify` and `repair` need no extra; there `verify` and `repair` take the directory only.
[Operate a log from the shell](../how-to/operate-from-the-shell.md) shows most of them at work. Options have the names
that Kafka's tools have for them.

- **The log** is named by `--log TARGET`, in front of the command or behind it, or by the environment variable
  `PYSTREAMLOG_DIR`: its directory, or a URL. Commands that only look need no right to write.
- **`--json`** prints JSON, for programs: a list of objects for what is listed, one object for a single thing, and lines
  of JSON for what goes on. Without it, commands print for people: on a terminal, what a terminal would obey is printed
  as escapes, and a table that is too wide for it becomes a block of lines per row.
- **What cannot be undone** is asked about on a terminal. Elsewhere it needs `--execute`, and ends with 2 without.
- **The exit status** is 0 when a command did what it was told, 1 when it failed, in part or altogether, 2 when the
  command line makes no sense, and 130 after Ctrl-C. Errors go to the standard error stream, one a line.
- **Completion**: `pystreamlog --install-completion` has the shell complete commands and options, and topics, groups and
  settings too of the log that the line names so far, or `PYSTREAMLOG_DIR`; `--show-completion` prints what it would
  install.
"""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _marked(text: str) -> str:
    """A help text with what is typed set off, as Markdown and within a table."""
    text = " ".join(text.split())
    text = re.sub(r"(?<![\w`-])(--?[a-z][a-z-]*)(?![\w`])", r"`\1`", text)
    text = re.sub(r"(\{\"[^}]*\}\]?.*?\})", r"`\1`", text)
    text = re.sub(r"(?<![\w`*])(\*\.[\w*-]+)", r"`\1`", text)
    text = re.sub(r"(?<![\w`])([a-z]+(?:_[a-z]+)+(?:=\d+)?)(?![\w`])", r"`\1`", text)
    return re.sub(r"(?<![\w`])__(?![\w`])", "`__`", text).replace("|", r"\|")


def _typed(parameter: Any) -> str:
    """How a parameter is typed."""
    name = parameter.metavar or parameter.name.upper()
    if parameter.param_type_name == "argument":
        several = "..." if parameter.nargs == -1 else ""
        return f"{name}{several}" if parameter.required else f"[{name}]{several}"
    return ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {name}")


def _row(parameter: Any) -> str:
    default = parameter.default
    is_plain = default is None or default is False or default == () or parameter.required
    shown = "required" if parameter.required else "" if is_plain else f"`{default}`"
    return f"| `{_typed(parameter)}` | {_marked(parameter.help)} | {shown} |".replace("|  |", "| |")


def _command(command: Any, name: str) -> Iterator[str]:
    """The blocks of a command, or of a group of them."""
    if hasattr(command, "commands"):
        if name:
            yield f"## `{name}`"
            yield _wrapped(_marked(command.help))
        for word, each in command.commands.items():
            yield from _command(each, f"{name} {word}".strip())
        return
    yield f"{'###' if ' ' in name else '##'} `{name}`"
    paragraphs = re.split(r"\n\s*\n", command.help.strip())
    yield "\n\n".join(_wrapped(_marked(paragraph)) for paragraph in paragraphs)
    own = [each for each in command.params if each.name not in SHARED and not each.hidden]
    words = [_typed(each) for each in own if each.param_type_name == "argument"]
    usage = " ".join(["pystreamlog", name, *words, *(["[OPTION]..."] if len(own) > len(words) else [])])
    takes = [f"`--{each}`" for each in ("log", "json") if any(each == one.name for one in command.params)]
    also = f"; takes {' and '.join(takes)} too" if takes else ""
    yield f"`{usage}`{also}"
    if own:
        yield "\n".join(["| what | meaning | default |", "|---|---|---|", *map(_row, own)])


def page() -> str:
    """The whole page."""
    return "\n\n".join([_HEAD.rstrip("\n"), *_command(typer.main.get_command(app), "")]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
