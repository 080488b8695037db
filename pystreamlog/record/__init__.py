"""Values become columnar batches of bytes and back: no files, no clock, no threads."""

__all__: list[str] = []
