"""Options that commands share, each with one name, one meaning and one help text."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

__all__ = [
    "LOG_VARIABLE",
    "AllGroupsOption",
    "ExecuteOption",
    "GroupOption",
    "GroupsArgument",
    "JsonOption",
    "LogOption",
    "TopicArgument",
    "TopicsArgument",
    "complete_groups",
    "complete_settings",
    "complete_topic_settings",
    "complete_topics",
]

LOG_VARIABLE = "PYSTREAMLOG_DIR"


def complete_topics(context: typer.Context, incomplete: str) -> list[str]:
    """The topics that begin so, for the shell; nothing when the log cannot be read."""
    return [name for name in _names(context, "topics") if name.startswith(incomplete)]


def complete_groups(context: typer.Context, incomplete: str) -> list[str]:
    """The consumer groups that begin so, for the shell; nothing when the log cannot be read."""
    return [name for name in _names(context, "groups") if name.startswith(incomplete)]


def complete_topic_settings(incomplete: str) -> list[str]:
    """The settings of topics that begin so, for the shell."""
    import attrs  # noqa: PLC0415 - only the shell asks

    from pystreamlog.coordination.topic_config import TopicConfig  # noqa: PLC0415 - the same

    return [field.name for field in attrs.fields(TopicConfig) if field.name.startswith(incomplete)]


def complete_settings(incomplete: str) -> list[str]:
    """As `complete_topic_settings`, with the `=` behind which the value comes."""
    return [f"{name}=" for name in complete_topic_settings(incomplete)]


def _names(context: typer.Context, kind: str) -> list[str]:
    target = _target(context)
    if not target:
        return []
    import pystreamlog  # noqa: PLC0415 - only the shell asks

    try:
        with pystreamlog.open(target, create=False, read_only=True) as log:
            if kind == "topics":
                return log.topics()
            return [listing.group_id for listing in log.admin.list_consumer_groups()]
    except (OSError, pystreamlog.StreamLogError, ExceptionGroup):
        return []


def _target(context: typer.Context) -> str | None:
    """The log that was named so far, by `--log` of the command or before it, or by the environment."""
    place: Any = context
    while place is not None:
        source = place.get_parameter_source("log")
        if source is not None and source.name == "COMMANDLINE":
            return str(place.params["log"])
        place = place.parent
    return os.environ.get(LOG_VARIABLE)


LogOption = Annotated[
    str | None,
    typer.Option("--log", envvar=LOG_VARIABLE, metavar="TARGET", help="The log: its directory, or a URL."),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

ExecuteOption = Annotated[
    bool, typer.Option("--execute", help="Do it without asking; needed where there is no terminal to ask on.")
]

TopicArgument = Annotated[
    str | None, typer.Argument(metavar="TOPIC", help="Its name; the same as --topic.", autocompletion=complete_topics)
]

TopicsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TOPIC", help="Their names; the same as --topic.", autocompletion=complete_topics),
]

GroupsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="GROUP", help="Their ids; the same as --group.", autocompletion=complete_groups),
]

GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="GROUP", help="A group; may be repeated.", autocompletion=complete_groups),
]

AllGroupsOption = Annotated[bool, typer.Option("--all-groups", help="All groups that there are.")]
