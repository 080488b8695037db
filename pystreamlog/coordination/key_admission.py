"""What a batch expects of its keys' versions, and the versions that its records get."""

from __future__ import annotations

import logging

from pystreamlog.errors import StorageError, VersionConflictError
from pystreamlog.record import format as layout
from pystreamlog.record.encoded import Demands, EncodedBatch
from pystreamlog.record.versions import with_versions
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.key_index import KeyIndex
from pystreamlog.storage.key_index_leaf import BadKeyIndexError
from pystreamlog.storage.reader import LogReader

__all__ = ["KeyAdmission"]

_log = logging.getLogger("pystreamlog")

_NOTHING, _LOOKING = -1, -2
"""In place of the offset where what is assumed ends: nothing is; or an admission did not come to its end."""


class KeyAdmission:
    """Gives the records of a topic with a key index their versions, when those are what the batch expects.

    Args:
        topic: The topic's name, for errors.
        folder: The partition.
        control: Its control file.
        map_reads: Read through maps.
    """

    __slots__ = ("_assumed_end", "_folder", "_index", "_topic")

    def __init__(self, topic: str, folder: Folder, control: Control, *, map_reads: bool) -> None:
        self._topic = topic
        self._folder = folder
        self._index = KeyIndex(folder, LogReader(folder, control, map_reads=map_reads))
        self._assumed_end = _NOTHING

    def admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch:
        """See `Admission.admit`."""
        demands = batch.demands
        index = self._index
        if demands is None:
            return batch  # without keys, or it would have some
        if index.end is not end and self._assumed_end != end.end_offset:
            self.dropped()
            index.catch_up(end)
        self._assumed_end = _LOOKING
        keys = demands.keys
        admitted = batch
        if keys is not None:
            if len(keys) == 1 and keys[0] is not None:
                # The way of every single append.
                last, records = index.look_up(keys[0])
                if demands.expected_versions is not None:
                    self._check(demands, 0, records)
                index.assume_single(keys[0], end.end_offset, records + 1)
                admitted = with_versions(batch, (records,), (last,))
            else:
                admitted = self._admit_many(batch, demands, end.end_offset)
        self._assumed_end = end.end_offset + batch.count
        return admitted

    def _admit_many(self, batch: EncodedBatch, demands: Demands, base_offset: int) -> EncodedBatch:
        keys, index = demands.keys, self._index
        assert keys is not None
        expecting = demands.expected_versions is not None
        versions, previous = [], []
        entries = index.look_up_many(dict.fromkeys(key for key in keys if key is not None))
        for number, key in enumerate(keys):
            if key is None:
                versions.append(layout.NO_PREVIOUS)
                previous.append(layout.NO_PREVIOUS)
                continue
            last, records = entries[key]
            if expecting:
                self._check(demands, number, records)
            versions.append(records)
            previous.append(last)
            entries[key] = base_offset + number, records + 1
        index.assume(entries)
        return with_versions(batch, versions, previous) if entries else batch

    def _check(self, demands: Demands, number: int, records: int) -> None:
        """Compare the version of one record's key with the expected one."""
        assert demands.expected_versions is not None
        assert demands.keys is not None
        expected = demands.expected_versions[number]
        if expected is None or expected == records:
            return
        key = demands.keys[number]
        raise VersionConflictError(
            f"key {key!r} has {records} records in partition {self._folder.partition} of topic {self._topic!r}, not "
            f"{expected}: read what came since, and decide again",
            expected=expected,
            actual=records,
            topic=self._topic,
            partition=self._folder.partition,
            key=key,
        )

    def last_offset(self, key: bytes, end: Published, *, anew: bool) -> int:
        """The offset of the last record before `end` with that key, -1 without one; for readers.

        Args:
            key: The key.
            end: The published end.
            anew: Build the index first, whatever it holds.

        Raises:
            CorruptLogError: The partition does not verify.
            StorageError: No space.
        """
        self.dropped()
        self._index.look_after(end, anew=anew)
        return self._index.look_up(key)[0]

    def is_level(self, end: Published) -> bool:
        """Whether an admission at `end` has nothing to catch up."""
        return self._index.end is end

    def published(self, end: Published) -> None:
        """See `Admission.published`."""
        seen, self._assumed_end = self._assumed_end == end.end_offset, _NOTHING
        if not seen:  # something else was written
            self._index.lose_track()
            return
        try:
            self._index.keep(end)
        except (StorageError, BadKeyIndexError) as error:
            # The records are there. The next admission notes them, or says why it cannot.
            _log.warning("%s: the key index could not be kept up: %s", self._folder.path, error)

    def dropped(self) -> None:
        """See `Admission.dropped`."""
        if self._assumed_end != _NOTHING:
            self._assumed_end = _NOTHING
            self._index.forget()

    def close(self) -> None:
        """See `Admission.close`."""
        self._index.close()
        self._assumed_end = _NOTHING
