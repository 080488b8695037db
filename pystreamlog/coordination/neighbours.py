"""The other members of a consumer's group: noticing that one is gone, or silent for too long.

Their processes are watched, so that a death is reported within a millisecond. Where that is not possible (other pid
namespaces, no `pidfd`) their locks are tried every 50 ms. Nothing here takes the group's lock, or changes the group:
who notices something does that (`group_change`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf
from time import monotonic, monotonic_ns
from typing import NamedTuple

from pystreamlog.coordination.deaths import deaths
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_change import max_silence_ns
from pystreamlog.coordination.group_state import GroupState, Member
from pystreamlog.coordination.holders import pid_namespace
from pystreamlog.coordination.wakeups import Subscription

__all__ = ["Death", "Neighbours"]

_UNWATCHED_SECONDS = 0.05
"""How often the locks are tried of members whose processes cannot be watched."""

_DYING_SECONDS = 0.001


class Death(NamedTuple):
    """Key under which the end of a process is reported."""

    pid: int


class Neighbours:
    """Who is in a group beside one member. One user at a time.

    Args:
        group: The group.
        subscription: Gets the deaths reported.
    """

    __slots__ = ("_dying", "_dying_seconds", "_group", "_here", "_namespace", "_subscription", "_watched")

    def __init__(self, group: Group, subscription: Subscription) -> None:
        self._group = group
        self._subscription = subscription
        self._here = os.getpid()
        self._namespace = pid_namespace()
        self._watched: set[int] = set()
        self._dying: set[int] = set()
        self._dying_seconds = _DYING_SECONDS

    def watch(self, state: GroupState) -> None:
        """Have the deaths of these members' processes reported, and of no others."""
        wanted = {
            member.pid
            for member in state.members
            if member.pid != self._here
            and member.namespace == self._namespace != 0
            and not member.left_ns
            and not self._subscription.polling  # nothing can be reported to it
        }
        for pid in self._watched - wanted:
            deaths().unwatch(pid, self._subscription, Death(pid))
        self._watched = {
            pid for pid in wanted if pid in self._watched or deaths().watch(pid, self._subscription, Death(pid))
        }
        self._dying &= wanted

    def unwatch(self) -> None:
        """Have nothing reported any more; from any thread, or a finalizer."""
        watched, self._watched = self._watched, set()
        for pid in watched:
            deaths().unwatch(pid, self._subscription, Death(pid))
        self._dying.clear()

    def died(self, pid: int) -> None:
        """A death was reported; the process's locks are free, or will be in a moment."""
        self._dying.add(pid)
        self._dying_seconds = _DYING_SECONDS

    def is_any_late(self, state: GroupState, but: str) -> bool:
        """Whether a member other than that is gone, or silent for too long: then somebody must change the group."""
        group, now_ns = self._group, monotonic_ns()
        polls = group.last_polls_ns(state)
        for member in state.members:
            if member.id == but:
                continue
            if member.left_ns:
                if now_ns - member.left_ns >= member.session_timeout_ms * 1_000_000:
                    return True
            elif not group.is_alive(member.slot) or now_ns - polls[member.slot] > max_silence_ns(member):
                return True
        return False

    def next_look(self, state: GroupState, but: str) -> float:
        """Monotonic time at which to look again though nothing was reported; infinite when never."""
        others = [member for member in state.members if member.id != but]
        now = monotonic()
        polls = self._group.last_polls_ns(state)
        due = min((_due(member, polls) for member in others), default=inf)
        if any(member.pid in self._dying for member in others):
            # Its process ended, but something still holds its lock: a program that it was just starting.
            due = min(due, now + self._dying_seconds)
            self._dying_seconds = min(2 * self._dying_seconds, _UNWATCHED_SECONDS)
        elif any(self._is_unwatched(member) for member in others):
            due = min(due, now + _UNWATCHED_SECONDS)
        return max(due, now + _DYING_SECONDS)

    def _is_unwatched(self, member: Member) -> bool:
        if member.left_ns or (member.pid in self._watched and not self._subscription.polling):
            return False
        return member.pid != self._here or member.namespace != self._namespace


def _due(member: Member, polls: Sequence[int]) -> float:
    """When a member may have been silent, or away, for too long."""
    if member.left_ns:
        return member.left_ns / 1e9 + member.session_timeout_ms / 1e3
    return (polls[member.slot] + max_silence_ns(member)) / 1e9
