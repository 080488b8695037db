"""The command line, put together. Needs the `cli` extra."""

from __future__ import annotations

import os
from typing import Annotated, get_type_hints

import typer

import pystreamlog
from pystreamlog.cli import groups, housekeeping, offsets, perf, top, topics, transactions
from pystreamlog.cli.consume import consume
from pystreamlog.cli.dump import dump
from pystreamlog.cli.options import LOG_VARIABLE, LogOption
from pystreamlog.cli.produce import produce
from pystreamlog.cli.running import Commands, end

__all__ = ["app"]

app = typer.Typer(
    name="pystreamlog",
    cls=Commands,
    help="Kafka as a library: streams of events in a directory that many processes share, without a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topics.app)
app.command()(produce)
app.command()(consume)
app.add_typer(groups.app)
app.add_typer(transactions.app)
app.command()(offsets.offsets)
app.command("delete-records")(offsets.delete_records)
app.command()(top.top)
app.command()(dump)
app.command()(housekeeping.expire)
app.command()(housekeeping.compact)
app.command()(housekeeping.snapshot)
app.command()(housekeeping.verify)
app.command()(housekeeping.repair)
app.add_typer(perf.app)


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"pystreamlog {pystreamlog.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    log: LogOption = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if log:
        os.environ[LOG_VARIABLE] = log  # what the commands' own --log falls back on


@app.command("demo")
def _demo(
    *,
    directory: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the log is made, and kept; a temporary one without.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long it takes, about: from 2 to 60; 8 without.")
    ] = None,
) -> None:
    """Two producers and three consumers share a log, one is killed, every record is checked."""
    from pystreamlog.cli import demo  # noqa: PLC0415 - starts processes, as no other command does

    given = {"--directory": directory, "--seconds": seconds}
    end(demo.main([text for name, value in given.items() if value is not None for text in (name, str(value))]))


def _resolve_annotations(commands: typer.Typer) -> None:
    """Turn the annotations of all commands from texts into what they say, which typer would do three times over."""
    for command in commands.registered_commands:
        assert command.callback is not None
        command.callback.__annotations__ = get_type_hints(command.callback, include_extras=True)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _resolve_annotations(group.typer_instance)


_resolve_annotations(app)
