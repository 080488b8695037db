"""The one door to the operating system's files.

Everything below the log's directory is opened from here, relative to a descriptor of that directory, component by
component and never through a symbolic link, so that no file outside the directory is ever touched. What is not a
regular file where one is due is `CorruptLogError`; opening never blocks (a FIFO is refused, not waited for).

Errors are translated here: `FileNotFoundError` and `FileExistsError` pass, for they steer the callers; a refusal to
write becomes `ReadOnlyError`, everything else, a refusal to read too, `StorageError` around the `OSError`.

Nothing is ever stored through a map: on a full disk that would be SIGBUS, which no Python code can catch.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pystreamlog.errors import ClosedError, CorruptLogError, IncompatibleFormatError, ReadOnlyError, StorageError

__all__ = ["NOT_TRIED", "File", "Files", "translated"]

NOT_TRIED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK)
"""What a process is out of, but no fsync ever fails with."""

_NOT_IN_THE_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""How `copy_file_range` says that it does not work between these files, on these file systems or in this kernel."""
_NOT_LINKED = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
_COPIED_AT_ONCE = 1 << 20

_TRACKFD = {"trackfd": False} if sys.version_info >= (3, 13) else {}
_HINTS = {
    errno.ENOSPC: "the disk is full: free some space and call again",
    errno.EDQUOT: "the disk quota is used up: free some space and call again",
    errno.EMFILE: "this process is out of file descriptors: close some, or raise `ulimit -n`",
    errno.ENFILE: "the system is out of file descriptors: raise `fs.file-max`",
    errno.EIO: "the disk reported an I/O error: check it before you go on",
    errno.EFBIG: "the file would pass this process's size limit: raise `ulimit -f`",
    errno.EACCES: "this user may not read it: check its owner and permissions",
    errno.EPERM: "this user may not read it: check its owner and permissions",
}


def translated(error: OSError, path: str, *, reading: bool = False) -> Exception:
    """The error of this library for an `OSError` at `path`, met while only reading or else while writing too."""
    if error.errno == errno.EROFS or (error.errno in (errno.EACCES, errno.EPERM) and not reading):
        return ReadOnlyError(f"{path} may not be written by this user: {error.strerror}", path=path)
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
        return CorruptLogError(f"{path} is a link, a device or of another kind than the log made it", path=path)
    hint = _HINTS.get(error.errno or 0, "see the cause")
    return StorageError(f"{path}: {error.strerror or error} ({hint})", path=path, errno=error.errno or 0)


