"""Deliberate faults in our own code: each must be found by the run that is named, and as what it is.

A mutant is text of a module that occurs there once, and what stands there instead. `python -m tests.crash.mutants NAME`
tries one and says what its run found.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

__all__ = ["MUTANTS", "Mutant", "apply", "copy_package", "search"]

_ROOT = Path(__file__).resolve().parent.parent.parent

CRASHES = ("disk_run", "--count", "1500", "--seed", "7")
"""What finds most of them within some hundred crashes."""

Edit = tuple[str, str, str]
"""A module below `pystreamlog/`, old text, which must occur there exactly once, and new text."""


@attrs.frozen
class Mutant:
    """A fault.

    Attributes:
        name: What is wrong.
        edits: How to make it so.
        run: A module of this folder and its arguments.
        kinds: What it may be found as.
    """

    name: str
    edits: tuple[Edit, ...]
    run: tuple[str, ...]
    kinds: frozenset[str] = attrs.field(converter=frozenset)


def _crashes(name: str, file: str, old: str, new: str, *kinds: str) -> Mutant:
    return Mutant(name, ((file, old, new),), CRASHES, kinds)


def _scenario(scenario: str, name: str, file: str, old: str, new: str, *kinds: str) -> Mutant:
    return Mutant(name, ((file, old, new),), ("scenarios", scenario), kinds)


_FOLLOWS = "            follows = header.previous_checksum == end.last_checksum or self._was_rewritten or is_copied\n"
_DATASYNC = "                (opened.file if opened is not None else written[base]).datasync()\n"
_PUBLISH = "                self._control.publish(new)  # type: ignore[union-attr]\n                self._end = new\n"
_WRITE = "        segment.write(header, batch.parts, size, position, segment_bytes)\n"
_WRITE_LATE = """\
                from pystreamlog.storage.appender import LATE

                while LATE:
                    LATE.pop(0)()
