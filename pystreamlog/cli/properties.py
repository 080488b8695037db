"""The properties of Kafka's console tools: how lines are read as records, and how records are written as lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from pystreamlog.cli.settings import parse_settings
from pystreamlog.errors import ConfigError

__all__ = ["FormatterProperties", "ReaderProperties", "formatter_properties", "reader_properties"]

_ALIASES = {"null_marker": "null_literal"}
"""What a formatter calls otherwise than a reader does: either name will do."""


def _not_empty(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value:
        raise ConfigError(f"{attribute.name.replace('_', '.')} is empty: it must be there to be found")


@attrs.frozen
class ReaderProperties:
    """How a line becomes a record: `headers<TAB>key<TAB>value`, as far as they are parsed.

    Attributes:
        parse_key: Lines begin with a key.
        parse_headers: Lines begin with headers, before the key.
        ignore_error: A line without a separator is all value, and no error.
        key_separator: Stands behind the key.
        headers_delimiter: Stands behind the headers.
        headers_separator: Stands between two headers.
        headers_key_separator: Stands between a header's name and its value.
        null_marker: A key or a value that reads so is none; nothing does when it is empty.
    """

    parse_key: bool = False
    parse_headers: bool = False
    ignore_error: bool = False
    key_separator: str = attrs.field(default="\t", validator=_not_empty)
    headers_delimiter: str = attrs.field(default="\t", validator=_not_empty)
    headers_separator: str = attrs.field(default=",", validator=_not_empty)
    headers_key_separator: str = attrs.field(default=":", validator=_not_empty)
    null_marker: str = ""


@attrs.frozen
class FormatterProperties:
    """How a record becomes a line: `time<TAB>partition<TAB>offset<TAB>headers<TAB>key<TAB>value`, as far as printed.

    Attributes:
        print_timestamp: Print `CreateTime:` and the time in ms, or `LogAppendTime:`.
        print_partition: Print `Partition:` and its number.
        print_offset: Print `Offset:` and the number.
        print_headers: Print `name:value,name:value`, or `NO_HEADERS`.
        print_key: Print the key.
        print_value: Print the value.
        key_separator: Stands between two of these.
        line_separator: Stands behind a record.
        headers_separator: Stands between two headers.
        null_literal: Printed for a key or a value that is none.
    """

    print_timestamp: bool = False
    print_partition: bool = False
    print_offset: bool = False
    print_headers: bool = False
    print_key: bool = False
    print_value: bool = True
    key_separator: str = "\t"
    line_separator: str = "\n"
    headers_separator: str = ","
    null_literal: str = "null"

    @property
    def values_only(self) -> bool:
        """Whether a line is a value and nothing else."""
        return self.print_value and not any(
            (self.print_timestamp, self.print_partition, self.print_offset, self.print_headers, self.print_key)
        )


def reader_properties(pairs: Iterable[str]) -> ReaderProperties:
    """What some `name=value` say of a reader.

    Raises:
        ConfigError: A name is unknown or comes twice, or a value is none of its kind.
    """
    return ReaderProperties(**parse_settings(pairs, ReaderProperties, "reader", verbatim=True))


def formatter_properties(pairs: Iterable[str]) -> FormatterProperties:
    """The same of a formatter."""
    named = []
    for pair in pairs:
        name, separator, text = pair.partition("=")
        named.append(f"{_ALIASES.get(name.strip().replace('.', '_'), name)}{separator}{text}")
    return FormatterProperties(**parse_settings(named, FormatterProperties, "formatter", verbatim=True))
