"""What a disk may hold after a power loss, and the door to files that writes down what reaches it.

`RecordingFiles` works on real files, which stand for the page cache, and writes every change into a trace. `Disk`
replays a trace up to any point and then tells what may be left:

- What was synced is there: a file's data after `datasync`, the names of a directory after `sync_directory`.
- Of each page of 4 KiB written since, the disk has what any earlier moment had, or in each sector of 512 bytes that of
  another moment. A sector that had no data before may hold zeros or garbage. A sector that had some is never mixed:
  that disks write sectors whole is what every log relies on.
- A file's size is that of any moment since, so that its end is missing, or zeros.
- Each change of names since is kept or not, whatever became of the others; a rename is one change.
- After a failed `datasync` the pages count as clean: they are synced again only once they are written again.

A process that is killed loses nothing but what it had not handed to the kernel; one large write may be cut at any byte.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random

from pystreamlog.storage.files import File, Files, translated

__all__ = ["ROOT", "STYLES", "Disk", "Image", "Recorder", "RecordingFiles"]

ROOT = 1
"""Number of the directory that holds all; files and directories are told apart by numbers, as inodes are."""

_PAGE = 4096
_SECTOR = 512

STYLES = ("all", "none", "one lost", "one kept", "some", "moments", "torn")
"""What a power loss does to what was not synced: see `Disk.after_power_loss`."""


class Image:
    """Directories (names by number) and files (bytes by number) of a machine that is off."""

    __slots__ = ("files", "folders")

    def __init__(self, folders: dict[int, dict[str, int]], files: dict[int, bytes]) -> None:
        self.folders = folders
        self.files = files


_TAIL = 64
"""More bytes than a batch ends with zeros."""


class _Content:
    """A file: what is on disk, and what was written since."""

    __slots__ = ("durable", "lost", "writes")

    def __init__(self, durable: bytes | bytearray = b"") -> None:
        self.durable = bytearray(durable)
        self.writes: list[tuple[int, bytes]] = []
        self.lost: list[tuple[int, bytes]] = []

    def copy(self) -> _Content:
        twin = _Content(self.durable)
        twin.writes = self.writes.copy()
        twin.lost = self.lost.copy()
        return twin

    def sync(self) -> None:
        """All that is dirty is on disk now; a dirty page is written whole, with what was lost of it."""
        if self.lost:
            dirty = {page for position, data in self.writes for page in _pages(position, data)}
            left = []
            for position, data in self.lost:
                for page in _pages(position, data):
                    start = max(position, page * _PAGE)
                    part = data[start - position : (page + 1) * _PAGE - position]
                    if page in dirty:
                        _put(self.durable, start, part)
                    else:
                        left.append((start, part))
            self.lost = left
        for position, data in self.writes:
            _put(self.durable, position, data)
        self.writes = []

    def fail(self) -> None:
        """A sync failed."""
        self.lost += self.writes
        self.writes = []

    def cached(self) -> bytes:
        """What processes see."""
        buffer = bytearray(self.durable)
        for position, data in (*self.lost, *self.writes):
            _put(buffer, position, data)
        return bytes(buffer)

    def left(self, dice: Random, style: str, chosen: int, number: int) -> tuple[bytes, int]:
        """What a power loss leaves, and the next number; `chosen` is the one page or size that fares otherwise."""
        pending = self.lost + self.writes
        if not pending:
            return bytes(self.durable), number
        touching: dict[int, list[tuple[int, bytes]]] = {}
        size = len(self.durable)
        sizes = [size]
        for write in pending:
            for page in _pages(*write):
                touching.setdefault(page, []).append(write)
            size = max(size, write[0] + len(write[1]))
            if size != sizes[-1]:
                sizes.append(size)
        buffer = bytearray(self.durable)
        buffer.extend(bytes(size - len(buffer)))
        for page, writes in touching.items():
            start, end = page * _PAGE, min((page + 1) * _PAGE, size)
            if style == "torn" and dice.random() < 0.7:
                self._tear(buffer, dice, writes, start, end)
            else:
                for position, data in writes[: _count(dice, style, len(writes), is_chosen=number == chosen)]:
                    _put_within(buffer, position, data, start, end)
            number += 1
        if len(sizes) > 1:
            size = sizes[_count(dice, style, len(sizes) - 1, is_chosen=number == chosen)]
            number += 1
        return bytes(buffer[:size]), number

    def _tear(self, buffer: bytearray, dice: Random, writes: list[tuple[int, bytes]], start: int, end: int) -> None:
        for sector in range(start, end, _SECTOR):
            stop = min(sector + _SECTOR, end)
            parts = [write for write in writes if write[0] < stop and write[0] + len(write[1]) > sector]
            if not parts:
                continue
            face = dice.random()
            # What ends in a sector that was synced may end with zeros.
            if face < 0.3 and not any(self.durable[max(start, sector - _TAIL) : stop]):
                if face < 0.15:
                    buffer[sector:stop] = dice.randbytes(stop - sector)
                continue
            for position, data in parts[: _count(dice, "moments", len(parts), is_chosen=False)]:
                _put_within(buffer, position, data, sector, stop)


def _count(dice: Random, style: str, count: int, *, is_chosen: bool) -> int:
    """How many of `count` changes in a row are kept."""
    if style in ("moments", "torn"):
        face = dice.random()
        if face < 0.5:
            return dice.randrange(count + 1)
        return 0 if face < 0.75 else count
    if style == "some":
        return count if dice.random() < 0.5 else 0
    return count if (style in ("all", "one lost")) != is_chosen else 0


def _pages(position: int, data: bytes) -> range:
    return range(position // _PAGE, -(-(position + len(data)) // _PAGE)) if data else range(0)


def _put(buffer: bytearray, position: int, data: bytes) -> None:
    end = position + len(data)
    if len(buffer) < end:
        buffer.extend(bytes(end - len(buffer)))
    buffer[position:end] = data


def _put_within(buffer: bytearray, position: int, data: bytes, start: int, stop: int) -> None:
    first, last = max(position, start), min(position + len(data), stop)
    if first < last:
        buffer[first:last] = data[first - position : last - position]


Change = tuple[tuple[str, int], ...]
"""A change of a directory's names: each name with the number it leads to from now on, 0 for none."""


