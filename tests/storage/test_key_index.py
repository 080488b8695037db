"""The key index: it knows what the log says, whatever is done to its file and whenever its writer dies."""

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystreamlog.errors import CorruptLogError, StorageError
from pystreamlog.record.batch import encode
from pystreamlog.record.versions import with_versions
from pystreamlog.storage import key_index_layout as layout
from pystreamlog.storage import key_index_leaf
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index import KeyIndex, NotIndexedError, newest
from pystreamlog.storage.key_index_file import KeyIndexFile
from pystreamlog.storage.key_index_leaf import BadKeyIndexError
from pystreamlog.storage.key_index_state import KeyPlace
from pystreamlog.storage.reader import LogReader

from .conftest import LOG_ID, TOPIC_ID

START = KeyPlace(1, 0, 0, 0, 0)
PAGE = layout.PAGE_SIZE


@pytest.fixture
def folder(tmp_path):
    """A partition's folder with nothing in it."""
    (tmp_path / "p").mkdir()
    files = Files(str(tmp_path))
    yield Folder(files, "p", LOG_ID, TOPIC_ID, 0)
    files.close()


@pytest.fixture
def small_leaves(monkeypatch):
    """Leaves of four entries: growth with few keys."""
    monkeypatch.setattr(key_index_leaf, "_CAPACITY", 4)


def path_of(folder):
    """The index's file."""
    return Path(folder.files.path(f"{folder.path}/{layout.KEYS_NAME}"))


def known(file, keys):
    """What the file says of each key."""
    return {key: file.find(key) for key in keys}


def note(file, entries):
    """Note entries by key."""
    file.note({file.identify(key): numbers for key, numbers in entries.items()})


# --- the file ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.integers(0, 60), st.integers(0, 99), min_size=1, max_size=12), max_size=25))
def test_file_is_a_dictionary(folder, small_leaves, steps):
    """Whatever is noted in whatever portions is found, by the same file and by one opened later."""
    file, model = KeyIndexFile.create(folder, START), {}
    for records, step in enumerate(steps, 1):
        entries = {b"%d" % key: (offset, records) for key, offset in step.items()}
        model.update(entries)
        note(file, entries)
        file.advance(KeyPlace(1, records, 0, 120, 7))
    keys = [b"%d" % key for key in range(-3, 70)]
    expected = {key: model.get(key) for key in keys}
    assert known(file, keys) == expected
    file.close()
    again = KeyIndexFile.open(folder, write=False)
    assert known(again, keys) == expected
    assert again.place.end_offset == len(steps)
    again.close()


def test_file_grows_leaf_by_leaf(folder):
    """Tens of thousands of keys: all are found, no other is, and the leaves are well filled."""
    file = KeyIndexFile.create(folder, START)
    keys = [b"key-%d" % number for number in range(30_000)]
    for number, key in enumerate(keys[:5_000]):
        assert file.find(key) is None
        file.note_one(key, number, 1)
    for start in range(5_000, len(keys), 5_000):
        note(file, {key: (number, 1) for number, key in enumerate(keys[start : start + 5_000], start)})
    assert known(file, keys) == {key: (number, 1) for number, key in enumerate(keys)}
    assert set(known(file, [b"other-%d" % number for number in range(2_000)]).values()) == {None}
    assert path_of(folder).stat().st_size < 30_000 * 32 / 0.55
    file.close()


def test_entries_are_only_raised(folder):
    """What is noted again, because it was not known that it had been, changes nothing."""
    file = KeyIndexFile.create(folder, START)
    note(file, {b"a": (5, 3)})
    note(file, {b"a": (1, 1), b"b": (2, 1)})
    assert known(file, [b"a", b"b"]) == {b"a": (5, 3), b"b": (2, 1)}
    file.close()


def test_two_files_know_a_key_by_different_ids(folder):
    """Nobody can choose keys that crowd into one leaf without knowing the file's salt."""
    first = KeyIndexFile.create(folder, START)
    second = KeyIndexFile.create(folder, START)
    assert first.identify(b"key") != second.identify(b"key")
    assert (first.is_current(), second.is_current()) == (False, True)
    first.close()
    second.close()


