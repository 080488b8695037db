"""The keys and values that every measurement writes: prepared before the clock starts."""

import random

KEY_SIZE = 8
VALUE_SIZE = 100
BATCH_COUNT = 1_000

_CHUNK_SIZE = 1 << 20


def random_bytes(size: int, *, seed: int = 7) -> bytes:
    """Return `size` bytes that do not compress, the same ones for the same seed."""
    # In chunks: `randbytes` makes one integer of it all, which overflows at 256 MiB.
    source = random.Random(seed)
    return b"".join(source.randbytes(_CHUNK_SIZE) for _ in range(size // _CHUNK_SIZE + 1))[:size]


def make_values(count: int, size: int = VALUE_SIZE) -> list[bytes]:
    """Return `count` different values of `size` bytes, each an object of its own."""
    data = random_bytes(count * size)
    return [data[start : start + size] for start in range(0, count * size, size)]


def make_keys(count: int, *, shuffled: bool = False) -> list[bytes]:
    """Return `count` different keys of eight bytes, ascending or in random order."""
    keys = [number.to_bytes(KEY_SIZE, "big") for number in range(count)]
    if shuffled:
        random.Random(11).shuffle(keys)
    return keys


def in_batches(
    keys: list[bytes], values: list[bytes], batch_count: int = BATCH_COUNT
) -> list[tuple[list[bytes], list[bytes]]]:
    """Cut two columns into batches of `batch_count` records: (keys, values) each."""
    starts = range(0, len(values), batch_count)
    return [(keys[start : start + batch_count], values[start : start + batch_count]) for start in starts]


def make_batches(
    count: int, *, value_size: int = VALUE_SIZE, shuffled: bool = False, batch_count: int = BATCH_COUNT
) -> list[tuple[list[bytes], list[bytes]]]:
    """Return `count` records in batches: (keys, values) each."""
    return in_batches(make_keys(count, shuffled=shuffled), make_values(count, value_size), batch_count)
