"""Shares out the partitions of the subscribed topics among the members of a consumer group.

The assignors are those of Kafka's KIP-848. `uniform` gives everybody as much and moves as little as it can;
`range_by_topic` gives contiguous ranges, so that topics of equal shape meet in one member. A user may give a function
instead; `assigned` checks what it answers.

An answer depends only on what the arguments hold, never on the order of members or sets: members are ordered by
``group_instance_id``, or by ``member_id`` where they have none. So a static member keeps its place when it restarts.

How `uniform` works. Topics with the same subscribers form a pool; to the balance, the partitions of a pool are alike.

1. Each member keeps what it was assigned, as far as that exists and it still subscribes to it.
2. What is left goes to whoever has the least, pool by pool; those with few subscribers come first, having least choice.
3. While a member has at least two partitions more than another, and one of them is of a pool that both subscribe to, it
   hands that one over. Each move makes the sum of the squared loads smaller, so this ends.
4. Steps 1 to 3 only count. Now each member takes its count of each pool, its old partitions before others.

All of it is pure and may be called from any thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from operator import index
from types import MappingProxyType
from typing import Any

import attrs
import msgspec

from pystreamlog.errors import ConfigError
from pystreamlog.record.record import TopicPartition

__all__ = ["ASSIGNORS", "Assignor", "GroupMember", "assigned", "range_by_topic", "uniform"]

# A member that has two more than another can hand one over, and the two come nearer to each other.
_IMPROVABLE = 2


class GroupMember(msgspec.Struct, frozen=True):
    """What an assignor is told of a member of the group.

    Attributes:
        member_id: Names the member; no other of the group has it.
        group_instance_id: The name that a static member keeps when it restarts; None for others.
        topics: The topics it subscribes to; all of them exist.
        assigned: Its share by the last assignment. Partitions that no longer exist may be among them, and such of
            topics that it no longer subscribes to.
    """

    member_id: str
    group_instance_id: str | None
    topics: frozenset[str]
    assigned: frozenset[TopicPartition]


Assignor = Callable[[Sequence[GroupMember], Mapping[str, int]], Mapping[str, Iterable[TopicPartition]]]
"""What a user may give: called with the members and the number of partitions by topic, returns partitions by member id.

