"""Verify names damages and changes nothing, also while others write; repair mends, and keeps what it cuts off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog import __main__ as command_line
from pystreamlog.errors import ConfigError, CorruptLogError, NotSupportedError, ReadOnlyError

from .conftest import ROOT

TOPIC = "events"


@pytest.fixture
def filled(path):
    """A log with one partition of several segments, a group that committed, and no open handle."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, segment_bytes=4096)
        for number in range(40):
            topic.append(b"%03d" % number + b"." * 300)
        with log.consumer(
            TOPIC, group_id="readers", auto_offset_reset="earliest", enable_auto_commit=False
        ) as consumer:
            while not (found := consumer.poll(0.1, max_records=5)):
                pass
            consumer.commit(found)
    return path


def folder(path):
    """The partition's."""
    return os.path.join(path, "topics", TOPIC, "0")


def segments(path):
    """The partition's segment files, oldest first."""
    return sorted(os.path.join(folder(path), name) for name in os.listdir(folder(path)) if name.endswith(".log"))


def flip(name, position):
    """Flip a bit of a file."""
    with open(name, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 4]))


def files_of(path):
    """Bytes and time of change of every file."""
    found = {}
    for where, _, names in os.walk(path):
        for name in names:
            full = os.path.join(where, name)
            with open(full, "rb") as file:
                found[full] = os.stat(full).st_mtime_ns, file.read()
    return found


def verified(path):
    """What verify says of a log that is read-only; it must change nothing."""
    before = files_of(path)
    with pystreamlog.open(path, create=False, read_only=True) as log:
        report = log.verify()
    assert files_of(path) == before
    return report


def values(path, **options):
    """The number that each record begins with."""
    with pystreamlog.open(path, **options) as log:
        return [int(record.value[:3]) for record in log.topic(TOPIC).read()]


# --- verify


def test_whole_log_has_no_findings(filled):
    """What is as it was written is counted, and nothing is said of it."""
    report = verified(filled)
    assert report.ok
    assert (report.damages, report.notes) == ((), ())
    assert (report.topics, report.partitions, report.records, report.batches) == (1, 1, 40, 40)
    assert report.segments == len(segments(filled)) > 3
    assert str(report).startswith(f"{filled}: whole; 40 records")


def test_progress_goes_up_to_the_bytes_of_all_segments(filled):
    """A call before, and one for each segment; repair looks twice."""
    told = []
    with pystreamlog.open(filled, create=False) as log:
        log.verify(progress=lambda done, total: told.append((done, total)))
        total = sum(min(Path(name).stat().st_size, Path(name).stat().st_blocks * 512) for name in segments(filled))
        assert told[0] == (0, total)
        assert told[-1] == (total, total)
        assert told == sorted(told)
        assert len({done for done, _ in told}) == len(segments(filled)) + 1
        told.clear()
        assert log.repair(progress=lambda done, total: told.append((done, total))).ok
        assert told == sorted(told)
        assert (told[0], told[-1]) == ((0, 2 * total), (2 * total, 2 * total))
        for call in (log.verify, log.repair):
            with pytest.raises(ConfigError, match="two numbers"):
                call(progress=7)


def test_new_log_is_whole(log):
    """Nothing was written yet."""
    log.create_topic(TOPIC, partitions=3)
    report = log.verify()
    assert report.ok
    assert (report.topics, report.partitions) == (1, 0)


def test_every_damage_is_named(filled):
    """One bad batch hides neither the next one nor the next segment nor the next file."""
    names = segments(filled)
    flip(names[0], 120 + 192 + 40)  # a value of the first batch
    flip(names[1], 8)  # a segment's header
    flip(names[3], 120 + 192 + 40)
    flip(os.path.join(filled, "groups", "readers", "group.json"), 3)
    report = verified(filled)
    assert not report.ok
    assert {(each.path, each.position, each.kind) for each in report.damages} == {
        (names[0], 120, "batch"),
        (names[1], 0, "segment"),
        (names[3], 120, "batch"),
        (os.path.join(filled, "groups", "readers", "group.json"), 0, "group"),
    }
    assert all(each.message for each in report.damages)


