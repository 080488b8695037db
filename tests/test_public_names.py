"""What is public is frozen: a name comes or goes by changing this file, on purpose, and the changelog with it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pystreamlog"

# Each folder and top-level module of the package -> its `__all__`.
PUBLIC_NAMES: dict[str, list[str]] = {
    "pystreamlog": [
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
    ],
    "pystreamlog.backend": [],
    "pystreamlog.cli": [],
    "pystreamlog.clock": ["MAX_TIMESTAMP_MS", "SYSTEM", "Clock", "to_datetime", "to_timestamp_ms"],
    "pystreamlog.coordination": [],
    "pystreamlog.embedded": [],
    "pystreamlog.errors": [
        "ClosedError",
        "CommitFailedError",
        "ConfigError",
        "CorruptLogError",
        "DeliveryTimeoutError",
        "FencedError",
        "GroupNotEmptyError",
        "IllegalStateError",
        "IncompatibleFormatError",
        "InvalidRecordError",
        "InvalidTopicError",
        "LockTimeoutError",
        "NoOffsetError",
        "NotSupportedError",
        "OffsetOutOfRangeError",
        "ReadOnlyError",
        "RebalanceInProgressError",
        "RecordTooLargeError",
        "SerdeError",
        "StorageError",
        "StreamLogError",
        "TopicExistsError",
        "TransactionAbortedError",
        "UnknownGroupError",
        "UnknownPartitionError",
        "UnknownTopicError",
        "VersionConflictError",
        "WakeupError",
    ],
    "pystreamlog.metrics": [],
    "pystreamlog.opening": ["BACKENDS", "open_log"],
    "pystreamlog.record": [],
    "pystreamlog.serde": [
        "Serde",
        "StructSerde",
        "TopicSerde",
        "bytes_",
        "float64",
        "int64",
        "json",
        "msgpack",
        "string",
        "struct",
    ],
    "pystreamlog.settings": ["boolean", "build", "integer", "number", "one_of", "unknown_setting"],
    "pystreamlog.storage": [],
    "pystreamlog.testing": [],
}


def public_places():
    """Every package folder and top-level module, as it is imported; `__main__` is run, never imported."""
    folders = [path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")]
    modules = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.glob("[!_]*.py")]
    return {".".join(path.parts) for path in folders + modules}


def test_every_public_place_is_frozen():
    """A new folder gets its entry here, and a deleted one loses it."""
    assert set(PUBLIC_NAMES) == public_places()


@pytest.mark.parametrize("place", sorted(PUBLIC_NAMES))
def test_public_names_are_frozen(place):
    """`__all__` holds what is written here, no more and no less."""
    assert sorted(importlib.import_module(place).__all__) == sorted(PUBLIC_NAMES[place])


@pytest.mark.parametrize("place", sorted(PUBLIC_NAMES))
def test_public_names_exist(place):
    """Every name of `__all__` can be imported."""
    module = importlib.import_module(place)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
