"""The test that every strategy must pass, yours included.

    from rank_k.strategies.testing import check
    check(MyStrategy(), length=55, random=random.Random(1))

It drives the strategy with legal but arbitrary answers (ties, forgotten ids, no answer at all) and raises
`AssertionError` saying which promise of `protocol.Strategy` was broken.
"""

from __future__ import annotations

from random import Random

from rank_k.strategies.base import Strategy, ranking_violation, round_violation
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult

MOST_WINDOWS_PER_PASSAGE = 50
"""A strategy that asks more than this many windows per candidate is taken to run for ever."""


def check_strategy(strategy: Strategy, length: int, random: Random, *, samples: int = 1) -> list[Round]:
    """Drive `strategy` over `length` candidates twice; returns the rounds it asked for."""
    candidates = tuple(Candidate(f"d{i}", 1 / (i + 1)) for i in range(length))
    seed = random.randrange(2**32)
    outcomes: list[list[WindowResult]] = []
    rounds, final = _drive(strategy, candidates, seed, outcomes, random, samples)
    replayed, again = _drive(strategy, candidates, seed, outcomes, None, samples)
    assert replayed == rounds, "the same outcomes led to other rounds: a replay must rebuild the same state"
    assert again == final, "the same outcomes led to another ranking"
    return rounds


def arbitrary_order(window: Window, random: Random) -> WindowRanking:
    """A legal order of `window`: sometimes with ties, forgotten ids, or none at all."""
    if random.random() < 0.1:
        return WindowRanking.unranked(window)
    ids = list(window.doc_ids)
    random.shuffle(ids)
    forgotten = set(random.sample(ids, random.randrange(len(ids)))) if random.random() < 0.2 else set()
    tiers: list[tuple[str, ...]] = []
    for doc_id in ids:
        if doc_id in forgotten:
            continue
        if tiers and random.random() < 0.25:
            tiers[-1] = (*tiers[-1], doc_id)
        else:
            tiers.append((doc_id,))
    tiers.extend((doc_id,) for doc_id in window.doc_ids if doc_id in forgotten)
    return WindowRanking(tuple(tiers), frozenset(ids) - forgotten, True)


def _drive(
    strategy: Strategy,
    candidates: tuple[Candidate, ...],
    seed: int,
    outcomes: list[list[WindowResult]],
    random: Random | None,
    samples: int,
) -> tuple[list[Round], Ranking]:
    """Run to the end, answering at random (and keeping the answers) or from `outcomes`."""
    ids = {candidate.doc_id for candidate in candidates}
    steps = strategy(candidates, seed)
    rounds: list[Round] = []
    asked = 0
    try:
        step = next(steps)
        while True:
            _check_round(step, ids)
            asked += len(step.windows)
            assert asked <= MOST_WINDOWS_PER_PASSAGE * max(len(ids), 1), f"{asked} windows and no end"
            rounds.append(step)
            if random is not None:
                outcomes.append(
                    [
                        WindowResult(window, tuple(arbitrary_order(window, random) for _ in range(samples)))
                        for window in step.windows
                    ]
                )
            step = steps.send(outcomes[len(rounds) - 1])
    except StopIteration as stop:
        _check_ranking(stop.value, ids)
        final: Ranking = stop.value
        return rounds, final


def _check_round(step: Round, ids: set[str]) -> None:
    assert not (promise := round_violation(step, ids)), promise
    assert step.remaining_windows >= len(step.windows), "windows_left must count the windows of this round"
    for window in step.windows:
        best, worst = window.rank_range
        assert 1 <= best <= worst <= len(ids), f"reach {window.rank_range} is not within 1..{len(ids)}"
    _check_ranking(step.ranking, ids)


def _check_ranking(ranking: Ranking, ids: set[str]) -> None:
    assert not (promise := ranking_violation(ranking, ids)), promise
    assert not (ranking.tied and ranking.tied[0]), "the first passage has nobody before it to be tied with"
