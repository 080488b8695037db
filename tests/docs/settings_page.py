"""`docs/reference/settings.md`, made from the code; what each setting means is taken from its docstring.

`python -m tests.docs.settings_page`, run at the root of the repository, writes it; a test fails while it is outdated.

A setting's number has a unit: that of its name (`linger_ms`), or the first one that its docstring counts in, as in
"in bytes" or "how many records". Kafka's name is the setting's with dots, where Kafka has that, or the one that the
docstring calls Kafka's, as in "Kafka's `partitioner.class`".
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

import pystreamlog
from pystreamlog.backend.consumer import ConsumerConfig, ConsumerOptions
from pystreamlog.backend.producer import ProducerConfig, ProducerOptions
from pystreamlog.backend.topic import TopicOptions
from pystreamlog.coordination.topic_config import TopicConfig

__all__ = ["KAFKA_NAMES", "PAGE", "SECTIONS", "Section", "Setting", "documented", "main", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "settings.md"
WIDTH = 120

_KAFKA_NAMES = """
    cleanup.policy compression.gzip.level compression.lz4.level compression.type compression.zstd.level
    delete.retention.ms file.delete.delay.ms flush.messages flush.ms index.interval.bytes max.compaction.lag.ms
    max.message.bytes message.timestamp.after.max.ms message.timestamp.before.max.ms message.timestamp.type
    min.cleanable.dirty.ratio min.compaction.lag.ms min.insync.replicas preallocate producer.id.expiration.ms
    retention.bytes retention.ms segment.bytes segment.index.bytes segment.jitter.ms segment.ms

    acks batch.size buffer.memory delivery.timeout.ms enable.idempotence interceptor.classes key.serializer linger.ms
    max.block.ms max.in.flight.requests.per.connection max.request.size partitioner.class request.timeout.ms retries
    retry.backoff.max.ms retry.backoff.ms transaction.timeout.ms transactional.id value.serializer

    allow.auto.create.topics auto.commit.interval.ms auto.offset.reset check.crcs client.id client.rack
    enable.auto.commit fetch.max.bytes fetch.max.wait.ms fetch.min.bytes group.id group.instance.id
    heartbeat.interval.ms isolation.level key.deserializer max.partition.fetch.bytes max.poll.interval.ms
    max.poll.records partition.assignment.strategy session.timeout.ms value.deserializer

    auto.create.topics.enable log.cleaner.backoff.ms log.cleaner.enable log.retention.check.interval.ms
