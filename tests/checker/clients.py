"""The processes of a run: producers, members of a group, readers that assign; each writes down what it does and sees.

Started as `python -m tests.checker.clients SETTINGS`, with the `Settings` as JSON. Orders come in on standard input, a
word a line: `drain` (nobody sends any more: say what you have read to its end), `stop` (end in good order) and `die`
(be killed in the middle of the next operation); the end of that input means that whoever gives them is gone. Standard
output says, after `drain`, which keys were read to their end, a JSON list a line. An exception that is not expected
ends the process with its traceback: that is a finding.

To add a kind of client, subclass `_Client` and put it into `_ROLES`; `copier` is one that copies in transactions.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec

import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.errors import (
    CommitFailedError,
    DeliveryTimeoutError,
    LockTimeoutError,
    RebalanceInProgressError,
    RecordTooLargeError,
    WakeupError,
)

from .history import Client, Recorder, runs

__all__ = ["GROUP", "MAX_MESSAGE_BYTES", "Settings", "key_of"]

GROUP = "g"
MAX_MESSAGE_BYTES = 4096

_VALUE = struct.Struct("<q")
_TOO_MANY_BYTES = bytes(MAX_MESSAGE_BYTES + 1)


class Settings(msgspec.Struct, kw_only=True):
    """What a process is told at its start.

    Attributes:
        client: What it writes into its first line.
        seed: Of its random choices.
        log: The log's directory.
        history: Where its file is to lie.
        topics: Partitions by topic.
        outputs: Partitions by topic that copiers write to, for them and for readers, who look how far these go.
        pause: Seconds between two operations, on average.
        drain: Whether everything has been sent already.
    """

    client: Client
    seed: int
    log: str
    history: str
    topics: dict[str, int]
    outputs: dict[str, int] = {}
    pause: float = 0.01
    drain: bool = False


def key_of(tp: TopicPartition) -> str:
    """A topic-partition, as histories name it."""
    return f"{tp.topic}/{tp.partition}"


class _Client:
    """What all have: a log, a file, random choices, and orders to listen to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = settings.client
        self._random = random.Random(settings.seed)
        self._tps = [TopicPartition(name, n) for name, count in settings.topics.items() for n in range(count)]
        self._draining = settings.drain
        path = Path(settings.history, f"{settings.client.process:04}-{settings.client.role}.jsonl")
        self._recorder = Recorder(path, settings.client)
        self._stopped = False
        self._dying = False

    def run(self) -> None:
        """Work until it is told to stop."""
        with pystreamlog.open(self._settings.log, create=False) as log:
            self._work(log)

    def _work(self, log: Any) -> None:
        raise NotImplementedError

    def _go_on(self, pause: float = 0.0) -> bool:
        """Whether there is more to do; waits about so many seconds for orders."""
        if self._dying:
            return True
        if select.select([sys.stdin], [], [], pause * self._random.uniform(0.2, 1.8))[0]:
            words = os.read(sys.stdin.fileno(), 4096).split()
            if not words:
                raise SystemExit(1)
            self._draining |= b"drain" in words
            self._stopped |= b"stop" in words
            if b"die" in words:
                self._dying = True
                threading.Timer(self._random.uniform(0, 0.005), os.kill, (os.getpid(), signal.SIGKILL)).start()
        return not self._stopped


