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

CRASHES = ("disk_run", "--count", "600", "--seed", "7")
"""What finds most of them within some hundred crashes."""


@attrs.frozen
class Mutant:
    """A fault.

    Attributes:
        name: What is wrong.
        file: The module, below `pystreamlog/`.
        edits: Old text, which must occur exactly once, and new text.
        run: A module of this folder and its arguments.
        kinds: What it may be found as.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    run: tuple[str, ...]
    kinds: frozenset[str] = attrs.field(converter=frozenset)


def _crashes(name: str, file: str, old: str, new: str, *kinds: str) -> Mutant:
    return Mutant(name, file, ((old, new),), CRASHES, kinds)


def _scenario(scenario: str, name: str, file: str, old: str, new: str, *kinds: str) -> Mutant:
    return Mutant(name, file, ((old, new),), ("scenarios", scenario), kinds)


MUTANTS = (
    # --- what is acknowledged is on disk
    _crashes(
        "no fsync before the acknowledgement",
        "embedded/topic.py",
        '        if durability == "fsync":\n            writer.sync(offset + 1)\n',
        "",
        "lost",
    ),
    _crashes(
        "fsync is not called",
        "coordination/partition_writer.py",
        "                segment.file.datasync()\n",
        "                pass\n",
        "lost",
        "refused",
    ),
    _crashes(
        "only the last segment is synced",
        "coordination/partition_writer.py",
        "if last.segment_base <= base <= target.segment_base]",
        "if base == target.segment_base]",
        "lost",
        "refused",
    ),
    _crashes(
        "the durable slot is written before the data is synced",
        "coordination/partition_writer.py",
        "        bases = [base for base in self.folder.segments()",
        "        control.write_durable(\n"
        "            Durable(last.sequence + 1, target.end_offset, target.segment_base, target.end_position, 0)\n"
        "        )\n"
        "        bases = [base for base in self.folder.segments()",
        "refused",
    ),
    _crashes(
        "a rename without its directory's fsync",
        "storage/files.py",
        "        self.sync_directory(os.path.dirname(name))\n",
        "",
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
        "coordination/partition_writer.py",
        "            files.sync_directory(name)\n        self._named",
        "            pass\n        self._named",
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
    # --- write, publish, acknowledge
    Mutant(
        "published before it is written",
        "storage/appender.py",
        (
            ("        segment.write(header, batch.parts, size, position, segment_bytes)\n", ""),
            (
                "        self._control.publish(new)\n",
                """\
        self._control.publish(new)
        segment.write(header, batch.parts, size, position, segment_bytes)
""",
            ),
        ),
        CRASHES,
        ("refused", "lost", "hole"),
    ),
    Mutant(
        "acknowledged before it is published",
        "storage/appender.py",
        (
            ('("_control", "_folder", "_segment")', '("_control", "_folder", "_late", "_segment")'),
            (
                "        self._control.publish(new)\n        return new\n",
                """\
        late = getattr(self, "_late", None)
        if late is not None and late.sequence == new.sequence - 1:
            self._control.publish(late)
        self._control._slot = self._late = new
        return new
""",
            ),
        ),
        CRASHES,
        ("lost",),
    ),
    _crashes(
        "the ruling slot is overwritten",
        "storage/control.py",
        "position = layout.PUBLISHED_POSITION + (slot.sequence & 1) * layout.SLOT_STRIDE\n        self.file",
        "position = layout.PUBLISHED_POSITION + layout.SLOT_STRIDE\n        self.file",
        "lost",
        "slots",
    ),
    _crashes(
        "a rolled segment's last record is dropped",
        "storage/appender.py",
        "            layout.SEGMENT_HEADER.size,\n            end.end_offset,\n",
        "            layout.SEGMENT_HEADER.size,\n            end.end_offset - 1,\n",
        "lost",
        "hole",
        "refused",
    ),
    # --- one appender at a time
    _scenario(
        "held-lock",
        "an append without the lock",
        "coordination/partition_writer.py",
        "                    lock.lock_kernel()\n",
        "                    pass\n",
        "locks",
    ),
    _scenario(
        "held-lock",
        "a time-out steals the lock",
        "coordination/partition_writer.py",
        """\
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
""",
        "                    lock.wait_kernel(timeout)\n",
        "locks",
    ),
    # --- reading
    _crashes(
        "a reader goes past the published end",
        "coordination/partition_reader.py",
        "            if end is not None:\n                return end\n            self._settle()",
        "            if end is not None:\n                further = walk(self.folder, control).end\n"
        "                return further if further.end_offset > end.end_offset else end\n            self._settle()",
        "lost",
        "invented",
        "hole",
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
        "invented",
        "lost",
        "refused",
    ),
    _crashes(
        "recovery looks at headers only",
        "storage/recovery.py",
        "        if header.last_offset >= self._durable.offset:\n",
        "        if header.last_offset < 0:\n",
        "refused",
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
    _scenario(
        "stale-seal",
        "the seal is not verified",
        "storage/recovery.py",
        "                if seal is not None and seal.last_checksum == previous:\n",
        "                if seal is not None:\n",
        "invented",
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
        "storage/recovery.py",
        "    epoch = 1 + max([result.end.epoch, *(known.epoch for known in epochs)])\n",
        "    epoch = max([result.end.epoch, *(known.epoch for known in epochs)])\n",
        "committed",
    ),
    _scenario(
        "recovery-on-demand",
        "recovery calls durable what it did not sync",
        "storage/recovery.py",
        "                rolled.datasync()\n",
        "                pass\n",
        "refused",
        "lost",
    ),
    _crashes(
        "recovery leaves the published end to the disk",
        "storage/recovery.py",
        "        control.publish(msgspec.structs.replace(end, sequence=end.sequence + step))\n",
        "        pass\n",
        "lost",
        "refused",
        "hole",
        "invented",
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
    path = target / "pystreamlog" / mutant.file
    text = path.read_text("utf-8")
    for old, new in mutant.edits:
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {old!r} occurs {text.count(old)} times in {mutant.file}")
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
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
