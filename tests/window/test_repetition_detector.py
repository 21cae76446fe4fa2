"""The guard says what the watch says, a little later and for less."""

from __future__ import annotations

import time
from functools import partial

import pytest

from rank_k.window.repetition import RepetitionDetector, RepetitionTracker
from tests.support.waiting import cpu_seconds
from tests.window.test_repetition import LOOPS, THOUGHTFUL, looped

LATE = 1_024 + 16


def first_alarm(watch: RepetitionDetector | RepetitionTracker, text: str, piece: int = 16) -> int | None:
    for i in range(0, len(text), piece):
        if watch.feed(text[i : i + piece]):
            return i + piece
    return None


def agree(text: str) -> None:
    watch, guard = RepetitionTracker(), RepetitionDetector()
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
    guard = RepetitionDetector()
    assert first_alarm(guard, THOUGHTFUL[name]) is None
    assert guard.start is None


def test_a_thought_costs_less() -> None:
    """Than the watch takes for the same text. Measured: a third."""
    from tests.fakes.loopback import Plan, compose

    marks = tuple(f"Q1-D{i:02d}-G1" for i in range(20))
    thought = "".join(compose(Plan(), marks, "window", {"messages": []}).thought)

    def feed(kind: type[RepetitionDetector] | type[RepetitionTracker]) -> None:
        for _ in range(20):
            assert first_alarm(kind(), thought, piece=60) is None

    guard, watch = cpu_seconds(partial(feed, RepetitionDetector), partial(feed, RepetitionTracker))
    assert guard < 0.8 * watch


@pytest.mark.slow
def test_time_is_linear_in_thoughts_that_never_loop() -> None:
    """The last words of a million cost as much as the first; copying all text at each look costs five times as much."""
    from random import Random

    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(20_000)]

    guard, seconds = RepetitionDetector(), []
    for _ in range(60):
        text = " ".join(random.choices(words, k=20_000)) + " "
        start = time.process_time()
        assert first_alarm(guard, text, piece=64) is None
        seconds.append(time.process_time() - start)
    assert min(seconds[-5:]) < 2.5 * min(seconds[:5])
