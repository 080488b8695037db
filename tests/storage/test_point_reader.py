"""Single batches by offset: found the short way, or not at all, whatever the files look like."""

import os

import pytest

from pystreamlog.storage.point_reader import PointReader


@pytest.mark.parametrize("map_reads", [True, False])
def test_every_offset_is_found(make_partition, map_reads):
    """Over several segments, behind index entries and before the first."""
    partition = make_partition(segment_bytes=64 << 10, map_reads=map_reads).fill(60, size=900)
    reader = PointReader(partition.folder, map_reads=map_reads)
    for offset in range(partition.end.end_offset):
        batch = reader.batch_at(offset, partition.end)
        assert batch.header.base_offset <= offset <= batch.header.last_offset
    reader.close()


@pytest.mark.parametrize("map_reads", [True, False])
def test_nothing_is_found_where_the_file_was_cut(make_partition, map_reads):
    """At any place: at the end of a batch, in a header, in a body."""
    partition = make_partition(map_reads=map_reads).fill(6, size=300)
    path = partition.segment_path(0)
    starts = [position for _, position, _ in partition.positions()]
    end = partition.end
    for size in sorted({start + more for start in starts for more in (0, 100, 400)}, reverse=True):
        os.truncate(path, size)
        reader = PointReader(partition.folder, map_reads=map_reads)
        found = [reader.batch_at(offset, end) is not None for offset in range(0, 18, 3)]
        following = [*starts[1:], end.end_position]
        assert found == [stop <= size for stop in following]
        reader.close()
