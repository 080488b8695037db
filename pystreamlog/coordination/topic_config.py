"""A topic's settings, under Kafka's names in snake_case."""

from __future__ import annotations

from typing import Any

import attrs

from pystreamlog.errors import ConfigError
from pystreamlog.settings import boolean, integer, number, one_of

__all__ = ["TopicConfig"]

_MIB = 1 << 20


@attrs.frozen
class TopicConfig:
    """How a topic stores its records.

    Every setting but `key_index` may be altered later and then holds for what is appended next.

    Attributes:
        cleanup_policy: What happens to old records. `"delete"` has `retention_ms` and `retention_bytes` delete old
            segments; `"compact"` keeps the last record of each key, at least, and wants a key with every record;
            `"compact,delete"` does both; `""` keeps everything, whatever the other settings say.
        delete_retention_ms: How long a tombstone, a record with a null value, stays in a compacted topic after it was
            first compacted, in milliseconds, so that readers learn that its key is gone. With `key_index` they stay.
        min_compaction_lag_ms: How long a record stays at least before it may be compacted, in milliseconds.
        max_compaction_lag_ms: How long a record stays at most before it is compacted, in milliseconds, however little
            there is to compact. -1 leaves that to `min_cleanable_dirty_ratio`.
        min_cleanable_dirty_ratio: A partition is compacted when as large a part of its bytes, of full segments, was not
            yet: from 0 to 1. Smaller means less disk and more work.
        repack: Small batches of full segments are gathered into large ones, so that a log that was written record by
            record is read as fast as one written in bulk. Nothing is left out.
        retention_ms: How long records are kept, in milliseconds: a segment is deleted when its newest record is older.
            -1 keeps them for ever. Kafka's default is 7 days, which would delete an embedded user's events silently.
        retention_bytes: How much of each partition is kept at least, in bytes of its files: the oldest segments are
            deleted as long as as much is left. -1 keeps everything.
        segment_bytes: Size at which a partition starts a new segment file, in bytes. Smaller ones are deleted and
            recovered in finer grains, larger ones make fewer files.
        segment_ms: Age at which a partition starts a new segment file though the old is not full, in milliseconds.
        max_message_bytes: The largest record accepted, key, value and headers together, in bytes.
        message_timestamp_type: Whose timestamps the records have: with `"CreateTime"` the producer's, with
            `"LogAppendTime"` that of the append.
        flush_messages: After so many records an append waits until all is on disk, whatever its durability: what a
            power loss can take is bounded. -1 leaves that to the system, which writes within some 30 s.
        flush_ms: As long after an append, in milliseconds, it is on disk; the appending process sees to that in the
            background. -1 leaves it to the system.
        producer_id_expiration_ms: How long a partition remembers what a `producer_id` appended last, in milliseconds
            from its last append; records that it sends again later are appended again.
        key_index: Every record with a key carries its version, the number of records before it with that key, and an
            index finds them: `append(expected_version=)` and `read_key` need it. It costs an append about its time
            again and 16 bytes. Keys stay in their partitions: none can be added, and none be named.
    """

    cleanup_policy: str = attrs.field(
        default="delete", validator=one_of("delete", "compact", "compact,delete", "delete,compact", "")
    )
    delete_retention_ms: int = attrs.field(default=24 * 3600 * 1000, validator=integer(0))
    min_compaction_lag_ms: int = attrs.field(default=0, validator=integer(0))
    max_compaction_lag_ms: int = attrs.field(default=-1, validator=integer(-1))
    min_cleanable_dirty_ratio: float = attrs.field(default=0.5, validator=number(0, 1))
    repack: bool = attrs.field(default=False, validator=boolean)
    retention_ms: int = attrs.field(default=-1, validator=integer(-1))
    retention_bytes: int = attrs.field(default=-1, validator=integer(-1))
    segment_bytes: int = attrs.field(default=64 * _MIB, validator=integer(4096, 2**31 - 1))
    segment_ms: int = attrs.field(default=7 * 24 * 3600 * 1000, validator=integer(1))
    max_message_bytes: int = attrs.field(default=_MIB, validator=integer(1, 1 << 30))
    message_timestamp_type: str = attrs.field(default="CreateTime", validator=one_of("CreateTime", "LogAppendTime"))
    flush_messages: int = attrs.field(default=-1, validator=integer(-1))
    flush_ms: int = attrs.field(default=-1, validator=integer(-1))
    producer_id_expiration_ms: int = attrs.field(default=86_400_000, validator=integer(1))
    key_index: bool = attrs.field(default=False, validator=boolean)

    def __attrs_post_init__(self) -> None:
        if self.key_index and (self.retention_ms, self.retention_bytes) != (-1, -1):
            raise ConfigError(
                "a topic with key_index=True keeps all its records, as a version is the number of records with a key: "
                "leave retention_ms and retention_bytes at -1, or make the topic without a key index"
            )

    @property
    def expires(self) -> bool:
        """Whether records are deleted one day."""
        return "delete" in self.cleanup_policy and (self.retention_ms >= 0 or self.retention_bytes >= 0)

    @property
    def compacts(self) -> bool:
        """Whether only the last record of each key is kept, so that every record needs a key."""
        return "compact" in self.cleanup_policy

    @property
    def rewrites(self) -> bool:
        """Whether segments are written anew one day."""
        return self.compacts or self.repack

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults: what `topic.json` holds."""
        return {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if getattr(self, field.name) != field.default
        }
