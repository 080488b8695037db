"""Sharing out keeps its rules whatever members do: no two owners, nothing left out, nobody left waiting."""

import re

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pystreamlog.coordination.assignors import range_by_topic, uniform
from pystreamlog.coordination.group_change import GroupChange, MemberConfig, Sharing, matching, max_silence_ns
from pystreamlog.coordination.group_state import GroupState, keys_of
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import ConfigError, FencedError, UnknownTopicError

MS = 1_000_000
BOOT = b"boot"
NAMES = ("a", "b", "ab")
SUBSCRIPTIONS = [(("a",), None), (("a", "b"), None), (("b", "missing"), None), ((), "a.*"), ((), ".*"), (("a",), None)]


class FakeTopics:
    """The topics of a log."""

    def __init__(self):
        self.states = {}
        self.made = 0

    def make(self, name, partitions):
        """A new topic of that name, with an id of its own."""
        self.made += 1
        self.states[name] = TopicState(name, b"topic-%010d" % self.made, partitions, TopicConfig(), 0)

    def names(self):
        """See `Topics.names`."""
        return sorted(self.states)

    def find(self, name):
        """See `Topics.find`."""
        try:
            return self.states[name]
        except KeyError as error:
            raise UnknownTopicError(name, topic=name) from error

    find_anew = find

    def forget(self, name):
        """Nothing is cached here."""


class FakeLiveness:
    """Who holds which lock, and when who polled."""

    def __init__(self):
        self.now = 10_000 * MS
        self.alive = set()
        self.polls = {}

    def now_ns(self):
        """See `Liveness.now_ns`."""
        return self.now

    def is_alive(self, slot):
        """See `Liveness.is_alive`."""
        return slot in self.alive

    def last_polls_ns(self, state):
        """See `Liveness.last_polls_ns`."""
        return [
            self.polls.get(slot, 0) for slot in range(1 + max((member.slot for member in state.members), default=-1))
        ]


class Client(msgspec.Struct, eq=False):
    """A consumer that is, or believes to be, a member."""

    config: MemberConfig
    slot: int = -1
    id: str = ""
    silent: bool = False


def config(subscription=0, instance_id=None, assignor=uniform, name="uniform", **times):
    """What a member joins with."""
    topics, pattern = SUBSCRIPTIONS[subscription]
    values = {"max_poll_interval_ms": 1000, "session_timeout_ms": 5000} | times
    return MemberConfig(topics, None if pattern is None else re.compile(pattern), instance_id, assignor, name, **values)