def test_missing_segment_is_named(filled):
    """Between two that are there; verify says which records are gone."""
    gone = segments(filled)[1]
    os.unlink(gone)
    (damage,) = verified(filled).damages
    assert (damage.path, damage.kind) == (gone, "missing")
    assert "records" in damage.message


def test_one_damaged_slot_is_a_note(filled):
    """The other one rules; both are a damage."""
    control = os.path.join(folder(filled), "control")
    with open(control, "rb") as file:
        raw = file.read()
    first, second = (int.from_bytes(raw[at : at + 8], "little") for at in (256, 512))
    older, newer = (256, 512) if first < second else (512, 256)
    flip(control, older + 20)
    report = verified(filled)
    assert report.ok
    assert [(note.kind, note.position) for note in report.notes] == [("slot", older)]
    flip(control, newer + 20)
    assert "slot" in {each.kind for each in verified(filled).damages}


def test_damaged_newest_slot_hides_the_last_append(filled):
    """Readers believe the end that the older slot tells; verify says that more was there, repair brings it back."""
    control = os.path.join(folder(filled), "control")
    with open(control, "rb") as file:
        raw = file.read()
    newest = max((256, 512), key=lambda at: int.from_bytes(raw[at : at + 8], "little"))
    flip(control, newest + 20)
    damages = verified(filled).damages  # a second one, if the background has synced the last append
    assert {damage.kind for damage in damages} == {"slot"}
    assert newest in {damage.position for damage in damages}
    assert values(filled, read_only=True) == list(range(39))
    with pystreamlog.open(filled) as log:
        assert log.repair().ok
    assert values(filled) == list(range(40))


def test_wrong_index_is_a_note_and_dropped(filled):
    """An index is never believed; repair drops it."""
    index = segments(filled)[0].replace(".log", ".index")
    with open(index, "wb") as file:
        file.write(b"anything")
    report = verified(filled)
    assert report.ok
    assert [(note.kind, note.path) for note in report.notes] == [("derived", index)]
    with pystreamlog.open(filled) as log:
        repaired = log.repair()
    assert repaired.ok
    assert len(repaired.done) == 1
    assert not os.path.exists(index)
    assert verified(filled).notes == ()


