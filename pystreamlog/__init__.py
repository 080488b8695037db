"""Kafka, as a library: streams of events in a directory that many processes share, without a server.

    import pystreamlog

    with pystreamlog.open("data") as log:
        log.create_topic("orders", partitions=4, exist_ok=True)
        with log.producer() as producer:
            producer.send("orders", b'{"amount": 200}', key=b"alice")
        for record in log.topic("orders").read():
            print(record.key, record.value)
"""

from pystreamlog import serde
from pystreamlog.backend.consumer import Consumer
from pystreamlog.backend.delivery import Deliveries, Delivery
from pystreamlog.backend.log import StreamLog
from pystreamlog.backend.producer import Producer
from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic
from pystreamlog.errors import *  # noqa: F403 - every error is public
from pystreamlog.errors import __all__ as _errors
from pystreamlog.opening import open_log as open
from pystreamlog.record.record import BatchMetadata, Headers, Record, RecordMetadata, TopicPartition

__version__ = "0.1.0"

__all__ = [
    "BatchMetadata",
    "Consumer",
    "Deliveries",
    "Delivery",
    "Headers",
    "Producer",
    "Record",
    "RecordMetadata",
    "Records",
    "StreamLog",
    "Topic",
    "TopicPartition",
    "open",
    "serde",
]
__all__ += _errors
