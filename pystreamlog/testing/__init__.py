"""Contract suites and faulty files, for this project's tests and for yours."""

__all__: list[str] = []