The topics are those that any member subscribes to. Each of their partitions must be given to exactly one member that
subscribes to the topic; members without partitions may be left out. The members come in no particular order. An
assignor is called whenever the group changes, by the process that makes the change; it must not change its arguments.
"""


@attrs.define(eq=False)
class _Pool:
    """Topics with the same subscribers; these are known by their places in the order of members.

    Attributes:
        topics: The topics' names, sorted.
        count: How many partitions they have together.
        shares: How many of these each subscriber gets, in the order of members.
        claims: What each subscriber was assigned before; in the rare case, one partition to several.
    """

    topics: list[str]
    count: int
    shares: dict[int, int]
    claims: dict[int, list[TopicPartition]] = attrs.field(factory=dict)


# --- the assignors ----------------------------------------------------------------------------------------------------


def uniform(members: Sequence[GroupMember], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
    """Gives all members as much as each other, and moves as little as it can.

    When all subscribe to the same topics, their loads differ by at most one, and as many partitions as that allows
    stay where they are. When they do not, no partition could improve the balance by going from its member to another;
    from an assignment where that holds already, nothing moves. If several members were assigned the same partition,
    one of them keeps it.

    Costs O((p + m) log m) for p partitions and m members with equal subscriptions, about 10 ms for 10,000 and 1,000.
    With unequal ones, the number of subscribers of each pool comes on top, once for every time that it is levelled.

    Args:
        members: The members of the group, in any order.
        partitions: Number of partitions by topic, of at least the topics that are subscribed to.

    Returns:
        Partitions by member id, sorted; every member has an entry.
    """
    ordered = sorted(members, key=_order)
    pools = _pools(ordered, partitions)
    loads = _keep(ordered, partitions, pools)
    for pool in pools:
        _fill(pool, loads)
    _level(pools, loads)
    shares: list[list[TopicPartition]] = [[] for _ in ordered]
    for pool in pools:
        _deal(pool, partitions, shares)
    return {member.member_id: sorted(share) for member, share in zip(ordered, shares, strict=True)}


def range_by_topic(members: Sequence[GroupMember], partitions: Mapping[str, int]) -> dict[str, list[TopicPartition]]:
    """Gives each subscriber of a topic a contiguous range of its partitions.

    Ranges go by the order of members, and their sizes differ by at most one; the first members get the larger ones.
    So of topics with the same subscribers and as many partitions, each member gets the same numbers. Nothing else is
    balanced: with many small topics the first members get most. Costs are linear in the partitions and subscriptions.

    Args:
        members: The members of the group, in any order.
        partitions: Number of partitions by topic, of at least the topics that are subscribed to.

    Returns:
        Partitions by member id, sorted; every member has an entry.
    """
    ordered = sorted(members, key=_order)
    subscribers: dict[str, list[str]] = {}
    for member in ordered:
        for topic in member.topics:
            subscribers.setdefault(topic, []).append(member.member_id)
    answer: dict[str, list[TopicPartition]] = {member.member_id: [] for member in ordered}
    for topic in sorted(subscribers):
        size, larger = divmod(partitions[topic], len(subscribers[topic]))
        start = 0
        for place, member_id in enumerate(subscribers[topic]):
            end = start + size + (place < larger)
            answer[member_id] += [TopicPartition(topic, number) for number in range(start, end)]
            start = end
    return answer


ASSIGNORS: Mapping[str, Assignor] = MappingProxyType({"uniform": uniform, "range": range_by_topic})
"""The assignors that a setting can name."""


# --- the steps of uniform ---------------------------------------------------------------------------------------------


def _order(member: GroupMember) -> tuple[str, str]:
    # One member's instance id may be another's member id, so both count.
    return member.group_instance_id or member.member_id, member.member_id


def _pools(ordered: Sequence[GroupMember], partitions: Mapping[str, int]) -> list[_Pool]:
    """The subscribed topics in pools: those with the fewest subscribers first, then by the first topic's name."""
    # Most groups have few different subscriptions, so these are gone through, not each member's topics.
    subscriptions: dict[frozenset[str], list[int]] = {}
    for place, member in enumerate(ordered):
        subscriptions.setdefault(member.topics, []).append(place)
    subscribed_by: dict[str, list[int]] = {}
    for number, topics in enumerate(subscriptions):
        for topic in topics:
            subscribed_by.setdefault(topic, []).append(number)
    alike: dict[tuple[int, ...], list[str]] = {}
    for topic in sorted(subscribed_by):
        alike.setdefault(tuple(subscribed_by[topic]), []).append(topic)
    places = list(subscriptions.values())
    pools = [
        _Pool(
            topics,
            sum(partitions[topic] for topic in topics),
            dict.fromkeys(sorted(place for number in numbers for place in places[number]), 0),
        )
        for numbers, topics in alike.items()
    ]
    pools.sort(key=lambda pool: len(pool.shares))  # keeps the order of topics among equals
    return pools


def _keep(ordered: Sequence[GroupMember], partitions: Mapping[str, int], pools: Iterable[_Pool]) -> list[int]:
    """Step 1: notes what each member claims, and counts what it keeps; returns how many partitions each has."""
    pool_by_topic = {topic: pool for pool in pools for topic in pool.topics}
    loads = []
    taken: set[TopicPartition] = set()
    for place, member in enumerate(ordered):
        taken_before = len(taken)
        for claim in member.assigned:
            topic, number = claim
            pool = pool_by_topic.get(topic)
            if pool is None or place not in pool.shares or not 0 <= number < partitions[topic]:
                continue
            pool.claims.setdefault(place, []).append(claim)
            if claim not in taken:
                taken.add(claim)
                pool.shares[place] += 1
        loads.append(len(taken) - taken_before)
    return loads


