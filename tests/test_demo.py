"""`python -m pystreamlog demo`: it finds nothing wrong, would find it, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pystreamlog.cli import demo, demo_clients
from pystreamlog.cli.demo_clients import KEY_COUNT, ConsumerReport, ProducerReport, Stint, key_of
from pystreamlog.cli.demo_verdict import Account, Reader, Reading, Verdict

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 100

NUMBER = r"([\d,]+)"
ROW = re.compile(rf"^(producer \d|total) +{NUMBER} +{NUMBER} +{NUMBER}( +killed)?$", re.MULTILINE)
TAKE_OVER = re.compile(
    rf"^consumer 3 was killed; others read on in 2 of its 2 partitions; the slowest take-over took ([\d.]+) ms\n"
    rf"{NUMBER} records that it had read and not committed were read again",
    re.MULTILINE,
)
LATENCY = re.compile(rf"^(steady|burst) +{NUMBER} +([\d.]+) +([\d.]+) +([\d.]+)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _interruptible():
    """Shells start what runs in the background with SIGINT ignored, and processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def number(text: str) -> int:
    """A number with its commas."""
    return int(text.replace(",", ""))


def start(temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo, with its temporary files in a folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "pystreamlog", "demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_about(directory: Path) -> list[str]:
    """Command lines of the processes that name a directory; only Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended meanwhile
        if str(directory) in command:
            found.append(command)
    return found


def wait_until(condition) -> bool:
    """Whether a condition holds before long."""
    deadline = time.monotonic() + TIMEOUT / 2
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.faults
@pytest.mark.slow
def test_demo_accounts_for_every_record(tmp_path):
    """The summary's numbers fit each other: what was acknowledged was read, and no more than was sent."""
    process = start(tmp_path, "--seconds", "2")
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, ""), output
    assert "0 lost, 0 doubled, 0 torn, 0 made up" in output

    rows = {match[1]: [number(text) for text in match.group(2, 3, 4)] for match in ROW.finditer(output)}
    assert rows.keys() == {"producer 1", "producer 2", "total"}
    assert [name for name, *_, killed in ROW.findall(output) if killed] == ["producer 2"]
    survivor, victim = rows["producer 1"], rows["producer 2"]
    assert survivor[0] == survivor[1] == survivor[2] > 0
    assert victim[0] >= victim[2] >= victim[1] > 0
    assert rows["total"] == [sum(pair) for pair in zip(survivor, victim, strict=True)]

    latencies = {match[1]: match.groups()[1:] for match in LATENCY.finditer(output)}
    assert latencies.keys() == {"steady", "burst"}
    # Missing are what the killed consumer had read, and what was sent until others took over.
    assert 0.5 * rows["total"][2] < sum(number(count) for count, *_ in latencies.values()) <= rows["total"][2]
    for _, *percentiles in latencies.values():
        assert sorted(map(float, percentiles)) == list(map(float, percentiles))

    take_over = TAKE_OVER.search(output)
    assert take_over is not None, output
    assert 0 < float(take_over[1]) < 10_000

    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


@pytest.mark.faults
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_leaves_nothing_behind(tmp_path, sent, status):
    """Neither Ctrl-C nor a polite kill leaves a process or a file."""
    process = start(tmp_path, "--seconds", "60")
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("steady" in line for line in lines), process.communicate()
    process.send_signal(sent)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


@pytest.mark.faults
@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="needs /proc to see processes that nobody waits for"
)
def test_processes_end_when_the_demo_is_killed(tmp_path):
    """Who cannot clean up any more leaves files, but no process."""
    with start(tmp_path, "--seconds", "60") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("steady" in line for line in lines)
        assert len(processes_about(tmp_path)) == 5
        process.kill()
        assert wait_until(lambda: processes_about(tmp_path) == [])


