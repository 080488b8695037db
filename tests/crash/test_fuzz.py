"""Bytes of any kind for everything that reads a file: `tests.crash.fuzz` in short, and Hypothesis for batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystreamlog.record import format as layout

from .fuzz import BUDGET_BYTES, BUDGET_SECONDS, MANY_HEADERS_BYTES, Workshop, budget, forged, fuzz, read_batch

pytestmark = pytest.mark.faults

COUNT = 400
SEED = 20_241

i32 = st.integers(-(2**31), 2**31 - 1)
offsets = st.lists(i32 | st.integers(0, 20), max_size=6).map(lambda numbers: b"".join(map(packed, numbers)))
cells = st.binary(max_size=40) | offsets | st.integers(0, 6).map(lambda count: bytes(4 * count))
fields = {
    "codec": st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]),
    "flags": st.sampled_from([0, 0, 1, 2, 65535]),
    "base_offset": st.integers(-1, 2**63 - 1),
    "last_offset": st.integers(-1, 2**63 - 1),
    "base_timestamp": st.integers(-1, 2**63 - 1),
    "max_timestamp": st.integers(-1, 2**63 - 1),
    "size": st.integers(0, 2**32 - 1),
    "body_size": st.integers(0, 2**32 - 1),
}


def packed(number):
    """An int32."""
    return number.to_bytes(4, "little", signed=True)


@pytest.fixture
def workshop(tmp_path):
    """Files of every kind, and what reads them."""
    made = Workshop(tmp_path / "log")
    yield made
    made.close()


def test_only_errors_of_this_library_come_out(workshop):
    """Changed files of every kind, most with checksums that hold."""
    counts = fuzz(COUNT, SEED, workshop)
    assert set(counts) == {target.name for target in workshop.targets}


@pytest.mark.slow
def test_worst_megabyte_takes_a_second_and_64_mib(workshop):
    """The worst that we could think of stays within the budget; time is that of the processor, with room for others."""
    for name, seconds, peak in budget(workshop, quick=True):
        assert peak <= (MANY_HEADERS_BYTES if "headers" in name else BUDGET_BYTES), (name, peak)
        assert seconds <= 3 * BUDGET_SECONDS, (name, seconds)


@given(st.binary(max_size=600))
def test_any_bytes_are_no_batch_or_one(data):
    """Bytes without a plan."""
    read_batch(data)


@given(
    st.dictionaries(st.integers(0, layout.COLUMN_COUNT - 1), cells),
    st.integers(1, 6) | st.sampled_from([0, 2**31, 2**32 - 1]),
    st.sampled_from(["none", "none", "gzip", "lz4", "zstd"]),
    st.fixed_dictionaries({}, optional=fields),
)
def test_forged_batches_are_refused_or_read(columns, count, codec, changed):
    """Headers and columns of any kind behind checksums that hold."""
    read_batch(forged(columns, count, codec, **{"last_offset": max(0, 2 + count), **changed}))


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=6), st.data())
def test_forged_offsets_are_refused_or_read(values, data):
    """A valid column of values beside offsets, bitmaps and headers of any kind."""
    count = len(values)
    ends = [sum(map(len, values[:number])) for number in range(count + 1)]
    columns = {
        layout.VALUE_OFFSETS: b"".join(map(packed, ends)),
        layout.VALUE_DATA: b"".join(values),
        layout.VALUE_VALIDITY: data.draw(st.just(b"") | st.binary(min_size=1, max_size=1)),
        layout.OFFSET_DELTAS: data.draw(st.just(b"") | st.binary(min_size=4 * count, max_size=4 * count)),
        layout.KEY_OFFSETS: data.draw(st.just(b"") | st.binary(min_size=4 * count + 4, max_size=4 * count + 4)),
        layout.KEY_DATA: data.draw(st.binary(max_size=8)),
        layout.HEADER_OFFSETS: b"".join(map(packed, data.draw(st.lists(st.integers(-1, 3), max_size=7)))),
        layout.HEADER_KEY_OFFSETS: b"".join(map(packed, data.draw(st.lists(st.integers(-1, 3), max_size=4)))),
        layout.HEADER_KEY_DATA: data.draw(st.binary(max_size=4)),
        layout.HEADER_VALUE_OFFSETS: b"".join(map(packed, data.draw(st.lists(st.integers(-1, 3), max_size=4)))),
        layout.HEADER_VALUE_DATA: data.draw(st.binary(max_size=4)),
    }
    read_batch(forged(columns, count))