"""
_RECORDS = ("lost", "invented", "hole", "refused", "torn")

MUTANTS = (
    # --- what is acknowledged is on disk
    _crashes(
        "no fsync before the acknowledgement",
        "embedded/topic.py",
        '            append = writer.append if durability != "fsync" else writer.sync.append\n',
        "            append = writer.append\n",
        "lost",
        "poison",
    ),
    _crashes(
        "fsync is not called",
        "coordination/partition_sync.py",
        _DATASYNC,
        "                pass\n",
        *_RECORDS,
        "poison",
    ),
    _crashes(
        "only the last segment is synced",
        "coordination/partition_sync.py",
        "        if first != end.segment_base:\n            bases",
        "        if first == -2:\n            bases",
        "lost",
        "refused",
    ),
    _crashes(
        "the durable slot is written before the data is synced",
        "coordination/partition_sync.py",
        "        self._before(last, end)\n        self._sync_files(written, first, end)\n",
        "        self._before(last, end)\n"
        "        self.note(control, end)\n"
        "        self._sync_files(written, first, end)\n",
        "lost",
        "refused",
        "torn",
    ),
    _scenario(
        "deleted-records",
        "records are deleted before the log's start is on disk",
        "coordination/partition_writer.py",
        "            control.file.datasync()\n",
        "            pass\n",
        "refused",
        "lost",
    ),
    _scenario(
        "deleted-records",
        "records of a transaction are deleted before it is on disk everywhere",
        "coordination/partition_writer.py",
        "        self.ensure()\n        self.sync(start)\n",
        "        self.ensure()\n",
        "refused",
        "torn",
        "lost",
    ),
    _scenario(
        "compacted",
        "segments are removed before the name of the one that took their place is on disk",
        "coordination/replacing.py",
        "        kept.close()\n    folder.files.sync_directory(folder.path)\n",
        "        kept.close()\n",
        "refused",
        "lost",
        "invented",
    ),
    _scenario(
        "compacted",
        "a rewritten segment takes its place before it is on disk",
        "storage/rewriting.py",
        "        self._write()\n        self._file.datasync()\n",
        "        self._write()\n",
        "refused",
        "lost",
    ),
    _scenario(
        "compacted",
        "what a compaction that died left is not removed",
        "coordination/compaction.py",
        "        remove_left_over(writer)\n",
        "        pass\n",
        "refused",
        "invented",
        "crashed",
    ),
    _scenario(
        "failed-sync",
        "a failed fsync is tried again",
        "coordination/partition_sync.py",
        "            except StorageError as error:\n                self.fail(error)\n            finally:\n",
        f"            except StorageError:\n{_DATASYNC}            finally:\n",
        "poison",
    ),
    _scenario(
        "failed-sync",
        "a failed fsync is kept from the other processes",
        "coordination/partition_sync.py",
        "            writer.publish_poison()\n",
        "            pass\n",
        "poison",
    ),
    _crashes(
        "a rename without its directory's fsync",
        "storage/files.py",
        "            file.pwrite(data, 0)\n        self.sync_directory(os.path.dirname(name))\n",
        "            file.pwrite(data, 0)\n",
        "lost",
        "refused",
        "topic",
    ),
    _crashes(
        "a new topic's name is not synced",
        "coordination/topics.py",
        "            self._files.sync_directory(_FOLDER)\n            self._folded[",
        "            self._folded[",
        "topic",
        "lost",
    ),
    _scenario(
        "maker-killed",
        "names that another made are taken to be on disk",
        "coordination/partition_sync.py",
        "                folder.files.sync_directory(name)\n",
        "                pass\n",
        "lost",
    ),
    _crashes(
        "a new partition's control file is not synced",
        "storage/folder.py",
        "                file.datasync()\n",
        "",
        "refused",
        "lost",
    ),
    _scenario(
        "new-group",
        "a new group's files have names that are not synced",
        "coordination/groups.py",
        "                files.sync_directory(temporary)\n",
        "",
        "refused",
    ),
    _scenario(
        "deleted-group",
        "files of a deleted group go before its name has gone",
        "coordination/groups.py",
        "            self._files.sync_directory(_FOLDER)  # first",
        "            pass  # first",
        "refused",
        "invented",
        "torn",
    ),
    # --- snapshots
    _scenario(
        "snapshot-taken",
        "what a snapshot copied is not on disk",
        "coordination/snapshot.py",
        "                file.datasync()\n",
        "                pass\n",
        *_RECORDS,
    ),
    _scenario(
        "snapshot-taken",
        "the names in a snapshot's folders are not on disk",
        "coordination/snapshot.py",
        "            self._files.sync_directory(name)\n",
        "            pass\n",
        *_RECORDS,
    ),
    _scenario(
        "snapshot-taken",
        "segments that a snapshot shares are not on disk",
        "coordination/snapshot.py",
        "        source.partitions.writer(state, folder.partition).sync.data(end)\n",
        "        pass\n",
        *_RECORDS,
    ),
    _scenario(
        "snapshot-taken-read-only",
        "segments that a snapshot of a read-only log shares are not on disk",
        "storage/partition_copy.py",
        '    written += [f"{target.path}/{name}" for name in unsynced if name not in others]\n',
        "",
        *_RECORDS,
    ),
    _scenario(
        "snapshot-taken",
        "a snapshot's name is not on disk",
        "coordination/snapshot_target.py",
        '        self._parent.sync_directory("")\n',
        "        pass\n",
        "lost",
    ),
    _scenario(
        "snapshot-taken",
        "a snapshot's log.json is made before its topics are on disk",
        "coordination/snapshot.py",
        "        self._sync()\n        lineage = self._lineage\n",
        "        write_log_file(self._files, self._id, self._lineage, created_ms=now_ms)\n"
        "        self._sync()\n        lineage = self._lineage\n",
        "lost",
        "refused",
    ),
    _scenario(
        "snapshot-taken",
        "a snapshot's log.json may be on disk without the folder of the topics",
        "coordination/snapshot.py",
        '        self._files.sync_directory("")  # a power loss',
        "        pass  # a power loss",
        "lost",
    ),
    _scenario(
        "snapshot-swept",
        "what is left of a snapshot stays a log while it is removed",
        "coordination/snapshot_target.py",
        "            self._parent.unlink(log_file)\n            self._parent.sync_directory(entry)\n",
        "            pass\n",
        "lost",
        "refused",
    ),
    _scenario(
        "snapshot-undone-in-the-log",
        "a recovery cuts a segment that a snapshot has",
        "storage/recovery.py",
        "        if file.status().st_nlink > 1:  # a snapshot",
        "        if file.status().st_nlink < 0:  # a snapshot",
        "lost",
        "refused",
    ),
    _scenario(
        "snapshot-repaired",
        "a repair cuts a segment that a snapshot has",
        "storage/repair.py",
        "        if file.status().st_nlink > 1:\n            passed",
        "        if file.status().st_nlink < 0:\n            passed",
        "lost",
    ),
    _scenario(
        "snapshot-compacted-meanwhile",
        "a segment that was compacted away is taken for damage",
        "storage/partition_copy.py",
        "            raise MovedError  # it was sealed since",
        "            pass  # it was sealed since",
        "refused",
    ),
    # --- write, publish, acknowledge
    Mutant(
        "published before it is written",
        (
            ("storage/appender.py", _WRITE, f"        LATE.append(lambda: {_WRITE.strip()})\n"),
            ("storage/appender.py", "class LogAppender:\n", "LATE = []\n\n\nclass LogAppender:\n"),
            ("coordination/partition_writer.py", _PUBLISH, _PUBLISH + _WRITE_LATE),
        ),
        CRASHES,
        _RECORDS,
    ),
    _crashes(
        "acknowledged before it is published",
        "coordination/partition_writer.py",
        _PUBLISH,
        """\
                late = globals().setdefault("_LATE", {})
                if id(self) in late and late[id(self)].sequence == new.sequence - 1:
                    self._control.publish(late[id(self)])
                late[id(self)] = self._control._slot = self._end = new