@pytest.mark.faults
def test_process_that_fails_fails_the_demo(tmp_path, monkeypatch, capsys):
    """What a process of the demo says when it dies is shown, and the exit status is 1."""
    monkeypatch.setattr(demo, "PRODUCER_COUNT", demo_clients.PRODUCER_COUNT + 1)  # one that has no keys
    monkeypatch.chdir(ROOT)
    assert demo.main(["--directory", str(tmp_path / "log")]) == 1
    errors = capsys.readouterr().err
    assert "producer 3 ended with status 1" in errors
    assert "IndexError" in errors


def test_given_directory_is_kept_and_not_used_twice(tmp_path, monkeypatch, capsys):
    """A log that is there already is left as it is."""
    monkeypatch.setattr(demo._Demo, "run", lambda _: None)
    monkeypatch.setattr(demo._Demo, "verdict", lambda _: Verdict([], [], Reading()))
    monkeypatch.chdir(ROOT)
    directory = tmp_path / "log"
    assert demo.main(["--directory", str(directory)]) == 0
    assert (directory / "topics" / demo_clients.TOPIC).is_dir()
    assert demo.main(["--directory", str(directory)]) == 1
    assert str(directory) in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["1", "61", "nan", "soon"])
def test_duration_out_of_range_is_refused(seconds, capsys):
    """A wrong option is an error of the command line."""
    with pytest.raises(SystemExit) as ended:
        demo.main(["--seconds", seconds])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err


# --- what would be found ----------------------------------------------------------------------------------------------


def value_of(sequence, *, producer=0, phase=0, again=None):
    """A record's value as a producer packs it."""
    filling = demo_clients._FILLING
    return demo_clients._VALUE.pack(producer, phase, sequence, 0, filling, sequence if again is None else again)


def tally_of(*records):
    """What a consumer reports that reads these pairs of key and value from the start of a partition."""
    tally = demo_clients._Tally()
    tally.begin(0, 0, 0)
    tally.add(0, [key for key, _ in records], [value for _, value in records], 1000)
    return tally.finish()


def records_of(*sequences):
    """Pairs of key and value of one producer."""
    return [(key_of(0, sequence), value_of(sequence)) for sequence in sequences]


def stint_of(begin, count, *, began=1, partition=0, **fields):
    """A stint that read `count` records of key 0 from offset `begin` on, where offset 0 has sequence 0 and so on."""
    first = {0: begin * KEY_COUNT} if count else {}
    following = {0: (begin + count) * KEY_COUNT} if count else {}
    fields = {"committed": begin, "ended": True, "first_read_ns": began + 1 if count else 0, **fields}
    return Stint(partition, begin, begin + count, began, first=first, following=following, **fields)


def reading_of(*stints, killed=None, killed_ns=0):
    """What is read by one consumer in each stint; the one of number `killed` was killed in it."""
    readers = []
    for number_, stint in enumerate(stints):
        if number_ == killed:
            stint.ended = False
        readers.append(Reader("", ConsumerReport(stints=[stint]), killed_ns if number_ == killed else 0))
    return Reading.of(readers)


def counts_of(reading):
    """Lost, doubled, read again as it must be."""
    return reading.lost, reading.doubled, reading.again


def verdict_of(producer, *consumers):
    """The verdict on one producer."""
    readers = [Reader("", consumer) for consumer in consumers]
    reading = Reading.of(readers)
    return Verdict([Account.of(0, "producer 1", producer, reading, killed=False)], readers, reading)


def faults_of(report):
    """Lost, doubled, torn."""
    return report.lost, report.doubled, report.torn


def test_records_in_order_are_read():
    """Each key goes on in steps of the number of keys."""
    report = tally_of(*records_of(0, 1, KEY_COUNT, 1 + KEY_COUNT, 2))
    assert (report.read, *faults_of(report)) == (5, 0, 0, 0)
    (stint,) = report.stints
    assert (stint.begin, stint.end, stint.first) == (0, 5, {0: 0, 1: 1, 2: 2})
    assert stint.following == {0: 2 * KEY_COUNT, 1: 1 + 2 * KEY_COUNT, 2: 2 + KEY_COUNT}


