"""The embedded log keeps the contract: on disk and in memory, reading through maps and by copies."""

from __future__ import annotations

import pytest

import pystreamlog
from pystreamlog.testing.admin_group_contract import AdminGroupContract
from pystreamlog.testing.admin_topic_contract import AdminTopicContract
from pystreamlog.testing.auto_commit_contract import AutoCommitContract
from pystreamlog.testing.commit_contract import CommitContract
from pystreamlog.testing.compare_append_contract import CompareAppendContract
from pystreamlog.testing.consumer_contract import ConsumerContract
from pystreamlog.testing.exactly_once_contract import ExactlyOnceContract
from pystreamlog.testing.failure_contract import FailureContract
from pystreamlog.testing.group_async_contract import GroupAsyncContract
from pystreamlog.testing.group_callback_contract import GroupCallbackContract
from pystreamlog.testing.group_contract import GroupContract
from pystreamlog.testing.group_life_contract import GroupLifeContract
from pystreamlog.testing.idempotence_contract import IdempotenceContract
from pystreamlog.testing.interceptor_contract import InterceptorContract
from pystreamlog.testing.log_contract import LogContract
from pystreamlog.testing.metrics_contract import MetricsContract
from pystreamlog.testing.position_contract import PositionContract
from pystreamlog.testing.processing_async_contract import ProcessingAsyncContract
from pystreamlog.testing.processing_contract import ProcessingContract
from pystreamlog.testing.processing_failure_contract import ProcessingFailureContract
from pystreamlog.testing.processing_group_contract import ProcessingGroupContract
from pystreamlog.testing.producer_contract import ProducerContract
from pystreamlog.testing.record_contract import RecordContract
from pystreamlog.testing.retention_contract import RetentionContract
from pystreamlog.testing.subscription_contract import SubscriptionContract
from pystreamlog.testing.topic_contract import TopicContract
from pystreamlog.testing.transaction_call_contract import TransactionCallContract
from pystreamlog.testing.transaction_contract import TransactionContract

VARIANTS = [pytest.param(kind, marks=pytest.mark.variant) for kind in ("pread", "memory")]


@pytest.fixture(params=["map", *VARIANTS], autouse=True)
def where(request, tmp_path):
    """Where the logs of a test lie and how they are read; each log in a directory of its own."""
    request.instance.next_log = 0
    request.instance.kind = request.param
    request.instance.folder = tmp_path


class OnADirectory:
    """Opens what `where` says."""

    def open_log(self, **options):
        """A new log."""
        if self.kind == "memory":
            return pystreamlog.open(":memory:", **options)
        self.next_log += 1
        return pystreamlog.open(self.folder / f"log{self.next_log}", reads=self.kind, **options)


class TestTopic(OnADirectory, TopicContract):
    """Topics."""


class TestCompareAndAppend(OnADirectory, CompareAppendContract):
    """Conditions on ends and versions, and reading by key."""


class TestProducer(OnADirectory, ProducerContract):
    """Producers."""


class TestFailures(OnADirectory, FailureContract):
    """Producers when something goes wrong."""


class TestIdempotence(OnADirectory, IdempotenceContract):
    """Producers with an id."""


class TestConsumer(OnADirectory, ConsumerContract):
    """Consumers."""


class TestPositions(OnADirectory, PositionContract):
    """Positions."""


class TestSubscriptions(OnADirectory, SubscriptionContract):
    """Subscriptions."""


class TestLog(OnADirectory, LogContract):
    """Open logs."""


class TestMetrics(OnADirectory, MetricsContract):
    """What is measured."""


class TestRecords(OnADirectory, RecordContract):
    """Records."""


class TestRetention(OnADirectory, RetentionContract):
    """Retention."""


class TestInterceptors(OnADirectory, InterceptorContract):
    """Callbacks and interceptors."""


class TestGroups(OnADirectory, GroupContract):
    """Consumer groups."""


class TestGroupCallbacks(OnADirectory, GroupCallbackContract):
    """What members of a group are told, and assignors."""


class TestCommits(OnADirectory, CommitContract):
    """Commits."""


class TestGroupLife(OnADirectory, GroupLifeContract):
    """Static members, and where a group starts."""


class TestGroupsAsync(OnADirectory, GroupAsyncContract):
    """Groups on event loops."""


class TestAutoCommits(OnADirectory, AutoCommitContract):
    """Automatic commits."""


class TestProcessing(OnADirectory, ProcessingContract):
    """`Consumer.process`."""


class TestProcessingFailures(OnADirectory, ProcessingFailureContract):
    """`Consumer.process` when something fails."""


class TestProcessingInGroups(OnADirectory, ProcessingGroupContract):
    """`Consumer.process` while partitions change hands."""


class TestProcessingAsync(OnADirectory, ProcessingAsyncContract):
    """`Consumer.process_async`."""


class TestAdminOfTopics(OnADirectory, AdminTopicContract):
    """The admin, about topics."""


class TestAdminOfGroups(OnADirectory, AdminGroupContract):
    """The admin, about groups and transactions."""


class TestTransactions(OnADirectory, TransactionContract):
    """Transactions."""


class TestTransactionCalls(OnADirectory, TransactionCallContract):
    """The calls about transactions."""


class TestExactlyOnce(OnADirectory, ExactlyOnceContract):
    """Transactions with the offsets of consumers."""