class Disk:
    """A disk, and what the kernel has not written to it yet.

    Attributes:
        names: By directory, as processes see them.
    """

    def __init__(self, image: Image | None = None) -> None:
        folders = image.folders if image else {ROOT: {}}
        files = image.files if image else {}
        self.names = {number: dict(names) for number, names in folders.items()}
        self._synced = {number: dict(names) for number, names in folders.items()}
        self._changes: dict[int, list[Change]] = {}
        self._files = {number: _Content(data) for number, data in files.items()}

    def copy(self) -> Disk:
        """Another one, which is in the same state."""
        twin = Disk()
        twin.names = {number: dict(names) for number, names in self.names.items()}
        twin._synced = {number: dict(names) for number, names in self._synced.items()}
        twin._changes = {number: changes.copy() for number, changes in self._changes.items()}
        twin._files = {number: content.copy() for number, content in self._files.items()}
        return twin

    def apply(self, step: tuple) -> None:
        """Take in the next step of a trace."""
        kind, number, *rest = step
        if kind == "write":
            self._files[number].writes.append((rest[0], rest[1]))
        elif kind == "datasync":
            self._files[number].sync()
        elif kind == "failed":
            self._files[number].fail()
        elif kind == "sync":
            names = self._synced[number]
            for change in self._changes.pop(number, ()):
                _rename(names, change)
        else:
            change, made = rest
            if kind == "create":
                self._files[made] = _Content()
            elif kind == "mkdir":
                self.names[made] = {}
                self._synced[made] = {}
            _rename(self.names[number], change)
            self._changes.setdefault(number, []).append(change)

    def cut(self, step: tuple, dice: Random) -> None:
        """Take in a part of a step that a killed process was at: of a write the first bytes."""
        if step[0] == "write" and len(step[3]) > 1:
            self.apply((*step[:3], step[3][: dice.randrange(1, len(step[3]))]))

    def cached(self) -> Image:
        """What processes see."""
        return self._reachable(self.names, lambda number: self._files[number].cached())

    def after_power_loss(self, dice: Random, style: str) -> Image:
        """What the disk holds afterwards.

        Args:
            dice: Decides what the style leaves open.
            style: Of what was not synced, `"all"` or `"none"` is kept; all but one page, size or change of names, or
                only that one; some pages as they are at the end; each page as it was at some moment (`"moments"`), or
                each sector (`"torn"`).
        """
        chosen, number = -1, 0
        if style in ("one lost", "one kept"):
            chosen = dice.randrange(max(1, self._count()))
        folders = {folder: dict(names) for folder, names in self._synced.items()}
        for folder, changes in self._changes.items():
            for change in changes:
                if _count(dice, style, 1, is_chosen=number == chosen):
                    _rename(folders[folder], change)
                number += 1

        def left(file: int) -> bytes:
            nonlocal number
            data, number = self._files[file].left(dice, style, chosen, number)
            return data

        return self._reachable(folders, left)

    def _count(self) -> int:
        """About how many pages, sizes and changes of names are not synced."""
        pages = sum(
            1 + len({page for write in content.lost + content.writes for page in _pages(*write)})
            for content in self._files.values()
            if content.writes or content.lost
        )
        return pages + sum(map(len, self._changes.values()))

    def _reachable(self, folders: dict[int, dict[str, int]], content) -> Image:
        image = Image({}, {})
        waiting = [ROOT]
        while waiting:
            number = waiting.pop()
            if number in image.folders or number in image.files:
                continue
            if number in folders:
                image.folders[number] = folders[number].copy()
                waiting += folders[number].values()
            else:
                image.files[number] = content(number)
        return image


