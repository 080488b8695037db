"""What an open log lends to its admin."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pystreamlog.backend.admin import Admin
from pystreamlog.clock import Clock
from pystreamlog.coordination.groups import Groups
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.errors import ReadOnlyError
from pystreamlog.storage.files import Files

__all__ = ["AdminContext", "AdminPart"]


class AdminContext(msgspec.Struct, frozen=True):
    """What an admin works on.

    Attributes:
        files: The door to the log's directory.
        log_id: The log's id.
        clock: Tells the time.
        boot_id: Tells this boot's id.
        read_only: Refuse every change.
        topics: The log's.
        partitions: The log's.
        groups: The log's.
        transactions: The log's.
        delete_topic: See `StreamLog.delete_topic`.
        check_open: Raises `ClosedError` after the log was closed.
    """

    files: Files
    log_id: bytes
    clock: Clock
    boot_id: Callable[[], bytes]
    read_only: bool
    topics: Topics
    partitions: Partitions
    groups: Groups
    transactions: Transactions
    delete_topic: Callable[[str], None]
    check_open: Callable[[], None]


class AdminPart(Admin):
    """What the parts of an admin have in common.

    Args:
        context: What it works on.
    """

    __slots__ = ("_context",)

    def __init__(self, context: AdminContext) -> None:
        self._context = context

    def _changing(self) -> None:
        """Say that something is to be changed.

        Raises:
            ClosedError: The log was closed.
            ReadOnlyError: It is read-only.
        """
        self._context.check_open()
        if self._context.read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to change anything")
