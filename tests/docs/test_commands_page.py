"""`docs/reference/commands.md` has every command as the command line has it."""

from __future__ import annotations

import pytest

from tests.cli.commands import COMMANDS
from tests.docs.commands_page import PAGE, SHARED, page


def test_page_is_as_the_commands_say():
    """The page was made again after the last change of a command."""
    assert PAGE.read_text("utf-8") == page(), "run `python -m tests.docs.commands_page`, and commit what it wrote"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_is_on_the_page(command):
    """Each command has its heading, and each of its options stands below that."""
    _, _, rest = page().partition(f"## `{command.name}`\n")
    section = rest.partition("\n## ")[0].partition("\n### ")[0]
    for name, parameter in command.parameters.items():
        if name not in SHARED:
            typed = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
            assert typed in section, f"{command.name}: {typed} is missing"
