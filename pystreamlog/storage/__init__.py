"""One partition's durable, ordered log: the one door to files, segments, index, recovery, retention, compaction."""

__all__: list[str] = []
