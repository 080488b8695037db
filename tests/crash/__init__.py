"""Harnesses that hurt a log on purpose: killed processes, power cuts, failing system calls, and what is left then."""
