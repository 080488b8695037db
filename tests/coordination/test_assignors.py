"""Assignors: every partition has one owner, all have as much, and nothing moves without need."""

import functools
import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pystreamlog.coordination.assignors import ASSIGNORS, GroupMember, assigned, range_by_topic, uniform
from pystreamlog.errors import ConfigError
from pystreamlog.record.record import TopicPartition

NAMES = ["orders", "payments", "refunds", "users"]


def member(member_id, topics, claims=(), instance_id=None):
    """A member; `topics` in one string."""
    return GroupMember(member_id, instance_id, frozenset(topics.split()), frozenset(claims))


def of(topic, *numbers):
    """Partitions of a topic."""
    return [TopicPartition(topic, number) for number in numbers]


def followed(members, answer):
    """The members after they took what the answer gives them."""
    return [
        GroupMember(each.member_id, each.group_instance_id, each.topics, frozenset(answer[each.member_id]))
        for each in members
    ]


def valid_claims(each, partitions):
    """What a member could keep."""
    return {
        claim for claim in each.assigned if claim.topic in each.topics and claim.partition < partitions[claim.topic]
    }


def lost(members, answer, partitions):
    """By member id, what it could have kept and has no more."""
    return {
        each.member_id: claims
        for each in members
        if (claims := valid_claims(each, partitions) - set(answer[each.member_id]))
    }


def improvements(members, answer):
    """Every single move that would bring two loads nearer to each other: the oracle goes through them all."""
    return [
        (partition, giver.member_id, taker.member_id)
        for giver in members
        for partition in answer[giver.member_id]
        for taker in members
        if partition.topic in taker.topics and len(answer[giver.member_id]) - len(answer[taker.member_id]) >= 2
    ]


def check_rules(members, partitions, answer):
    """Complete, exclusive, and only to subscribers."""
    assert set(answer) == {each.member_id for each in members}
    given_out = Counter(itertools.chain.from_iterable(answer.values()))
    subscribed = set().union(*(each.topics for each in members))
    expected = {partition for topic in subscribed for partition in of(topic, *range(partitions[topic]))}
    assert given_out == Counter(expected)
    for each in members:
        assert {partition.topic for partition in answer[each.member_id]} <= each.topics
        assert list(answer[each.member_id]) == sorted(answer[each.member_id])
        assert all(type(partition) is TopicPartition for partition in answer[each.member_id])


COUNTS = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})
SUBSCRIPTIONS = st.frozensets(st.sampled_from(NAMES))


@st.composite
def groups(draw, *, equal=False, exclusive=False):
    """Members with claims that need not make sense, and numbers of partitions.

    Args:
        draw: Hypothesis's.
        equal: Whether all subscribe to the same topics.
        exclusive: Whether no two claim the same partition.
    """
    partitions = draw(COUNTS)
    topics = st.just(draw(SUBSCRIPTIONS)) if equal else SUBSCRIPTIONS
    instance_ids = draw(st.permutations(["a", "b", "m3", "y", "z", None, None]))
    # Topics that are gone, and more partitions than there are.
    claims = st.builds(TopicPartition, st.sampled_from([*NAMES, "deleted"]), st.integers(0, 11))
    members, taken = [], set()
    for number in range(draw(st.integers(1, 7))):
        mine = draw(st.frozensets(claims, max_size=25)) - (taken if exclusive else set())
        taken |= mine
        members.append(GroupMember(f"m{number}", instance_ids[number], draw(topics), mine))
    return members, partitions


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "subscribe", "grow", "nothing"]),
        st.integers(0, 20),
        SUBSCRIPTIONS,
        st.sampled_from(NAMES),
        st.integers(1, 9),
    ),
    max_size=12,
)