""",
        "lost",
        "hole",
        "twice",
        "committed",
        "refused",
    ),
    _scenario(
        "torn-slot",
        "the ruling slot is overwritten",
        "storage/control.py",
        "position = layout.PUBLISHED_POSITION + (slot.sequence & 1) * layout.SLOT_STRIDE\n        self.file",
        "position = layout.PUBLISHED_POSITION + layout.SLOT_STRIDE\n        self.file",
        "slots",
    ),
    _crashes(
        "a rolled segment's last record is dropped",
        "storage/appender.py",
        "        layout.SEGMENT_HEADER.size,\n        end.end_offset,\n",
        "        layout.SEGMENT_HEADER.size,\n        end.end_offset - 1,\n",
        "lost",
        "hole",
        "refused",
    ),
    # --- one appender at a time
    _scenario(
        "held-lock",
        "an append without the lock",
        "coordination/partition_writer.py",
        "                    lock.lock_kernel()\n                except OSError:  # it is taken",
        "                    pass\n                except OSError:  # it is taken",
        "locks",
    ),
    _scenario(
        "held-lock",
        "a time-out steals the lock",
        "coordination/partition_writer.py",
        """\
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
                found = self._control.published()  # type""",
        """\
                    lock.wait_kernel(timeout)
                found = self._control.published()  # type""",
        "locks",
    ),
    # --- reading
    _scenario(
        "unpublished",
        "a reader goes past the published end",
        "coordination/partition_reader.py",
        "            if end is not None:\n                return end if",
        """\
            if end is not None:
                further = walk(self.folder, control).end
                if further.end_offset > end.end_offset:
                    return further
                return end if""",
        "invented",
    ),
    _scenario(
        "wrong-index",
        "the index is trusted over the log",
        "storage/reader.py",
        "            if header and header.segment_id == segment.header.segment_id and header.base_offset == offset:\n",
        "            if header:\n",
        "hole",
    ),
    _crashes(
        "no epoch check of committed offsets",
        "coordination/partition_reader.py",
        "            if epoch < end.epoch:\n",
        "            if epoch < 0:\n",
        "committed",
    ),
    # --- recovery
    _crashes(
        "the body's checksum is ignored",
        "record/batch.py",
        "    if len(body) != header.size - HEADER_SIZE or xxh3_64_intdigest(body) != header.body_checksum:\n",
        "    if len(body) != header.size - HEADER_SIZE:\n",
        *_RECORDS,
    ),
    _scenario(
        "stale-batches",
        "no chain check in recovery",
        "storage/recovery.py",
        " or header.previous_checksum != previous:\n",
        ":\n",
        "invented",
        "refused",
    ),
    Mutant(
        "neither the seal is verified nor what follows it",
        (
            (
                "storage/recovery.py",
                "                if seal is not None and seal.last_checksum == previous:\n",
                "                if seal is not None:\n",
            ),
            (
                "storage/recovery.py",
                _FOLLOWS,
                "            follows = True\n",
            ),
        ),
        ("scenarios", "stale-seal"),
        ("invented",),
    ),
    _scenario(
        "damage",
        "a bad batch below the durable end is cut off",
        "storage/recovery.py",
        "        if end.end_offset < self._known_durable and not self._ends_early(end, bases):\n",
        "        if end.end_offset < 0:\n",
        "lost",
    ),
    _crashes(
        "recovery starts no new epoch",
        "storage/epochs.py",
        "    epoch = 1 + max([end.epoch, *(known.epoch for known in epochs)])\n",
        "    epoch = max([end.epoch, *(known.epoch for known in epochs)])\n",
        "committed",
        "torn",
    ),
    _scenario(
        "recovered-transaction",
        "recovery without a power loss calls all durable",
        "storage/recovery.py",
        "    settle_end(control, end, on_disk=is_elsewhere and not end.flags & layout.FLAG_POISONED)\n",
        "    settle_end(control, end, on_disk=True)\n",
        "torn",
        "refused",
    ),
    _crashes(
        "recovery leaves the published end to the disk",
        "storage/recovery.py",
        "        control.publish(msgspec.structs.replace(end, sequence=sequence + step))\n",
        "        pass\n",
        *_RECORDS,
    ),
    # --- transactions
    _scenario(
        "transaction-killed",
        "offsets are committed outside of the transaction",
        "coordination/transactions.py",
        "        change.group.name_transaction(offset, nonce)\n",
        "        change.group.store(change.offsets)\n",
        "torn",
    ),
    _scenario(
        "transaction-killed",
        "a commit without the journal",
        "coordination/transactions.py",
        "(old, sequence=old.sequence + 1, pending_position=offset, pending_nonce=nonce)",
        "(part.new, sequence=old.sequence + 1)",
        "torn",
    ),
    _crashes(
        "recovery asks no journal",
        "storage/recovery.py",
        "            if nonce and self._stop is None and nonce not in self._judgement.nonces:\n",
        "            if nonce < 0:\n",
        "torn",
    ),
    _scenario(
        "stale-end-of-a-segment",
        "segments are not chained",
        "storage/recovery.py",
        _FOLLOWS,
        "            follows = True\n",
        "invented",
    ),
    _scenario(
        "healed-in-part",
        "a healing that was cut short ends the log",
        "storage/recovery.py",
        "            is_copied = self._is_poisoned and header.generation != self._generation\n",
        "            is_copied = False\n",
        "lost",
    ),
    _scenario(
        "compacted-transaction",
        "the journal's slot is not on disk before records are written anew",
        "coordination/replacing.py",
        "            transactions.sync_slots()  # records that are written anew name no transaction any more\n",
        "            pass\n",
        "torn",
    ),
    _scenario(
        "sealed-late",
        "a late seal is not on disk",
        "coordination/replacing.py",
        "            writer.sync.data(published)  # and the seals, which may have come after the records were synced\n",
        "            pass\n",
        "refused",
    ),
    _scenario(
        "undone-for-good",
        "a recovery forgets what earlier ones undid",
        "coordination/transaction_recovery.py",
        "if offset < durable and entry.nonce not in undone]",
        "if offset < durable]",
        "committed",
    ),
    _crashes(
        "recovery takes every transaction for whole",
        "coordination/transaction_recovery.py",
        "            part.new.end_offset <= ends[part.key, part.new.epoch]\n",
        "            0 <= ends[part.key, part.new.epoch]\n",
        "torn",
    ),
    _crashes(
        "the journal is synced before its participants",
        "coordination/transaction_log.py",
        "                    writer.sync.data(part.new)\n",
        "                    pass\n",
        "torn",
        "lost",
        "poison",
        "refused",
    ),
    _crashes(
        "an fsync leaves the transactions below it as they are",
        "coordination/partition_sync.py",
        "        if end.flags & layout.FLAG_TRANSACTIONAL:\n",
        "        if end.flags < 0:\n",
        "torn",
        "lost",
        "refused",
    ),
    _scenario(
        "given-up",
        "an entry that was never published counts after a power loss",
        "coordination/transaction_recovery.py",
        "        if entries and entries[-1][0] >= durable and self._was_given_up(",
        "        if entries and entries[-1][0] < 0 and self._was_given_up(",
        "torn",
        "refused",
    ),
    _scenario(
        "fenced",
        "a fenced producer commits",
        "coordination/transactional_ids.py",
        "        with self._lock.held(timeout):\n            self.check()\n",
        "        with self._lock.held(timeout):\n",
        "fenced",
    ),
    # --- sequences
    _crashes(
        "the sequence check is off by one",
        "coordination/sequence_admission.py",
        "        old = 0 if sequences[0] > last else bisect_right(sequences, last)\n",
        "        old = 0 if sequences[0] > last - 1 else bisect_right(sequences, last - 1)\n",
        "twice",
    ),
)
"""Every mutant."""