"""

KAFKA_NAMES = frozenset(_KAFKA_NAMES.split())
"""What Kafka calls its settings of topics, producers and consumers, and some of a broker."""

_UNIT = re.compile(r"\b(?:in|[Hh]ow many|so many) (bytes|handlers|ms|milliseconds|records|seconds)\b|(How often)\b")
_UNIT_OF_WORD = {"milliseconds": "ms", "How often": "times"}
_UNIT_OF_NAME = {"_ms": "ms", "_bytes": "bytes", "_messages": "records", "_records": "records", "_ratio": "ratio"}
_KAFKAS = re.compile(r"Kafka's `([a-z]+(?:\.[a-z]+)*)`")
_GREATEST = 2**63 - 1

_SCALES = {
    "ms": ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")),
    "bytes": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")),
}


def documented(docstring: str, heading: str) -> dict[str, str]:
    """What a docstring of Google's style says of each name in one of its sections, each as one line."""
    _, _, section = (inspect.cleandoc(docstring) + "\n").partition(f"\n{heading}:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        entry = re.fullmatch(r"    \**(\w+): (.*)", line)
        if entry:
            name, meanings[entry[1]] = entry[1], entry[2]
        elif line.strip():
            meanings[name] += " " + line.strip()
    return meanings


@attrs.frozen
class Setting:
    """One setting, as the code has it.

    Attributes:
        name: What it is passed as.
        kind: Its annotation.
        default: Its default; `inspect.Parameter.empty` if it must be passed.
        meaning: What the docstring says of it; empty if it says nothing.
        bounds: The least and the greatest number that it may be, where the code has them.
    """

    name: str
    kind: str
    default: Any
    meaning: str = ""
    bounds: tuple[int, int] | None = None

    @property
    def is_number(self) -> bool:
        """Whether it takes a number."""
        return bool(re.search(r"\b(?:int|float)\b", re.sub(r"\[.*\]", "", self.kind)))

    @property
    def unit(self) -> str:
        """What its number counts; empty if nobody says so, or if it is none."""
        if not self.is_number:
            return ""
        if self.meaning.startswith("Permission bits"):
            return "permission bits"
        for suffix, unit in _UNIT_OF_NAME.items():
            if self.name.endswith(suffix):
                return unit
        word = _UNIT.search(self.meaning)
        found = word and (word[1] or word[2])
        return _UNIT_OF_WORD.get(found, found) if found else ""

    @property
    def kafka_name(self) -> str:
        """What Kafka calls it, or what comes nearest there; empty if nothing does."""
        dotted = self.name.replace("_", ".")
        if dotted in KAFKA_NAMES:
            return dotted
        named = _KAFKAS.search(self.meaning)
        return named[1] if named else ""

    @property
    def shown_default(self) -> str:
        """Its default, as it is written and as it is said."""
        default = self.default
        if default is inspect.Parameter.empty or default is attrs.NOTHING:
            return "(required)"
        if isinstance(default, str):
            return f'`"{default}"`'
        if self.unit == "permission bits":
            return f"`{default:#o}`"
        if type(default) is not int:
            return f"`{default!r}`"
        return f"`{default:_}`" + self._in_words(default)

    def _in_words(self, number: int) -> str:
        for scale, word in _SCALES.get(self.unit, ()):
            if number >= scale and number % scale == 0:
                return f" ({number // scale} {word})"
        return ""

    @property
    def shown_range(self) -> str:
        """The numbers that it may be."""
        if self.bounds is None:
            return ""
        least, greatest = self.bounds
        return f"at least {least:,}" if greatest == _GREATEST else f"from {least:,} to {greatest:,}"


def _bounds(validator: object) -> tuple[int, int] | None:
    """What `pystreamlog.settings.integer` was called with."""
    if not inspect.isfunction(validator):
        return None
    values = inspect.getclosurevars(validator).nonlocals
    return (values["minimum"], values["maximum"]) if {"minimum", "maximum"} <= values.keys() else None


def _quoted(annotation: object) -> str:
    """An annotation with the quotes that the library is written with."""
    return str(annotation).replace("'", '"')


@attrs.frozen
class Section:
    """Settings that are passed to one call.

    Attributes:
        title: The section's heading.
        anchor: What the names of its links begin with.
        opening: What stands above the settings.
        source: The config class, or the function that has the settings as arguments.
        options: The keyword arguments of a config, as type checkers know them.
        of_kafka: Whether Kafka has such settings too.
    """

    title: str
    anchor: str
    opening: str
    source: Any
    options: Any = None
    of_kafka: bool = True

    def documented(self) -> dict[str, str]:
        """What the source's docstring says of each setting."""
        return documented(self.source.__doc__, "Attributes" if isinstance(self.source, type) else "Args")

    def settings(self) -> Iterator[Setting]:
        """The settings, in the code's order."""
        meanings = self.documented()
        for each in self._of_config() if isinstance(self.source, type) else self._of_call():
            yield attrs.evolve(each, meaning=meanings.get(each.name, ""))

    def _of_config(self) -> Iterator[Setting]:
        kinds = {name: kind.__forward_arg__ for name, kind in self.options.__annotations__.items()}
        for field in attrs.fields(self.source):
            if field.init:
                kind = kinds.get(field.name, field.type)
                yield Setting(field.name, _quoted(kind), field.default, bounds=_bounds(field.validator))

    def _of_call(self) -> Iterator[Setting]:
        for name, parameter in inspect.signature(self.source).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "self":
                yield Setting(name, _quoted(parameter.annotation), parameter.default)


SECTIONS = (
    Section(
        "Logs",
        "open",
        "Arguments of `pystreamlog.open`. Each process that opens a log has its own.",
        pystreamlog.open,
        of_kafka=False,
    ),
    Section(
        "Topics",
        "topic",
        "Keyword arguments of `StreamLog.create_topic` and `Topic.alter`. They are stored with the topic and hold for "
        "every process; `Topic.config` has them all.",
        TopicConfig,
        TopicOptions,
    ),
    Section(
        "Producers",
        "producer",
        "Keyword arguments of `StreamLog.producer`.",
        ProducerConfig,
        ProducerOptions,
    ),
    Section(
        "Consumers",
        "consumer",
        "Keyword arguments of `StreamLog.consumer`.",
        ConsumerConfig,
        ConsumerOptions,
    ),
    Section(
        "Parallel processing",
        "process",
        "Arguments of `Consumer.process` and `Consumer.process_async`.",
        pystreamlog.Consumer.process,
        of_kafka=False,
    ),
)

_HEAD = """\
# Settings

Every setting, with its default and its meaning. Names are Kafka's, with `_` for `.`, where a setting does what Kafka's
does; the last column has Kafka's own name, or that of its nearest relative there. An unknown name, a wrong type or a
value out of range raises `ConfigError`. What the calls do is said in [the API](api.md).
"""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _section(section: Section) -> Iterator[str]:
    """The blocks of a section: an overview, then each setting."""
    settings = list(section.settings())
    names = ["setting", "default", "unit"] + ["in Kafka"] * section.of_kafka
    rows = [_row(*names), "|" + "---|" * len(names)]
    for each in settings:
        cells = [f"[`{each.name}`](#{section.anchor}-{each.name})", each.shown_default, each.unit]
        kafka = f"`{each.kafka_name}`" if each.kafka_name else ""
        rows.append(_row(*cells, *([kafka] if section.of_kafka else [])))
    yield f"## {section.title}"
    yield _wrapped(section.opening)
    yield "\n".join(rows).replace("|  |", "| |").replace("|  |", "| |")
    for each in settings:
        facts = [f"`{each.kind}`", each.shown_range, f"default {each.shown_default}"]
        if each.shown_default.startswith("("):
            facts[-1] = "required"
        yield f'### <a id="{section.anchor}-{each.name}"></a>`{each.name}`'
        yield ", ".join(filter(None, facts)) + "\n\n" + _wrapped(each.meaning)


def page() -> str:
    """The whole page."""
    blocks = [block for section in SECTIONS for block in _section(section)]
    return "\n\n".join([_HEAD.rstrip("\n"), *blocks]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
