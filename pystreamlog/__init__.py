"""Kafka, as a library: streams of events in a directory that many processes share, without a server.

Open a log with `pystreamlog.open("data")`, make topics with `create_topic`, send with a `producer`, read with a
`consumer` or `Topic.read`. The README's quick start shows them together.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pystreamlog import serde
from pystreamlog.backend.admin import Admin
from pystreamlog.backend.consumer import Consumer
from pystreamlog.backend.delivery import Deliveries, Delivery
from pystreamlog.backend.group import GroupMetadata, OffsetAndMetadata
from pystreamlog.backend.log import StreamLog
from pystreamlog.backend.metrics import GroupPartition, Metric
from pystreamlog.backend.producer import Producer
from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.assignors import GroupMember
from pystreamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    CorruptLogError,
    DeliveryTimeoutError,
    FencedError,
    GroupNotEmptyError,
    IllegalStateError,
    IncompatibleFormatError,
    InvalidRecordError,
    InvalidTopicError,
    LockTimeoutError,
    NoOffsetError,
    NotSupportedError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    RebalanceInProgressError,
    RecordTooLargeError,
    SerdeError,
    StorageError,
    StreamLogError,
    TopicExistsError,
    TransactionAbortedError,
    UnknownGroupError,
    UnknownPartitionError,
    UnknownTopicError,
    VersionConflictError,
    WakeupError,
)
from pystreamlog.opening import open_log as open  # noqa: A004 - the library's front door
from pystreamlog.record.record import BatchMetadata, Headers, Record, RecordMetadata, TopicPartition

if TYPE_CHECKING:
    from pystreamlog.backend.administration import (
        AlterConfigOp,
        ClusterDescription,
        ConfigEntry,
        ConsumerGroupDescription,
        ConsumerGroupListing,
        ListOffsetsResultInfo,
        LogDirDescription,
        MemberDescription,
        NewTopic,
        Node,
        ReplicaInfo,
        TopicDescription,
        TopicListing,
        TransactionDescription,
        TransactionListing,
    )
    from pystreamlog.backend.maintenance import CompactedSegments, DeletedSegments, MaintenanceReport
    from pystreamlog.backend.snapshot import SnapshotReport
    from pystreamlog.backend.verification import Damage, RepairReport, VerifyReport

__version__ = "0.1.0"

__all__ = [
    "Admin",
    "AlterConfigOp",
    "BatchMetadata",
    "ClosedError",
    "ClusterDescription",
    "CommitFailedError",
    "CompactedSegments",
    "ConfigEntry",
    "ConfigError",
    "Consumer",
    "ConsumerGroupDescription",
    "ConsumerGroupListing",
    "CorruptLogError",
    "Damage",
    "DeletedSegments",
    "Deliveries",
    "Delivery",
    "DeliveryTimeoutError",
    "FencedError",
    "GroupMember",
    "GroupMetadata",
    "GroupNotEmptyError",
    "GroupPartition",
    "Headers",
    "IllegalStateError",
    "IncompatibleFormatError",
    "InvalidRecordError",
    "InvalidTopicError",
    "ListOffsetsResultInfo",
    "LockTimeoutError",
    "LogDirDescription",
    "MaintenanceReport",
    "MemberDescription",
    "Metric",
    "NewTopic",
    "NoOffsetError",
    "Node",
    "NotSupportedError",
    "OffsetAndMetadata",
    "OffsetOutOfRangeError",
    "Producer",
    "ReadOnlyError",
    "RebalanceInProgressError",
    "Record",
    "RecordMetadata",
    "RecordTooLargeError",
    "Records",
    "RepairReport",
    "ReplicaInfo",
    "SerdeError",
    "SnapshotReport",
    "StorageError",
    "StreamLog",
    "StreamLogError",
    "Topic",
    "TopicDescription",
    "TopicExistsError",
    "TopicListing",
    "TopicPartition",
    "TransactionAbortedError",
    "TransactionDescription",
    "TransactionListing",
    "UnknownGroupError",
    "UnknownPartitionError",
    "UnknownTopicError",
    "VerifyReport",
    "VersionConflictError",
    "WakeupError",
    "open",
    "serde",
]

_LATER = {
    "pystreamlog.backend.administration": (
        "AlterConfigOp",
        "ClusterDescription",
        "ConfigEntry",
        "ConsumerGroupDescription",
        "ConsumerGroupListing",
        "ListOffsetsResultInfo",
        "LogDirDescription",
        "MemberDescription",
        "NewTopic",
        "Node",
        "ReplicaInfo",
        "TopicDescription",
        "TopicListing",
        "TransactionDescription",
        "TransactionListing",
    ),
    "pystreamlog.backend.maintenance": ("CompactedSegments", "DeletedSegments", "MaintenanceReport"),
    "pystreamlog.backend.snapshot": ("SnapshotReport",),
    "pystreamlog.backend.verification": ("Damage", "RepairReport", "VerifyReport"),
}
"""What is imported when it is asked for: making classes takes most of an import's time, and few programs need these."""
_MODULES = {name: module for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> object:
    """A public name that is not imported yet (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """All names, whether imported yet or not."""
    return sorted({*globals(), *_MODULES})
