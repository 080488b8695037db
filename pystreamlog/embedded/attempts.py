"""Trying all items of a call and raising what failed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from pystreamlog.errors import StreamLogError

__all__ = ["Attempts", "items"]

T = TypeVar("T", bound=str)


class Attempts:
    """Gathers errors, and raises them as one `ExceptionGroup` when its `with` block is left without another.

    Args:
        call: The name of the call, for the message.
    """

    __slots__ = ("_call", "_errors")

    def __init__(self, call: str) -> None:
        self._call = call
        self._errors: list[StreamLogError | OSError] = []

    @contextmanager
    def about(self, **item: object) -> Iterator[None]:
        """One item: an error within is noted, and gets these attributes where it says nothing of them itself."""
        try:
            yield
        except (StreamLogError, OSError) as error:
            for name, value in item.items():
                error.__dict__.setdefault(name, value)
            self._errors.append(error)

    def failed(self, error: StreamLogError) -> None:
        """An item failed."""
        self._errors.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._errors:
            raise ExceptionGroup(f"{self._call}() failed in part, or altogether", self._errors)


def items(names: T | Iterable[T]) -> list[T]:
    """The names of a call that takes one or several, each once."""
    return list(dict.fromkeys([names] if isinstance(names, str) else names))
