"""What the processes of a simulated machine do, and what each promises.

An operation is a function of a `Life`. It notes the step at which it begins, calls the library, and tells the
expectation what was sent and what was promised. To have another one, write it and name it in `OPERATIONS`; what it
promises in a new way becomes a class beside `Line` and `Commits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from time import perf_counter

from pystreamlog.errors import CorruptLogError, StorageError, StreamLogError, UnknownTopicError
from pystreamlog.record.batch import encode_one
from pystreamlog.record.record import TopicPartition
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.format import SEGMENT_HEADER
from pystreamlog.storage.segment import seal_bytes

from .disk import Disk
from .expectation import NEVER, Commit, Commits, Expectation, Finding, Subject, Transaction
from .gaps import is_tombstone, key_of
from .machine import Machine

__all__ = ["OPERATIONS", "SPILLING", "Life", "write_behind_the_end"]

_GROUPS = ("g", "h")
_TOPICS = ("a", "b", "c")
_PARTITIONS = 3
_BROKEN = 0.1
"""In so many of the looks after a power loss a sync fails."""

_CONFIGS = (
    {},
    {},
    {},
    {"cleanup_policy": "compact"},
    {"cleanup_policy": "compact", "delete_retention_ms": 0},
    {"repack": True},
)
"""Of topics."""
_TOMBSTONES = 0.15
"""So many of the records of a compacted topic."""

SPILLING = True
"""Whether some transactions are larger than their producer's memory."""


