"""`pystreamlog.open`: what it takes, what it refuses, and what importing costs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog.errors import ConfigError, IncompatibleFormatError, NotSupportedError, ReadOnlyError, StreamLogError

from .conftest import run


def test_path_is_a_text_or_a_path(tmp_path):
    """Also a `file:` URL, percent-decoded."""
    for number, spell in enumerate((str, Path, lambda p: f"file://{p}", lambda p: f"file:{p}", lambda p: p.as_uri())):
        folder = tmp_path / f"a b {number}"
        with pystreamlog.open(spell(folder)) as log:
            assert log.path == str(folder)
    with pystreamlog.open(f"file://localhost{tmp_path}/a%20b%200") as log:
        assert log.path == str(tmp_path / "a b 0")


def test_log_is_opened_again(path):
    """By the same process and with everything in it."""
    with pystreamlog.open(path) as log, pystreamlog.open(path) as again:
        log.create_topic("events").append(b"x")
        assert [record.value for record in again.topic("events").read()] == [b"x"]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("", ConfigError),
        (b"bytes", ConfigError),
        ("a\0b", ConfigError),
        ("file://elsewhere/log", ConfigError),
        ("nothing://host/log", NotSupportedError),
        ("kafka://h1,h2", NotSupportedError),
    ],
)
def test_bad_target_is_refused(target, error):
    """The error says what to pass."""
    with pytest.raises(error):
        pystreamlog.open(target)


@pytest.mark.parametrize(
    "options",
    [
        {"reads": "mmap"},
        {"recover": "never"},
        {"mode": 0o400},
        {"mode": 0o1700},
        {"mode": "0o700"},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_bad_option_is_refused(path, options):
    """And nothing is made."""
    with pytest.raises(ConfigError):
        pystreamlog.open(path, **options)
    assert not Path(path).exists()


def test_missing_directory_is_not_made_on_demand(path):
    """With `create=False`, or read-only."""
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(ConfigError):
            pystreamlog.open(path, **options)
        assert not Path(path).exists()


def test_what_is_no_log_is_refused(tmp_path):
    """A file, and a directory of something else; nothing is made there."""
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(IncompatibleFormatError):
        pystreamlog.open(file)
    with pytest.raises(IncompatibleFormatError):
        pystreamlog.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_read_only_log_reads(path):
    """And refuses every change."""
    with pystreamlog.open(path) as log:
        log.create_topic("events").append(b"x")
    with pystreamlog.open(path, read_only=True, auto_create_topics=True) as log:
        topic = log.topic("events")
        assert [record.value for record in topic.read()] == [b"x"]
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            assert consumer.poll(5).values == [b"x"]
        for call in (
            lambda: topic.append(b"y"),
            lambda: log.create_topic("more"),
            lambda: log.delete_topic("events"),
            lambda: topic.alter(segment_ms=5),
            lambda: topic.add_partitions(2),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        producer = log.producer()
        assert isinstance(producer.send("events", b"y").exception(5), ReadOnlyError)
        producer.close()
        with pytest.raises(StreamLogError):
            log.topic("unknown")


def test_everything_works_from_a_relative_path(path, monkeypatch, tmp_path):
    """Though the process changes its directory afterwards."""
    monkeypatch.chdir(tmp_path)
    with pystreamlog.open("log") as log:
        topic = log.create_topic("events")
        monkeypatch.chdir("/")
        topic.append(b"x")
        with log.consumer("events") as consumer:
            topic.append(b"y")
            assert consumer.poll(5).values == [b"y"]
        assert log.path == str(tmp_path / "log")


def test_import_does_nothing():
    """No asyncio, no threads, no handlers; whoever writes and reads without event loops needs no asyncio either."""
    program = """
        import logging, sys, threading, warnings
        before = set(sys.modules)
        import pystreamlog

        assert "asyncio" not in sys.modules
        assert "multiprocessing" not in sys.modules
        assert threading.active_count() == 1
        assert logging.getLogger("pystreamlog").handlers == []
        assert logging.getLogger().handlers == []
        with pystreamlog.open(":memory:") as log:
            log.create_topic("events")
            with log.producer() as producer, log.consumer("events") as consumer:
                producer.send("events", b"x").result()
                assert consumer.poll(5).values == [b"x"]
        assert "asyncio" not in sys.modules
    """
    assert run(program) == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")
def test_importing_needs_no_fcntl():
    """`import` works everywhere; only `open` may say that a platform cannot hold a log."""
    program = """
        import sys
        sys.modules["fcntl"] = None
        import pystreamlog
        print(pystreamlog.__version__)
    """
    out, _ = run(program)
    assert out.strip() == pystreamlog.__version__
