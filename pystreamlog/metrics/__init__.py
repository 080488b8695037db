"""Exporters of what an open log measures. None is imported before it is asked for, and each needs its own library."""

__all__: list[str] = []
