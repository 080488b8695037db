"""Windows of two samples of 30 s, with a clock that stands still until it is moved."""

from __future__ import annotations

import threading

import pytest

from pystreamlog.embedded.consumer_metrics import ConsumerMetrics
from pystreamlog.embedded.producer_metrics import ProducerMetrics
from pystreamlog.embedded.tallies import Tallies, Times, reading
from pystreamlog.record.record import TopicPartition


class Clock:
    """Tells the seconds that it was set to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        """The time."""
        return self.now


@pytest.fixture
def clock():
    """A clock of the test's own."""
    return Clock()


@pytest.fixture
def producer(clock):
    """A producer's metrics."""
    return ProducerMetrics(clock)


def done(times, at, seconds=0.5):
    """Something was done at that time, and took so long."""
    times.add(at - seconds, at)


def test_totals_grow_for_ever():
    """Whatever goes out of the window."""
    times = Times(0)
    for at in range(0, 1000, 10):
        done(times, at)
    assert reading(Times, [times], 10_000).totals == {"count": 100, "seconds": 50}


@pytest.mark.parametrize(
    ("now", "count", "rate"),
    [
        (0, 1, 1 / 30),  # as over one whole sample at least
        (29, 1, 1 / 30),
        (45, 1, 1 / 45),
        (59, 1, 1 / 59),
        (60, 0, 0),
        (1000, 0, 0),
    ],
)
def test_rate_looks_back_a_window(now, count, rate):
    """It falls as time passes, and is 0 after two samples."""
    times = Times(0)
    done(times, 0)
    found = reading(Times, [times], now)
    assert (found.recent["count"], found.rates["count"]) == (count, pytest.approx(rate))


def test_older_sample_goes_as_the_newer_one_ends():
    """The window has between one sample and two."""
    times = Times(0)
    for at in (10, 35, 36, 66):
        done(times, at)
    assert reading(Times, [times], 66).recent["count"] == 3
    assert reading(Times, [times], 94).recent["count"] == 3
    assert reading(Times, [times], 95).recent["count"] == 1
    assert reading(Times, [times], 66).rates["count"] == pytest.approx(3 / 31)


def test_what_comes_after_a_long_pause_is_alone():
    """What was before it lies in no window any more."""
    times = Times(0)
    done(times, 0, seconds=9)
    done(times, 500, seconds=2)
    found = reading(Times, [times], 510)
    assert (found.recent["count"], found.peaks["longest"], found.average("seconds", "count")) == (1, 2, 2)
    assert found.rates["count"] == pytest.approx(1 / 30)


def test_maximum_is_of_the_window():
    """A long one is told until its sample goes."""
    times = Times(0)
    done(times, 5, seconds=9)
    done(times, 31, seconds=1)
    assert reading(Times, [times], 59).peaks["longest"] == 9
    assert reading(Times, [times], 60).peaks["longest"] == 1
    assert reading(Times, [times], 91).peaks["longest"] == 0


def test_nothing_done_is_no_average():
    """It is 0, and no division."""
    assert reading(Times, [Times(0)], 0).average("seconds", "count") == 0
    assert reading(Times, [], 0).totals == {"count": 0, "seconds": 0}


def test_tallies_add_up():
    """Sums are added, of maxima the highest counts."""
    first, second = Times(0), Times(0)
    done(first, 1, seconds=1)
    done(second, 2, seconds=4)
    found = reading(Times, [first, second], 10)
    assert (found.totals["count"], found.recent["seconds"], found.peaks["longest"]) == (2, 5, 4)


# --- many topics


def test_topics_not_used_for_an_hour_go(clock, producer):
    """Their counts stay in the client's; and a topic that is written again is told of again."""
    tallies = [producer.tally(f"topic-{number}", 0) for number in range(10_000)]
    for tally in tallies:
        producer.sent(tally, 2, 200, 0, clock.now, clock.now)
    assert len(producer.by_topic()) == 10_000
    clock.now += 3700
    producer.sent(producer.tally("alive", 0), 1, 100, 0, clock.now, clock.now)
    assert list(producer.by_topic()) == ["alive"]
    assert len(producer._partitions._by_key) == 1
    assert producer.of_client()["record-send-total"] == 20_001
    producer.sent(tallies[7], 3, 300, 0, clock.now, clock.now)
    producer.failed(tallies[8], 4)
    assert {topic: each["record-send-total"] for topic, each in producer.by_topic().items()} == {
        "alive": 1,
        "topic-7": 3,
        "topic-8": 0,
    }
    metrics = producer.of_client()
    assert (metrics["record-send-total"], metrics["record-error-total"]) == (20_004, 4)


def test_tally_is_the_same_for_a_key(clock):
    """However often it is asked for."""
    tallies = Tallies(Times)
    assert tallies.tally("a", 0) is tallies.tally("a", 5)
    assert tallies.get("b") is None


# --- producers


def test_batches_are_counted_in_the_sample_they_came_in(clock, producer):
    """Though they are only noted then, and counted later."""
    tally = producer.tally("events", 0)
    for at in (1000, 1010, 1031, 1070, 1071):
        clock.now = at
        producer.sent(tally, 10, 1000, 0, at - 2, at - 1)
    found = producer.of_client()
    assert found["record-send-total"] == 50
    assert found["record-send-rate"] == pytest.approx(30 / 40)
    clock.now = 1095
    assert producer.of_client()["record-send-rate"] == pytest.approx(20 / 30)


