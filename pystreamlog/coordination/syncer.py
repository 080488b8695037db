"""The background thread of a log that syncs rolled segments, and what the topics' `flush_ms` wants synced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import monotonic
from typing import Protocol

from pystreamlog.errors import ClosedError, StreamLogError, UnknownTopicError
from pystreamlog.storage.folder import Folder

__all__ = ["Syncer"]

_log = logging.getLogger("pystreamlog")


class _Writer(Protocol):
    folder: Folder

    @property
    def sync(self) -> Callable[[int], None]: ...


class Syncer:
    """Syncs partitions when they are due. Safe from any thread; the thread starts at the first use."""

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything: this is a new process."""
        self._lock = threading.Lock()  # entered by itself: in a condition's own code, Ctrl-C would leave it locked
        self._changed = threading.Condition(self._lock)
        self._due: list[tuple[float, int, _Writer, int]] = []
        self._order = count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def schedule(self, writer: _Writer, offset: int, seconds: float) -> None:
        """Have all below `offset` synced that many seconds from now."""
        with self._lock:
            if self._closed:
                return
            heappush(self._due, (monotonic() + seconds, next(self._order), writer, offset))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="pystreamlog-sync", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except BaseException as error:
                    if not thread.is_alive():
                        self._thread = None
                    if not isinstance(error, RuntimeError):
                        raise
                    # The interpreter is shutting down: recovery would have a segment more to walk.
                    self._due.clear()
                    return
            self._changed.notify()

    def _next(self) -> tuple[_Writer, int] | None:
        with self._lock:
            while not self._closed:
                if not self._due:
                    self._changed.wait()
                    continue
                wait = self._due[0][0] - monotonic()
                if wait <= 0:
                    _, _, writer, offset = heappop(self._due)
                    return writer, offset
                self._changed.wait(wait)
            return None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            writer, offset = job
            try:
                writer.sync(offset)
            except (ClosedError, UnknownTopicError, FileNotFoundError):
                continue  # the log was closed, or the topic deleted, before its turn or at it
            except (StreamLogError, OSError) as error:
                _log.warning("%s: could not sync in the background: %s", writer.folder.path, error)

    def finish(self) -> None:
        """Sync what is due at some time, now, and end the thread; a sync under way is waited for."""
        with self._lock:
            left = {id(writer): (writer, offset) for _, _, writer, offset in sorted(self._due, key=lambda due: due[3])}
            self._due.clear()
            self._closed = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for writer, offset in left.values():
            try:
                writer.sync(offset)
            except (StreamLogError, OSError) as error:
                _log.warning("%s: could not sync at closing: %s", writer.folder.path, error)
