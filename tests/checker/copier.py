"""A copier: a process that reads as a member of a group and writes what it read elsewhere, in transactions.

Started as `python -m tests.checker.copier SETTINGS`, with the `Settings` and the orders of `clients`. Each copy has a
value of its own, as one that was aborted is tried again; `origins` say of what it is a copy. A record goes to the
output whose number is its value's, so that transactions lie across partitions. Before it commits, the copier may look
whether anything of its transaction is visible; it gives up some on purpose.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import defaultdict
from collections.abc import Sequence
from time import monotonic_ns, sleep
from typing import Any

import msgspec

from pystreamlog import TopicPartition
from pystreamlog.errors import CommitFailedError, FencedError, LockTimeoutError, RebalanceInProgressError

from .clients import Settings, _Client, _offsets, key_of
from .history import runs

__all__ = ["COPIERS"]

COPIERS = "copiers"
"""The name of their group."""

_VALUE = struct.Struct("<q")
_ABORTED = 0.2
_WATCHED = 0.5
_SLOW = 0.1


class _GivenUpError(Exception):
    """The copier aborts on purpose."""


class _Copier(_Client):
    """Copies, one transaction after the other."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._held: set[TopicPartition] = set()
        self._told: set[str] = set()
        self._number = 0
        self._outputs = [TopicPartition(name, n) for name, count in settings.outputs.items() for n in range(count)]

    def _work(self, log: Any) -> None:
        client, choose = self._client, self._random.choice
        self._recorder.invoke("subscribe", keys=[key_of(tp) for tp in self._tps])
        consumer = log.consumer(
            *self._settings.topics,
            group_id=client.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=choose([10, 100]),
            max_poll_interval_ms=client.max_poll_interval_ms,
            session_timeout_ms=client.max_poll_interval_ms,
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )
        self._recorder.complete("ok")
        watcher = log.consumer(auto_offset_reset="latest")
        watcher.assign(self._outputs)
        producer = log.producer(
            transactional_id=client.transactional_id or None,
            linger_ms=choose([0, 5]),
            batch_size=choose([100, 1 << 20]),
            compression_type=choose(["none", "gzip:1"]),
            durability=choose(["os", "os", "fsync"]),
            transaction_buffer_bytes=choose([500, 1 << 20, 1 << 20]),
            max_block_ms=20_000,
        )
        fenced = False
        while not fenced and self._go_on(self._settings.pause):
            fenced = self._copy(consumer, producer, watcher)
        self._recorder.invoke("close")
        consumer.close()
        self._recorder.complete("ok")

    def _copy(self, consumer: Any, producer: Any, watcher: Any) -> bool:
        """One transaction; whether a newer copier has the same transactional id."""
        self._recorder.invoke("txn")
        sent: list[tuple[str, Any]] = []
        try:
            with producer.transaction(consumer=consumer):
                values = [value for _ in range(self._random.randint(1, 3)) for value in self._read(consumer)]
                sent = self._send(producer, values)
                if self._random.random() < _WATCHED:
                    reads = _reads(watcher.poll(self._random.choice([0, 0.01])))
                    self._recorder.more(reads=reads, keys=[key_of(tp) for tp in self._outputs])
                if self._random.random() < _SLOW:  # it may be stopped meanwhile, and lose its partitions
                    sleep(self._random.uniform(0, 0.5))
                if self._random.random() < _ABORTED:
                    raise _GivenUpError
        except FencedError:
            self._recorder.complete("fail")
            return True
        except (_GivenUpError, CommitFailedError, LockTimeoutError, RebalanceInProgressError):
            self._recorder.complete("fail")
            return False
        at = defaultdict(list)
        for key, delivery in sent:
            at[key].append(delivery.result(0).offset)
        self._recorder.complete("ok", at=at)
        self._tell(consumer)
        return False

    def _read(self, consumer: Any) -> list[int]:
        records = consumer.poll(self._random.choice([0.0, 0.05, 0.2]), max_records=self._random.choice([None, 1, 20]))
        offsets = {key_of(tp): mine.offsets[-1] + 1 for tp, mine in records.by_partition().items()}
        self._recorder.more(reads=_reads(records), offsets=offsets)
        return [_VALUE.unpack_from(record.value)[0] for record in records]

    def _send(self, producer: Any, values: Sequence[int]) -> list[tuple[str, Any]]:
        """Send copies; their keys and deliveries, in order."""
        sends: dict[str, list[int]] = defaultdict(list)
        origins: dict[str, list[int]] = defaultdict(list)
        placed = []
        for value in values:
            tp, copy = self._outputs[value % len(self._outputs)], self._client.process << 32 | self._number
            self._number += 1
            sends[key_of(tp)].append(copy)
            origins[key_of(tp)].append(value)
            placed.append((tp, copy))
        self._recorder.more(sends=sends, origins=origins)
        sent = []
        for tp, copy in placed:
            sent.append((key_of(tp), producer.send(tp.topic, _VALUE.pack(copy), partition=tp.partition)))
            if self._random.random() < 0.01:
                sleep(self._random.uniform(0, 0.01))
        return sent

    def _tell(self, consumer: Any) -> None:
        """Say what was copied to its end."""
        if self._draining:
            ends = {key_of(tp) for tp, lag in consumer.lag().items() if not lag}
            if ends - self._told:
                self._told |= ends
                os.write(sys.stdout.fileno(), msgspec.json.encode(sorted(ends)) + b"\n")

    # --- callbacks: inside a poll, or the close

    def _assigned(self, consumer: Any, added: Sequence[TopicPartition]) -> None:
        since = monotonic_ns()
        try:
            found = _offsets(consumer.committed(*added))
        except LockTimeoutError:
            found = {}
        self._recorder.event("assign", since=since, keys=[key_of(tp) for tp in added], offsets=found)

    def _revoked(self, _: Any, removed: Sequence[TopicPartition]) -> None:
        self._recorder.event("revoke", keys=[key_of(tp) for tp in removed])

    def _lost(self, _: Any, lost: Sequence[TopicPartition]) -> None:
        self._recorder.event("lost", keys=[key_of(tp) for tp in lost])


def _reads(records: Any) -> dict[str, list[list[int]]]:
    return {
        key_of(tp): runs(mine.offsets, [_VALUE.unpack_from(value)[0] for value in mine.values])
        for tp, mine in records.by_partition().items()
    }


if __name__ == "__main__":
    _Copier(msgspec.json.decode(sys.argv[1], type=Settings)).run()