def steps_of(events, partitions, *, equal):
    """The life of a group: before each call of the assignor, the members and partitions, and what happened.

    A generator: send it the answer. With `equal`, subscriptions change for all at once.
    """
    numbers = itertools.count()
    everybody = frozenset(NAMES[:2])
    partitions = dict(partitions)
    members = []
    for what, which, topics, topic, more in [("join", 0, everybody, "", 0), *events]:
        old, chosen = members, which % max(len(members), 1)
        kind = what
        if what == "join":
            number = next(numbers)
            name = f"m{number * 7 % 10}-{number}"
            members = [*old, GroupMember(name, None, everybody if equal else topics, frozenset())]
        elif what == "leave" and len(old) > 1:
            members = old[:chosen] + old[chosen + 1 :]
        elif what == "subscribe" and equal:
            everybody = topics
            members = [GroupMember(each.member_id, None, topics, each.assigned) for each in old]
        elif what == "subscribe":
            changed = GroupMember(old[chosen].member_id, None, topics, old[chosen].assigned)
            members = [*old[:chosen], changed, *old[chosen + 1 :]]
        elif what == "grow":
            partitions[topic] += more
        else:
            kind = "nothing"
        answer = yield kind, members, dict(partitions)
        members = followed(members, answer)


def lives(events, partitions, *, equal):
    """Each step of a group's life with uniform's answer."""
    steps = steps_of(events, partitions, equal=equal)
    answer = None
    while True:
        try:
            kind, members, counts = steps.send(answer)
        except StopIteration:
            return
        answer = uniform(members, counts)
        yield kind, members, counts, answer


# --- every assignor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignor", ASSIGNORS.values(), ids=list(ASSIGNORS))
@given(group=groups())
def test_every_partition_goes_to_one_subscriber(assignor, group):
    """Whatever was claimed before, the answer is complete, exclusive, and only for subscribers."""
    members, partitions = group
    answer = assignor(members, partitions)
    check_rules(members, partitions, answer)
    checked = assigned(assignor, members, partitions)
    assert checked == {member_id: frozenset(share) for member_id, share in answer.items()}


@pytest.mark.parametrize("assignor", ASSIGNORS.values(), ids=list(ASSIGNORS))
@given(group=groups(), data=st.data())
def test_order_of_members_does_not_matter(assignor, group, data):
    """Processes that see the group in another order give the same answer."""
    members, partitions = group
    shuffled = data.draw(st.permutations(members))
    turned = dict(reversed(partitions.items()))
    assert assignor(shuffled, turned) == assignor(members, partitions)


def test_answer_does_not_depend_on_the_process():
    """Another hash seed gives sets another order, and the same answer."""
    program = (
        "from pystreamlog.coordination.assignors import ASSIGNORS, GroupMember\n"
        "from pystreamlog.record.record import TopicPartition as P\n"
        "topics = [f'topic-{n}' for n in range(9)]\n"
        "claims = frozenset(P(topic, n) for topic in topics for n in range(9))\n"
        "members = [GroupMember(f'm{n}', None, frozenset(topics[n % 3:]), claims if n % 4 else frozenset())"
        " for n in range(12)]\n"
        "print([list(f(members, dict.fromkeys(topics, 7)).items()) for f in ASSIGNORS.values()])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(1, 5)
    }
    assert len(runs) == 1


@pytest.mark.parametrize("assignor", ASSIGNORS.values(), ids=list(ASSIGNORS))
def test_group_without_members_has_no_shares(assignor):
    """Nobody, nothing."""
    assert assignor([], {}) == assigned(assignor, [], {}) == {}


@pytest.mark.parametrize("assignor", ASSIGNORS.values(), ids=list(ASSIGNORS))
def test_members_come_by_instance_id(assignor):
    """A static member stands where its instance id says; under a new member id it gets the same again."""
    others = [member("b", "orders"), member("d", "orders")]
    before = assignor([*others, member("z-1", "orders", instance_id="c")], {"orders": 4})
    after = assignor([member("a-2", "orders", instance_id="c"), *others], {"orders": 4})
    assert before["z-1"] == after["a-2"] == of("orders", *((1,) if assignor is uniform else (2,)))
    assert [before["b"], before["d"]] == [after["b"], after["d"]]


