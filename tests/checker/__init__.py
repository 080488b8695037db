"""A checker in the manner of Jepsen's Kafka workload: processes on one directory, faults, and rules on their history.

`python -m tests.checker --seconds N --seed S` runs it from the root of the repository.
"""
