"""Telling users which partitions came and went: `on_assign` and `on_revoke`, plain functions or coroutine functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pystreamlog.embedded.assignment import Assignment
from pystreamlog.errors import IllegalStateError
from pystreamlog.record.record import TopicPartition

__all__ = ["Callback", "Callbacks"]

Callback = Callable[[Any, list[TopicPartition]], object]


class Callbacks:
    """The callbacks of one consumer. What came and went is told once; an exception leaves the call that tells.

    Args:
        assignment: Knows what came and went.
        on_assign: Called with the consumer and the partitions that came.
        on_revoke: The same with those that went.
        on_lost: The same with those that a group took without asking; `on_revoke` where it is None.

    Attributes:
        muted: Nobody is told.
        telling: A callback is being called.
    """

    __slots__ = ("_assignment", "_on_assign", "_on_lost", "_on_revoke", "muted", "telling")

    def __init__(
        self,
        assignment: Assignment,
        on_assign: Callback | None,
        on_revoke: Callback | None,
        on_lost: Callback | None,
    ) -> None:
        self.muted = False
        self.telling = False
        self._assignment = assignment
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._on_lost = on_lost

    def replace(self, on_assign: Callback | None, on_revoke: Callback | None, on_lost: Callback | None) -> None:
        """Call these from now on; None leaves what there is."""
        self._on_assign = on_assign or self._on_assign
        self._on_revoke = on_revoke or self._on_revoke
        self._on_lost = on_lost or self._on_lost

    def are_due(self) -> bool:
        """Whether anything came or went that was not told."""
        return bool(self._assignment.lost or self._assignment.removed or self._assignment.added)

    def _due(self) -> tuple[Callback, list[TopicPartition]] | None:
        """The next callback and its partitions, once; None when all were told."""
        assignment = self._assignment
        while assignment.lost or assignment.removed or assignment.added:
            if assignment.lost:
                callback, told = self._on_lost or self._on_revoke, assignment.lost
            elif assignment.removed:
                callback, told = self._on_revoke, assignment.removed
            else:
                callback, told = self._on_assign, assignment.added
            tps = sorted(told)
            told.clear()
            if callback is not None and not self.muted:
                return callback, tps
        return None

    def tell(self, consumer: object) -> None:
        """Call what is due.

        Raises:
            IllegalStateError: It is a coroutine function.
        """
        while (due := self._due()) is not None:
            callback, tps = due
            self.telling = True
            try:
                if inspect.isawaitable(answer := callback(consumer, tps)):
                    if inspect.iscoroutine(answer):
                        answer.close()
                    raise IllegalStateError("a coroutine callback needs poll_async() or `async for`, which await it")
            finally:
                self.telling = False

    async def tell_async(self, consumer: object) -> None:
        """Call, and await, what is due."""
        while (due := self._due()) is not None:
            callback, tps = due
            self.telling = True
            try:
                if inspect.isawaitable(answer := callback(consumer, tps)):
                    await answer
            finally:
                self.telling = False

    def tell_at_once(self, consumer: object) -> None:
        """Call what is due outside of a poll, where a coroutine function cannot be awaited: that one waits."""
        if not inspect.iscoroutinefunction(self._on_revoke):
            self.tell(consumer)
