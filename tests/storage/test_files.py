"""The door to files: only regular files below the directory, errors translated, writes whole."""

import errno
import os
import socket
import stat

import pytest

from pystreamlog.errors import ClosedError, CorruptLogError, IncompatibleFormatError, ReadOnlyError, StorageError
from pystreamlog.storage.files import File, Files, translated


@pytest.fixture
def files(tmp_path):
    """A door to a directory with a folder in it."""
    (tmp_path / "log" / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    door = Files(str(tmp_path / "log"))
    yield door
    door.close()


def fails_with(code):
    """A system call that fails so."""

    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


# --- what is opened ---------------------------------------------------------------------------------------------------


def test_symbolic_link_in_a_files_place_is_not_followed(files, tmp_path):
    """A link is refused, whether its target exists or not, and what it points to stays as it was."""
    for target in (tmp_path / "outside" / "secret", tmp_path / "nothing"):
        link = tmp_path / "log" / "folder" / "link"
        link.symlink_to(target)
        for write in (False, True):
            with pytest.raises(CorruptLogError, match="link"):
                files.open("folder/link", write=write)
        with pytest.raises(FileExistsError):
            files.create("folder/link")
        files.write("folder/link", b"new")
        assert files.read("folder/link", limit=10) == b"new"
        link.unlink()
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"
    assert not (tmp_path / "nothing").exists()


def test_symbolic_link_in_a_folders_place_is_not_followed(files, tmp_path):
    """No component of a path may be a link."""
    (tmp_path / "log" / "linked").symlink_to(tmp_path / "outside")
    for call in (
        lambda: files.open("linked/secret"),
        lambda: files.create("linked/new"),
        lambda: files.unlink("linked/secret"),
        lambda: files.list("linked"),
        lambda: files.rename("linked/secret", "folder/stolen"),
        lambda: files.link("linked/secret", "folder/stolen"),
        lambda: files.sync_directory("linked"),
    ):
        with pytest.raises(CorruptLogError):
            call()
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_removing_a_directory_follows_no_link(files, tmp_path):
    """What a link in a removed directory points to stays."""
    (tmp_path / "log" / "folder" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "log" / "folder" / "deeper").mkdir()
    (tmp_path / "log" / "folder" / "deeper" / "file").write_bytes(b"x")
    files.remove_directory("folder")
    assert not (tmp_path / "log" / "folder").exists()
    assert (tmp_path / "outside" / "secret").exists()
    files.remove_directory("folder")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("write", [False, True])
def test_fifo_is_refused_and_not_waited_for(files, tmp_path, write):
    """A FIFO without a writer would block an opener for ever."""
    os.mkfifo(tmp_path / "log" / "folder" / "fifo")
    with pytest.raises(CorruptLogError):
        files.open("folder/fifo", write=write)


def test_socket_and_directory_are_refused(files, tmp_path):
    """Only regular files are files."""
    with socket.socket(socket.AF_UNIX) as server:
        there = os.getcwd()
        os.chdir(tmp_path / "log" / "folder")  # the path of a socket may have 107 bytes
        try:
            server.bind("socket")
        finally:
            os.chdir(there)
        for name in ("folder/socket", "folder"):
            for write in (False, True):
                with pytest.raises(CorruptLogError):
                    files.open(name, write=write)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_device_is_refused(files, tmp_path):
    """A device in a file's place is not read."""
    try:
        os.mknod(tmp_path / "log" / "folder" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this container may not make device files")
    with pytest.raises(CorruptLogError):
        files.open("folder/zero")


def test_missing_files_are_file_not_found(files):
    """What is not there steers the callers and is not translated."""
    for call in (lambda: files.open("no"), lambda: files.open("no/file"), lambda: files.status("folder/no")):
        with pytest.raises(FileNotFoundError):
            call()
    assert files.list("no") == []
    assert not files.exists("folder/no")
    files.unlink("no")


def test_file_in_the_directorys_place_is_no_log(files, tmp_path):
    """The directory itself must be one."""
    with pytest.raises(IncompatibleFormatError, match="directory"):
        Files(str(tmp_path / "outside" / "secret"))


def test_use_after_close_is_a_closed_error(files):
    """The door is closed once and for all; closing it again is harmless."""
    files.close()
    files.close()
    for call in (lambda: files.open("x"), lambda: files.write("x", b""), lambda: files.list("")):
        with pytest.raises(ClosedError):
            call()


def test_only_directories_are_listed_as_such(files, tmp_path):
    """Files and links are no directories."""
    (tmp_path / "log" / "file").write_bytes(b"")
    (tmp_path / "log" / "link").symlink_to(tmp_path / "outside")
    assert files.list_directories("") == ["folder"]
    with pytest.raises(FileNotFoundError):
        files.list_directories("no")


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize(("mode", "directory", "file"), [(0o700, 0o700, 0o600), (0o770, 0o2770, 0o660)])
def test_permission_bits_do_not_depend_on_the_umask(tmp_path, umask, mode, directory, file):
    """Directories get the mode (setgid where a group shares them), files the same less x, temporary ones too."""
    door = Files(str(tmp_path), mode=mode)
    before = os.umask(umask)
    try:
        door.make_directory("made")
        door.create("made/created").close()
        door.write("made/written", b"x")
    finally:
        os.umask(before)
        door.close()
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == directory
    assert stat.S_IMODE((tmp_path / "made" / "created").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "made" / "written").stat().st_mode) == file


def test_descriptors_are_not_inherited_by_programs(files):
    """Every descriptor is close-on-exec."""
    file = files.create("file")
    assert not os.get_inheritable(file.fd)
    assert not os.get_inheritable(files._fd)
    file.close()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_refusal_to_write_is_read_only(files, monkeypatch, code):
    """Whoever may not write learns that, with the path."""
    monkeypatch.setattr(os, "open", fails_with(code))
    with pytest.raises(ReadOnlyError) as caught:
        files.create("file")
    assert caught.value.path == f"{files.root}/file"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_refusal_to_read_is_a_storage_error(files, monkeypatch, code):
    """Whoever may not even read has another problem."""
    monkeypatch.setattr(os, "open", fails_with(code))
    with pytest.raises(StorageError, match="permission") as caught:
        files.open("file")
    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EIO, "check it"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ENOLCK, "cause"),
    ],
)
def test_other_errors_are_storage_errors_that_say_what_to_do(files, monkeypatch, code, hint):
    """The errno, the path and a way out; the OSError is the cause."""
    file = files.create("file")
    try:
        monkeypatch.setattr(os, "pwrite", fails_with(code))
        with pytest.raises(StorageError, match=hint) as caught:
            file.pwrite(b"data", 0)
    finally:
        file.close()
    assert (caught.value.errno, caught.value.path) == (code, file.path)
    assert isinstance(caught.value.__cause__, OSError)


