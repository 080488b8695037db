"""What a broker would do, done by locks in the directory."""

__all__: list[str] = []