def test_skipped_record_is_lost():
    """A gap counts every record in it, also at the start."""
    assert faults_of(tally_of(*records_of(0, 3 * KEY_COUNT))) == (2, 0, 0)
    assert verdict_of(ProducerReport(96, 96), tally_of(*records_of(KEY_COUNT))).faults["lost"] > 0
    assert Reading.of([Reader("", tally_of(*records_of(KEY_COUNT)))]).lost == 1


def test_record_read_again_is_doubled():
    """So is one that comes after a later one of its key."""
    assert faults_of(tally_of(*records_of(0, 0))) == (0, 1, 0)
    assert faults_of(tally_of(*records_of(0, KEY_COUNT, 0))) == (0, 1, 0)


@pytest.mark.parametrize(
    "record",
    [
        (key_of(0, 1), value_of(0)),
        (None, value_of(0)),
        (key_of(0, 0), None),
        (key_of(0, 0), value_of(0)[:-1]),
        (key_of(0, 0), value_of(0, again=1)),
        (key_of(0, 0), value_of(0).replace(b"\x20\x21", b"\x21\x20")),
        (key_of(0, 0), value_of(0, producer=1)),
        (key_of(0, 0), value_of(0, producer=99)),
        (key_of(0, 0), value_of(0, phase=99)),
    ],
    ids=["key", "no key", "no value", "short", "two halves", "filling", "producer", "no producer", "no phase"],
)
def test_record_that_is_none_is_torn(record):
    """Whatever does not hang together is no record of a producer."""
    report = tally_of(record)
    assert (report.read, *faults_of(report)) == (0, 0, 0, 1)


def test_verdict_is_good_when_all_was_read():
    """All keys, in one stint."""
    assert not verdict_of(ProducerReport(3, 3), tally_of(*records_of(0, 2, 1))).is_bad


def test_unacknowledged_record_may_be_there_or_not():
    """Only what was acknowledged must be read."""
    assert not verdict_of(ProducerReport(3, 1), tally_of(*records_of(0))).is_bad
    assert not verdict_of(ProducerReport(3, 1), tally_of(*records_of(0, 2))).is_bad


def test_acknowledged_record_that_nobody_read_is_lost():
    """A record missing at the end leaves no gap; the producer's report shows it."""
    verdict = verdict_of(ProducerReport(3, 3), tally_of(*records_of(0, 1)))
    assert verdict.faults["lost"] == 1
    assert "FAILED" in str(verdict)


def test_record_that_two_consumers_read_is_doubled():
    """Neither of them can know."""
    first, second = tally_of(*records_of(0, 1)), tally_of(*records_of(0))
    assert verdict_of(ProducerReport(2, 2), first, second).faults["doubled"] == 1


def test_record_that_was_never_sent_is_made_up():
    """A consumer cannot read ahead of the producer's word."""
    assert verdict_of(ProducerReport(1, 1), tally_of(*records_of(0, 1))).faults["made up"] == 1


def test_gap_is_counted_once():
    """What a consumer found missing is not missed by the account too."""
    verdict = verdict_of(ProducerReport(3 * KEY_COUNT, 0), tally_of(*records_of(0, 2 * KEY_COUNT)))
    assert verdict.faults == {"lost": 1, "doubled": 0, "torn": 0, "made up": 0}


# --- stints of one partition ------------------------------------------------------------------------------------------


def test_partition_that_was_given_up_goes_on_where_it_was():
    """Nothing twice, nothing left out, also over stints that read nothing."""
    reading = reading_of(stint_of(0, 5), stint_of(5, 0, began=2), stint_of(5, 3, began=3), stint_of(8, 1, began=4))
    assert counts_of(reading) == (0, 0, 0)
    assert reading.following == {0: 9 * KEY_COUNT}


def test_next_stint_that_begins_too_early_doubles():
    """Who gave a partition up has committed all of it."""
    assert counts_of(reading_of(stint_of(0, 5), stint_of(3, 4, began=2))) == (0, 2, 0)


