"""`python -m pystreamlog`, which is also the console script `pystreamlog`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import pystreamlog

_CORE = {
    "demo": ("demo", "main"),
    "verify": ("care", "verify"),
    "repair": ("care", "repair"),
    "compact": ("compact", "compact"),
}
"""The commands that need no extra: their module in `pystreamlog.cli`, and its function of the arguments behind them."""

_STANDARD_ERROR = 2

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

Topics, records and groups have commands too, once the extra `cli` is installed: pip install "pystreamlog[cli]"
"""


def _run_core(arguments: Sequence[str]) -> int:
    """Run a command that needs no more than the core."""
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(_USAGE, end="")
            return 0
        case ["--version", *_]:
            print(f"pystreamlog {pystreamlog.__version__}")
            return 0
        case [name, *rest] if name in _CORE:
            module, function = _CORE[name]
            status: int = getattr(import_module(f"pystreamlog.cli.{module}"), function)(rest)
            return status
        case [name, *_]:
            print(
                f'pystreamlog: {name!r} needs the extra `cli`: pip install "pystreamlog[cli]" (without it there are '
                f"{', '.join(_CORE)}; see --help)",
                file=sys.stderr,
            )
    return 2


def _keep_standard_descriptors() -> None:
    """Keep the numbers of closed standard streams from a log's files: what writes to these would write into the log."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def main() -> int:
    """Run the command that the command line names.

    Returns:
        The exit status: 0 when it succeeded, 1 when it failed, 2 for a command line that makes no sense, 130 after
        Ctrl-C.
    """
    _keep_standard_descriptors()
    is_child = sys.argv[1:2] == ["compact"] and "--child-of" in sys.argv  # a log's own process, which wants no more
    if not is_child and find_spec("typer") and find_spec("rich"):
        try:
            from pystreamlog.cli.app import app  # noqa: PLC0415 - there only with the extra
        except KeyboardInterrupt:
            return 130
        app(prog_name="pystreamlog")  # exits
    try:
        status = _run_core(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read the output has gone, as `head` does; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
