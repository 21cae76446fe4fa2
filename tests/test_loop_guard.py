"""The guard says what the watch says, a little later and for less."""

from __future__ import annotations

import time

import pytest

from rank_k.loop_guard import LoopGuard
from rank_k.loops import LoopWatch
from tests.test_loops import LOOPS, THOUGHTFUL, looped

LATE = 1_024 + 16


def first_alarm(watch: LoopGuard | LoopWatch, text: str, piece: int = 16) -> int | None:
    for i in range(0, len(text), piece):
        if watch.feed(text[i : i + piece]):
            return i + piece
    return None


def agree(text: str) -> None:
    watch, guard = LoopWatch(), LoopGuard()
    told, later = first_alarm(watch, text), first_alarm(guard, text)
    assert told is not None, "not a loop: the example is wrong"
    assert later is not None
    assert 0 <= later - told <= LATE
    assert guard.start == watch.start


@pytest.mark.parametrize("name", LOOPS)
def test_every_written_loop(name: str) -> None:
    beginning, unit = LOOPS[name]
    agree(beginning + unit * (12_000 // len(unit) + 4))


@pytest.mark.parametrize("name", THOUGHTFUL)
@pytest.mark.parametrize("length", [5, 20, 60, 150, 400])
def test_thoughts_that_get_stuck(name: str, length: int) -> None:
    beginning, unit = looped(THOUGHTFUL[name], length, seed=1)
    agree(beginning + unit * (6_000 // len(unit) + 6))


@pytest.mark.parametrize("name", THOUGHTFUL)
def test_thoughtful_traces_are_left_alone(name: str) -> None:
    guard = LoopGuard()
    assert first_alarm(guard, THOUGHTFUL[name]) is None
    assert guard.start is None


def test_a_thought_costs_less() -> None:
    """Than the watch takes for the same text; the better of five, as the machine may be busy."""
    from tests.loopback import Plan, compose

    marks = tuple(f"Q1-D{i:02d}-G1" for i in range(20))
    thought = "".join(compose(Plan(), marks, "window", {"messages": []}).thought)

    def cost(kind: type[LoopGuard] | type[LoopWatch]) -> float:
        started = time.process_time()
        for _ in range(20):
            assert first_alarm(kind(), thought, piece=60) is None
        return time.process_time() - started

    assert min(cost(LoopGuard) for _ in range(5)) < 0.8 * min(cost(LoopWatch) for _ in range(5))


def test_time_is_linear_in_thoughts_that_never_loop() -> None:
    """Sixteen times the text takes about seventeen times as long; copying all of it at each look took over thirty."""
    from random import Random

    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(20_000)]

    def cost(count: int) -> float:
        text = " ".join(random.choices(words, k=count))
        started = time.process_time()
        assert first_alarm(LoopGuard(), text, piece=64) is None
        return time.process_time() - started

    assert min(cost(640_000) for _ in range(2)) < 24 * min(cost(40_000) for _ in range(3))
