"""A change of a consumer group: what a group coordinator would decide, decided under the group's lock.

Rules:

1. A partition belongs to at most one member: it is taken only when it stands in nobody's `owned`.
2. It leaves an `owned` in three ways: its owner releases it; its owner is gone (its lock is free; the share of a static
   member waits for `session_timeout_ms` first); or its owner has not polled for `max_poll_interval_ms`. In the latter
   two the owner is no member any more, which fences its commits.
3. Whoever sees that members, subscriptions or topics changed shares out anew (`target`). Each member then gives up what
   it must and takes what is free, at its own polls: so nobody stops reading what it keeps.
4. Whoever must act on a change is rung; everybody is when somebody joins, to watch the newcomer's process.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from pystreamlog.coordination.assignors import ASSIGNORS, Assignor, GroupMember, assigned
from pystreamlog.coordination.group_state import (
    GroupState,
    GroupTopic,
    Member,
    PartitionKey,
    Share,
    keys_of,
    share_of,
)
from pystreamlog.coordination.holders import host_name, pid_namespace
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.errors import FencedError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["GroupChange", "Liveness", "MemberConfig", "Sharing", "matching", "max_silence_ns"]

_MS = 1_000_000


class MemberConfig(msgspec.Struct, frozen=True):
    """What a consumer joins with.

    Attributes:
        topics: The names it subscribes to.
        pattern: Or the regular expression.
        instance_id: `group_instance_id`; None makes it a dynamic member.
        assignor: How it would share out.
        assignor_name: And the name of that.
        max_poll_interval_ms: It is fenced when it does not poll for that long.
        session_timeout_ms: Its share waits for that long when it is static and gone.
    """

    topics: tuple[str, ...]
    pattern: re.Pattern[str] | None
    instance_id: str | None
    assignor: Assignor
    assignor_name: str
    max_poll_interval_ms: int
    session_timeout_ms: int


class Liveness(Protocol):
    """What tells which members are there."""

    def now_ns(self) -> int:
        """Monotonic time."""

    def is_alive(self, slot: int) -> bool:
        """Whether the lock of that slot is held."""

    def last_polls_ns(self, state: GroupState) -> Sequence[int]:
        """When the members polled last, by slot."""


class Sharing(msgspec.Struct, frozen=True):
    """What sharing out needs of the one who does it.

    Attributes:
        topics: The log's topics.
        config: Of the member that does it.
        on_topic: Called with each topic that is new to the group, or has more partitions than before, and with how many
            it had then (None when nobody subscribed to it); fixes where reading it starts.
        on_gone: Called with the id of each topic that no longer exists.
    """

    topics: Topics
    config: MemberConfig
    on_topic: Callable[[TopicState, int | None], object]
    on_gone: Callable[[bytes], object]


def max_silence_ns(member: Member) -> int:
    """How long a member's last poll may lie back: it may be told up to a tenth, at most a second, late."""
    interval = member.max_poll_interval_ms
    return (interval + min(interval // 10 + 1, 1000)) * _MS


def matching(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    """The topics that a pattern subscribes to: their whole name matches; internal ones, `__…`, are left out."""
    return [name for name in names if not name.startswith("__") and pattern.fullmatch(name)]


class GroupChange:
    """One change, from reading the state to writing it. Made and used under the group's lock.

    Args:
        state: The state, which is changed in place.
        liveness: Tells which members are there.
        boot: Id of this boot.

    Attributes:
        changed: The state must be written.
        rung: Slots of members that must act.
    """

    def __init__(self, state: GroupState, liveness: Liveness, boot: bytes) -> None:
        self.state = state
        self.changed = False
        self.rung: set[int] = set()
        self._liveness = liveness
        self._newcomers: set[str] = set()
        if state.boot != boot:
            for member in state.members:
                if member.left_ns:
                    member.left_ns = liveness.now_ns()
            state.boot = boot
            self.changed = True

    # --- who is there

    def sweep(self) -> None:
        """Take out who is gone, and who has not polled for too long."""
        now_ns = self._liveness.now_ns()
        polls = self._liveness.last_polls_ns(self.state)
        for member in list(self.state.members):
            if member.left_ns:
                if now_ns - member.left_ns >= member.session_timeout_ms * _MS:
                    self.remove(member)
            elif not self._liveness.is_alive(member.slot):
                if member.instance_id is None:
                    self.remove(member)
                else:
                    member.left_ns = now_ns
                    self.changed = True
            elif now_ns - polls[member.slot] > max_silence_ns(member):
                self.remove(member)
                self.rung.add(member.slot)

    def remove(self, member: Member) -> None:
        """Take a member out; what it owned is free."""
        self.state.members.remove(member)
        self._ring_for(member.owned)
        self.state.unshared = self.changed = True

    def leave_sharing_out(self) -> None:
        """Who changed the group is no member and cannot share out: have the members do it, each by its own assignor."""
        if self.state.unshared:
            self.rung.update(member.slot for member in self.state.members)

    def leave(self, member: Member) -> None:
        """A member closes: a static one's share waits for its return."""
        if member.instance_id is None:
            self.remove(member)
        else:
            member.left_ns = self._liveness.now_ns()
            self.changed = True
            self.rung.update(other.slot for other in self.state.members if other is not member)  # a timer more

    def returning(self, config: MemberConfig) -> Member | None:
        """The static member that is gone and now comes back under its `group_instance_id`.

        Raises:
            FencedError: A live member has that id.
        """
        if config.instance_id is None:
            return None
        for member in self.state.members:
            if member.instance_id == config.instance_id:
                if self._liveness.is_alive(member.slot):
                    raise FencedError(
                        f"pid {member.pid} on host {member.host} is a member of the group with group_instance_id="
                        f"{config.instance_id!r} already: close that consumer, or give this one another id"
                    )
                return member
        return None

    def join(self, config: MemberConfig, slot: int, back: Member | None) -> Member:
        """A new member, or a static one that is back; holds the lock of `slot`."""
        state = self.state
        member = Member(
            id=uuid.uuid4().hex,
            slot=slot,
            instance_id=config.instance_id,
            pid=os.getpid(),
            namespace=pid_namespace(),
            host=host_name(),
            topics=list(config.topics),
            pattern=None if config.pattern is None else (config.pattern.pattern, config.pattern.flags),
            assignor=config.assignor_name,
            max_poll_interval_ms=config.max_poll_interval_ms,
            session_timeout_ms=config.session_timeout_ms,
            epoch=state.generation + 1,
        )
        if back is None:
            state.members.append(member)
        else:
            member.owned, member.target = back.owned, back.target
            state.members[state.members.index(back)] = member
        same = back is not None and (back.topics, back.pattern) == (member.topics, member.pattern)
        self._newcomers.add(member.id)
        if same:
            state.generation += 1  # so that it is told apart from what it was before
        else:
            state.unshared = True
        self.changed = True
        self.rung.update(other.slot for other in state.members if other is not member)
        return member

    def subscribe(self, member: Member, config: MemberConfig) -> None:
        """A member wants other topics."""
        member.topics = list(config.topics)
        member.pattern = None if config.pattern is None else (config.pattern.pattern, config.pattern.flags)
        self._newcomers.add(member.id)
        self.state.unshared = self.changed = True

    # --- who reads what

    def release(self, member: Member, keys: Iterable[PartitionKey]) -> None:
        """A member gives up partitions."""
        given = set(keys)
        member.owned = share_of(set(keys_of(member.owned)) - given)
        self._ring_for(share_of(given), but=member)
        self.changed = True

    def take(self, member: Member) -> list[PartitionKey]:
        """A member takes what it shall own and nobody else does; returns what it took."""
        owned = set(keys_of(member.owned))
        wanted = set(keys_of(member.target)) - owned
        if not wanted:
            return []
        for other in self.state.members:
            if other is not member:
                wanted.difference_update(keys_of(other.owned))
        if wanted:
            member.owned = share_of(owned | wanted)
            self.changed = True
        return sorted(wanted)

    def _ring_for(self, freed: Share, but: Member | None = None) -> None:
        """Ring those who shall own what became free."""
        for member in self.state.members:
            if member is not but and any(
                not set(numbers).isdisjoint(member.target.get(topic_id, ())) for topic_id, numbers in freed.items()
            ):
                self.rung.add(member.slot)

    def share_out(self, sharing: Sharing, *, topics_changed: bool) -> None:
        """Share out anew if anything changed.

        Raises:
            ConfigError: The assignor's answer is wrong.
        """
        state = self.state
        if state.members and (topics_changed or state.unshared):
            found, subscriptions = self._subscriptions(sharing, fresh=topics_changed)
            topics = _shared(found)
            if topics != state.topics and not topics_changed:
                # What this process remembers may be a second old: never act on that.
                found, subscriptions = self._subscriptions(sharing, fresh=True)
                topics = _shared(found)
            if topics != state.topics:
                for topic in found.values():
                    known = state.topics.get(topic.id)
                    if known is None:
                        # Somebody subscribed to it when the group looked last, and it was not there.
                        later = any(
                            topic.name in names and member not in self._newcomers
                            for member, names in subscriptions.items()
                        )
                        sharing.on_topic(topic, 0 if later else None)
                    elif known.partitions < topic.partitions:
                        sharing.on_topic(topic, known.partitions)
                names = {topic.name: topic.id for topic in found.values()}
                for topic_id, known in state.topics.items():
                    if topic_id not in topics and self._is_gone(sharing.topics, topic_id, known.name, names):
                        sharing.on_gone(topic_id)
                state.topics = topics
                self.state.unshared = self.changed = True
            if state.unshared:
                self._assign(sharing, found, subscriptions)
                state.unshared = False

    @staticmethod
    def _is_gone(topics: Topics, topic_id: bytes, name: str, names: Mapping[str, bytes]) -> bool:
        """Whether a topic that is shared out no more was deleted; else nobody subscribes to it now."""
        if name in names:
            return names[name] != topic_id
        try:
            return topics.find_anew(name).id != topic_id
        except UnknownTopicError:
            return True

    def _subscriptions(
        self, sharing: Sharing, *, fresh: bool
    ) -> tuple[dict[str, TopicState], dict[str, frozenset[str]]]:
        """The topics that anybody subscribes to, and each member's among them by member id."""
        topics = sharing.topics
        all_names: list[str] | None = None
        wanted: dict[str, list[str]] = {}
        for member in self.state.members:
            if member.pattern is None:
                wanted[member.id] = member.topics
                continue
            all_names = topics.names() if all_names is None else all_names
            wanted[member.id] = matching(re.compile(*member.pattern), all_names)
        found: dict[str, TopicState] = {}
        for name in sorted({name for names in wanted.values() for name in names}):
            if fresh:
                topics.forget(name)
            try:
                found[name] = topics.find(name)
            except UnknownTopicError:
                continue
        return found, {member: frozenset(filter(found.__contains__, names)) for member, names in wanted.items()}

    def _assign(
        self, sharing: Sharing, found: Mapping[str, TopicState], subscriptions: Mapping[str, frozenset[str]]
    ) -> None:
        state = self.state
        names = {topic.id: topic.name for topic in found.values()}
        members = [
            GroupMember(
                member.id,
                member.instance_id,
                subscriptions[member.id],
                frozenset(TopicPartition(names[key], number) for key, number in keys_of(member.target) if key in names),
            )
            for member in state.members
        ]
        counts = {topic.name: topic.partitions for topic in found.values()}
        shares = assigned(self._assignor(sharing.config), members, counts)
        state.generation += 1
        self.changed = True
        for member in state.members:
            target = share_of([(found[topic].id, number) for topic, number in shares[member.id]])
            if target != member.target:
                member.target = target
                self.rung.add(member.slot)

    def _assignor(self, own: MemberConfig) -> Assignor:
        """That of most members, as in Kafka; one's own, where that is a callable of another program."""
        names = [member.assignor for member in self.state.members]
        if not names:
            return own.assignor
        name = max(sorted(set(names)), key=names.count)
        if name == own.assignor_name:
            return own.assignor
        return ASSIGNORS.get(name, own.assignor)


def _shared(found: Mapping[str, TopicState]) -> dict[bytes, GroupTopic]:
    return {topic.id: GroupTopic(topic.name, topic.partitions) for topic in found.values()}