class _Producer(_Client):
    """Sends numbered values, one operation after the other."""

    _number = 0

    def _work(self, log: Any) -> None:
        choose = self._random.choice
        with log.producer(
            linger_ms=choose([0, 2, 20]),
            batch_size=choose([300, 2000, 1 << 20]),
            compression_type=choose(["none", "gzip:1"]),
            delivery_timeout_ms=20_000,
            max_block_ms=20_000,
        ) as producer:
            while self._go_on(self._settings.pause):
                self._send(producer)

    def _values(self, count: int) -> list[int]:
        first = self._client.process << 32 | self._number
        self._number += count
        return list(range(first, first + count))

    def _payload(self, value: int) -> bytes:
        return _VALUE.pack(value) + bytes(self._random.randrange(60))

    def _send(self, producer: Any) -> None:
        chance = self._random.random()
        with self._judged():
            if chance < 0.02:
                self._send_too_much(producer)
            elif chance < 0.6:
                self._send_one_by_one(producer, self._random.sample(self._tps, 1), 1)
            elif chance < 0.8:
                self._send_many(producer)
            else:
                tps = self._random.sample(self._tps, min(len(self._tps), 3))
                self._send_one_by_one(producer, tps, self._random.randint(1, 5))

    @contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except RecordTooLargeError:
            self._recorder.complete("fail")
        except (DeliveryTimeoutError, LockTimeoutError):
            self._recorder.complete("info")

    def _send_too_much(self, producer: Any) -> None:
        tp = self._random.choice(self._tps)
        (value,) = self._values(1)
        self._recorder.invoke("send", sends={key_of(tp): [value]})
        payload = _VALUE.pack(value) + _TOO_MANY_BYTES
        offset = producer.send(tp.topic, payload, partition=tp.partition).result().offset
        self._recorder.complete("ok", at={key_of(tp): [offset]})

    def _send_many(self, producer: Any) -> None:
        tp = self._random.choice(self._tps)
        values = self._values(self._random.randint(2, 25))
        self._recorder.invoke("send", sends={key_of(tp): values})
        sent = producer.send_many(tp.topic, [self._payload(value) for value in values], partition=tp.partition)
        self._recorder.complete("ok", at={key_of(tp): list(sent.result().offsets)})

    def _send_one_by_one(self, producer: Any, tps: Sequence[TopicPartition], count: int) -> None:
        values = {tp: self._values(count) for tp in tps}
        self._recorder.invoke("send", sends={key_of(tp): mine for tp, mine in values.items()})
        turns = [(tp, mine[n]) for n in range(count) for tp, mine in values.items()]
        sent = [(tp, producer.send(tp.topic, self._payload(value), partition=tp.partition)) for tp, value in turns]
        at = defaultdict(list)
        for tp, delivery in sent:
            at[key_of(tp)].append(delivery.result().offset)
        self._recorder.complete("ok", at=at)