def test_old_page_of_a_key_index_is_named(path):
    """It would verify for a reader, and tell of fewer records than there are; repair drops the index."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, key_index=True)
        topic.append(b"000", b"key")
        index = Path(folder(path), "keys.index")
        older = index.read_bytes()
        topic.append(b"001", b"key")
        data = index.read_bytes()
        with index.open("r+b") as file:
            file.write(data[:1024] + older[1024:])
        assert [damage.kind for damage in log.verify().damages] == ["keys"]
        assert log.repair().ok
        assert [record.value for record in topic.read_key(b"key")] == [b"000", b"001"]


def test_what_does_not_belong_is_noted(filled):
    """Left-overs, temporary and foreign files."""
    for name in ("00000000000000000999.log", "00000000000000000010.index~ab", "notes.txt"):
        shutil.copyfile(segments(filled)[0], os.path.join(folder(filled), name))
    report = verified(filled)
    assert report.ok
    assert {note.kind for note in report.notes} == {"leftover", "temporary", "foreign"}


def test_commit_beyond_the_end_is_named(filled):
    """A partition whose folder is gone looks as if it was never used; what a group committed there tells."""
    shutil.rmtree(folder(filled))
    (damage,) = verified(filled).damages
    assert damage.kind == "committed"
    assert damage.path.endswith("groups/readers/offsets")


def test_copied_log_is_whole(filled, tmp_path):
    """A backup needs recovery, which is no damage: verify says where it will end."""
    copy = str(tmp_path / "copy")
    shutil.copytree(filled, copy)
    report = verified(copy)
    assert report.ok
    assert {note.kind for note in report.notes} == {"recovery"}
    assert report.records == 40


@pytest.mark.slow
def test_writers_at_work_are_no_damage(path):
    """While threads and another process append, commit, roll, make and delete topics, verify finds nothing."""
    program = """
        import sys, pystreamlog
        with pystreamlog.open(sys.argv[1]) as log:
            topic = log.create_topic("events", exist_ok=True, segment_bytes=4096)
            producer = log.producer(transactional_id="other")
            print("ready", flush=True)
            for number in range(100_000):
                topic.append(b"%d" % number)
                with producer.transaction():
                    producer.send("events", b"a")
                    producer.send("more", b"b", b"k%d" % (number % 50))
                if not number % 20:
                    log.create_topic(f"short-{number}").append(b"x")
                    log.delete_topic(f"short-{number}")
    """
    with pystreamlog.open(path) as log:
        log.create_topic(TOPIC, exist_ok=True, segment_bytes=4096)
        log.create_topic("more", segment_bytes=4096, key_index=True)
        done = threading.Event()

        def consume():
            with log.consumer(TOPIC, group_id="g", auto_offset_reset="earliest") as consumer:
                while not done.is_set():
                    consumer.poll(0.01)
                    consumer.commit()

        thread = threading.Thread(target=consume)
        command = [sys.executable, "-c", textwrap.dedent(program), path]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            try:
                assert writer.stdout.readline() == "ready\n"
                thread.start()
                for _ in range(60):
                    report = log.verify()
                    assert report.ok, str(report)
            finally:
                done.set()
                writer.kill()
                thread.join()
        assert log.verify().ok
    with pystreamlog.open(path) as log:
        assert log.verify().ok


# --- repair


def damaged_tail(path):
    """Damage the active segment; the position and the offset."""
    name = segments(path)[-1]
    flip(name, 120 + 192 + 40)
    return name, int(os.path.basename(name)[:20])


def test_damage_is_not_cut_unless_told(filled):
    """A plain repair changes nothing of the log."""
    damaged_tail(filled)
    before = {name: data for name, (_, data) in files_of(filled).items() if name.endswith(".log")}
    with pystreamlog.open(filled) as log:
        report = log.repair()
    assert not report.ok
    assert {name: data for name, (_, data) in files_of(filled).items() if name.endswith(".log")} == before


def test_cut_tail_is_kept_byte_by_byte(filled):
    """The log ends where the damage began, in a new epoch; what was there is in a file beside."""
    name, offset = damaged_tail(filled)
    with open(name, "rb") as file:
        raw = file.read()
    with pystreamlog.open(filled) as log:
        report = log.repair(cut_tail=True, force=True)
        assert report.ok, report
        assert log.topic(TOPIC).append(b"%03d" % 777).offset == offset
    assert values(filled) == [*range(offset), 777]
    with open(f"{name}.cut-120", "rb") as file:
        assert file.read() == raw[120:].rstrip(b"\0")
    assert "cut" in {note.kind for note in verified(filled).notes}


def test_nothing_known_to_be_on_disk_is_cut(path):
    """Records that were synced are left to be restored, unless it is forced; later segments are kept as they are."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC, segment_bytes=4096)
        for number in range(40):
            topic.append(b"%03d" % number + b"." * 300, durability="fsync")
    names = segments(path)
    originals = [Path(name).read_bytes() for name in names]
    flip(names[1], 120 + 192 + 40)
    with pystreamlog.open(path) as log:
        assert not log.repair(cut_tail=True).ok
        with pytest.raises(CorruptLogError):
            list(log.topic(TOPIC).read())
        assert log.repair(cut_tail=True, force=True).ok
    cut = int(os.path.basename(names[1])[:20])
    assert values(path) == list(range(cut))
    for name, original in zip(names[2:], originals[2:], strict=True):
        with open(f"{name}.cut-0", "rb") as file:
            assert file.read() == original