class Coordinator:
    """A group's state, and changes of it as members make them, each checked against the rules."""

    def __init__(self):
        self.topics = FakeTopics()
        self.liveness = FakeLiveness()
        self.raw = msgspec.msgpack.encode(GroupState(boot=BOOT))
        self.fixed = {}
        self.gone = set()
        self.fenced = set()
        self.alive_before, self.polls_before = set(), {}
        self.stale = False

    @property
    def state(self):
        """The state as it was written last."""
        return msgspec.msgpack.decode(self.raw, type=GroupState)

    def sharing(self, by):
        """What sharing out needs."""

        def on_topic(topic, before):
            assert self.topics.states[topic.name] == topic
            known = self.state.topics.get(topic.id)
            assert before in ((0, None) if known is None else (known.partitions,))
            self.fixed[topic.id] = topic.partitions

        def on_gone(topic_id):
            assert topic_id not in {topic.id for topic in self.topics.states.values()}
            assert topic_id not in self.gone
            self.gone.add(topic_id)

        return Sharing(self.topics, by, on_topic, on_gone)

    def begin(self, boot=BOOT):
        """A change."""
        self.alive_before, self.polls_before = set(self.liveness.alive), dict(self.liveness.polls)
        return GroupChange(self.state, self.liveness, boot)

    def end(self, change, actor_slot, *, may_lose=()):
        """Write it, as `Group.changing` does, and check what it did."""
        before, after = self.state, change.state
        raw = msgspec.msgpack.encode(after)
        assert change.changed or raw == self.raw
        self.raw = raw
        after = self.state
        self.check_members(before, after, may_lose)
        self.check_rung(before, after, change.rung, actor_slot)
        assert after.generation >= before.generation
        targets = {member.id: member.target for member in before.members}
        if any(targets.get(member.id, member.target) != member.target for member in after.members):
            assert after.generation > before.generation

    def check_members(self, before, after, may_lose):
        """Nobody loses a partition but in the three ways, and nobody gets one that it shall not own."""
        liveness = self.liveness
        for member in before.members:
            still = after.member(member.id)
            if still is not None:
                if member.id not in may_lose:
                    assert set(keys_of(member.owned)) <= set(keys_of(still.owned))
                continue
            self.fenced.add(member.id)
            if member.id in may_lose:
                continue
            if member.slot in self.alive_before:
                silence = liveness.now - self.polls_before[member.slot]
                assert silence > max_silence_ns(member) > member.max_poll_interval_ms * MS
            elif member.instance_id is not None:
                assert member.left_ns
                assert liveness.now - member.left_ns >= member.session_timeout_ms * MS
        for member in after.members:
            was = before.member(member.id)
            gained = set(keys_of(member.owned)) - set(keys_of(was.owned) if was is not None else ())
            if was is not None or member.instance_id is None:
                assert gained <= set(keys_of(member.target))

    def check_rung(self, before, after, rung, actor_slot):
        """Who has something to do that it had not before is rung."""
        for member in after.members:
            if member.slot == actor_slot or member.left_ns or not self.liveness.is_alive(member.slot):
                continue
            was = before.member(member.id)
            assert to_do(after, member) <= (to_do(before, was) if was is not None else set()) or member.slot in rung
        for member in before.members:
            if after.member(member.id) is None and member.slot in self.alive_before:
                assert member.slot in (rung | {actor_slot})

    # --- what members do

    def join(self, client):
        """A client joins, or is told that somebody has its id."""
        change = self.begin()
        change.sweep()
        back = change.returning(client.config)
        taken = {member.slot for member in change.state.members} | self.liveness.alive
        slot = back.slot if back is not None else min(set(range(100)) - taken)
        self.liveness.alive.add(slot)
        self.liveness.polls[slot] = self.liveness.now
        alone = all(member.left_ns for member in change.state.members)
        others = {member.slot for member in change.state.members if member is not back}
        member = change.join(client.config, slot, back)
        change.share_out(self.sharing(client.config), topics_changed=alone)
        change.take(member)
        client.slot, client.id = slot, member.id
        assert others <= change.rung
        if back is not None:
            assert set(keys_of(back.owned)) <= set(keys_of(member.owned))
        self.end(change, slot, may_lose=() if back is None else (back.id,))

    def act(self, client, *, releases=True, subscribes=None):
        """A client polls: does what it must; False when it finds that it was fenced."""
        liveness = self.liveness
        client.silent = False
        if self.state.member(client.id) is None:
            liveness.alive.discard(client.slot)
            return False
        liveness.polls[client.slot] = liveness.now
        change = self.begin()
        change.sweep()
        member = change.state.member(client.id)
        surplus = set(keys_of(member.owned)) - set(keys_of(member.target)) if releases else set()
        if surplus:
            change.release(member, surplus)
        if subscribes is not None:
            client.config = subscribes
            change.subscribe(member, subscribes)
        change.share_out(self.sharing(client.config), topics_changed=self.stale)
        self.stale = False
        taken = change.take(member)
        assert set(taken) <= set(keys_of(member.owned))
        self.end(change, client.slot, may_lose=(client.id,) if surplus else ())
        return True

    def leave(self, client):
        """A client closes."""
        change = self.begin()
        member = change.state.member(client.id)
        if member is not None:
            change.leave(member)
            change.share_out(self.sharing(client.config), topics_changed=False)
            self.end(change, client.slot, may_lose=(client.id,))
        self.liveness.alive.discard(client.slot)

    # --- what must always be so

    def check(self):
        """The rules that one state must keep."""
        state = self.state
        owned = [key for member in state.members for key in keys_of(member.owned)]
        assert len(owned) == len(set(owned))
        for what in ("id", "slot"):
            found = [getattr(member, what) for member in state.members]
            assert len(found) == len(set(found))
        assert self.fenced.isdisjoint(member.id for member in state.members)
        target = [key for member in state.members for key in keys_of(member.target)]
        assert len(target) == len(set(target))
        everything = {
            (topic_id, number) for topic_id, topic in state.topics.items() for number in range(topic.partitions)
        }
        if state.members:
            assert set(target) == everything
        for member in state.members:
            assert {state.topics[topic_id].name for topic_id in member.target} <= wanted(member, state)
        for topic_id, topic in state.topics.items():
            assert self.fixed[topic_id] == topic.partitions


