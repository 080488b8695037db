"""What producers appended last: known from headers, bounded, and made anew from snapshots or from the log alone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from pystreamlog.errors import CorruptLogError
from pystreamlog.record.batch import encode
from pystreamlog.storage import producer_snapshots
from pystreamlog.storage.producer_snapshots import catch_up, cursor_at, list_snapshots, rebuild, write_snapshot
from pystreamlog.storage.producer_state import BATCHES_KEPT, ProducerState, decode_snapshot, encode_snapshot
from pystreamlog.storage.reader import Cursor

DAY = 86_400_000
FOREVER = 1 << 60


def send(partition, number, sequences):
    """Append one batch of a producer; the base offset."""
    values = [b"%d" % sequence for sequence in sequences]
    batch = encode(values, None, 5, producer_id=number, sequences=sequences)
    end = partition.end
    new = partition.appender.write(
        batch, end, partition.now, partition.durable, partition.segment_bytes, partition.segment_ms
    )
    partition.control.publish(new)
    return end.end_offset


def rebuilt(partition, *, expiration_ms=FOREVER):
    """The state as a process that comes makes it, and the bytes it walked for that."""
    partition.reader._close_segment()
    return rebuild(partition.folder, partition.reader, partition.end, now_ms=partition.now, expiration_ms=expiration_ms)


def found(partition, state, number, sequences):
    """Where sequences lie, with a look into the batches that need it."""
    offsets, inside = state.find(number, sequences)
    for start, stop, base in inside:
        ((batch, _),) = partition.reader.fetch(Cursor(base), partition.end, max_records=1, max_bytes=1)
        known = dict(zip(batch.sequences(0, batch.count), batch.offsets(0, batch.count), strict=True))
        offsets[start:stop] = [known.get(sequence, -1) for sequence in sequences[start:stop]]
    return offsets


def contents(state):
    """Everything a state says but the times."""
    return {n: (one.last_sequence, one.batches.tolist()) for n, one in sorted(state._producers.items())}


def snapshot_path(partition, base):
    """The file of a snapshot."""
    return Path(partition.segment_path(base, ".producers"))


# --- the state alone


def test_unknown_producer_has_no_sequence():
    """Not even -1 is above it: any sequence is new."""
    state = ProducerState()
    assert state.last_sequence(7, 0) == -1
    assert state.find(7, [0, 1]) == ([-1, -1], [])


def test_offsets_of_consecutive_sequences_are_counted():
    """In all batches there are, without a look into one."""
    state = ProducerState()
    state.append(7, 4, 100, 5, 0)  # 0 to 4 at 100 to 104
    state.append(7, 12, 200, 3, 0)  # 10 to 12 at 200 to 202
    assert state.find(7, [0, 4, 5, 9, 10, 12]) == ([100, 104, -1, -1, 200, 202], [])
    assert state.find(7, range(3, 12)) == ([103, 104, -1, -1, -1, -1, -1, 200, 201], [])


def test_batch_with_gaps_must_be_looked_into():
    """Headers do not tell which of its sequences it holds."""
    state = ProducerState()
    state.append(7, 4, 100, 5, 0)
    state.append(7, 90, 200, -3, 0)
    assert state.find(7, [4, 50, 90]) == ([104, -1, -1], [(1, 3, 200)])


def test_last_batches_are_kept():
    """As many as promised; of what lies before, only that it was appended is known."""
    state = ProducerState()
    for number in range(BATCHES_KEPT + 10):
        state.append(7, 2 * number + 1, 10 * number, 2, 0)
    offsets, _ = state.find(7, range(2 * (BATCHES_KEPT + 10)))
    assert offsets[:20] == [-1] * 20
    assert offsets[20:24] == [100, 101, 110, 111]
    assert -1 not in offsets[20:]


def test_batch_that_does_not_rise_begins_anew():
    """It was written after its id had expired; what was known before is of another life."""
    state = ProducerState()
    state.append(7, 100, 0, 1, 0)
    state.append(7, 3, 1, 2, 0)
    assert state.last_sequence(7, 0) == 3
    assert state.find(7, [2, 3, 100]) == ([1, 2, -1], [])


def test_id_expires_without_appends():
    """Each append gives it the same time anew."""
    state = ProducerState()
    state.append(7, 1, 0, 1, 1000)
    state.append(8, 1, 0, 1, 3000)
    assert (state.last_sequence(7, 1000), state.last_sequence(7, 1001)) == (1, -1)
    state.append(7, 2, 0, 1, 2000)
    assert state.last_sequence(7, 2000) == 2
    state.expire(2001)
    assert contents(state).keys() == {8}


def test_undone_batches_leave_no_trace():
    """Of an id that was there, of one that was not, and of one that began anew."""
    state = ProducerState()
    state.append(7, 1, 0, 2, 0)
    state.append(8, 9, 2, 1, 0)
    before = contents(state)
    state.begin()
    state.append(7, 5, 3, 1, 0)
    state.begin()
    state.append(7, 6, 4, 1, 0)
    state.append(8, 3, 5, 1, 0)
    state.append(9, 0, 6, 1, 0)
    assert state.last_sequence(7, 0) == 6
    state.undo()
    assert contents(state) == before
    state.begin()
    state.append(7, 5, 3, 1, 0)
    state.keep()
    state.undo()
    assert state.last_sequence(7, 0) == 5


# --- snapshots


def some_state():
    """A state with one id whose window is full, and one with a single batch."""
    state = ProducerState()
    for number in range(BATCHES_KEPT + 5):
        state.append(3, 10 * number, number, 1 if number % 2 else -1, number)
    state.append(2**63 - 1, 2**63 - 1, 5, 1, 7)
    return state


def encoded(state):
    """A snapshot of it, of any place."""
    return encode_snapshot(state, segment_id=2**64 - 1, segment_base=0, position=120, offset=0, last_checksum=1)


def test_snapshot_round_trip():
    """All of it, times too; in the size that is documented."""
    state = some_state()
    data = encoded(state)
    assert len(data) == 56 + (32 + 24 * BATCHES_KEPT) + (32 + 24) + 8
    snapshot, back = decode_snapshot(data)
    assert (snapshot.segment_id, snapshot.position, snapshot.count) == (2**64 - 1, 120, 2)
    assert back.encode() == state.encode()


def test_damaged_snapshot_is_none():
    """Cut at any place, with any byte changed, or with bytes behind."""
    data = encoded(some_state())
    assert decode_snapshot(data + bytes(8)) is None
    for size in range(len(data)):
        assert decode_snapshot(data[:size]) is None
    generator = random.Random(1)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << generator.randrange(8)
        assert decode_snapshot(bytes(changed)) is None


def test_snapshot_of_nonsense_is_none(monkeypatch):
    """A checksum says that bytes are as they were written, not that an honest writer wrote them."""
    for number, last, numbers in [
        (-1, 5, [5, 0, 1]),
        (7, 6, [5, 0, 1]),
        (7, 5, [5, 0, 1, 5, 0, 1]),
        (7, 5, []),
        (7, -1, [-1, 0, 1]),
        (7, 65, [n for k in range(1, 66) for n in (k, 0, 1)]),
    ]:
        state = ProducerState()
        state.append(7, 5, 0, 1, 0)
        (producer,) = state._producers.values()
        state._producers = {number: producer}
        producer.last_sequence, producer.batches = last, type(producer.batches)("q", numbers)
        assert decode_snapshot(encoded(state)) is None


# --- made anew


def test_rebuilt_from_the_log_alone(partition):
    """Batches of others between do not matter."""
    send(partition, 7, range(5))
    partition.append(b"somebody else's")
    send(partition, 8, [3, 9])
    send(partition, 7, [10])
    state, walked = rebuilt(partition)
    assert walked == partition.end.end_position - 120
    assert contents(state) == {7: (10, [4, 0, 5, 10, 8, 1]), 8: (9, [9, 6, -2])}
    assert found(partition, state, 8, [3, 4, 9]) == [6, -1, 7]


def test_snapshot_saves_the_walk(partition):
    """Only what lies behind it is walked; and it may lie anywhere in its segment."""
    for number in range(10):
        send(partition, 7, [number])
    state, whole = rebuilt(partition)
    write_snapshot(partition.folder, state, partition.end)
    assert rebuilt(partition)[1] == 0
    send(partition, 7, [10])
    again, walked = rebuilt(partition)
    assert walked * 10 == whole
    assert contents(again)[7][0] == 10


def test_snapshot_at_the_end_of_a_sealed_segment_holds_while_the_next_is_empty(partition):
    """Though the log's end lies in another segment; not if that one follows something else."""
    send(partition, 7, range(5))
    end = partition.end
    state, _ = rebuilt(partition)
    write_snapshot(partition.folder, state, end)
    rolled = partition.appender.roll(end, partition.now)
    partition.control.publish(msgspec.structs.replace(rolled, sequence=rolled.sequence + 1))
    assert len(partition.segments()) == 2
    again, walked = rebuilt(partition)
    assert (contents(again), walked) == (contents(state), 0)
    for change in ({"last_checksum": 5}, {"position": end.end_position - 8}):
        place = {"position": end.end_position, "last_checksum": end.last_checksum, **change}
        other = encode_snapshot(
            ProducerState(), segment_id=end.segment_id, segment_base=0, offset=end.end_offset, **place
        )
        snapshot_path(partition, 0).write_bytes(other)
        assert contents(rebuilt(partition)[0]) == contents(state)