@pytest.mark.parametrize("assignor", ASSIGNORS.values(), ids=list(ASSIGNORS))
def test_instance_id_may_equal_a_member_id(assignor):
    """Two members in the same place come in the order of their member ids."""
    pair = [member("x", "orders"), member("a", "orders", instance_id="x")]
    assert assignor(pair, {"orders": 3}) == assignor(pair[::-1], {"orders": 3})
    assert len(assignor(pair, {"orders": 3})["a"]) == 2


# --- uniform ----------------------------------------------------------------------------------------------------------


def test_uniform_spreads_each_topic():
    """A busy topic goes to all, not to the first."""
    answer = uniform([member(name, "orders users") for name in "abcd"], {"orders": 4, "users": 4})
    assert answer == {name: [*of("orders", place), *of("users", place)] for place, name in enumerate("abcd")}


def test_uniform_hands_over_some_of_each_topic():
    """Who joins gets partitions of all topics, not all partitions of the last."""
    old = member("a", "orders users", of("orders", *range(4)) + of("users", *range(4)))
    answer = uniform([old, member("b", "orders users")], {"orders": 4, "users": 4})
    assert answer == {
        "a": of("orders", 0, 1) + of("users", 0, 1),
        "b": of("orders", 2, 3) + of("users", 2, 3),
    }


def test_uniform_leaves_the_extra_partition_where_it_is():
    """Of five partitions among two, the third stays with who has it, though another comes first."""
    members = [member("a", "orders", of("orders", 0, 3)), member("b", "orders", of("orders", 1, 2, 4))]
    assert uniform(members, {"orders": 5}) == {"a": of("orders", 0, 3), "b": of("orders", 1, 2, 4)}


def test_uniform_gives_each_its_extra_partition_back():
    """Members with too much keep one more than others as long as there is one more to have."""
    members = [member("a", "orders"), member("b", "orders", of("orders", *range(7)))]
    assert {name: len(share) for name, share in uniform(members, {"orders": 7}).items()} == {"a": 3, "b": 4}


def test_uniform_settles_a_partition_that_two_claim():
    """One of the two keeps it, and the other's own partitions stay too."""
    members = [member("a", "orders", of("orders", 0, 1)), member("b", "orders", of("orders", 1, 2))]
    assert uniform(members, {"orders": 4}) == {"a": of("orders", 0, 1), "b": of("orders", 2, 3)}


def test_uniform_lets_the_second_keep_what_the_first_cannot():
    """Of two members with the same claims, each keeps what it may; the newcomer gets the rest."""
    members = [member("a", "orders"), *(member(name, "orders", of("orders", 0, 1)) for name in "bc")]
    assert uniform(members, {"orders": 3}) == {"a": of("orders", 2), "b": of("orders", 0), "c": of("orders", 1)}


def test_uniform_balances_over_all_topics():
    """Who alone reads a topic gets less of the others."""
    members = [member("a", "orders users"), member("b", "orders"), member("c", "orders")]
    answer = uniform(members, {"orders": 5, "users": 4})
    assert answer == {"a": of("users", *range(4)), "b": of("orders", 0, 2, 4), "c": of("orders", 1, 3)}


def test_uniform_serves_those_without_a_choice_first():
    """Only one member can take payments, so it gets no users that would have to push out its orders."""
    members = [
        member("a", "orders payments users", of("orders", 0)),
        member("b", "users"),
        member("c", "orders", of("orders", 1)),
    ]
    answer = uniform(members, {"orders": 2, "payments": 1, "users": 2})
    assert answer == {"a": of("orders", 0) + of("payments", 0), "b": of("users", 0, 1), "c": of("orders", 1)}


def test_uniform_deals_in_the_order_of_members():
    """Also when neighbours subscribe to different topics."""
    members = [member("a", "orders users"), member("b", "orders"), member("c", "orders users")]
    assert uniform(members, {"orders": 3, "users": 0}) == {name: of("orders", n) for n, name in enumerate("abc")}


def test_uniform_moves_along_a_chain():
    """A partition may go where another made room, though its topic was balanced before."""
    members = [
        member("a", "orders", of("orders", 0, 1, 2, 3)),
        member("b", "orders users", of("users", 0, 1, 2)),
        member("c", "users"),
    ]
    answer = uniform(members, {"orders": 4, "users": 3})
    assert answer == {"a": of("orders", 0, 1, 2), "b": of("orders", 3) + of("users", 0), "c": of("users", 1, 2)}
    assert improvements(members, answer) == []