def _fill(pool: _Pool, loads: list[int]) -> None:
    """Step 2: gives what nobody keeps to those who have the least; the first of equals."""
    # Load and place in one integer: the heap compares these three times as fast as pairs.
    unit = len(loads)
    heap = [loads[place] * unit + place for place in pool.shares]
    heapify(heap)
    for _ in range(pool.count - sum(pool.shares.values())):
        place = heap[0] % unit
        pool.shares[place] += 1
        loads[place] += 1
        heapreplace(heap, heap[0] + unit)


def _level(pools: Iterable[_Pool], loads: list[int]) -> None:
    """Step 3: levels each pool, and again whenever the load of one of its subscribers changed."""
    waiting = dict.fromkeys(pools)
    pools_by_place: list[list[_Pool]] = [[] for _ in loads]
    for pool in waiting:
        for place in pool.shares:
            pools_by_place[place].append(pool)
    queue = deque(waiting)
    while queue:
        pool = queue.popleft()
        del waiting[pool]
        for place in _level_pool(pool, loads):
            for other in pools_by_place[place]:
                if other not in waiting and other is not pool:
                    waiting[other] = None
                    queue.append(other)


def _level_pool(pool: _Pool, loads: list[int]) -> Iterable[int]:
    """Moves one partition after the other from who has the most to who has the least; returns whose load changed."""
    shares = pool.shares
    sources = [place for place, share in shares.items() if share]
    # Most calls find nothing to do, and building heaps costs three times as much as seeing that.
    if not sources or max([loads[place] for place in sources]) - min([loads[place] for place in shares]) < _IMPROVABLE:
        return ()
    unit = len(loads)
    most = [-(loads[place] * unit + place) for place in sources]
    least = [loads[place] * unit + place for place in shares]
    heapify(most)
    heapify(least)
    # Who gave is out of date in `least`, who got in `most`; but who gave never has so little that it should get, nor
    # the reverse, so neither comes to the top before the loop ends.
    changed: dict[int, None] = {}
    while most:
        (load, source), (least_load, target) = divmod(-most[0], unit), divmod(least[0], unit)
        if load - least_load < _IMPROVABLE:
            break
        changed[source] = changed[target] = None
        shares[source] -= 1
        loads[source] -= 1
        shares[target] += 1
        loads[target] += 1
        heapreplace(least, least[0] + unit)
        if shares[source]:
            heapreplace(most, most[0] + unit)
        else:
            heappop(most)
    return changed


def _deal(pool: _Pool, partitions: Mapping[str, int], answer: Sequence[list[TopicPartition]]) -> None:
    """Step 4: adds each subscriber's share of the pool to its answer."""
    taken: set[TopicPartition] = set()
    wanted: dict[int, int] = {}
    for place, share in pool.shares.items():
        claims = [claim for claim in pool.claims.get(place, ()) if claim not in taken]
        if len(claims) > share:
            claims = _by_turns(claims)[:share]
        elif len(claims) < share:
            wanted[place] = share - len(claims)
        taken.update(claims)
        answer[place].extend(claims)
    if not wanted:
        return
    free = (
        TopicPartition(topic, number)
        for topic in pool.topics
        for number in range(partitions[topic])
        if (topic, number) not in taken
    )
    for place, partition in zip(_turns(wanted), free, strict=True):
        answer[place].append(partition)


def _by_turns(claims: Iterable[TopicPartition]) -> list[TopicPartition]:
    """One of each topic, then a second of each, and so on: who keeps the first few keeps some of every topic."""
    seen: Counter[str] = Counter()
    ranked = []
    for claim in sorted(claims):
        ranked.append((seen[claim.topic], claim))
        seen[claim.topic] += 1
    return [claim for _, claim in sorted(ranked)]


