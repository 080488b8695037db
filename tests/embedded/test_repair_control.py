"""Damaged control files: a header is written anew, and what is written nowhere else is never guessed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog.coordination import journal
from pystreamlog.errors import CorruptLogError, NotSupportedError
from pystreamlog.storage import format as layout

TOPIC = "events"
HEADER = layout.CONTROL_HEADER.size


@pytest.fixture
def filled(path):
    """A log with a topic of two partitions, each with ten records."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, partitions=2, segment_bytes=4096)
        for number in range(20):
            topic.append(b"%d" % number + b"." * 500, partition=number % 2)
        with log.producer(durability="fsync") as producer, producer.transaction():
            producer.send(TOPIC, b"last", partition=0)
            producer.send(TOPIC, b"last", partition=1)
    return path


def control_of(path, number=0):
    """A partition's control file."""
    return Path(path, "topics", TOPIC, str(number), "control")


def stored(log):
    """All values of partition 0."""
    return [bytes(record.value).rstrip(b".") for record in log.topic(TOPIC).read(partition=0)]


def without_stamps(raw):
    """What a control file says of the log."""
    return raw[: layout.APPEND_STAMP_POSITION]


def damaged(raw, position):
    """A file in which a byte is another."""
    return raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :]


@pytest.mark.parametrize("position", [0, 7, 8, 12, 16, 31, 32, 47, 48, 56, 63])
def test_damaged_header_is_written_anew(filled, position):
    """Nothing else is: the log is as it was, in the same epoch."""
    file = control_of(filled)
    before = file.read_bytes()
    file.write_bytes(damaged(before, position))
    with pystreamlog.open(filled) as log:
        with pytest.raises(CorruptLogError, match=r"`pystreamlog repair` writes it anew"):
            stored(log)
        report = log.repair()
        assert report.ok
        assert any("header was written anew" in each for each in report.done)
        assert without_stamps(file.read_bytes()) == without_stamps(before)
        assert stored(log) == [b"%d" % number for number in range(0, 20, 2)] + [b"last"]
        assert log.topic(TOPIC).append(b"more", partition=0).offset == 11
        assert log.verify().ok


def test_header_of_zeros_is_written_anew(filled):
    """Be there nothing left of it."""
    file = control_of(filled)
    before = file.read_bytes()
    file.write_bytes(bytes(HEADER) + before[HEADER:])
    with pystreamlog.open(filled) as log:
        assert log.repair().ok
        assert without_stamps(file.read_bytes()) == without_stamps(before)


def test_header_is_written_anew_beside_a_writer(filled):
    """Who has the file open looks at the header no more, and goes on."""
    file = control_of(filled)
    with pystreamlog.open(filled) as log, pystreamlog.open(filled) as other:
        assert other.topic(TOPIC).append(b"11", partition=0).offset == 11
        with file.open("r+b") as control:
            control.write(b"?")
        assert other.topic(TOPIC).append(b"12", partition=0).offset == 12
        assert log.repair().ok
        assert other.topic(TOPIC).append(b"13", partition=0).offset == 13
        assert log.topic(TOPIC).append(b"14", partition=0).offset == 14
        assert stored(other)[-4:] == [b"11", b"12", b"13", b"14"]


def test_header_of_the_journal_is_written_anew(filled):
    """It is a partition as all are."""
    file = Path(filled, "transactions", "journal", "control")
    before = file.read_bytes()
    file.write_bytes(damaged(before, 20))
    with pystreamlog.open(filled) as log:
        assert log.repair().ok
        assert without_stamps(file.read_bytes()) == without_stamps(before)
        with log.producer() as producer, producer.transaction():
            producer.send(TOPIC, b"more", partition=0)
            producer.send(TOPIC, b"more", partition=1)
        assert stored(log)[-2:] == [b"last", b"more"]


@pytest.mark.parametrize("force", [False, True])
def test_header_of_another_partition_is_left(filled, force):
    """A file that was swapped is whole; and one whose header is damaged too tells by its slots that it is another's."""
    file = control_of(filled)
    swapped = control_of(filled, 1).read_bytes()
    for raw in (swapped, damaged(swapped, 20)):
        file.write_bytes(raw)
        with pystreamlog.open(filled) as log:
            report = log.repair(cut_tail=force, force=force)
            assert [each.path for each in report.damages] == [str(file)]
            assert report.done == ()
        assert file.read_bytes() == raw


def test_header_without_a_slot_is_left(filled):
    """Nothing tells then whose file it is."""
    file = control_of(filled)
    raw = bytes(layout.DURABLE_POSITION) + file.read_bytes()[layout.DURABLE_POSITION :]
    file.write_bytes(raw)
    with pystreamlog.open(filled) as log:
        assert not log.repair().ok
    assert file.read_bytes() == raw


def test_header_of_a_linked_file_is_left(filled, tmp_path):
    """A copy of the log that consists of links must stay as it is."""
    file = control_of(filled)
    file.write_bytes(damaged(file.read_bytes(), 20))
    os.link(file, tmp_path / "control")
    with pystreamlog.open(filled) as log, pytest.raises(NotSupportedError):
        log.repair()
    assert file.read_bytes() == (tmp_path / "control").read_bytes()


