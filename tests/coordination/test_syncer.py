"""Syncs that are due: each has its turn, and those of what is gone are forgotten."""

import threading

import pytest

from pystreamlog.coordination.syncer import Syncer
from pystreamlog.errors import ClosedError, StorageError, UnknownTopicError


class Writer:
    """A partition's writer whose sync raises."""

    def __init__(self, error):
        self.error = error
        self.folder = self
        self.path = "topics/t/0"
        self.turn = threading.Event()

    def sync(self, offset):
        """It is its turn."""
        self.turn.set()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (UnknownTopicError("deleted"), False),
        (ClosedError("closed"), False),
        (FileNotFoundError(2, "deleted while it was synced"), False),
        (StorageError("failed"), True),
    ],
)
def test_error_of_one_is_told_and_others_have_their_turn(caplog, error, is_told):
    """A topic that was deleted takes its files along: nothing is wrong."""
    syncer, failing, other = Syncer(), Writer(error), Writer(None)
    syncer.schedule(failing, 0, 0.0)
    syncer.schedule(other, 0, 0.0)
    assert failing.turn.wait(60)
    assert other.turn.wait(60)
    syncer.finish()
    assert ("topics/t/0" in caplog.text) == is_told
