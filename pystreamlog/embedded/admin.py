"""The admin of a directory."""

from __future__ import annotations

from collections.abc import Iterable

from pystreamlog.backend.administration import (
    ClusterDescription,
    LogDirDescription,
    Node,
    ReplicaInfo,
    TransactionDescription,
    TransactionListing,
    TransactionState,
)
from pystreamlog.coordination.holders import host_name
from pystreamlog.coordination.names import check_text
from pystreamlog.coordination.transactional_ids import IdState, listed_ids, read_id
from pystreamlog.embedded.admin_groups import GroupAdmin
from pystreamlog.embedded.admin_topics import TopicAdmin
from pystreamlog.embedded.attempts import Attempts, items
from pystreamlog.errors import ConfigError, NotSupportedError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["EmbeddedAdmin"]

_LOCK_TIMEOUT = 60.0


class EmbeddedAdmin(TopicAdmin, GroupAdmin):
    """See `Admin`."""

    __slots__ = ()

    # --- transactions

    def list_transactions(
        self, *, states: TransactionState | Iterable[TransactionState] | None = None
    ) -> list[TransactionListing]:
        """See `Admin.list_transactions`."""
        self._context.check_open()
        wanted = None if states is None else items(states)
        found = []
        with Attempts("list_transactions") as attempts:
            for text in listed_ids(self._context.files):
                with attempts.about(transactional_id=text):
                    state = _state(self._read_id(text))
                    if wanted is None or state in wanted:
                        found.append(TransactionListing(text, state))
        return found

    def describe_transactions(self, transactional_ids: str | Iterable[str]) -> dict[str, TransactionDescription]:
        """See `Admin.describe_transactions`."""
        self._context.check_open()
        found = {}
        with Attempts("describe_transactions") as attempts:
            for text in items(transactional_ids):
                with attempts.about(transactional_id=text):
                    seen = self._read_id(check_text(text, "transactional_id"))
                    found[text] = TransactionDescription(text, _state(seen), seen.epoch, seen.holder or "")
        return found

    def _read_id(self, text: str) -> IdState:
        try:
            return read_id(self._context.files, self._context.log_id, text)
        except FileNotFoundError as error:
            raise ConfigError(
                f"no producer ever had transactional_id={text!r}: list_transactions() tells which there are"
            ) from error

    def fence_producers(self, transactional_ids: str | Iterable[str]) -> dict[str, int]:
        """See `Admin.fence_producers`."""
        self._changing()
        transactions = self._context.transactions
        transactions.prepare(())
        epochs = {}
        with Attempts("fence_producers") as attempts:
            for text in items(transactional_ids):
                with attempts.about(transactional_id=text):
                    identity = transactions.identity(check_text(text, "transactional_id"))
                    try:
                        identity.take(_LOCK_TIMEOUT)
                        epochs[text] = identity.epoch
                    finally:
                        identity.close()
        return epochs

    def abort_transaction(self, transactional_id: str) -> None:
        """See `Admin.abort_transaction`."""
        self._context.check_open()
        raise NotSupportedError(
            "no transaction can hang in this log: what is not committed is in its producer's memory only, and ends "
            f"with it. To keep its commit out, call fence_producers([{transactional_id!r}])"
        )

    # --- the log

    def describe_log_dirs(self, topics: str | Iterable[str] | None = None) -> dict[str, LogDirDescription]:
        """See `Admin.describe_log_dirs`."""
        context = self._context
        context.check_open()
        sizes = {}
        with Attempts("describe_log_dirs") as attempts:
            for name in context.topics.names() if topics is None else items(topics):
                with attempts.about(topic=name):
                    try:
                        state = context.topics.find_anew(name)
                    except UnknownTopicError:
                        if topics is None:
                            continue  # deleted meanwhile
                        raise
                    for number in range(state.partitions):
                        size = context.files.disk_usage(state.folder(number))
                        sizes[TopicPartition(name, number)] = ReplicaInfo(size)
        total, usable = context.files.space()
        return {context.files.root: LogDirDescription(sizes, total, usable)}

    def describe_cluster(self) -> ClusterDescription:
        """See `Admin.describe_cluster`."""
        self._context.check_open()
        host = Node(0, host_name(), -1)
        return ClusterDescription(self._context.log_id.hex(), host, (host,))


def _state(seen: IdState) -> TransactionState:
    return "Empty" if seen.holder is None else "PrepareCommit"
