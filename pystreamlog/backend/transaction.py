"""The contract of a transaction: records of any partitions, and offsets, that count together or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from pystreamlog.backend.consumer import Consumer

__all__ = ["Transaction"]


class Transaction(ABC):
    """A transaction of a producer, as `Producer.transaction` makes it.

    Entering `with` begins it, leaving commits it, and leaving with an exception aborts it. What the producer sends
    meanwhile belongs to it.
    """

    __slots__ = ()

    @abstractmethod
    def send_offsets(self, consumer: Consumer[Any, Any]) -> None:
        """Commit with the transaction what this consumer will have handed out by then, of the partitions it owns.

        An abort seeks the consumer back to its committed offsets.

        Raises:
            ConfigError: It commits by itself: it needs `enable_auto_commit=False`.
            IllegalStateError: It has no group.
        """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