def wanted(member, state):
    """The names of shared topics that a member subscribes to."""
    names = [topic.name for topic in state.topics.values()]
    return set(member.topics) if member.pattern is None else set(matching(re.compile(*member.pattern), names))


def to_do(state, member):
    """What a member must act on: partitions to give up, and to take."""
    owned, target = set(keys_of(member.owned)), set(keys_of(member.target))
    others = {key for other in state.members if other.id != member.id for key in keys_of(other.owned)}
    return {("release", key) for key in owned - target} | {("take", key) for key in target - owned - others}


class GroupMachine(RuleBasedStateMachine):
    """Members come, go, die, fall silent and return, topics come and go, in any order."""

    def __init__(self):
        super().__init__()
        self.group = Coordinator()
        self.clients = []

    @initialize(partitions=st.integers(1, 5))
    def begin(self, partitions):
        """A first topic."""
        self.group.topics.make("a", partitions)

    def pick(self, number):
        """One of the clients that live."""
        return self.clients[number % len(self.clients)]

    @precondition(lambda self: len(self.clients) < 5)
    @rule(
        subscription=st.integers(0, len(SUBSCRIPTIONS) - 1),
        instance=st.sampled_from([None, None, "one", "two"]),
        assignor=st.sampled_from([(uniform, "uniform"), (range_by_topic, "range")]),
    )
    def join(self, subscription, instance, assignor):
        """A consumer joins; a static one perhaps for the second time."""
        client = Client(config(subscription, instance, *assignor))
        held = {each.config.instance_id for each in self.clients if self.group.state.member(each.id) is not None}
        if instance is not None and instance in held and self.group.state.members:
            before = self.group.raw
            holder = next(each for each in self.clients if each.config.instance_id == instance)
            if self.group.liveness.now - self.group.liveness.polls[holder.slot] <= 1000 * MS:
                with pytest.raises(FencedError):
                    self.group.join(client)
                assert self.group.raw == before
                return
        try:
            self.group.join(client)
        except FencedError:
            return
        self.clients.append(client)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9))
    def die(self, number):
        """A process is killed."""
        client = self.pick(number)
        self.group.liveness.alive.discard(client.slot)
        self.clients.remove(client)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9))
    def fall_silent(self, number):
        """A process is stopped."""
        self.pick(number).silent = True

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9))
    def leave(self, number):
        """A consumer closes."""
        client = self.pick(number)
        self.group.leave(client)
        self.clients.remove(client)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9), releases=st.booleans())
    def act(self, number, releases):
        """A consumer polls; its callbacks may not be done yet."""
        client = self.pick(number)
        if not self.group.act(client, releases=releases):
            self.clients.remove(client)

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, 9), subscription=st.integers(0, len(SUBSCRIPTIONS) - 1))
    def resubscribe(self, number, subscription):
        """A consumer wants other topics."""
        client = self.pick(number)
        old = client.config
        new = config(subscription, old.instance_id, old.assignor, old.assignor_name)
        if not self.group.act(client, subscribes=new):
            self.clients.remove(client)

    @rule(milliseconds=st.sampled_from([1, 400, 1000, 1101, 1200, 4999, 6000]))
    def pass_time(self, milliseconds):
        """Who is not silent polls meanwhile."""
        liveness = self.group.liveness
        liveness.now += milliseconds * MS
        for client in self.clients:
            if not client.silent:
                liveness.polls[client.slot] = liveness.now

    @rule(name=st.sampled_from(NAMES), partitions=st.integers(1, 5))
    def make_topic(self, name, partitions):
        """A topic is made, or made anew."""
        self.group.topics.make(name, partitions)
        self.group.stale = True

    @rule(name=st.sampled_from(NAMES))
    def delete_topic(self, name):
        """A topic is deleted."""
        if self.group.topics.states.pop(name, None) is not None:
            self.group.stale = True

    @rule(name=st.sampled_from(NAMES))
    def add_partitions(self, name):
        """A topic grows."""
        topic = self.group.topics.states.get(name)
        if topic is not None:
            grown = msgspec.structs.replace(topic, partitions=topic.partitions + 2)
            self.group.topics.states[name] = grown
            self.group.stale = True

    @invariant()
    def rules_hold(self):
        """In every state."""
        self.group.check()

    @rule()
    def settle(self):
        """When everybody does what it must, all is shared out in the end, and then nothing changes any more."""
        for after in (0, 6000):
            self.pass_time(after)
            for _ in range(4):
                for client in list(self.clients):
                    if not self.group.act(client):
                        self.clients.remove(client)
                        fresh = Client(client.config)
                        self.group.join(fresh)
                        self.clients.append(fresh)
                    self.group.check()
        if not self.clients:
            return
        state, before = self.group.state, self.group.raw
        assert state.is_settled()
        assert {member.id for member in state.members} == {client.id for client in self.clients}
        names = {name for member in state.members for name in wanted_of_all(member, self.group.topics)}
        assert {topic.name for topic in state.topics.values()} == names & set(self.group.topics.states)
        for client in self.clients:
            self.group.act(client)
        assert self.group.raw == before


