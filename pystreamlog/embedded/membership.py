"""A consumer as a member of its group: joining, giving up and taking partitions, being fenced, leaving.

Everything happens in the consumer's own polls, in small steps (`work`), so that callbacks can be called, or awaited,
between them. A step first looks without a lock, and takes the group's only when there is something to do; when another
holds it, the member goes on reading what it owns and tries again a little later.

The order that keeps two members from reading one partition: a member that must give up a partition tells its callbacks,
commits, and releases it, in this order; another takes it only then, and starts at what was committed.

`life_cycle` says how the stages follow each other.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from math import inf
from time import monotonic, monotonic_ns

from pystreamlog.backend.consumer import ConsumerConfig
from pystreamlog.backend.group import GroupMetadata
from pystreamlog.coordination.assignors import ASSIGNORS
from pystreamlog.coordination.group import Group, GroupBusyError, Seat
from pystreamlog.coordination.group_change import GroupChange, MemberConfig, Sharing
from pystreamlog.coordination.group_state import GroupState, Member, PartitionKey, keys_of
from pystreamlog.coordination.neighbours import Death, Neighbours
from pystreamlog.coordination.topics import Topics
from pystreamlog.coordination.wakeups import Subscription
from pystreamlog.embedded.assignment import Assignment
from pystreamlog.embedded.commits import Commits, NeedsRoomError
from pystreamlog.embedded.holdings import Holdings
from pystreamlog.embedded.interest import Interest
from pystreamlog.embedded.life_cycle import LIFE_CYCLE, Event, Stage
from pystreamlog.errors import StreamLogError

__all__ = ["Membership"]

_log = logging.getLogger("pystreamlog")

BELL = "bell"
"""Key of the watch on the member's bell."""

_SHORTEST_BUSY_SECONDS, _LONGEST_BUSY_SECONDS = 0.001, 0.032
"""How long to leave a group's lock alone that another holds, at first and at most. Among 64 members on two cores,
trying each 2 ms took the processors from the very process that held it: settling took 7 s instead of 2 to 3."""

_LOOK_SECONDS = 5.0
"""How often a waiting member looks though no bell was rung."""
_STUCK_SECONDS = 10.0
"""How long the group's lock may be held by another, who has it for less than a millisecond, until that is logged."""


