"""The log's directory: made once by whoever is first, recognised, and refused with a clear error where it must be."""

import json
import os
import stat
import subprocess
import threading

import pytest

import pystreamlog
from pystreamlog.clock import SYSTEM
from pystreamlog.coordination import directory
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptLogError,
    IncompatibleFormatError,
    NotSupportedError,
    ReadOnlyError,
    StorageError,
    StreamLogError,
)


def opened(path, **options):
    """Open a directory as the log does; its id."""
    settings = {"create": True, "read_only": False, "mode": 0o700, "allow_network_filesystem": False, "clock": SYSTEM}
    files, log_id, _ = directory.open_directory(str(path), **settings | options)
    files.close()
    return log_id


# --- making it --------------------------------------------------------------------------------------------------------


def test_missing_directory_is_made_and_found_again(tmp_path):
    """With its parents, once; later openings find the same log."""
    path = tmp_path / "a" / "b"
    log_id = opened(path)
    assert len(log_id) == 16
    assert opened(path) == log_id == opened(path, create=False) == opened(path, read_only=True)
    assert sorted(os.listdir(path)) == ["log.json", "topics"]


def test_missing_directory_is_not_made_without_create(tmp_path):
    """Neither with create=False nor with read_only=True is anything made."""
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(ConfigError, match="does not exist"):
            opened(tmp_path / "no", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0, 0o077, 0o027])