@pytest.mark.parametrize("how", ["deleted", "damaged", "empty", "of another log", "a directory"])
def test_snapshot_that_does_not_hold_is_not_used(partition, how):
    """The state is made from the log, as if there had been none."""
    for number in range(10):
        send(partition, 7, [number])
    state, whole = rebuilt(partition)
    write_snapshot(partition.folder, state, partition.end)
    path = snapshot_path(partition, 0)
    data = path.read_bytes()
    path.unlink()
    if how == "damaged":
        path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "of another log":
        end = partition.end
        fields = {"segment_base": 0, "position": end.end_position, "offset": end.end_offset}
        path.write_bytes(encode_snapshot(ProducerState(), segment_id=5, last_checksum=end.last_checksum, **fields))
    elif how == "a directory":
        path.mkdir()
    again, walked = rebuilt(partition)
    assert (contents(again), walked) == (contents(state), whole)


def test_snapshot_of_a_lost_tail_is_not_used(partition):
    """After a power loss the log ends earlier, or goes on differently: what was lost was never appended."""
    send(partition, 7, [1])
    partition.sync()
    lost_at = partition.end.end_position
    send(partition, 7, [2])
    state, _ = rebuilt(partition)
    write_snapshot(partition.folder, state, partition.end)
    partition.overwrite(lost_at, bytes(64))
    partition.recover()
    state, _ = rebuilt(partition)
    assert state.last_sequence(7, 0) == 1
    assert snapshot_path(partition, 0).exists()
    send(partition, 8, [2])  # of the size of the lost one
    state, _ = rebuilt(partition)
    assert (state.last_sequence(7, 0), state.last_sequence(8, 0)) == (1, 2)


