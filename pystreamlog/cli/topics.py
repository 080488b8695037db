"""`pystreamlog topics`: make, list, describe, alter and delete topics."""

from __future__ import annotations

from typing import Annotated

import typer

from pystreamlog.backend.administration import NewTopic
from pystreamlog.cli.options import ExecuteOption, JsonOption, LogOption, complete_topics
from pystreamlog.cli.output import print_json, print_line
from pystreamlog.cli.running import Commands, confirm, opened
from pystreamlog.cli.settings import parse_settings
from pystreamlog.coordination.topic_config import TopicConfig

__all__ = ["app"]

app = typer.Typer(
    name="topics", cls=Commands, help="Make, list, describe, alter and delete topics.", no_args_is_help=True
)

NewNames = Annotated[list[str], typer.Argument(metavar="TOPIC", help="Their names.")]
Names = Annotated[list[str], typer.Argument(metavar="TOPIC", help="Their names.", autocompletion=complete_topics)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="NAME=VALUE", help="A setting, as retention_ms=86400000; may be repeated."),
]


@app.command()
def create(
    *,
    topics: NewNames,
    partitions: Annotated[int, typer.Option(min=1, help="How many partitions each gets.")] = 1,
    config: Settings = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="Leave alone those that there are.")] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Make topics, and the log itself if it is missing."""
    configs = parse_settings(config or [], TopicConfig, "topic")
    with opened(log, create=True) as stream_log:
        there = set(stream_log.topics()) if if_not_exists else set()
        new = [NewTopic(name, num_partitions=partitions, configs=configs) for name in topics if name not in there]
        made = stream_log.admin.create_topics(new)
        if json:
            print_json([description._asdict() for description in made.values()])
        else:
            for description in made.values():
                print_line(f"made topic {description.name} with {description.partitions} partitions")


@app.command("list")
def list_(
    *,
    exclude_internal: Annotated[
        bool, typer.Option("--exclude-internal", help="Leave out those whose names begin with __.")
    ] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """List the topics."""
    with opened(log, read_only=True) as stream_log:
        found = stream_log.admin.list_topics(list_internal=not exclude_internal)
        if json:
            print_json([listing._asdict() for listing in found.values()])
        else:
            for name in found:
                print_line(name)


@app.command()
def delete(*, topics: Names, execute: ExecuteOption = False, log: LogOption = None) -> None:
    """Delete topics with all their records."""
    with opened(log) as stream_log:
        stream_log.admin.describe_topics(topics)
        confirm(f"{', '.join(topics)} with all records will be deleted", execute=execute)
        stream_log.admin.delete_topics(topics)
        for name in topics:
            print_line(f"deleted topic {name}")