def test_failing_calls_on_a_file_are_translated(files, monkeypatch):
    """Each call has its translation; none lets an OSError pass."""
    file = files.create("file")
    file.pwrite(b"x" * 10, 0)
    calls = {
        "pread": lambda: file.pread(1, 0),
        "pwritev": lambda: file.pwritev([b"x"], 1, 0),
        "posix_fallocate": lambda: file.allocate(0, 10),
        "fstat": file.size,
        "fdatasync": file.datasync,
    }
    for name, call in calls.items():
        if not hasattr(os, name):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails_with(errno.EIO))
            with pytest.raises(StorageError):
                call()
    file.close()


def test_directory_whose_files_go_meanwhile_is_removed(files, monkeypatch):
    """Two clean up after the same dead process, or a failing disk lists what is not there."""
    files.create("folder/one").close()
    entries = files.list("folder")
    monkeypatch.setattr(files, "list", lambda name: ["gone", *entries])
    files.remove_directory("folder")
    assert not files.exists("folder")


@pytest.mark.parametrize("call", ["fstat", "fchmod"])
def test_look_at_a_new_descriptor_that_fails_is_translated(files, monkeypatch, call):
    """What fails between opening a file and having it is no bare `OSError`, and keeps no descriptor."""
    files.create("file").close()
    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails_with(errno.EIO))
        with pytest.raises(StorageError):
            files.open("file") if call == "fstat" else files.create("other")
    assert len(os.listdir("/dev/fd")) == before