def test_old_snapshots_go(make_partition):
    """Two are kept, so that the log may lose a segment."""
    partition = make_partition(segment_bytes=4096)
    state, _ = rebuilt(partition)
    for number in range(60):
        before = partition.end
        send(partition, 7, range(10 * number, 10 * number + 10))
        catch_up(partition.folder, state, partition.reader, cursor_at(before), partition.end, now_ms=0)
        write_snapshot(partition.folder, state, partition.end)
    segments = partition.segments()
    assert len(segments) > 3
    assert list_snapshots(partition.folder) == segments[-2:]
    assert not [name for name in os.listdir(partition.path("")) if "~" in name]


def test_snapshot_that_cannot_be_written_is_left_out(partition, monkeypatch):
    """On a full disk, or of more ids than is sensible, appends go on."""
    state = some_state()
    monkeypatch.setattr(producer_snapshots, "SNAPSHOT_LIMIT", 100)
    assert write_snapshot(partition.folder, state, partition.end) > 100
    assert list_snapshots(partition.folder) == []


def test_old_segments_are_not_walked(make_partition):
    """What was appended before a segment that is older than the expiration was made is older too."""
    partition = make_partition(segment_bytes=4096)
    for number in range(60):
        send(partition, number % 20, range(10 * number, 10 * number + 10))
        partition.now += DAY // 10
    bases = partition.segments()
    assert len(bases) > 4
    _, walked = rebuilt(partition)
    state, less = rebuilt(partition, expiration_ms=DAY)
    assert less < walked
    # The ten of the last day live, and the others of the segment in which that began and of the newest at most.
    live = {number % 20 for number in range(50, 60)}
    assert live <= contents(state).keys()
    assert len(state) < 20


