"""The file of a group's members: one whole state or the next, whoever is killed, and nothing else ever decodes."""

import os
import random
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystreamlog.coordination import group_state as module
from pystreamlog.coordination.group_state import GroupState, GroupTopic, Member, StateFile, keys_of, share_of
from pystreamlog.errors import NotSupportedError
from pystreamlog.storage.files import File

AREA = module._AREA
TOPIC, OTHER = b"topic-id-16-byte", b"another-topic-id"


@pytest.fixture
def path(tmp_path):
    """A new file."""
    name = tmp_path / "members"
    name.write_bytes(StateFile.image())
    return name


@pytest.fixture
def opened(path):
    """Opens the file, as a process does that knows nothing yet; or as one whose reads are those of a given class."""
    files = []

    def open_file(kind=File):
        files.append(kind(os.open(path, os.O_RDWR | os.O_CLOEXEC), str(path)))
        return StateFile(files[-1])

    yield open_file
    for file in files:
        file.close()


def member(number=0, **options):
    """A member."""
    values = {
        "id": f"member-{number}",
        "slot": number,
        "instance_id": None,
        "pid": 100 + number,
        "namespace": 1,
        "host": "host",
        "topics": ["events"],
        "pattern": None,
        "assignor": "uniform",
        "max_poll_interval_ms": 1000,
        "session_timeout_ms": 1000,
        "epoch": 1,
    }
    return Member(**(values | options))


def state(generation):
    """Some state that is not like another."""
    members = [member(number, owned={TOPIC: [number, generation]}) for number in range(generation % 4)]
    return GroupState(generation, b"boot", {TOPIC: GroupTopic("events", generation)}, members)


# --- what is written is read ------------------------------------------------------------------------------------------


def test_new_file_holds_a_group_without_members(opened):
    """At sequence 0, with one valid area."""
    assert opened().read() == (0, GroupState())


SHARES = st.dictionaries(
    st.binary(min_size=16, max_size=16),
    st.lists(st.integers(0, 99_999), min_size=1, unique=True).map(sorted),
    max_size=3,
)
MEMBERS = st.builds(
    Member,
    id=st.text(max_size=32),
    slot=st.integers(0, 1 << 20),
    instance_id=st.none() | st.text(),
    pid=st.integers(0, 1 << 22),
    namespace=st.integers(0, 1 << 63),
    host=st.text(max_size=64),
    topics=st.lists(st.text(max_size=20), max_size=3),
    pattern=st.none() | st.tuples(st.text(max_size=20), st.integers(0, 512)),
    assignor=st.text(max_size=20),
    max_poll_interval_ms=st.integers(1, 2**31 - 1),
    session_timeout_ms=st.integers(1, 2**31 - 1),
    epoch=st.integers(0, 1 << 63),
    owned=SHARES,
    target=SHARES,
    left_ns=st.integers(0, 1 << 63),
)
STATES = st.builds(
    GroupState,
    generation=st.integers(0, 1 << 63),
    boot=st.binary(max_size=16),
    topics=st.dictionaries(
        st.binary(min_size=16, max_size=16), st.builds(GroupTopic, st.text(max_size=20), st.integers(1, 9))
    ),
    members=st.lists(MEMBERS, max_size=3),
)


@given(st.lists(STATES.filter(lambda found: all(_is_text(each) for each in found.members)), min_size=1, max_size=4))
def test_any_state_comes_back_as_it_was(tmp_path_factory, states):
    """To who wrote it, to who knew the one before, and to who knows nothing."""
    name = tmp_path_factory.mktemp("group") / "members"
    name.write_bytes(StateFile.image())
    files = [File(os.open(name, os.O_RDWR), str(name)) for _ in range(3)]
    try:
        writer, reader, fresh = map(StateFile, files)
        for sequence, written in enumerate(states, 1):
            before = reader.heads()
            assert reader.heads() == before
            writer.write(sequence, written)
            assert reader.heads() != before
            assert writer.read() == reader.read() == (sequence, written)
        assert fresh.read() == (len(states), states[-1])
    finally:
        for file in files:
            file.close()


def _is_text(each):
    """Whether UTF-8 can encode it: lone surrogates are no text."""
    try:
        repr(each).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_each_read_is_an_object_of_its_own(opened):
    """Who changes what it read changes nobody else's."""
    file = opened()
    file.write(1, state(3))
    file.read()[1].members.clear()
    assert file.read() == (1, state(3))


