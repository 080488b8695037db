"""The bare kernel wake-up that `waiting` compares with: inotify through ctypes, nothing else (Linux)."""

import ctypes
import os
import select
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from benches.measuring import UnsupportedHereError

_IN_MODIFY = 0x2


class Watch:
    """An inotify descriptor that wakes when one file is written."""

    def __init__(self, path: Path) -> None:
        """Watch `path`, which must exist.

        Raises:
            UnsupportedHereError: Not on Linux.
            OSError: The kernel refuses.
        """
        if sys.platform != "linux":
            message = "the bare wake-up is measured through inotify, which only Linux has"
            raise UnsupportedHereError(message)
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if library.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def wait(self, timeout_ms: int) -> None:
        """Block until the file is written, and forget the events.

        Raises:
            TimeoutError: Nothing came for `timeout_ms`.
        """
        if not self._poll.poll(timeout_ms):
            raise TimeoutError
        os.read(self._descriptor, 65_536)
