"""The contract kept by a directory: producer, consumer, topic, admin."""

__all__: list[str] = []