def test_noted_batches_are_counted_before_they_are_many(clock, producer):
    """Nobody needs to ask for them: memory is bounded."""
    tally = producer.tally("events", 0)
    for _ in range(1000):
        producer.sent(tally, 1, 10, 0, 0, clock.now)
    assert len(producer._notes) < 128
    assert producer.of_client()["record-send-total"] == 1000


@pytest.mark.parametrize("count", [1, 5, 6, 100])
def test_columns_of_notes_count_as_single_ones_do(clock, producer, count):
    """Sums, averages and maxima, of packed and plain batches, some of which waited."""
    for tally, each in ((producer.tally("one", 0), 1), (producer.tally("many", 0), count)):
        for start in range(0, count, each):
            for number in range(start, min(count, start + each)):
                queued = 0 if number % 2 else 990 - number
                producer.sent(tally, number + 1, 100 + number, 300 * (number % 3 == 0), queued, 999 - number)
            producer._count_notes(1)
    one, many = producer._partitions.used(clock.now).values()
    assert type(one).sums(one) == pytest.approx(type(many).sums(many))
    assert type(one).peaks(one) == type(many).peaks(many)
    assert one.records == count * (count + 1) // 2
    assert one.largest_batch == 99 + count
    assert one.longest_latency == count
    assert one.longest_queue == 9


def test_latency_and_queue_time_are_in_milliseconds(clock, producer):
    """From the first record to the write, and from there to the acknowledgement."""
    tally = producer.tally("events", 0)
    producer.sent(tally, 1, 10, 0, clock.now - 0.75, clock.now - 0.25)
    producer.sent(tally, 1, 10, 0, clock.now - 1.5, clock.now - 0.75)
    found = producer.of_client()
    assert (found["request-latency-avg"], found["request-latency-max"]) == (500, 750)
    assert (found["record-queue-time-avg"], found["record-queue-time-max"]) == (625, 750)


def test_waiting_for_the_buffer_is_measured(clock, producer):
    """While it lasts, and after."""
    with producer.waiting():
        assert producer.of_client()["waiting-threads"] == 1
        clock.now += 3
    found = producer.of_client()
    assert found["waiting-threads"] == 0
    assert found["bufferpool-wait-time-ns-total"] == 3_000_000_000
    assert found["bufferpool-wait-ratio"] == pytest.approx(3 / 30)


def test_reading_does_not_wait_for_who_counts(clock, producer):
    """As a signal handler would for the thread that it interrupts."""
    producer.sent(producer.tally("events", 0), 1, 10, 0, 0, clock.now)
    with producer.lock:
        assert producer.of_client()["record-send-total"] == 0
    assert producer.of_client()["record-send-total"] == 1


def test_threads_lose_no_count(producer, clock):
    """While others read."""
    tallies = [producer.tally("events", number) for number in range(5)]

    def send():
        for number in range(5000):
            producer.sent(tallies[number % 5], 1, 10, 0, 0, clock.now)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        producer.by_partition()
    metrics = producer.of_client()
    assert (metrics["record-send-total"], metrics["byte-total"]) == (20_000, 200_000)


# --- consumers


def polled(consumer, clock, seconds, records=0):
    """A poll that takes so long and finds so many records."""
    polls, started = consumer.polls, clock.now
    if started >= polls.rolls_at:
        polls.roll(started)
    polls.started = started
    clock.now += seconds
    if records:
        tally = consumer.tally(TopicPartition("events", 0))
        tally.records += records
        tally.bytes += 10 * records
        tally.fetched(started, clock.now, 10 * records)
    polls.end(started, clock.now)


def test_polls_and_what_lies_between(clock):
    """The first has nothing before it."""
    consumer = ConsumerMetrics(clock)
    assert consumer.of_client()["last-poll-seconds-ago"] == -1
    polled(consumer, clock, 1)
    found = consumer.of_client()
    assert (found["poll-total"], found["time-between-poll-avg"], found["poll-idle-ratio-avg"]) == (1, 0, 1)
    clock.now += 3
    polled(consumer, clock, 2)
    clock.now += 4
    polled(consumer, clock, 1)
    found = consumer.of_client()
    assert (found["poll-total"], found["last-poll-seconds-ago"]) == (3, 1)
    assert (found["time-between-poll-avg"], found["time-between-poll-max"]) == (5000, 6000)
    assert found["poll-idle-ratio-avg"] == pytest.approx(4 / 11)


def test_records_are_counted_in_the_sample_of_their_poll(clock):
    """Also the first after a long pause."""
    consumer = ConsumerMetrics(clock)
    polled(consumer, clock, 1, 30)
    assert consumer.of_client()["records-consumed-rate"] == pytest.approx(1)
    clock.now += 39
    polled(consumer, clock, 0, 30)
    assert consumer.of_client()["records-consumed-rate"] == pytest.approx(60 / 39)
    clock.now += 500
    polled(consumer, clock, 1, 15)
    found = consumer.of_client()
    assert (found["records-consumed-rate"], found["fetch-latency-max"]) == (pytest.approx(0.5), 1000)
    assert (found["records-consumed-total"], found["fetch-size-avg"]) == (75, 150)
    assert found["records-per-request-avg"] == 15
