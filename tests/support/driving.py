"""Drives a strategy without a model: a function answers every window."""

from __future__ import annotations

from collections.abc import Callable

from rank_k.strategies.base import Strategy
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult


def run_strategy(
    strategy: Strategy, length: int, answer: Callable[[Window], WindowRanking], seed: int = 0
) -> tuple[Ranking, list[Round]]:
    """The ranking of the candidates d0, d1, ... and the rounds that were asked for."""
    generator = strategy([Candidate(f"d{i}", -i) for i in range(length)], seed)
    rounds: list[Round] = []
    try:
        round_ = next(generator)
        while True:
            rounds.append(round_)
            round_ = generator.send([WindowResult(window, (answer(window),)) for window in round_.windows])
    except StopIteration as stop:
        ranking: Ranking = stop.value
        return ranking, rounds


def rank_by_grade(grades: list[int]) -> Callable[[Window], WindowRanking]:
    """A judge without noise: d0 is worth `grades[0]`, and so on; equal grades are tied."""

    def answer(window: Window) -> WindowRanking:
        grade_of = {doc_id: grades[int(doc_id[1:])] for doc_id in window.doc_ids}
        tiers = (
            tuple(d for d in grade_of if grade_of[d] == level) for level in sorted(set(grade_of.values()), reverse=True)
        )
        return WindowRanking(tuple(tiers), frozenset(grade_of), True)

    return answer


def ranking_without_ties(doc_ids: tuple[str, ...]) -> WindowRanking:
    return WindowRanking(tuple((doc_id,) for doc_id in doc_ids), frozenset(doc_ids), True)