@pytest.mark.parametrize(("mode", "bits"), [(0o700, 0o700), (0o770, 0o2770)])
def test_permission_bits_do_not_depend_on_the_umask(tmp_path, umask, mode, bits):
    """`mode` says who may enter what is made, down to the partitions' files."""
    before = os.umask(umask)
    try:
        with pystreamlog.open(tmp_path / "log", mode=mode) as log:
            log.create_topic("t").append(b"x")
    finally:
        os.umask(before)
    for folder, _, names in os.walk(tmp_path / "log"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == bits
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == mode & 0o666, name


def test_empty_directory_becomes_a_log(tmp_path):
    """Only on request: an empty directory opened for reading stays empty."""
    with pytest.raises(IncompatibleFormatError, match="create=True"):
        opened(tmp_path, create=False)
    assert os.listdir(tmp_path) == []
    opened(tmp_path)


def test_half_made_log_is_made_whole(tmp_path):
    """What a process left that died while it made the log is no reason to refuse."""
    (tmp_path / "topics").mkdir()
    (tmp_path / "log.json~012345").write_bytes(b"{")
    assert len(opened(tmp_path)) == 16


def test_two_processes_make_one_log(tmp_path, start):
    """Whoever is first makes it, and all have the same id; nobody finds a stranger's directory there."""
    children = [
        start(
            """
            from pystreamlog.clock import SYSTEM
            from pystreamlog.coordination.directory import open_directory
            hear()
            for number in range(100):
                files, log_id, _ = open_directory(
                    f"{sys.argv[1]}/{number}", create=True, read_only=False, mode=0o700,
                    allow_network_filesystem=False, clock=SYSTEM,
                )
                try:
                    files.create("topics.lock").close()  # the next thing that is made in a log
                except FileExistsError:
                    pass
                say(log_id.hex())
            """,
            tmp_path,
        )
        for _ in range(3)
    ]
    for child in children:
        child.say()
    ids = [child.finish() for child in children]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 100
    assert not [name for number in range(100) for name in os.listdir(tmp_path / str(number)) if "~" in name]


def test_threads_make_one_log(tmp_path):
    """The same within a process."""
    ids = []
    for number in range(20):
        threads = [threading.Thread(target=lambda: ids.append(opened(tmp_path / str(number)))) for _ in range(4)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 1
        ids.clear()


# --- what is no log ---------------------------------------------------------------------------------------------------


def test_file_is_refused(tmp_path):
    """A file, a path through a file, and a link to nothing are no directories."""
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "file/below", "file/far/below", "dangling"):
        with pytest.raises(IncompatibleFormatError):
            opened(tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_link_to_a_directory_is_that_directory(tmp_path):
    """The path the user gave may be a link; what lies below may not."""
    log_id = opened(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert opened(tmp_path / "link") == log_id


def test_directory_of_something_else_is_refused(tmp_path):
    """A directory with other things in it is not made a log, and nothing is put there."""
    (tmp_path / "thesis.txt").write_bytes(b"x")
    with pytest.raises(IncompatibleFormatError, match=r"thesis\.txt") as caught:
        opened(tmp_path)
    assert caught.value.path == str(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("newer", [{}, {"id": 5}, {"created_ms": "yesterday"}, {"cluster": {"nodes": []}}])
def test_log_of_a_newer_version_is_refused(tmp_path, newer):
    """A newer format says so, whatever else it changed."""
    opened(tmp_path)
    contents = json.loads((tmp_path / "log.json").read_text()) | {"format": directory.FORMAT_VERSION + 1} | newer
    (tmp_path / "log.json").write_text(json.dumps(contents))
    with pytest.raises(IncompatibleFormatError, match="upgrade"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\0" * 80,
        b'{"format": 1}',
        b'{"format": 1, "id": "00", "created_ms": 1}',
        b'{"format": 1, "id": "zz", "created_ms": 1}',
        b'{"format": 0, "id": "00000000000000000000000000000000", "created_ms": 1}',
        b'{"format": "1"}',
        b"[]",
        b"[" * 60_000,
        b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
        b"x" * 100_000,
        b"\xff\xfe",
    ],
)
def test_damaged_log_file_is_corrupt(tmp_path, contents):
    """What does not decode as a log's file is damage, in little memory and time."""
    opened(tmp_path)
    (tmp_path / "log.json").write_bytes(contents)
    with pytest.raises(CorruptLogError) as caught:
        opened(tmp_path)
    assert caught.value.path == str(tmp_path / "log.json")
    assert (tmp_path / "log.json").read_bytes() == contents


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["link", "fifo", "directory"])
def test_log_file_of_another_kind_is_corrupt(tmp_path, what):
    """A link, a FIFO or a directory in its place is refused, and nothing waits for it."""
    opened(tmp_path / "log")
    place = tmp_path / "log" / "log.json"
    place.rename(tmp_path / "elsewhere")
    if what == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif what == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(CorruptLogError):
        opened(tmp_path / "log")


def test_path_with_a_nul_byte_is_a_config_error(tmp_path):
    """The system cannot even be asked for such a path."""
    with pytest.raises(ConfigError, match="NUL"):
        opened(f"{tmp_path}/a\0b")


# --- where it lies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse", "fuse.sshfs", "ceph"])
def test_network_file_system_is_refused_unless_allowed(tmp_path, monkeypatch, kind):
    """Locks and caches do not cross hosts."""
    monkeypatch.setattr(directory, "_filesystem", lambda path: kind)
    with pytest.raises(NotSupportedError, match=kind):
        opened(tmp_path / "log")
    assert len(opened(tmp_path / "log", allow_network_filesystem=True)) == 16


@pytest.mark.parametrize(("kind", "expected"), [("ext4", True), ("tmpfs", True), ("btrfs", False), ("zfs", False)])
def test_space_is_reserved_where_that_helps(tmp_path, monkeypatch, kind, expected):
    """Not on copy-on-write file systems, nor where it is emulated."""
    monkeypatch.setattr(directory, "_filesystem", lambda path: kind)
    files, *_ = directory.open_directory(
        str(tmp_path), create=True, read_only=False, mode=0o700, allow_network_filesystem=False, clock=SYSTEM
    )
    assert files.preallocate is expected
    files.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="only Linux lists its mounts there")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        (rb"36 35 0:99999 / {} rw shared:1 - nfs4 host:/ rw", "nfs4"),
        (rb"36 35 {dev} / {} rw - fuse.sshfs host rw", "fuse.sshfs"),
        (rb"36 35 0:99999 / {}/deeper rw - nfs4 host:/ rw", "ext4"),
        (rb"36 35 0:99999 / {}ab rw - nfs4 host:/ rw", "ext4"),
        (b"36 35 0:99999 / /other\xff\xfe rw - nfs4 host:/ rw", "ext4"),
    ],
    ids=["by path", "by device", "below", "beside", "not UTF-8"],
)
@pytest.mark.parametrize("name", ["plain", "with space", "ünïcode", "back\\slash"])
def test_file_system_is_found_by_its_mount(tmp_path, monkeypatch, line, found, name):
    """The mount that a directory lies on is found by device, else by path, as the kernel spells it."""
    path = tmp_path / name
    path.mkdir()
    spelled = os.fsencode(path).replace(b"\\", rb"\134").replace(b" ", rb"\040")
    device = os.stat(path).st_dev
    line = line.replace(b"{dev}", f"{os.major(device)}:{os.minor(device)}".encode()).replace(b"{}", spelled)
    table = tmp_path / "mounts"
    table.write_bytes(b"1 1 0:77777 / / rw - ext4 /dev/vda rw\n" + line + b"\n")
    real = open

    def open_table(name, *args, **kwargs):
        return real(table if name == "/proc/self/mountinfo" else name, *args, **kwargs)

    monkeypatch.setattr(directory, "open", open_table, raising=False)
    assert directory._filesystem(str(path)) == found