class Membership:
    """The place of one consumer in its group. One user at a time.

    Args:
        group: The group.
        config: The consumer's settings.
        topics: The log's topics.
        interest: What the consumer subscribes to.
        assignment: What it reads.
        subscription: Watches for changes.
        commits: Its commits.

    Attributes:
        needed_room: How many partitions `make_room` must be called for before the next `work`.
        stage: How the consumer stands to the group.
        due: Monotonic time at which `work` must look again though nothing was reported; infinite when never.
        rung: Something was reported.
    """

    __slots__ = (
        "_assignment",
        "_busy_seconds",
        "_busy_since",
        "_changing_since",
        "_commits",
        "_config",
        "_epoch",
        "_group",
        "_holdings",
        "_id",
        "_interest",
        "_look",
        "_neighbours",
        "_resubscribed",
        "_seat",
        "_seen",
        "_sign_ns",
        "_stamp_ns",
        "_subscription",
        "_topics",
        "due",
        "needed_room",
        "rung",
        "stage",
    )

    def __init__(
        self,
        group: Group,
        config: ConsumerConfig,
        *,
        topics: Topics,
        interest: Interest,
        assignment: Assignment,
        subscription: Subscription,
        commits: Commits,
    ) -> None:
        self.needed_room = 0
        self.stage = Stage.OUTSIDE
        self.due = 0.0
        self.rung = False
        self._group = group
        self._config = config
        self._topics = topics
        self._interest = interest
        self._assignment = assignment
        self._subscription = subscription
        self._commits = commits
        self._id = ""
        self._epoch = -1
        self._seat: Seat | None = None
        self._seen = b""
        self._look = False
        self._busy_since, self._busy_seconds = 0.0, _SHORTEST_BUSY_SECONDS
        self._changing_since = 0.0
        self._resubscribed = False
        self._holdings = Holdings(topics, interest, assignment, commits)
        self._neighbours = Neighbours(group, subscription)
        self._sign_ns = 0
        self._stamp_ns = min(config.max_poll_interval_ms * 100_000, 1_000_000_000)

    def __del__(self) -> None:
        seat = getattr(self, "_seat", None)
        if seat is not None and seat.lock.locked:  # a consumer that nobody closed
            with suppress(StreamLogError, OSError):
                seat.lock.release()
            self._neighbours.unwatch()
            self._ring_all()

    def metadata(self) -> GroupMetadata:
        """Who the consumer is in the group."""
        return GroupMetadata(self._group.group_id, self._epoch, self._id, self._config.group_instance_id)

    # --- what is noted, without a lock

    def polled(self) -> None:
        """The consumer polls, or takes the next record of a loop: say so, if that was not said for a while."""
        now_ns = monotonic_ns()
        if now_ns >= self._sign_ns and self._seat is not None:
            self._sign_ns = now_ns + self._stamp_ns
            self._group.polled(self._seat.slot, now_ns)
            # A bell may be lost, as its ringer was out of descriptors: nobody is to wait for ever because of that.
            self.rung = self.rung or self.is_rung()

    def next_sign(self) -> float:
        """Seconds after which a waiting consumer must say that it is still there, and look by itself."""
        return min(self._config.max_poll_interval_ms / 3000, _LOOK_SECONDS) if self._seat is not None else inf

    def note(self, changed: set[object] | None, topics: set[str] | None) -> None:
        """Take up what the subscription said.

        Args:
            changed: Keys; None means that everything may have changed.
            topics: What the assignment made of it.
        """
        if topics is None or topics or self._assignment.ended:
            self._assignment.ended = False
            self._look = self.rung = True
            for name in self._assignment.topics() if topics is None else topics:
                self._assignment.look_at_unmade(name)
        if changed is None:
            self.rung = self.rung or not self._subscription.polling or self._group.changed_since(self._seen)
            return
        for key in changed:
            if key == BELL:
                self.rung = True
            elif isinstance(key, Death):
                self._neighbours.died(key.pid)
                self.rung = True

    def is_rung(self) -> bool:
        """Whether the group changed since the last `work`; one system call."""
        return self._group.changed_since(self._seen)

    def resubscribe(self) -> None:
        """The consumer subscribes to other topics."""
        self._resubscribed = True
        self.rung = True

    # --- one step

    def work(self) -> bool:
        """Do what is due, as far as callbacks need not be told first. Never waits for the group's lock.

        Returns:
            Whether there may be more: tell the callbacks, then call again.

        Raises:
            FencedError: A live member has the same `group_instance_id`.
            UnknownGroupError: The group's folder was deleted.
            ConfigError: The assignor's answer is wrong.
        """
        if self.stage is Stage.FENCED:
            self._become(Event.TOLD)
        if not self.rung and monotonic() < self.due:
            return False
        self._group.check_exists()
        self._group.ring_due()
        try:
            if self.stage is Stage.OUTSIDE:
                return self._join()
            return self._reconcile()
        except NeedsRoomError as need:
            self.needed_room = need.count
            return True
        except GroupBusyError:
            self._wait_for_lock()
            return False
        except BaseException:
            self.rung = True
            raise

    def make_room(self) -> None:
        """Have the group reserve the room that `work` found missing; may wait for the disk."""
        count, self.needed_room = self.needed_room, 0
        try:
            self._group.reserve(count)
        except GroupBusyError:
            self._wait_for_lock()

    def _wait_for_lock(self) -> None:
        """Try again a little later, and say so once the lock is held for long."""
        now = monotonic()
        jitter = 0.5 + monotonic_ns() // 1000 % 1000 / 1000
        self.rung, self.due = False, now + self._busy_seconds * jitter
        self._busy_seconds = min(2 * self._busy_seconds, _LONGEST_BUSY_SECONDS)
        self._busy_since = self._busy_since or now
        if now - self._busy_since > _STUCK_SECONDS:
            self._busy_since = now
            _log.warning(
                "group %r cannot be changed for %g s, as a process holds its lock that may be stopped; reading what is "
                "owned goes on, and commit() would say who it is",
                self._group.group_id,
                _STUCK_SECONDS,
            )

    def _become(self, event: Event) -> None:
        self.stage = LIFE_CYCLE[self.stage, event]

    def _member_config(self) -> MemberConfig:
        config, assignor = self._config, self._config.assignor
        if isinstance(assignor, str):
            function, name = ASSIGNORS[assignor], assignor
        else:
            function = assignor
            name = f"{getattr(assignor, '__module__', '')}:{getattr(assignor, '__qualname__', type(assignor).__name__)}"
            name = ascii(name)[:200]
        return MemberConfig(
            topics=self._interest.names,
            pattern=self._interest.pattern,
            instance_id=config.group_instance_id,
            assignor=function,
            assignor_name=name,
            max_poll_interval_ms=config.max_poll_interval_ms,
            session_timeout_ms=config.session_timeout_ms,
        )

    def _sharing(self, config: MemberConfig) -> Sharing:
        return Sharing(self._topics, config, self._commits.fix_starts, self._group.forget_topic)

    def _join(self) -> bool:
        config = self._member_config()
        self._changing_since = self._changing_since or self._commits.metrics.now()

        def join(change: GroupChange) -> Member:
            self._busy_since, self._busy_seconds = 0.0, _SHORTEST_BUSY_SECONDS
            change.sweep()
            back = change.returning(config)
            self._seat = seat = self._group.sit_down(change, back)
            self._subscription.watch(BELL, seat.bell)
            alone = all(member.left_ns for member in change.state.members)
            member = change.join(config, seat.slot, back)
            change.share_out(self._sharing(config), topics_changed=alone)
            change.take(member)
            return member

        try:
            member = self._group.change(join, 0)
            self._id, self._epoch = member.id, member.epoch
            self._commits.member_id = member.id
            self._sign_ns = monotonic_ns() + self._stamp_ns
            self._holdings.forget()
            self._resubscribed = False
            self.rung = True
            if self._interest.pattern is not None:
                self._interest.watch_for_topics()
            self._become(Event.JOINED)
        except BaseException:
            if self.stage is Stage.OUTSIDE and self._seat is not None:
                self._stand_up()
                self._ring_all()  # should it stand in the state: its lock is free
            raise
        return True

    def _reconcile(self) -> bool:
        """Become what the group says: tell what goes, give it up, take what is free."""
        self.rung, self.due = False, inf
        self._keep_bell()
        heads, state = self._group.view()
        member = state.member(self._id)
        if member is None:
            self._lose()
            return True
        if heads != self._seen:
            self._holdings.retry()
            self._neighbours.watch(state)
            self._seen = heads
        owned, target = set(keys_of(member.owned)), set(keys_of(member.target))
        if not self._holdings.follow(owned, state):
            self._look = True
        surplus = owned - target
        self._holdings.regain(owned - surplus)
        self._settle(owned == target)
        if self._holdings.give_up(surplus):
            self.rung = True
            return True
        looked = self._look and self._interest.differs_from(state.topics)
        self._look = False
        if (
            surplus
            or looked
            or self._resubscribed
            or state.unshared
            or self._may_take(target - owned, state)
            or self._neighbours.is_any_late(state, self._id)
        ):
            try:
                self._change(surplus, topics_changed=looked)
            except BaseException:
                self._look = self._look or looked
                self.rung = True
                raise
            self.rung = True
            return True
        self.due = self._neighbours.next_look(state, self._id)
        return False

    def _keep_bell(self) -> None:
        """Make the bell again, if somebody deleted it."""
        if self._seat is not None:
            try:
                self._subscription.watch(BELL, self._seat.bell)
            except FileNotFoundError:
                self._group.make_bell(self._seat.slot)
                self._subscription.watch(BELL, self._seat.bell)

    def _settle(self, settled: bool) -> None:  # noqa: FBT001 - private
        metrics = self._commits.metrics
        if settled and self.stage is Stage.RECONCILING:
            self._become(Event.SETTLED)
            metrics.rebalances.add(self._changing_since, metrics.now())
            self._changing_since = 0.0
        elif not settled and self.stage is Stage.STABLE:
            self._become(Event.RESHARED)
            self._changing_since = metrics.now()

    def _change(self, surplus: set[PartitionKey], *, topics_changed: bool) -> None:
        config = self._member_config()
        moved = self._holdings.moved(surplus) if self._config.enable_auto_commit else {}

        def reconcile(change: GroupChange) -> None:
            self._busy_since, self._busy_seconds = 0.0, _SHORTEST_BUSY_SECONDS
            member = change.state.member(self._id)
            if member is None:
                return  # fenced just now: the next look sees it
            self._group.polled(member.slot, monotonic_ns())
            change.sweep()
            self._group.store(self._commits.entries(moved))
            if surplus:
                change.release(member, surplus)
            if self._resubscribed:
                change.subscribe(member, config)
            change.share_out(self._sharing(config), topics_changed=topics_changed)
            change.take(member)

        self._group.change(reconcile, 0)
        self._resubscribed = False
        if moved:
            self._commits.done(moved)

    def _may_take(self, wanted: set[PartitionKey], state: GroupState) -> bool:
        """Whether anything that is wanted is free."""
        for member in state.members:
            if not wanted:
                return False
            if member.id != self._id:
                wanted.difference_update(keys_of(member.owned))
        return bool(wanted)

    # --- the end

    def _lose(self) -> None:
        """The group took everything: the consumer had not polled for too long."""
        _log.warning(
            "group %r has this consumer as a member no more, as it had not polled for max_poll_interval_ms=%d (or an "
            "admin took it out, or the group's state was damaged): it loses %d partitions, and rejoins",
            self._group.group_id,
            self._config.max_poll_interval_ms,
            len(self._holdings),
        )
        self._become(Event.FENCED)
        metrics = self._commits.metrics
        metrics.failed_rebalances.add(now := metrics.now(), now)
        self._holdings.lose()
        self._stand_up()
        self.rung = True

    def _stand_up(self) -> None:
        """Be a member no more."""
        self._commits.member_id = None
        self._changing_since = 0.0
        self._id, self._epoch = "", -1
        self._seen = b""
        self._neighbours.unwatch()
        seat, self._seat = self._seat, None
        if seat is not None:
            self._subscription.unwatch(BELL)
            seat.lock.close()

    def tell_all(self) -> None:
        """Have the callbacks told that everything goes."""
        self._holdings.give_up_all()

    def leave(self, event: Event, timeout: float) -> None:
        """Leave the group; the others take over at once, unless the member is static.

        Raises:
            GroupBusyError: `timeout` is 0, and another holds the group's lock: nothing was done.
            LockTimeoutError: Another held it for that long; the consumer has left, which the others find out.
        """
        if self._seat is None:
            if self.stage is not Stage.OUTSIDE or event is Event.CLOSED:
                self._become(event)
            return
        in_order = False
        try:
            self._group.change(self._leave, timeout)
            in_order = True
        except (GroupBusyError, StreamLogError):
            raise
        except Exception:  # noqa: BLE001 - a callable assignor may; and `NeedsRoomError` is for those who stay
            _log.info("could not share out what is left behind in group %r", self._group.group_id, exc_info=True)
        finally:
            if not isinstance(sys.exception(), GroupBusyError):
                self._end(event)
                if not in_order:
                    self._ring_all()  # the state could not say it: the lock, which is free now, does

    def _leave(self, change: GroupChange) -> None:
        member = change.state.member(self._id)
        if member is not None:
            change.leave(member)
            change.share_out(self._sharing(self._member_config()), topics_changed=False)

    def _ring_all(self) -> None:
        with suppress(StreamLogError, OSError):
            for member in self._group.view()[1].members:
                self._group.ring(member.slot)

    def abandon(self) -> None:
        """Be gone at once, and say so to the others, whoever is using this just now."""
        seat, self._seat = self._seat, None
        if seat is not None and seat.lock.locked:
            seat.lock.release()
            self._neighbours.unwatch()
            self._ring_all()

    def _end(self, event: Event) -> None:
        self._stand_up()
        self._holdings.forget()
        self._become(event)
        self.due, self.rung = 0.0, False