def test_an_error_without_a_translation_keeps_its_words():
    """Even an OSError without a number says something."""
    assert "what it said" in str(translated(OSError("what it said"), "path"))


# --- writes -----------------------------------------------------------------------------------------------------------


def test_short_writes_are_completed(files, monkeypatch):
    """The kernel may take less than it was given: the rest follows, at its place."""
    pwrite, pwritev = os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:3], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [b"".join(parts)[:5]], at))
    file = files.create("file")
    file.pwrite(b"0123456789", 0)
    file.pwritev([b"abc", b"", b"defghijk"], 11, 10)
    file.close()
    assert files.read("file", limit=100) == b"0123456789abcdefghijk"


def test_allocation_reaches_the_end_and_keeps_the_start(files):
    """Reserving bytes makes the file as long as that, full of zeros, and changes nothing before."""
    file = files.create("file")
    file.pwrite(b"data", 0)
    if not file.allocate(4, 5000):
        pytest.skip("this file system cannot reserve space")
    assert file.size() == 5000
    assert file.pread(5000, 0) == b"data" + bytes(4996)
    file.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_file_systems_that_cannot_reserve_are_found_out(files, monkeypatch, code):
    """Where there is no such call, that is an answer and no error."""
    monkeypatch.setattr(os, "posix_fallocate", fails_with(code), raising=False)
    file = files.create("file")
    assert file.allocate(0, 10) is False
    file.close()


def test_file_larger_than_its_limit_is_not_read(files):
    """A file that should be small and is not is refused before it fills the memory."""
    files.write("file", b"x" * 11)
    assert files.read("file", limit=11) == b"x" * 11
    with pytest.raises(CorruptLogError):
        files.read("file", limit=10)


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync", "rename"])
def test_replacing_a_file_that_fails_leaves_the_old_one(files, monkeypatch, failing):
    """A write that fails at any step leaves what was there, and nothing else."""
    files.write("folder/file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fails_with(errno.ENOSPC))
        with pytest.raises(StorageError):
            files.write("folder/file", b"new and longer")
    assert files.read("folder/file", limit=100) == b"old"
    assert files.list("folder") == ["file"]


def test_replacing_a_file_is_synced_before_and_after_the_rename(files, monkeypatch):
    """First the data, then the name, then the directory: no crash leaves a name without data."""
    steps = []
    for name in ("fdatasync", "rename", "fsync"):
        call = getattr(os, name)

        def noted(*args, name=name, call=call, **kwargs):
            steps.append(name)
            return call(*args, **kwargs)

        monkeypatch.setattr(os, name, noted)
    files.write("folder/file", b"data")
    assert steps == ["fdatasync", "rename", "fsync"]


def test_link_does_not_replace(files):
    """Publishing by link tells who was first."""
    files.write("one", b"1")
    files.write("two", b"2")
    files.link("one", "name")
    with pytest.raises(FileExistsError):
        files.link("two", "name")
    assert files.read("name", limit=9) == b"1"


def test_map_shows_what_was_written_and_cannot_be_stored_through(files):
    """A map is for reading."""
    file = files.create("file")
    file.pwrite(b"data", 0)
    view = file.map(4)
    assert view[:] == b"data"
    with pytest.raises(TypeError):
        view[0] = 1
    view.close()
    file.close()


def test_closing_a_file_twice_is_harmless(files):
    """The second close must not close a descriptor that somebody else got meanwhile."""
    file = files.create("file")
    number = file.fd
    file.close()
    other = File(os.dup(0), "other")
    assert other.fd == number
    file.close()
    os.fstat(other.fd)
    other.close()