@given(groups(equal=True))
def test_uniform_differs_by_one_at_most(group):
    """With equal subscriptions nobody has two more than another."""
    members, partitions = group
    loads = [len(share) for share in uniform(members, partitions).values()]
    assert max(loads) - min(loads) <= 1


@given(groups())
def test_uniform_cannot_be_improved_by_a_move(group):
    """With any subscriptions, no partition could go to another subscriber and improve the balance."""
    members, partitions = group
    assert improvements(members, uniform(members, partitions)) == []


@given(groups(equal=True, exclusive=True))
def test_uniform_keeps_as_much_as_balance_allows(group):
    """With equal subscriptions as much stays as in any balanced assignment, whatever the state before."""
    members, partitions = group
    answer = uniform(members, partitions)
    claims = [len(valid_claims(each, partitions)) for each in members]
    size, larger = divmod(sum(map(len, answer.values())), len(members))
    best = sum(min(count, size) for count in claims) + min(larger, sum(count > size for count in claims))
    assert sum(claims) - sum(map(len, lost(members, answer, partitions).values())) == best


@given(groups())
def test_uniform_changes_nothing_when_nothing_changed(group):
    """Its own answer, given back, stays."""
    members, partitions = group
    answer = uniform(members, partitions)
    assert uniform(followed(members, answer), partitions) == answer


@given(groups(), st.randoms(use_true_random=False))
def test_uniform_accepts_another_assignors_balance(group, random):
    """An assignment that no single move improves stays, whoever made it."""
    members, partitions = group
    answer = {each.member_id: [] for each in members}
    for topic in NAMES:
        takers = [each.member_id for each in members if topic in each.topics]
        for partition in of(topic, *range(partitions[topic])) if takers else []:
            answer[random.choice(takers)].append(partition)
    while moves := improvements(members, answer):
        partition, giver, taker = random.choice(moves)
        answer[giver].remove(partition)
        answer[taker].append(partition)
    assert uniform(followed(members, answer), partitions) == {name: sorted(share) for name, share in answer.items()}


