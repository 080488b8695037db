"""How every command runs: the log it opens, what it asks, and how errors become exit codes.

0 when it did what it was told; 1 when that failed; 2 when the command line makes no sense, whether its own rules say so
or the log does (`ConfigError`); 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import typer
from typer.core import TyperGroup

import pystreamlog
from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.options import LOG_VARIABLE
from pystreamlog.cli.output import OutputError, check_output, escaped, flush_output, on_terminal, warn
from pystreamlog.errors import ConfigError, CorruptLogError, StreamLogError

__all__ = ["Commands", "Trials", "checked_target", "confirm", "end", "opened"]

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_IN_PYTHON = (
    (r"\bpass create=True to make it, or check the path", "`pystreamlog topics create` makes it; or check the path"),
    (r"\bopen it once with create=True, or check", "`pystreamlog topics create` makes one; or check"),
    (r"\bpass an empty or a new directory", "check the path; a new log needs an empty or a new directory"),
    (r"\bcreate_topic\('([\w.-]+)'\) makes it", r"`pystreamlog topics create \1` makes it"),
    (r"\blist_consumer_groups\(\) tells", "`pystreamlog groups list` tells"),
    (r"\bdescribe_consumer_groups\(\) tells", "`pystreamlog groups describe --members --verbose` tells"),
    (r"\bby remove_members_from_consumer_group\(\)", "by `pystreamlog groups remove-members`"),
    (r"\bwith delete_consumer_groups\(\)", "with `pystreamlog groups delete`"),
    (r"\blist_transactions\(\) tells", "`pystreamlog transactions list` tells"),
)
"""What errors advise programs to do, and what does the same in a shell."""


class Commands(TyperGroup):
    """A group of commands whose errors become exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run what a command line says; help and versions are printed before any command is invoked."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            warn(str(error) if isinstance(error, OutputError) else f"the standard output cannot be written: {error}")
            _settle_output()
            sys.exit(_FAILED)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named.

        Raises:
            typer.Exit: It failed, and why was said.
        """
        try:
            result = super().invoke(ctx)
            flush_output()
        except BrokenPipeError:
            _settle_output()  # who read the output has gone, as `head` does
            raise typer.Exit(_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except ExceptionGroup as group:
            known, others = group.split((StreamLogError, OSError))
            if others is not None or known is None:
                raise
            errors = list(_leaves(known))
            for error in errors:
                warn(_in_shell_words(error))
            _settle_output()
            raise typer.Exit(_USAGE if all(isinstance(each, ConfigError) for each in errors) else _FAILED) from None
        except MemoryError:
            warn("there is too little memory for that")
            _settle_output()
            raise typer.Exit(_FAILED) from None
        except (StreamLogError, OSError) as error:
            warn(_in_shell_words(error))
            _settle_output()
            raise typer.Exit(_USAGE if isinstance(error, ConfigError) else _FAILED) from None
        return result


def _in_shell_words(error: Exception) -> str:
    """The message of an error with advice for who sits at a shell."""
    message = str(error)
    if isinstance(error, CorruptLogError) and "copy" not in message:
        message += ": `pystreamlog verify` tells what is damaged, and what to do"
    for call, command in _IN_PYTHON:
        message = re.sub(call, command, message)
    return message


def _settle_output() -> None:
    """Drop what was printed and cannot be written: the interpreter's last flush must not complain about it."""
    try:
        flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Trials:
    """Tries all that a command line names; what failed is raised together when the `with` block is left."""

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    @contextmanager
    def trying(self, *, but: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """One of them.

        Args:
            but: Errors that are none here.
        """
        try:
            yield
        except ExceptionGroup as group:
            errors = list(_leaves(group))
            if not all(isinstance(each, (StreamLogError, OSError)) for each in errors):
                raise
            self._errors += [each for each in errors if not isinstance(each, but)]
        except (BrokenPipeError, OutputError):
            raise  # who reads what is printed has gone, or cannot be reached, and there is nothing left to tell
        except (StreamLogError, OSError) as error:
            if not isinstance(error, but):
                self._errors.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._errors:
            raise ExceptionGroup("failed in part, or altogether", self._errors)


@contextmanager
def opened(
    target: str | None, *, read_only: bool = False, create: bool = False, prints: bool = True
) -> Iterator[StreamLog]:
    """The log that the command is about, open; closed on leaving.

    Args:
        target: What `--log` said.
        read_only: The command only looks: it works where nothing may be written.
        create: Make the log if it is missing.
        prints: The command tells on the standard output what it did.

    Raises:
        typer.BadParameter: No log was named.
        ConfigError: The standard output is closed.
        StreamLogError: As `pystreamlog.open` raises it.
    """
    named = checked_target(target)
    if prints:
        check_output()
    with pystreamlog.open(named, create=create, read_only=read_only, maintenance=False) as log:
        yield log


def checked_target(target: str | None) -> str:
    """The log that was named.

    Raises:
        typer.BadParameter: None was.
        ConfigError: It begins as only a shell understands it: a directory called `~` would be made.
    """
    if not target:
        raise typer.BadParameter(f"say which log: --log DIRECTORY, or set {LOG_VARIABLE}", param_hint="--log")
    if target.startswith("~"):
        raise ConfigError(
            f"{target!r} begins with ~, which no shell has expanded: write the whole path, or ./{target} for a "
            "directory of that name"
        )
    return target


def end(status: int) -> None:
    """End the command with an exit status; with 0, go on.

    Raises:
        typer.Exit: The status is another.
    """
    if status:
        raise typer.Exit(status)


def confirm(what: str, *, execute: bool) -> None:
    """Have what cannot be undone confirmed: by `--execute`, or on a terminal by the answer "y".

    Args:
        what: What is about to happen, as a sentence without its end.
        execute: Whether `--execute` was given.

    Raises:
        typer.Exit: It was not: with 2 where there is no terminal to ask on, with 1 where the answer is no, with 130
            where it is Ctrl-C.
    """
    if execute:
        return
    if not (on_terminal(sys.stdin) and on_terminal(sys.stderr)):
        warn(f"{what}: that cannot be undone; add --execute to do it")
        raise typer.Exit(_USAGE)
    try:
        agreed = typer.confirm(f"{escaped(what)}: that cannot be undone. Do it?", err=True)
    except typer.Abort as abort:
        raise typer.Exit(_INTERRUPTED if isinstance(abort.__context__, KeyboardInterrupt) else _FAILED) from None
    if not agreed:
        raise typer.Exit(_FAILED)
