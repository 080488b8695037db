"""After a failed fsync: what is in doubt is copied, what cannot be read is said to be lost, nothing else changes."""

import msgspec
import pytest

from pystreamlog.errors import CorruptLogError, StorageError
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.epochs import read_epochs
from pystreamlog.storage.files import File
from pystreamlog.storage.healing import heal, placed_anew
from pystreamlog.storage.reader import Cursor
from pystreamlog.storage.recovery import walk


def poison(partition):
    """Say that an fsync failed."""
    end = partition.end
    flags = end.flags | layout.FLAG_POISONED
    partition.control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))


def healed(partition):
    """Heal, as the next process does."""
    partition.reopen()
    report = heal(partition.folder, partition.control)
    partition.reopen()
    return report


@pytest.mark.parametrize("segment_bytes", [1 << 20, 4096])
def test_everything_stays_readable_under_other_segment_ids(make_partition, segment_bytes):
    """One segment, or many; then the partition goes on."""
    partition = make_partition(segment_bytes=segment_bytes).fill(20)
    partition.sync()
    partition.fill(30)
    before, ids = partition.read(), segment_ids(partition)
    durable_base = partition.control.durable().segment_base
    poison(partition)
    report = healed(partition)
    assert (report.lost, report.reason, report.end_offset) == (0, "", len(before))
    assert partition.read() == before
    after = segment_ids(partition)
    for base, segment_id in ids.items():
        assert (after[base] != segment_id) == (base >= durable_base)
    assert not partition.end.flags & layout.FLAG_POISONED
    assert partition.control.durable().offset == partition.end.end_offset
    partition.fill(30)
    assert partition.offsets() == list(range(len(before) + 90))
    assert partition.recover().dropped == 0


def segment_ids(partition):
    """The id of each segment by its base offset."""
    found = {}
    for base in partition.folder.segments():
        segment = partition.folder.open_segment(base)
        found[base] = segment.header.segment_id
        segment.close()
    return found


def test_a_sealed_segment_stays_sealed_when_an_empty_one_follows(partition):
    """Else a recovery would end there, and lose all that is appended next."""
    partition.fill(3)
    end = partition.end
    new = partition.appender._roll(partition.appender._active(end), end, partition.now)
    partition.control.publish(msgspec.structs.replace(new, sequence=end.sequence + 1))
    poison(partition)
    assert healed(partition).lost == 0
    partition.fill(2)
    assert walk(partition.folder, partition.control).end.end_offset == partition.end.end_offset == 15


def test_a_reader_in_the_middle_goes_on(partition):
    """Its file was replaced, with another chain."""
    partition.fill(10)
    cursor = Cursor(0)
    assert partition.reader.fetch(cursor, partition.end, max_records=3, max_bytes=1 << 20)
    poison(partition)
    other = heal(partition.folder, partition.control)
    assert other.lost == 0
    partition.appender.close()
    partition.fill(5)
    found = []
    while batches := partition.reader.fetch(cursor, partition.end, max_records=100, max_bytes=1 << 20):
        found += [offset for batch, first in batches for offset in batch.offsets(first, batch.count)]
    assert found == list(range(3, 45))


def test_what_cannot_be_read_is_lost_and_said_to_be(partition, monkeypatch):
    """The rest stays, in a new epoch, so that committed offsets are taken back."""
    partition.fill(3)
    partition.sync()
    partition.fill(3)
    bad = partition.end.end_position
    partition.fill(3)
    poison(partition)
    real = File.pread

    def failing(self, size, position):
        if self.path.endswith(".log") and position <= bad < position + size and position >= bad:
            raise StorageError("Input/output error", path=self.path, errno=5)
        return real(self, size, position)

    with monkeypatch.context() as patch:
        patch.setattr(File, "pread", failing)
        report = healed(partition)
    assert (report.durable_offset, report.end_offset, report.lost) == (9, 18, 9)
    assert "Input/output error" in report.reason
    assert partition.offsets() == list(range(18))
    assert [epoch.start_offset for epoch in read_epochs(partition.folder)] == [18]


def test_what_was_durable_and_cannot_be_read_is_damage(partition):
    """Healing cuts nothing that was promised."""
    partition.fill(3)
    partition.sync()
    partition.fill(3)
    poison(partition)
    segment = partition.folder.open_segment(0, write=True)
    segment.file.pwrite(b"damage", layout.SEGMENT_HEADER.size + HEADER_SIZE + 16)
    segment.close()
    with pytest.raises(CorruptLogError, match="known to be on"):
        healed(partition)


@pytest.mark.parametrize("call", range(12))
def test_a_failure_while_healing_leaves_it_to_the_next(partition, monkeypatch, call):
    """Whichever call fails: the poison stays or all is done, and the next one heals."""
    partition.fill(4)
    partition.sync()
    partition.fill(4)
    before = partition.read()
    poison(partition)
    left = [call]
    real = {name: getattr(File, name) for name in ("pwrite", "datasync")}

    def failing(name):
        def method(self, *arguments):
            left[0] -= 1
            if left[0] < 0:
                raise StorageError("No space left on device", path=self.path, errno=28)
            return real[name](self, *arguments)

        return method

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(File, name, failing(name))
        try:
            healed(partition)
        except StorageError:
            pass
        else:
            assert call > 8
    partition.reopen()
    if partition.end.flags & layout.FLAG_POISONED:
        healed(partition)
    assert partition.read() == before
    partition.fill(1)
    assert partition.offsets() == list(range(27))


def test_a_batch_placed_anew_differs_in_its_header_only(partition):
    """Segment id, chain and checksum; the records' bytes stay."""
    partition.fill(1)
    segment = partition.folder.open_segment(0)
    raw = segment.read(layout.SEGMENT_HEADER.size, partition.end.end_position - layout.SEGMENT_HEADER.size)
    segment.close()
    moved, checksum = placed_anew(raw, 7, 9)
    again, same = placed_anew(moved, segment.header.segment_id, segment.header.checksum)
    assert again == raw
    assert moved[HEADER_SIZE:] == raw[HEADER_SIZE:]
    assert checksum != same == partition.end.last_checksum
