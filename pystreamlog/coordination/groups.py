"""The consumer groups of a log: finding, making and sharing them within a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group
from pystreamlog.coordination.group_state import StateFile
from pystreamlog.coordination.group_transaction import named_transaction
from pystreamlog.coordination.journal import Entry
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.names import encoded_id
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.errors import ClosedError, CorruptLogError, IncompatibleFormatError, ReadOnlyError
from pystreamlog.storage.files import Files

__all__ = ["Groups", "group_folder", "group_folders", "read_group_id", "sync_offsets"]

_FOLDER = "groups"
_CHUNK = 1 << 20
_NEW = "~new-"
_FORMAT = 1
_LIMIT = 64 << 10


class _GroupFormat(msgspec.Struct, frozen=True):
    """What `group.json` of any format holds."""

    format: int


class _GroupFile(msgspec.Struct, frozen=True):
    """The contents of `group.json`."""

    format: int
    id: str
    created_ms: int


def group_folder(group_id: str) -> str:
    """A group's folder, relative to the log's directory."""
    return f"{_FOLDER}/{encoded_id(group_id)}"


def group_folders(files: Files) -> list[str]:
    """The folders of all groups."""
    try:
        names = files.list_directories(_FOLDER)
    except FileNotFoundError:
        return []
    return [f"{_FOLDER}/{name}" for name in names if not name.startswith(_NEW)]


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


def read_group_id(files: Files, folder: str) -> str:
    """The id that the `group.json` of a group's folder tells.

    Raises:
        FileNotFoundError: There is none.
        IncompatibleFormatError: A newer version's.
        CorruptLogError: It is damaged.
    """
    full = files.path(f"{folder}/group.json")
    raw = files.read(f"{folder}/group.json", limit=_LIMIT)
    try:
        if msgspec.json.decode(raw, type=_GroupFormat).format > _FORMAT:
            raise IncompatibleFormatError(f"{full} was made by a newer release of pystreamlog: upgrade", path=full)
        return msgspec.json.decode(raw, type=_GroupFile).id
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptLogError(f"{full} is damaged: {error}", path=full) from error


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
        read_only: bool = False,
    ) -> None:
        self._find_entry = find_entry
        self._recover = recover
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
        if self._read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to use a group_id")
        self._recover()
        with self._lock:
            if self._closed:
                raise ClosedError("the log was closed: open it again")
            group = self._open.get(group_id)
            if group is None or group.is_deleted():  # its users may still close what they have
                path = group_folder(group_id)
                if not self._is_there(path, group_id):
                    self._create(path, group_id)
                group = Group(
                    self._files,
                    path,
                    log_id=self._log_id,
                    group_id=group_id,
                    clock=self._clock,
                    boot_id=self._boot_id,
                    find_entry=self._find_entry,
                )
                self._open[group_id] = group
            group.users += 1
            return group

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
            group = self.open(group_id)
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
        try:
            found = read_group_id(self._files, path)
        except FileNotFoundError:
            if not self._files.exists(path):
                return False
            try:  # another process may have made it between the two looks
                found = read_group_id(self._files, path)
            except FileNotFoundError as error:
                raise CorruptLogError(f"{full} is missing: restore the folder from a copy", path=full) from error
        if found != group_id:
            raise CorruptLogError(f"{full} is another group's", path=full, expected=group_id, found=found)
        return True

    def _create(self, path: str, group_id: str) -> None:
        files = self._files
        with self._changing():  # type: ignore[attr-defined]  # a context manager
            if self._is_there(path, group_id):
                return
            with suppress(FileExistsError):
                files.make_directory(_FOLDER)
            for name in files.list_directories(_FOLDER):
                if name.startswith(_NEW):  # of a process that was killed while making one
                    files.remove_directory(f"{_FOLDER}/{name}")
            temporary = f"{_FOLDER}/{_NEW}group"
            files.make_directory(temporary)
            try:
                files.make_directory(f"{temporary}/bells")
                header = _GroupFile(_FORMAT, group_id, self._clock.now_ms())
                files.write(f"{temporary}/group.json", msgspec.json.encode(header))
                files.write(f"{temporary}/offsets", OffsetStore.image(log_id=self._log_id, group_id=group_id))
                files.write(f"{temporary}/members", StateFile.image())
                files.create(f"{temporary}/control").close()
                files.sync_directory(temporary)
                files.rename(temporary, path)
            except BaseException:
                files.remove_directory(temporary)
                raise
            files.sync_directory(_FOLDER)
            files.sync_directory("")

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
