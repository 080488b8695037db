"""A group's offsets file: the last commit, or a loud error, and never "nothing was committed" in its place."""

import os
import struct
import tempfile
import time

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from xxhash import xxh3_64_intdigest

from pystreamlog.coordination import offset_layout as layout
from pystreamlog.coordination.offset_store import Committed, OffsetStore
from pystreamlog.errors import ConfigError, CorruptLogError, IncompatibleFormatError, StorageError
from pystreamlog.storage.files import File, Files

LOG_ID = b"log-id-16-bytes."
GROUP = "größe"
SALT = layout.salt(GROUP)
TOPIC = b"topic-id-16-byte"
OTHER_TOPIC = b"another-topic-id"
LONGEST = "é" * 2048


class Killed(BaseException):
    """The process ended here."""


class DyingFile(File):
    """A file whose process is killed in its n-th write, after some of the bytes."""

    def __init__(self, fd, path, writes, size):
        super().__init__(fd, path)
        self.writes = writes
        self.last_size = size

    def pwrite(self, data, position):
        """Write all, or a part and die."""
        if self.writes == 0:
            super().pwrite(data[: self.last_size], position)
            raise Killed
        self.writes -= 1
        super().pwrite(data, position)

    def datasync(self):
        """Nothing here outlives the machine."""


class MeetingFile(File):
    """A file whose reader meets a writer: between two of its reads, something happens."""

    def __init__(self, fd, path):
        super().__init__(fd, path)
        self.script = []

    def pread(self, size, position):
        """Read, and be overtaken; what the script returns is what was read."""
        data = super().pread(size, position)
        return (self.script.pop(0)(data) if self.script else None) or data


class Group:
    """An offsets file in a directory, and processes that have it open."""

    def __init__(self, root):
        self.root = str(root)
        self.files = Files(self.root)
        self.files.write("offsets", OffsetStore.image(log_id=LOG_ID, group_id=GROUP))
        self.opened = []

    def open(self, *, write=True, name="offsets", log_id=LOG_ID, group_id=GROUP):
        """A process opens it."""
        self.opened.append(OffsetStore.open(self.files, name, log_id=log_id, group_id=group_id, write=write))
        return self.opened[-1]

    def dying(self, writes, size):
        """A process that is killed in a write to come."""
        store = self.open()
        store.file = DyingFile(store.file.fd, store.file.path, writes, size)
        return store

    @property
    def path(self):
        """The file's path."""
        return f"{self.root}/offsets"

    def bytes(self):
        """What is in the file."""
        with open(self.path, "rb") as file:
            return file.read()

    def replace(self, data):
        """Put other bytes into the file, in place."""
        with open(self.path, "r+b") as file:
            file.write(data)
            file.truncate(len(data))

    def overwrite(self, position, data):
        """Damage it."""
        with open(self.path, "r+b") as file:
            file.seek(position)
            file.write(data)

    def entry(self, topic_id=TOPIC, partition=0):
        """Where a partition's entry lies."""
        store = self.open(write=False)
        position, start, copy = store._locate(topic_id, partition)
        return position, start, copy

    def close_since(self, store):
        """Close `store` and what was opened after it."""
        first = self.opened.index(store)
        for one in self.opened[first:]:
            one.close()
        del self.opened[first:]

    def close(self):
        """Close what is open."""
        for store in self.opened:
            store.close()
        self.files.close()


@pytest.fixture
def group(tmp_path):
    """A group that never committed."""
    made = Group(tmp_path)
    yield made
    made.close()


def at(offset, metadata=""):
    """A commit."""
    return Committed(offset, 1, 1_700_000_000_000 + offset, metadata)


# --- what is put is what is read --------------------------------------------------------------------------------------


def test_new_file_has_no_commit(group):
    """Nothing was committed anywhere."""
    store = group.open()
    assert store.get(TOPIC, 0) is None
    assert store.all() == {}
    store.forget(TOPIC, 0)
    assert group.bytes() == OffsetStore.image(log_id=LOG_ID, group_id=GROUP)


def test_last_commit_is_read_by_all(group):
    """Each commit replaces the one before, for the writer, for who has the file open, and for who opens it."""
    store, reader = group.open(), group.open(write=False)
    for offset in (0, 7, 3, 2**63 - 1):
        committed = Committed(offset, 2**32 - 1, offset)
        store.put(TOPIC, 2**32 - 1, committed)
        for one in (store, reader, group.open(write=False)):
            assert one.get(TOPIC, 2**32 - 1) == committed
            assert one.all() == {(TOPIC, 2**32 - 1): committed}
            assert one.get(TOPIC, 0) is None
            assert one.get(OTHER_TOPIC, 2**32 - 1) is None