def test_folder_in_its_place_is_replaced(folder):
    """Whatever has the name."""
    path = path_of(folder)
    path.mkdir()
    (path / "x").write_bytes(b"")
    with pytest.raises(BadKeyIndexError):
        KeyIndexFile.open(folder, write=True)
    KeyIndexFile.create(folder, START).close()
    KeyIndexFile.open(folder, write=True).close()


class KilledError(BaseException):
    """The process dies here."""


def run_until_killed(folder, monkeypatch, writes, script):
    """Run the script on the index until so many writes were done; whether it was killed."""
    left = [writes]
    original = File.pwrite

    def pwrite(self, data, position):
        if not left[0]:
            raise KilledError
        left[0] -= 1
        original(self, data, position)

    file = KeyIndexFile.open(folder, write=True)
    with monkeypatch.context() as patched:
        patched.setattr(File, "pwrite", pwrite)
        try:
            script(file)
        except KilledError:
            return True
        finally:
            file.close()
    return False


def test_killed_between_any_two_writes(folder, small_leaves, monkeypatch):
    """The next process finds every key as it was noted, or notes it again; nothing is lost and nothing made up."""
    steps = [{b"%d" % (number % 23): (number, number // 23 + 1)} for number in range(60)]
    steps += [{b"many-%d" % number: (60 + number, 1) for number in range(20)}]

    def script(file):
        for end, entries in enumerate(steps, 1):
            if end > file.place.end_offset:
                note(file, entries)
                file.advance(KeyPlace(1, end, 0, 120, 7))

    model = {}
    for entries in steps:
        model.update(entries)
    writes = 0
    while True:
        KeyIndexFile.create(folder, START).close()
        killed = run_until_killed(folder, monkeypatch, writes, script)
        reader = KeyIndexFile.open(folder, write=False)
        done = reader.place.end_offset
        reader.close()
        file = KeyIndexFile.open(folder, write=True)
        noted, maybe = {}, set()
        for entries in steps[:done]:
            noted.update(entries)
        for entries in steps[done : done + 1]:
            maybe.update(entries)
        for key, found in known(file, model).items():
            assert found == noted.get(key) or (key in maybe and found == model_at(steps, done, key)), (writes, key)
        script(file)
        assert known(file, model) == model, writes
        file.close()
        if not killed:
            break
        writes += 1
    assert writes > 120


def model_at(steps, end, key):
    """What the step after `end` says of a key."""
    return steps[end][key]


def test_killed_twice_in_one_split(folder, small_leaves, monkeypatch):
    """Whoever goes on with a split may die in it too."""
    keys = {b"%d" % number: (number, 1) for number in range(40)}

    def script(file):
        for key, numbers in keys.items():
            note(file, {key: numbers})

    for first in range(8, 60, 3):
        for second in range(5):
            KeyIndexFile.create(folder, START).close()
            run_until_killed(folder, monkeypatch, first, script)
            with suppress(KilledError):  # while opening
                run_until_killed(folder, monkeypatch, second, lambda file: None)
            file = KeyIndexFile.open(folder, write=True)
            script(file)
            assert known(file, keys) == keys
            file.close()


def test_damage_is_never_believed(folder, small_leaves):
    """One wrong byte anywhere: what is found is right, or nothing is found out at all."""
    file = KeyIndexFile.create(folder, START)
    model = {b"%d" % number: (number, 1) for number in range(30)}
    note(file, model)
    file.advance(KeyPlace(1, 30, 0, 120, 7))
    file.close()
    path = path_of(folder)
    whole = path.read_bytes()
    keys = [*model, b"absent", b"nothing"]
    expected = {key: model.get(key) for key in keys}
    refused = 0
    chance = random.Random(1)
    used = [position for position in range(len(whole)) if whole[position : position + 8].strip(b"\0")]
    for position in [*used[:200:3], *chance.sample(used, 500)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            file = KeyIndexFile.open(folder, write=False)
        except BadKeyIndexError:
            refused += 1
            continue
        assert file.place.end_offset in (30, 0)
        for key in keys:
            try:
                assert file.find(key) == expected[key], position
            except BadKeyIndexError:
                refused += 1
        file.close()
    assert refused > 500


@pytest.mark.parametrize("size", [0, 50, 300, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE + 1])
def test_short_file_is_refused(folder, small_leaves, size):
    """At its opening, or when a page is not there."""
    file = KeyIndexFile.create(folder, START)
    keys = [b"%d" % number for number in range(30)]
    note(file, dict.fromkeys(keys, (1, 1)))
    file.close()
    os.truncate(path_of(folder), size)
    with pytest.raises(BadKeyIndexError):  # noqa: PT012 - wherever it is noticed
        file = KeyIndexFile.open(folder, write=False)
        try:
            known(file, keys)
        finally:
            file.close()


def test_pages_of_other_places_are_refused(folder, small_leaves):
    """Pages that were swapped, and pages of another index, verify as pages but do not belong there."""
    path = path_of(folder)
    images = []
    for _ in range(2):
        file = KeyIndexFile.create(folder, START)
        note(file, {b"%d" % number: (number, 1) for number in range(30)})
        file.close()
        images.append(path.read_bytes())
    pages = [images[1][start : start + PAGE] for start in range(0, len(images[1]), PAGE)]
    leaves = [number for number, page in enumerate(pages) if page[8:12] == number.to_bytes(4, "little") and number > 1]
    first, second = sorted(leaves, key=lambda number: pages[number].count(0))[:2]  # no empty ones
    swapped = list(pages)
    swapped[first], swapped[second] = pages[second], pages[first]
    foreign = list(pages)
    foreign[first] = images[0][first * PAGE : (first + 1) * PAGE]
    for image in (swapped, foreign):
        path.write_bytes(b"".join(image))
        file = KeyIndexFile.open(folder, write=False)
        with pytest.raises(BadKeyIndexError):
            known(file, [b"%d" % number for number in range(30)])
        file.close()


def test_reader_waits_for_a_split(folder, small_leaves, monkeypatch):
    """A look-up while a leaf is being split, or that a split overtook, is no answer."""
    file = KeyIndexFile.create(folder, START)
    reader = KeyIndexFile.open(folder, write=False)
    note(file, {b"%d" % number: (number, 1) for number in range(4)})
    assert reader.look(b"3") == (START, (3, 1))
    original = KeyIndexFile.find

    def overtaken(self, key):
        found = original(self, key)
        note(file, {b"%d" % number: (number, 1) for number in range(20)})
        return found

    with monkeypatch.context() as patched:
        patched.setattr(KeyIndexFile, "find", overtaken)
        assert reader.look(b"3") is None
    assert reader.look(b"19") == (START, (19, 1))
    file._shape.split = 2
    file._reshape()
    assert reader.look(b"3") is None
    file.close()
    reader.close()


# --- with a log -------------------------------------------------------------------------------------------------------


class Indexed:
    """A partition whose records with keys get their versions."""

    def __init__(self, partition):
        self.partition = partition
        self.model = {}
        self.index = KeyIndex(partition.folder, self.log_reader())

    def log_reader(self):
        """A reader of the log."""
        return LogReader(self.partition.folder, self.partition.control, map_reads=True)

    def append(self, *keys, noted=True):
        """Append one batch of records with these keys; without `noted`, die before the index hears of it."""
        partition, index = self.partition, self.index
        end = partition.end
        if noted:
            index.catch_up(end)
        versions, previous, state = [], [], dict(self.model)
        for number, key in enumerate(keys):
            last, records = (-1, -1) if key is None else state.get(key, (-1, 0))
            versions.append(records)
            previous.append(last)
            if key is not None:
                state[key] = end.end_offset + number, records + 1
                if noted:
                    assert index.look_up(key) == (last, records)
                    index.assume({key: (end.end_offset + number, records + 1)})
        batch = encode([b"v"] * len(keys), list(keys), 1)
        if any(key is not None for key in keys):
            batch = with_versions(batch, versions, previous)
        self.model = state
        new = partition.appender.write(batch, end, partition.now, 0, partition.segment_bytes, partition.segment_ms)
        partition.control.publish(new)
        if noted:
            index.keep(new)

    def fill(self, batches, *, seed=0, keys=50):
        """Append batches of random keys."""
        chance = random.Random(seed)
        for _ in range(batches):
            names = [b"%d" % chance.randrange(keys) for _ in range(chance.randrange(1, 5))]
            self.append(*[None if chance.random() < 0.1 else name for name in names])
        return self

    def reopen(self):
        """Another process comes."""
        self.index.close()
        self.partition.reopen()
        self.index = KeyIndex(self.partition.folder, self.log_reader())

    def check(self):
        """The index knows what the model says, under the lock and without it."""
        end = self.partition.end
        self.index.catch_up(end)
        keys = [*self.model, b"absent"]
        assert {key: self.index.look_up(key) for key in keys} == {key: self.model.get(key, (-1, 0)) for key in keys}
        file, reader = KeyIndexFile.open(self.partition.folder, write=False), self.log_reader()
        for key in keys[:20]:
            assert newest(file, reader, key, iter([end])) == (self.model.get(key, (-1, 0))[0], end)
        file.close()
        reader.close()

    @property
    def path(self):
        """The index's file."""
        return path_of(self.partition.folder)


@pytest.fixture
def indexed(make_partition):
    """A partition of several segments with a key index."""
    made = Indexed(make_partition(segment_bytes=16 << 10))
    yield made
    made.index.close()


def test_index_follows_the_log(indexed, caplog):
    """Record by record, over segments, and through other processes; it never has to be built anew."""
    for seed in range(5):
        indexed.fill(60, seed=seed)
        indexed.check()
        indexed.reopen()
    indexed.check()
    assert len(indexed.partition.segments()) > 2
    assert not caplog.records


def test_what_was_not_noted_is_caught_up(indexed, caplog):
    """A process that died after it published, however often: the next one walks what lies between, and only that."""
    indexed.fill(30)
    for round_ in range(3):
        for number in range(40):
            indexed.append(b"%d" % number, b"new-%d-%d" % (round_, number), noted=False)
        indexed.reopen()
        indexed.check()
    assert not caplog.records


@pytest.mark.parametrize("reopen", [False, True])
def test_removed_index_is_built_anew(indexed, reopen):
    """At any time; a process that has it open goes on, until it meets what others appended."""
    indexed.fill(50)
    indexed.path.unlink()
    if reopen:
        indexed.reopen()
    indexed.fill(20, seed=2)
    indexed.append(b"1", b"2", noted=False)
    indexed.check()
    assert indexed.path.exists()


@pytest.mark.parametrize("damage", ["header", "state", "directory", "leaf", "empty", "zeros", "other bytes"])
def test_damaged_index_is_built_anew(indexed, damage, caplog):
    """Wherever the damage lies, no key is ever known wrongly."""
    indexed.fill(80)
    whole = bytearray(indexed.path.read_bytes())
    if damage in ("empty", "zeros", "other bytes"):
        whole = {"empty": b"", "zeros": bytes(len(whole)), "other bytes": b"\xa5" * len(whole)}[damage]
    else:
        directory = indexed.index._file._shape.directory * PAGE
        places = {"header": (0, 80), "state": (256, 400), "directory": (directory, 8), "leaf": (2 * PAGE, PAGE)}
        start, size = places[damage]
        for position in range(start, start + size, 3):
            whole[position] ^= 0xFF
    indexed.path.write_bytes(whole)
    if damage == "leaf":
        indexed.fill(1, seed=3)  # in use
    else:
        indexed.reopen()
    indexed.check()
    assert "built anew" in caplog.text


def test_index_of_another_history_is_built_anew(indexed, make_partition, caplog):
    """An index that verifies, but is of another log, epoch, or course of events, is not believed."""
    indexed.fill(60)
    good = indexed.path.read_bytes()
    indexed.partition.recover()
    indexed.reopen()
    indexed.check()
    assert "another history" in caplog.text
    caplog.clear()
    indexed.index.close()
    indexed.path.write_bytes(good)  # of the epoch before
    indexed.reopen()
    indexed.check()
    assert "another history" in caplog.text
    caplog.clear()
    other = Indexed(make_partition("other", number=1)).fill(60, seed=9)
    indexed.index.close()
    indexed.path.write_bytes(other.path.read_bytes())
    other.index.close()
    indexed.reopen()
    indexed.check()
    assert "another partition" in caplog.text


def test_index_of_a_branch_is_built_anew(make_partition, caplog):
    """Two copies of a log went on differently; with the other's index, behind or level, the chain tells."""
    one, two = (Indexed(make_partition(name)) for name in ("one", "two"))
    for indexed, seed in ((one, 1), (two, 2)):
        indexed.fill(40, seed=seed)
    behind = two.path.read_bytes()
    one.append(b"1")
    for ahead in (False, True):
        one.index.close()
        one.path.write_bytes(behind)
        if ahead:
            two.fill(80)
            one.path.write_bytes(two.path.read_bytes())
        one.reopen()
        one.check()
        assert "built anew" in caplog.text
        caplog.clear()
    one.index.close()
    two.index.close()


def test_build_that_was_killed_is_gone_on_with(indexed, monkeypatch, small_leaves):
    """From where it had come to; memory stays bounded meanwhile."""
    monkeypatch.setattr("pystreamlog.storage.key_index._GATHERED", 8)
    indexed.fill(200, keys=100)
    indexed.path.unlink()
    indexed.reopen()
    places = []
    original = KeyIndexFile.advance

    def advance(self, place):
        original(self, place)
        places.append(place.end_offset)
        if len(places) in (5, 9):
            raise KilledError

    monkeypatch.setattr(KeyIndexFile, "advance", advance)
    for _ in range(2):
        with pytest.raises(KilledError):
            indexed.index.catch_up(indexed.partition.end)
        indexed.reopen()
    indexed.check()
    assert places == sorted(places)
    assert len(places) > 20


def test_full_disk_stops_neither_the_record_nor_the_index(indexed, monkeypatch):
    """What could not be noted is caught up later; nothing is made up meanwhile."""
    indexed.fill(20)
    original = KeyIndexFile.advance

    def full(self, place):
        raise StorageError("the disk is full", errno=28)

    monkeypatch.setattr(KeyIndexFile, "advance", full)
    with pytest.raises(StorageError):
        indexed.append(b"1")
    with pytest.raises(StorageError):
        indexed.index.catch_up(indexed.partition.end)
    monkeypatch.setattr(KeyIndexFile, "advance", original)
    indexed.check()


def test_what_was_dropped_is_forgotten(indexed):
    """A batch that was assumed and not written leaves nothing."""
    indexed.fill(20)
    index = indexed.index
    index.catch_up(indexed.partition.end)
    before = index.look_up(b"1")
    index.assume({b"1": (99, before[1] + 1)})
    assert index.look_up(b"1") == (99, before[1] + 1)
    index.forget()
    assert index.look_up(b"1") == before
    indexed.check()


def test_reader_says_when_it_cannot_tell(indexed):
    """A reader looks through what the index does not hold yet, unless that is too much or does not follow."""
    indexed.fill(20)
    end = indexed.partition.end
    for number in range(10):
        indexed.append(b"late-%d" % (number % 3), noted=False)
    file, reader = KeyIndexFile.open(indexed.partition.folder, write=False), indexed.log_reader()
    offset = newest(file, reader, b"late-2", iter([indexed.partition.end]))[0]
    assert offset == indexed.model[b"late-2"][0] > end.end_offset
    for _ in range(300):
        indexed.append(b"later", noted=False)
    with pytest.raises(NotIndexedError):
        newest(file, reader, b"later", iter([indexed.partition.end]))
    file.close()
    reader.close()


def test_damaged_log_is_not_the_indexs_fault(indexed):
    """Building it meets damage in the log, and says so."""
    indexed.fill(50)
    indexed.path.unlink()
    indexed.index.close()
    indexed.partition.flip(300)
    indexed.reopen()
    with pytest.raises(CorruptLogError):
        indexed.index.catch_up(indexed.partition.end)


def test_keys_without_versions_are_damage(indexed):
    """In a topic with a key index nobody writes such a batch."""
    indexed.partition.append(b"v", keys=[b"k"])
    with pytest.raises(CorruptLogError):
        indexed.index.catch_up(indexed.partition.end)
