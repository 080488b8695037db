"""Contract suites and faulty files, for this project's tests and for yours.

A backend is run through the contract by one test class per suite, each of which says how to open a log (`contract`):
`log_contract`, `topic_contract`, `admin_topic_contract`, `admin_group_contract`, `record_contract`,
`metrics_contract`, `retention_contract`, `producer_contract`, `idempotence_contract`, `failure_contract`,
`consumer_contract`, `position_contract`, `subscription_contract` and `interceptor_contract`. They need pytest; nothing
else here does.
"""

__all__: list[str] = []