def test_many_entries(group):
    """Ten thousand partitions: each its own commit, in a file that commits do not let grow."""
    store, other = group.open(), group.open()
    expected = {}
    for number in range(10_000):
        key = (TOPIC, OTHER_TOPIC)[number % 2], number // 2
        expected[key] = at(number, "note" if number % 100 == 0 else "")
        store.put(*key, expected[key])
    size = len(group.bytes())
    assert other.all() == expected
    for number, key in enumerate(expected):
        if number % 7 == 0:
            expected[key] = at(number + 1)
            other.put(*key, expected[key])
    assert store.all() == group.open(write=False).all() == expected
    assert len(group.bytes()) == size
    assert size < 3 * 10_000 * layout.ENTRY_SIZE


@pytest.mark.parametrize("first", ["", "a", "größe ☃ \0", LONGEST])
@pytest.mark.parametrize("second", ["", "b", "a longer note", "x" * 4096])
def test_metadata_is_replaced(group, first, second):
    """Notes of any size, come, go, and come again; the file grows for the first one only."""
    store, reader = group.open(), group.open(write=False)
    store.put(TOPIC, 1, at(1))
    sizes = set()
    for offset, metadata in enumerate((first, second, first, "", second, second, "")):
        store.put(TOPIC, 0, at(offset, metadata))
        assert store.get(TOPIC, 0) == reader.get(TOPIC, 0) == at(offset, metadata)
        assert reader.all() == {(TOPIC, 0): at(offset, metadata), (TOPIC, 1): at(1)}
        sizes.add(len(group.bytes()))
    assert len(sizes) <= 2


@pytest.mark.parametrize("metadata", ["x" * 4097, LONGEST + "x", "\ud800"])
def test_metadata_that_does_not_fit_is_refused(group, metadata):
    """More than 4096 bytes of UTF-8, or no UTF-8 at all; what was committed stays."""
    store = group.open()
    store.put(TOPIC, 0, at(1, "kept"))
    with pytest.raises(ConfigError, match=r"4096|UTF-8"):
        store.put(TOPIC, 0, at(2, metadata))
    assert store.get(TOPIC, 0) == at(1, "kept")


