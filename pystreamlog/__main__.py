"""`python -m pystreamlog`, which is also the console script `pystreamlog`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pystreamlog
from pystreamlog.cli import care, demo
from pystreamlog.cli.compact import compact

_USAGE = """\
usage: python -m pystreamlog COMMAND [OPTION]...

Kafka as a library: streams of events in a directory that many processes share, without a server.

commands:
  demo         two producers and three consumers share a log, one is killed, every record is checked
  verify       look through a log for damage, without changing it
  repair       drop wrong indexes of a log, and cut damaged ends off when told to
  compact      do the maintenance of a log now: delete what is too old, compact, gather small batches

options:
  --version    print the version
  -h, --help   print this; behind a command, what it takes
"""


def _run(arguments: Sequence[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(_USAGE, end="")
            return 0
        case ["--version", *_]:
            print(f"pystreamlog {pystreamlog.__version__}")
            return 0
        case ["demo", *rest]:
            return demo.main(rest)
        case ["verify", *rest]:
            return care.verify(rest)
        case ["repair", *rest]:
            return care.repair(rest)
        case ["compact", *rest]:
            return compact(rest)
        case [name, *_]:
            there = "there are 'demo', 'verify', 'repair' and 'compact'"
            print(f"pystreamlog: {name!r} is not there yet; {there} (see --help)", file=sys.stderr)
    return 2


def main() -> int:
    """Run the command that the command line names.

    Returns:
        The exit status: 0 when it succeeded, 2 for a command line that makes no sense, else the command's own.
    """
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has gone, as `head` does; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