def copy_package(target: Path) -> None:
    """Copy what a run needs, compiled, so that each mutant compiles one module only."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_ROOT / "pystreamlog", target / "pystreamlog", ignore=ignored)
    shutil.copytree(_ROOT / "tests" / "crash", target / "tests" / "crash", ignore=ignored)
    compileall.compile_dir(target, quiet=1)


def apply(mutant: Mutant, source: Path, target: Path) -> None:
    """Make a copy of a copy with that fault.

    Raises:
        ValueError: The old text does not occur exactly once.
    """
    shutil.copytree(source, target, symlinks=True)
    for file, old, new in mutant.edits:
        path = target / "pystreamlog" / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {old!r} occurs {text.count(old)} times in {file}")
        path.write_text(text.replace(old, new), "utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def search(run: tuple[str, ...], folder: Path) -> str:
    """What that run finds in a copy, in words that begin with its kind; empty when it finds nothing."""
    module, *arguments = run
    done = subprocess.run(
        [sys.executable, "-m", f"tests.crash.{module}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode == 0 and not lines:
        return ""
    return lines[0] if lines else f"crashed: {done.stderr[-2000:]}"


def main() -> int:
    """Try those that are named, or all."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        copy_package(folder / "whole")
        for number, mutant in enumerate(MUTANTS):
            if sys.argv[1:] and mutant.name not in sys.argv[1:]:
                continue
            apply(mutant, folder / "whole", folder / str(number))
            found = search(mutant.run, folder / str(number))
            good = found.partition(":")[0] in mutant.kinds
            sys.stdout.write(f"{'ok ' if good else 'BAD'} {mutant.name}: {found[:200] or 'nothing was found'}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
