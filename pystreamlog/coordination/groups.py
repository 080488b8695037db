"""The consumer groups of a log: finding, making and sharing them within a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group
from pystreamlog.coordination.group_state import StateFile
from pystreamlog.coordination.group_transaction import DELETING, named_transaction
from pystreamlog.coordination.journal import Entry
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.names import encoded_id
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    IncompatibleFormatError,
    ReadOnlyError,
    UnknownGroupError,
)
from pystreamlog.storage.files import Files

__all__ = [
    "Deletable",
    "Groups",
    "group_folder",
    "group_folders",
    "group_images",
    "journal_offset",
    "pass_journal",
    "read_group_id",
    "sync_offsets",
    "unknown_group",
]

_FOLDER = "groups"
_CHUNK = 1 << 20
_NEW, _GONE = "~new-", "~gone-"
_FORMAT = 1
_LIMIT = 64 << 10
_OPENINGS = 20
"""How often a group may be deleted, and made again, while it is being opened."""


class _GroupFormat(msgspec.Struct, frozen=True):
    """What `group.json` of any format holds."""

    format: int


class _GroupFile(msgspec.Struct, frozen=True):
    """The contents of `group.json`."""

    format: int
    id: str
    created_ms: int
    journal_offset: int = 0


def group_folder(group_id: str) -> str:
    """A group's folder, relative to the log's directory."""
    return f"{_FOLDER}/{encoded_id(group_id)}"


def group_folders(files: Files) -> list[str]:
    """The folders of all groups."""
    try:
        names = files.list_directories(_FOLDER)
    except FileNotFoundError:
        return []
    return [f"{_FOLDER}/{name}" for name in names if "~" not in name]


def sync_offsets(files: Files, group_id: str, *, anew: bool, names: bool) -> None:
    """Put a group's committed offsets on disk.

    Args:
        files: The door to the log's directory.
        group_id: The group.
        anew: Write them once more, as an fsync of them failed: a second one would say that all is well.
        names: Sync the names on the way to them too: who made the group may have been killed before that.

    Raises:
        FileNotFoundError: There is no such group.
        StorageError: The disk failed.
    """
    folder = group_folder(group_id)
    file = files.open(f"{folder}/offsets", write=True)
    try:
        if anew:
            control = files.open(f"{folder}/control", write=True)
            try:
                with FileLock(control.fd, control.path, stamp_position=None).held(LOCK_TIMEOUT):
                    for position in range(0, file.size(), _CHUNK):
                        file.pwrite(file.pread(_CHUNK, position), position)
            finally:
                control.close()
        file.datasync()
    finally:
        file.close()
    for name in (_FOLDER, "") if names else ():
        files.sync_directory(name)


def journal_offset(files: Files, group_id: str) -> int:
    """Below that, what the journal says of a group concerns another of its name, or what it has forgotten.

    0 where there is no such group, or where its `group.json` is damaged, which its users are told.
    """
    try:
        return _read(files, group_folder(group_id)).journal_offset
    except (FileNotFoundError, CorruptLogError, IncompatibleFormatError):
        return 0


def pass_journal(files: Files, group_id: str, offset: int) -> None:
    """Have what the journal says of a group below `offset` concern it no more; needs the group's lock."""
    folder = group_folder(group_id)
    found = _read(files, folder)
    if found.journal_offset < offset:
        found = msgspec.structs.replace(found, journal_offset=offset)
        files.write(f"{folder}/group.json", msgspec.json.encode(found))


def read_group_id(files: Files, folder: str) -> str:
    """The id that the `group.json` of a group's folder tells.

    Raises:
        FileNotFoundError: There is none.
        IncompatibleFormatError: A newer version's.
        CorruptLogError: It is damaged.
    """
    return _read(files, folder).id


def _read(files: Files, folder: str) -> _GroupFile:
    full = files.path(f"{folder}/group.json")
    raw = files.read(f"{folder}/group.json", limit=_LIMIT)
    try:
        if msgspec.json.decode(raw, type=_GroupFormat).format > _FORMAT:
            raise IncompatibleFormatError(f"{full} was made by a newer release of pystreamlog: upgrade", path=full)
        return msgspec.json.decode(raw, type=_GroupFile)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptLogError(f"{full} is damaged: {error}: restore it from a copy", path=full) from error


