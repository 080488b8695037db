"""`pystreamlog compact`: delete what retention lets go, compact and repack a log, now and in this process.

The background maintenance of an open log runs it too (`coordination.rewriting_process`). It ends with 0 when it did
what there was to do, 1 when something could not be done, and 2 for a command line that makes no sense.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

import pystreamlog
from pystreamlog.backend.maintenance import MaintenanceReport
from pystreamlog.cli.output import escaped, json_line, warn
from pystreamlog.coordination.rewriting_process import NICENESS
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import ClosedError, ConfigError, LockTimeoutError, StreamLogError

__all__ = ["compact"]

_DONE, _FAILED, _USAGE = 0, 1, 2
_CHILD_PATIENCE = 1.0
"""Seconds: processes that look at a log at once all start one of these, and one of them is enough."""


def compact(arguments: Sequence[str]) -> int:
    """Run `compact --log DIRECTORY`; the exit status."""
    parser = argparse.ArgumentParser(
        prog="pystreamlog compact",
        description="do the maintenance of a log now: delete what is too old, compact, and gather small batches",
    )
    parser.add_argument("--log", required=True, metavar="DIRECTORY", help="the log's directory")
    parser.add_argument("--topic", action="append", metavar="NAME", help="of this topic only; may be repeated")
    parser.add_argument("--force", action="store_true", help="compact whatever min_cleanable_dirty_ratio says")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--child-of", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child_of:
        return _as_child(options)
    try:
        report = _maintained(options, lambda: None)
    except (StreamLogError, ExceptionGroup) as error:
        return _failed(error)
    lines = [json_line(report.to_dict())] if options.json else map(escaped, str(report).splitlines())
    for line in lines:
        print(line)
    return _DONE


def _as_child(options: argparse.Namespace) -> int:
    """Give way to others, end with the parent, and leave it to another process that is at it."""
    parent = options.child_of
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one

    def pause() -> None:
        if os.getppid() != parent:
            raise ClosedError("the process that started this one has ended")

    try:
        pause()
        _maintained(options, pause, patience=_CHILD_PATIENCE)
    except (LockTimeoutError, ClosedError):
        return _DONE
    except (StreamLogError, ExceptionGroup) as error:
        return _failed(error)
    return _DONE


def _stop(signum: int, _: object) -> None:
    sys.exit(128 + signum)


def _maintained(
    options: argparse.Namespace, pause: Callable[[], None], *, patience: float | None = None
) -> MaintenanceReport:
    with pystreamlog.open(options.log, create=False, maintenance=False) as log:
        assert isinstance(log, EmbeddedLog)
        log.pause_maintenance(pause, patience=patience)
        return log.maintain(topics=options.topic, force=options.force)


def _failed(error: Exception) -> int:
    for each in error.exceptions if isinstance(error, ExceptionGroup) else [error]:
        warn(str(each))
    return _USAGE if isinstance(error, ConfigError) else _FAILED
