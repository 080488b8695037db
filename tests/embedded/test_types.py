"""Users' programs type-check: serdes decide what a topic, a producer and a consumer carry."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import attrs
import pytest

from pystreamlog.backend.consumer import ConsumerConfig, ConsumerOptions
from pystreamlog.backend.producer import ProducerConfig, ProducerOptions
from pystreamlog.backend.topic import TopicOptions
from pystreamlog.coordination.topic_config import TopicConfig

from .conftest import ROOT

PROGRAM = """
    from dataclasses import dataclass
    from typing import assert_type

    import pystreamlog
    from pystreamlog import Consumer, Delivery, Producer, Record, Records, Topic, serde


    @dataclass
    class Order:
        id: int


    log = pystreamlog.open("data")
    orders = serde.struct(Order)

    assert_type(log.create_topic("a", partitions=3, segment_bytes=65536), Topic[bytes, bytes])
    assert_type(log.create_topic("a", value_serde=orders), Topic[bytes, Order])
    assert_type(log.create_topic("a", key_serde=serde.int64), Topic[int, bytes])
    assert_type(log.create_topic("a", key_serde=serde.string, value_serde=serde.float64), Topic[str, float])
    topic = log.topic("a", key_serde=serde.string, value_serde=orders)
    assert_type(topic, Topic[str, Order])
    assert_type(next(topic.read()), Record[str, Order])
    topic.append(Order(1), "key")

    assert_type(log.consumer(), Consumer[bytes, bytes])
    assert_type(log.consumer("a"), Consumer[bytes, bytes])
    assert_type(log.consumer("a", "b", auto_offset_reset="earliest"), Consumer[bytes, bytes])
    assert_type(log.consumer("a", key_serde=serde.string), Consumer[str, bytes])
    assert_type(log.consumer("a", value_serde=orders), Consumer[bytes, Order])
    assert_type(log.consumer("a", key_serde=serde.string, value_serde=orders), Consumer[str, Order])
    assert_type(log.consumer(topic), Consumer[str, Order])
    with log.consumer(topic) as consumer:
        for record in consumer:
            assert_type(record, Record[str, Order])
            assert_type(record.key, str | None)
            assert_type(record.value, Order | None)
        records = consumer.poll()
        assert_type(records, Records[str, Order])
        assert_type(records.values, list[Order | None])
        assert_type(records[0], Record[str, Order])

    assert_type(log.producer(), Producer[bytes, bytes])
    assert_type(log.producer(linger_ms=0, value_serde=orders), Producer[bytes, Order])
    assert_type(log.producer(key_serde=serde.string, value_serde=orders), Producer[str, Order])
    with log.producer() as producer:
        assert_type(producer.send("a", b"value", b"key"), Delivery)
        producer.send(topic, Order(1), "key")
        producer.send(topic, None, "key")
        producer.send_many(topic, [Order(1)], ["key"])


    async def main() -> None:
        async with log.consumer(topic) as consumer:
            assert_type(await consumer.poll_async(), Records[str, Order])
            async for record in consumer:
                assert_type(record, Record[str, Order])
        async with log.producer() as producer:
            assert_type((await producer.send("a", b"value")).offset, int)
"""

WRONG = {
    "value without a serde": 'log.producer().send("a", Order(1))',
    "value of another type": "log.producer().send(topic, b'bytes')",
    "key of another type": "log.producer().send(topic, Order(1), 5)",
    "unknown setting": "log.producer(linger=5)",
    "setting of another type": 'log.consumer("a", max_poll_records="5")',
    "value that is no literal": 'log.consumer("a", auto_offset_reset="first")',
}


def check(tmp_path, program):
    """What mypy says to a program."""
    pytest.importorskip("mypy", reason="mypy comes with the dev extra")
    file = tmp_path / "program.py"
    file.write_text(program)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", file]
    return subprocess.run(
        [*command, "--cache-dir", ROOT / ".mypy_cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_serdes_decide_the_types(tmp_path):
    """Right programs pass, wrong ones do not: each line that is wrong is found."""
    right = textwrap.dedent(PROGRAM)
    lines = right.count("\n")
    found = check(tmp_path, right + "\n".join(WRONG.values()) + "\n")
    wrong = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    assert wrong == set(range(lines + 1, lines + 1 + len(WRONG))), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("options", "config"),
    [(TopicOptions, TopicConfig), (ProducerOptions, ProducerConfig), (ConsumerOptions, ConsumerConfig)],
    ids=lambda part: part.__name__,
)
def test_options_are_the_settings(options, config):
    """What type checkers know is what the settings class takes, but for the serdes, which the overloads name."""
    settings = {field.name for field in attrs.fields(config) if field.init} - {"key_serde", "value_serde"}
    assert set(options.__annotations__) == settings