def test_next_stint_that_begins_too_late_loses():
    """Counted once, though both the offsets and the sequences show it."""
    assert counts_of(reading_of(stint_of(0, 5), stint_of(7, 4, began=2))) == (2, 0, 0)
    assert counts_of(reading_of(stint_of(0, 5), stint_of(7, 0, began=2))) == (2, 0, 0)


def test_what_a_killed_member_had_not_committed_comes_again():
    """From the committed offset on, as often as its heirs end before they are past it."""
    victim = stint_of(0, 10, committed=6)
    assert counts_of(reading_of(victim, stint_of(6, 7, began=60), killed=0, killed_ns=50)) == (0, 0, 4)
    heirs = stint_of(6, 2, began=60), stint_of(8, 5, began=70)
    assert counts_of(reading_of(victim, *heirs, killed=0, killed_ns=50)) == (0, 0, 4)
    heirs = stint_of(6, 0, began=60), stint_of(6, 5, began=70)
    assert counts_of(reading_of(victim, *heirs, killed=0, killed_ns=50)) == (0, 0, 4)


def test_what_a_killed_member_had_committed_must_not_come_again():
    """Only what lies before the committed offset is a fault."""
    heir = stint_of(4, 9, began=60)
    assert counts_of(reading_of(stint_of(0, 10, committed=6), heir, killed=0, killed_ns=50)) == (0, 2, 4)


def test_what_a_killed_member_had_not_read_must_be_read():
    """The next one may not begin behind what was read."""
    heir = stint_of(12, 1, began=60)
    assert counts_of(reading_of(stint_of(0, 10, committed=6), heir, killed=0, killed_ns=50)) == (2, 0, 0)


def test_partition_is_not_taken_over_before_the_kill():
    """Two owners at a time would read records twice: that is no take-over."""
    heir = stint_of(6, 7, began=40)
    assert counts_of(reading_of(stint_of(0, 10, committed=6), heir, killed=0, killed_ns=50)) == (0, 4, 0)


def test_record_written_twice_is_doubled():
    """At two offsets, on both sides of the border between two stints."""
    second = stint_of(5, 3, began=2)
    second.first, second.following = {0: 4 * KEY_COUNT}, {0: 7 * KEY_COUNT}
    assert counts_of(reading_of(stint_of(0, 5), second)) == (0, 1, 0)


def test_take_over_is_timed_to_the_first_record():
    """Of whoever reads one first after the kill."""
    victim = stint_of(0, 10, committed=6)
    heirs = stint_of(6, 0, began=60), stint_of(6, 5, began=70, first_read_ns=3_500_050)
    reading = reading_of(victim, *heirs, killed=0, killed_ns=50)
    assert reading.take_overs_ns == {0: 3_500_000}
    text = str(Verdict([], [Reader("consumer 1", ConsumerReport(stints=[victim]), 50)], reading))
    assert "others read on in 1 of its 1 partitions; the slowest take-over took 3.5 ms" in text
    assert "4 records that it had read and not committed" in text


# --- figures ----------------------------------------------------------------------------------------------------------


def test_percentiles_are_those_of_all_consumers():
    """Latencies are merged before they are ranked; a killed consumer has none."""
    fast = Reader("", ConsumerReport(latencies=[{1000: 99}, {}]))
    slow = Reader("", ConsumerReport(latencies=[{5000: 1}, {}]))
    text = str(Verdict([], [fast, slow, Reader("", ConsumerReport())], Reading()))
    assert re.search(r"^steady +100 +1\.00 +1\.00 +5\.00$", text, re.MULTILINE)


def test_record_that_waited_for_a_take_over_is_not_timed():
    """Its wait says nothing of the log."""
    tally = demo_clients._Tally()
    tally.begin(0, 0, 500_000)
    tally.add(0, *zip(*records_of(0), strict=True), 1_000_000)
    assert tally.finish().latencies == [{}, {}]
    assert tally.report.read == 1
