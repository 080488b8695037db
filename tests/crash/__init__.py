"""What becomes of a log when processes are killed, machines lose power, calls fail and files are damaged.

Each harness has a short form in the test suite and a long one as a command, `python -m tests.crash.<name>`.
"""
