"""The command line, put together. Needs the `cli` extra."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import pystreamlog
from pystreamlog.cli import perf, topics
from pystreamlog.cli.consume import consume
from pystreamlog.cli.dump import dump
from pystreamlog.cli.options import LOG_VARIABLE, LogOption
from pystreamlog.cli.produce import produce
from pystreamlog.cli.running import Commands

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
app.command()(dump)
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
    directory: Annotated[str | None, typer.Option(help="Where the log is made, and kept.")] = None,
    seconds: Annotated[float | None, typer.Option(help="How long it takes, about.")] = None,
) -> None:
    """Two producers and three consumers share a log, one is killed, every record is checked."""
    from pystreamlog.cli import demo  # noqa: PLC0415 - starts processes, as no other command does

    given = {"--directory": directory, "--seconds": seconds}
    _end(demo.main([text for name, value in given.items() if value is not None for text in (name, str(value))]))


def _end(status: int) -> None:
    if status:
        raise typer.Exit(status)
