"""The runner: measures, and prints one table with the peers' figures beside ours.

Each line is printed as soon as it is measured. A line that fails says so and does not stop the others.
"""

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import asdict

from benches import (
    command_line,
    compacting,
    durability,
    groups,
    importing,
    keys,
    machine,
    memory,
    opening,
    reading,
    sharing,
    snapshots,
    transactions,
    waiting,
    writing,
)
from benches.measuring import Line, Settings, UnsupportedHereError

MEASUREMENTS: dict[str, Callable[[Settings], list[Line]]] = {
    **writing.LINES,
    **keys.LINES,
    **reading.LINES,
    **waiting.LINES,
    **sharing.LINES,
    **groups.LINES,
    **opening.LINES,
    **memory.LINES,
    **importing.LINES,
    **command_line.LINES,
    **durability.LINES,
    **transactions.LINES,
    **snapshots.LINES,
    **compacting.LINES,
}
"""Every measurement by its name on the command line, in the order of the table."""

QUICK_SCALE = 1 / 16
QUICK_ROUNDS = 3

_ROW = "{what:<47} {ours:>14} {peer:>14} {ratio:>7} {required:>14} {verdict:<7} {note}"
_RATE = "records/s"


def format_figure(figure: float | None, unit: str) -> str:
    """Return a figure with its unit, three digits of it: `2.71 M/s`, `5.62 us`."""
    if figure is None:
        return ""
    if unit == _RATE:
        return f"{figure / 1e6:.3g} M/s" if figure >= 1e6 else f"{figure / 1e3:.3g} k/s"  # noqa: PLR2004
    number = f"{figure:,.0f}" if figure >= 1_000 else f"{figure:.3g}"  # noqa: PLR2004
    return f"{number} {unit}".strip()


def format_line(line: Line) -> str:
    """Return one row of the table."""
    sign = ">=" if line.at_least else "<="
    required = (
        ""
        if line.bound is None
        else f"{sign} {format_figure(line.bound, line.unit) if line.absolute else f'{line.bound:g} x'}"
    )
    return _ROW.format(
        what=line.what,
        ours=format_figure(line.ours, line.unit),
        peer=format_figure(line.peer, line.unit),
        ratio="" if line.ratio is None else f"{line.ratio:.2f} x",
        required=required.replace(" of a core", ""),
        verdict={True: "ok", False: "SHORT", None: ""}[line.met],
        note=line.note,
    ).rstrip()


def select(only: Sequence[str]) -> dict[str, Callable[[Settings], list[Line]]]:
    """Return the measurements whose name is, or begins with, one of `only`; all of them without any.

    Raises:
        SystemExit: A name fits nothing.
    """
    if not only:
        return MEASUREMENTS
    chosen: dict[str, Callable[[Settings], list[Line]]] = {}
    for wanted in only:
        fitting = [wanted] if wanted in MEASUREMENTS else [name for name in MEASUREMENTS if name.startswith(wanted)]
        if not fitting:
            raise SystemExit(f"no measurement {wanted!r}; there are: {', '.join(MEASUREMENTS)}")
        chosen.update({name: MEASUREMENTS[name] for name in fitting})
    return chosen


def measure(chosen: dict[str, Callable[[Settings], list[Line]]], settings: Settings) -> tuple[list[Line], list[str]]:
    """Measure and print; return the lines and the names of the measurements that failed."""
    lines: list[Line] = []
    failed: list[str] = []
    print(
        _ROW.format(
            what="what", ours="ours", peer="peer", ratio="ratio", required="required", verdict="", note="beside"
        ).rstrip()
    )
    for name, function in chosen.items():
        try:
            taken = function(settings)
        except UnsupportedHereError as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        except Exception as error:  # noqa: BLE001 - one broken line must not hide the others
            traceback.print_exc()
            print(f"{name}: failed, {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        lines += taken
        for line in taken:
            print(format_line(line), flush=True)
    return lines, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benches", description="pystreamlog beside its peers, in one run.")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"one of: {', '.join(MEASUREMENTS)} (may be repeated)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a sixteenth of the size, three rounds: for a look, not for a verdict"
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of each side; the best counts (default 5; 3 with --quick)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed or a measurement failed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines and the machine there")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="where the files go (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    settings = Settings(
        directory=options.directory,
        scale=QUICK_SCALE if options.quick else 1.0,
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else 5),
    )
    chosen = select(options.only)
    described = machine.describe(settings.directory)
    print(f"{described}\nbest of {settings.rounds}{', quick sizes' if options.quick else ''}\n")
    lines, failed = measure(chosen, settings)
    short = [line.what for line in lines if line.met is False]
    print(f"\n{sum(line.met is True for line in lines)} ok, {len(short)} short, {len(failed)} failed")
    if options.json:
        rows = [{**asdict(line), "ratio": line.ratio, "met": line.met} for line in lines]
        report = {
            "machine": described,
            "rounds": settings.rounds,
            "scale": settings.scale,
            "lines": rows,
            "failed": failed,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if options.check and (short or failed) else 0


if __name__ == "__main__":
    sys.exit(main())
