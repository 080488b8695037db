"""Signals end what a command waits for, and not what it is in the middle of."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pystreamlog.cli.interrupts import Interrupted, Interrupts, interruptible


def test_signal_is_raised_where_nothing_is_held():
    """With the exit status that tells which it was; and the handlers are those of before again."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as raised, interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.status == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_signal_waits_for_the_end_of_what_is_held():
    """Also of a block in a block."""
    interrupts, done = Interrupts(), []

    def work():
        with interrupts.held():
            with interrupts.held():
                interrupts.note(signal.SIGINT, None)
                done.append("inner")
            done.append("outer")

    with pytest.raises(Interrupted):
        work()
    assert done == ["inner", "outer"]


def test_second_signal_ends_everything_at_once():
    """For a command that cannot come to its end."""
    interrupts = Interrupts()
    with interrupts.held():
        interrupts.note(signal.SIGINT, None)
        with pytest.raises(Interrupted):
            interrupts.note(signal.SIGINT, None)
        with pytest.raises(Interrupted):
            interrupts.check()


def test_signal_that_was_noted_counts_when_it_is_asked_for():
    """Once."""
    interrupts = Interrupts()
    with interrupts.held():
        interrupts.check()
        interrupts.note(signal.SIGHUP, None)
        with pytest.raises(Interrupted) as raised:
            interrupts.check()
        interrupts.check()
    assert raised.value.status == 129


def test_error_of_what_is_held_is_not_hidden_by_a_signal():
    """It says more."""
    interrupts = Interrupts()

    def work():
        with interrupts.held():
            interrupts.note(signal.SIGINT, None)
            raise ValueError("more")

    with pytest.raises(ValueError, match="more"):
        work()


def test_what_ignores_a_signal_goes_on_ignoring_it():
    """As a command that `nohup` runs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    """Only the main thread may set them."""
    before, during = signal.getsignal(signal.SIGINT), []

    def enter():
        with interruptible():
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert during == [before]
