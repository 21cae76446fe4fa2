"""A conformance test for strategies, for use in the tests of your strategy.

    from rank_k.strategies.testing import check_strategy
    check_strategy(MyStrategy(), length=55, random=random.Random(1))

It runs the strategy with valid random results: rankings with ties, with missing ids, or no ranking at all. If the
strategy violates the protocol (`rank_k.strategies.base.Strategy`), it raises an `AssertionError` that says how.
"""

from __future__ import annotations

from random import Random

from rank_k.strategies.base import Strategy, ranking_violation, round_violation
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult

MAX_WINDOWS_PER_PASSAGE = 50
"""The maximum number of windows per candidate, to detect strategies that never end."""


def check_strategy(strategy: Strategy, length: int, random: Random, *, samples: int = 1) -> list[Round]:
    """Run a strategy twice with the same results, check that it conforms to the protocol, and return its rounds.

    Args:
        strategy: The strategy.
        length: Number of candidates.
        random: Source of the random results.
        samples: Number of rankings per window (default: 1).

    Raises:
        AssertionError: If the strategy violates the protocol or is not deterministic.
    """
    candidates = tuple(Candidate(f"d{i}", 1 / (i + 1)) for i in range(length))
    seed = random.randrange(2**32)
    results: list[list[WindowResult]] = []
    rounds, ranking = _drive(strategy, candidates, seed, results, random, samples)
    replayed_rounds, replayed_ranking = _drive(strategy, candidates, seed, results, None, samples)
    assert replayed_rounds == rounds, "the same results led to different rounds"
    assert replayed_ranking == ranking, "the same results led to a different ranking"
    return rounds


def arbitrary_ranking(window: Window, random: Random) -> WindowRanking:
    """Return a valid random ranking of `window`, which may have ties and missing ids, or be no ranking at all."""
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
    """Run the strategy to its end, and return its rounds and its ranking.

    With `random`, results are random and are appended to `results`. Without it, `results` are used.
    """
    ids = {candidate.doc_id for candidate in candidates}
    generator = strategy(candidates, seed)
    rounds: list[Round] = []
    window_count = 0
    try:
        next_round = next(generator)
        while True:
            _check_round(next_round, ids)
            window_count += len(next_round.windows)
            assert window_count <= MAX_WINDOWS_PER_PASSAGE * max(len(ids), 1), (
                f"the strategy does not end: it yielded {window_count} windows"
            )
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
    assert not (ranking.tied and ranking.tied[0]), "the first passage cannot be tied with the one before it"
