"""A time limit that interrupts work which may be interrupted, and waits for other work."""

from __future__ import annotations

import threading
import time

import pytest

from rank_k.distill.time_limit import TimeLimitReached, interrupt_after


def test_interrupt_after_interrupts_the_block() -> None:
    started = time.monotonic()
    with pytest.raises(TimeLimitReached), interrupt_after(0.05):
        time.sleep(60)
    assert time.monotonic() - started < 30


def test_interrupt_after_waits_until_it_is_allowed() -> None:
    steps = []

    def work() -> None:
        with interrupt_after(0.01) as interruption:
            interruption.allowed = False
            time.sleep(0.3)
            steps.append("complete")
            interruption.allowed = True
            time.sleep(60)

    with pytest.raises(TimeLimitReached):
        work()
    assert steps == ["complete"]


def test_interrupt_after_does_nothing_without_a_limit_or_after_the_block() -> None:
    with interrupt_after(None):
        time.sleep(0.05)
    with interrupt_after(0.05):
        pass
    time.sleep(0.1)


def test_interrupt_after_does_nothing_in_another_thread() -> None:
    ended = []

    def work() -> None:
        with interrupt_after(0.01):
            time.sleep(0.1)
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended
