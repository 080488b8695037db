"""What keeps a log in order: `pystreamlog verify`, `repair`, `expire`, `compact` and `snapshot`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pystreamlog.backend.maintenance import MaintenanceReport
from pystreamlog.cli.options import JsonOption, LogOption, complete_topics
from pystreamlog.cli.output import escaped, on_terminal, print_json, print_line
from pystreamlog.cli.running import checked_target, end, opened

__all__ = ["compact", "expire", "repair", "snapshot", "verify"]

DirectoryArgument = Annotated[
    str | None, typer.Argument(metavar="DIRECTORY", help="The log; the same as --log, and goes before it.")
]
TopicsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        metavar="TOPIC",
        help="Only this topic; may be repeated. All without.",
        autocompletion=complete_topics,
    ),
]


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show on a terminal that something takes its time."""
    if not on_terminal(sys.stderr):
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - takes longer to import than most commands run
    from rich.text import Text  # noqa: PLC0415 - the same

    with Console(stderr=True).status(Text(escaped(what))):
        yield


def verify(*, directory: DirectoryArgument = None, log: LogOption = None, json: JsonOption = False) -> None:
    """Look through a log for damage; changes nothing. Exits with 0 when the log is whole, with 1 when it is damaged.

    Every byte that means something is read. Others may write meanwhile.
    """
    from pystreamlog.cli.care import tell, verify_log  # noqa: PLC0415 - brings argparse, which no other command needs

    target = checked_target(directory or log)
    with _progress("looking") as progress:
        report = verify_log(target, progress)
    end(tell(report, as_json=json))


def repair(
    *,
    directory: DirectoryArgument = None,
    cut_tail: Annotated[
        bool,
        typer.Option(
            "--cut-tail",
            help="Cut each damaged partition where the damage begins; what is cut off is kept in files named *.cut-*.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --cut-tail: cut even what is known to be on disk, where a copy should be put back.",
        ),
    ] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Drop wrong indexes of a log, publish what a damaged slot hides, and cut damaged ends off when told to.

    Exits with 0 when the log is whole then, with 1 when damage is left.
    """
    from pystreamlog.cli.care import repair_log, tell  # noqa: PLC0415 - brings argparse, which no other command needs

    target = checked_target(directory or log)
    if force and not cut_tail:
        raise typer.BadParameter("--force goes with --cut-tail")
    with _progress("repairing") as progress:
        report = repair_log(target, progress, cut_tail=cut_tail, force=force)
    end(tell(report, as_json=json))


def expire(*, log: LogOption = None, json: JsonOption = False) -> None:
    """Delete now what the topics' retention_ms and retention_bytes let go: whole segments, from the oldest on.

    It compacts what is due, too. Processes that use a topic do both by themselves every few minutes.
    """
    with opened(log) as stream_log:
        _tell_maintenance(stream_log.maintain(), json=json)


def compact(
    *,
    topic: TopicsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Compact whatever min_cleanable_dirty_ratio says.")] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Compact now the topics whose cleanup_policy is compact, and gather small batches where repack is true.

    Of each key the last record stays, at least. What retention lets go is deleted, too. Processes that use a topic do
    both by themselves, when enough has gathered.
    """
    with opened(log) as stream_log, _working("compacting"):
        report = stream_log.maintain(topics=topic, force=force)
    _tell_maintenance(report, json=json)


def _tell_maintenance(report: MaintenanceReport, *, json: bool) -> None:
    if json:
        print_json(report.to_dict())
    else:
        for line in str(report).splitlines():
            print_line(escaped(line))


def snapshot(
    *,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The directory to make, or an empty one.")],
    topic: TopicsOption = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Make a consistent copy of the log, or of some topics, while it is being written; it is a log of its own.

    Opening it is restoring it. Sealed segments are hard links where the file system has them, so a large log takes no
    longer than a small one. What is copied shows as progress on a terminal.
    """
    with opened(log, read_only=True) as stream_log:
        with _progress("copying") as progress:
            report = stream_log.snapshot(target, topics=topic, progress=progress)
        if json:
            print_json(report.to_dict())
        else:
            print_line(escaped(str(report)))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], object] | None]:
    """A bar on a terminal; it is told the bytes that are done, and how many there are."""
    if not on_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - takes longer to import than most commands run
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415 - the same

    columns = (TextColumn(what, markup=False), BarColumn(None), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