def _rename(names: dict[str, int], change: Change) -> None:
    for name, number in change:
        if number:
            names[name] = number
        else:
            names.pop(name, None)


class Recorder:
    """The trace of what processes did to one directory.

    Attributes:
        names: By directory, as they are now.
        trace: The steps, as `Disk.apply` takes them; None when nothing is written down any more.
        failing: Numbers of the files whose next `datasync` fails.
    """

    def __init__(self, disk: Disk) -> None:
        self.names = {number: dict(names) for number, names in disk.names.items()}
        self.trace: list[tuple] = []
        self.failing: set[int] = set()
        self.recording = True
        self._last = max((number for names in self.names.values() for number in names.values()), default=ROOT)

    def next_number(self) -> int:
        """The number of a new file or directory."""
        self._last += 1
        return self._last

    def find(self, name: str, folder: int = ROOT) -> int:
        """The number of what has that path below a directory; 0 when there is nothing."""
        number = folder
        for part in name.split("/") if name else ():
            number = self.names.get(number, {}).get(part, 0)
        return number

    def place(self, name: str, folder: int = ROOT) -> tuple[int, str]:
        """The number of the directory that holds that path below a directory, and its last part."""
        inner, _, last = name.rpartition("/")
        return self.find(inner, folder), last

    def change(self, kind: str, folder: int, made: int, *change: tuple[str, int]) -> None:
        """Names of a directory changed."""
        _rename(self.names[folder], change)
        if self.recording:
            self.trace.append((kind, folder, change, made))

    def note(self, *step: object) -> None:
        """Something happened to a file or a directory."""
        if self.recording:
            self.trace.append(step)


class _RecordingFile(File):
    """A file whose changes are written down."""

    __slots__ = ("number", "recorder")

    def __init__(self, file: File, recorder: Recorder, number: int) -> None:
        super().__init__(file.fd, file.path)
        self.recorder = recorder
        self.number = number

    def pwrite(self, data: bytes, position: int) -> None:
        super().pwrite(data, position)
        self.recorder.note("write", self.number, position, bytes(data))

    def pwritev(self, parts, size: int, position: int) -> None:
        self.pwrite(b"".join(parts), position)

    def allocate(self, start: int, end: int) -> bool:
        done = super().allocate(start, end)
        if done:
            self.recorder.note("write", self.number, end, b"")
        return done

    def _copy_some(self, target: File, position: int, size: int) -> int:
        """As where the kernel does not copy between files: what is copied is written."""
        data = self.pread(size, position)
        if data:
            target.pwrite(data, position)
        return len(data)

    def duplicate(self) -> File:
        return _RecordingFile(super().duplicate(), self.recorder, self.number)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def status(self) -> os.stat_result:
        return _numbered(super().status(), self.number)

    def datasync(self) -> None:
        if self.number in self.recorder.failing:
            self.recorder.failing.discard(self.number)
            self.recorder.note("failed", self.number)
            raise translated(OSError(errno.EIO, os.strerror(errno.EIO)), self.path)
        self.recorder.note("datasync", self.number)


