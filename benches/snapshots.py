"""Snapshots: how long one takes of a log of many segments, and of one with many topics."""

import os
import time
from pathlib import Path

import pystreamlog
from benches.measuring import Line, Settings, fresh_directory

SEGMENT_BYTES = 4_096
"""The smallest there may be: what a link costs does not depend on the size of the file."""


def build(directory: Path, segments: int) -> None:
    """Make a log of one partition with so many sealed segments, and one that is written to."""
    with pystreamlog.open(directory) as log:
        topic = log.create_topic("events", segment_bytes=SEGMENT_BYTES)
        value = bytes(3_500)
        for _ in range(segments + 1):
            topic.append(value)


def link_all(source: Path, target: Path) -> float:
    """Link every segment of a partition into a new directory, by `os.link` alone; seconds."""
    target.mkdir()
    names = [name for name in os.listdir(source) if name.endswith(".log")]
    start = time.perf_counter()
    for name in names:
        os.link(f"{source}/{name}", f"{target}/{name}")
    return time.perf_counter() - start


def take(log: pystreamlog.StreamLog, target: Path, linked: int) -> float:
    """Take a snapshot that must have so many links; seconds."""
    start = time.perf_counter()
    report = log.snapshot(target)
    took = time.perf_counter() - start
    assert report.segments_linked == linked, report
    return took


def compare_many_segments(settings: Settings) -> list[Line]:
    """A snapshot of 10,000 segments by hard links, beside plainly linking as many files."""
    segments = settings.count(10_000)
    with fresh_directory(settings) as directory:
        build(directory / "log", segments)
        ours, peers = [], []
        with pystreamlog.open(directory / "log") as log:
            take(log, directory / "first", segments)  # which also has to sync what was written just now
            for turn in range(settings.rounds):
                peers.append(link_all(directory / "log" / "topics" / "events" / "0", directory / f"links-{turn}"))
                ours.append(take(log, directory / f"snapshot-{turn}", segments))
    what = f"snapshot of {segments:,} segments, linked"
    note = "beside os.link of as many files"
    return [Line(what, min(ours), min(peers), "s", 1.0, at_least=False, absolute=True, note=note)]


def compare_many_topics(settings: Settings) -> list[Line]:
    """A snapshot of 1,000 topics, whose segments are all written to, and copied."""
    topics = settings.count(1_000, least=100)
    with fresh_directory(settings) as directory, pystreamlog.open(directory / "log") as log:
        for number in range(topics):
            log.create_topic(f"topic-{number:05d}").append(b"first")
        took = min(take(log, directory / f"snapshot-{turn}", 0) for turn in range(settings.rounds))
    what = f"snapshot of {topics:,} topics, copied"
    note = f"{took / topics * 1e3:.2f} ms for each, synced"
    return [Line(what, took, None, "s", None, at_least=False, absolute=True, note=note)]


LINES = {"snapshot": compare_many_segments, "snapshot_topics": compare_many_topics}