class _Reading(_Client):
    """Polls; remembers what it was handed last."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._handed: dict[TopicPartition, int] = {}
        self._told: set[str] = set()

    def _poll(self, consumer: Any, timeout: float) -> bool:
        """One poll; whether it handed out anything."""
        self._recorder.invoke("poll")
        try:
            records = consumer.poll(timeout, max_records=self._random.choice([None, None, 1, 7, 50]))
        except WakeupError:  # of a loop that ended by itself just before
            self._recorder.complete("fail")
            return False
        except LockTimeoutError:
            self._recorder.complete("info")
            return False
        reads = {}
        for tp, mine in records.by_partition().items():
            reads[key_of(tp)] = runs(mine.offsets, [_VALUE.unpack_from(value)[0] for value in mine.values])
            self._handed[tp] = mine.offsets[-1] + 1
        self._recorder.complete("ok", reads=reads)
        return bool(records)

    def _tell(self, consumer: Any) -> None:
        """Say what was read to its end."""
        if self._draining:
            ends = {key_of(tp) for tp, lag in consumer.lag().items() if not lag}
            if ends - self._told:
                self._told |= ends
                os.write(sys.stdout.fileno(), msgspec.json.encode(sorted(ends)) + b"\n")


class _Reader(_Reading):
    """Assigns itself all partitions; seeks, drops one and takes it again now and then."""

    def _work(self, log: Any) -> None:
        with log.consumer(auto_offset_reset="earliest", max_poll_records=200) as consumer:
            self._assign(consumer, self._tps)
            while self._go_on(0 if self._draining else self._settings.pause):
                self._poll(consumer, self._random.choice([0, 0.2]))
                self._tell(consumer)
                if self._settings.outputs and self._random.random() < 0.7:
                    self._look(consumer)
                if not self._draining and self._handed and self._random.random() < 0.01:
                    self._move(consumer)

    def _assign(self, consumer: Any, tps: Iterable[TopicPartition]) -> None:
        tps = list(tps)
        self._recorder.invoke("assign", keys=[key_of(tp) for tp in tps])
        consumer.assign(tps)
        self._recorder.complete("ok")

    def _look(self, consumer: Any) -> None:
        """See how far the outputs go."""
        outputs = [TopicPartition(name, n) for name, count in self._settings.outputs.items() for n in range(count)]
        self._random.shuffle(outputs)
        self._recorder.invoke("look")
        ends = consumer.end_offsets(outputs)
        self._recorder.complete("ok", ends={key_of(tp): end for tp, end in ends.items()})

    def _move(self, consumer: Any) -> None:
        tp = self._random.choice(sorted(self._handed))
        offset = self._handed[tp]
        if self._random.random() < 0.3:
            self._assign(consumer, (other for other in self._tps if other != tp))
            self._assign(consumer, self._tps)
        else:
            offset = max(0, offset - self._random.randrange(100))
        self._recorder.invoke("seek", offsets={key_of(tp): offset})
        consumer.seek(tp, offset)
        self._recorder.complete("ok", offsets={key_of(tp): offset})


class _Member(_Reading):
    """Polls or loops as a member of the group, and commits by hand now and then."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._held: set[TopicPartition] = set()

    def _work(self, log: Any) -> None:
        client = self._client
        keys = [key_of(tp) for tp in self._tps]
        self._recorder.invoke("subscribe", keys=keys)
        consumer = log.consumer(
            *self._settings.topics,
            group_id=client.group,
            group_instance_id=client.static or None,
            auto_offset_reset="earliest",
            enable_auto_commit=client.auto_commit,
            auto_commit_interval_ms=self._random.choice([50, 300]),
            max_poll_records=self._random.choice([20, 200]),
            max_poll_interval_ms=client.max_poll_interval_ms,
            session_timeout_ms=client.max_poll_interval_ms,
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )
        self._recorder.complete("ok")
        while self._go_on(self._settings.pause):
            if self._random.random() < 0.2:
                self._loop(consumer)
            else:
                self._poll(consumer, self._random.choice([0.0, 0.05, 0.2]))
            self._tell(consumer)
            chance = self._random.random()
            if chance < (0.1 if client.auto_commit else 0.4):
                self._commit(consumer)
            if chance < 0.2:
                self._look(consumer)
        self._recorder.invoke("close")
        if self._random.random() < 0.5:
            consumer.close()
        else:
            consumer.close(commit=True)
        self._recorder.complete("ok")

    def _loop(self, consumer: Any) -> None:
        """Some steps of `for record in consumer`, each an operation; `wakeup` ends them if nothing comes."""
        timer = threading.Timer(0.2, consumer.wakeup)
        timer.start()
        for _ in range(self._random.randint(1, 15)):
            self._recorder.invoke("poll", how="next")
            try:
                record = next(consumer, None)
            except LockTimeoutError:
                self._recorder.complete("info")
                break
            if record is None:
                self._recorder.complete("ok")
                break
            tp = TopicPartition(record.topic, record.partition)
            self._handed[tp] = record.offset + 1
            self._recorder.complete("ok", reads={key_of(tp): [[record.offset, _VALUE.unpack_from(record.value)[0]]]})
        timer.cancel()
        timer.join()

    def _commit(self, consumer: Any) -> None:
        """All that was handed out, or a part of it."""
        offsets = {tp: offset for tp, offset in self._handed.items() if tp in self._held}
        if not offsets:
            return
        some = self._random.random() < 0.4
        if some:
            tp = self._random.choice(sorted(offsets))
            offsets = {tp: offsets[tp]}
        self._recorder.invoke("commit", offsets={key_of(tp): offset for tp, offset in offsets.items()})
        try:
            consumer.commit(offsets if some else None)
        except CommitFailedError:
            kind = "fail"
        except (LockTimeoutError, RebalanceInProgressError):
            kind = "info"
        else:
            kind = "ok"
        self._recorder.complete(kind, offsets={key_of(tp): offset for tp, offset in offsets.items()})

    def _look(self, consumer: Any) -> None:
        tps = sorted(self._held)
        if tps:
            self._recorder.invoke("committed")
            try:
                found = _offsets(consumer.committed(*tps))
            except LockTimeoutError:
                self._recorder.complete("fail")
            else:
                self._recorder.complete("ok", offsets=found)

    # --- callbacks: inside a poll, or the close

    def _assigned(self, consumer: Any, added: Sequence[TopicPartition]) -> None:
        since = monotonic_ns()
        try:
            found = _offsets(consumer.committed(*added))
        except LockTimeoutError:
            found = {}
        self._held.update(added)
        self._recorder.event("assign", since=since, keys=[key_of(tp) for tp in added], offsets=found)

    def _revoked(self, consumer: Any, removed: Sequence[TopicPartition]) -> None:
        since = monotonic_ns()
        offsets = {key_of(tp): offset for tp, offset in self._handed.items() if tp in self._held}
        if offsets and self._random.random() < 0.4:
            try:
                consumer.commit()
            except (CommitFailedError, LockTimeoutError, RebalanceInProgressError):
                pass
            else:
                self._recorder.event("commit", since=since, offsets=offsets)
        self._forget(removed)
        self._recorder.event("revoke", since=since, keys=[key_of(tp) for tp in removed])

    def _lost(self, consumer: Any, lost: Sequence[TopicPartition]) -> None:
        self._forget(lost)
        self._recorder.event("lost", keys=[key_of(tp) for tp in lost])

    def _forget(self, tps: Iterable[TopicPartition]) -> None:
        self._held.difference_update(tps)
        for tp in tps:
            self._handed.pop(tp, None)


def _offsets(committed: dict[TopicPartition, Any]) -> dict[str, int | None]:
    return {key_of(tp): None if found is None else found.offset for tp, found in committed.items()}


_ROLES = {"producer": _Producer, "reader": _Reader, "member": _Member}


def _main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    _ROLES[settings.client.role](settings).run()


if __name__ == "__main__":
    _main()
