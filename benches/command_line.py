"""What the command line costs, from the start of its process to the end: records through pipes, and `--help`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import ROOT
from benches.measuring import Line, Settings, alternate, fresh_directory

RECORDS = 1_000_000
VALUE_SIZE = 100

COMMAND = [sys.executable, "-m", "pystreamlog"]
BARE = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None:
    "One."
@app.command()
def two(name: str) -> None:
    "Two."
app(["--help"])
"""
"""A typer application of two commands."""
COPYING = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line)"
"""The shortest program that does something with each line."""

_ROUNDS_FACTOR = 2


def _environment(directory: Path) -> dict[str, str]:
    # An installed package has its bytecode; a checkout must be allowed to write it, or each import compiles anew.
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYSTREAMLOG_DIR": str(directory / "data")}


def _seconds(command: list[str], directory: Path, source: Path | None = None) -> float:
    """Run a command, with a file coming through a pipe, into a pipe that is read to its end; how long it took."""
    start = time.perf_counter()
    feeding = None
    if source is not None:
        feeding = subprocess.Popen(["/bin/cat", source], stdout=subprocess.PIPE)  # noqa: S603 - our own file
    with subprocess.Popen(  # noqa: S603 - our own interpreter and our own program
        command,
        env=_environment(directory),
        stdin=feeding.stdout if feeding else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        while process.stdout.read(1 << 20):
            pass
    took = time.perf_counter() - start
    if feeding is not None:
        assert feeding.stdout is not None
        feeding.stdout.close()
        feeding.wait()
    assert process.returncode == 0, command
    return took


def compare_pipes(settings: Settings) -> list[Line]:
    """`produce` from a pipe and `consume` into one, beside a program that copies the lines."""
    count = settings.count(RECORDS)
    with fresh_directory(settings) as directory:
        source = directory / "lines"
        values = [value.hex()[:VALUE_SIZE].encode() for value in payload.make_values(count, VALUE_SIZE // 2)]
        source.write_bytes(b"\n".join(values) + b"\n")
        with pystreamlog.open(directory / "data") as log, log.producer() as producer:
            log.create_topic("consumed")
            for start in range(0, count, 1_000):
                producer.send_many("consumed", values[start : start + 1_000])
        del values

        def produce() -> float:
            with pystreamlog.open(directory / "data") as log:
                if "produced" in log.topics():
                    log.delete_topic("produced")
                log.create_topic("produced")
            return _seconds([*COMMAND, "produce", "--topic", "produced"], directory, source)

        figures = alternate(
            {
                "produce": produce,
                "consume": lambda: _seconds([*COMMAND, "consume", "--topic", "consumed"], directory),
                "lines": lambda: _seconds([sys.executable, "-c", COPYING], directory, source),
            },
            settings.rounds,
        )
    rates = {name: count / min(seconds) for name, seconds in figures.items()}
    note = "a Python program that copies line by line, from pipe to pipe"
    bound = 500_000 if count == RECORDS else None  # fewer do not outweigh the start of the process
    return [
        Line(
            "pystreamlog consume, into a pipe",
            rates["consume"],
            rates["lines"],
            "records/s",
            bound,
            absolute=True,
            note=note,
        ),
        Line("pystreamlog produce, from a pipe", rates["produce"], rates["lines"], "records/s", bound, absolute=True),
    ]


def compare_help(settings: Settings) -> list[Line]:
    """`pystreamlog --help`, beside a typer application of two commands."""
    with fresh_directory(settings) as directory:
        commands = {"ours": [*COMMAND, "--help"], "peer": [sys.executable, "-c", BARE]}
        for command in commands.values():  # the first run compiles
            _seconds(command, directory)
        timings = {name: lambda command=command: _seconds(command, directory) for name, command in commands.items()}
        figures = alternate(timings, settings.rounds * _ROUNDS_FACTOR)
    best = {name: min(seconds) * 1e3 for name, seconds in figures.items()}
    note = "a typer application of two commands"
    return [Line("pystreamlog --help", best["ours"], best["peer"], "ms", 1.5, at_least=False, note=note)]


LINES = {"command_line": compare_pipes, "help": compare_help}