@given(EVENTS, COUNTS)
@example([("join", 0, frozenset(), "", 0)] * 11 + [("leave", 3, frozenset(), "", 0)] * 9, dict.fromkeys(NAMES, 13))
def test_uniform_moves_little_among_equals(events, partitions):
    """Who joins gets partitions and nobody else does; who leaves, or a topic that grows, takes nothing from others."""
    for kind, members, counts, answer in lives(events, partitions, equal=True):
        check_rules(members, counts, answer)
        loads = [len(share) for share in answer.values()]
        assert max(loads) - min(loads) <= 1
        gone = lost(members, answer, counts)
        if kind == "join":
            newcomer = members[-1].member_id
            moved = sum(map(len, gone.values()))
            assert moved <= -(-sum(loads) // len(members))
            assert set().union(*gone.values()) <= set(answer[newcomer])
        elif kind != "subscribe":  # leave, grow, nothing
            assert gone == {}


@given(EVENTS, COUNTS)
def test_uniform_stays_balanced_through_a_life(events, partitions):
    """With unequal subscriptions every state of a group is complete and cannot be improved; the same again stays."""
    for kind, members, counts, answer in lives(events, partitions, equal=False):
        check_rules(members, counts, answer)
        assert improvements(members, answer) == []
        assert uniform(followed(members, answer), counts) == answer
        if kind == "nothing":
            assert lost(members, answer, counts) == {}


@given(groups())
def test_uniform_leaves_strangers_alone(group):
    """A member with topics of its own moves nothing of those who do not subscribe to them."""
    members, partitions = group
    answer = uniform(members, partitions)
    joined = [*followed(members, answer), member("new", "alone")]
    assert uniform(joined, {**partitions, "alone": 3}) == {**answer, "new": of("alone", 0, 1, 2)}


@given(groups())
def test_uniform_exchanges_nothing_within_a_topic(group):
    """No member loses a partition of a topic and gets another of the same topic, unless somebody else claimed it."""
    members, partitions = group
    answer = uniform(members, partitions)
    claimed = Counter(claim for each in members for claim in valid_claims(each, partitions))
    for each in members:
        given_up = {
            claim.topic for claim in lost([each], answer, partitions).get(each.member_id, ()) if claimed[claim] == 1
        }
        new = {partition.topic for partition in set(answer[each.member_id]) - each.assigned}
        assert not given_up & new


# --- range ------------------------------------------------------------------------------------------------------------


def test_range_gives_the_first_members_one_more():
    """Eight partitions among three are three, three and two, in order."""
    answer = range_by_topic([member(name, "orders") for name in "cab"], {"orders": 8})
    assert answer == {"a": of("orders", 0, 1, 2), "b": of("orders", 3, 4, 5), "c": of("orders", 6, 7)}


def test_range_passes_over_who_does_not_subscribe():
    """Each topic is shared out among its own subscribers; too many of them get nothing."""
    members = [member("a", "orders users"), member("b", "users"), member("c", "orders users")]
    assert range_by_topic(members, {"orders": 3, "users": 2}) == {
        "a": of("orders", 0, 1) + of("users", 0),
        "b": of("users", 1),
        "c": of("orders", 2),
    }


@given(groups())
def test_ranges_are_contiguous_and_even(group):
    """Per topic, subscribers in order have neighbouring ranges, the larger ones first."""
    members, partitions = group
    answer = range_by_topic(members, partitions)
    in_order = sorted(members, key=lambda each: (each.group_instance_id or each.member_id, each.member_id))
    for topic in set().union(*(each.topics for each in members)):
        shares = [
            [partition.partition for partition in answer[each.member_id] if partition.topic == topic]
            for each in in_order
            if topic in each.topics
        ]
        sizes = [len(share) for share in shares]
        assert list(itertools.chain(*shares)) == list(range(partitions[topic]))
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


@given(groups(), st.integers(0, 12))
def test_topics_of_equal_shape_meet_in_one_member(group, count):
    """With the same subscribers and number of partitions, each member has the same numbers of both topics."""
    members, partitions = group
    joined = [
        GroupMember(each.member_id, each.group_instance_id, each.topics | {"left", "right"}, each.assigned)
        if "orders" in each.topics
        else each
        for each in members
    ]
    for share in range_by_topic(joined, {**partitions, "left": count, "right": count}).values():
        numbers = {side: [number for topic, number in share if topic == side] for side in ("left", "right")}
        assert numbers["left"] == numbers["right"]


# --- what a callable answers ------------------------------------------------------------------------------------------

PAIR = [member("a", "orders users"), member("b", "orders")]
TWO = {"orders": 2, "users": 1, "forgotten": 1}


def answering(answer):
    """An assignor with a fixed answer."""

    def fixed(members, partitions):
        return answer

    return fixed


class Index:
    """Like numpy's integers: an integer by `__index__` only."""

    def __index__(self):
        return 1


def test_callable_gets_members_and_partitions():
    """It is called once, with what the group is."""
    calls = []

    def mine(*call):
        calls.append(call)
        return uniform(*call)

    assigned(mine, PAIR, TWO)
    assert calls == [(PAIR, TWO)]


@pytest.mark.parametrize(
    "share",
    [
        of("orders", 0, 1) + of("users", 0),
        {("orders", 0), ("orders", 1), ("users", 0)},
        (["orders", 0], ("orders", Index()), TopicPartition("users", 0)),
        {TopicPartition("orders", 0): 1, TopicPartition("orders", 1): 1, TopicPartition("users", 0): 1},
    ],
    ids=["list", "set of plain pairs", "all that is a pair", "keys"],
)
def test_good_answers_come_out_alike(share):
    """Any collection of pairs will do, members may be left out, and what comes out is typed."""
    checked = assigned(answering({"a": share}), PAIR, TWO)
    assert checked == {"a": frozenset(of("orders", 0, 1) + of("users", 0)), "b": frozenset()}
    assert {(type(partition), type(partition.partition)) for partition in checked["a"]} == {(TopicPartition, int)}


def test_callable_may_answer_with_generators():
    """A share is gone through once."""
    lazy = {name: iter(share) for name, share in uniform(PAIR, TWO).items()}
    assert assigned(answering(lazy), PAIR, TWO) == assigned(uniform, PAIR, TWO)


@pytest.mark.parametrize("answer", [None, [], "a", [("a", of("orders", 0))]])
def test_answer_that_is_no_mapping_is_refused(answer):
    """It must say who gets what."""
    with pytest.raises(ConfigError, match=r"the assignor 'fixed' returned .*mapping of member ids") as caught:
        assigned(answering(answer), PAIR, TWO)
    assert caught.value.assignor == "fixed"


GOOD = {"a": of("orders", 0) + of("users", 0), "b": of("orders", 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": []}, "gave partitions to 'c', which is no member"),
        ({None: []}, "gave partitions to None, which is no member"),
        ({"b": None}, "gave None to member 'b': it gives a list"),
        ({"b": 1}, "gave 1 to member 'b': it gives a list"),
        ({"b": "orders"}, "gave 'o': a partition is a pair"),
        ({"b": [1]}, "gave 1: a partition is a pair"),
        ({"b": ["or"]}, "gave 'or': a partition is a pair"),
        ({"b": [("orders", 1, 2)]}, r"gave \('orders', 1, 2\): a partition is a pair"),
        ({"b": [(1, "orders")]}, r"gave \(1, 'orders'\): a partition is a pair"),
        ({"b": [("orders", 1.0)]}, r"gave \('orders', 1.0\): a partition is a pair"),
        ({"b": [("orders", True)]}, r"gave \('orders', True\): a partition is a pair"),
        ({"b": [("orders", int)]}, "a partition is a pair"),
        ({"b": of("orders", 1, 2)}, "gave partition 2 of topic 'orders', which does not exist"),
        ({"b": of("orders", -1)}, "gave partition -1 of topic 'orders', which does not exist"),
        ({"b": of("unknown", 0)}, "gave partition 0 of topic 'unknown', which does not exist"),
        ({"a": of("orders", 0), "b": of("users", 0)}, "partition 0 of topic 'users' to member 'b', which does not sub"),
        ({"a": of("forgotten", 0)}, "gave partition 0 of topic 'forgotten' to member 'a', which does not subscribe"),
        ({"b": of("orders", 1, 0)}, "gave partition 0 of topic 'orders' to member 'b', and to 'a' before"),
        ({"b": of("orders", 1, 1)}, "gave partition 1 of topic 'orders' to member 'b', and to 'b' before"),
        ({"a": []}, "gave partition 0 of topic 'orders' to nobody"),
        ({"b": []}, "gave partition 1 of topic 'orders' to nobody"),
        ({"a": of("orders", 0)}, "gave partition 0 of topic 'users' to nobody"),
    ],
)
def test_bad_share_is_refused(changes, message):
    """The message names the assignor, and the first thing that is wrong."""
    assert assigned(answering(GOOD), PAIR, TWO)
    with pytest.raises(ConfigError, match=f"the assignor 'fixed' .*{message}"):
        assigned(answering({**GOOD, **changes}), PAIR, TWO)


def test_assignor_without_a_name_is_named_by_its_repr():
    """Not every callable is a function."""
    nameless = functools.partial(answering(None))
    with pytest.raises(ConfigError, match=r"functools\.partial"):
        assigned(nameless, PAIR, TWO)


def test_error_of_an_assignor_passes():
    """What a callable raises reaches the caller as it is, also while its answer is gone through."""

    def failing(members, partitions):
        raise ZeroDivisionError

    def failing_late(members, partitions):
        return {"a": (1 // 0 for _ in range(1))}

    for assignor in (failing, failing_late):
        with pytest.raises(ZeroDivisionError):
            assigned(assignor, PAIR, TWO)


def test_names_of_assignors_are_fixed():
    """Settings name them, so they stay."""
    assert dict(ASSIGNORS) == {"uniform": uniform, "range": range_by_topic}
