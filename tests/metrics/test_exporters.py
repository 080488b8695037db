"""What Prometheus and OpenTelemetry are told is what the log tells, through their own libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import pystreamlog
from pystreamlog.backend.metrics import DEFINITIONS
from pystreamlog.metrics.names import exported
from pystreamlog.metrics.opentelemetry import instrument
from pystreamlog.metrics.prometheus import LogCollector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def log():
    """A log of two topics, where a group lags."""
    with pystreamlog.open(":memory:") as log:
        log.create_topic("orders", partitions=2)
        log.create_topic("others")
        yield log


@pytest.fixture
def busy(log):
    """The same, with clients at work."""
    with (
        log.producer() as producer,
        log.consumer("orders", group_id="billing", auto_offset_reset="earliest", max_poll_records=3) as consumer,
    ):
        producer.send_many("orders", [b"x"] * 10, partition=1)
        producer.send("others", b"x")
        producer.flush()
        assert len(consumer.poll(20)) == 3
        consumer.commit()
        yield log


def scraped(log, **options):
    """What Prometheus reads: values by name and labels."""
    registry = CollectorRegistry()
    registry.register(LogCollector(log, **options))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def observed(reader):
    """What OpenTelemetry collects: values by name and attributes."""
    found = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    found[metric.name, tuple(sorted(point.attributes.items()))] = point.value
    return found


@pytest.fixture
def provider():
    """A meter provider with a reader."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield provider, reader
    provider.shutdown()


def test_prometheus_reads_counters_and_gauges(busy):
    """In base units, with the labels that say whose they are."""
    found = scraped(busy)
    producer, consumer = ("client_id", "producer-1"), ("client_id", "consumer-billing-1")
    assert found["pystreamlog_producer_record_send_total", (producer,)] == 11
    topic = ("topic", "orders")
    assert found["pystreamlog_producer_topic_record_send_total", (producer, topic)] == 10
    lag = (("group_id", "billing"), ("partition", "1"), topic)
    assert found["pystreamlog_group_records_lag", lag] == 7
    assert found["pystreamlog_consumer_records_lag", (consumer, ("partition", "1"), topic)] == 7
    assert found["pystreamlog_log_end_offset", (("partition", "1"), topic)] == 10
    assert found["pystreamlog_log_unreadable", ()] == 0
    latency = found["pystreamlog_producer_request_latency_max_seconds", (producer,)]
    expected = next(m for m in busy.collect_metrics() if m.name == "request-latency-max").value
    assert latency == pytest.approx(expected / 1000)
    assert found["pystreamlog_producer_buffer_total_bytes", (producer,)] == 64 << 20


def test_prometheus_is_spared_what_is_not_wanted(busy):
    """Whole groups of metrics, and partitions."""
    names = {name for name, _ in scraped(busy, logs=False, groups=False, partitions=False)}
    assert not any("_partition_" in name or name.startswith(("pystreamlog_log", "pystreamlog_group")) for name in names)
    assert "pystreamlog_producer_topic_record_send_total" in names


def test_opentelemetry_observes_the_same(busy, provider):
    """Under the same names, with dots; at each collection anew."""
    provider, reader = provider
    instrument(busy, provider)
    counter = ("pystreamlog.producer.record_send", (("client_id", "producer-1"),))
    found = observed(reader)
    assert found[counter] == 11
    prometheus = scraped(busy)
    names = {name.replace("pystreamlog.", "pystreamlog_").replace(".", "_") for name, _ in found}
    assert names == {name.removesuffix("_total") for name, _ in prometheus}
    next(client for client in busy._clients if client.client_id == "producer-1").send("others", b"x").result()
    assert observed(reader)[counter] == 12


def test_closed_log_is_observed_no_more(log, provider):
    """And nothing is raised."""
    provider, reader = provider
    instrument(log, provider)
    registry = CollectorRegistry()
    registry.register(LogCollector(log))
    log.producer().send("orders", b"x").result()
    log.close()
    assert observed(reader) == {}
    assert generate_latest(registry) == b""


def test_damaged_group_hides_no_other(busy, tmp_path, caplog):
    """It is counted and logged."""
    folders = sorted((Path(busy.path) / "groups").iterdir())
    with busy.consumer("others", group_id="broken", auto_offset_reset="earliest") as consumer:
        consumer.poll(20)
    broken = [folder for folder in (Path(busy.path) / "groups").iterdir() if folder not in folders]
    offsets = broken[0] / "offsets"
    offsets.write_bytes(b"\xff" * offsets.stat().st_size)
    found = scraped(busy)
    assert found["pystreamlog_log_unreadable", ()] == 1
    assert {dict(labels)["group_id"] for name, labels in found if name == "pystreamlog_group_records_lag"} == {
        "billing"
    }
    assert "broken" in caplog.text


def test_nothing_measured_is_forgotten_by_the_exporters(busy):
    """All that is collected is known, and is exported unless it is a rate; names are never shared."""
    names = exported()
    stems = [one.stem + "_total" * one.is_counter for one in names.values()]
    assert len(stems) == len(set(stems))
    for metric in busy.collect_metrics():
        definition = DEFINITIONS[metric.group, metric.name]
        tags = [set(text.split()) for text in definition.tags]
        assert set(metric.tags) in tags, metric
        is_exported = any((metric.group, metric.name) == key[:2] and set(key[2]) == set(metric.tags) for key in names)
        assert is_exported == (definition.kind != "rate")


def test_all_that_is_defined_is_measured(busy):
    """No definition stays behind."""
    measured = {(metric.group, metric.name) for metric in busy.collect_metrics()}
    assert measured == set(DEFINITIONS)


def run(program):
    """What a program of these lines prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_exporter():
    """Nor does opening a log and asking for its metrics."""
    loaded = run("""
        import sys
        import pystreamlog

        with pystreamlog.open(":memory:") as log, log.producer() as producer:
            producer.metrics()
            log.collect_metrics()
        print([name for name in sys.modules if name.startswith(("prometheus", "opentelemetry", "pystreamlog.metrics"))])
    """)
    assert loaded == "[]\n"


@pytest.mark.parametrize(
    ("module", "library"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")]
)
def test_missing_library_is_named(module, library):
    """With the extra that brings it."""
    said = run(f"""
        import sys
        sys.modules["{library}"] = None
        from pystreamlog.errors import ConfigError
        try:
            import pystreamlog.metrics.{module}
        except ConfigError as error:
            print(error)
    """)
    assert "pip install 'pystreamlog[metrics]'" in said