def test_a_state_larger_than_the_first_read(opened):
    """Is read by a second one, in either area."""
    large = GroupState(1, members=[member(target={TOPIC: list(range(20_000))})])
    writer = opened()
    for sequence in (1, 2):
        writer.write(sequence, large)
        assert opened().read() == (sequence, large)


def test_too_large_a_state_is_refused(opened):
    """It says what to do; the one before stays."""
    file = opened()
    file.write(1, state(1))
    with pytest.raises(NotSupportedError, match="several groups"):
        file.write(2, GroupState(2, members=[member(target={TOPIC: list(range(1 << 21))})]))
    assert file.read() == opened().read() == (1, state(1))


def test_largest_state_does_not_touch_the_other_area(opened):
    """An area ends where the next begins."""
    file = opened()
    file.write(1, state(1))
    fill = AREA - module._START - len(module._encode(GroupState(2, boot=bytes(1 << 16)))) - 3
    largest = GroupState(2, boot=bytes((1 << 16) + fill))
    assert 0 <= AREA - module._START - len(module._encode(largest)) <= 3
    file.write(2, largest)
    assert opened().read() == (2, largest)
    os.pwrite(file.file.fd, b"\xa5", 100)
    assert opened().read() == (1, state(1))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [1, 2])
def test_every_damaged_byte_of_the_newer_area_leaves_the_older(path, opened, sequence):
    """And of the older one, the newer."""
    writer = opened()
    for number in range(sequence - 1, sequence + 1):
        writer.write(number, state(number))
    intact = path.read_bytes()
    for number, other in ((sequence, sequence - 1), (sequence - 1, sequence)):
        start = (number & 1) * AREA
        length = module._START + len(module._encode(state(number)))
        for at in range(start, start + length):
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([intact[at] ^ 1 << at % 8]))
            assert opened().read() == (other, state(other)), at - start
            with path.open("r+b") as file:
                file.seek(at)
                file.write(intact[at : at + 1])
    assert opened().read() == (sequence, state(sequence))


def test_both_areas_damaged_are_no_state(path, opened):
    """Not an older, not an empty one."""
    writer = opened()
    for number in (1, 2):
        writer.write(number, state(number))
    for start in (0, AREA):
        with path.open("r+b") as file:
            file.seek(start + module._START)
            file.write(b"\xa5")
    assert opened().read() is None


@pytest.mark.parametrize("size", [0, 1, 23, 24, 25, 4096, AREA, AREA + 24, 2 * AREA])
def test_zeros_never_decode(path, opened, size):
    """Of any number."""
    path.write_bytes(bytes(size))
    assert opened().read() is None


def test_a_file_cut_anywhere_is_the_older_state_or_none(path, opened):
    """And never a part of one."""
    opened().write(1, state(3))
    whole = path.read_bytes()
    first = len(StateFile.image())
    for size in (*range(first), *range(AREA, len(whole))):
        path.write_bytes(whole[:size])
        assert opened().read() == (None if size < first else (0, GroupState())), size


@pytest.mark.parametrize(
    "payload", [b"", b"\xc0", b"\x91\xc0", b"\x91" * 5000 + b"\x90", b"\x94\x00\xc4\x00\x80", b"\xff" * 100]
)
def test_a_valid_checksum_over_something_else_is_no_state(path, opened, payload):
    """A strange program, or a stranger, wrote it."""
    path.write_bytes(module._packed(0, payload))
    assert opened().read() is None


def test_random_bytes_never_decode(path, opened):
    """Whatever they are."""
    chance = random.Random(7)
    for _ in range(50):
        path.write_bytes(b"PSG1" + chance.randbytes(chance.randrange(2000)))
        assert opened().read() is None


@pytest.mark.parametrize("sequence", [3, 4])
@pytest.mark.parametrize("gap", [1, 2, 1_700_000_000_001])
def test_who_knows_a_state_sees_the_repair_of_a_damaged_file(path, opened, sequence, gap):
    """Whichever area the repair lies in, and whatever the reader knew by heart."""
    writer, knowing = opened(), opened()
    for number in range(1, sequence + 1):
        writer.write(number, state(number))
    known = knowing.heads()
    for start in (0, AREA):
        os.pwrite(writer.file.fd, bytes(64), start)
    repairing = opened()
    assert repairing.read() is None
    repairing.write(sequence + gap, state(7))
    assert knowing.heads() != known
    assert knowing.read() == (sequence + gap, state(7))