def _turns(wanted: Mapping[int, int]) -> Iterator[int]:
    """Places in turn, each as often as it wants one: so the partitions of a topic go to many members."""
    places = list(wanted)
    turn = 0
    while places:
        yield from places
        turn += 1
        places = [place for place in places if wanted[place] > turn]


# --- what an assignor answers -----------------------------------------------------------------------------------------


def assigned(
    assignor: Assignor, members: Sequence[GroupMember], partitions: Mapping[str, int]
) -> dict[str, frozenset[TopicPartition]]:
    """Calls an assignor and checks what it answers, which costs about 1 µs per partition.

    Args:
        assignor: One of `ASSIGNORS`, or a user's function.
        members: The members of the group.
        partitions: Number of partitions by topic, of the topics that are subscribed to.

    Returns:
        Partitions by member id; every member has an entry.

    Raises:
        ConfigError: The answer is no mapping of member ids to pairs of topic and partition. Or it names a member or a
            partition that does not exist, gives a partition to a member that does not subscribe to its topic, gives
            one twice, or leaves one out. The message names the first such place.
        Exception: Whatever `assignor` raises.
    """
    answer: object = assignor(members, partitions)
    name = getattr(assignor, "__name__", None) or repr(assignor)
    if not isinstance(answer, Mapping):
        raise _refused(name, f"returned {answer!r}: it returns a mapping of member ids to partitions")
    topics_by_member = {member.member_id: member.topics for member in members}
    shares: dict[str, frozenset[TopicPartition]] = dict.fromkeys(topics_by_member, frozenset())
    owners: dict[TopicPartition, str] = {}
    for member_id, given in answer.items():
        if member_id not in topics_by_member:
            raise _refused(name, f"gave partitions to {member_id!r}, which is no member of the group")
        if not isinstance(given, Iterable):
            raise _refused(name, f"gave {given!r} to member {member_id!r}: it gives a list of partitions")
        topics = topics_by_member[member_id]
        share = []
        for item in given:
            partition = _checked(item, name, partitions)
            if partition.topic not in topics:
                what = f"gave {_described(partition)} to member {member_id!r}, which does not subscribe to that topic"
                raise _refused(name, what)
            if partition in owners:
                what = f"gave {_described(partition)} to member {member_id!r}, and to {owners[partition]!r} before"
                raise _refused(name, what)
            owners[partition] = member_id
            share.append(partition)
        shares[member_id] = frozenset(share)
    subscribed: frozenset[str] = frozenset().union(*set(topics_by_member.values()))
    if len(owners) != sum(partitions[topic] for topic in subscribed):
        all_partitions = (TopicPartition(topic, n) for topic in sorted(subscribed) for n in range(partitions[topic]))
        left_out = next(partition for partition in all_partitions if partition not in owners)
        raise _refused(name, f"gave {_described(left_out)} to nobody")
    return shares


def _checked(item: Any, name: str, partitions: Mapping[str, int]) -> TopicPartition:
    try:
        # Taken apart and put together again: what equals a partition, like a pair with 1.0, is not always one.
        match item:
            case (str() as topic, number) if not isinstance(number, bool):
                partition = TopicPartition(topic, index(number))
            case _:
                raise TypeError
    except TypeError:
        raise _refused(name, f"gave {item!r}: a partition is a pair of topic and number") from None
    if not 0 <= partition.partition < partitions.get(topic, 0):
        raise _refused(name, f"gave {_described(partition)}, which does not exist")
    return partition


def _described(partition: TopicPartition) -> str:
    return f"partition {partition.partition} of topic {partition.topic!r}"


def _refused(name: str, what: str) -> ConfigError:
    rule = "each partition of a subscribed topic goes to exactly one member that subscribes to it"
    return ConfigError(f"the assignor {name!r} {what} ({rule})", assignor=name)
