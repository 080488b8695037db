"""Looking through a log's directory for damage: what is in it, its topics, and their partitions.

Takes no lock and changes nothing. Topics, partitions and groups come and go meanwhile: what vanished is no damage, and
what was made since may be left out. Groups are looked at before partitions: what a group committed lies below the end
that its partition has later.
"""

from __future__ import annotations

import stat

import attrs

from pystreamlog.coordination.directory import LOG_FILE, read_log_id
from pystreamlog.coordination.maintenance import LOCK_FILE as MAINTENANCE_LOCK
from pystreamlog.coordination.names import is_topic_name
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.verify_groups import GroupCommit, verify_groups
from pystreamlog.coordination.verify_transactions import TransactionsLook
from pystreamlog.errors import StreamLogError, UnknownTopicError
from pystreamlog.storage.epochs import read_epochs
from pystreamlog.storage.files import Files
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.verify import PartitionLook, verify_partition

__all__ = ["LogLook", "verify_log"]

_TOPICS = "topics"
_LONGEST_NUMBER = 7
_ENTRIES = {LOG_FILE, "topics.lock", MAINTENANCE_LOCK, _TOPICS, "groups", "transactions"}


@attrs.define
class LogLook:
    """What was found in a log.

    Attributes:
        topics: How many there are.
        partitions: The partitions that were made, by their folders.
        transactions: What there is of transactions.
    """

    transactions: TransactionsLook
    topics: int = 0
    partitions: dict[str, tuple[Folder, PartitionLook]] = attrs.field(factory=dict)


def verify_log(files: Files, log_id: bytes, context: PartitionContext, findings: Findings) -> LogLook:
    """Look through everything.

    Args:
        files: The door to the log's directory.
        log_id: The log's id, as it was when it was opened.
        context: What the log's partitions have in common.
        findings: Gets what is found.
    """
    _log_file(files, log_id, findings)
    for entry in sorted(files.list("")):
        if "~" in entry:
            findings.note(entry, "temporary", "left by a process that was killed: it may be removed")
        elif entry not in _ENTRIES:
            findings.note(entry, "foreign", "nothing of the log's: it is ignored")
    try:
        files.open("topics.lock").close()
    except FileNotFoundError:
        pass  # made when it is needed
    except StreamLogError as error:
        findings.error(error, "topics.lock", "file")
    commits = verify_groups(files, log_id, findings)
    transactions = TransactionsLook(files, log_id, context, findings)
    transactions.look()
    topics = Topics(files, context.clock, read_only=True)
    looker = _Looker(files, log_id, context, topics, transactions, findings)
    try:
        for name in _names(files, _TOPICS, findings, "topic"):
            looker.topic(name)
    finally:
        topics.close()
    looker.commits(commits)
    looker.transactions()
    return looker.look


def _log_file(files: Files, log_id: bytes, findings: Findings) -> None:
    try:
        found = read_log_id(files)
    except FileNotFoundError:
        findings.damage(LOG_FILE, "missing", "the log has no log.json: restore it from a copy")
    except StreamLogError as error:
        findings.error(error, LOG_FILE, "log")
    else:
        if found != log_id:
            message = "the log has another id than when it was opened: files were swapped"
            findings.damage(LOG_FILE, "swapped", message, expected=log_id.hex(), found=found.hex())


def _names(files: Files, folder: str, findings: Findings, kind: str) -> list[str]:
    """The folders in a folder that are no left-overs; notes the others."""
    try:
        entries = sorted(files.list(folder))
    except StreamLogError as error:
        findings.error(error, folder, "file")
        return []
    names = []
    for entry in entries:
        name = f"{folder}/{entry}"
        if "~" in entry:
            findings.note(name, "temporary", f"a {kind} that was being made or deleted when a process was killed")
        elif is_folder(files, name) and (kind != "topic" or is_topic_name(entry)):
            names.append(entry)
        else:
            findings.note(name, "foreign", f"no {kind} of the log's: it is ignored")
    return names


