"""Partitioners: the same key goes to the same place in every process, and columns go where single records go."""

import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystreamlog.errors import ConfigError
from pystreamlog.record.partitioner import murmur2, murmur2_partition, parse_partitioner, xxhash_partition

NAMES = ["xxhash", "murmur2", "round_robin"]
COLUMN = st.lists(st.none() | st.binary(max_size=12), max_size=60)
COUNTS = st.integers(1, 50)


# --- the hashes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # UtilsTest of Apache Kafka
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
        # The unit test of librdkafka
        (b"", 0x106E08D9),
        (b"4", 0x5A4B5CA1),
        (b"34", 0x873930DA - 2**32),
        (b"234", 0xE7C009CA - 2**32),
        (b"1234", 0x9FC97B14 - 2**32),
        (b"kafka", 0xD067CF64 - 2**32),
        (b"giberish123456789", 0x8F552B0C - 2**32),
    ],
)
def test_murmur2_is_kafkas(key, expected):
    """The hash is bit for bit that of Kafka's clients."""
    assert murmur2(key) == expected


def to_int32(number):
    """What Java's int keeps of a number."""
    return (number + 2**31) % 2**32 - 2**31


def murmur2_of_java(data):
    """Kafka's algorithm, step by step in Java's signed 32-bit arithmetic."""
    factor = 0x5BD1E995
    value = to_int32(0x9747B28C ^ len(data))
    for start in range(0, len(data) - 3, 4):
        word = to_int32(int.from_bytes(data[start : start + 4], "little") * factor)
        word = to_int32((word ^ (word % 2**32) >> 24) * factor)
        value = to_int32(to_int32(value * factor) ^ word)
    tail = data[len(data) & ~3 :]
    for place in reversed(range(len(tail))):
        value ^= tail[place] << 8 * place
    if tail:
        value = to_int32(value * factor)
    value = to_int32((value ^ (value % 2**32) >> 13) * factor)
    return to_int32(value ^ (value % 2**32) >> 15)


@given(st.binary(max_size=70))
def test_murmur2_agrees_with_java_arithmetic(key):
    """Every length and every bit agree with a plain transcription of the algorithm."""
    assert murmur2(key) == murmur2_of_java(key)


def test_murmur2_partition_drops_the_sign():
    """A negative hash loses its sign bit, as in Kafka; it is not negated."""
    assert murmur2_partition(b"21", 10) == (-973932308 & 0x7FFFFFFF) % 10
    assert murmur2_partition(b"abc", 10) == 7


def test_xxhash_partitions_never_change():
    """These places are in users' logs."""
    assert [xxhash_partition(key, 1000) for key in (b"", b"alice", b"bob", bytes(100))] == [138, 80, 397, 972]


@given(st.binary(max_size=300), COUNTS)
def test_partitions_are_in_range(key, count):
    """Every key has a partition."""
    assert 0 <= xxhash_partition(key, count) < count
    assert 0 <= murmur2_partition(key, count) < count


@pytest.mark.parametrize("partition", [xxhash_partition, murmur2_partition])
def test_keys_spread_evenly(partition):
    """Similar keys do not gather in one partition."""
    places = Counter(partition(b"user-%d" % number, 8) for number in range(8000))
    assert len(places) == 8
    assert all(850 < times < 1150 for times in places.values())


