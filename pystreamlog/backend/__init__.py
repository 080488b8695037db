"""The contract that any log keeps towards users and the layers above."""

__all__: list[str] = []
