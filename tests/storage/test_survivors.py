"""Which records a compaction keeps, beside a dictionary that keeps everything."""

import random

import pytest

from pystreamlog.record.batch import decode, encode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage.survivors import Part, find_survivors


def batch_of(keys, values):
    """A decoded batch."""
    encoded = encode(values, keys, 1)
    head, _ = encoded.place(0, 1, 2, 0, 1, 1)
    return decode(parse_header(head), b"".join(encoded.parts))


def found_in(segments, clean, *, drops=(), **options):
    """What stays of segments, which are lists of batches of keys and values, by segment; and all that was found."""
    batches = {base: [batch_of(*zip(*rows, strict=True)) for rows in each] for base, each in enumerate(segments)}

    def read(base, backwards):
        return iter(batches[base][::-1] if backwards else batches[base])

    parts = [Part(base, base < clean, drop_tombstones=base in drops) for base in range(len(segments))]
    found = find_survivors(parts, read, **options)
    marks = {base: list(found.marks(base)) for base in batches}
    assert found.kept == {base: sum(each) for base, each in marks.items()}
    assert found.records == {base: len(each) for base, each in marks.items()}
    return marks, found


def expected_of(segments, clean, drops=()):
    """The same, record by record."""
    last = {}
    for base, each in enumerate(segments):
        for number, (key, value) in enumerate(row for rows in each for row in rows):
            last[key] = base, number
            if base in drops and value is None and base < clean:
                last[key] = None
    return {
        base: [
            int(key is None or last[key] == (base, number))
            for number, (key, _) in enumerate(row for rows in each for row in rows)
        ]
        for base, each in enumerate(segments)
    }


def random_segments(chance, count, keys, *, clean=0):
    """Segments of random batches; in the clean ones no key comes twice."""
    segments, unused = [], [b"%d" % number for number in range(keys)]
    chance.shuffle(unused)
    for base in range(count):
        rows = []
        for _ in range(chance.randrange(1, 60)):
            value = None if chance.random() < 0.1 else b"v"
            if base < clean:
                if unused:
                    rows.append((unused.pop(), value))
            else:
                rows.append((None if chance.random() < 0.05 else b"%d" % chance.randrange(keys), value))
        batches, start = [], 0
        while start < len(rows):
            size = chance.randrange(1, 20)
            batches.append(rows[start : start + size])
            start += size
        segments.append(batches)
    return segments


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("budget", [1 << 30, 3000, 200])
def test_as_a_dictionary_says(seed, budget):
    """With clean segments and dirty ones, tombstones, records without a key, and any number of passes."""
    chance = random.Random(seed)
    clean = chance.randrange(4)
    segments = random_segments(chance, clean + chance.randrange(1, 5), chance.choice([3, 40, 400]), clean=clean)
    drops = {base for base in range(clean) if chance.random() < 0.5}
    hashed = chance.choice([hash, len, lambda _: -(1 << 63), lambda _: (1 << 63) - 1])
    marks, found = found_in(segments, clean, drops=drops, budget=budget, hashed=hashed)
    assert marks == expected_of(segments, clean, drops)
    assert found.tombstones == {
        base
        for base, each in enumerate(segments)
        if base >= clean and any(value is None for rows in each for _, value in rows)
    }
    if budget == 1 << 30:
        assert found.passes == 1


def test_little_memory_takes_more_passes():
    """And not more than some for each halving."""
    segments = [[[(b"%d" % number, b"v") for number in range(start, start + 100)]] for start in range(0, 2000, 100)]
    _, found = found_in(segments, 0, budget=200 * 150)
    assert 5 < found.passes < 40


def test_header_size_is_whole():
    """The helper above cuts where a header ends."""
    assert len(encode([b"v"], [b"k"], 1).place(0, 1, 2, 0, 1, 1)[0]) == HEADER_SIZE