def test_places_do_not_depend_on_the_process():
    """Another process, with another hash seed of Python's, puts the same keys in the same places."""
    program = (
        "from pystreamlog.record.partitioner import parse_partitioner\n"
        "keys = [b'user-%d' % number for number in range(50)]\n"
        "print([parse_partitioner(name).partitions('t', keys, keys, 7, 0) for name in ('xxhash', 'murmur2')])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


# --- partitioners by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(keys=COLUMN, count=COUNTS)
def test_columns_go_where_single_records_go(name, keys, count):
    """A column is placed exactly as its records are one by one."""
    single, column = parse_partitioner(name), parse_partitioner(name)
    expected = [single.partition("t", key, b"", count, count - 1) for key in keys]
    assert column.partitions("t", keys, [b""] * len(keys), count, count - 1) == expected


@pytest.mark.parametrize("name", ["xxhash", "murmur2"])
def test_records_without_a_key_stick(name):
    """No key means the sticky partition; an empty key is a key."""
    partitioner = parse_partitioner(name)
    of_empty = {"xxhash": xxhash_partition, "murmur2": murmur2_partition}[name](b"", 1000)
    assert partitioner.partition("t", None, b"v", 1000, 3) == 3
    assert partitioner.partition("t", b"", b"v", 1000, 3) == of_empty != 3
    assert partitioner.partitions("t", [None, b"", None], [b"v"] * 3, 1000, 3) == [3, of_empty, 3]


def test_round_robin_deals_each_topic_in_turn():
    """Topics that are written by turns each use all their partitions; keys do not matter."""
    partitioner = parse_partitioner("round_robin")
    places = [(topic, partitioner.partition(topic, b"same", b"v", 2, 0)) for _ in range(2) for topic in "ab"]
    assert places == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_round_robin_goes_on_after_a_column():
    """Columns and single records share one turn."""
    partitioner = parse_partitioner("round_robin")
    assert partitioner.partitions("t", [None] * 4, [b"v"] * 4, 3, 0) == [0, 1, 2, 0]
    assert partitioner.partition("t", None, b"v", 3, 0) == 1
    assert partitioner.partitions("t", [], [], 3, 0) == []
    assert partitioner.partition("t", None, b"v", 4, 0) == 1  # the sixth turn, among four now


def test_round_robin_of_one_producer_is_not_anothers():
    """Each producer has its own turn."""
    first, second = parse_partitioner("round_robin"), parse_partitioner("round_robin")
    assert first.partition("t", None, b"v", 3, 0) == second.partition("t", None, b"v", 3, 0) == 0


def test_round_robin_loses_no_turn_between_threads():
    """Threads that share a producer deal evenly."""
    partitioner = parse_partitioner("round_robin")
    partitioner.partition("t", None, b"v", 4, 0)
    places = []
    threads = [
        threading.Thread(
            target=lambda: places.extend(partitioner.partition("t", None, b"v", 4, 0) for _ in range(1000))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(places) == dict.fromkeys(range(4), 1000)


@pytest.mark.parametrize("spec", ["", "sticky", "XXHASH", None, 3, b"xxhash"])
def test_unknown_partitioner_lists_the_valid_ones(spec):
    """What is neither a known name nor callable is an error that names what is."""
    with pytest.raises(ConfigError, match="xxhash, murmur2, round_robin, or a callable"):
        parse_partitioner(spec)


# --- callables --------------------------------------------------------------------------------------------------------


class Index:
    """Like numpy's integers: an integer by `__index__` only."""

    def __index__(self):
        return 2


def test_callable_gets_every_record():
    """A callable decides for records without a key too, in order, and its answers are plain integers."""
    calls = []

    def choose(*call):
        calls.append(call)
        return Index() if call[1] else 1

    partitioner = parse_partitioner(choose)
    assert partitioner.partitions("t", [b"k", None], [None, b"v"], 4, 0) == [2, 1]
    assert partitioner.partition("u", None, b"v", 5, 0) == 1
    assert calls == [("t", b"k", None, 4), ("t", None, b"v", 4), ("u", None, b"v", 5)]


@pytest.mark.parametrize("answer", [-1, 4, 1.0, "1", None])
def test_answer_out_of_range_is_refused(answer):
    """A callable must answer with one of the topic's partitions."""
    partitioner = parse_partitioner(lambda topic, key, value, partitions: answer)
    with pytest.raises(ConfigError, match=r"topic 'orders': a partition is an integer from 0 to 3"):
        partitioner.partition("orders", b"k", b"v", 4, 0)
    with pytest.raises(ConfigError, match="from 0 to 3"):
        partitioner.partitions("orders", [b"k"], [b"v"], 4, 0)


def test_error_of_a_callable_passes():
    """What a callable raises reaches the sender as it is."""

    def choose(topic, key, value, partitions):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parse_partitioner(choose).partition("t", None, None, 1, 0)
