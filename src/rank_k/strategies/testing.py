"""The conformance test that every strategy must pass, including your own.

    from rank_k.strategies.testing import check_strategy
    check_strategy(MyStrategy(), length=55, random=random.Random(1))

It drives the strategy with legal but arbitrary rankings (ties, forgotten ids, no answer at all) and raises
`AssertionError` that names the violation of the protocol `rank_k.strategies.base.Strategy`.
"""

from __future__ import annotations

from random import Random

from rank_k.strategies.base import Strategy, ranking_violation, round_violation
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult

MAX_WINDOWS_PER_PASSAGE = 50
"""A strategy that yields more windows per candidate is taken to run forever."""


def check_strategy(strategy: Strategy, length: int, random: Random, *, samples: int = 1) -> list[Round]:
    """Drive `strategy` over `length` candidates twice, and return its rounds."""
    candidates = tuple(Candidate(f"d{i}", 1 / (i + 1)) for i in range(length))
    seed = random.randrange(2**32)
    results: list[list[WindowResult]] = []
    rounds, ranking = _drive(strategy, candidates, seed, results, random, samples)
    replayed_rounds, replayed_ranking = _drive(strategy, candidates, seed, results, None, samples)
    assert replayed_rounds == rounds, "the same outcomes led to other rounds: a replay must rebuild the same state"
    assert replayed_ranking == ranking, "the same outcomes led to another ranking"
    return rounds


def arbitrary_ranking(window: Window, random: Random) -> WindowRanking:
    """Return a legal ranking of `window`: sometimes with ties, forgotten ids, or none at all."""
    if random.random() < 0.1:
        return WindowRanking.unranked(window)
    ids = list(window.doc_ids)
    random.shuffle(ids)
    omitted = set(random.sample(ids, random.randrange(len(ids)))) if random.random() < 0.2 else set()
    tiers: list[tuple[str, ...]] = []
    for doc_id in ids:
        if doc_id in omitted:
            continue
        if tiers and random.random() < 0.25:
            tiers[-1] = (*tiers[-1], doc_id)
        else:
            tiers.append((doc_id,))
    tiers.extend((doc_id,) for doc_id in window.doc_ids if doc_id in omitted)
    return WindowRanking(tuple(tiers), frozenset(ids) - omitted, True)


def _drive(
    strategy: Strategy,
    candidates: tuple[Candidate, ...],
    seed: int,
    results: list[list[WindowResult]],
    random: Random | None,
    samples: int,
) -> tuple[list[Round], Ranking]:
    """Run to the end with random results, which are appended to `results`, or without `random` with those there."""
    ids = {candidate.doc_id for candidate in candidates}
    generator = strategy(candidates, seed)
    rounds: list[Round] = []
    window_count = 0
    try:
        next_round = next(generator)
        while True:
            _check_round(next_round, ids)
            window_count += len(next_round.windows)
            assert window_count <= MAX_WINDOWS_PER_PASSAGE * max(len(ids), 1), f"{window_count} windows and no end"
            rounds.append(next_round)
            if random is not None:
                results.append(
                    [
                        WindowResult(window, tuple(arbitrary_ranking(window, random) for _ in range(samples)))
                        for window in next_round.windows
                    ]
                )
            next_round = generator.send(results[len(rounds) - 1])
    except StopIteration as stop:
        _check_ranking(stop.value, ids)
        ranking: Ranking = stop.value
        return rounds, ranking


def _check_round(candidate_round: Round, ids: set[str]) -> None:
    assert not (violation := round_violation(candidate_round, ids)), violation
    assert candidate_round.remaining_windows >= len(candidate_round.windows), (
        "remaining_windows must count the windows of this round"
    )
    for window in candidate_round.windows:
        best, worst = window.rank_range
        assert 1 <= best <= worst <= len(ids), f"rank_range {window.rank_range} is not within 1..{len(ids)}"
    _check_ranking(candidate_round.ranking, ids)


def _check_ranking(ranking: Ranking, ids: set[str]) -> None:
    assert not (violation := ranking_violation(ranking, ids)), violation
    assert not (ranking.tied and ranking.tied[0]), "the first passage has nobody before it to be tied with"
