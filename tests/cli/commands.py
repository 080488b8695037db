"""Every command of the command line, with arguments that make sense for it; a new one is found by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import typer

from pystreamlog.cli.app import app

__all__ = ["COMMANDS", "Command"]

# What a parameter that must be given is given, by its name.
VALUES = {
    "group": "billing",
    "groups": "billing",
    "num_records": "5",
    "target": "copy",
    "topic": "orders",
    "topics": "orders",
    "transactional_ids": "invoices",
}
# Arguments that may also be given as options: they are given, too.
ARGUMENTS = {"groups_argument": "billing", "topic_argument": "orders", "topics_argument": "orders"}
USUAL = VALUES | ARGUMENTS
# What a command needs beyond that.
MORE = {
    "consume": ["--from-beginning"],
    "delete-records": ["--topic", "orders", "--offset", "3", "--execute"],
    "groups delete": ["billing", "--execute"],
    "groups delete-offsets": ["--execute"],
    "groups describe": ["billing"],
    "groups remove-members": ["--execute"],
    "groups reset-offsets": ["--all-topics", "--to-earliest", "--execute"],
    "perf produce": ["--record-size", "10"],
    "top": ["--once", "--interval", "0.1"],
    "topics alter": ["--config", "flush_messages=7"],
    "topics create": ["--if-not-exists"],
    "topics delete": ["--execute"],
}


class Command(NamedTuple):
    """A command.

    Attributes:
        name: As it is typed, with its group's.
        parameters: What it takes, by name; without what is hidden.
    """

    name: str
    parameters: dict[str, Any]

    @property
    def takes_log(self) -> bool:
        """Whether it works on a log."""
        return "log" in self.parameters

    @property
    def words(self) -> list[str]:
        """Its name as arguments."""
        return self.name.split()

    def arguments(self, **values: str) -> list[str]:
        """A command line that makes sense.

        Args:
            **values: Of parameters that must be given, instead of the usual ones.
        """
        words = self.words
        for name in self.required_texts:
            parameter = self.parameters[name]
            assert name in USUAL, f"say in VALUES what `{self.name}` is given as {name}"
            value = values.get(name, USUAL[name])
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
        return words + MORE.get(self.name, [])

    @property
    def required_texts(self) -> list[str]:
        """The names that must be given."""
        return [name for name, parameter in self.parameters.items() if parameter.required or name in ARGUMENTS]


def _found(command: Any, name: str = "") -> Iterator[Command]:
    for word, each in getattr(command, "commands", {}).items():
        yield from _found(each, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield Command(name, {each.name: each for each in command.params if not each.hidden})


COMMANDS = list(_found(typer.main.get_command(app)))
