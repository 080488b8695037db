"""The part of an admin that is about consumer groups: they, their members, and what they have committed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from pystreamlog.backend.administration import (
    ConsumerGroupDescription,
    ConsumerGroupListing,
    GroupState,
    MemberDescription,
)
from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.coordination import group_state
from pystreamlog.coordination.committed import Committed
from pystreamlog.coordination.damaged_group import DamagedGroup
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_change import GroupChange, matching
from pystreamlog.coordination.group_offsets import delete_group, delete_offsets, set_offsets
from pystreamlog.coordination.group_reader import GroupReader
from pystreamlog.coordination.group_state import PartitionKey, Share, keys_of
from pystreamlog.coordination.groups import group_folders, read_group_id
from pystreamlog.coordination.names import check_text
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.admin_context import AdminContext, AdminPart
from pystreamlog.embedded.attempts import Attempts, items
from pystreamlog.embedded.commits import check_bounds, checked_offsets
from pystreamlog.embedded.interest import checked_partition
from pystreamlog.errors import (
    ConfigError,
    CorruptLogError,
    GroupNotEmptyError,
    UnknownGroupError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.record.record import TopicPartition

__all__ = ["GroupAdmin"]


class GroupAdmin(AdminPart):
    """See `Admin`."""

    __slots__ = ()

    # --- looking

    def list_consumer_groups(
        self, *, states: GroupState | Iterable[GroupState] | None = None
    ) -> list[ConsumerGroupListing]:
        """See `Admin.list_consumer_groups`."""
        self._context.check_open()
        wanted = None if states is None else items(states)
        found = []
        with Attempts("list_consumer_groups") as attempts:
            for folder in group_folders(self._context.files):
                with attempts.about(path=folder):
                    try:
                        with self._looking(read_group_id(self._context.files, folder)) as group:
                            found.append(ConsumerGroupListing(group.group_id, _state(group)))
                    except (FileNotFoundError, UnknownGroupError):
                        continue  # deleted meanwhile
        return sorted(group for group in found if wanted is None or group.state in wanted)

    def describe_consumer_groups(self, group_ids: str | Iterable[str]) -> dict[str, ConsumerGroupDescription]:
        """See `Admin.describe_consumer_groups`."""
        self._context.check_open()
        found = {}
        with Attempts("describe_consumer_groups") as attempts:
            for group_id in items(group_ids):
                with attempts.about(group_id=group_id), self._looking(group_id) as group:
                    found[group_id] = _description(group)
        return found

    def list_consumer_group_offsets(
        self, group_ids: str | Iterable[str], *, partitions: Iterable[TopicPartition] | None = None
    ) -> dict[str, dict[TopicPartition, OffsetAndMetadata]]:
        """See `Admin.list_consumer_group_offsets`."""
        self._context.check_open()
        wanted = None if partitions is None else {TopicPartition(*checked_partition(tp)) for tp in partitions}
        self._context.transactions.recover()  # it may take committed offsets back
        lookup = _Lookup(self._context, None if wanted is None else {tp.topic for tp in wanted})
        found: dict[str, dict[TopicPartition, OffsetAndMetadata]] = {}
        with Attempts("list_consumer_group_offsets") as attempts:
            for group_id in items(group_ids):
                with attempts.about(group_id=group_id):
                    try:
                        with self._looking(group_id) as group:
                            committed = group.committed()
                    except UnknownGroupError:
                        committed = {}
                    found[group_id] = lookup.offsets(committed, wanted)
        return found

    @contextmanager
    def _looking(self, group_id: str) -> Iterator[GroupReader]:
        context = self._context
        check_text(group_id, "group_id")
        group = GroupReader(
            context.files,
            context.log_id,
            group_id,
            clock=context.clock,
            boot=context.boot_id(),
            find_entry=context.transactions.find_entry,
        )
        try:
            yield group
        finally:
            group.close()

    # --- changing

    @contextmanager
    def _opened(self, group_id: str, *, create: bool = False) -> Iterator[Group]:
        groups = self._context.groups
        check_text(group_id, "group_id")
        group = groups.open(group_id) if create else groups.open_existing(group_id)
        try:
            yield group
        finally:
            groups.close_group(group)

    def delete_consumer_groups(self, group_ids: str | Iterable[str]) -> None:
        """See `Admin.delete_consumer_groups`."""
        self._changing()
        groups, gone = self._context.groups, []
        with Attempts("delete_consumer_groups") as attempts:
            try:
                for group_id in items(group_ids):
                    with attempts.about(group_id=group_id):
                        gone.append(self._deleted(group_id))
            finally:
                groups.remove(gone)

    def _deleted(self, group_id: str) -> str:
        """Delete a group, be what it has committed readable or not; the folder that is left of it."""
        context = self._context
        try:
            with self._opened(group_id) as group:
                return delete_group(context.groups, context.transactions, group)
        except CorruptLogError:
            # If it is not the offsets that are damaged, the same is raised again.
            damaged = DamagedGroup(context.files, group_id, clock=context.clock, boot_id=context.boot_id)
        try:
            return delete_group(context.groups, context.transactions, damaged)
        finally:
            damaged.close()

    def alter_consumer_group_offsets(
        self, group_id: str, offsets: Mapping[TopicPartition, int | OffsetAndMetadata]
    ) -> None:
        """See `Admin.alter_consumer_group_offsets`."""
        self._changing()
        states = _States(self._context)
        entries: dict[PartitionKey, Committed] = {}
        with Attempts("alter_consumer_group_offsets") as attempts:
            for tp, value in offsets.items():
                topic, number = checked_partition(tp)
                with attempts.about(topic=topic, partition=number, group_id=group_id):
                    (checked,) = checked_offsets({tp: value}).values()
                    state = states.find(topic)
                    reader = self._context.partitions.reader(state, number)
                    try:
                        check_bounds(tp, checked.offset, reader.offsets()[1])
                        now_ms = self._context.clock.now_ms()
                        committed = Committed(checked.offset, reader.epoch(), now_ms, checked.metadata)
                        entries[state.id, number] = committed
                    finally:
                        reader.close()
            if entries:
                with attempts.about(group_id=group_id), self._opened(group_id, create=True) as group:
                    set_offsets(self._context.files, self._context.transactions, group, entries)

    def delete_consumer_group_offsets(self, group_id: str, partitions: Iterable[TopicPartition]) -> None:
        """See `Admin.delete_consumer_group_offsets`."""
        self._changing()
        states = _States(self._context)
        keys: dict[PartitionKey, TopicPartition] = {}
        with Attempts("delete_consumer_group_offsets") as attempts:
            for tp in partitions:
                topic, number = checked_partition(tp)
                with attempts.about(topic=topic, partition=number, group_id=group_id):
                    keys[states.partition(topic, number).id, number] = TopicPartition(topic, number)

            def is_read(change: GroupChange, key: PartitionKey) -> bool:
                return any(_subscribes(member, keys[key].topic) for member in change.state.members)

            with attempts.about(group_id=group_id), self._opened(group_id) as group:
                kept = delete_offsets(self._context.files, self._context.transactions, group, keys, is_read)
                for key in sorted(kept, key=lambda key: keys[key]):
                    topic, number = keys[key]
                    attempts.failed(
                        GroupNotEmptyError(
                            f"group {group_id!r} has members that subscribe to {topic!r}: what it committed in "
                            f"partition {number} stays; close these consumers first",
                            group_id=group_id,
                            topic=topic,
                            partition=number,
                        )
                    )

    def remove_members_from_consumer_group(
        self, group_id: str, group_instance_ids: str | Iterable[str] | None = None
    ) -> None:
        """See `Admin.remove_members_from_consumer_group`."""
        self._changing()
        wanted = None if group_instance_ids is None else items(group_instance_ids)

        def remove(change: GroupChange) -> list[str]:
            change.sweep()
            by_id = {member.instance_id: member for member in change.state.members}
            missing = [each for each in wanted or () if each not in by_id]
            for member in list(change.state.members):
                if wanted is None or member.instance_id in wanted:
                    change.remove(member)
                    change.rung.add(member.slot)  # it lives perhaps, and must know
            change.leave_sharing_out()
            return missing

        with (
            Attempts("remove_members_from_consumer_group") as attempts,
            attempts.about(group_id=group_id),
            self._opened(group_id) as group,
        ):
            for missing in group.change(remove):
                attempts.failed(
                    ConfigError(
                        f"group {group_id!r} has no member with group_instance_id={missing!r}: "
                        "describe_consumer_groups() tells which it has",
                        group_id=group_id,
                        group_instance_id=missing,
                    )
                )


# --- topics by name and by id


class _States:
    """The topics that a call names, each looked up once."""

    __slots__ = ("_context", "_found")

    def __init__(self, context: AdminContext) -> None:
        self._context = context
        self._found: dict[str, TopicState] = {}

    def find(self, topic: str) -> TopicState:
        """See `Topics.find_anew`."""
        found = self._found.get(topic)
        if found is None:
            found = self._found[topic] = self._context.topics.find_anew(topic)
        return found

    def partition(self, topic: str, number: int) -> TopicState:
        """The topic of a partition that there is."""
        state = self.find(topic)
        if not 0 <= number < state.partitions:
            raise UnknownPartitionError(
                f"topic {topic!r} has partitions 0 to {state.partitions - 1}, not {number}",
                topic=topic,
                partition=number,
            )
        return state


class _Lookup:
    """Tells committed offsets by topics' names. Looks at every topic at most once.

    Args:
        context: The admin's.
        names: The only topics that matter; None for all.
    """

    __slots__ = ("_by_id", "_context", "_names")

    def __init__(self, context: AdminContext, names: set[str] | None) -> None:
        self._context = context
        self._names = names
        self._by_id: dict[bytes, TopicState] | None = None

    def offsets(
        self, committed: Mapping[PartitionKey, Committed], wanted: set[TopicPartition] | None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """What was committed, in order; without topics that were deleted since."""
        found = {}
        for (topic_id, number), each in committed.items():
            state = self._states().get(topic_id)
            if state is None or number >= state.partitions:
                continue
            tp = TopicPartition(state.name, number)
            if wanted is not None and tp not in wanted:
                continue
            reader = self._context.partitions.reader(state, number)
            try:
                found[tp] = OffsetAndMetadata(reader.clamped(each.offset, each.epoch), each.metadata)
            finally:
                reader.close()
        return dict(sorted(found.items()))

    def _states(self) -> dict[bytes, TopicState]:
        if self._by_id is None:
            topics = self._context.topics
            self._by_id = {}
            for name in topics.names() if self._names is None else self._names:
                try:
                    state = topics.find_anew(name)
                except UnknownTopicError:
                    continue
                self._by_id[state.id] = state
        return self._by_id


# --- groups in plain values


def _state(group: GroupReader) -> GroupState:
    members = group.members()
    if not members:
        return "Empty"
    if group.state.unshared:
        return "Assigning"
    everybody = len(members) == len(group.state.members)
    return "Stable" if everybody and group.state.is_settled() else "Reconciling"


def _description(group: GroupReader) -> ConsumerGroupDescription:
    members = group.members()
    names = {topic_id: topic.name for topic_id, topic in group.state.topics.items()}
    assignors = [member.assignor for member, _ in members]
    return ConsumerGroupDescription(
        group.group_id,
        _state(group),
        group.state.generation,
        max(sorted(set(assignors)), key=assignors.count, default=""),
        tuple(_member(member, names, there=there) for member, there in members),
    )


def _member(member: group_state.Member, names: Mapping[bytes, str], *, there: bool) -> MemberDescription:
    def partitions(share: Share) -> tuple[TopicPartition, ...]:
        return tuple(sorted(TopicPartition(names[key], number) for key, number in keys_of(share) if key in names))

    return MemberDescription(
        member_id=member.id,
        group_instance_id=member.instance_id,
        client_id=f"{member.host}:{member.pid}",
        host=member.host,
        pid=member.pid,
        state="Left" if not there else "Stable" if member.owned == member.target else "Reconciling",
        member_epoch=member.epoch,
        subscription=tuple(sorted(member.topics)),
        pattern=None if member.pattern is None else member.pattern[0],
        assignor=member.assignor,
        assignment=partitions(member.owned),
        target_assignment=partitions(member.target),
    )


def _subscribes(member: group_state.Member, topic: str) -> bool:
    if member.pattern is None:
        return topic in member.topics
    return bool(matching(re.compile(*member.pattern), [topic]))