@pytest.mark.parametrize("cut", [0, 5, None])
def test_lost_control_file_is_not_guessed(filled, tmp_path, cut):
    """What it said of transactions and deleted records is nowhere else: a copy helps, and the error says so."""
    shutil.copytree(Path(filled, "topics", TOPIC, "0"), tmp_path / "copy")
    file = control_of(filled)
    if cut is None:
        file.unlink()
    else:
        os.truncate(file, cut)
    advice = "restore the partition's folder from a copy, all its files together; without one, `pystreamlog dump "
    with pystreamlog.open(filled) as log:
        with pytest.raises(CorruptLogError, match=advice):
            log.topic(TOPIC).append(b"x", partition=0)
        report = log.repair(cut_tail=True, force=True)
        assert [advice in each.message for each in report.damages] == [True]
        assert file.exists() is (cut is not None)
    shutil.rmtree(Path(filled, "topics", TOPIC, "0"))
    shutil.copytree(tmp_path / "copy", Path(filled, "topics", TOPIC, "0"))
    with pystreamlog.open(filled) as log:
        assert stored(log) == [b"%d" % number for number in range(0, 20, 2)] + [b"last"]
        file.unlink()
    with pystreamlog.open(filled) as log:
        log.delete_topic(TOPIC)
        assert log.verify().ok


@pytest.fixture
def plain(path):
    """A log without transactions, whose first three records are deleted, and whose next ones share their segment."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, segment_bytes=4096)
        for number in range(20):
            topic.append(b"%d" % number + b"." * 500)
        log.admin.delete_records({pystreamlog.TopicPartition(TOPIC, 0): 3})
    return path


@pytest.mark.parametrize("cut", [0, 5, 63])
def test_control_file_cut_short_is_made_anew_by_force(plain, cut):
    """By its whole segments; not without being told to, as what was deleted may come back."""
    os.truncate(control_of(plain), cut)
    with pystreamlog.open(plain) as log:
        assert not log.repair(cut_tail=True).ok
        assert control_of(plain).stat().st_size == cut
        report = log.repair(force=True)
        assert report.ok
        assert any("records that were deleted" in each for each in report.done)
        assert control_of(plain).stat().st_size == layout.CONTROL_SIZE
        assert stored(log) == [b"%d" % number for number in range(20)]
        assert log.topic(TOPIC).append(b"more", partition=0).offset == 20
        assert log.verify().ok
    with pystreamlog.open(plain) as log:
        assert stored(log)[-1] == b"more"


def test_control_file_cut_short_is_made_anew_beside_a_writer(plain):
    """Who has it open goes on behind what was found."""
    with pystreamlog.open(plain, reads="pread") as log, pystreamlog.open(plain, reads="pread") as other:
        assert other.topic(TOPIC).append(b"20", partition=0).offset == 20
        os.truncate(control_of(plain), 5)
        assert log.repair(force=True).ok
        assert other.topic(TOPIC).append(b"21", partition=0).offset == 21
        assert log.topic(TOPIC).append(b"22", partition=0).offset == 22
        assert stored(other)[-3:] == [b"20", b"21", b"22"]
        assert log.verify().ok


def test_control_file_beside_damaged_segments_is_left(plain):
    """Where the segments do not verify, nothing tells where the log ended."""
    os.truncate(control_of(plain), 5)
    segment = sorted(Path(plain, "topics", TOPIC, "0").glob("*.log"))[1]
    segment.write_bytes(damaged(segment.read_bytes(), 400))
    with pystreamlog.open(plain) as log:
        assert not log.repair(force=True).ok
        assert control_of(plain).stat().st_size == 5


def test_transaction_that_the_journal_forgot_is_not_cut_off(path, monkeypatch):
    """Where all slots are lost, nobody knows whether it was committed: that is damage, and nothing is changed."""
    monkeypatch.setattr(journal, "_SEGMENT_BYTES", 4096)
    with pystreamlog.open(path) as log:
        for name in (TOPIC, "other", "third"):
            log.create_topic(name)
        with log.producer(durability="fsync") as producer:
            with producer.transaction():
                producer.send(TOPIC, b"kept")
                producer.send("other", b"x")
            while not log._transactions._journal.reader.offsets()[0]:
                with producer.transaction():
                    producer.send("other", b"x")
                    producer.send("third", b"x")
    file = control_of(path)
    whole = file.read_bytes()
    file.write_bytes(whole[:HEADER] + bytes(layout.CONTROL_SIZE - HEADER))
    segment = next(Path(path, "topics", TOPIC, "0").glob("*.log"))
    before = segment.read_bytes()
    with pystreamlog.open(path) as log:
        assert not log.verify().ok
        with pytest.raises(CorruptLogError, match="a transaction that the journal does not have"):
            log.topic(TOPIC).append(b"more")
        assert not log.repair(cut_tail=True).ok
    assert segment.read_bytes() == before
    file.write_bytes(whole)
    with pystreamlog.open(path) as log:
        assert stored(log) == [b"kept"]