def wanted_of_all(member, topics):
    """The names of topics that a member subscribes to."""
    return member.topics if member.pattern is None else matching(re.compile(*member.pattern), topics.names())


GroupMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestGroupMachine = GroupMachine.TestCase


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def group():
    """A group over one topic of four partitions."""
    found = Coordinator()
    found.topics.make("a", 4)
    return found


def joined(group, *configs):
    """Members that have joined and settled."""
    clients = [Client(each) for each in configs]
    for client in clients:
        group.join(client)
    for _ in range(3):
        for client in clients:
            group.act(client)
    assert group.state.is_settled()
    return clients


def owned(group, client):
    """The numbers of the partitions that a client owns."""
    member = group.state.member(client.id)
    return None if member is None else [number for _, number in keys_of(member.owned)]


def test_a_partition_moves_only_when_its_owner_gave_it_up(group):
    """The newcomer waits, the owner keeps reading what it keeps."""
    (one,) = joined(group, config())
    other = Client(config())
    group.join(other)
    assert owned(group, one) == [0, 1, 2, 3]
    assert owned(group, other) == []
    group.act(other)
    assert owned(group, other) == []
    group.act(one, releases=False)
    assert len(owned(group, one)) == 4
    group.act(one)
    kept = owned(group, one)
    assert len(kept) == 2
    assert owned(group, other) == []
    group.act(other)
    assert sorted(kept + owned(group, other)) == [0, 1, 2, 3]


def test_a_dead_members_partitions_are_free_at_once(group):
    """For the one who notices."""
    one, other = joined(group, config(), config())
    group.liveness.alive.discard(one.slot)
    group.act(other)
    assert owned(group, one) is None
    assert owned(group, other) == [0, 1, 2, 3]


def test_who_waited_for_a_dead_member_is_rung(group):
    """Though its target is the same as before: `Coordinator.end` checks who is rung."""
    group.topics.states.clear()
    group.topics.make("a", 1)
    group.topics.make("b", 1)
    (one,) = joined(group, config(1))
    waiting, other = Client(config(0)), Client(config(2))
    group.join(waiting)
    group.join(other)
    target = group.state.member(waiting.id).target
    assert target
    assert owned(group, waiting) == []
    group.liveness.alive.discard(one.slot)
    group.act(other)
    assert group.state.member(waiting.id).target == target
    group.act(waiting)
    assert owned(group, waiting) == [0]


@pytest.mark.parametrize(("interval", "tolerance"), [(1000, 101), (5, 1), (60_000, 1000), (300_000, 1000)])
def test_a_silent_member_is_fenced_when_its_time_is_up(group, interval, tolerance):
    """A tenth, and at most a second, later: as its last poll may be told so late; and not before."""
    one, other = joined(group, config(max_poll_interval_ms=interval), config())
    group.liveness.now += (interval + tolerance) * MS
    group.liveness.polls[other.slot] = group.liveness.now
    group.act(other)
    assert len(owned(group, one)) == 2
    group.liveness.now += 1
    group.act(other)
    assert owned(group, one) is None
    assert owned(group, other) == [0, 1, 2, 3]
    assert not group.act(one)


def test_a_poll_in_the_future_fences_nobody(group):
    """The table may hold what another boot left, or damage."""
    one, other = joined(group, config(), config())
    group.liveness.polls[one.slot] = group.liveness.now + 10**18
    group.act(other)
    assert len(owned(group, one)) == 2


