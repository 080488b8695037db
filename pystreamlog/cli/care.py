"""`pystreamlog verify` and `pystreamlog repair`: look through a log for damage, and mend what can be.

Both need the core dependencies only. They end with 0 when the log is whole, 1 when it is damaged, and 2 for a command
line that makes no sense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import pystreamlog
from pystreamlog.backend.verification import RepairReport, VerifyReport
from pystreamlog.cli.output import escaped, json_line, print_line, warn
from pystreamlog.errors import ConfigError, StreamLogError

__all__ = ["repair", "repair_log", "tell", "verify", "verify_log"]

_WHOLE, _DAMAGED, _USAGE = 0, 1, 2


def verify_log(target: str, progress: Callable[[int, int], object] | None = None) -> VerifyReport:
    """Look through a log.

    Args:
        target: The log.
        progress: As `StreamLog.verify` calls it.

    Raises:
        StreamLogError: As `pystreamlog.open` raises it.
    """
    with pystreamlog.open(target, create=False, read_only=True, reads="pread", maintenance=False) as log:
        return log.verify(progress=progress)


def repair_log(
    target: str, progress: Callable[[int, int], object] | None = None, *, cut_tail: bool, force: bool
) -> RepairReport:
    """Repair a log.

    Args:
        target: The log.
        progress: As `StreamLog.repair` calls it.
        cut_tail: See there.
        force: See there.

    Raises:
        StreamLogError: As `pystreamlog.open` and `StreamLog.repair` raise it.
    """
    with pystreamlog.open(target, create=False, reads="pread", maintenance=False) as log:
        return log.repair(cut_tail=cut_tail, force=force, progress=progress)


def tell(report: VerifyReport | RepairReport, *, as_json: bool) -> int:
    """Print what was found or done; the exit status."""
    lines = [json_line(report.to_dict())] if as_json else map(escaped, str(report).splitlines())
    if sys.stdout is not None:  # without one, the exit status tells
        for line in lines:
            print_line(line)
    return _WHOLE if report.ok else _DAMAGED


def verify(arguments: Sequence[str]) -> int:
    """Run `verify DIRECTORY`; the exit status."""
    options = _parser("verify", "look through a log for damage; changes nothing").parse_args(arguments)
    return _status(lambda: verify_log(options.directory), as_json=options.json)


def repair(arguments: Sequence[str]) -> int:
    """Run `repair DIRECTORY`; the exit status."""
    parser = _parser("repair", "drop wrong indexes, publish what a damaged slot hides, and cut damaged ends when told")
    parser.add_argument(
        "--cut-tail",
        action="store_true",
        help="cut each damaged partition where the damage begins; what is cut off is kept in files named *.cut-*",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --cut-tail: cut even what is known to be on disk, where a copy should be put back",
    )
    options = parser.parse_args(arguments)
    if options.force and not options.cut_tail:
        parser.error("--force goes with --cut-tail")
    return _status(
        lambda: repair_log(options.directory, cut_tail=options.cut_tail, force=options.force), as_json=options.json
    )


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"pystreamlog {name}", description=description)
    parser.add_argument("directory", help="the log's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return parser


def _status(work: Callable[[], VerifyReport | RepairReport], *, as_json: bool) -> int:
    try:
        return tell(work(), as_json=as_json)
    except StreamLogError as error:
        warn(str(error))
        return _USAGE if isinstance(error, ConfigError) else _DAMAGED
