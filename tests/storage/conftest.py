"""One partition made and used by the storage layer alone: these tests are its only user, so they take no locks."""

import os
from pathlib import Path

import msgspec
import pytest

from pystreamlog.record.batch import encode
from pystreamlog.storage.appender import LogAppender
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import recover
from pystreamlog.storage.segment import list_segments

LOG_ID = b"log-id-16-bytes."
TOPIC_ID = b"topic-id-16-byte"
BOOT = b"this-boot-of-it."
NEXT_BOOT = b"next-boot-of-it."
NOW = 1_700_000_000_000


class Partition:
    """A partition and what works on it. Values are `bytes`; each record's timestamp is its offset unless given."""

    def __init__(self, root, *, number=0, segment_bytes=1 << 20, segment_ms=1 << 60, map_reads=True):
        self.root = str(root)
        self.files = Files(self.root)
        self.segment_bytes = segment_bytes
        self.segment_ms = segment_ms
        self.map_reads = map_reads
        self.now = NOW
        self.durable = 0
        self.folder = Folder(self.files, f"t/{number}", LOG_ID, TOPIC_ID, number)
        os.makedirs(f"{self.root}/t", exist_ok=True)
        if not self.folder.exists():
            self.folder.create(boot_id=BOOT, now_ms=NOW)
        self._opened = []
        self.open()

    def open(self):
        """Open the partition's files, as a process does."""
        self.control = self.folder.open_control(write=True, map_reads=self.map_reads)
        self.appender = LogAppender(self.folder)
        self.reader = LogReader(self.folder, self.control, map_reads=self.map_reads)

    def close(self):
        """Close them."""
        self.appender.close()
        self.reader.close()
        self.control.close()

    def reopen(self):
        """Another process comes."""
        self.close()
        self.open()

    @property
    def end(self):
        """The published end."""
        return self.control.published()

    def append(self, *values, keys=None, stamps=None, publish=True):
        """Append one batch; without `publish`, die just before it is published."""
        end = self.end
        if stamps is None:
            stamps = list(range(end.end_offset, end.end_offset + len(values)))
        batch = encode(list(values), keys, stamps)
        new = self.appender.write(batch, end, self.now, self.durable, self.segment_bytes, self.segment_ms)
        if publish:
            self.control.publish(new)
        return new

    def fill(self, batches, *, records=3, size=40):
        """Append batches of records, each record telling its own offset."""
        for _ in range(batches):
            first = self.end.end_offset
            self.append(*[b"%08d" % (first + number) + b"." * (size - 8) for number in range(records)])
        return self

    def read(self, offset=0, *, end=None, max_records=1 << 30):
        """Pairs of offset and value of all records from `offset` on."""
        cursor, found = Cursor(offset), []
        end = end or self.end
        while batches := self.reader.fetch(cursor, end, max_records=max_records, max_bytes=1 << 16):
            for batch, first in batches:
                found += zip(batch.offsets(first, batch.count), batch.values(first, batch.count), strict=True)
        return found

    def offsets(self, offset=0):
        """Offsets of all records from `offset` on, after a look at what they say."""
        found = self.read(offset)
        assert all(value is None or not value[:8].isdigit() or int(value[:8]) == at for at, value in found)
        return [at for at, _ in found]

    def recover(self, *, boot=NEXT_BOOT, trust_published=False):
        """Recover, as the next process after a crash of the machine does."""
        self.reopen()
        report = recover(self.folder, self.control, boot, trust_published=trust_published)
        self.reopen()
        return report

    def sync(self):
        """Say that everything published is on disk."""
        end, last = self.end, self.control.durable()
        slot = type(last)(last.sequence + 1, end.end_offset, end.segment_base, end.end_position, last.flags)
        self.control.write_durable(slot)
        self.durable = end.end_offset

    def segments(self):
        """Base offsets of the segment files."""
        return list_segments(self.files, self.folder.path)

    def path(self, name):
        """A file of the partition."""
        return f"{self.root}/{self.folder.path}/{name}"

    def segment_path(self, base=0, suffix=".log"):
        """A segment or its index."""
        return self.path(f"{base:020d}{suffix}")

    def positions(self):
        """Base offset of the segment, position, header, of every batch."""
        return [(segment.header.base_offset, at, header) for segment, at, header in self.reader.batches(self.end)]

    def bytes_of(self, base=0):
        """A segment's bytes."""
        with open(self.segment_path(base), "rb") as file:
            return file.read()

    def overwrite(self, position, data, *, base=0, name=None):
        """Damage a file; maps and descriptors of it are opened anew."""
        with open(self.path(name) if name else self.segment_path(base), "r+b") as file:
            file.seek(position)
            file.write(data)
        self.reopen()

    def flip(self, position, bit=0, *, base=0):
        """Flip one bit of a segment."""
        self.overwrite(position, bytes([self.bytes_of(base)[position] ^ 1 << bit]), base=base)

    def truncate(self, size, *, base=0):
        """Cut a segment's file."""
        self.close()
        os.truncate(self.segment_path(base), size)
        self.open()

    def publish(self, **fields):
        """Publish the end with other fields."""
        end = self.end
        self.control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, **fields))

    def tree(self):
        """Name and bytes of every file, to see that nothing changed."""
        return {path.name: path.read_bytes() for path in sorted(Path(self.path("")).iterdir())}


@pytest.fixture
def partition(tmp_path):
    """An empty partition."""
    made = Partition(tmp_path)
    yield made
    made.close()
    made.files.close()


@pytest.fixture
def make_partition(tmp_path):
    """Makes partitions with other settings; each call with its own folder."""
    made = []

    def make(folder="log", **settings):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        made.append(Partition(root, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.files.close()
