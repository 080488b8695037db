"""Topics: made, found, altered and deleted by any process while others read and write them.

A topic is a folder `topics/<name>/` with a `topic.json`. It appears by one rename and disappears by one:

- *create*: the folder is made whole under a temporary name, synced, and renamed.
- *alter*, *add partitions*: `topic.json` is replaced atomically.
- *delete*: each partition is flagged under its append lock, so that no record is acknowledged any more; then the folder
  is renamed away, and then removed. Readers that hold files finish them.

Changes are made under `topics.lock`. Temporary names contain `~`, which no topic name does; whoever makes the next
change removes what a dead process left.

What was found is cached for a second (`METADATA_MAX_AGE`), and forgotten at once by the process that changes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.names import check_topic_name, is_topic_name
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.errors import (
    ConfigError,
    CorruptLogError,
    IncompatibleFormatError,
    InvalidTopicError,
    LockTimeoutError,
    ReadOnlyError,
    TopicExistsError,
    UnknownTopicError,
)
from pystreamlog.settings import build
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.folder import Folder

__all__ = ["MAX_PARTITIONS", "METADATA_MAX_AGE", "TopicState", "Topics", "is_current", "topic_image"]

METADATA_MAX_AGE = 1.0
"""Seconds until another process's change to a topic is seen at the latest."""

MAX_PARTITIONS = 100_000
_FOLDER = "topics"
_LOCK = "topics.lock"
_LOCK_TIMEOUT = 60.0
_SETTLE_TIMEOUT = 10.0
"""Seconds for which a deletion waits until whoever appends is done, where an append takes microseconds."""
_FLAG_TIMEOUT = 1.0
"""... and for which it does so with `topics.lock` held."""
_NEW, _GONE = "~new-", "~gone-"
_FORMAT = 1
_LIMIT = 1 << 20


class _TopicFormat(msgspec.Struct, frozen=True):
    """What `topic.json` of any format holds."""

    format: int


class _TopicFile(msgspec.Struct, frozen=True):
    """The contents of `topic.json`."""

    format: int
    name: str
    id: str
    partitions: int
    created_ms: int
    config: dict[str, Any]


class TopicState(msgspec.Struct, frozen=True):
    """A topic as it was found.

    Attributes:
        name: Its name.
        id: 16 bytes; a topic deleted and made again has others.
        partitions: How many.
        config: Its settings.
        created_ms: When it was made, in ms.
    """

    name: str
    id: bytes
    partitions: int
    config: TopicConfig
    created_ms: int

    def folder(self, partition: int) -> str:
        """The folder of one of its partitions, relative to the log's directory."""
        return f"{_FOLDER}/{self.name}/{partition}"