class File:
    """An open regular file: a descriptor and, for messages, its path. Not for two threads at once while closing."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def pread(self, size: int, position: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file."""
        try:
            return os.pread(self.fd, size, position)
        except OSError as error:
            raise translated(error, self.path) from error

    def pwrite(self, data: bytes, position: int) -> None:
        """All of `data` at `position`."""
        try:
            written = os.pwrite(self.fd, data, position)
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], position + written)
        except OSError as error:
            raise translated(error, self.path) from error

    def pwritev(self, parts: Sequence[bytes], size: int, position: int) -> None:
        """All of `parts`, of `size` bytes in all, back to back at `position`."""
        try:
            written = os.pwritev(self.fd, parts, position)
        except OSError as error:
            raise translated(error, self.path) from error
        if written < size:
            self.pwrite(b"".join(parts)[written:], position + written)

    def allocate(self, start: int, end: int) -> bool:
        """Reserve the bytes from `start` to `end`; False where the file system has no such call.

        Raises:
            StorageError: No space; what was there before is untouched.
        """
        try:
            os.posix_fallocate(self.fd, start, end - start)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return False
            raise translated(error, self.path) from error
        except AttributeError:  # macOS has no posix_fallocate
            return False
        return True

    def size(self) -> int:
        """The file's size in bytes."""
        return self.status().st_size

    def status(self) -> os.stat_result:
        """What `fstat` says."""
        try:
            return os.fstat(self.fd)
        except OSError as error:
            raise translated(error, self.path) from error

    def datasync(self) -> None:
        """Return when the file's data, and the size needed to read it, are on disk."""
        try:
            (os.fdatasync if sys.platform == "linux" else os.fsync)(self.fd)
        except OSError as error:
            raise translated(error, self.path) from error

    def copy_to(self, target: File, start: int, end: int) -> int:
        """Copy bytes to the same place of another file, in the kernel where it can; returns how many there were.

        Fewer than `end - start` only at the end of the file. Some file systems let both files share the blocks.
        """
        position = start
        while position < end:
            size = self._copy_some(target, position, end - position)
            if not size:
                break
            position += size
        return position - start

    def _copy_some(self, target: File, position: int, size: int) -> int:
        """Copy up to `size` bytes; 0 at the end of the file."""
        try:
            return os.copy_file_range(self.fd, target.fd, size, position, position)
        except AttributeError:
            pass  # only Linux has it
        except OSError as error:
            if error.errno not in _NOT_IN_THE_KERNEL:
                raise translated(error, target.path) from error
        data = self.pread(min(size, _COPIED_AT_ONCE), position)
        target.pwrite(data, position)
        return len(data)

    def duplicate(self) -> File:
        """The same open file through another descriptor, which is told the same errors by `datasync`."""
        try:
            return File(os.dup(self.fd), self.path)
        except OSError as error:
            raise translated(error, self.path) from error

    def map(self, size: int) -> mmap.mmap:
        """A read-only map of the first `size` bytes, which must have been written or allocated."""
        try:
            return mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, **_TRACKFD)
        except OSError as error:
            raise translated(error, self.path) from error

    def close(self) -> None:
        """Close the descriptor; again is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Files:
    """The files below one directory, named by paths relative to it. Safe from any thread.

    Args:
        root: The directory, which must exist.
        mode: Permission bits of directories made here; files get the same less x, whatever the umask.
        preallocate: Whether `File.allocate` pays on this file system.
    """

    def __init__(self, root: str, *, mode: int = 0o700, preallocate: bool = True) -> None:
        self.root = os.path.abspath(root)
        self.mode = mode
        self.preallocate = preallocate
        try:
            self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError as error:
            raise IncompatibleFormatError(f"{self.root} is no directory: pass a directory", path=self.root) from error
        except OSError as error:
            raise translated(error, self.root, reading=True) from error

    def close(self) -> None:
        """Close the directory's descriptor; again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def path(self, name: str) -> str:
        """The absolute path of `name`, for messages and for watching."""
        return f"{self.root}/{name}" if name else self.root

    @contextmanager
    def _parent(self, name: str, *, reading: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds `name`, and its last component; translates errors of the block."""
        *folders, last = name.split("/")
        if ".." in folders or last == "..":
            raise CorruptLogError(f"{name} would lead out of the log", path=self.path(name))
        fd, opened = self._fd, -1
        if fd < 0:
            raise ClosedError("the log was closed: open it again")
        try:
            for folder in folders:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                previous, opened = opened, fd  # known before anything is closed: Ctrl-C must not close one twice
                if previous >= 0:
                    os.close(previous)
            yield fd, last
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise translated(error, self.path(name), reading=reading) from error
        finally:
            if opened >= 0:
                os.close(opened)

    def open(self, name: str, *, write: bool = False) -> File:
        """An existing regular file, for reading or for both."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with self._parent(name, reading=not write) as (parent, last):
            fd = os.open(last, flags, dir_fd=parent)
        file = File(fd, self.path(name))
        try:
            if not stat.S_ISREG(file.status().st_mode):
                raise CorruptLogError(f"{file.path} is no regular file", path=file.path)
        except BaseException:
            file.close()
            raise
        return file

    def create(self, name: str) -> File:
        """A new, empty file open for reading and writing; `FileExistsError` when there is one."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = self.mode & 0o666
        with self._parent(name) as (parent, last):
            file = File(os.open(last, flags, mode, dir_fd=parent), self.path(name))
            try:
                os.fchmod(file.fd, mode)
            except BaseException:
                file.close()
                raise
        return file

    def read(self, name: str, *, limit: int) -> bytes:
        """The whole file.

        Raises:
            CorruptLogError: It has more than `limit` bytes.
        """
        file = self.open(name)
        try:
            data = file.pread(min(limit, file.size()) + 1, 0)  # memory for so many bytes is taken at once
        finally:
            file.close()
        if len(data) > limit:
            raise CorruptLogError(f"{file.path} has more than {limit} bytes", path=file.path, expected=limit)
        return data

    @contextmanager
    def made_whole(self, name: str, *, replace: bool = True) -> Iterator[File]:
        """Yield a new file to fill, which is `name` afterwards: whole and on disk, or nothing has happened.

        Without `replace` nothing happens either when there is one of that name, as another process was faster. That the
        name is on disk is left to `sync_directory`.
        """
        temporary = f"{name}~{os.urandom(6).hex()}"
        file = self.create(temporary)
        try:
            try:
                yield file
                file.datasync()
            finally:
                file.close()
            if replace:
                self.rename(temporary, name)
                return
            with suppress(FileExistsError):
                self.link(temporary, name)
        except BaseException:
            self.unlink(temporary)
            raise
        self.unlink(temporary)

    def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """Have `name` hold `data`: whole and on disk, or not at all. See `made_whole`."""
        with self.made_whole(name, replace=replace) as file:
            file.pwrite(data, 0)
        self.sync_directory(os.path.dirname(name))

    def rename(self, source: str, target: str) -> None:
        """Move a file over whatever `target` is, or a directory to where none, or an empty one, is."""
        with self._parent(source) as (source_parent, source_last), self._parent(target) as (parent, last):
            os.rename(source_last, last, src_dir_fd=source_parent, dst_dir_fd=parent)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name in its folder; `FileExistsError` when there is something of that name."""
        with self._parent(source) as (source_parent, source_last), self._parent(target) as (parent, last):
            os.link(source_last, last, src_dir_fd=source_parent, dst_dir_fd=parent, follow_symlinks=False)

    def link_into(self, folder: str, names: Iterable[str], target: Files, target_folder: str) -> list[str]:
        """Give files of a folder the same names in a folder of another directory; those that could not be linked.

        That is so for all where the other one lies on another file system, or the file system has no links; and for
        one that has as many as it may have, or that this user may not link.

        Raises:
            FileNotFoundError: One is not there any more. Those before it were linked.
        """
        left = []
        with (
            self._parent(f"{folder}/.", reading=True) as (source, _),
            target._parent(f"{target_folder}/.") as (parent, _),
        ):
            for name in names:
                try:
                    os.link(name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in _NOT_LINKED:
                        raise
                    left.append(name)
        return left

    def unlink(self, name: str) -> None:
        """Remove a file; nothing happens when there is none."""
        try:
            with self._parent(name) as (parent, last):
                os.unlink(last, dir_fd=parent)
        except FileNotFoundError:
            pass

    def make_directory(self, name: str) -> None:
        """Make one directory; `FileExistsError` when there is one."""
        mode = self.mode | (stat.S_ISGID if self.mode & 0o070 else 0)
        with self._parent(name) as (parent, last):
            os.mkdir(last, self.mode, dir_fd=parent)
            fd = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchmod(fd, mode)
            finally:
                os.close(fd)

    def remove_directory(self, name: str) -> None:
        """Remove a directory with all that is in it, following no link; nothing happens when there is none."""
        for entry in self.list(name):
            path = f"{name}/{entry}"
            try:
                is_directory = stat.S_ISDIR(self.status(path).st_mode)
            except FileNotFoundError:
                continue  # somebody else removes it too, or the disk fails
            if is_directory:
                self.remove_directory(path)
            else:
                self.unlink(path)
        try:
            with self._parent(name) as (parent, last):
                os.rmdir(last, dir_fd=parent)
        except FileNotFoundError:
            pass

    def list_directories(self, name: str) -> list[str]:
        """The names of the directories in a directory, links left out, in no order."""
        with self._parent(f"{name}/." if name else ".", reading=True) as (parent, _), os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def list(self, name: str) -> list[str]:
        """The names in a directory, in no order; empty when there is no such directory."""
        try:
            with self._parent(f"{name}/." if name else ".", reading=True) as (parent, _):
                return os.listdir(parent)
        except FileNotFoundError:
            return []

    def regular(self, name: str) -> dict[str, tuple[int, int]]:
        """The regular files in a directory, each with its inode number and its size; links are left out.

        Raises:
            FileNotFoundError: There is no such directory.
        """
        found = {}
        with self._parent(f"{name}/.", reading=True) as (parent, _), os.scandir(parent) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed meanwhile
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found[entry.name] = status.st_ino, status.st_size
        return found

    def status(self, name: str) -> os.stat_result:
        """What `stat` says, following no link; `FileNotFoundError` when there is nothing."""
        with self._parent(name, reading=True) as (parent, last):
            return os.stat(last, dir_fd=parent, follow_symlinks=False)

    def disk_usage(self, name: str) -> int:
        """The bytes that the files in a directory take up on the disk; 0 when there is no such directory."""
        total = 0
        try:
            with self._parent(f"{name}/.", reading=True) as (parent, _), os.scandir(parent) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # removed meanwhile
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            return 0
        return total

    def space(self) -> tuple[int, int]:
        """The size of the file system in bytes, and how many of them are free for this user."""
        try:
            found = os.fstatvfs(self._fd)
        except OSError as error:
            raise translated(error, self.root, reading=True) from error
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            self.status(name)
        except FileNotFoundError:
            return False
        return True

    @staticmethod
    def sync_everything() -> None:
        """Have the machine write all that it has not; whether that failed is told by syncing the single files."""
        os.sync()

    def sync_directory(self, name: str) -> None:
        """Return when the names in a directory are on disk."""
        with self._parent(f"{name}/." if name else ".") as (parent, _):
            os.fsync(parent)