# --- who may use it ---------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_unreadable_directory_is_a_storage_error(tmp_path, public_path, nobody, start):
    """Another user without permissions learns that, and which directory it is."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t").append(b"x")
    child = start(
        """
        for options in ({}, {"read_only": True}, {"create": False}):
            try:
                pystreamlog.open(sys.argv[1], **options)
            except StorageError as error:
                say(error.errno, error.path)
        try:
            pystreamlog.open(sys.argv[1] + "-other")
        except ReadOnlyError as error:
            say(error.path)
        """,
        tmp_path / "log",
        nobody=nobody,
    )
    assert child.finish() == [f"13 {tmp_path}/log"] * 3 + [f"{tmp_path}/log-other"]


@pytest.mark.faults
def test_user_who_may_only_read_reads(tmp_path, public_path, nobody, start):
    """Without write permission reading works, after a reboot too, and writing is a ReadOnlyError."""
    with pystreamlog.open(tmp_path / "log") as log:
        topic = log.create_topic("t")
        for number in range(10):
            topic.append(b"%d" % number)
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path / "log")], check=True)
    child = start(
        """
        for boot in (None, b"another-boot-id."):
            options = {"boot": lambda: boot} if boot else {}
            with EmbeddedLog(sys.argv[1], **options) as log:
                say(log.topics(), [int(record.value) for record in log.topic("t").read()])
                with log.consumer("t", auto_offset_reset="earliest") as consumer:
                    say(len(consumer.poll(5)))
                for call in (
                    lambda: log.topic("t").append(b"x"),
                    lambda: log.create_topic("u"),
                    lambda: log.delete_topic("t"),
                    lambda: log.topic("t").alter(segment_ms=5),
                ):
                    try:
                        call()
                    except ReadOnlyError:
                        say("read-only")
        """,
        tmp_path / "log",
        nobody=nobody,
    )
    assert child.finish() == ["['t'] [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "10", *["read-only"] * 4] * 2


@pytest.mark.faults
def test_read_only_file_system_can_be_read(mounted):
    """Reading works, writing is a ReadOnlyError, and once it can be written again, that works."""
    point = mounted("size=8m")
    with pystreamlog.open(point / "log") as log:
        topic = log.create_topic("t")
        for number in range(10):
            topic.append(b"%d" % number)
    subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
    with pytest.raises(ReadOnlyError):
        pystreamlog.open(point / "new")
    for options in ({}, {"read_only": True}):
        with pystreamlog.open(point / "log", **options) as log:
            topic = log.topic("t")
            assert [int(record.value) for record in topic.read()] == list(range(10))
            assert log.create_topic("t", exist_ok=True).name == "t"
            with log.consumer("t", auto_offset_reset="earliest") as consumer:
                assert len(consumer.poll(5)) == 10
            for call in (
                lambda: topic.append(b"x"),  # noqa: B023
                lambda: log.create_topic("u"),
                lambda: log.delete_topic("t"),
                lambda: topic.add_partitions(5),  # noqa: B023
            ):
                with pytest.raises(ReadOnlyError):
                    call()
            with log.producer() as producer:
                delivery = producer.send("t", b"x")
                with pytest.raises(ReadOnlyError):
                    delivery.result(10)
    subprocess.run(["mount", "-o", "remount,rw", str(point)], check=True)
    with pystreamlog.open(point / "log") as log:
        assert log.topic("t").append(b"10").offset == 10


@pytest.mark.faults
def test_full_file_system_loses_nothing(mounted):
    """The send that does not fit fails; what was acknowledged stays; sends work again once there is space."""
    point = mounted("size=8m")
    with pystreamlog.open(point / "log") as log, log.producer() as producer:
        log.create_topic("t", segment_bytes=1 << 20)
        ballast = point / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        acknowledged = []
        failure = None
        for number in range(1000):
            value = b"%08d" % number + b"." * 100_000
            try:
                producer.send("t", value).result(10)
            except StorageError as error:
                failure = error
                break
            acknowledged.append(value)
        assert failure is not None
        assert "full" in str(failure)
        assert 10 < len(acknowledged) < 80
        with pytest.raises(StorageError):
            log.create_topic("does-not-fit", partitions=4).append(b"x" * 100_000)
        assert [record.value for record in log.topic("t").read()] == acknowledged
        ballast.unlink()
        for number in range(10):
            value = b"%08d" % (number + 500) + b"." * 100_000
            acknowledged.append(value)
            assert producer.send("t", value).result(10).offset == len(acknowledged) - 1
        assert [record.value for record in log.topic("t").read()] == acknowledged
    leftovers = [name for _, folders, names in os.walk(point / "log") for name in folders + names if "~" in name]
    assert not leftovers


@pytest.mark.faults
def test_full_file_system_makes_no_half_log(mounted):
    """A log that does not fit is not there."""
    point = mounted("size=64k")
    (point / "ballast").write_bytes(bytes(60 << 10))
    with pytest.raises(StreamLogError):
        pystreamlog.open(point / "log").create_topic("t", partitions=1)
    (point / "ballast").unlink()
    with pystreamlog.open(point / "log") as log:
        log.create_topic("t", exist_ok=True).append(b"x")
        assert len(list(log.topic("t").read())) == 1


# --- life -------------------------------------------------------------------------------------------------------------


def test_log_moved_while_open_goes_on(tmp_path):
    """Files are reached through the directory, not through its name: a log that moved is read and written on."""
    with pystreamlog.open(tmp_path / "old") as log:
        topic = log.create_topic("t", segment_bytes=4096)
        for number in range(20):
            topic.append(b"%08d" % number + b"." * 500)
        os.rename(tmp_path / "old", tmp_path / "new")
        for number in range(20, 40):
            topic.append(b"%08d" % number + b"." * 500)
        assert [int(record.value[:8]) for record in topic.read()] == list(range(40))
        log.create_topic("u").append(b"x")
    assert not (tmp_path / "old").exists()
    with pystreamlog.open(tmp_path / "new", create=False) as log:
        assert log.topics() == ["t", "u"]
        assert log.topic("t").end_offsets() == {0: 40}


def test_use_after_close_is_a_closed_error(tmp_path):
    """Whatever is called on a closed log or through its topics; closing twice is harmless."""
    log = pystreamlog.open(tmp_path)
    topic = log.create_topic("t")
    topic.append(b"x")
    replay = topic.read()
    log.close()
    log.close()
    for call in (
        lambda: log.create_topic("u"),
        lambda: log.topic("t"),
        log.topics,
        lambda: log.delete_topic("t"),
        log.producer,
        lambda: log.consumer("t"),
        lambda: topic.append(b"x"),
        lambda: topic.append(b"x", durability="fsync"),
        lambda: list(topic.read()),
        topic.end_offsets,
        lambda: topic.alter(segment_ms=5),
        lambda: topic.add_partitions(7),
        lambda: next(replay),
    ):
        with pytest.raises(ClosedError):
            call()


def test_closing_leaves_no_descriptors(tmp_path):
    """A log that was opened, used and closed leaves nothing open."""
    with pystreamlog.open(tmp_path / "warm-up") as log:  # what a process opens once and keeps
        log.create_topic("t").append(b"x")
        with log.consumer("t") as consumer:
            consumer.poll(0.01)
    before = len(os.listdir("/dev/fd"))
    for number in range(5):
        with pystreamlog.open(tmp_path / str(number)) as log:
            topic = log.create_topic("t", partitions=4, segment_bytes=4096)
            for index in range(20):
                topic.append(b"x" * 1000, partition=index % 4)
            assert len(list(topic.read())) == 20
            with log.consumer("t", auto_offset_reset="earliest") as consumer:
                assert len(consumer.poll(5)) > 0
            topic.append(b"x", durability="fsync")
    assert len(os.listdir("/dev/fd")) == before
