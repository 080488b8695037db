"""`with` and `async with` for whatever has a `close` and a `close_async`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing(ABC):
    """Something to be closed; leaving `with` closes it."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release everything; again is harmless."""

    async def close_async(self) -> None:
        """As `close`, without blocking the event loop."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close_async()
