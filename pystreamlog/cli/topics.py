"""`pystreamlog topics`: make, list, describe, alter and delete topics."""

from __future__ import annotations

from typing import Annotated

import typer

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.administration import AlterConfigOp, NewTopic, TopicDescription
from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.options import (
    ExecuteOption,
    JsonOption,
    LogOption,
    complete_settings,
    complete_topic_settings,
    complete_topics,
)
from pystreamlog.cli.output import print_json, print_line
from pystreamlog.cli.running import Commands, Trials, confirm, opened
from pystreamlog.cli.settings import parse_settings
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.errors import TopicExistsError, UnknownTopicError

__all__ = ["app"]

app = typer.Typer(
    name="topics", cls=Commands, help="Make, list, describe, alter and delete topics.", no_args_is_help=True
)

NewNames = Annotated[list[str], typer.Argument(metavar="TOPIC", help="Their names.")]
Names = Annotated[list[str], typer.Argument(metavar="TOPIC", help="Their names.", autocompletion=complete_topics)]
NoInternal = Annotated[bool, typer.Option("--exclude-internal", help="Leave out those whose names begin with __.")]


@app.command()
def create(
    *,
    topics: NewNames,
    partitions: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="How many partitions each gets.")] = 1,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME=VALUE",
            help="A setting, as retention_ms=86400000; may be repeated.",
            autocompletion=complete_settings,
        ),
    ] = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="Leave alone those that there are.")] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Make topics, and the log itself if it is missing. One that fails keeps none of the others from being made."""
    configs = parse_settings(config or [], TopicConfig, "topic")
    TopicConfig(**configs)  # what is wrong in it is said before anything is made
    with opened(log, create=True) as stream_log, Trials() as trials:
        made: list[TopicDescription] = []
        for name in dict.fromkeys(topics):
            with trials.trying(but=TopicExistsError if if_not_exists else ()):
                new = NewTopic(name, num_partitions=partitions, configs=configs)
                made += stream_log.admin.create_topics([new]).values()
        if json:
            print_json([description._asdict() for description in made])
        else:
            for description in made:
                count = description.partitions
                print_line(f"made topic {description.name} with {count} partition{'' if count == 1 else 's'}")


@app.command("list")
def list_(*, exclude_internal: NoInternal = False, log: LogOption = None, json: JsonOption = False) -> None:
    """List the topics."""
    with opened(log, read_only=True) as stream_log, Trials() as trials:
        names = _names(stream_log, exclude_internal=exclude_internal)
        if json:
            found: list[TopicDescription] = []
            for name in names:
                with trials.trying(but=UnknownTopicError):
                    found += stream_log.admin.describe_topics(name).values()
            print_json([description._asdict() for description in found])
        else:
            for name in names:
                print_line(name)


def _names(log: StreamLog, *, exclude_internal: bool) -> list[str]:
    return [name for name in log.topics() if not (exclude_internal and name.startswith("__"))]


@app.command()
def describe(
    *,
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="TOPIC", help="Their names; all without.", autocompletion=complete_topics),
    ] = None,
    exclude_internal: NoInternal = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Tell what topics hold: offsets, sizes and times per partition, and the settings that differ from defaults.

    START and END are the first offset and the next record's, RECORDS what lies between (compaction leaves fewer), BYTES
    the size of the segment files. RECORDS/S and BYTES/S are means over the time from the first record to the last. Only
    a few bytes of each partition are read, however large it is.
    """
    from pystreamlog.cli import topic_description  # noqa: PLC0415 - looks into files, as few commands do
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - the same

    with opened(log, read_only=True) as stream_log, opened_extents(stream_log) as extents, Trials() as trials:
        names = topics or _names(stream_log, exclude_internal=exclude_internal)
        described = []
        for name in dict.fromkeys(names):
            with trials.trying(but=() if topics else UnknownTopicError):
                described.append(topic_description.described(stream_log, extents, name))
                if not json:
                    topic_description.show(described[-1])
        if json:
            print_json(described)


@app.command()
def alter(
    *,
    topics: Names,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "--add-config",
            metavar="NAME=VALUE",
            help="Change a setting, as retention_ms=86400000; may be repeated.",
            autocompletion=complete_settings,
        ),
    ] = None,
    delete_config: Annotated[
        list[str] | None,
        typer.Option(
            "--delete-config",
            metavar="NAME",
            help="Have a setting's default hold again; may be repeated.",
            autocompletion=complete_topic_settings,
        ),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            min=1,
            help="How many partitions each shall have: more than now. Keys may go to others then.",
        ),
    ] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Change settings of topics, or raise their number of partitions. Of each topic, all is done or nothing."""
    values = parse_settings(config or [], TopicConfig, "topic")
    changes = [AlterConfigOp(name, value) for name, value in values.items()]
    changes += [AlterConfigOp(name.replace(".", "_"), op_type="DELETE") for name in delete_config or ()]
    if not changes and partitions is None:
        raise typer.BadParameter("say what to change: --config NAME=VALUE, --delete-config NAME, --partitions NUMBER")
    with opened(log) as stream_log, Trials() as trials:
        altered: list[str] = []
        for name in dict.fromkeys(topics):
            with trials.trying():
                _alter(stream_log.admin, name, changes, partitions)
                altered.append(name)
                if not json:
                    print_line(f"altered topic {name}")
        if json:
            print_json(altered)


def _alter(admin: Admin, name: str, changes: list[AlterConfigOp], partitions: int | None) -> None:
    """Make all changes of one topic, after all of them were found to be right."""
    if partitions is not None:
        admin.create_partitions({name: partitions}, validate_only=True)
    if changes:
        admin.incremental_alter_configs({name: changes})
    if partitions is not None:
        admin.create_partitions({name: partitions})


@app.command()
def delete(
    *,
    topics: Names,
    if_exists: Annotated[bool, typer.Option("--if-exists", help="Pass over those that there are not.")] = False,
    execute: ExecuteOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Delete topics with all their records. One that fails keeps none of the others from being deleted."""
    with opened(log) as stream_log, Trials() as trials:
        passed = UnknownTopicError if if_exists else ()
        there: list[str] = []
        for name in dict.fromkeys(topics):
            with trials.trying(but=passed):
                there += stream_log.admin.describe_topics(name)
        if there:
            confirm(f"{', '.join(there)} with all records will be deleted", execute=execute)
        deleted: list[str] = []
        for name in there:
            with trials.trying(but=passed):
                stream_log.admin.delete_topics(name)
                deleted.append(name)
                if not json:
                    print_line(f"deleted topic {name}")
        if json:
            print_json(deleted)
