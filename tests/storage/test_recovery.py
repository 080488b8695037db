"""Recovery after a power loss: a prefix, whatever the disk kept, and never a cut below what is known durable.

A power loss is simulated by damaging the files as unsynced pages would be, and by another boot id.
"""

import os
import random
import shutil

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystreamlog.errors import CorruptLogError, StorageError
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control
from pystreamlog.storage.epochs import EPOCHS, Epoch, read_epochs, start_epoch
from pystreamlog.storage.recovery import needs_recovery, recover, walk

from .conftest import BOOT, NEXT_BOOT, Partition


def is_prefix(partition, count):
    """The records are the first ones of `count`, and the log goes on from there."""
    offsets = partition.offsets()
    assert offsets == list(range(len(offsets)))
    assert len(offsets) <= count
    assert partition.end.end_offset == len(offsets)
    left = len(offsets)
    partition.fill(2)
    assert partition.offsets() == list(range(left + 6))
    return left


def lose_slots(partition):
    """Both published slots are gone, as when `control` was not synced."""
    partition.overwrite(layout.PUBLISHED_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")


# --- when it is needed ------------------------------------------------------------------------------------------------


def test_another_boot_or_another_file_needs_recovery(partition, tmp_path):
    """The same boot and the same files need none; a copy, another boot or no identity does."""
    assert not needs_recovery(partition.control, BOOT)
    assert needs_recovery(partition.control, NEXT_BOOT)
    partition.recover()
    assert not needs_recovery(partition.control, NEXT_BOOT)
    shutil.copytree(tmp_path, tmp_path / "copy")
    copy = Partition(tmp_path / "copy")
    assert needs_recovery(copy.control, NEXT_BOOT)
    copy.recover()
    assert not needs_recovery(copy.control, NEXT_BOOT)
    copy.close()
    copy.files.close()
    partition.overwrite(layout.IDENTITY_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")
    assert needs_recovery(partition.control, NEXT_BOOT)


# --- nothing was lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1500])
def test_intact_log_keeps_everything(make_partition, segment_bytes):
    """When the disk kept all, recovery keeps all, and starts a new epoch."""
    partition = make_partition(segment_bytes=segment_bytes)
    partition.fill(20)
    before = partition.end
    report = partition.recover()
    assert (report.end_offset, report.published_offset, report.epoch) == (60, 60, 2)
    assert partition.end.epoch == 2
    assert partition.end.max_timestamp == before.max_timestamp
    assert partition.end.last_checksum == before.last_checksum
    assert partition.control.durable().offset == 60
    assert is_prefix(partition, 60) == 60


def test_empty_partition_stays_empty(partition):
    """A partition without a record is recovered to one without a record."""
    assert partition.recover().end_offset == 0
    assert is_prefix(partition, 0) == 0


def test_both_control_slots_lost_keeps_everything(make_partition):
    """The end is found by the chain when nothing says where it was published."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    lose_slots(partition)
    report = partition.recover()
    assert (report.end_offset, report.published_offset) == (60, None)
    assert is_prefix(partition, 60) == 60


def test_older_published_slot_does_not_cut(make_partition):
    """A published end that is older than the data, as the disk may have kept it, is only a hint."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(4)
    old = partition.end
    partition.fill(16)
    partition.publish(**{name: getattr(old, name) for name in old.__struct_fields__ if name != "sequence"})
    assert partition.recover().end_offset == 60
    assert is_prefix(partition, 60) == 60


def test_unpublished_complete_batch_of_a_killed_process_is_whole_or_gone(partition):
    """A batch written and never published may come back whole after a power loss, and never in part."""
    partition.fill(2)
    partition.append(b"late", b"late", publish=False)
    report = partition.recover()
    assert report.end_offset == 8
    assert [value for _, value in partition.read(6)] == [b"late", b"late"]


def test_unpublished_batch_does_not_come_back_without_a_power_loss(partition):
    """In the same boot what was published rules: recovery on demand drops what was not."""
    partition.fill(2)
    partition.append(b"late", publish=False)
    report = partition.recover(boot=BOOT, trust_published=True)
    assert (report.end_offset, report.published_offset) == (6, 6)
    assert is_prefix(partition, 6) == 6


# --- torn tails -------------------------------------------------------------------------------------------------------


def test_truncation_at_every_byte_of_the_last_batch_leaves_a_prefix(partition, monkeypatch):
    """The file ends anywhere in the last batch: that batch goes, the log goes on."""
    for name in ("fdatasync", "fsync"):  # 400 recoveries, and no disk that matters
        monkeypatch.setattr(os, name, lambda fd: None)
    partition.fill(2)
    _, position, header = partition.positions()[-1]
    data, control = partition.bytes_of()[: position + header.size], partition.tree()["control"]
    for size in range(position, position + header.size):
        partition.truncate(size)
        report = partition.recover()
        assert report.end_offset == 3
        assert is_prefix(partition, 3) == 3
        partition.overwrite(0, data)
        partition.overwrite(0, control, name="control")
    assert partition.recover().end_offset >= 6


def test_zeros_from_any_byte_of_the_last_batch_leave_a_prefix(partition):
    """Preallocated space that was never written is zeros, not the end of the file."""
    partition.fill(2)
    _, position, header = partition.positions()[-1]
    data, control = partition.bytes_of(), partition.tree()["control"]
    for place in range(position, position + header.size - 8, 11):
        partition.overwrite(place, bytes(position + header.size - place))
        report = partition.recover()
        assert (report.end_offset, report.dropped > 0) == (3, place > position)
        assert is_prefix(partition, 3) == 3
        partition.overwrite(0, data)
        partition.overwrite(0, control, name="control")


def test_torn_tail_is_reported(partition):
    """What was dropped is said: the old end, the new one, how many bytes, and why."""
    partition.fill(3)
    _, position, header = partition.positions()[1]
    partition.flip(position + HEADER_SIZE + 20)
    report = partition.recover()
    assert (report.published_offset, report.end_offset) == (9, 3)
    assert report.dropped == pytest.approx(2 * header.size, abs=8)
    assert "checksum" in report.reason
    assert report.path == partition.files.path(partition.folder.path)


def test_hole_before_good_batches_ends_the_log(partition):
    """A lost page with later pages kept: everything from the hole on goes, though it verifies by itself."""
    partition.fill(10)
    _, position, header = partition.positions()[4]
    partition.overwrite(position, bytes(header.size))
    assert partition.recover().end_offset == 12
    assert is_prefix(partition, 30) == 12


def test_stale_bytes_behind_the_cut_never_come_back(partition):
    """What was cut stays cut, even when the new batches have the length of the old ones."""
    partition.fill(10)
    _, position, header = partition.positions()[4]
    good = partition.bytes_of()[position : position + header.size]
    partition.overwrite(position, bytes(header.size))
    partition.recover()
    assert not any(partition.bytes_of()[position:])
    partition.fill(1)
    partition.overwrite(position, good)  # even the very batch that was lost: its chain ends in nothing
    partition.recover(boot=b"yet-another-boot")
    assert partition.end.end_offset <= 15


def test_segments_behind_the_cut_are_removed(make_partition):
    """A cut in an early segment removes the later ones and their indexes."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    base, position, header = partition.positions()[3]
    for name in partition.segments():
        with open(partition.segment_path(name, ".index"), "ab"):
            pass
    partition.overwrite(position, bytes(header.size), base=base)
    partition.recover()
    left = is_prefix(partition, 60)
    assert left == 9
    assert max(partition.segments()) <= left + 6
    indexes = [int(name[:20]) for name in os.listdir(partition.path("")) if name.endswith(".index")]
    assert set(indexes) <= set(partition.segments())


def test_lost_seal_ends_the_log_in_that_segment(make_partition):
    """A segment whose seal was lost is the last one; appends go on there."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    second = partition.segments()[1]
    seal = partition.bytes_of(0).index(layout.SEAL_MAGIC)
    partition.overwrite(seal, bytes(layout.SEAL.size))
    report = partition.recover()
    assert report.end_offset == second
    assert partition.segments() == [0]
    assert is_prefix(partition, 60) == second


def test_missing_next_segment_ends_the_log(make_partition):
    """A seal that leads to nothing is where the log ends; it is opened again there."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    third = partition.segments()[2]
    partition.close()
    os.unlink(partition.segment_path(third))
    partition.open()
    assert partition.recover().end_offset == third
    assert is_prefix(partition, 60) == third


def test_died_while_rolling_keeps_everything(make_partition):
    """The next segment made, the seal written or not, nothing published: recovery settles it."""
    for sealed in (False, True):
        partition = make_partition(f"sealed-{sealed}", segment_bytes=1500)
        partition.fill(2)
        before = partition.end
        if sealed:
            partition.append(b"x" * 1400, publish=False)
            assert partition.end == before
            os.truncate(partition.segment_path(6), layout.SEGMENT_HEADER.size)
        else:
            partition.folder.create_segment(6, created_ms=1, max_timestamp_before=5)
        assert partition.recover().end_offset == 6
        assert is_prefix(partition, 6) == 6


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6), st.integers(0, 2**32))
def test_any_lost_pages_leave_a_prefix(make_partition, tmp_path, losses, seed):
    """Any set of 512-byte sectors lost since the last sync, of segments and control: a prefix, and it goes on."""
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    partition = make_partition(segment_bytes=4000)
    partition.fill(6)
    partition.sync()
    durable, start = partition.end.end_offset, partition.end
    partition.fill(14)
    dice = random.Random(seed)
    for sector, zeroed in losses:
        base = dice.choice([base for base in partition.segments() if base >= start.segment_base])
        position = 512 * sector
        if base == start.segment_base:
            position = max(position, start.end_position)
        position = max(position, layout.SEGMENT_HEADER.size)
        size = min(512, len(partition.bytes_of(base)) - position)
        if size > 0:
            partition.overwrite(position, bytes(size) if zeroed else dice.randbytes(size), base=base)
    partition.recover()
    assert durable <= is_prefix(partition, 60)


# --- what is durable --------------------------------------------------------------------------------------------------


def refused(partition, **options):
    """Recovery refuses, and changes nothing."""
    before = partition.tree()
    with pytest.raises(CorruptLogError) as caught:
        partition.recover(**options)
    assert partition.tree() == before
    partition.reopen()
    return caught.value


def test_damage_below_the_durable_offset_is_corrupt(make_partition):
    """What was acknowledged as on disk and does not verify is never cut off silently; nothing is changed."""
    partition = make_partition()
    partition.fill(10)
    partition.sync()
    partition.fill(2)
    _, position, header = partition.positions()[4]
    partition.overwrite(position, bytes(header.size))
    error = refused(partition)
    assert (error.path, error.position) == (partition.segment_path(), position)
    assert (error.expected, error.found) == (30, 12)


def test_damage_above_the_durable_offset_is_cut(partition):
    """Everything synced stays."""
    partition.fill(4)
    partition.sync()
    partition.fill(4)
    _, position, _ = partition.positions()[5]
    partition.flip(position + 40)
    assert partition.recover().end_offset == 15
    assert is_prefix(partition, 24) == 15


def test_later_header_knows_what_is_durable(partition):
    """With the durable slot lost, a valid header behind the damage still tells what was synced."""
    partition.fill(4)
    partition.sync()
    partition.fill(4)
    _, position, header = partition.positions()[2]
    partition.overwrite(position, bytes(header.size))
    partition.overwrite(layout.DURABLE_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")
    assert refused(partition).expected == 12


def test_header_in_a_later_segment_knows_what_is_durable(make_partition):
    """The same when that header lies in another segment."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(6)
    partition.sync()
    partition.fill(10)
    base, position, header = partition.positions()[1]
    partition.overwrite(position, bytes(header.size), base=base)
    partition.overwrite(layout.DURABLE_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")
    assert refused(partition).expected == 18


def test_durable_segment_missing_is_corrupt(make_partition):
    """A segment with durable records that is gone is damage."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(10)
    partition.sync()
    partition.fill(1)
    partition.close()
    for base in partition.segments()[2:]:
        os.unlink(partition.segment_path(base))
    partition.open()
    refused(partition)


def test_missing_start_is_corrupt(make_partition):
    """A log that has lost its first segment is not taken for one that begins later."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(10)
    partition.close()
    os.unlink(partition.segment_path(0))
    partition.open()
    assert refused(partition).expected == 0


def test_no_segment_at_all_is_corrupt(partition):
    """A partition without segments is not an empty one."""
    partition.fill(1)
    partition.close()
    os.unlink(partition.segment_path(0))
    partition.open()
    refused(partition)


def test_damaged_first_segment_header_is_corrupt(partition):
    """Segment headers are on disk before the segment is used."""
    partition.fill(1)
    partition.flip(9)
    refused(partition)


@pytest.mark.parametrize("position", [40, HEADER_SIZE + 20])
def test_published_damage_in_the_same_boot_is_corrupt(partition, position):
    """Nothing was lost since it was published, so what does not verify is damage: recovery on demand refuses."""
    partition.fill(5)
    _, at, _ = partition.positions()[2]
    partition.flip(at + position)
    error = refused(partition, boot=BOOT, trust_published=True)
    assert (error.position, error.expected, error.found) == (at, 15, 6)


def test_published_data_missing_in_the_same_boot_is_corrupt(make_partition):
    """The same for a file that ends too early, a lost seal and a lost segment."""
    for number, damage in enumerate(
        [
            lambda partition: partition.truncate(partition.positions()[-1][1], base=partition.segments()[-1]),
            lambda partition: partition.overwrite(partition.bytes_of().index(layout.SEAL_MAGIC), bytes(56)),
            lambda partition: os.unlink(partition.segment_path(partition.segments()[1])),
            lambda partition: os.unlink(partition.segment_path(partition.segments()[-1])),
        ]
    ):
        partition = make_partition(f"log-{number}", segment_bytes=1500)
        partition.fill(10)
        damage(partition)
        refused(partition, boot=BOOT, trust_published=True)


# --- copies -----------------------------------------------------------------------------------------------------------


def copied(partition, tmp_path, name="copy"):
    """The partition's files, copied."""
    shutil.copytree(partition.root, tmp_path / name)
    return Partition(tmp_path / name, segment_bytes=partition.segment_bytes)


@pytest.mark.parametrize("segment_bytes", [1 << 20, 1500])
def test_copy_of_a_log_at_rest_keeps_everything(make_partition, tmp_path, segment_bytes):
    """A copy has other inodes and the same records."""
    partition = make_partition(segment_bytes=segment_bytes)
    partition.fill(20)
    partition.sync()
    copy = copied(partition, tmp_path)
    assert copy.recover(boot=BOOT).end_offset == 60
    assert is_prefix(copy, 60) == 60
    copy.close()


@pytest.mark.parametrize("cut", ["zeros", "end of file", "segment"])
def test_copy_that_ends_before_its_durable_slot_is_a_prefix(make_partition, tmp_path, cut):
    """Files copied while they were written: the segment first, then `control`, which says that more is on disk."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    partition.sync()
    copy = copied(partition, tmp_path)
    base, position, header = copy.positions()[-2]
    if cut == "segment":
        copy.close()
        for later in copy.segments():
            if later > base:
                os.unlink(copy.segment_path(later))
        copy.open()
        least = base
    else:
        for later in copy.segments():
            if later > base:
                os.unlink(copy.segment_path(later))
        keep = copy.bytes_of(base)[: position + header.size // 2]
        padding = bytes(0 if cut == "end of file" else 8192)
        copy.truncate(0, base=base)
        copy.overwrite(0, keep + padding, base=base)
        least = header.base_offset
    assert copy.recover(boot=BOOT).end_offset >= least
    assert is_prefix(copy, 60) >= least
    copy.close()


def test_damage_in_a_copy_is_still_damage(make_partition, tmp_path):
    """A flipped bit below what was durable is no sign of copying."""
    partition = make_partition()
    partition.fill(20)
    partition.sync()
    copy = copied(partition, tmp_path)
    _, position, _ = copy.positions()[5]
    for place in range(0, HEADER_SIZE, 24):
        copy.flip(position + place)
        with pytest.raises(CorruptLogError):
            copy.recover(boot=BOOT)
        copy.flip(position + place)
    assert copy.recover(boot=BOOT).end_offset == 60
    copy.close()


def test_copy_that_lacks_a_middle_segment_is_corrupt(make_partition, tmp_path):
    """Copying ends early or it does not; it leaves no segment out."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    partition.sync()
    copy = copied(partition, tmp_path)
    copy.overwrite(layout.DURABLE_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")
    partition.fill(1)  # its header names the durable offset
    shutil.copy(partition.segment_path(partition.segments()[-1]), copy.path(""))
    os.unlink(copy.segment_path(copy.segments()[2]))
    with pytest.raises(CorruptLogError):
        copy.recover(boot=BOOT)
    copy.close()


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_epochs_grow_with_each_recovery(partition):
    """Each recovery starts an epoch where the log ends; batches carry theirs."""
    for number in range(1, 4):
        partition.fill(1)
        partition.recover(boot=b"boot-number-%04d" % number)
    assert read_epochs(partition.folder) == [Epoch(2, 3), Epoch(3, 6), Epoch(4, 9)]
    partition.fill(1)
    assert [header.epoch for _, _, header in partition.positions()] == [1, 2, 3, 4]


def test_epochs_without_a_record_are_forgotten(partition):
    """A thousand recoveries of a log at rest leave one entry, and the epoch still rises."""
    partition.fill(2)
    for number in range(50):
        partition.recover(boot=b"boot-number-%04d" % number)
    assert read_epochs(partition.folder) == [Epoch(51, 6)]


def test_epochs_behind_a_cut_are_forgotten(partition):
    """Where a new epoch starts before an older one, the older one's records are gone."""
    partition.fill(2)
    partition.recover(boot=b"boot-number-0001")
    partition.overwrite(layout.DURABLE_POSITION, bytes(2 * layout.SLOT_STRIDE), name="control")
    partition.flip(partition.positions()[1][1] + 50)
    partition.recover(boot=b"boot-number-0002")
    assert read_epochs(partition.folder) == [Epoch(3, 3)]


def test_record_that_a_recovery_cut_off_never_comes_back(partition):
    """A file system that lost its data but not its journal gives a file a block with what stood there before."""
    partition.fill(2)
    before = partition.end.end_position
    partition.fill(1)
    cut_off = partition.bytes_of()[before:]
    partition.overwrite(before, bytes(len(cut_off)))
    assert partition.recover().end_offset == 6
    partition.fill(1, size=50)
    partition.overwrite(before, cut_off)
    report = partition.recover(boot=b"boot-number-0003")
    assert report.end_offset == 6
    assert "epoch" in report.reason


def test_epoch_that_was_never_published_does_not_count(partition):
    """A recovery that failed half-way, while others went on appending, cuts nothing off later."""
    partition.fill(2)
    start_epoch(partition.folder, partition.end)
    partition.fill(1)
    assert partition.recover().end_offset == 9


def test_epoch_rises_when_the_control_slots_are_lost(partition):
    """`epochs.json` remembers what `control` forgot."""
    partition.fill(1)
    partition.recover()
    lose_slots(partition)
    assert partition.recover(boot=b"boot-number-0001").epoch == 3


@pytest.mark.parametrize("contents", [b"", b"[[1", b"{}", b'[["a", 1]]', b"[" * 60_000, b"\0" * 40])
def test_damaged_epochs_are_corrupt(partition, contents):
    """Epochs that do not decode are an error and change nothing."""
    partition.fill(1)
    with open(partition.path(EPOCHS), "wb") as file:
        file.write(contents)
    refused(partition)


# --- interrupted, repeated, in memory ---------------------------------------------------------------------------------


def test_recovery_that_fails_at_any_write_is_done_again(make_partition, monkeypatch):
    """A recovery that dies at any write leaves a log that the next one recovers to the same end."""
    for limit in range(40):
        partition = make_partition(f"log-{limit}", segment_bytes=1500)
        partition.fill(12)
        base, position, _ = partition.positions()[6]
        partition.flip(position + 60, base=base)
        left = [limit]

        def limited(real, left=left):
            def write(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(5, "Input/output error")
                return real(*args, **kwargs)

            return write

        finished = True
        with monkeypatch.context() as patch:
            for name in ("pwrite", "fdatasync", "fsync", "rename", "unlink"):
                patch.setattr(os, name, limited(getattr(os, name)))
            try:
                recover(partition.folder, partition.control, NEXT_BOOT, trust_published=False)
            except StorageError:
                finished = False
                assert left[0] < 0
        partition.reopen()
        if needs_recovery(partition.control, NEXT_BOOT):
            assert not finished
            partition.recover()
        assert is_prefix(partition, 36) == 18
        if finished:
            return
    pytest.fail("recovery never got through")


def test_identity_is_written_last(partition, monkeypatch):
    """Only when all else is on disk does the partition count as recovered."""
    partition.fill(3)
    steps = []
    real_sync, real_identity = os.fdatasync, Control.write_identity
    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append("sync") or real_sync(fd))
    monkeypatch.setattr(Control, "write_identity", lambda *args: steps.append("identity") or real_identity(*args))
    recover(partition.folder, partition.control, NEXT_BOOT, trust_published=False)
    assert steps[-3:] == ["sync", "identity", "sync"]
    assert steps.count("sync") >= 4


def test_walk_writes_nothing(make_partition):
    """A read-only opener finds the same end in memory."""
    partition = make_partition(segment_bytes=1500)
    partition.fill(20)
    base, position, _ = partition.positions()[12]
    partition.flip(position + 60, base=base)
    before = partition.tree()
    result = walk(partition.folder, partition.control)
    assert partition.tree() == before
    assert result.end.end_offset == 36
    assert [offset for offset, _ in partition.read(end=result.end)] == list(range(36))
    report = partition.recover()
    assert (report.end_offset, report.reason) == (36, result.reason)


def test_walk_starts_at_the_durable_segment(make_partition, monkeypatch):
    """What is durable in earlier segments is not read again: recovery costs at most two segments."""
    partition = make_partition(segment_bytes=3000)
    partition.fill(40)
    partition.sync()
    partition.fill(2)
    opened = []
    real = type(partition.folder).open_segment
    monkeypatch.setattr(
        type(partition.folder), "open_segment", lambda self, base, **kw: opened.append(base) or real(self, base, **kw)
    )
    assert partition.recover().end_offset == 126
    assert set(opened) <= set(partition.segments()[-2:])


def test_deleted_flag_and_start_survive(partition):
    """A recovery forgets neither that the topic was deleted nor where the log starts."""
    partition.fill(4)
    partition.publish(flags=layout.FLAG_DELETED, log_start_offset=3)
    partition.recover()
    assert (partition.end.flags, partition.end.log_start_offset) == (layout.FLAG_DELETED, 3)
    assert partition.offsets(3) == list(range(3, 12))


def test_both_published_slots_are_written(partition):
    """After a recovery no older slot is left that a torn newer one would bring back."""
    partition.fill(4)
    _, position, _ = partition.positions()[2]
    partition.flip(position + 50)
    partition.recover()
    for sequence in (partition.end.sequence, partition.end.sequence - 1):
        raw = partition.tree()["control"]
        start = layout.PUBLISHED_POSITION + (sequence & 1) * layout.SLOT_STRIDE
        assert layout.PUBLISHED_SLOT.unpack_from(raw, start)[4] == 6
    end = msgspec.structs.replace(partition.end, sequence=0)
    partition.overwrite(
        layout.PUBLISHED_POSITION + (partition.end.sequence & 1) * layout.SLOT_STRIDE, b"torn", name="control"
    )
    assert msgspec.structs.replace(partition.end, sequence=0) == end


def test_folder_in_place_of_an_index_is_removed(partition):
    """An index is derived: whatever has its name does not keep a partition from being recovered."""
    partition.fill(3)
    os.mkdir(partition.segment_path(suffix=".index"))
    partition.recover()
    assert partition.offsets() == list(range(9))
    assert not os.path.exists(partition.segment_path(suffix=".index"))