def test_who_knows_a_state_sees_the_one_that_replaces_it_after_damage(path, opened):
    """The newer area was damaged, somebody went on from the older one: that is another state of the same sequence."""
    writer, knowing = opened(), opened()
    for number in (1, 2):
        writer.write(number, state(number))
    known = knowing.heads()
    os.pwrite(writer.file.fd, b"\xa5" * 64, 0)
    other = opened()
    sequence, _ = other.read()
    assert sequence == 1
    other.write(sequence + 1, state(7))
    assert knowing.heads() != known
    assert knowing.read()[1] == state(7)


# --- a writer beside it -----------------------------------------------------------------------------------------------

WRITER = """
from pystreamlog.coordination.group_state import GroupState, GroupTopic, StateFile
from pystreamlog.storage.files import File

file = StateFile(File(os.open(sys.argv[1], os.O_RDWR), sys.argv[1]))
sequence, _ = file.read()
say("ready")
while True:
    sequence += 1
    size = sequence * 7919 % int(sys.argv[2])
    file.write(sequence, GroupState(sequence, bytes([sequence % 256]) * size))
"""


def is_whole(found, largest):
    """Whether the state is one that the writer wrote."""
    sequence, read = found
    return sequence == read.generation and read.boot == bytes([sequence % 256]) * (sequence * 7919 % largest)


@pytest.mark.parametrize("largest", [200, 60_000])
def test_a_reader_beside_a_writer_sees_whole_states_in_order(path, opened, start, largest):
    """Thousands of them, small and large ones."""
    child = start(WRITER, path, largest)
    assert child.hear() == "ready"
    knowing, last, seen = opened(), 0, 0
    while seen < 3000:
        found = knowing.read()
        assert found is not None
        if found[0]:
            assert is_whole(found, largest)
            assert found[0] >= last
            seen += found[0] > last
        last = found[0]
    fresh = opened().read()
    assert fresh[0] >= last
    assert is_whole(fresh, largest)


@pytest.mark.parametrize("largest", [200, 3_000_000])
def test_a_killed_writer_leaves_a_whole_state(path, opened, start, largest):
    """Killed in a tight loop, again and again; and the next writer goes on."""
    last = 0
    for _ in range(6):
        child = start(WRITER, path, largest)
        assert child.hear() == "ready"
        knowing = opened()
        while (knowing.read() or (0,))[0] < last + 5:
            pass
        child.signal(signal.SIGKILL)
        child.process.wait()
        found = opened().read()
        assert is_whole(found, largest)
        assert found[0] > last
        assert knowing.read() == found
        last = found[0]


class MeetingFile(File):
    """A file whose reader meets a writer: before its n-th read something happens."""

    __slots__ = ("script",)

    def __init__(self, fd, path):
        super().__init__(fd, path)
        self.script = []

    def pread(self, size, position):
        """Read, and be overtaken."""
        if self.script:
            self.script.pop(0)()
        return super().pread(size, position)


def test_a_reader_that_is_overtaken_twice_does_not_go_back(opened):
    """It read one area when it was old, and the other one while it was being written."""
    writer, reader = opened(), opened(MeetingFile)
    for number in (1, 2):
        writer.write(number, state(number))
    assert reader.read() == (2, state(2))
    writer.write(3, state(3))

    def tear():
        # Sequence 4 was written whole into the area that was read; 5 is half written into the other one.
        writer.write(4, state(4))
        os.pwrite(writer.file.fd, module._packed(5, module._encode(state(5)))[:40], AREA)

    reader.file.script = [lambda: None, lambda: None, tear]
    found = reader.read()
    assert found is None or found[0] >= 2


# --- shares -----------------------------------------------------------------------------------------------------------


def test_shares_and_keys():
    """One is the other, ordered."""
    keys = {(OTHER, 2), (TOPIC, 3), (OTHER, 0), (TOPIC, 1)}
    share = share_of(keys)
    assert share == {OTHER: [0, 2], TOPIC: [1, 3]}
    assert list(share) == sorted(share)
    assert set(keys_of(share)) == keys
    assert share_of([]) == {}


def test_who_is_in_the_group():
    """A member is found by its id; the group is settled when everybody owns what it shall."""
    one, other = member(1, owned={TOPIC: [0]}, target={TOPIC: [0]}), member(2, target={TOPIC: [1]})
    found = GroupState(1, members=[one, other])
    assert found.member("member-2") is other
    assert found.member("nobody") is None
    assert not found.is_settled()
    other.owned = {TOPIC: [1]}
    assert found.is_settled()