def test_unsynced_tail_is_cut_without_force(path):
    """What was never known to be on disk is what a power loss may take, so cut_tail is enough."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic(TOPIC)
        for number in range(10):
            topic.append(b"%03d" % number)
    name = segments(path)[0]
    flip(name, 120 + 3 * 256 + 192 + 8)
    with pystreamlog.open(path) as log:
        report = log.repair(cut_tail=True)
    assert report.ok, report
    kept = values(path)
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) < 10


def test_hard_links_are_not_written_to(filled, tmp_path):
    """A snapshot made of hard links keeps its bytes; appends go on in the copy."""
    name, offset = damaged_tail(filled)
    flip(name, 120 + 192 + 40)
    with pystreamlog.open(filled) as log:
        topic = log.topic(TOPIC)
        end = topic.append(b"%03d" % 500).offset
        with open(name, "rb") as file:
            raw = file.read()
        snapshot = str(tmp_path / "snapshot")
        os.link(name, snapshot)
        position = raw.index(b"500")
        flip(name, position)
        with open(name, "rb") as file:
            raw = file.read()
        assert log.repair(cut_tail=True, force=True).ok
        topic.append(b"%03d" % 600)
        assert [int(record.value[:3]) for record in topic.read()] == [*range(end), 600]
    with open(snapshot, "rb") as file:
        assert file.read() == raw
    os.link(os.path.join(folder(filled), "control"), str(tmp_path / "control"))
    flip(segments(filled)[0], 120 + 192 + 40)
    with pystreamlog.open(filled) as log, pytest.raises(NotSupportedError):
        log.repair(cut_tail=True, force=True)
    assert offset


def test_lost_epochs_are_written_anew(filled):
    """The batches name their epochs."""
    for number in (40, 41):
        with pystreamlog.open(filled, recover="always") as log:
            log.topic(TOPIC).append(b"%03d" % number)
    epochs = os.path.join(folder(filled), "epochs.json")
    with open(epochs, "rb") as file:
        original = json.load(file)
    for damage in (lambda: os.unlink(epochs), lambda: flip(epochs, 3), lambda: os.truncate(epochs, 2)):
        damage()
        assert {each.kind for each in verified(filled).damages} <= {"epochs", "missing"}
        with pystreamlog.open(filled) as log:
            assert log.repair().ok
        with open(epochs, "rb") as file:
            assert json.load(file) == original


def test_read_only_log_is_not_repaired(filled):
    """Repair writes, so it is refused."""
    with pystreamlog.open(filled, read_only=True) as log, pytest.raises(ReadOnlyError):
        log.repair()


# --- command line


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line; its exit status and what it printed."""

    def run_arguments(*arguments):
        monkeypatch.setattr("sys.argv", ["pystreamlog", *arguments])
        try:
            status = command_line.main()
        except SystemExit as exit_:
            status = exit_.code
        return status, capsys.readouterr()

    return run_arguments


def test_commands_tell_by_their_status(run, filled):
    """0 for a whole log, 1 for a damaged one, 2 for a command line that makes no sense."""
    assert run("verify", filled)[0] == 0
    name, _ = damaged_tail(filled)
    status, printed = run("verify", filled, "--json")
    assert status == 1
    (damage,) = json.loads(printed.out)["damages"]
    assert (damage["path"], damage["position"]) == (name, 120)
    assert run("repair", filled)[0] == 1
    status, printed = run("repair", filled, "--cut-tail", "--force")
    assert status == 0
    assert ".cut-120" in printed.out
    assert run("verify", filled)[0] == 0
    for arguments in (
        ("verify",),
        ("verify", f"{filled}-not"),
        ("repair", filled, "--force"),
        ("verify", filled, "--x"),
    ):
        assert run(*arguments)[0] == 2
    flip(os.path.join(filled, "log.json"), 3)
    status, printed = run("verify", filled)
    assert status == 1
    assert "log.json" in printed.err
