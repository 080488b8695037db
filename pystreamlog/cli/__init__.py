"""The command line: topics, records, groups and repairs by hand."""

__all__: list[str] = []
