"""What keeps a log in order: `pystreamlog verify`, `repair`, `expire` and `snapshot`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pystreamlog.cli.options import JsonOption, LogOption, complete_topics
from pystreamlog.cli.output import bytes_of, escaped, print_json, print_line, print_table, warn
from pystreamlog.cli.running import checked_target, end, opened

__all__ = ["expire", "repair", "snapshot", "verify"]

DirectoryArgument = Annotated[
    str | None, typer.Argument(metavar="DIRECTORY", help="The log; the same as --log, and goes before it.")
]


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show on a terminal that something takes its time."""
    if not sys.stderr.isatty():
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
    with _working(f"looking through {target}"):
        report = verify_log(target)
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
    with _working(f"repairing {target}"):
        report = repair_log(target, cut_tail=cut_tail, force=force)
    end(tell(report, as_json=json))


def expire(*, log: LogOption = None, json: JsonOption = False) -> None:
    """Delete now what the topics' retention_ms and retention_bytes let go: whole segments, from the oldest on.

    Processes that use a topic do so by themselves every few minutes.
    """
    with opened(log) as stream_log:
        report = stream_log.maintain()
        rows = [(*place, gone.segments, gone.bytes, gone.log_start_offset) for place, gone in report.deleted.items()]
        if json:
            keys = ("topic", "partition", "segments", "bytes", "log_start_offset")
            deleted = [dict(zip(keys, row, strict=True)) for row in rows]
            print_json({"deleted": deleted, "waits_ms": report.waits_ms})
        elif rows:
            heads = ("TOPIC", "PARTITION", "SEGMENTS", "BYTES", "START")
            print_table(heads, [(*row[:3], bytes_of(row[3]), row[4]) for row in rows], right=heads[1:])
        else:
            print_line("nothing is old or large enough to be deleted")
        if report.waits_ms:
            warn(f"the clock jumped: nothing is deleted by age or size for {report.waits_ms / 1000:.0f} s")


def snapshot(
    *,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The directory to make, or an empty one.")],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="TOPIC",
            help="Take only this topic; may be repeated. All without.",
            autocompletion=complete_topics,
        ),
    ] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Make a consistent copy of the log, or of some topics, while it is being written; it is a log of its own.

    Opening it is restoring it. Sealed segments are hard links where the file system has them, so a large log takes no
    longer than a small one. What is copied shows as progress on a terminal.
    """
    with opened(log, read_only=True) as stream_log:
        with _copying() as progress:
            report = stream_log.snapshot(target, topics=topic, progress=progress)
        if json:
            print_json(report.to_dict())
        else:
            print_line(escaped(str(report)))


@contextmanager
def _copying() -> Iterator[Callable[[int, int], object] | None]:
    """A bar on a terminal; it is told the bytes that were copied, and how many there are."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - takes longer to import than most commands run
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415 - the same

    columns = (TextColumn("copying", markup=False), BarColumn(None), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