class Life:
    """A machine with processes on it, and what is expected of it.

    Attributes:
        machine: The machine.
        expected: What was sent and promised so far.
        dice: Decides.
        acks: Steps at which something was promised.
        said: What was done, in words.
        seconds: How long reading everything took at first, recoveries included.
        found: How many records were there then, and how many of them were promised.
        is_fresh: It began with a power loss.
        is_cut: It began with a process killed in the middle of a write. No kernel does that to a slot; but if one did,
            who opens the partition to append would look behind the slot, and only then its end would be certain.
    """

    def __init__(
        self,
        home: str,
        disk: Disk,
        boot: int,
        expected: Expectation,
        dice: Random,
        *,
        is_fresh: bool = True,
        is_cut: bool = False,
        folder: str = "",
    ) -> None:
        self.is_fresh = is_fresh
        self.is_cut = is_cut
        self.machine = Machine(home, disk, boot.to_bytes(16, "big"), folder)
        self.expected = expected
        self.dice = dice
        self.acks: list[int] = []
        self.said: list[str] = []
        self.seconds = 0.0
        self.found = (0, 0)
        self._logs: list = []
        self._producers: dict = {}
        self._topics: dict = {}

    @property
    def log(self):
        """A process: the only one, or one of two."""
        if not self._logs:
            self._logs.append(self.machine.open())
        return self.dice.choice(self._logs)

    def reopen(self, **options) -> None:
        """End all processes and begin another; sometimes two."""
        for log in self._logs:
            log.close()
        self._topics.clear()
        self._producers.clear()
        self.machine.rolled.clear()
        self._logs = [self.machine.open(**options)]
        if self.dice.random() < 0.3:
            self._logs.append(self.machine.open(**options))

    def topic(self, log, name: str):
        """A topic, as one process knows it."""
        key = (log, name)
        if key not in self._topics:
            self._topics[key] = log.topic(name)
        return self._topics[key]

    def forget(self, name: str) -> None:
        """A topic was deleted."""
        self._topics = {key: topic for key, topic in self._topics.items() if key[1] != name}

    def producer(self, log, durability: str):
        """A producer of a process."""
        key = (log, durability)
        if key not in self._producers:
            self._producers[key] = log.producer(durability=durability, linger_ms=0)
        return self._producers[key]

    def transactional_producer(self, log, durability: str):
        """A producer of a process for transactions; half of them with an id."""
        key = (log, durability, "transactions")
        if key not in self._producers:
            name = f"t{self._logs.index(log)}-{durability}" if self.dice.random() < 0.5 else None
            spilling = {"transaction_buffer_bytes": 500} if SPILLING and self.dice.random() < 0.3 else {}
            self._producers[key] = log.producer(durability=durability, transactional_id=name, **spilling)
        return self._producers[key]

    def values(self, count: int, subject: Subject) -> list[bytes]:
        """New records, which no other is like and of which no part is zeros; for a compacted topic some tombstones."""
        made = []
        for _ in range(count):
            token = b"%d;" % self.expected.number()
            if subject.compacts and self.dice.random() < _TOMBSTONES:
                made.append(b"-" + token)
                continue
            size = self.dice.choice((1, 20, 100, 400, 1500)) if self.dice.random() < 0.95 else 5000
            made.append((token * (size // len(token) + 1))[: max(size, len(token))])
        return made

    def subjects(self) -> list[Subject]:
        """The topics that can be written."""
        return [one for one in self.expected.subjects if one.deleted is None]

    def subject(self) -> Subject:
        """One of them; made when there is none."""
        if not self.subjects():
            create(self)
        return self.dice.choice(self.subjects())

    def promise(self) -> int:
        """Something is promised now: the step."""
        self.acks.append(self.machine.now)
        return self.machine.now

    # --- looking

    def look(self) -> None:
        """Read all there is, recovering what needs it.

        Raises:
            Finding: A promise was not kept.
        """
        begun = perf_counter()
        broken = self._break_a_segment()
        try:
            if broken:
                self._look_in_vain()
            self._look()
        except CorruptLogError as error:
            raise Finding("refused", f"{error}") from error
        except UnknownTopicError as error:
            raise Finding("topic", f"{error}") from error
        except StreamLogError as error:
            raise Finding("failed", f"{type(error).__name__}: {error}") from error
        self.seconds = perf_counter() - begun

    def _break_a_segment(self) -> bool:
        """Have a sync of a recovery fail, sometimes; whether one may."""
        if not self.is_fresh or self.dice.random() > _BROKEN or not self.expected.subjects:
            return False
        name, number = self.dice.choice([*self.expected.subjects]).name, self.dice.randrange(_PARTITIONS)
        folder = self.dice.choice([f"topics/{name}/{number}", "transactions/journal"])
        return self.machine.break_file(folder, ".log")

    def _look_in_vain(self) -> None:
        """Look at everything on a disk that fails; then have all processes end."""
        with suppress(StorageError, ExceptionGroup):
            for name in self.log.topics():
                for number in range(self.log.topic(name).partitions):
                    read_all(self.log.topic(name), number)
        self.machine.recorder.failing.clear()
        with suppress(StorageError, ExceptionGroup):
            self.reopen()

    def _look(self) -> None:
        log = self.log
        self._look_at_slots(log)
        there = {log._topics.find(name).id: name for name in log.topics()}
        left = []
        for subject in self.expected.subjects:
            if there.pop(subject.id, None) is not None:
                left.append(subject)
            else:
                subject.gone()
        if there:
            raise Finding("topic", f"topics {sorted(there.values())} are there, which were deleted or never made")
        self.expected.subjects = left
        records = promised = 0
        for subject in self.subjects():
            topic = self.topic(log, subject.name)
            subject.found(topic.partitions)
            for number in self.dice.sample(range(topic.partitions), topic.partitions):
                line = subject.line(number)
                writer = log._partitions.writer(log._topics.find(subject.name), number)
                if self.is_cut and writer.folder.exists():
                    writer.ensure()
                line.found(*read_all(topic, number), self.machine.now)
                records, promised = records + len(line.sent), promised + line.present
            check_ends(subject, topic)
        self.found = (records, promised)
        for group in _GROUPS:
            self._look_at_commits(log, group)
        self.expected.check_transactions(self.machine.now, recovered=self.is_fresh)

    def _look_at_slots(self, log) -> None:
        """Whoever is killed leaves an end to go on from: nothing is to be recovered."""
        for subject in self.subjects():
            for number, line in subject.lines.items():
                if line.is_published:
                    folder = log._partitions.writer(log._topics.find(subject.name), number).folder
                    control = folder.open_control(write=False)
                    try:
                        if control.published() is None:
                            raise Finding("slots", f"{folder.path} has no published end that is valid")
                    finally:
                        control.close()

    def _look_at_commits(self, log, group: str) -> None:
        there = {subject.id: subject for subject in self.subjects()}
        known = {
            TopicPartition(there[topic_id].name, number): commits
            for (name, topic_id, number), commits in self.expected.commits.items()
            if name == group and topic_id in there and number < there[topic_id].count
        }
        if known:
            lengths = {
                (one.name, number): len(line.sent) for one in there.values() for number, line in one.lines.items()
            }
            with log.consumer(group_id=group, enable_auto_commit=False) as consumer:
                consumer.assign(known)
                for tp, found in consumer.committed(*known).items():
                    try:
                        known[tp].found(None if found is None else found.offset, lengths.get(tp, 0), self.machine.now)
                    except Finding as finding:
                        raise Finding(finding.kind, f"{group} in {tp.topic}/{tp.partition}: {finding}") from None

    def look_again(self) -> None:
        """What was read stays, and what is appended follows it."""
        for subject in self.subjects():
            topic = self.topic(self.log, subject.name)
            for number, line in subject.lines.items():
                append(self, subject, number)
                line.found(*read_all(topic, number), self.machine.now)
        for group in _GROUPS:
            self._look_at_commits(self.log, group)


def read(topic, partition: int) -> list[bytes]:
    """All values of a partition.

    Raises:
        Finding: Their offsets are not 0, 1, 2 and so on.
    """
    start, end, records = read_all(topic, partition)
    if start or len(records) < end:
        raise Finding("hole", f"{len(records)} records from {start} to {end}")
    return list(records.values())


def read_all(topic, partition: int) -> tuple[int, int, dict[int, bytes]]:
    """Where a partition starts and ends, and all its records by offset.

    Raises:
        Finding: Their offsets do not rise, or lie elsewhere; or a key is not that of its record.
    """
    start = topic.beginning_offsets()[partition]
    found = list(topic.read(partition=partition))
    end = topic.end_offsets()[partition]
    offsets = [record.offset for record in found]
    if offsets != sorted(set(offsets)) or not all(start <= offset < end for offset in offsets):
        raise Finding("hole", f"{len(offsets)} records of offsets {offsets}, from {start} to {end}")
    records = {
        record.offset: b"-%d;" % record.timestamp_ms if record.value is None else record.value for record in found
    }
    if any(record.key is not None and record.key != key_of(records[record.offset]) for record in found):
        raise Finding("invented", f"a key is not that of its record: {found}")
    return start, end, records


def columns_of(
    subject: Subject, records: list[bytes]
) -> tuple[list[bytes | None], list[bytes] | None, int | list[int]]:
    """The values, keys and timestamps of records as a topic gets them; what stands for a tombstone has its number."""
    if not subject.compacts:
        return list(records), None, 1
    values = [None if is_tombstone(each) else each for each in records]
    return (
        values,
        [key_of(each) for each in records],
        [int(each[1:-1]) if is_tombstone(each) else 1 for each in records],
    )


def check_ends(subject: Subject, topic) -> None:
    """The ends are where the records end.

    Raises:
        Finding: They are not.
    """
    for number, end in topic.end_offsets().items():
        if end != len(subject.line(number).sent):
            raise Finding("hole", f"{len(subject.line(number).sent)} records, where {end} is the end")


# --- what is done -----------------------------------------------------------------------------------------------------


def append(life: Life, subject: Subject | None = None, partition: int | None = None, log=None) -> None:
    """One record by `Topic.append`."""
    subject = subject or life.subject()
    partition = life.dice.randrange(subject.count) if partition is None else partition
    durability = life.dice.choice(("os", "os", "fsync"))
    values = life.values(1, subject)
    line, topic = subject.line(partition), life.topic(log or life.log, subject.name)
    life.said.append(f"append {len(values[0])} bytes to {subject.name}/{partition}, {durability}")
    expected = len(line.sent)
    line.send(values, life.machine.now)
    metadata = _append_one(topic, subject, values[0], partition=partition, durability=durability)
    if metadata.offset != expected:
        raise Finding("lost", f"appended at offset {metadata.offset} instead of {expected}")
    line.acknowledge(life.promise(), synced=durability == "fsync")


def _append_one(topic, subject: Subject, record: bytes, *, partition: int, durability: str):
    (value,), keys, stamps = columns_of(subject, [record])
    key, stamp = (None, stamps) if keys is None else (keys[0], stamps[0])
    return topic.append(value, key, partition=partition, timestamp_ms=stamp, durability=durability)


def send(life: Life) -> None:
    """A batch by a producer."""
    subject = life.subject()
    partition = life.dice.randrange(subject.count)
    durability = life.dice.choice(("os", "os", "fsync"))
    values = life.values(life.dice.randint(1, 6), subject)
    line, producer = subject.line(partition), life.producer(life.log, durability)
    life.said.append(f"send {len(values)} records to {subject.name}/{partition}, {durability}")
    expected = len(line.sent)
    line.send(values, life.machine.now)
    columns, keys, stamps = columns_of(subject, values)
    deliveries = producer.send_many(subject.name, columns, keys, partition=partition, timestamps_ms=stamps)
    producer.flush()
    offsets = list(deliveries.result().offsets)
    if offsets != list(range(expected, expected + len(values))):
        raise Finding("lost", f"sent to offsets {offsets} instead of {expected} and on")
    line.acknowledge(life.promise(), synced=durability == "fsync")


def create(life: Life, configs: Sequence[dict[str, object]] = _CONFIGS) -> None:
    """Make a topic, of small segments."""
    now = life.machine.now
    names = {one.name for one in life.expected.subjects if one.deleted is None or one.deleted[1] > now}
    free = [name for name in _TOPICS if name not in names]
    if not free:
        return
    name, count = life.dice.choice(free), life.dice.randint(1, 2)
    life.said.append(f"create {name} with {count} partitions")
    began = life.machine.now
    config = life.dice.choice(configs)
    subject = Subject(
        name,
        b"",
        (began, NEVER),
        count,
        compacts="cleanup_policy" in config,
        forgets="delete_retention_ms" in config,
    )
    life.said[-1] += f", {config}"
    log = life.log
    log.create_topic(name, partitions=count, segment_bytes=4096, **config)
    subject.id = log._topics.find(name).id
    subject.made = (began, life.promise())
    subject._settled = subject.made[1]
    subject.counts = [(*subject.made, count)]
    life.expected.subjects.append(subject)


def delete(life: Life) -> None:
    """Delete a topic; rarely, but always one whose deletion was cut short."""
    begun = [one for one in life.expected.subjects if one.deleted is not None and one.deleted[1] > life.machine.now]
    if not begun and life.dice.random() < 0.8:
        return
    subject = begun[0] if begun else life.subject()
    life.said.append(f"delete {subject.name}")
    began = life.machine.now
    subject.deleted = (began, NEVER)
    life.forget(subject.name)
    for log in life._logs:
        log._topics.forget(subject.name)
    life.log.delete_topic(subject.name)
    subject.deleted = (began, life.promise())
    for log in life._logs:
        log._topics.forget(subject.name)
    life._producers.clear()


def add_partitions(life: Life) -> None:
    """Give a topic one partition more."""
    subject = life.subject()
    if subject.count >= _PARTITIONS:
        return
    life.said.append(f"add a partition to {subject.name}")
    began, count = life.machine.now, subject.count + 1
    life.topic(life.log, subject.name).add_partitions(count)
    subject.counts.append((began, life.promise(), count))
    for log in life._logs:
        log._topics.forget(subject.name)
    life._producers.clear()


def commit(life: Life) -> None:
    """Commit an offset for a group."""
    subject = life.subject()
    group, partition = life.dice.choice(_GROUPS), life.dice.randrange(subject.count)
    offset = life.dice.randint(0, len(subject.line(partition).sent))
    offset = max(offset, life.dice.randint(0, len(subject.line(partition).sent)))
    life.said.append(f"commit {offset} of {subject.name}/{partition} for {group}")
    key = (group, subject.id, partition)
    commits = life.expected.commits.setdefault(key, Commits(fresh=False))
    made = commits.begin(life.machine.now, offset, life.expected.number())
    tp = TopicPartition(subject.name, partition)
    with life.log.consumer(group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([tp])
        consumer.commit({tp: offset})
    made.done = life.promise()


def background(life: Life) -> None:
    """Do some of what a thread would do."""
    if life.machine.rolled:
        life.said.append("sync what was rolled")
        life.machine.sync_rolled(life.dice.randint(1, 2))


def reopen(life: Life) -> None:
    """All processes end and others begin, perhaps with a look at everything."""
    always = life.dice.random() < 0.3
    if always:
        heal_journal(life)
    life.said.append("open again" + (", recovering always" if always else ""))
    life.reopen(recover_always=always)


def heal_journal(life: Life) -> None:
    """Use the journal, if there is one: a reader that were first to open a poisoned one would wait for itself."""
    transactions = life.log._transactions
    if transactions._journal.exists():
        transactions.prepare(())


def reread(life: Life) -> None:
    """Read one partition: it must hold what was sent."""
    subject = life.subject()
    partition = life.dice.randrange(subject.count)
    log = life.dice.choice(life._logs)
    subject.line(partition).found(*read_all(log.topic(subject.name), partition), life.machine.now)


def write_unpublished(life: Life) -> None:
    """Die as a process that wrote batches behind the end, and perhaps a seal, and did not come to publish them."""
    subject = life.subject()
    log, partition = life.log, life.dice.randrange(subject.count)
    writer = log._partitions.writer(log._topics.find(subject.name), partition)
    folder = writer.folder
    if not folder.exists():
        return
    with writer.locked(0):
        pass  # as every writer, it first publishes what a transaction of a dead process says
    line = subject.line(partition)
    values = life.values(life.dice.randint(1, 3), subject)
    life.said.append(f"write {len(values)} batches to {subject.name}/{partition}, without publishing them")
    line.send_aside(values, life.machine.now)
    columns, keys, stamps = columns_of(subject, values)
    sealed = life.dice.random() < 0.3
    write_behind_the_end(folder, columns, keys, [stamps] * len(values) if keys is None else stamps, sealed=sealed)


def write_behind_the_end(
    folder: Folder,
    values: Sequence[bytes | None],
    keys: Sequence[bytes] | None = None,
    stamps: Sequence[int] | None = None,
    *,
    sealed: bool = False,
) -> None:
    """Write a batch for each value behind the published end; the last one into a segment of its own if `sealed`."""
    control = folder.open_control(write=True)
    try:
        end, durable = control.published(), control.durable().offset
    finally:
        control.close()
    assert end is not None
    segment = folder.open_segment(end.segment_base, write=True, map_reads=False)
    position, offset, checksum = end.end_position, end.end_offset, end.last_checksum
    for number, value in enumerate(values):
        if sealed and number and number == len(values) - 1:
            made = folder.create_segment(offset, created_ms=1, max_timestamp_before=1)
            seal = seal_bytes(
                segment_id=segment.header.segment_id,
                end_offset=offset,
                position=position,
                last_checksum=checksum,
                max_timestamp=1,
            )
            segment.file.pwrite(seal, position)
            segment.close()
            segment = folder.open_segment(offset, write=True, map_reads=False)
            position, checksum = SEGMENT_HEADER.size, made.checksum
        stamp = 1 if stamps is None else stamps[number]
        batch = encode_one(value, None if keys is None else keys[number], stamp)
        head, checksum = batch.place(offset, segment.header.segment_id, checksum, durable, end.epoch, stamp)
        segment.file.pwritev([head, *batch.parts], batch.size, position)
        position, offset = position + batch.size, offset + 1
    segment.close()


def transact(life: Life) -> None:
    """A transaction over some partitions, perhaps with committed offsets; some are aborted."""
    durability = life.dice.choice(("os", "os", "fsync"))
    log = life.log
    producer = life.transactional_producer(log, durability)
    plan = _Plan(life)
    is_aborted = life.dice.random() < 0.1
    life.said.append(f"{'abort' if is_aborted else 'commit'} a transaction of {plan}, {durability}")
    deliveries = plan.send(log, producer)
    if is_aborted:
        producer.abort_transaction()
        return
    plan.begin()
    producer.commit_transaction()
    plan.acknowledge(life.promise(), synced=durability == "fsync")
    for delivery in deliveries:
        delivery.result()


class _Plan:
    """What a transaction shall do."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.places: dict[tuple[bytes, int], tuple[Subject, int, list[bytes]]] = {}
        for _ in range(life.dice.randint(1, 4)):
            subject = life.subject()
            partition = life.dice.randrange(subject.count)
            self.places[subject.id, partition] = subject, partition, life.values(life.dice.randint(1, 4), subject)
        self._offsets: tuple[str, Subject, int, int] | None = None
        if life.dice.random() < 0.5:
            subject = life.subject()
            partition = life.dice.randrange(subject.count)
            offset = life.dice.randint(0, len(subject.line(partition).sent))
            self._offsets = life.dice.choice(_GROUPS), subject, partition, offset
        self._began = 0
        self._commit: Commit | None = None

    def __str__(self) -> str:
        names = ", ".join(f"{len(values)} to {one.name}/{number}" for one, number, values in self.places.values())
        if self._offsets is None:
            return names
        group, subject, partition, offset = self._offsets
        return f"{names} and offset {offset} of {subject.name}/{partition} for {group}"

    def send(self, log, producer) -> list:
        """Begin, and send everything."""
        producer.begin_transaction()
        deliveries = []
        for subject, number, values in self.places.values():
            for part in (values[:1], values[1:]):
                if part:
                    columns, keys, stamps = columns_of(subject, part)
                    sent = producer.send_many(subject.name, columns, keys, partition=number, timestamps_ms=stamps)
                    deliveries.append(sent)
        if self._offsets is not None:
            group, subject, partition, offset = self._offsets
            tp = TopicPartition(subject.name, partition)
            with log.consumer(group_id=group, enable_auto_commit=False) as consumer:
                consumer.assign([tp])
                producer.send_offsets_to_transaction({tp: offset}, consumer.group_metadata())
        return deliveries

    def begin(self) -> None:
        """It is committed now."""
        expected = self._life.expected
        self._began = self._life.machine.now
        transaction = Transaction(self._began, [], [])
        for subject, number, values in self.places.values():
            line = subject.line(number)
            transaction.parts.append((subject.id, number, len(line.sent), values))
            line.send(values, self._began)
        if self._offsets is not None:
            group, subject, partition, offset = self._offsets
            key = (group, subject.id, partition)
            commits = expected.commits.setdefault(key, Commits(fresh=False))
            self._commit = commits.begin(self._began, offset, expected.number())
            transaction.commits.append((key, self._commit.number))
        expected.transactions.append(transaction)

    def acknowledge(self, step: int, *, synced: bool) -> None:
        """It was committed."""
        for subject, number, _ in self.places.values():
            subject.line(number).acknowledge(step, synced=synced)
        if self._commit is not None:
            self._commit.done = step
            if synced:
                self._commit.synced = step

    def withdraw(self) -> None:
        """It does not count, as far as processes see."""
        for subject, number, values in self.places.values():
            subject.line(number).withdraw(values, self._began)


def fail_to_sync(life: Life) -> None:
    """The disk fails while a record or a transaction is put on it: nothing is accepted until the log is opened anew."""
    subject = life.subject()
    partition = life.dice.randrange(subject.count)
    if life.dice.random() < 0.5:
        _fail_append(life, subject, partition)
    else:
        _fail_transaction(life)
    with suppress(StorageError, ExceptionGroup):
        life.machine.recorder.failing.clear()
        life.reopen()


def _fail_append(life: Life, subject: Subject, partition: int) -> None:
    log = life.log
    append(life, subject, partition, log)  # so that the partition is there, and recovered
    line = subject.line(partition)
    topic, values = life.topic(log, subject.name), life.values(1, subject)
    life.said.append(f"append {len(values[0])} bytes to {subject.name}/{partition}, fsync, on a disk that fails")
    life.machine.break_file(f"topics/{subject.name}/{partition}", ".log")
    line.send(values, life.machine.now)
    try:
        _append_one(topic, subject, values[0], partition=partition, durability="fsync")
    except StorageError as error:
        reason = str(error)
    else:
        if life.machine.recorder.failing:
            return  # it was rolled, and the other segment is synced already
        raise Finding("poison", "a record is acknowledged whose fsync failed")
    for other in life._logs:
        writer = other._partitions._writers.get((subject.id, partition))
        if writer is None or writer._lock is None:
            continue  # it has not opened the partition yet, and copies what is in doubt when it does
        try:
            other.topic(subject.name).append(b"refused", b"key", partition=partition, timestamp_ms=1)
        except StorageError:
            continue
        raise Finding("poison", f"a record is accepted after a failed fsync: {reason}")


def _fail_transaction(life: Life) -> None:
    log, plan = life.log, _Plan(life)
    producer = life.transactional_producer(log, "fsync")
    life.said.append(f"commit a transaction of {plan}, fsync, on a disk that fails")
    plan.send(log, producer)
    log._transactions.prepare(
        [log._partitions.writer(log._topics.find(one.name), number) for one, number, _ in plan.places.values()]
    )
    folders = [f"topics/{subject.name}/{number}" for subject, number, _ in plan.places.values()]
    is_broken = life.machine.break_file(life.dice.choice([*folders, "transactions/journal"]), ".log")
    plan.begin()
    try:
        producer.commit_transaction()
    except StorageError:
        life.machine.recorder.failing.clear()
        with suppress(StorageError, ExceptionGroup):
            life.reopen()
        (subject, number, values), *_ = plan.places.values()
        if values[0] not in read_all(life.topic(life.log, subject.name), number)[2].values():
            plan.withdraw()
    else:
        if life.machine.recorder.failing or not is_broken:
            plan.acknowledge(life.promise(), synced=True)
            return
        raise Finding("poison", "a transaction is acknowledged whose fsync failed")


def send_again(life: Life) -> None:
    """Records with sequences, some of which were sent before: only what is new is written."""
    subject = life.subject()
    partition = life.dice.randrange(subject.count)
    line, log = subject.line(partition), life.log
    durability = life.dice.choice(("os", "fsync"))

    def value(sequence: int) -> bytes:
        return b"q%d;" % sequence + subject.id.hex().encode()

    known = [int(one[1 : one.index(b";")]) for one in line.sent if one.startswith(b"q")]
    last = max(known, default=-1)
    if known != sorted(set(known)):
        raise Finding("twice", f"{subject.name}/{partition} has the sequences {known}")
    first = max(0, last + 1 - life.dice.randint(0, 3))
    sequences = range(first, first + life.dice.randint(1, 6))
    values = [value(sequence) for sequence in sequences if sequence > last]
    life.said.append(f"send {sequences} to {subject.name}/{partition}, {last} was there, {durability}")
    start = len(line.sent)
    line.send(values, life.machine.now)
    with log.producer(durability=durability, linger_ms=0, producer_id="source") as producer:
        columns, keys, _ = columns_of(subject, [value(one) for one in sequences])
        producer.send_many(subject.name, columns, keys, partition=partition, sequences=sequences)
        producer.flush()
    end = life.topic(log, subject.name).end_offsets()[partition]
    if end != start + len(values):
        raise Finding("twice", f"{end - start} records were written where {len(values)} were new")
    line.acknowledge(life.promise(), synced=durability == "fsync")


def delete_records(life: Life) -> None:
    """Delete records of a partition: some of them, rarely all."""
    subject = life.subject()
    partition = life.dice.randrange(subject.count)
    line = subject.line(partition)
    offset = life.dice.randint(0, life.dice.randint(0, len(line.sent)))
    if offset <= line.start:
        return
    life.said.append(f"delete the records below {offset} of {subject.name}/{partition}")
    start = line.delete_below(offset, life.machine.now)
    tp = TopicPartition(subject.name, partition)
    if life.log.admin.delete_records({tp: offset}) != {tp: offset}:
        raise Finding("deleted", f"{tp} starts elsewhere than at {offset}")
    line.deleted(start, life.promise())


def maintain(life: Life) -> None:
    """Compact and repack, all topics or one."""
    subject = life.subject() if life.dice.random() < 0.3 else None
    subjects = life.subjects() if subject is None else [subject]
    life.said.append("maintain" if subject is None else f"maintain {subject.name}")
    lines = [(one, number, one.line(number)) for one in subjects if one.compacts for number in range(one.count)]
    for _, _, line in lines:
        line.gaps.begin(life.machine.now, len(line.sent))
    log = life.log
    report = log.maintain(topics=None if subject is None else [subject.name], force=True)
    step = life.promise()
    for one, number, line in lines:
        line.found(*read_all(life.topic(log, one.name), number), life.machine.now)
        line.gaps.end(step, synced=TopicPartition(one.name, number) in report.compacted)


OPERATIONS: tuple[tuple[Callable[[Life], None], int], ...] = (
    (append, 10),
    (send, 8),
    (commit, 3),
    (background, 3),
    (create, 1),
    (delete, 1),
    (add_partitions, 1),
    (reopen, 1),
    (reread, 1),
    (write_unpublished, 1),
    (transact, 8),
    (send_again, 3),
    (delete_records, 2),
    (maintain, 2),
    (fail_to_sync, 1),
)
"""Every operation, and how often it is chosen."""