class Topics:
    """The topics of one log. Safe from any thread.

    Args:
        files: The door to the log's directory.
        clock: Dates new topics.
        read_only: Refuse every change.

    Attributes:
        seen: Called with each topic that is found, made or changed, once a second at most for one that is used.
    """

    def __init__(self, files: Files, clock: Clock, *, read_only: bool) -> None:
        self._files = files
        self._clock = clock
        self._read_only = read_only
        self.seen: Callable[[TopicState], None] = _unseen
        self._mutex = threading.Lock()
        self._found: dict[str, tuple[float, TopicState]] = {}
        self._folded: dict[str, str] = {}
        self._folded_at: tuple[int, int] = (-1, -1)
        self._lock: tuple[File, FileLock] | None = None
        register_inherited(self)

    # --- finding

    def find(self, name: str) -> TopicState:
        """The topic of that name; at most a second old.

        Raises:
            InvalidTopicError: No topic can have that name.
            UnknownTopicError: There is none.
            CorruptLogError: Its `topic.json` is damaged.
        """
        found = self._found.get(name)
        now = time.monotonic()
        if found is not None and now - found[0] < METADATA_MAX_AGE:
            return found[1]
        state = self._read(check_topic_name(name))
        self._found[name] = now, state
        self.seen(state)
        return state

    def find_anew(self, name: str) -> TopicState:
        """As `find`, but as it is now."""
        self.forget(name)
        return self.find(name)

    def forget(self, name: str) -> None:
        """Look at the directory at the next `find` of that name."""
        self._found.pop(name, None)

    def names(self) -> list[str]:
        """The names of all topics, sorted."""
        try:
            return sorted(filter(is_topic_name, self._files.list_directories(_FOLDER)))
        except FileNotFoundError:
            return []

    def path(self, name: str = "") -> str:
        """The absolute path of a topic's folder, or of the folder of all, for watching."""
        return self._files.path(f"{_FOLDER}/{name}" if name else _FOLDER)

    def _read(self, name: str) -> TopicState:
        file_name = f"{_FOLDER}/{name}/topic.json"
        path = self._files.path(file_name)
        try:
            raw = self._files.read(file_name, limit=_LIMIT)
        except FileNotFoundError as error:
            raise UnknownTopicError(
                f"topic {name!r} does not exist: create_topic({name!r}) makes it", topic=name
            ) from error
        try:
            if msgspec.json.decode(raw, type=_TopicFormat).format > _FORMAT:
                raise IncompatibleFormatError(f"{path} was made by a newer release of pystreamlog: upgrade", path=path)
            found = msgspec.json.decode(raw, type=_TopicFile)
            topic_id = bytes.fromhex(found.id)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise CorruptLogError(f"{path} is damaged: {error}: restore it from a copy", path=path) from error
        if found.name != name:
            # On a file system that folds case, "Orders" also opens "orders".
            raise UnknownTopicError(f"topic {name!r} does not exist; {found.name!r} does", topic=name)
        if found.format != _FORMAT or len(topic_id) != 16 or not 1 <= found.partitions <= MAX_PARTITIONS:  # noqa: PLR2004 - a uuid
            raise CorruptLogError(f"{path} is damaged: format, id or partition count out of range", path=path)
        try:
            config = build(TopicConfig, found.config, "topic")
        except ConfigError as error:
            raise IncompatibleFormatError(f"{path}: {error}; made by a newer release? upgrade", path=path) from error
        return TopicState(name, topic_id, found.partitions, config, found.created_ms)

    # --- changing

    def create(
        self, name: str, partitions: int, config: Mapping[str, Any], *, exist_ok: bool, validate_only: bool = False
    ) -> TopicState:
        """Make a topic; its partitions' files are made when they are first used. With `validate_only`, only say if so.

        Raises:
            InvalidTopicError: The name breaks the rule, or differs from another topic's only in case.
            ConfigError: A setting is wrong.
            TopicExistsError: It exists, and `exist_ok` is False or the partition count differs.
        """
        check_topic_name(name)
        self._check_partitions(partitions)
        settings = build(TopicConfig, config, "topic")
        if exist_ok:
            self.forget(name)
            try:
                return self._existing(name, partitions)
            except UnknownTopicError:
                pass
        with self.changing():
            try:
                state = self._existing(name, partitions)
            except UnknownTopicError:
                pass
            else:
                if exist_ok:
                    return state
                raise TopicExistsError(f"topic {name!r} exists already: pass exist_ok=True to use it", topic=name)
            self._check_case(name)
            topic_id = self._new_id()
            state = TopicState(name, topic_id, partitions, settings, self._clock.now_ms())
            if validate_only:
                return state
            temporary = f"{_FOLDER}/{_NEW}{topic_id.hex()}"
            self._files.make_directory(temporary)
            try:
                self._store(state, temporary)
                self._files.rename(temporary, f"{_FOLDER}/{name}")
            except BaseException:
                self._files.remove_directory(temporary)
                raise
            self._files.sync_directory(_FOLDER)
            self._folded[name.casefold()] = name
            self._folded_at = self._folder_version()
        self._found[name] = time.monotonic(), state
        self.seen(state)
        return state

    def alter(self, name: str, config: Mapping[str, Any], *, validate_only: bool = False) -> TopicState:
        """Change some settings of a topic; the others stay. With `validate_only`, only say whether that may be.

        Raises:
            ConfigError: A setting is wrong, or cannot be altered.
        """
        with self.changing():
            state = self._read(check_topic_name(name))
            settings = build(TopicConfig, {**state.config.changed(), **config}, "topic")
            if settings.key_index != state.config.key_index:
                raise ConfigError(
                    f"topic {name!r} was made with key_index={state.config.key_index}, and its records depend on that: "
                    f"make another topic with key_index={settings.key_index} and copy them there"
                )
            changed = msgspec.structs.replace(state, config=settings)
            return changed if validate_only else self._replace(changed)

    def add_partitions(self, name: str, total: int, *, validate_only: bool = False) -> TopicState:
        """Raise a topic's partition count to `total`; keys may move to other partitions from then on.

        With `validate_only`, only say whether that may be.

        Raises:
            ConfigError: It has as many already, or more; or it has a key index.
        """
        self._check_partitions(total)
        with self.changing():
            state = self._read(check_topic_name(name))
            if state.config.key_index:
                raise ConfigError(
                    f"topic {name!r} has a key index, so its keys stay in their partitions and none can be added: make "
                    f"another topic with {total} partitions and copy the records there"
                )
            if total <= state.partitions:
                raise ConfigError(
                    f"topic {name!r} has {state.partitions} partitions: pass a larger total, partitions never go away"
                )
            changed = msgspec.structs.replace(state, partitions=total)
            return changed if validate_only else self._replace(changed)

    def delete(
        self,
        name: str,
        settle: Callable[[TopicState, int, float], None],
        flag: Callable[[TopicState, int, float], None],
    ) -> TopicState:
        """Delete a topic with all its records; what it was.

        A process that was stopped within an append holds its partition's lock for as long. So it is waited for before
        `topics.lock` is taken, that other topics can be changed meanwhile, and before any partition is flagged.

        Args:
            name: The topic.
            settle: Called for each partition that was made, and the seconds it may wait; returns when its lock is free.
            flag: Called then for each; returns when nothing can be appended there.

        Raises:
            UnknownTopicError: There is none.
            LockTimeoutError: A process held a partition's lock for ten seconds, or `topics.lock` for a minute.
        """
        self._check_writable()
        check_topic_name(name)
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while True:
            state = self._read(name)
            for partition in self._made(state):
                settle(state, partition, max(0.0, deadline - time.monotonic()))
            try:
                with self.changing():
                    state = self._read(name)
                    for partition in self._made(state):
                        flag(state, partition, _FLAG_TIMEOUT)
                    gone = f"{_FOLDER}/{_GONE}{state.id.hex()}"
                    self._files.rename(f"{_FOLDER}/{name}", gone)
                    self._files.sync_directory(_FOLDER)
                    self.forget(name)
                    self._files.remove_directory(gone)
                    return state
            except LockTimeoutError:  # somebody was stopped in between
                if time.monotonic() >= deadline:
                    raise

    def _made(self, state: TopicState) -> Iterator[int]:
        """The partitions of a topic that were made."""
        return (number for number in range(state.partitions) if self._files.exists(state.folder(number)))

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to change topics")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the lock under which topics and partitions come and go.

        Raises:
            ReadOnlyError: The log is read-only.
            LockTimeoutError: Another process held it for a minute.
        """
        self._check_writable()
        with self._mutex:
            if self._lock is None:
                try:
                    file = self._files.open(_LOCK, write=True)
                except FileNotFoundError:
                    try:
                        file = self._files.create(_LOCK)
                    except FileExistsError:
                        file = self._files.open(_LOCK, write=True)
                self._files.sync_directory("")  # who made the log may have been killed before that
                self._lock = file, FileLock(file.fd, file.path)
            with self._lock[1].held(_LOCK_TIMEOUT, stamp=True):
                yield

    def _existing(self, name: str, partitions: int) -> TopicState:
        state = self._read(name)
        if state.partitions != partitions:
            raise TopicExistsError(
                f"topic {name!r} exists with {state.partitions} partitions, not {partitions}: use that number, or "
                f"topic({name!r}).add_partitions(total)",
                topic=name,
            )
        return state

    @staticmethod
    def _check_partitions(partitions: object) -> None:
        if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"partitions is a whole number from 1 to {MAX_PARTITIONS}, not {partitions!r}")

    @staticmethod
    def _new_id() -> bytes:
        import uuid  # noqa: PLC0415 - needed when a topic is made only

        return uuid.uuid4().bytes

    def _folder_version(self) -> tuple[int, int]:
        status = self._files.status(_FOLDER)
        return status.st_mtime_ns, status.st_nlink

    def _check_case(self, name: str) -> None:
        """Refuse a name that differs from another only in case: such a log could not be copied everywhere.

        The folder is listed again only after somebody else changed it, so that making 10,000 topics stays linear.
        """
        if self._folder_version() != self._folded_at:
            self._folded = {other.casefold(): other for other in self.names()}
            for entry in self._files.list_directories(_FOLDER):
                if entry.startswith((_NEW, _GONE)):
                    self._files.remove_directory(f"{_FOLDER}/{entry}")
            self._folded_at = self._folder_version()
        other = self._folded.get(name.casefold())
        if other is not None and other != name and self._files.exists(f"{_FOLDER}/{other}"):
            raise InvalidTopicError(
                f"topic {name!r} differs from {other!r} only in case: choose another name", topic=name
            )

    def _store(self, state: TopicState, folder: str) -> None:
        self._files.write(f"{folder}/topic.json", topic_image(state))

    def _replace(self, state: TopicState) -> TopicState:
        self._store(state, f"{_FOLDER}/{state.name}")
        self._found[state.name] = time.monotonic(), state
        self.seen(state)
        return state

    # --- life

    def close(self) -> None:
        """Close the lock file; again is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock[0].close()

    def close_inherited(self) -> None:
        """Close the lock file in a forked child, where the lock is opened anew when it is needed."""
        self._mutex = threading.Lock()
        self.close()
        register_inherited(self)


def _unseen(_: TopicState) -> None:
    """Nobody wants to know."""


def topic_image(state: TopicState) -> bytes:
    """What the `topic.json` of a topic holds."""
    contents = _TopicFile(
        _FORMAT, state.name, state.id.hex(), state.partitions, state.created_ms, state.config.changed()
    )
    return msgspec.json.encode(contents)


def is_current(folder: Folder) -> bool:
    """Whether the topic of that partition is still there: one that was deleted and made again is another.

    A `topic.json` that does not decode counts as there; who needs it says what is wrong with it. A partition that is no
    topic's, as the journal of transactions, is never deleted.
    """
    if not folder.path.startswith(f"{_FOLDER}/"):
        return True
    try:
        raw = folder.files.read(f"{folder.path.rpartition('/')[0]}/topic.json", limit=_LIMIT)
        return msgspec.json.decode(raw, type=_TopicFile).id == folder.topic_id.hex()
    except FileNotFoundError:
        return False
    except (msgspec.DecodeError, ValueError, RecursionError):
        return True
