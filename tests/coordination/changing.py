"""`Group.change` as a `with` block: what the block does is decided under the group's lock."""

import queue
import threading
from contextlib import contextmanager

PATIENCE = 20.0


@contextmanager
def changing(group, timeout=60.0):
    """Yields the change; what the block raises, or `Group.change` does, leaves the block."""
    begun, ended = queue.SimpleQueue(), queue.SimpleQueue()

    def decide(change):
        begun.put((change, None))
        error = ended.get(timeout=PATIENCE)
        if error is not None:
            raise error

    def run():
        try:
            group.change(decide, timeout)
        except BaseException as error:  # noqa: BLE001 - raised again below
            outcome.append(error)
            begun.put((None, error))

    outcome = []
    thread = threading.Thread(target=run)
    thread.start()
    change, failure = begun.get(timeout=PATIENCE)
    if failure is None:
        try:
            yield change
        except BaseException as error:
            ended.put(error)
            thread.join(PATIENCE)
            raise
        ended.put(None)
    thread.join(PATIENCE)
    if outcome:
        raise outcome[0]
