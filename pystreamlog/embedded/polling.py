"""How a consumer of the embedded log polls: what one round does, waiting or awaiting.

A round does what the group needs, tells callbacks what came and went, takes records, and waits for a change if there
are none.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import Any, TypeVar

from pystreamlog.backend.consumer import ConsumerConfig
from pystreamlog.backend.metrics import By, checked_by
from pystreamlog.backend.records import Records, RecordSlice
from pystreamlog.coordination.group import Group
from pystreamlog.embedded.callbacks import Callbacks
from pystreamlog.embedded.commits import Commits
from pystreamlog.embedded.membership import Membership
from pystreamlog.embedded.seeking import ConsumerContext, SeekingConsumer
from pystreamlog.embedded.turns import current_task
from pystreamlog.errors import ConfigError, IllegalStateError, StreamLogError, WakeupError
from pystreamlog.record.record import TopicPartition

__all__ = ["PollingConsumer", "noting", "raise_first"]

K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger("pystreamlog")

_COMMIT_SECONDS = 0.005
"""How soon to look again after a transaction that was being committed: its committer may have died."""
_RETRY_SECONDS = 0.05
"""How long an automatic commit leaves a group's lock alone that another holds."""


class PollingConsumer(SeekingConsumer[K, V]):
    """The part of a consumer that polls.

    Args:
        context: What the log lends it.
        config: The consumer's settings.
        group: Its group, if it has one.
    """

    __slots__ = (
        "_before_revoke",
        "_callbacks",
        "_commit_at",
        "_membership",
        "_missed",
        "_mode",
        "_taken",
        "_woken",
    )

    def __init__(self, context: ConsumerContext, config: ConsumerConfig, group: Group | None) -> None:
        super().__init__(context, config, group)
        self._callbacks = Callbacks(self._assignment, config.on_assign, config.on_revoke, config.on_lost)
        self._membership: Membership | None = None
        if group is not None and self._commits is not None:
            self._membership = Membership(
                group,
                config,
                topics=context.topics,
                interest=self._interest,
                assignment=self._assignment,
                subscription=self._subscription,
                commits=self._commits,
            )
        self._before_revoke: Callable[[list[TopicPartition]], Awaitable[None] | None] | None = None
        self._mode = ""
        self._taken: Sequence[RecordSlice] = ()
        self._commit_at = monotonic() + config.auto_commit_interval_ms / 1000
        self._woken = False
        self._missed = False

    def poll(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:
        """See `Consumer.poll`."""
        # As `with self._using()`, written out: half of what a poll of one record costs is calls.
        self._check_open()
        outermost = self._turns.enter()
        self._taken = ()
        try:
            try:
                return self._poll(self._limit(max_records), timeout)
            finally:
                if outermost:
                    self._turns.leave()
        except BaseException as error:
            self._untake()  # Ctrl-C after records were taken: nothing was handed out
            if isinstance(error, StreamLogError):
                self._check_open(error)  # it was closed meanwhile, with its log and its files
            raise

    def _poll(self, limit: int, timeout: float | None) -> Records[K, V]:
        polls = self._metrics.polls
        started = monotonic()
        if started >= polls.rolls_at:
            polls.roll(started)
        polls.started = started
        deadline = None if timeout is None else started + timeout
        assignment, membership = self._assignment, self._membership
        while True:
            self._prepare()
            if assignment.shared and membership is not None:
                if membership.rung or monotonic() >= membership.due or self._callbacks.are_due():
                    self._rebalance(membership)
            elif assignment.removed or assignment.added:
                self._callbacks.tell(self)
            records = self._take(limit)
            now = monotonic()
            left = None if deadline is None else deadline - now
            if records or (left is not None and left <= 0):
                polls.end(started, now)
                return records
            if not assignment.removed:
                self._subscription.wait(self._patience(left))

    async def poll_async(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:  # noqa: ASYNC109 - the twin of `poll`
        """See `Consumer.poll_async`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        with self._using(current_task()):
            self._taken = ()
            limit = self._limit(max_records)
            polls = self._metrics.polls
            started = monotonic()
            if started >= polls.rolls_at:
                polls.roll(started)
            polls.started = started
            deadline = None if timeout is None else started + timeout
            await asyncio.sleep(0)  # a consumer that always finds records must not starve the others of the loop
            try:
                while True:
                    self._prepare()
                    if self._assignment.shared and self._membership is not None:
                        await self._rebalance_async(self._membership)
                    else:
                        await self._callbacks.tell_async(self)
                    records = self._take(limit)
                    now = monotonic()
                    left = None if deadline is None else deadline - now
                    if records or (left is not None and left <= 0):
                        polls.end(started, now)
                        return records
                    if not self._assignment.removed:
                        await self._subscription.wait_async(self._patience(left))
            except BaseException:
                self._untake()
                raise

    def _limit(self, max_records: int | None) -> int:
        if self._callbacks.telling:
            raise IllegalStateError("a callback may not poll: return from it first")
        if not self._mode:
            raise IllegalStateError("nothing is subscribed or assigned: call subscribe() or assign() first")
        if max_records is None:
            return self._config.max_poll_records
        if type(max_records) is not int or max_records < 1:
            raise ConfigError(f"max_records is a whole number from 1, not {max_records!r}")
        return max_records

    def _prepare(self) -> None:
        """Take note of what happened since the last look."""
        self._give_back()
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called")
        # What Ctrl-C keeps from being noted is gone from the subscription: then everything is looked at.
        missed, self._missed = self._missed, True
        changed = self._subscription.changed()
        if missed:
            changed = None
        topics = self._assignment.note(changed)
        commits = self._commits
        if commits is not None:
            if commits.handed:
                commits.move_on()
            if commits.moved:
                self._auto_commit(commits)
        if self._assignment.shared and self._membership is not None:
            self._membership.polled()
            if changed or changed is None or self._assignment.ended:
                self._membership.note(changed, topics)
        elif topics is None or topics or self._assignment.ended:
            self._assignment.ended = False
            self._interest.look(topics)
        self._missed = False

    def _take(self, limit: int) -> Records[K, V]:
        """What there is now, without waiting."""
        while limit and (slices := self._assignment.take(limit)):
            if self._subscription.polling:
                self._subscription.progress()
            self._taken = slices
            records: Records[K, V] = Records(slices)
            if self._intercept:
                records = self._intercept.on_consume(records)
            if self._commits is not None:
                self._commits.hand_out(slices)
                if self._assignment.restarted:
                    self._commits.commit_restarts()
            if records:
                return records
        self._taken = ()
        if self._assignment.restarted and self._commits is not None:
            self._commits.commit_restarts()
        return Records()

    def _untake(self) -> None:
        """Give back what the last poll took, as it was not handed out."""
        taken, self._taken = self._taken, ()
        self._assignment.give_back((part.tp, part.first_offset) for part in taken)
        if taken and self._commits is not None:
            self._commits.handed.clear()

    # --- the group

    def _rebalance(self, membership: Membership) -> None:
        """Do what the group needs, and tell the callbacks; what one raises leaves once all is done."""
        failures: list[Exception] = []
        while membership.work() or self._callbacks.are_due():
            if membership.needed_room:
                membership.make_room()
            with noting(failures):
                if self._before_revoke is not None and self._assignment.removed:
                    self._before_revoke(list(self._assignment.removed))
                self._callbacks.tell(self)
            self._check_open()
        raise_first(failures)

    async def _rebalance_async(self, membership: Membership) -> None:
        """The same, awaiting coroutine callbacks; nothing here waits for the disk in the event loop's thread."""
        from asyncio import to_thread  # noqa: PLC0415 - only for those who use it

        failures: list[Exception] = []
        while membership.work() or self._callbacks.are_due():
            if membership.needed_room:
                await to_thread(membership.make_room)
            with noting(failures):
                if self._before_revoke is not None and self._assignment.removed:
                    answer = self._before_revoke(list(self._assignment.removed))
                    if answer is not None:
                        await answer
                await self._callbacks.tell_async(self)
            self._check_open()
        raise_first(failures)

    def _patience(self, left: float | None) -> float | None:
        """Seconds to wait at most: until the time is up, a commit is due, or the group needs a look or a sign."""
        patience = _COMMIT_SECONDS if self._assignment.awaiting else inf
        if self._commits is None:
            return left if patience == inf else min(patience, inf if left is None else left)
        now = monotonic()
        if self._assignment.shared and self._membership is not None:
            patience = min(patience, self._membership.next_sign(), self._membership.due - now)
        if self._commits.moved and self._is_automatic(self._commits):
            patience = min(patience, self._commit_at - now)
        if left is not None:
            patience = min(patience, left)
        return None if patience == inf else max(0.0, patience)

    def _is_automatic(self, commits: Commits) -> bool:
        """Whether what was moved past is committed by itself; what `process` finished always is."""
        return self._config.enable_auto_commit or commits.by_hand

    def _auto_commit(self, commits: Commits) -> None:
        if commits.moved and self._is_automatic(commits) and (now := monotonic()) >= self._commit_at:
            done = commits.commit_moved()
            self._commit_at = now + (self._config.auto_commit_interval_ms / 1000 if done else _RETRY_SECONDS)

    def wakeup(self) -> None:
        """See `Consumer.wakeup`."""
        self._woken = True
        self._subscription.wakeup()

    # --- metrics

    def metrics(self, by: By | None = None) -> Any:
        """See `Consumer.metrics`."""
        if checked_by(by) == "topic":
            return self._metrics.by_topic()
        distances = self._distances()
        if by == "partition":
            found = self._metrics.by_partition(distances)
            for tp, (lead, lag) in distances.items():
                found[tp].update({"records-lag": lag, "records-lead": lead})
            return found
        return {
            **self._metrics.of_client(),
            "assigned-partitions": 0 if self._closed else len(self._assignment.positions),
            "records-lag-max": max([lag for _, lag in distances.values()], default=0),
            "records-lead-min": min([lead for lead, _ in distances.values()], default=0),
        }

    def _distances(self) -> dict[TopicPartition, tuple[int, int]]:
        """How far each assigned position lies from its partition's start and end."""
        found = {}
        for tp, position in [] if self._closed else list(self._assignment.positions.items()):
            with suppress(StreamLogError):  # it was closed or deleted meanwhile, or is damaged: a poll says that
                position.bounds = position.reader.try_offsets() or position.bounds
            offset, bounds = position.offset, position.bounds
            if offset >= 0 and bounds is not None:
                found[tp] = max(0, offset - bounds[0]), max(0, bounds[1] - offset)
        return found


@contextmanager
def noting(failures: list[Exception]) -> Iterator[None]:
    """Note what the block raises, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a user's callback may raise anything
        failures.append(error)


def raise_first(failures: list[Exception]) -> None:
    """Raise the first of these; the others are logged."""
    for error in failures[1:]:
        _log.error("a second error, after %r", failures[0], exc_info=error)
    if failures:
        raise failures[0]
