"""One partition's folder: whose it is, what is in it, and how it is made whole in one step."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right

import msgspec

from pystreamlog.errors import StorageError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.segment import Segment, SegmentHeader, create_segment, list_segments

__all__ = ["CONTROL", "Folder"]

CONTROL = "control"


class Folder(msgspec.Struct, frozen=True, gc=False):
    """Where a partition lies and which identity each of its files must carry.

    Attributes:
        files: The door to the log's directory.
        path: The folder, relative to the log's directory.
        log_id: 16 bytes.
        topic_id: 16 bytes; a topic deleted and created again has another.
        partition: Its number.
        lineage: Other log ids that its segments may carry: those of the logs that this one is a snapshot of.
    """

    files: Files
    path: str
    log_id: bytes
    topic_id: bytes
    partition: int
    lineage: tuple[bytes, ...] = ()

    def open_control(self, *, write: bool, map_reads: bool = False) -> Control:
        """Open the control file; `FileNotFoundError` when the partition was not made yet, or is deleted."""
        return Control.open(
            self.files,
            f"{self.path}/{CONTROL}",
            log_id=self.log_id,
            topic_id=self.topic_id,
            partition=self.partition,
            write=write,
            map_reads=map_reads,
        )

    def open_segment(self, base_offset: int, *, write: bool = False, map_reads: bool = True) -> Segment:
        """Open the segment of that base offset; `FileNotFoundError` when there is none."""
        return Segment.open(
            self.files,
            self.path,
            base_offset,
            log_ids=(self.log_id, *self.lineage),
            topic_id=self.topic_id,
            partition=self.partition,
            write=write,
            map_reads=map_reads,
        )

    def create_segment(
        self, base_offset: int, *, created_ms: int, max_timestamp_before: int, previous_checksum: int = 0
    ) -> SegmentHeader:
        """Make an empty segment, whole and on disk, over whatever has its name; the first one follows nothing."""
        return create_segment(
            self.files,
            self.path,
            log_id=self.log_id,
            topic_id=self.topic_id,
            partition=self.partition,
            base_offset=base_offset,
            created_ms=created_ms,
            max_timestamp_before=max_timestamp_before,
            previous_checksum=previous_checksum,
        )

    def segments(self) -> list[int]:
        """Base offsets of the segment files there are, ascending; the last ones may be left-overs past the end."""
        return list_segments(self.files, self.path)

    def segments_from(self, offset: int) -> list[int]:
        """As `segments`, but from the segment that holds `offset` on; from the first one if none does.

        With the log's start, what is left of deleted segments is left out.
        """
        bases = self.segments()
        return bases[max(0, bisect_right(bases, offset) - 1) :]

    def drop_derived(self, base_offset: int) -> None:
        """Remove what was derived from a segment; whatever has its name, as it may have become a folder."""
        for suffix in (layout.INDEX_SUFFIX, layout.PRODUCERS_SUFFIX):
            self.drop(layout.segment_name(base_offset, suffix))

    def drop(self, entry: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens when there is nothing."""
        name = f"{self.path}/{entry}"
        try:
            is_folder = stat.S_ISDIR(self.files.status(name).st_mode)
        except FileNotFoundError:
            return
        if is_folder:
            self.files.remove_directory(name)
        else:
            self.files.unlink(name)

    def exists(self) -> bool:
        """Whether the partition was made."""
        return self.files.exists(f"{self.path}/{CONTROL}")

    def create(self, *, boot_id: bytes, now_ms: int) -> None:
        """Make the partition, empty and on disk, in one rename; nothing happens when another process was faster.

        Raises:
            FileNotFoundError: The topic's folder is gone.
        """
        parent, name = os.path.split(self.path)
        temporary = msgspec.structs.replace(self, path=f"{parent}/~{name}-{os.urandom(6).hex()}")
        files = self.files
        files.make_directory(temporary.path)
        try:
            header = temporary.create_segment(0, created_ms=now_ms, max_timestamp_before=-1)
            published = Published(
                1,
                0,
                header.segment_id,
                layout.SEGMENT_HEADER.size,
                0,
                header.checksum,
                -1,
                0,
                0,
                layout.FIRST_EPOCH,
                0,
                -1,
                0,
            )
            file = files.create(f"{temporary.path}/{CONTROL}")
            control = Control(file, log_id=self.log_id, topic_id=self.topic_id, partition=self.partition)
            try:
                image = Control.image(
                    log_id=self.log_id, topic_id=self.topic_id, partition=self.partition, published=published
                )
                file.pwrite(image, 0)
                control.write_identity(boot_id)
                file.datasync()
            finally:
                control.close()
            files.sync_directory(temporary.path)
            files.rename(temporary.path, self.path)
        except StorageError as error:
            files.remove_directory(temporary.path)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return
        except FileExistsError:
            files.remove_directory(temporary.path)
            return
        except BaseException:
            files.remove_directory(temporary.path)
            raise
        files.sync_directory(parent)
