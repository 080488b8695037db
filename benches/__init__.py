"""Benchmarks: pystreamlog beside a peer that does the same work, measured in the same run."""
