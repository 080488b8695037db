"""What was appended before is told under the lock: to one batch, to the batches of a transaction, in two processes."""

from __future__ import annotations

import random
from contextlib import nullcontext

import msgspec
import pytest

import pystreamlog
from pystreamlog.coordination import sequence_admission
from pystreamlog.record.batch import encode
from pystreamlog.record.encoded import Demands
from pystreamlog.record.identity import producer_number, without_first
from pystreamlog.storage.control import Control

TIMEOUT = 10.0
NUMBER = producer_number("ingest")


def batch_of(sequences, number=NUMBER):
    """A batch with these sequences."""
    batch = encode([b"%d" % one for one in sequences], None, 5, producer_id=number, sequences=sequences)
    batch.demands = Demands(number, sequences)
    return batch


@pytest.fixture
def logs(tmp_path):
    """One log, opened twice: handles that share nothing but the files, as those of two processes."""
    with pystreamlog.open(tmp_path / "log") as one, pystreamlog.open(tmp_path / "log") as other:
        one.create_topic("t", segment_bytes=1 << 14)
        yield one, other


def writer_of(log):
    """The writer of the topic's only partition."""
    return log._partitions.writer(log._find("t"), 0)


def stored(log):
    """What the records say."""
    return [int(record.value) for record in log.topic("t").read()]


def commit(writer, batches, *, abort=False):
    """Append some batches at once, or none."""
    writer.ensure()
    with writer.locked(TIMEOUT) as end:
        new = end
        for batch in batches:
            new = writer.write_locked(batch, new)
        if abort:
            return
        writer.publish_locked(msgspec.structs.replace(new, sequence=end.sequence + 1), last=True)


def test_answer_of_a_batch_all_new(logs):
    """There is none: the records lie one behind the other."""
    writer, batch = writer_of(logs[0]), batch_of([1, 2, 5])
    assert writer.append(batch, TIMEOUT) == 0
    assert batch.demands.offsets is None


def test_answer_of_a_batch_all_old(logs):
    """Where each lies, and where the log ended; nothing is written."""
    writer = writer_of(logs[0])
    writer.append(batch_of([1, 2, 5]), TIMEOUT)
    batch = batch_of([0, 1, 5])
    assert writer.append(batch, TIMEOUT) == -1
    assert (batch.demands.offsets, batch.demands.end_offset) == ([-1, 0, 2], 3)
    assert stored(logs[0]) == [1, 2, 5]


def test_answer_of_a_batch_partly_old(logs):
    """The others are written, with the demands that are theirs."""
    writer = writer_of(logs[0])
    writer.append(batch_of([1, 2, 5]), TIMEOUT)
    batch = batch_of([2, 5, 6, 9])
    assert writer.append(batch, TIMEOUT) == 3
    assert list(batch.demands.offsets) == [1, 2, 3, 4]
    assert stored(logs[0]) == [1, 2, 5, 6, 9]


def test_batches_of_a_transaction_see_each_other(logs):
    """Before anybody else sees them; once it is aborted, nobody does."""
    writer = writer_of(logs[0])
    writer.append(batch_of([1, 2]), TIMEOUT)
    again = batch_of([3, 4, 5])
    commit(writer, [batch_of([2, 3]), again], abort=True)
    assert list(again.demands.offsets) == [2, 3, 4]
    again, old = batch_of([3, 4, 6]), batch_of([1, 3, 6])
    commit(writer, [batch_of([2, 3]), again, old])
    assert (list(again.demands.offsets), list(old.demands.offsets)) == ([2, 3, 4], [0, 2, 4])
    assert stored(logs[1]) == [1, 2, 3, 4, 6]
    writer.append(batch_of([6, 7]), TIMEOUT)
    assert stored(logs[1]) == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("seed", range(6))
def test_each_sequence_once(logs, seed, monkeypatch):
    """Appends, transactions, aborted ones, failures and batches of others, by two handles in turn, against a model."""
    monkeypatch.setattr(sequence_admission, "_ROLLED_INTERVAL", 2_000)
    monkeypatch.setattr(sequence_admission, "_INTERVAL", 4_000)
    generator = random.Random(seed)
    writers = [writer_of(log) for log in logs]
    appended: list[tuple[int, int]] = []
    highest = dict.fromkeys((1, 2), -1)
    for _ in range(300):
        writer, number = generator.choice(writers), generator.choice([1, 2])
        trial = dict(highest)
        batches, expected = [], []
        for _ in range(generator.choice([1, 1, 2, 3])):
            first = max(0, trial[number] + generator.randrange(-6, 4))
            step = generator.choice([1, 1, 2])
            sequences = list(range(first, first + step * generator.randrange(1, 8), step))
            batches.append(batch_of(sequences, number))
            expected += [(number, one) for one in sequences if one > trial[number]]
            trial[number] = max(trial[number], sequences[-1])
        how = generator.choice(["append", "commit", "abort", "fail", "other"])
        if how == "append":
            for batch in batches:
                writer.append(batch, TIMEOUT)
        elif how == "fail":
            with monkeypatch.context() as patch:
                patch.setattr(Control, "publish", _broken)
                for batch in batches:
                    failing = pytest.raises(OSError, match="injected")
                    with failing if batch_is_new(batch, highest) else nullcontext():
                        writer.append(batch, TIMEOUT)
        elif how == "other":
            writer.append(encode([b"%d" % len(appended)], None, 5), TIMEOUT)
            appended.append((0, len(appended)))
        else:
            commit(writer, batches, abort=how == "abort")
        if how in ("append", "commit"):
            highest = trial
            for batch in batches:
                check_answer(batch, appended, expected)
            appended += expected
    assert stored(logs[0]) == [one for _, one in appended], f"seed {seed}"


def _broken(self, slot):
    raise OSError("injected")


def batch_is_new(batch, highest):
    """Whether some of it is to be written."""
    demands = batch.demands
    return demands.sequences[-1] > highest[demands.producer_id]


def check_answer(batch, appended, expected):
    """Each record lies where the first of its sequence does, if that is told."""
    demands = batch.demands
    if demands.offsets is not None:
        whole = appended + expected
        for sequence, offset in zip(demands.sequences, demands.offsets, strict=True):
            place = (demands.producer_id, sequence)
            assert offset < 0 or whole[offset] == place
            assert offset >= 0 or place not in whole[-50:]


def test_rest_of_a_batch_keeps_what_it_had():
    """Transaction, time of the log, and everything of its records."""
    batch = encode(
        [b"a", None, b"c"], [b"k", None, b"l"], [5, 6, 4], [(), (("h", b"1"),), ()], producer_id=7, sequences=[1, 2, 9]
    )
    batch.mark(12345)
    rest = without_first(batch, 1)
    assert rest.suffix[:28] == batch.suffix[:28]
    assert (rest.count, rest.base_timestamp, rest.max_timestamp, rest.log_append_time) == (2, 6, 6, False)
    stamped = encode([b"a", b"b"], None, 0, log_append_time=True, producer_id=7, sequences=[1, 2])
    assert without_first(stamped, 1).log_append_time