@pytest.mark.parametrize("way", ["die", "leave"])
def test_a_static_members_share_waits_for_it(group, way):
    """For `session_timeout_ms` after it was seen to be gone; back in time, it has the same; the others the same too."""
    one, other = joined(group, config(instance_id="one"), config())
    before, generation = (owned(group, one), owned(group, other)), group.state.generation
    group.leave(one) if way == "leave" else group.liveness.alive.discard(one.slot)
    group.act(other)
    group.liveness.now += 4999 * MS
    group.act(other)
    back = Client(config(instance_id="one"))
    group.join(back)
    assert back.id != one.id
    assert (owned(group, back), owned(group, other)) == before
    assert group.state.generation > generation
    group.liveness.alive.discard(back.slot)
    group.act(other)
    group.liveness.now += 5000 * MS
    group.act(other)
    assert owned(group, other) == [0, 1, 2, 3]


def test_a_static_member_that_comes_back_with_other_topics_is_shared_out_anew(group):
    """It keeps what it still wants."""
    group.topics.make("b", 2)
    one, other = joined(group, config(1, "one"), config(1))
    group.liveness.alive.discard(one.slot)
    back = Client(config(0, "one"))
    group.join(back)
    for _ in range(3):
        group.act(back)
        group.act(other)
    assert group.state.is_settled()
    assert {group.state.topics[topic_id].name for topic_id in group.state.member(back.id).owned} == {"a"}


def test_a_second_live_static_member_is_refused(group):
    """It is told whose id that is; the first stays as it was."""
    (one,) = joined(group, config(instance_id="one"))
    before = group.raw
    with pytest.raises(FencedError, match="group_instance_id='one'"):
        group.join(Client(config(instance_id="one")))
    assert group.raw == before
    assert owned(group, one) == [0, 1, 2, 3]


def test_after_a_reboot_everybody_is_gone_and_static_members_have_their_time_again(group):
    """Monotonic times of another boot mean nothing."""
    joined(group, config(instance_id="one"), config())
    group.liveness.alive.clear()
    change = group.begin()
    change.sweep()
    group.end(change, -1, may_lose=())
    assert [member.instance_id for member in group.state.members] == ["one"]
    group.liveness.now = 5 * MS  # the machine has just started
    change = group.begin(b"another boot")
    assert change.changed
    change.sweep()
    assert [member.left_ns for member in change.state.members] == [5 * MS]
    assert change.state.boot == b"another boot"
    group.liveness.now += 5000 * MS
    change.sweep()
    assert change.state.members == []


def test_a_topic_made_anew_is_another(group):
    """Nobody owns the old one's partitions any more, and its offsets are forgotten once."""
    one, other = joined(group, config(), config())
    old = next(iter(group.state.topics))
    group.topics.make("a", 2)
    group.stale = True
    for _ in range(3):
        group.act(one)
        group.act(other)
    assert group.gone == {old}
    assert group.state.is_settled()
    assert old not in group.state.topics
    assert [len(owned(group, client)) for client in (one, other)] == [1, 1]


def test_a_topic_that_nobody_subscribes_to_any_more_is_not_forgotten(group):
    """It exists: its offsets are there when somebody subscribes again."""
    group.topics.make("b", 2)
    (one,) = joined(group, config(1))
    group.act(one, subscribes=config(0))
    group.act(one)
    assert group.gone == set()
    assert {topic.name for topic in group.state.topics.values()} == {"a"}


def test_a_pattern_leaves_internal_topics_out(group):
    """And matches whole names."""
    group.topics.make("__internal", 1)
    group.topics.make("xa", 1)
    (one,) = joined(group, config(3))
    assert {topic.name for topic in group.state.topics.values()} == {"a"}
    assert owned(group, one) == [0, 1, 2, 3]


def test_what_most_members_say_is_how_it_is_shared_out(group):
    """As in Kafka; where nobody knows the function, one's own."""
    group.topics.make("b", 4)
    ranged, even = config(1, None, range_by_topic, "range"), config(1)
    joined(group, ranged, ranged, even)
    shares = [sorted(number for _, number in keys_of(member.owned)) for member in group.state.members]
    assert sorted(shares) == [[0, 0, 1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    "answer",
    [
        lambda members, partitions: {},
        lambda members, partitions: {members[0].member_id: [("a", 0)] * 2},
        lambda members, partitions: {"nobody": []},
        lambda members, partitions: None,
    ],
)
def test_a_wrong_assignor_is_refused(group, answer):
    """Nothing of the change is written: whoever stands there already goes on."""
    (one,) = joined(group, config())
    before = group.raw
    with pytest.raises(ConfigError):
        group.join(Client(config(0, None, answer, "a wrong one")))
    group.liveness.alive = {one.slot}
    assert group.raw == before
    group.act(one)
    assert owned(group, one) == [0, 1, 2, 3]
