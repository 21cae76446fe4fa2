"""`RepetitionDetector` detects the same loops as `RepetitionTracker`, a little later and at lower cost."""

from __future__ import annotations

import time
from functools import partial

import pytest

from rank_k.window.repetition import RepetitionDetector, RepetitionTracker
from tests.support.waiting import cpu_seconds
from tests.window.test_repetition import LOOPS, ORDINARY_TRACES, split_loop

MAX_DELAY = 1_024 + 16


def first_detection(detector: RepetitionDetector | RepetitionTracker, text: str, piece: int = 16) -> int | None:
    for i in range(0, len(text), piece):
        if detector.feed(text[i : i + piece]):
            return i + piece
    return None


def assert_same_detection(text: str) -> None:
    tracker, detector = RepetitionTracker(), RepetitionDetector()
    tracker_detection, detector_detection = first_detection(tracker, text), first_detection(detector, text)
    assert tracker_detection is not None, "not a loop: the example is wrong"
    assert detector_detection is not None
    assert 0 <= detector_detection - tracker_detection <= MAX_DELAY
    assert detector.start == tracker.start


@pytest.mark.parametrize("name", LOOPS)
def test_detector_detects_recorded_loops(name: str) -> None:
    beginning, unit = LOOPS[name]
    assert_same_detection(beginning + unit * (12_000 // len(unit) + 4))


@pytest.mark.parametrize("name", ORDINARY_TRACES)
@pytest.mark.parametrize("length", [5, 20, 60, 150, 400])
def test_detector_detects_loops_after_ordinary_traces(name: str, length: int) -> None:
    beginning, unit = split_loop(ORDINARY_TRACES[name], length, seed=1)
    assert_same_detection(beginning + unit * (6_000 // len(unit) + 6))


@pytest.mark.parametrize("name", ORDINARY_TRACES)
def test_detector_accepts_ordinary_traces(name: str) -> None:
    detector = RepetitionDetector()
    assert first_detection(detector, ORDINARY_TRACES[name]) is None
    assert detector.start is None


def test_detector_costs_less_than_tracker() -> None:
    """Than the watch takes for the same text. Measured: a third."""
    from tests.fakes.model_server.fault_plan import FaultPlan
    from tests.fakes.model_server.responses import compose_response

    marks = tuple(f"Q1-D{i:02d}-G1" for i in range(20))
    trace = "".join(compose_response(FaultPlan(), marks, "window", {"messages": []}).reasoning)

    def feed(kind: type[RepetitionDetector] | type[RepetitionTracker]) -> None:
        for _ in range(20):
            assert first_detection(kind(), trace, piece=60) is None

    detector, tracker = cpu_seconds(partial(feed, RepetitionDetector), partial(feed, RepetitionTracker))
    assert detector < 0.8 * tracker


@pytest.mark.slow
def test_detector_takes_linear_time_without_loops() -> None:
    """The last words of a million cost as much as the first; copying all text at each look costs five times as much."""
    from random import Random

    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(20_000)]

    detector, seconds = RepetitionDetector(), []
    for _ in range(60):
        text = " ".join(random.choices(words, k=20_000)) + " "
        start = time.process_time()
        assert first_detection(detector, text, piece=64) is None
        seconds.append(time.process_time() - start)
    assert min(seconds[-5:]) < 2.5 * min(seconds[:5])
