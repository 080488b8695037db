"""What tests of transactions share: logs of chosen boots, children that die on the way, and what a power loss takes."""

import contextlib
import os
import signal
import traceback
from pathlib import Path

from pystreamlog import TopicPartition
from pystreamlog.coordination.names import encoded_id
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.storage.files import File
from pystreamlog.storage.format import segment_name

BOOTS = [b"boot-one-16-byte", b"boot-two-16-byte", b"boot-3---16-byte", b"boot-4---16-byte"]
JOURNAL = "transactions/journal"


def opened(path, boot=0, **options):
    """The log at `path`, as a process of that boot of the machine sees it."""
    return EmbeddedLog(str(path), boot=lambda: BOOTS[boot], **options)


def stored(log, topic="out"):
    """The payloads of a topic."""
    return [record.value for record in log.topic(topic).read()]


def ends(log, topic="out"):
    """The ends of a topic's partitions."""
    return list(log.topic(topic).end_offsets().values())


def committed(log, partition=0, *, topic="in", group_id="g"):
    """What a group has committed in a partition."""
    tp = TopicPartition(topic, partition)
    with log.consumer(group_id=group_id) as consumer:
        found = consumer.committed(tp)[tp]
    return None if found is None else found.offset


def commit(log, *sends, offsets=None, group_id="g", **config):
    """One transaction: (topic, partition, value) are sent, and offsets by partition of "in" are committed."""
    with log.producer(**config) as producer, log.consumer(group_id=group_id) as consumer, producer.transaction():
        for topic, partition, value in sends:
            producer.send(topic, value, partition=partition)
        if offsets:
            by_tp = {TopicPartition("in", number): offset for number, offset in offsets.items()}
            producer.send_offsets_to_transaction(by_tp, consumer.group_metadata())


def position(log, folder):
    """Where a partition ends: base offset of the segment, and position in it."""
    if folder == JOURNAL:
        log._transactions._journal.ensure()
        writer = log._transactions._journal.writer
    else:
        _, topic, number = folder.split("/")
        writer = log._partitions.writer(log._topics.find(topic), int(number))
    writer.ensure()
    end = writer._control.published()
    return end.segment_base, end.end_position


def lose(path, folder, place):
    """A power loss takes what a partition has from a place on: zeros are left, and no later segment."""
    base, start = place
    for later in Path(path, folder).glob("*.log"):
        if int(later.stem) > base:
            later.unlink()
    name = Path(path, folder, segment_name(base))
    size = name.stat().st_size
    with name.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size - start))


def lose_group_control(path, group_id="g"):
    """... or the page with what a group's control file says of a transaction."""
    with Path(path, "groups", encoded_id(group_id), "control").open("r+b") as file:
        file.seek(256)
        file.write(bytes(24))


def die(*_, **__):
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Run `work` in a forked child: how it ended, as a return code."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - told by the return code
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def writes(monkeypatch, act):
    """Have `act(number, call, *arguments)` called for every write into a file, numbered from 0."""
    count = 0

    def patched(real):
        def write(self, *arguments):
            nonlocal count
            number, count = count, count + 1
            return act(number, lambda: real(self, *arguments))

        return write

    with monkeypatch.context() as patch:
        patch.setattr(File, "pwrite", patched(File.pwrite))
        patch.setattr(File, "pwritev", patched(File.pwritev))
        yield