def test_damage_where_it_must_be_walked_is_told(partition):
    """Without what was appended, nobody can tell what is new."""
    send(partition, 7, [1])
    at = partition.end.end_position
    send(partition, 7, [2])
    partition.overwrite(at + 20, b"damage")
    with pytest.raises(CorruptLogError):
        rebuilt(partition)


# --- against a model


@pytest.mark.parametrize("seed", range(8))
def test_state_is_what_the_log_says(make_partition, seed):
    """Live, rebuilt, and rebuilt from any snapshots, some of them damaged: the same, and what a plain model says."""
    generator = random.Random(seed)
    partition = make_partition(segment_bytes=generator.choice([4096, 1 << 16]))
    live, _ = rebuilt(partition)
    known = partition.end
    model: dict[int, list[dict[int, int]]] = {}
    for step in range(400):
        number = generator.choice([1, 2, 3, 2**63 - 1])
        last = max(model.get(number, [{-1: 0}])[-1])
        gaps = generator.random() < 0.3
        sequences = []
        for _ in range(generator.randrange(1, 6)):
            last += generator.randrange(1, 9) if gaps else 1
            sequences.append(last)
        base = send(partition, number, sequences)
        model.setdefault(number, []).append({one: base + index for index, one in enumerate(sequences)})
        if generator.random() < 0.3:
            partition.append(b"plain" * generator.randrange(30))
        if generator.random() < 0.5:
            catch_up(partition.folder, live, partition.reader, cursor_at(known), partition.end, now_ms=step)
            known = partition.end
            if generator.random() < 0.2:
                write_snapshot(partition.folder, live, known)
            if generator.random() < 0.05:
                for base in list_snapshots(partition.folder):
                    damage(snapshot_path(partition, base), generator)
    catch_up(partition.folder, live, partition.reader, cursor_at(known), partition.end, now_ms=0)
    again, _ = rebuilt(partition)
    assert contents(again) == contents(live), f"seed {seed}"
    for base in list_snapshots(partition.folder):
        snapshot_path(partition, base).unlink()
    whole, _ = rebuilt(partition)
    assert contents(whole) == contents(live), f"seed {seed}"
    for number, batches in model.items():
        assert live.last_sequence(number, 0) == max(batches[-1])
        expected = {sequence: at for batch in batches[-BATCHES_KEPT:] for sequence, at in batch.items()}
        wanted = range(max(batches[-1]) + 1)
        assert found(partition, live, number, wanted) == [expected.get(one, -1) for one in wanted], f"seed {seed}"


def damage(path, generator):
    """Delete a file, cut it, or flip a bit of it."""
    data = path.read_bytes()
    how = generator.randrange(3)
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(data[: generator.randrange(len(data))])
    else:
        position = generator.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