def group_images(log_id: bytes, group_id: str, now_ms: int, *, journal_offset: int) -> dict[str, bytes]:
    """What the files of a new group hold, by name; beside them it has an empty `control` and a folder `bells`.

    Args:
        log_id: The log's id.
        group_id: The group's.
        now_ms: The time.
        journal_offset: What the journal says below that concerns an earlier group of its name.
    """
    header = _GroupFile(_FORMAT, group_id, now_ms, journal_offset)
    return {
        "group.json": msgspec.json.encode(header),
        "offsets": OffsetStore.image(log_id=log_id, group_id=group_id),
        "members": StateFile.image(),
    }


def unknown_group(group_id: str) -> UnknownGroupError:
    """The error for a group that there is not."""
    return UnknownGroupError(
        f"there is no group {group_id!r}: list_consumer_groups() tells which there are; its first consumer makes one",
        group_id=group_id,
    )


class Deletable(Protocol):
    """What deleting a group needs of it."""

    group_id: str

    def name_transaction(self, position: int, nonce: int) -> None:
        """See `Group.name_transaction`."""


class Groups:
    """The groups of one log that this process uses. Safe from any thread.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        clock: Dates new groups.
        boot_id: Tells this boot's id.
        changing: Holds the lock under which folders of the log come and go.
        find_entry: Finds the published entry of the journal with a position and a nonce.
        recover: Finishes the transactions of an earlier boot: they may take committed offsets back.
        durable: Tells below which offset the journal is on disk.
        read_only: Refuse to open any.
    """

    def __init__(
        self,
        files: Files,
        log_id: bytes,
        clock: Clock,
        boot_id: Callable[[], bytes],
        changing: Callable[[], object],
        find_entry: Callable[[int, int], Entry | None],
        recover: Callable[[], None],
        *,
        durable: Callable[[], int] = lambda: 0,
        read_only: bool = False,
    ) -> None:
        self._find_entry = find_entry
        self._recover = recover
        self._durable = durable
        self._swept_at: tuple[int, int] = (-1, -1)
        self._read_only = read_only
        self._files = files
        self._log_id = log_id
        self._clock = clock
        self._boot_id = boot_id
        self._changing = changing
        self._lock = threading.Lock()
        self._open: dict[str, Group] = {}
        self._closed = False
        register_inherited(self)

    def open(self, group_id: str) -> Group:
        """The group, made if it is missing (some ms); give it back by `close_group`.

        Raises:
            ReadOnlyError: The log is read-only.
            CorruptLogError: Its files are damaged.
        """
        return self._opened(group_id, create=True)

    def open_existing(self, group_id: str) -> Group:
        """The group, never made; give it back by `close_group`.

        Raises:
            UnknownGroupError: There is none.
            ReadOnlyError, CorruptLogError: See `open`.
        """
        return self._opened(group_id, create=False)

    def _opened(self, group_id: str, *, create: bool) -> Group:
        if self._read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to use a group_id")
        self._recover()
        with self._lock:
            if self._closed:
                raise ClosedError("the log was closed: open it again")
            group = self._open.get(group_id)
            if group is None or group.is_deleted():  # its users may still close what they have
                group = self._open[group_id] = self._new(group_id, create=create)
            group.users += 1
            return group

    def _new(self, group_id: str, *, create: bool) -> Group:
        """Open a group, whoever deletes and makes it meanwhile: all files are of one and the same."""
        path = group_folder(group_id)
        for attempt in range(_OPENINGS):
            if not self._is_there(path, group_id):
                if not create:
                    raise unknown_group(group_id)
                self._create(path, group_id)
            try:
                group = Group(
                    self._files,
                    path,
                    log_id=self._log_id,
                    group_id=group_id,
                    clock=self._clock,
                    boot_id=self._boot_id,
                    find_entry=self._find_entry,
                )
            except CorruptLogError as error:
                was_there = not isinstance(error.__cause__, FileNotFoundError)
                if was_there or attempt == _OPENINGS - 1:
                    raise
                continue
            if group.is_in_place():
                return group
            group.close()
        raise unknown_group(group_id)

    def finish_transaction(self, group_id: str, following: int) -> None:
        """Store the offsets of a transaction below `following` in the journal, if the group still names one."""
        try:
            file = self._files.open(f"{group_folder(group_id)}/control")
        except FileNotFoundError:
            return
        try:
            position, _ = named_transaction(file)
        finally:
            file.close()
        if 0 <= position < following:
            with suppress(UnknownGroupError):
                group = self.open_existing(group_id)
                try:
                    group.finish_transaction()
                finally:
                    self.close_group(group)

    def close_group(self, group: Group) -> None:
        """Give a group back; the last user closes it."""
        with self._lock:
            group.users -= 1
            if not group.users:
                if self._open.get(group.group_id) is group:
                    del self._open[group.group_id]
                group.close()

    def _is_there(self, path: str, group_id: str) -> bool:
        full = self._files.path(f"{path}/group.json")
        for _ in range(_OPENINGS):  # another process may make or delete it between two looks
            try:
                found = read_group_id(self._files, path)
            except FileNotFoundError:
                if not self._files.exists(path):
                    return False
                continue
            if found != group_id:
                raise CorruptLogError(f"{full} is another group's", path=full, expected=group_id, found=found)
            return True
        raise CorruptLogError(f"{full} is missing: restore the folder from a copy", path=full)

    def _create(self, path: str, group_id: str) -> None:
        files = self._files
        with self._changing():  # type: ignore[attr-defined]  # a context manager
            if self._is_there(path, group_id):
                return
            with suppress(FileExistsError):
                files.make_directory(_FOLDER)
            if self._folder_version() != self._swept_at:  # else making 10,000 groups would list the folder so often
                names = files.list_directories(_FOLDER)  # what a process leaves that is killed, or removes just now
                self.remove(f"{_FOLDER}/{name}" for name in names if name.startswith((_NEW, _GONE)))
            temporary = f"{_FOLDER}/{_NEW}group"
            files.make_directory(temporary)
            try:
                files.make_directory(f"{temporary}/bells")
                images = group_images(self._log_id, group_id, self._clock.now_ms(), journal_offset=self._durable())
                for entry, image in images.items():
                    files.write(f"{temporary}/{entry}", image)
                files.create(f"{temporary}/control").close()
                files.sync_directory(temporary)
                files.rename(temporary, path)
            except BaseException:
                files.remove_directory(temporary)
                raise
            files.sync_directory(_FOLDER)
            files.sync_directory("")
            self._swept_at = self._folder_version()

    def _folder_version(self) -> tuple[int, int]:
        status = self._files.status(_FOLDER)
        return status.st_mtime_ns, status.st_nlink

    # --- deleting

    def put_away(self, group: Deletable) -> str:
        """Delete a group as all others see it, under its lock; the folder that `remove` must remove.

        Whoever has it open finds out by what its control file says from now on. A crash before the rename leaves the
        group as it was, one after it leaves none.
        """
        gone = f"{_FOLDER}/{_GONE}{os.urandom(8).hex()}"
        with self._changing():  # type: ignore[attr-defined]  # a context manager
            group.name_transaction(DELETING, 0)
            self._files.rename(group_folder(group.group_id), gone)
        return gone

    def remove(self, folders: Iterable[str]) -> None:
        """Remove what `put_away` has put away; that it is gone is on disk when it returns."""
        folders = list(folders)
        if folders:
            self._files.sync_directory(_FOLDER)  # first, or a power loss could leave a group that lacks files
        for folder in folders:
            self._files.remove_directory(folder)

    # --- life

    def close(self) -> None:
        """Close every group; again is harmless."""
        with self._lock:
            self._closed = True
            groups, self._open = list(self._open.values()), {}
        for group in groups:
            group.close()

    def close_inherited(self) -> None:
        """Close every inherited file in a forked child, where groups are opened anew."""
        self._lock = threading.Lock()
        groups, self._open = list(self._open.values()), {}
        for group in groups:
            group.close()
        register_inherited(self)
