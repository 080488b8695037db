"""All that a partition's batches must pass in one process; each part is made when a batch first needs it."""

from __future__ import annotations

from collections.abc import Callable

from pystreamlog.coordination.admission import Admission, check_end
from pystreamlog.coordination.key_admission import KeyAdmission
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.sequence_admission import SequenceAdmission
from pystreamlog.coordination.topics import TopicState
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.folder import Folder

__all__ = ["Admissions"]


class Admissions:
    """The admissions of one partition. The caller holds the append lock.

    Args:
        folder: The partition.
        context: The log's.
        topic: Returns the topic with its latest settings.
        control: Returns the control file, while the partition's files are open.
    """

    __slots__ = ("_begun", "_context", "_control", "_folder", "_keys", "_sequences", "_topic")

    def __init__(
        self,
        folder: Folder,
        context: PartitionContext,
        topic: Callable[[], TopicState],
        control: Callable[[], Control],
    ) -> None:
        self._folder = folder
        self._context = context
        self._topic = topic
        self._control = control
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything: a thread of the parent process may have been at work in it."""
        self._begun = False
        self._sequences: SequenceAdmission | None = None
        self._keys: KeyAdmission | None = None

    def _needed(self, batch: EncodedBatch) -> list[Admission]:
        """Those that a batch with demands must pass, in order: what was appended before makes no other demands."""
        needed: list[Admission] = []
        demands = batch.demands
        if demands is not None and demands.producer_id >= 0:
            needed.append(self._sequences or self._open_sequences())
        if self._topic().config.key_index:
            needed.append(self._keys or self._open_keys())
        return needed

    def _open_sequences(self) -> SequenceAdmission:
        self._sequences = SequenceAdmission(
            self._folder,
            self._control,
            self._context.clock,
            lambda: self._topic().config.producer_id_expiration_ms,
            map_reads=self._context.map_reads,
        )
        return self._sequences

    def _open_keys(self) -> KeyAdmission:
        self._keys = KeyAdmission(self._topic().name, self._folder, self._control(), map_reads=self._context.map_reads)
        return self._keys

    def admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """What to write of a batch at `end`, after others that were admitted; None for nothing.

        Raises:
            VersionConflictError: The batch expects something else; nothing is written.
        """
        demands, keys = batch.demands, self._keys
        self._begun = True
        if keys is not None and demands is not None and demands.producer_id < 0:
            batch = keys.admit(batch, end)  # as below, for every append to a topic with a key index
        else:
            for admission in self._needed(batch):
                admitted = admission.admit(batch, end)
                if admitted is None:
                    return None
                batch = admitted
        if demands is not None and demands.expected_end is not None:
            check_end(demands.expected_end, end, self._topic().name, self._folder.partition)
        return batch

    def last_offset(self, key: bytes, end: Published, *, anew: bool) -> int:
        """See `KeyAdmission.last_offset`."""
        return (self._keys or self._open_keys()).last_offset(key, end, anew=anew)

    def is_quick(self, end: Published, *, sequences: bool) -> bool:
        """Whether a batch at `end` can be decided upon without much reading.

        Args:
            end: The published end, as far as it is known.
            sequences: The batch has sequences.
        """
        if sequences and (self._sequences is None or not self._sequences.is_quick(self._control().published() or end)):
            return False
        return not self._topic().config.key_index or (self._keys is not None and self._keys.is_level(end))

    def keep_producers(self, end: Published) -> None:
        """Write down what producers appended below `end`, as the log is about to lose records of it."""
        if end.flags & layout.FLAG_PRODUCERS:
            (self._sequences or self._open_sequences()).keep(end)

    def published(self, end: Published) -> None:
        """See `Admission.published`."""
        self._begun = False
        for admission in (self._sequences, self._keys):
            if admission is not None:
                admission.published(end)

    def dropped(self) -> None:
        """See `Admission.dropped`."""
        if not self._begun:
            return
        self._begun = False
        for admission in (self._sequences, self._keys):
            if admission is not None:
                admission.dropped()

    def close(self) -> None:
        """Close what is open; the control file is about to be closed."""
        for admission in (self._sequences, self._keys):
            if admission is not None:
                admission.close()
        self._keys = None
