"""Columns: Arrow's layout byte by byte, and bytes that were not written by an honest encoder."""

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystreamlog.record import columns

ITEMS = st.lists(st.one_of(st.none(), st.binary(max_size=20)), min_size=1, max_size=200)


def int32s(*numbers):
    """Little-endian int32 numbers."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


def unpacked(validity, offsets, data, count):
    """The items of a binary column."""
    items = columns.slices(data, columns.decode_offsets(offsets, count, len(data)), 0, count)
    if validity:
        for index in columns.zeros(columns.decode_bitmap(validity, count), 0, count):
            items[index] = None
    return items


# --- Arrow's layout ---------------------------------------------------------------------------------------------------


def test_binary_column_is_arrows():
    """N + 1 int32 offsets from 0, the data back to back, and no bitmap while nothing is None."""
    assert columns.encode_binary([b"ab", b"", b"cde"]) == (b"", int32s(0, 2, 2, 5), b"abcde")


def test_binary_column_with_nulls_is_arrows():
    """A set bit is a value, the least significant bit of the first byte is the first; a None takes no data."""
    items = [b"a", None, b"", None, b"b", b"c", b"d", b"e", b"f", None]
    validity, offsets, data = columns.encode_binary(items)
    assert validity == bytes([0b11110101, 0b01])
    assert offsets == int32s(0, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6)
    assert data == b"abcdef"


def test_bitmap_ends_with_zero_bits():
    """The bits past the last record are zero, as Arrow wants them."""
    assert columns.encode_bitmap(b"\1" * 8 + b"\0") == b"\xff\x00"
    assert columns.encode_bitmap(b"\0" * 3) == b"\x00"


def test_bitmap_without_zeros_is_absent():
    """A column in which nothing is None needs no bitmap."""
    assert columns.encode_bitmap(b"\1" * 9) == b""


def test_numbers_are_little_endian_int64():
    """Timestamps are int64, negative ones as two's complement."""
    assert columns.encode_numbers([1, -2]) == b"\1" + bytes(7) + b"\xfe" + b"\xff" * 7


def test_offsets_of_sizes():
    """Offsets start at 0 and have one entry more than there are items."""
    assert columns.encode_offsets([3, 0, 4]) == int32s(0, 3, 3, 7)


# --- round trips ------------------------------------------------------------------------------------------------------


@given(ITEMS)
def test_binary_columns_come_back(items):
    """Any mixture of byte strings, empty ones and None is unpacked as it was packed."""
    assert unpacked(*columns.encode_binary(items), len(items)) == items


@given(st.lists(st.binary(min_size=5, max_size=5), min_size=1, max_size=200), st.data())
def test_items_of_one_size_come_back_from_any_range(items, data):
    """The quick way for items of one size cuts the same items as the general one."""
    _, offsets, joined = columns.encode_binary(items)
    start = data.draw(st.integers(0, len(items)))
    stop = data.draw(st.integers(start, len(items)))
    assert columns.uniform_size(offsets, len(items), len(joined)) == 5
    assert columns.uniform_slices(joined, 5, start, stop) == items[start:stop]
    assert (
        columns.slices(joined, columns.decode_offsets(offsets, len(items), len(joined)), start, stop)
        == (items[start:stop])
    )


@given(st.binary(max_size=300).map(lambda raw: bytes(byte & 1 for byte in raw)))
def test_bitmaps_come_back(flags):
    """A bitmap tells for each record whether it is there, and which are not."""
    packed = columns.encode_bitmap(flags)
    if packed:
        assert columns.decode_bitmap(packed, len(flags)) == flags
        zeros = [number for number, flag in enumerate(flags) if not flag]
        assert list(columns.zeros(flags, 0, len(flags))) == zeros
        some = [each - 3 for each in zeros if 3 <= each < len(flags) - 2]
        assert list(columns.zeros(flags, 3, len(flags) - 2)) == some
    else:
        assert 0 not in flags


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_numbers_come_back(numbers):
    """Every int64 is kept."""
    assert columns.decode_numbers(columns.encode_numbers(numbers), len(numbers)) == numbers


@pytest.mark.parametrize("make", [bytearray, memoryview])
def test_bytes_like_items_are_taken_by_their_bytes(make):
    """A bytearray or a memoryview counts as the bytes it holds."""
    assert columns.encode_binary([make(b"ab"), None, make(b"")]) == columns.encode_binary([b"ab", None, b""])


def test_memoryview_of_wider_items_is_taken_by_its_bytes():
    """The length of a view of int32s is not its size in bytes."""
    view = memoryview(array("i", [1, 2]))
    assert columns.encode_binary([view, None, b"x"]) == columns.encode_binary([int32s(1, 2), None, b"x"])


@pytest.mark.parametrize("item", ["text", 5, [1, 2], object()])
def test_what_is_not_bytes_is_refused(item):
    """A value that is neither bytes nor None is a TypeError, wherever it stands."""
    for items in ([item], [b"a", item], [None, item]):
        with pytest.raises(TypeError):
            columns.encode_binary(items)


# --- bytes of no honest encoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offsets",
    [
        int32s(0, 2, 1, 3),
        int32s(1, 1, 2, 3),
        int32s(0, 1, 2, 4),
        int32s(0, -1, 2, 3),
        int32s(0, 1, 3),
        int32s(0, 1, 2, 2, 3),
        int32s(0, 1, 2, 3)[:-1],
        b"",
    ],
    ids=["falling", "not from 0", "past the end", "negative", "too few", "too many", "cut", "none"],
)
def test_offsets_that_do_not_rise_to_the_end_are_refused(offsets):
    """Offsets are checked before anything is cut by them."""
    with pytest.raises(ValueError, match=r"offsets|column"):
        columns.decode_offsets(offsets, 3, 3)


@pytest.mark.parametrize("bitmap", [b"", b"\xff", b"\xff\xff\xff", b"\xff\x04"])
def test_bitmap_of_another_size_is_refused(bitmap):
    """A bitmap has exactly the bits of its records, and none behind them."""
    with pytest.raises(ValueError, match="bitmap"):
        columns.decode_bitmap(bitmap, 10)


@pytest.mark.parametrize("size", [0, 7, 9, 24])
def test_numbers_of_another_size_are_refused(size):
    """A number column has exactly the size of its numbers."""
    with pytest.raises(ValueError, match="column"):
        columns.decode_numbers(bytes(size), 2)


def test_offsets_of_different_sizes_are_not_uniform():
    """The quick way is taken only where the offsets say so, each of them."""
    assert columns.uniform_size(int32s(0, 1, 3, 6), 3, 6) == 0
    assert columns.uniform_size(int32s(0, 2, 4, 6), 3, 7) == 0
    assert columns.uniform_size(int32s(0, 0, 0, 0), 3, 0) == 0


def test_uniform_size_past_int32_is_none():
    """Data that int32 offsets cannot reach is refused by the offsets, not by an overflow."""
    assert columns.uniform_size(bytes(12), 2, 1 << 31) == 0
    with pytest.raises(ValueError, match="do not rise"):
        columns.decode_offsets(bytes(12), 2, 1 << 31)
