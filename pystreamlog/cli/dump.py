"""`pystreamlog dump`: what lies in the files of a partition, as `kafka-dump-log` tells it.

Changes nothing, takes no lock, and works where the log itself does not open: on single files, damaged ones, and a log
that others write just now. It ends with 1 when something does not verify.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated

import typer

from pystreamlog.cli.options import LOG_VARIABLE, JsonOption, LogOption, TopicArgument, complete_topics
from pystreamlog.cli.output import escaped, print_json, print_line, warn
from pystreamlog.cli.selecting import argument_or_option
from pystreamlog.errors import ConfigError, StreamLogError, UnknownPartitionError, UnknownTopicError

if TYPE_CHECKING:
    from pystreamlog.cli.dump_files import Item
    from pystreamlog.storage.control import Published
    from pystreamlog.storage.files import File, Files

__all__ = ["dump"]

_CONTROL, _SEGMENT, _INDEX = "control", ".log", ".index"


def dump(
    *,
    topic_argument: TopicArgument = None,
    topic: Annotated[
        str | None, typer.Option(help="The files of this topic, in --log.", autocompletion=complete_topics)
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Of this partition only.")] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--files", metavar="FILE,...", help="These files: segments, indexes, control files."),
    ] = None,
    print_data_log: Annotated[bool, typer.Option("--print-data-log", help="Print the records too.")] = False,
    index_sanity_check: Annotated[
        bool, typer.Option("--index-sanity-check", help="Look at indexes alone, and do not print them.")
    ] = False,
    verify_index_only: Annotated[
        bool, typer.Option("--verify-index-only", help="Hold indexes against segments, and do not print them.")
    ] = False,
    _deep: Annotated[bool, typer.Option("--deep-iteration", hidden=True)] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Print the batches, indexes and control files of a partition, and where they are damaged."""
    topic = argument_or_option(topic_argument, topic, "--topic")
    if (topic is None) == (files is None):
        raise ConfigError("say what to dump: either a topic, as `pystreamlog dump orders`, or with --topic, or --files")
    if partition is not None and topic is None:
        raise ConfigError("--partition goes with a topic, not with --files: say it first, or with --topic")
    if index_sanity_check and verify_index_only:
        raise ConfigError("--index-sanity-check and --verify-index-only exclude each other")
    only = "sanity" if index_sanity_check else "verify" if verify_index_only else ""
    dumping = _Dumping(records=print_data_log, only=only, json=json)
    with ExitStack() as stack:
        if topic is not None:
            root = stack.enter_context(_opened_root(log))
            for folder in _folders(root, topic, partition):
                dumping.folder(root, folder)
        else:
            for name in (each for text in files or [] for each in text.split(",") if each):
                with _opened_files(os.path.dirname(name) or ".") as parent:
                    dumping.file(parent, os.path.basename(name))
    if dumping.damages:
        warn(f"damages found: {dumping.damages}; `pystreamlog verify` tells what they mean")
        raise typer.Exit(1)


def _opened_files(directory: str) -> closing[Files]:
    """The files of a directory.

    Raises:
        ConfigError: It is not there.
    """
    from pystreamlog.storage.files import Files  # noqa: PLC0415 - for `--help` to be quick

    if not os.path.isdir(directory):
        raise ConfigError(f"directory {directory} does not exist: check the path")
    return closing(Files(directory))


def _opened_root(target: str | None) -> closing[Files]:
    """The files of the log, whose `log.json` may be damaged.

    Raises:
        typer.BadParameter: No log was named.
        ConfigError: There is none.
    """
    if not target:
        raise typer.BadParameter(f"say which log: --log DIRECTORY, or set {LOG_VARIABLE}", param_hint="--log")
    if not os.path.isdir(os.path.join(target, "topics")):
        raise ConfigError(f"{target} is no directory of a log: check the path")
    return _opened_files(target)


def _folders(root: Files, topic: str, partition: int | None) -> list[str]:
    """The folders of a topic's partitions that were made.

    Raises:
        UnknownTopicError: There is no such topic.
        UnknownPartitionError: There is no such partition, or nothing was sent to it.
    """
    from pystreamlog.coordination.names import is_topic_name  # noqa: PLC0415 - for `--help` to be quick

    if not is_topic_name(topic) or not root.exists(f"topics/{topic}"):
        message = f"topic {topic!r} does not exist: `pystreamlog topics list` shows what there is"
        raise UnknownTopicError(message, topic=topic)
    numbers = sorted(int(entry) for entry in root.list(f"topics/{topic}") if entry.isascii() and entry.isdigit())
    if partition is not None and partition not in numbers:
        raise UnknownPartitionError(
            f"topic {topic!r} has no files of partition {partition}: it is not there, or nothing was sent to it",
            topic=topic,
            partition=partition,
        )
    return [f"topics/{topic}/{number}" for number in numbers if partition in (None, number)]


