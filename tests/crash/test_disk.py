"""Power losses and killed processes on a simulated disk; `disk_run` has the long form."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from . import snapshots
from .disk import ROOT, STYLES, Disk, Recorder
from .disk_run import run
from .expectation import Expectation
from .machine import Machine, simulated
from .operations import OPERATIONS, Life
from .scenarios import SCENARIOS, play

# --- the disk ---------------------------------------------------------------------------------------------------------


def write_file(recorder, name, data):
    """A file that was made and written, and nothing synced."""
    number = recorder.next_number()
    recorder.change("create", ROOT, number, (name, number))
    recorder.note("write", number, 0, data)
    return number


def outcomes(recorder, tries=1000):
    """What is found in the files after many power losses; None for a file that is not there."""
    disk = Disk()
    for step in recorder.trace:
        disk.apply(step)
    found = set()
    for seed in range(tries):
        dice = random.Random(seed)
        image = disk.after_power_loss(dice, dice.choice(STYLES))
        found.add(tuple((name, image.files[number]) for name, number in sorted(image.folders[ROOT].items())))
    return found


def test_nothing_synced_may_be_anything():
    """A file that was not synced may be gone, empty, short, zeros, whole or garbage."""
    recorder = Recorder(Disk())
    write_file(recorder, "f", b"x" * 1024)
    found = outcomes(recorder, 3000)
    assert {(), (("f", b""),), (("f", bytes(1024)),), (("f", b"x" * 1024),)} <= found
    assert (("f", bytes(512) + b"x" * 512),) in found
    assert any(one and one[0][1].strip(b"\0x") for one in found), "no garbage"


def test_data_and_names_are_synced_one_by_one():
    """Synced data without its name is gone or whole; a synced name without its data may be empty."""
    recorder = Recorder(Disk())
    number = write_file(recorder, "f", b"x" * 1024)
    recorder.note("datasync", number)
    assert outcomes(recorder) == {(), (("f", b"x" * 1024),)}
    recorder.note("sync", ROOT)
    assert outcomes(recorder) == {(("f", b"x" * 1024),)}


def test_sectors_with_data_are_written_whole():
    """What is overwritten in place is old or new in each sector, or as it was in between."""
    recorder = Recorder(Disk())
    number = write_file(recorder, "f", b"a" * 1024)
    recorder.note("datasync", number)
    recorder.note("sync", ROOT)
    recorder.note("write", number, 500, b"b" * 24)
    recorder.note("write", number, 500, b"c" * 24)
    sectors = [
        (b"a" * 500 + one * 12, other * 12 + b"a" * 500) for one in (b"a", b"b", b"c") for other in (b"a", b"b", b"c")
    ]
    assert outcomes(recorder, 3000) == {(("f", one + other),) for one, other in sectors}


def test_a_rename_is_old_or_new():
    """Never both names, never none."""
    recorder = Recorder(Disk())
    number = write_file(recorder, "old", b"x")
    recorder.note("datasync", number)
    recorder.note("sync", ROOT)
    recorder.change("rename", ROOT, number, ("old", 0), ("new", number))
    assert outcomes(recorder) == {(("old", b"x"),), (("new", b"x"),)}


def test_a_failed_sync_is_not_made_good_by_another():
    """Its pages count as clean; only once they are written again, they are synced again."""
    recorder = Recorder(Disk())
    number = write_file(recorder, "f", b"a" * 8192)
    recorder.note("datasync", number)
    recorder.note("sync", ROOT)
    recorder.note("write", number, 0, b"b" * 8192)
    recorder.note("failed", number)
    recorder.note("datasync", number)
    assert (("f", b"a" * 8192),) in outcomes(recorder)
    recorder.note("write", number, 4096, b"c")
    recorder.note("datasync", number)
    found = outcomes(recorder)
    assert {one[0][1][4096:] for one in found} == {b"c" + b"b" * 4095}
    assert {b"a" * 4096, b"b" * 4096} <= {one[0][1][:4096] for one in found}


def replayed(recorder):
    """A disk after all that was written down."""
    disk = Disk()
    for step in recorder.trace:
        disk.apply(step)
    return disk


def made_directory(recorder, name):
    """A directory whose name is on disk."""
    folder = recorder.next_number()
    recorder.names[folder] = {}
    recorder.change("mkdir", ROOT, folder, (name, folder))
    recorder.note("sync", ROOT)
    return folder


def test_a_hard_link_is_one_file_with_two_names():
    """What is synced by one name is read by the other; each name is there for good once its directory is synced."""
    recorder = Recorder(Disk())
    folder = made_directory(recorder, "d")
    number = write_file(recorder, "f", b"x" * 1024)
    recorder.note("sync", ROOT)
    recorder.change("link", folder, number, ("g", number))
    recorder.note("write", number, 0, b"y" * 1024)
    recorder.note("datasync", number)
    recorder.change("unlink", ROOT, number, ("f", 0))
    disk, dice = replayed(recorder), random.Random(1)
    images = [disk.after_power_loss(dice, "some") for _ in range(100)]
    there = {("f" in image.folders[ROOT], "g" in image.folders[folder]) for image in images}
    assert there == {(False, False), (False, True), (True, False), (True, True)}
    assert {tuple(image.files.values()) for image in images} == {(), (b"y" * 1024,)}


def test_a_directory_is_renamed_with_what_it_holds():
    """It has its old or its new name until the directory above is synced, and what of its own was synced."""
    recorder = Recorder(Disk())
    folder = made_directory(recorder, "~d")
    number = recorder.next_number()
    recorder.change("create", folder, number, ("f", number))
    recorder.note("sync", folder)
    recorder.change("rename", ROOT, folder, ("~d", 0), ("d", folder))
    disk, dice = replayed(recorder), random.Random(1)
    images = [disk.after_power_loss(dice, style) for _ in range(20) for style in STYLES]
    assert {tuple(image.folders[ROOT]) for image in images} == {("~d",), ("d",)}
    assert all(image.folders[folder] == {"f": number} for image in images)
    disk.apply(("sync", ROOT))
    assert set(disk.after_power_loss(dice, "none").folders[ROOT]) == {"d"}


def test_links_and_copies_of_a_snapshot_are_recorded():
    """A machine whose trace is replayed has the files that were really made, and links are links again."""
    with simulated() as home:
        machine = Machine(home, snapshots.empty_disk(), b"boot", snapshots.LOG)
        try:
            topic = machine.open().create_topic("a", segment_bytes=4096)
            for number in range(4):
                topic.append(b"%d" % number * 1500, timestamp_ms=1)
            machine.open().snapshot(f"{machine.home}/copy")
            (disk,) = machine.disks([machine.now])
            image = disk.cached()
            found = {Path(machine.home, *path): number for path, number in walked(image)}
            assert found.keys() == {path for path in Path(machine.home).rglob("*") if path.is_file()}
            differ = {path.name for path, number in found.items() if path.read_bytes() != image.files[number]}
            assert differ <= {"control", "topics.lock"}  # who holds a lock writes his name there, for this boot only
        finally:
            machine.end()
        again = Machine(home, Disk(image), b"boot", snapshots.LOG)
        try:
            segment = "topics/a/0/00000000000000000000.log"
            assert Path(again.path, segment).samefile(Path(again.home, "copy", segment))
        finally:
            again.end()


def walked(image, number=ROOT, path=()):
    """The paths of all files of an image, with their numbers."""
    for name, inner in image.folders[number].items():
        if inner in image.folders:
            yield from walked(image, inner, (*path, name))
        else:
            yield (*path, name), inner


# --- the log on it ----------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    """What chance meets too seldom."""
    play(name)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
def test_power_losses_while_snapshots_are_taken(seed):
    """At random points of it and after: whole or nothing, for good, and the log has what it promised."""
    report = snapshots.run(120, seed)
    assert report.finding is None, "\n".join(report.lines())
    assert min(report.counts[kind] for kind in ("within", "checked", "absent", "busy", "swept")) > 0
    assert report.counts["copied"] > 200


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_random_crashes(seed):
    """Random operations, crashes, recoveries, crashes in the recoveries: every promise is kept."""
    report = run(500, seed)
    assert report.finding is None, "\n".join(report.lines())
    assert report.counts["promised"] > 3000  # or there was nothing to lose


class Crashes(RuleBasedStateMachine):
    """Operations and crashes in an order that is shrunk when something is found."""

    home = ""

    @initialize(seed=st.integers(0, 1 << 16))
    def start(self, seed):
        """An empty disk."""
        self.life = None
        self.boot = 1
        self.begin(Disk(), Expectation(), seed, is_fresh=True)

    def begin(self, disk, expected, seed, *, is_fresh):
        """A life begins with a look at what there is."""
        self.life = Life(self.home, disk, self.boot, expected, random.Random(seed), is_fresh=is_fresh)
        self.life.look()

    @rule(operation=st.sampled_from([operation for operation, _ in OPERATIONS]))
    def operate(self, operation):
        """A process does something."""
        operation(self.life)

    @rule(style=st.sampled_from(["killed", *STYLES]), back=st.integers(0, 60), seed=st.integers(0, 1 << 16))
    def crash(self, style, back, seed):
        """A crash some steps ago."""
        old = self.life
        step = max(0, old.machine.now - back)
        (disk,) = old.machine.disks([step])
        if style != "killed":
            disk = Disk(disk.after_power_loss(random.Random(seed), style))
            self.boot += 1
        self.life = None
        old.machine.end()
        self.begin(disk, old.expected.at(step, killed=style == "killed"), seed, is_fresh=style != "killed")

    def teardown(self):
        """What was read stays, and what is appended follows it."""
        if self.life is not None:
            try:
                self.life.look_again()
            finally:
                self.life.machine.end()


@pytest.mark.faults
@pytest.mark.slow
def test_operations_and_crashes_in_any_order():
    """As above, found by Hypothesis: it tells the shortest sequence that goes wrong."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    with simulated() as Crashes.home:
        run_state_machine_as_test(
            Crashes,
            settings=settings(
                max_examples=40, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=checks
            ),
        )
