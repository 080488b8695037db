"""Changing what groups are and have committed from outside: deleting a group, setting and deleting its offsets.

No transaction may bring back what these replace. So what the journal says of the group is made durable first: then no
recovery takes it back. What was deleted would be brought forward again by a recovery, which writes what it does not
find; so a group says below which offset the journal concerns it no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from pystreamlog.coordination.committed import Committed
from pystreamlog.coordination.damaged_group import DamagedGroup
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_change import GroupChange
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.groups import Groups, pass_journal, sync_offsets
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.errors import GroupNotEmptyError
from pystreamlog.storage.files import Files

__all__ = ["delete_group", "delete_offsets", "set_offsets"]

T = TypeVar("T")


def delete_group(groups: Groups, transactions: Transactions, group: Group | DamagedGroup) -> str:
    """Delete a group that has no members; the folder that `Groups.remove` must remove.

    Raises:
        CorruptLogError: It names a transaction whose offsets cannot be stored; a `DamagedGroup` can be deleted.
        GroupNotEmptyError: It has members.
        UnknownGroupError: It was deleted meanwhile.
        LockTimeoutError: Another process held the group's lock for a minute.
    """

    def delete(change: GroupChange, _: int) -> str | None:
        return None if change.state.members else groups.put_away(group)

    folder = _when_settled(transactions, group, delete)
    if folder is None:
        raise _not_empty(group.group_id, "be deleted")
    return folder


def set_offsets(
    files: Files, transactions: Transactions, group: Group, offsets: Mapping[PartitionKey, Committed]
) -> None:
    """Commit offsets of a group that has no members; on disk when it returns.

    Raises:
        GroupNotEmptyError: It has members.
        UnknownGroupError, LockTimeoutError: See `delete_group`.
    """

    def put(change: GroupChange, _: int) -> bool:
        if change.state.members:
            return False
        group.store(offsets)
        return True

    if not _when_settled(transactions, group, put):
        raise _not_empty(group.group_id, "get other offsets")
    with suppress(FileNotFoundError):  # somebody has deleted it since
        sync_offsets(files, group.group_id, anew=False, names=False)


def delete_offsets(
    files: Files,
    transactions: Transactions,
    group: Group,
    keys: Collection[PartitionKey],
    is_read: Callable[[GroupChange, PartitionKey], bool],
) -> set[PartitionKey]:
    """Delete what a group has committed in some partitions; on disk when it returns.

    Args:
        files: The door to the log's directory.
        transactions: The log's.
        group: The group.
        keys: The partitions.
        is_read: Tells under the group's lock whether a member subscribes to a partition's topic.

    Returns:
        Those that members read: their offsets stay.

    Raises:
        UnknownGroupError, LockTimeoutError: See `delete_group`.
    """

    def forget(change: GroupChange, journal_offset: int) -> set[PartitionKey]:
        kept = {key for key in keys if is_read(change, key)}
        group.forget([key for key in keys if key not in kept and key[1] in group.committed_numbers(key[0])])
        sync_offsets(files, group.group_id, anew=False, names=False)
        pass_journal(files, group.group_id, journal_offset)
        return kept

    return _when_settled(transactions, group, forget)


def _when_settled(transactions: Transactions, group: Group | DamagedGroup, act: Callable[[GroupChange, int], T]) -> T:
    """Change a group while nothing that the journal says of it is in doubt; `act` gets where that is durable."""

    def decide(change: GroupChange) -> list[T]:
        change.sweep()
        change.leave_sharing_out()
        durable = transactions.settled(group.group_id)
        return [] if durable is None else [act(change, durable)]

    while True:
        transactions.settle()
        done = group.change(decide)
        if done:
            return done[0]


def _not_empty(group_id: str, what: str) -> GroupNotEmptyError:
    return GroupNotEmptyError(
        f"group {group_id!r} has members and cannot {what}: close its consumers, or take them out by "
        "remove_members_from_consumer_group()",
        group_id=group_id,
    )