class _Dumping:
    """Prints files one after the other, and counts what is damaged.

    Args:
        records: Print the records too.
        only: `"sanity"` or `"verify"`: do that to indexes, and print only what is wrong; empty prints everything.
        json: Print JSON.

    Attributes:
        damages: How many damages were found.
    """

    def __init__(self, *, records: bool, only: str, json: bool) -> None:
        self._records = records
        self._only = only
        self._json = json
        self.damages = 0

    def folder(self, root: Files, folder: str) -> None:
        """Print the files of a partition, oldest first."""
        try:
            entries = sorted(root.list(folder))
        except FileNotFoundError:
            return  # deleted just now
        if _CONTROL not in entries:
            self._damaged(f"{folder}/{_CONTROL}", "the partition has no control file: restore it from a copy")
        elif not self._only:
            self.file(root, f"{folder}/{_CONTROL}")
        for entry in entries:
            if (entry.endswith(_SEGMENT) and not self._only) or entry.endswith(_INDEX):
                self.file(root, f"{folder}/{entry}", may_go=True)

    def file(self, root: Files, name: str, *, may_go: bool = False) -> None:
        """Print one file.

        Args:
            root: Where it lies.
            name: Its path there.
            may_go: It may have been deleted since it was found.

        Raises:
            ConfigError: It is not there, or of no kind that is known.
        """
        from pystreamlog.cli import dump_files  # noqa: PLC0415 - for `--help` to be quick

        path = root.path(name)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(closing(root.open(name)))
                if name.endswith(_SEGMENT):
                    items = dump_files.segment_items(file, self._end(root, name), records=self._records)
                elif name.endswith(_INDEX):
                    segment = self._beside(root, name.removesuffix(_INDEX) + _SEGMENT)
                    if segment is not None:
                        stack.enter_context(closing(segment))
                    items = dump_files.index_items(
                        file, segment, self._end(root, name), sanity_only=self._only == "sanity"
                    )
                elif os.path.basename(name) == _CONTROL:
                    items = dump_files.control_items(file)
                else:
                    raise ConfigError(f"{path} is no segment (.log), index (.index) or control file")
                self._print(path, items)
            except FileNotFoundError:
                if not may_go:
                    raise ConfigError(f"{path} does not exist: check the path") from None
            except ConfigError:
                raise
            except StreamLogError as error:
                self._damaged(path, str(error))

    def _beside(self, root: Files, name: str) -> File | None:
        try:
            return root.open(name)
        except (FileNotFoundError, StreamLogError):
            return None

    def _end(self, root: Files, name: str) -> Published | None:
        """What the control file beside a file publishes; None when there is none, or it is damaged."""
        from pystreamlog.cli.dump_files import published_end  # noqa: PLC0415 - for `--help` to be quick

        control = self._beside(root, os.path.join(os.path.dirname(name), _CONTROL))
        if control is None:
            return None
        with closing(control):
            return published_end(control)

    def _print(self, path: str, items: Iterator[Item]) -> None:
        before = self.damages
        if not (self._json or self._only):
            print_line(f"Dumping {escaped(path)}")
        for item in items:
            self.damages += item.kind == "damage"
            if self._only and item.kind != "damage":
                continue
            if self._json:
                print_json({"type": item.kind, "file": path, **item.fields})
            elif item.kind == "damage":
                position, why = item.fields["position"], item.fields["why"]
                print_line(f"DAMAGED at position {position} of {escaped(path)}: {escaped(why)}")
            else:
                lead = "| " if item.kind == "record" else f"{item.kind}: " if item.kind != "batch" else ""
                print_line(lead + " ".join(f"{name}: {_shown(value)}" for name, value in item.fields.items()))
        if self._only and self.damages == before and not self._json:
            what = "passed sanity check" if self._only == "sanity" else "fits its segment"
            print_line(f"{escaped(path)} {what}.")

    def _damaged(self, path: str, why: str) -> None:
        """Tell of a file that cannot be looked into."""
        self.damages += 1
        if self._json:
            print_json({"type": "damage", "file": path, "position": 0, "why": why})
        else:
            print_line(f"DAMAGED {escaped(path)}: {escaped(why)}")


def _shown(value: object) -> str:
    """A field for people."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(f'{escaped(name)}={_shown(content)}' for name, content in value)}]"
    if isinstance(value, dict):
        return f"base64({value['base64']})"
    return "null" if value is None else escaped(str(value))