def test_metadata_of_many_entries(group):
    """Each entry has blocks of its own, whoever gave them."""
    first, second = group.open(), group.open()
    for number in range(100):
        (first, second)[number % 2].put(TOPIC, number, at(number, f"{number} " * (number % 50)))
    for number in range(100):
        (first, second)[number // 2 % 2].put(TOPIC, number, at(number + 1, f"{number}!"))
    assert first.all() == second.all() == {(TOPIC, number): at(number + 1, f"{number}!") for number in range(100)}


def test_metadata_is_never_taken_for_an_entry(group):
    """A note that has the bytes of a valid entry is a note."""
    store = group.open()
    forged = next(
        raw
        for offset in range(1, 1 << 20)
        for raw in [layout.pack_copy(1, b"x" * 16, 0, 0, offset, 0, 0, 0, 0, 0, 0, 0)]
        if all(byte < 128 for byte in layout._checked(raw, SALT))
    )
    text = layout._checked(forged, SALT).decode() * 32
    assert len(text) == 4096
    for number in range(20):
        store.put(TOPIC, number, at(number, text))
    assert set(group.open(write=False).all()) == {(TOPIC, number) for number in range(20)}


def test_commit_is_one_read_and_one_write(group, monkeypatch):
    """A commit into a known entry, and a look at it, make the fewest system calls."""
    store = group.open()
    for number in range(100):
        store.put(TOPIC, number, at(1))
    calls = []
    for name in ("pread", "pwrite"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: [calls.append(name), real(*args)][1])
    store.put(TOPIC, 50, at(2))
    assert calls == ["pread", "pwrite"]
    del calls[:]
    assert store.get(TOPIC, 50) == at(2)
    assert calls == ["pread"]
    del calls[:]
    assert store.get(TOPIC, 1000) is None
    assert calls == ["pread"]


# --- several processes ------------------------------------------------------------------------------------------------


def test_forgotten_entry_is_reused(group):
    """A freed entry becomes another partition's, its blocks too; nobody mistakes one for the other."""
    first, second = group.open(), group.open()
    for number in range(16):
        first.put(TOPIC, number, at(number, "note"))
    assert second.get(TOPIC, 5) == at(5, "note")
    size = len(group.bytes())
    first.forget(TOPIC, 5)
    first.put(OTHER_TOPIC, 5, at(500, "other"))
    assert len(group.bytes()) == size
    assert second.get(TOPIC, 5) is None
    second.put(TOPIC, 5, at(6))
    assert first.get(OTHER_TOPIC, 5) == at(500, "other")
    assert first.get(TOPIC, 5) == at(6)
    assert len(first.all()) == 17


def test_entry_that_moved_is_found(group):
    """A partition that was forgotten and came back elsewhere is found there, and written there."""
    first, second = group.open(), group.open()
    first.put(TOPIC, 0, at(1))
    first.put(TOPIC, 1, at(1))
    assert second.get(TOPIC, 1) == at(1)
    first.forget(TOPIC, 0)
    first.forget(TOPIC, 1)
    first.put(TOPIC, 2, at(2))
    first.put(TOPIC, 3, at(3))
    first.put(TOPIC, 1, at(4))
    second.put(TOPIC, 1, at(5))
    second.forget(TOPIC, 0)
    assert first.all() == second.all() == {(TOPIC, 2): at(2), (TOPIC, 3): at(3), (TOPIC, 1): at(5)}


WRITER = """
import sys
from pystreamlog.coordination.offset_store import Committed, OffsetStore
from pystreamlog.storage.files import Files

store = OffsetStore.open(Files(sys.argv[1]), "offsets", log_id=sys.argv[2].encode(), group_id=sys.argv[3], write=True)
topic = sys.argv[4].encode()
say("ready")
end = time.monotonic() + 2
offset = 0
while time.monotonic() < end:
    offset += 1
    store.put(topic, 0, Committed(offset, 1, offset))
    store.put(topic, 1, Committed(offset, 1, offset, str(offset) * 400))
    store.put(topic, 2, Committed(offset, 1, offset))
    if offset % 3 == 0:
        store.forget(topic, 2)
        store.put(topic, 3 + offset % 50, Committed(offset, 1, offset, "note"))
    if offset % 7 == 0:
        store.forget(topic, 3 + offset // 2 % 50)
say(offset)
"""


def test_readers_without_a_lock_see_whole_commits_in_order(group, start):
    """While another process commits, frees and reuses entries: no error, nothing torn, nothing that falls."""
    group.open().put(TOPIC, 0, at(0))
    group.open().put(TOPIC, 1, Committed(0, 1, 0, "0"))
    child = start(WRITER, group.root, LOG_ID.decode(), GROUP, TOPIC.decode())
    assert child.hear() == "ready"
    store = group.open(write=False)
    last, reads, ending = [0] * 60, 0, time.monotonic() + 1.8
    while time.monotonic() < ending:
        assert store.get(TOPIC, 1000) is None
        for partition in (0, 1, 2, 3 + reads % 50):
            committed = store.get(TOPIC, partition)
            if committed is None:
                assert partition > 1
                continue
            reads += 1
            assert committed.offset == committed.timestamp_ms or committed == at(0)
            assert committed.offset >= last[partition]
            last[partition] = committed.offset
            if partition == 1:
                assert committed.metadata in (str(committed.offset) * 400, "0")
        if reads % 100 == 0:
            assert {(TOPIC, 0), (TOPIC, 1)} <= set(store.all())
    assert reads > 100
    end = int(child.hear())
    assert store.get(TOPIC, 1) == Committed(end, 1, end, str(end) * 400)


@pytest.fixture
def meeting(group):
    """A process that commits, and one that is overtaken while it reads."""
    writer, reader = group.open(), group.open(write=False)
    for offset in (5, 6, 7):
        writer.put(TOPIC, 0, at(offset, "same"))
    assert reader.get(TOPIC, 0) == at(7, "same")
    reader.file = MeetingFile(reader.file.fd, reader.file.path)
    return writer, reader


def test_torn_read_does_not_bring_an_older_commit_back(meeting):
    """The bytes of one read are from before and after two commits: neither valid copy of then is the answer."""
    writer, reader = meeting
    for offset in (1, 2):
        writer.put(TOPIC, 0, at(offset))

    def overtaken(data):
        newer = layout.newer(data, layout.COPY_SIZE, SALT)
        writer.put(TOPIC, 0, at(11))
        writer.put(TOPIC, 0, at(12))
        torn = bytearray(data)
        torn[newer + 32 : newer + 36] = b"torn"
        return bytes(torn)

    reader.file.script = [overtaken]
    assert reader.get(TOPIC, 0) == at(12)
    torn_both = [lambda data: b"\1" * len(data), lambda data: b"\2" * len(data)]
    reader.file.script = list(torn_both)
    assert reader.get(TOPIC, 0) == at(12)
    writer.put(TOPIC, 1, at(1))
    reader.file.script = list(torn_both)  # of the table
    assert reader.get(TOPIC, 1) == at(1)


def test_overwritten_metadata_does_not_bring_an_older_commit_back(meeting):
    """Two commits between the entry and its note: the note of the older copy may fit, and is another commit's."""
    writer, reader = meeting

    def overtaken_at(offset):
        writer.put(TOPIC, 0, at(offset, "same"))
        writer.put(TOPIC, 0, at(offset + 1, f"other {offset}"))

    # Read: the entry, its note, the entry again.
    reader.file.script = [lambda _: overtaken_at(8), lambda _: None, lambda _: overtaken_at(10)]
    assert reader.get(TOPIC, 0) == at(11, "other 10")


def test_entry_that_changes_hands_between_two_reads(meeting):
    """The partition was forgotten, and its entry given away, before the reader came to the note."""
    writer, reader = meeting

    def overtaken(_):
        writer.forget(TOPIC, 0)
        writer.put(OTHER_TOPIC, 0, at(9, "another"))

    reader.file.script = [overtaken]
    assert reader.get(TOPIC, 0) is None


def test_entry_that_moves_while_a_scan_goes_on_is_no_damage(meeting):
    """A scan that meets a partition at its old and at its new place looks again."""
    writer, reader = meeting
    writer.put(TOPIC, 1, at(1))

    def overtaken(data):
        for number in (0, 1):
            writer.forget(TOPIC, number)
        writer.put(TOPIC, 1, at(2))
        entry = data[: layout.ENTRY_SIZE]
        return entry * 2 + data[2 * layout.ENTRY_SIZE :]

    reader.file.script = [lambda _: None, overtaken]
    assert reader.get(OTHER_TOPIC, 7) is None
    assert reader.all() == {(TOPIC, 1): at(2)}


# --- killed within a write --------------------------------------------------------------------------------------------


def full(store):
    """Use up the first page of entries."""
    for number in range(10, 25):
        store.put(OTHER_TOPIC, number, at(number))


SCENARIOS = {
    "first commit": ([], ("put", at(1))),
    "next commit": ([("put", at(1))], ("put", at(2))),
    "third commit": ([("put", at(1)), ("put", at(2))], ("put", at(3))),
    "first commit with metadata": ([], ("put", at(1, "note"))),
    "first metadata": ([("put", at(1))], ("put", at(2, LONGEST))),
    "replaced metadata": ([("put", at(1, "one")), ("put", at(2, "two"))], ("put", at(3, "a longer note"))),
    "emptied metadata": ([("put", at(1, "one")), ("put", at(2, "two"))], ("put", at(3))),
    "forgotten": ([("put", at(1)), ("put", at(2))], ("forget",)),
    "forgotten with metadata": ([("put", at(1, "note"))], ("forget",)),
    "reused": ([("put", at(1, "note")), ("forget",)], ("put", at(2, "new"))),
}


def apply(store, action):
    """Put or forget partition 0."""
    getattr(store, action[0])(TOPIC, 0, *action[1:])


@pytest.mark.faults
@pytest.mark.parametrize("fill", [False, True], ids=["room", "no room"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_within_any_write(group, scenario, fill):
    """The commit before or the new one; the others as they were; and the next process goes on from there."""
    history, action = SCENARIOS[scenario]
    store = group.open()
    neighbours = {(OTHER_TOPIC, 0): at(100, "a neighbour")}
    store.put(OTHER_TOPIC, 0, neighbours[OTHER_TOPIC, 0])
    for step in history:
        apply(store, step)
    if fill:
        full(store)
        neighbours |= {(OTHER_TOPIC, number): at(number) for number in range(10, 25)}
    before = store.get(TOPIC, 0)
    after = action[1] if action[0] == "put" else None
    image = group.bytes()
    deaths = 0
    for writes in range(20):
        for size in (0, 1, 7, 8, 9, 24, 64, 119, 120, 127, 128, 500, 4095, 4096):
            group.replace(image)
            dying = group.dying(writes, size)
            try:
                apply(dying, action)
            except Killed:
                deaths += 1
            else:
                break
            finally:
                dying.close()
            for one in (group.open(), store):
                found = one.get(TOPIC, 0)
                assert found in (before, after)
                assert one.all() == neighbours | ({} if found is None else {(TOPIC, 0): found})
            next_one = group.open()
            next_one.put(TOPIC, 1, at(50, "one more"))
            next_one.put(TOPIC, 0, at(60, "next"))
            expected = neighbours | {(TOPIC, 1): at(50, "one more"), (TOPIC, 0): at(60, "next")}
            assert next_one.all() == store.all() == group.open(write=False).all() == expected
            group.close_since(dying)
    assert deaths >= 14


@pytest.mark.faults
@pytest.mark.parametrize("writes", range(4))
def test_change_cut_short_is_settled_by_the_next_one(group, writes):
    """A process that dies while an entry changes hands costs readers a scan each time, but only until the next one."""
    with pytest.raises(Killed):
        group.dying(writes, 3).put(TOPIC, 0, at(1))
    other = group.open()
    other.put(TOPIC, 1, at(2))
    reader = group.open(write=False)
    assert reader.get(TOPIC, 2) is None
    assert reader._scanned == reader._sequence
    assert reader._sequence % 2 == 0


@pytest.mark.faults
def test_full_disk_leaves_the_last_commit(group, monkeypatch):
    """A file that cannot grow refuses the new partition and keeps the others; later it goes on."""
    store = group.open()
    for number in range(16):
        store.put(TOPIC, number, at(number))
    grow = store.file.__class__.pwrite

    def refuse(self, data, position):
        if len(data) >= layout.PAGE_SIZE:
            raise StorageError("full")
        grow(self, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(File, "pwrite", refuse)
        with pytest.raises(StorageError):
            store.put(TOPIC, 16, at(16))
        with pytest.raises(StorageError):
            store.put(TOPIC, 3, at(30, "note"))
        store.put(TOPIC, 2, at(20))
    assert store.get(TOPIC, 3) == at(3)
    assert store.get(TOPIC, 16) is None
    store.put(TOPIC, 16, at(16, "there"))
    assert store.get(TOPIC, 16) == at(16, "there")
    assert len(store.all()) == 17


# --- damage -----------------------------------------------------------------------------------------------------------

HISTORIES = {
    (TOPIC, 0): [at(1)],
    (TOPIC, 1): [at(1), at(2), at(3)],
    (TOPIC, 2): [at(1, "one")],
    (TOPIC, 3): [at(1, "one"), at(2, "two two")],
    (TOPIC, 4): [at(1, "one"), at(2)],
    (OTHER_TOPIC, 0): [at(9), at(10, "first")],
}


@pytest.fixture
def written(group):
    """A group with all kinds of entries, a freed one among them."""
    store = group.open()
    for key, history in HISTORIES.items():
        for committed in history:
            store.put(*key, committed)
    store.put(OTHER_TOPIC, 99, at(1))
    store.put(OTHER_TOPIC, 99, at(2))
    store.forget(OTHER_TOPIC, 99)
    return group


def outcome(call):
    """What a call returns, or the `CorruptLogError` that it raises."""
    try:
        return call()
    except CorruptLogError as error:
        return error


def check_damaged(group):
    """Open a damaged file and look for every partition: how many lookups were refused."""
    store = outcome(lambda: group.open(write=False))
    if isinstance(store, CorruptLogError):
        assert store.path == group.path
        return len(HISTORIES)
    refused = 0
    for key, history in HISTORIES.items():
        found = outcome(lambda key=key: store.get(*key))
        if isinstance(found, CorruptLogError):
            assert found.path == group.path
            refused += 1
        else:
            assert found in history[-2:] or found in [msgspec.structs.replace(one, metadata="") for one in history], key
    forgotten = outcome(lambda: store.get(OTHER_TOPIC, 99))
    assert forgotten is None or isinstance(forgotten, CorruptLogError)
    found = outcome(store.all)
    if isinstance(found, CorruptLogError):
        assert found.path == group.path
    else:
        assert not refused
        assert set(found) == set(HISTORIES)
    group.close_since(store)
    return refused


@pytest.mark.slow
def test_every_flipped_bit_is_detected_or_harmless(written):
    """One bit: the header is refused; anywhere else the last commit is read, or the one before."""
    image = bytearray(written.bytes())
    used = 2 * layout.PAGE_SIZE
    for position in range(len(image)):
        # All bits where something is written, else one of eight.
        busy = position < 48 or 512 <= position < 560 or 4096 <= position < 4096 + 8 * layout.ENTRY_SIZE
        for bit in range(8) if busy or (position >= used and image[position]) else [position % 8]:
            written.overwrite(position, bytes([image[position] ^ 1 << bit]))
            refused = check_damaged(written)
            assert refused == (len(HISTORIES) if position < layout.OFFSETS_HEADER.size else 0), (position, bit)
        written.overwrite(position, image[position : position + 1])


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"a"])
@pytest.mark.parametrize("size", [128, 256, 512, 4096])
def test_overwritten_ranges_are_never_no_commit(written, size, fill):
    """A copy, an entry, a sector, a page of zeros or of something else: the last commits, or an error."""
    image = written.bytes()
    for position in range(0, len(image), size):
        written.overwrite(position, fill * size)
        refused = check_damaged(written)
        if size >= 256 and position in (0, layout.PAGE_SIZE):
            assert refused
        written.replace(image)


def test_file_cut_anywhere_is_never_no_commit(written):
    """Shortened at any place: what is intact is served, and what cannot be found is an error."""
    image = written.bytes()
    for size in sorted({*range(0, len(image), 64), *range(4096, 4096 + 600, 7), len(image) - 1}, reverse=True):
        written.replace(image[:size])
        refused = check_damaged(written)
        if size <= layout.PAGE_SIZE:
            assert refused == len(HISTORIES)
        if size >= layout.OFFSETS_HEADER.size:
            store = written.open(write=False)
            with pytest.raises(CorruptLogError):
                store.get(TOPIC, 1000)
            written.close_since(store)
    assert refused


def test_intact_entries_are_served_beside_a_damaged_one(written):
    """Who is not found may have been the damaged one; it gets no second entry. Who is found goes on."""
    position, _, _ = written.entry(TOPIC, 1)
    holder = written.open()
    assert holder.get(TOPIC, 1) == at(3)
    written.overwrite(position, b"\x5a" * layout.ENTRY_SIZE)
    for store in (holder, written.open()):
        store.put(TOPIC, 0, at(77))
        store.put(TOPIC, 2, at(78, "still"))
        assert store.get(TOPIC, 0) == at(77)
        assert store.get(TOPIC, 2) == at(78, "still")
        calls = [
            lambda store=store: store.get(TOPIC, 1),
            lambda store=store: store.put(TOPIC, 1, at(4)),
            lambda store=store: store.forget(TOPIC, 1),
            lambda store=store: store.get(TOPIC, 1000),
            lambda store=store: store.put(TOPIC, 1000, at(4)),
            store.all,
        ]
        for call in calls:
            with pytest.raises(CorruptLogError) as caught:
                call()
            assert (caught.value.path, caught.value.position) == (written.path, position)


def test_damaged_copy_is_mended_by_the_next_commit(written):
    """The other copy rules, and the damaged one is written over."""
    position, start, _ = written.entry(TOPIC, 1)
    written.overwrite(position + start + 30, b"damage")
    store = written.open()
    assert store.get(TOPIC, 1) == at(2)
    store.put(TOPIC, 1, at(4))
    assert written.entry(TOPIC, 1)[1] == start
    written.overwrite(position + layout.COPY_SIZE - start, bytes(layout.COPY_SIZE))
    assert written.open().get(TOPIC, 1) == store.get(TOPIC, 1) == at(4)


@pytest.mark.parametrize("blocks", ["ruling", "both"])
def test_offset_whose_metadata_is_lost_holds_without_it(written, blocks):
    """A power loss may keep a commit and not its text: the last offset rules, and the next commit has its text."""
    _, start, copy = written.entry(TOPIC, 3)
    if blocks == "both":
        written.overwrite(copy[layout.BLOCKS], bytes(layout.METADATA_PAIR_SIZE))
    else:
        written.overwrite(layout.block(copy[layout.BLOCKS], start), bytes(layout.METADATA_LIMIT))
    store = written.open()
    assert store.get(TOPIC, 3) == at(copy[layout.OFFSET])
    assert store.get(TOPIC, 1000) is None
    assert store.get(TOPIC, 2) == at(1, "one")
    store.put(TOPIC, 3, at(5, "anew"))
    assert store.get(TOPIC, 3) == at(5, "anew")


def test_damaged_table_slot_hides_nothing(group):
    """Both slots name the same extents: with either one, every entry is found, and entries can be added."""
    store = group.open()
    for number in range(40):
        store.put(TOPIC, number, at(number, "note" if number == 39 else ""))
    image = group.bytes()
    for slot in (0, 1):
        group.replace(image)
        group.overwrite(layout.table_position(slot) + 40, b"damage")
        store = group.open()
        assert len(store.all()) == 40
        store.put(TOPIC, 40, at(40))
        assert len(group.open().all()) == 41
    group.overwrite(layout.TABLE_POSITION, bytes(2 * layout.TABLE_SLOT.size))
    assert store.get(TOPIC, 3) == at(3)
    for call in (lambda: store.get(TOPIC, 1000), lambda: store.put(TOPIC, 1000, at(1)), store.all):
        with pytest.raises(CorruptLogError):
            call()


def test_second_entry_of_a_partition_is_damage(written):
    """An entry that was copied to another place makes it unknown which one is right."""
    position, _, _ = written.entry(TOPIC, 1)
    free = 4096 + 15 * layout.ENTRY_SIZE
    written.overwrite(free, written.bytes()[position : position + layout.ENTRY_SIZE])
    with pytest.raises(CorruptLogError):
        written.open().all()


@pytest.mark.parametrize(
    ("forged", "served"),
    [
        ({"blocks": 2**64 - 1, "size": 5}, True),
        ({"blocks": 0, "size": 5}, True),
        ({"blocks": 8193, "size": 5}, True),
        ({"blocks": 8192, "size": 2**32 - 1}, True),
        ({"flags": 2}, False),
        ({"offset": -5}, False),
    ],
)
def test_forged_entry_with_valid_checksums_costs_nothing(written, forged, served):
    """What no writer of ours wrote takes neither memory nor time; it is no commit, or one without its metadata."""
    fields = {"offset": 7, "blocks": 0, "size": 0, "flags": 0} | forged
    position, _, _ = written.entry(TOPIC, 1)
    for sequence, start in ((8, 0), (9, layout.COPY_SIZE)):
        raw = layout.pack_copy(
            sequence, TOPIC, 1, 1, fields["offset"], 0, -1, 0, fields["blocks"], fields["size"], fields["flags"], 0
        )
        written.overwrite(position + start, layout._checked(raw, SALT))
    store = written.open()
    if served:
        assert store.get(TOPIC, 1) == Committed(7, 1, 0, "")
    else:
        with pytest.raises(CorruptLogError):
            store.get(TOPIC, 1)
    assert store.get(TOPIC, 0) == at(1)


def test_what_is_another_groups_does_not_count(written):
    """Entries, and the table, of another group's file that came to lie in this one's are damage."""
    files = written.files
    files.write("other", OffsetStore.image(log_id=LOG_ID, group_id="other"))
    other = OffsetStore.open(files, "other", log_id=LOG_ID, group_id="other", write=True)
    for key in sorted(HISTORIES):
        other.put(*key, at(999))
    other.close()
    foreign = files.read("other", limit=1 << 20)
    image = written.bytes()
    for position in range(layout.PAGE_SIZE, layout.PAGE_SIZE + 8 * layout.ENTRY_SIZE, layout.ENTRY_SIZE):
        written.replace(image)
        written.overwrite(position, foreign[position : position + layout.ENTRY_SIZE])
        store = written.open()
        with pytest.raises(CorruptLogError):
            store.all()
    written.replace(image)
    written.overwrite(layout.TABLE_POSITION, foreign[layout.TABLE_POSITION : 2 * layout.TABLE_SLOT.size + 512])
    with pytest.raises(CorruptLogError):
        written.open().all()


def test_forged_table_is_an_error(written):
    """Extents without end, in a file that has one."""
    for sequence in (100, 101):
        slot = layout.packed_table(sequence, (0x7FFFFFFF,) * layout.EXTENT_LIMIT, SALT)
        written.overwrite(layout.table_position(sequence), slot)
    store = written.open()
    assert store.get(TOPIC, 0) == at(1)
    with pytest.raises(CorruptLogError):
        store.get(TOPIC, 1000)
    for sequence in (100, 101):
        raw = layout.TABLE_SLOT.pack(sequence, layout.EXTENT_LIMIT + 1, 0, b"", 0)[:-8]
        written.overwrite(layout.table_position(sequence), layout._checked(raw, SALT))
    with pytest.raises(CorruptLogError):
        written.open().get(TOPIC, 0)


def test_large_file_of_nothing_is_given_up(written):
    """A file that claims terabytes and has none of them costs a bounded scan."""
    for sequence in (100, 101):
        slot = layout.packed_table(sequence, (1 << 30,), SALT)
        written.overwrite(layout.table_position(sequence), slot)
    os.truncate(written.path, 1 << 41)
    store = written.open()
    assert store.get(TOPIC, 0) == at(1)
    with pytest.raises(CorruptLogError):
        store.get(TOPIC, 1000)


# --- whose file it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"log_id": b"x" * 16}, {"group_id": "gross"}])
def test_swapped_files_are_refused(group, other):
    """The file of another log or group is not this one's."""
    with pytest.raises(CorruptLogError, match="swapped"):
        group.open(**other)


def test_newer_version_is_refused(group):
    """A later format says so, instead of being damaged."""
    header = bytearray(group.bytes()[: layout.OFFSETS_HEADER.size])
    struct.pack_into("<I", header, 8, layout.OFFSETS_VERSION + 1)
    group.overwrite(0, header[:-8] + struct.pack("<Q", xxh3_64_intdigest(header[:-8])))
    with pytest.raises(IncompatibleFormatError, match="upgrade"):
        group.open()


@pytest.mark.parametrize("size", [0, 1, 47, 48, 4096, 8192])
def test_zeros_are_no_offsets_file(group, size):
    """Neither an empty file nor one of zeros is a group that never committed."""
    group.replace(bytes(size))
    with pytest.raises(CorruptLogError):
        group.open()


def test_missing_file_is_told_from_a_damaged_one(group):
    """Whoever opens decides what a group without a file is."""
    with pytest.raises(FileNotFoundError):
        group.open(name="elsewhere")


@pytest.mark.parametrize("make", [lambda path: os.symlink("real", path), os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused(group, make):
    """A link is not followed, a FIFO not waited for."""
    os.rename(group.path, f"{group.root}/real")
    make(group.path)
    for write in (True, False):
        with pytest.raises(CorruptLogError):
            group.open(write=write)


# --- against a model --------------------------------------------------------------------------------------------------

KEYS = st.tuples(st.sampled_from([TOPIC, OTHER_TOPIC]), st.integers(0, 11))
NOTES = st.sampled_from(["", "", "a", "größe", LONGEST])
HANDLES = st.integers(0, 1)


class TwoProcesses(RuleBasedStateMachine):
    """Two processes with the file open, deaths within writes, and what each partition must have."""

    @initialize()
    def make(self):
        """A new group."""
        self.folder = tempfile.TemporaryDirectory()
        self.group = Group(self.folder.name)
        self.stores = [self.group.open(), self.group.open()]
        self.model = {}

    @rule(handle=HANDLES, key=KEYS, offset=st.integers(0, 1000), metadata=NOTES)
    def put(self, handle, key, offset, metadata):
        """Commit."""
        self.stores[handle].put(*key, at(offset, metadata))
        self.model[key] = at(offset, metadata)

    @rule(handle=HANDLES, key=KEYS)
    def forget(self, handle, key):
        """Forget."""
        self.stores[handle].forget(*key)
        self.model.pop(key, None)

    @rule(handle=HANDLES, key=KEYS)
    def get(self, handle, key):
        """Look."""
        assert self.stores[handle].get(*key) == self.model.get(key)

    @rule(handle=HANDLES)
    def get_all(self, handle):
        """Look for all."""
        assert self.stores[handle].all() == self.model

    @rule(handle=HANDLES)
    def reopen(self, handle):
        """Another process comes."""
        self.stores[handle].close()
        self.stores[handle] = self.group.open()

    @rule(
        key=KEYS,
        committed=st.none() | st.builds(at, st.integers(0, 1000), NOTES),
        writes=st.integers(0, 6),
        size=st.integers(0, 600),
    )
    def die(self, key, committed, writes, size):
        """A third process is killed within a write."""
        dying = self.group.dying(writes, size)
        before = self.model.get(key)
        try:
            dying.forget(*key) if committed is None else dying.put(*key, committed)
            allowed = [committed]
        except Killed:
            allowed = [before, committed]
        dying.close()
        found = self.stores[0].get(*key)
        assert found in allowed
        self.model.pop(key, None)
        if found is not None:
            self.model[key] = found

    @invariant()
    def a_reader_agrees(self):
        """Whoever opens the file now sees the model, and each partition once."""
        if hasattr(self, "group"):
            store = self.group.open(write=False)
            assert store.all() == self.model
            self.group.close_since(store)

    def teardown(self):
        """Close and remove."""
        if hasattr(self, "group"):
            self.group.close()
            self.folder.cleanup()


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(max_examples=60, stateful_step_count=40)