def is_folder(files: Files, name: str) -> bool:
    """Whether it is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(files.status(name).st_mode)
    except FileNotFoundError:
        return False


class _Looker:
    """Goes from topic to topic."""

    def __init__(
        self,
        files: Files,
        log_id: bytes,
        context: PartitionContext,
        topics: Topics,
        transactions: TransactionsLook,
        findings: Findings,
    ) -> None:
        self._files = files
        self._log_id = log_id
        self._boot_id = context.boot_id()
        self._lineage = context.lineage
        self._topics = topics
        self._findings = findings
        self._ends: dict[tuple[bytes, int], tuple[Folder, PartitionLook | None]] = {}
        self.look = LogLook(transactions)

    def topic(self, name: str) -> None:
        """Look through one topic."""
        findings, path = self._findings, f"{_TOPICS}/{name}/topic.json"
        try:
            state = self._topics.find_anew(name)
        except UnknownTopicError as error:
            if self._files.exists(path):
                findings.damage(path, "swapped", f"{error}: restore the file that was here from a copy", expected=name)
            elif self._files.exists(f"{_TOPICS}/{name}"):  # else it was deleted just now
                findings.damage(path, "missing", "the topic has no topic.json: restore it from a copy")
        except StreamLogError as error:
            findings.error(error, path, "topic")
        else:
            self.look.topics += 1
            self._partitions(state)

    def _partitions(self, state: TopicState) -> None:
        files, findings = self._files, self._findings
        folder_name = f"{_TOPICS}/{state.name}"
        for entry in sorted(files.list(folder_name), key=lambda entry: (len(entry), entry)):
            name = f"{folder_name}/{entry}"
            number = int(entry) if entry.isascii() and entry.isdigit() and len(entry) < _LONGEST_NUMBER else -1
            if entry == "topic.json":
                continue
            if "~" in entry:
                findings.note(name, "temporary", "left by a process that was killed: it may be removed")
            elif str(number) != entry or not is_folder(files, name):
                findings.note(name, "foreign", "nothing of the log's: it is ignored")
            else:
                self._partition(state, number)
        for number in range(state.partitions):
            self._ends.setdefault((state.id, number), (self._folder(state, number), None))

    def _folder(self, state: TopicState, number: int) -> Folder:
        return Folder(self._files, state.folder(number), self._log_id, state.id, number, self._lineage)

    def _partition(self, state: TopicState, number: int) -> None:
        if number >= state.partitions and not self._was_added(state, number):
            self._findings.damage(
                f"{_TOPICS}/{state.name}/topic.json",
                "topic",
                "the topic has fewer partitions than there are folders: the file may be an older one",
                expected=f"more than {number} partitions",
                found=state.partitions,
            )
        folder = self._folder(state, number)
        try:
            found = verify_partition(folder, self._boot_id, self._findings, self.look.transactions)
        except StreamLogError as error:
            self._findings.error(error, folder.path, "unreadable")
            found = PartitionLook()
        if found is not None:
            self.look.partitions[folder.path] = folder, found
            self._ends[state.id, number] = folder, found

    def _was_added(self, state: TopicState, number: int) -> bool:
        """Whether somebody added partitions, or made the topic anew, since its `topic.json` was read."""
        try:
            now = self._topics.find_anew(state.name)
        except StreamLogError:
            return True
        return now.id != state.id or number < now.partitions

    def transactions(self) -> None:
        """Hold the journal against the partitions."""
        transactions, findings = self.look.transactions, self._findings
        transactions.check({key: look for key, (_, look) in self._ends.items()})
        if transactions.journal is None and not self._files.exists(transactions.folder.path):
            for folder, look in self.look.partitions.values():
                if look.transactional:
                    message = f"the journal of transactions is gone, and {folder.path} has some: restore it from a copy"
                    findings.damage(transactions.folder.path, "missing", message)
                    break

    def commits(self, commits: list[GroupCommit]) -> None:
        """Hold committed offsets against the ends of their partitions."""
        findings = self._findings
        for commit in commits:
            if commit.key not in self._ends:
                message = f"a commit for partition {commit.key[1]} of a topic that is gone"
                findings.note(commit.path, "committed", message, position=commit.position, found=commit.key[0].hex())
                continue
            folder, look = self._ends[commit.key]
            if look is not None and look.end is None:
                continue  # not known, and reported
            end = look.end.end_offset if look is not None and look.end is not None else 0
            epoch = look.epoch if look is not None else 0
            limit = _limit(folder, end, commit.epoch, epoch)
            if commit.offset <= limit:
                continue
            if commit.epoch < epoch or (look is not None and look.recovers):
                message = f"committed before a recovery cut {folder.path}: read as {limit}"
                findings.note(commit.path, "committed", message, position=commit.position, found=commit.offset)
            else:
                findings.damage(
                    commit.path,
                    "committed",
                    f"the offset lies beyond the end of {folder.path}: records that were there are lost, or never were",
                    position=commit.position,
                    expected=f"{limit} at most",
                    found=commit.offset,
                )


def _limit(folder: Folder, end: int, committed_in: int, epoch: int) -> int:
    """The highest offset that a commit of that epoch may have, as reading it has it."""
    if committed_in >= epoch:
        return end
    try:
        return min([end, *(known.start_offset for known in read_epochs(folder) if known.epoch > committed_in)])
    except StreamLogError:
        return end  # reported