def _numbered(found: os.stat_result, number: int) -> os.stat_result:
    """The same, with the recorder's number in place of the inode, as what is built from a recording has others."""
    mode, _, *rest = found[:10]
    return os.stat_result((mode, number, *rest), {"st_mtime_ns": found.st_mtime_ns, "st_blocks": found.st_blocks})


class RecordingFiles(Files):
    """The door to files that writes down what goes through it. Not for two threads at once.

    Args:
        root: The directory.
        recorder: What writes it down.
        folder: The directory's number; as a descriptor, it stays that of a directory that is renamed.
        mode: See `Files`.
        preallocate: The same.
    """

    def __init__(
        self, root: str, recorder: Recorder, folder: int = ROOT, *, mode: int = 0o700, preallocate: bool = True
    ) -> None:
        super().__init__(root, mode=mode, preallocate=preallocate)
        self.recorder = recorder
        self._folder = folder

    def _find(self, name: str) -> int:
        return self.recorder.find(name, self._folder)

    def _place(self, name: str) -> tuple[int, str]:
        return self.recorder.place(name, self._folder)

    @contextmanager
    def _parent(self, name: str, *, reading: bool = False) -> Iterator[tuple[int, str]]:
        if name.endswith(".") or self._fd < 0:  # a directory itself is wanted
            with super()._parent(name, reading=reading) as found:
                yield found
            return
        try:  # nobody puts links into this directory: no need to go from folder to folder
            yield self._fd, name
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise translated(error, self.path(name), reading=reading) from error

    def open(self, name: str, *, write: bool = False) -> File:
        """See `Files.open`."""
        return _RecordingFile(super().open(name, write=write), self.recorder, self._find(name))

    def status(self, name: str) -> os.stat_result:
        """See `Files.status`."""
        found = super().status(name)
        return _numbered(found, self._find(name)) if stat.S_ISREG(found.st_mode) else found

    def create(self, name: str) -> File:
        """See `Files.create`."""
        file, recorder = super().create(name), self.recorder
        number = recorder.next_number()
        folder, last = self._place(name)
        recorder.change("create", folder, number, (last, number))
        return _RecordingFile(file, recorder, number)

    def rename(self, source: str, target: str) -> None:
        """See `Files.rename`."""
        super().rename(source, target)
        recorder = self.recorder
        number = self._find(source)
        (folder, last), (other, name) = self._place(source), self._place(target)
        if folder == other:
            recorder.change("rename", folder, number, (last, 0), (name, number))
        else:  # two directories, which are synced one by one
            recorder.change("rename", other, number, (name, number))
            recorder.change("rename", folder, number, (last, 0))

    def link(self, source: str, target: str) -> None:
        """See `Files.link`."""
        super().link(source, target)
        self._linked(self._find(source), *self._place(target))

    def link_into(self, folder: str, names: Iterable[str], target: Files, target_folder: str) -> list[str]:
        """See `Files.link_into`."""
        assert isinstance(target, RecordingFiles)
        left: list[str] = []
        source, into = self._find(folder), target._find(target_folder)
        for name in names:
            if super().link_into(folder, [name], target, target_folder):
                left.append(name)
            else:
                self._linked(self.recorder.names[source][name], into, name)
        return left

    def _linked(self, number: int, folder: int, last: str) -> None:
        """A second name of one file: its bytes are one, and each name is on disk once its own directory is synced."""
        self.recorder.change("link", folder, number, (last, number))

    def unlink(self, name: str) -> None:
        """See `Files.unlink`."""
        super().unlink(name)
        number = self._find(name)
        if number:
            folder, last = self._place(name)
            self.recorder.change("unlink", folder, number, (last, 0))

    def make_directory(self, name: str) -> None:
        """See `Files.make_directory`."""
        super().make_directory(name)
        number = self.recorder.next_number()
        self.recorder.names[number] = {}
        folder, last = self._place(name)
        self.recorder.change("mkdir", folder, number, (last, number))

    def remove_directory(self, name: str) -> None:
        """See `Files.remove_directory`."""
        recorder = self.recorder
        number = self._find(name)
        super().remove_directory(name)
        if number:
            folder, last = self._place(name)
            recorder.change("rmdir", folder, number, (last, 0))

    @staticmethod
    def sync_everything() -> None:
        """See `Files.sync_everything`: a machine that hurries, and promises nothing."""

    def sync_directory(self, name: str) -> None:
        """See `Files.sync_directory`."""
        super().sync_directory(name)
        self.recorder.note("sync", self._find(name))
