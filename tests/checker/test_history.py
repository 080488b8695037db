"""What is written down is read back, whatever byte the writer was killed at."""

from __future__ import annotations

import pytest

from .history import NEVER, Client, History, Recorder, load, runs


@pytest.fixture
def written(tmp_path):
    """A file with an operation of each kind."""
    path = tmp_path / "1.jsonl"
    recorder = Recorder(path, Client(process=1, role="member", group="g", audience="g"))
    recorder.invoke("send", sends={"t/0": [10, 11]})
    recorder.complete("ok", at={"t/0": [4, 5]})
    recorder.invoke("poll")
    recorder.event("assign", since=1, keys=["t/1"], offsets={"t/1": None})
    recorder.complete("ok", reads={"t/1": runs([0, 1, 5], [7, 8, 9])})
    recorder.invoke("txn")
    recorder.more(reads={"t/1": [[6, 12]]})
    recorder.more(sends={"u/0": [12]})
    recorder.complete("info")
    recorder.invoke("commit", offsets={"t/1": 6})
    recorder.complete("fail")
    recorder.close()
    return path


def test_everything_comes_back(written):
    """Offsets, values, callbacks and outcomes."""
    history = load(written.parent)
    send, poll, txn, commit = history.ops
    assert history.clients[1].group == "g"
    assert [(op.process, op.f, op.type) for op in history.ops] == [
        (1, "send", "ok"),
        (1, "poll", "ok"),
        (1, "txn", "info"),
        (1, "commit", "fail"),
    ]
    assert [list(column) for column in send.sends["t/0"]] == [[4, 5], [10, 11]]
    assert [list(column) for column in poll.reads["t/1"]] == [[0, 1, 5], [7, 8, 9]]
    assert poll.rebalanced == {"t/1"}
    assert [list(column) for column in txn.reads["t/1"]] == [[6], [12]]
    assert [list(column) for column in txn.sends["u/0"]] == [[None], [12]]
    assert commit.offsets == {"t/1": 6}
    (event,) = history.events
    assert (event.process, event.what, event.since, event.keys, event.offsets) == (
        1,
        "assign",
        1,
        ("t/1",),
        {"t/1": None},
    )
    assert all(op.invoked < op.completed < NEVER for op in history.ops)


def test_file_cut_at_any_byte(written):
    """It reads as far as its last whole line; what was begun there is of unknown outcome."""
    data = written.read_bytes()
    ends = [0, *(number + 1 for number, byte in enumerate(data) if byte == ord("\n"))]
    whole = History()
    whole.read(data)
    for size in range(len(data) + 1):
        history = History()
        history.read(data[:size])
        assert history.torn == (size not in ends)
        assert len(history.ops) <= len(whole.ops)
        for op, complete in zip(history.ops, whole.ops, strict=False):
            assert (op.f, op.invoked) == (complete.f, complete.invoked)
            assert op.completed in (complete.completed, NEVER)
            assert op.type == (complete.type if op.completed < NEVER else "info")


def test_one_process_may_speak_of_another(tmp_path):
    """The orchestrator says whom it killed, and who had time to read everything."""
    recorder = Recorder(tmp_path / "orchestrator.jsonl", None)
    recorder.event("kill", process=3)
    recorder.audience_is_complete("g")
    recorder.close()
    history = load(tmp_path)
    assert [(event.process, event.what) for event in history.events] == [(3, "kill")]
    assert history.complete == {"g"}
