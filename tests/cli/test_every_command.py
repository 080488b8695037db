"""What holds for every command, also for one that is added: bad input, closed pipes, small terminals, Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import msgspec
import pytest

import pystreamlog
from pystreamlog.storage import files
from tests.cli.commands import ARGUMENTS, COMMANDS

ON_LOGS = [command for command in COMMANDS if command.takes_log]
BOTH_WAYS = [command for command in COMMANDS if command.parameters.keys() & ARGUMENTS.keys()]
CREATING = {"topics create"}
ESCAPE = "evil\x1b[31m\u202e"

every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
every_command_on_a_log = pytest.mark.parametrize("command", ON_LOGS, ids=lambda command: command.name)


def test_commands_are_found():
    """A run that finds no commands would pass every other test here."""
    assert {"demo", "topics create", "groups reset-offsets"} <= {command.name for command in COMMANDS}
    assert len(ON_LOGS) > 15
    assert len(BOTH_WAYS) == 4


@every_command
def test_help_fits_a_narrow_terminal(run, monkeypatch, command):
    """It says what it takes, in 40 columns too, and every option says what it does."""
    monkeypatch.setenv("COLUMNS", "40")
    done = run(*command.words, "--help")
    assert done.status == 0
    assert max(map(len, done.lines)) <= 40
    for name, parameter in command.parameters.items():
        assert name == "help" or parameter.help.endswith("."), f"{command.name}: {name} has no help"


@every_command
def test_option_that_there_is_not(run, command):
    """It is named, and the exit status is that of a wrong command line."""
    done = run(*command.words, "--surely-not")
    assert done.status == 2
    assert "--surely-not" in done.err


@every_command_on_a_log
def test_it_does_what_it_shall(on, command):
    """With arguments that make sense it succeeds on a log that is whole."""
    done = on(*command.arguments())
    assert done.status == 0, done.err


@every_command_on_a_log
def test_json_is_json(on, command):
    """`--json` prints JSON, each line a value, and nothing else."""
    if "json" not in command.parameters or command.parameters["json"].help.startswith("Read"):
        pytest.skip("it prints no JSON")
    done = on(*command.arguments(), "--json")
    assert done.status == 0, done.err
    for line in done.lines:
        msgspec.json.decode(line)


@every_command_on_a_log
def test_no_log_is_named(run, command):
    """It says how to name one."""
    done = run(*command.arguments())
    assert done.status == 2
    assert "--log" in done.err
    assert "PYSTREAMLOG_DIR" in done.err


@every_command_on_a_log
def test_log_is_missing(run, tmp_path, command):
    """It is not made by a mistyped path, but where that is what the command is for."""
    missing = tmp_path / "missing"
    done = run("--log", missing, *command.arguments())
    assert done.status == (0 if command.name in CREATING else 2), done.err
    assert missing.exists() == (command.name in CREATING)


@every_command_on_a_log
def test_log_is_a_file(run, tmp_path, command):
    """A file is no log, and is left as it is."""
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    done = run("--log", file, *command.arguments())
    assert done.status in (1, 2)
    assert "directory" in done.err
    assert file.read_bytes() == b"precious"


@every_command_on_a_log
def test_log_is_damaged(run, filled, command):
    """Damage is an error that names the file, never a traceback and never a silent nothing."""
    if command.name == "dump":
        pytest.skip("it looks at single files, whatever the others are")
    (Path(filled) / "log.json").write_bytes(b"{")
    done = run("--log", filled, *command.arguments())
    assert done.status == 1
    assert "log.json" in done.out + done.err


@every_command_on_a_log
@pytest.mark.parametrize("file", ["control", "00000000000000000000.log"])
def test_partition_is_damaged(run, filled, command, file):
    """A damaged file of a partition fails what needs it, in a sentence that names it."""
    damaged = Path(filled) / "topics" / "orders" / "0" / file
    damaged.write_bytes(b"\xff" * damaged.stat().st_size)
    done = run("--log", filled, *command.arguments())
    assert done.status in (0, 1)
    if done.status:
        assert "topics/orders/0" in done.out + done.err


@every_command_on_a_log
def test_directory_may_not_be_written(monkeypatch, run, filled, command):
    """What only looks works; what changes something says that it may not."""
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "open", refuse)
        done = run("--log", filled, *command.arguments())
    looks = command.words[-1] in {"list", "describe", "offsets", "top", "verify", "consume", "dump"}
    if looks or done.status:
        assert done.status == (0 if looks else 1), done.err
        assert looks or "written" in done.out + done.err


@every_command_on_a_log
def test_argument_is_no_text(on, command):
    """Bytes that are no UTF-8 are refused in words that can be printed."""
    for name in command.required_texts:
        if name == "target":
            continue  # a path may be any bytes
        done = on(*command.arguments(**{name: os.fsdecode(b"caf\xe9\xff")}))
        assert done.status in (1, 2)
        assert done.err.encode("utf-8")


@every_command_on_a_log
def test_names_are_not_obeyed_by_a_terminal(on, filled, command):
    """Escape sequences in what was typed, and in what is in the log, are printed as escapes."""
    with pystreamlog.open(filled) as log:
        log.admin.alter_consumer_group_offsets(ESCAPE, {pystreamlog.TopicPartition("orders", 0): 3})
        log.producer(transactional_id=ESCAPE).close()
    typed = dict.fromkeys(command.required_texts, ESCAPE)
    for arguments in (command.arguments(), command.arguments(**typed), [*command.words, "--all-groups"]):
        done = on(*arguments)
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err


@every_command_on_a_log
def test_interrupt_ends_with_130(monkeypatch, on, command):
    """Ctrl-C ends it without a traceback."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Files, "__init__", interrupt)
    done = on(*command.arguments())
    assert done.status == 130
    assert "Traceback" not in done.err


@every_command_on_a_log
def test_reader_of_the_output_has_gone(monkeypatch, capsys, on, command):
    """As behind `| head`: it ends in silence."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        done = on(*command.arguments())
        monkeypatch.undo()
    assert done.status in (0, 1)
    assert done.err.count("\n") <= 3
    assert "Traceback" not in done.err
    assert "Broken pipe" not in done.err


@pytest.mark.parametrize("command", BOTH_WAYS, ids=lambda command: command.name)
def test_argument_that_is_an_option_too(on, command):
    """Either does the same; both, or neither, are refused with a command line that would do."""
    (name,) = command.parameters.keys() & ARGUMENTS.keys()
    value, option = ARGUMENTS[name], "--group" if name.startswith("group") else "--topic"
    more = [each for each in command.arguments()[len(command.words) + 1 :] if each != "--execute"]
    by_argument = on(*command.words, value, *more)
    assert by_argument.status == 0, by_argument.err
    assert on(*command.words, option, value, *more).out == by_argument.out
    twice = on(*command.words, value, option, value, *more)
    assert twice.status == 2
    assert f"{option} {value}" in twice.err
    missing = on(*command.words, *more)
    assert missing.status == 2
    assert f"pystreamlog {command.name} {value}" in missing.err
