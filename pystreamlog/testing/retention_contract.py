"""The contract of retention: old records go in whole segments, offsets stay, and readers go on at what is left."""

from __future__ import annotations

from typing import Any

import pytest

from pystreamlog import OffsetOutOfRangeError, StreamLog, Topic
from pystreamlog.errors import ConfigError
from pystreamlog.testing.contract import Contract, take, tp

__all__ = ["RetentionContract"]

_SEGMENT_BYTES = 4096
_OLD_MS = 1_000_000
_COUNT = 60


def _filled(log: StreamLog, count: int = _COUNT, **config: Any) -> Topic[bytes, bytes]:
    """A topic of several segments, whose records are from 1970."""
    topic = log.create_topic("events", segment_bytes=_SEGMENT_BYTES, **config)
    for number in range(count):
        topic.append(b"%d" % number + bytes(200), timestamp_ms=_OLD_MS + number)
    return topic


class RetentionContract(Contract):
    """Runs against whatever `open_log` opens."""

    def test_everything_is_kept_by_default(self, log: StreamLog) -> None:
        """However old it is."""
        topic = _filled(log)
        assert log.maintain().deleted == {}
        assert topic.beginning_offsets() == {0: 0}
        assert topic.config["retention_ms"] == topic.config["retention_bytes"] == -1

    def test_old_records_go(self, log: StreamLog) -> None:
        """All of them, the newest segment too; the next record gets the next offset."""
        topic = _filled(log, retention_ms=3_600_000)
        report = log.maintain()
        assert report.deleted[tp()].log_start_offset == topic.beginning_offsets()[0] == _COUNT
        assert report.segments == report.deleted[tp()].segments > 1
        assert report.bytes == report.deleted[tp()].bytes > _COUNT * 200
        assert list(topic.read()) == []
        assert topic.append(b"x").offset == _COUNT
        assert log.maintain().deleted == {}
        assert [record.value for record in topic.read()] == [b"x"]

    def test_as_many_bytes_are_left(self, log: StreamLog) -> None:
        """At least; and no segment more than is needed for that."""
        topic = _filled(log, retention_bytes=2 * _SEGMENT_BYTES)
        log.maintain()
        start = topic.beginning_offsets()[0]
        assert 0 < start < _COUNT
        assert [record.offset for record in topic.read()] == list(range(start, _COUNT))
        assert 2 * _SEGMENT_BYTES // 400 <= 60 - start <= 4 * _SEGMENT_BYTES // 200

    def test_policy_that_keeps_everything(self, log: StreamLog) -> None:
        """Whatever the retention says; it can be altered."""
        topic = _filled(log, retention_ms=0, cleanup_policy="")
        assert log.maintain().deleted == {}
        topic.alter(cleanup_policy="delete")
        assert log.maintain().deleted[tp()].log_start_offset == _COUNT

    def test_consumer_goes_on_at_what_is_left(self, log: StreamLog) -> None:
        """As `auto_offset_reset` says; with `"none"` it is told."""
        topic = _filled(log, retention_ms=3_600_000)
        with log.consumer(auto_offset_reset="earliest") as consumer, log.consumer(auto_offset_reset="none") as strict:
            for each in (consumer, strict):
                each.assign([tp()])
                each.seek(tp(), 5)
            log.maintain()
            topic.append(b"x")
            assert [record.offset for record in take(consumer, 1)] == [_COUNT]
            with pytest.raises(OffsetOutOfRangeError):
                strict.poll(1)
            assert consumer.beginning_offsets([tp()]) == {tp(): _COUNT}

    def test_reading_below_the_start_is_refused(self, log: StreamLog) -> None:
        """From the start on it is not."""
        topic = _filled(log, retention_bytes=_SEGMENT_BYTES)
        log.maintain()
        start = topic.beginning_offsets()[0]
        with pytest.raises(OffsetOutOfRangeError):
            topic.read(partition=0, start=start - 1)
        assert next(topic.read(partition=0, start=start)).offset == start

    @pytest.mark.parametrize(
        "config",
        [
            {"retention_ms": -2},
            {"retention_bytes": "many"},
            {"cleanup_policy": "shrink"},
            {"cleanup_policy": "compact, delete"},
            {"delete_retention_ms": -1},
            {"min_compaction_lag_ms": -1},
            {"max_compaction_lag_ms": -2},
            {"min_cleanable_dirty_ratio": 1.5},
            {"min_cleanable_dirty_ratio": "half"},
            {"repack": "yes"},
            {"key_index": True, "retention_ms": 5},
            {"key_index": True, "retention_bytes": 5},
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, log: StreamLog, config: dict[str, Any]) -> None:
        """Whatever they are of."""
        with pytest.raises(ConfigError):
            log.create_topic("events", **config)
