"""Does the rule of `--reasoning auto` hold its promises? The tables of docs/results/reasoning.md.

A simulated model ranks windows directly or with thought, in three worlds: thought errs less, as much, more. The rule
sees what it would see of a real model: the window and a confidence of the direct order. That confidence is made here:
it falls with the true error of the direct order and is blurred until it tells windows with more than the median error
from the others with the wanted AUC. The last rows use none that is made, but
`rank_k.window.reasoning.agreement` of two direct orders.

Direct order and thought come from one model, so half of the variance of the direct order's error is shared between
them. Other shares, rules and scales of the confidence are tried on the first collection. Every window has one direct
order, one thought and one confidence, whichever policy asks for them, so that all comparisons are paired; standard
errors are over queries, of means over seeds.

    python -m benchmarks.auto_thinking --data ../shared/data/trec-dl19 ../shared/data/cranfield
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean, median, stdev

from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import Noise, SimulatedModel
from rank_k.strategies import make_strategy
from rank_k.types import Candidate, Window, WindowRanking, WindowResult
from rank_k.window.reasoning import AutoReasoningPolicy, ranking_agreement, should_reason

DIRECT_NOISE = Noise(sd=1.25, persistent=0.92, fresh=0.08, growth=0.3, position_bias=0.35, middle=0.1)
"""The direct judge, at a level at which it gains 25 to 30 points over BM25 on TREC DL 2019."""
QUERY_SPREAD = 0.3  # sigma of the lognormal factor by which queries differ in error, for direct order and thought alike
TIE_GAP = 0.05
WORLDS = {"helps": 0.88, "neutral": 1.0, "hurts": 1.16}
"""Error of the thought, in errors of the direct order: 3 to 6 points better or worse on TREC DL 2019."""
LIMIT_WORLDS = (
    *(("helps", 0.88, 0.0), ("neutral", 1.0, 0.0), ("hurts", 1.16, 0.0)),
    *(("helps", 0.88, 0.6), ("neutral", 1.0, 0.8), ("hurts", 1.16, 0.8)),
    *(("helps", 0.82, 0.5), ("hurts", 1.25, 0.5)),
)
"""Worlds, error of the thought and share of the error that is common to both, to see where the promises end."""
GRADE_SCALE = 1000  # grades are whole numbers: thousandths of a grade let the shared error into them
CONFIDENCE_AUCS = (0.5, 0.6, 0.7, 0.8)  # .5: nothing is known, so that the rule draws from its head at random

Confidence = Callable[["ModelOfSeed", str, Window], float]
Policy = Callable[["ModelOfSeed", str, Window], tuple[WindowRanking, ...]]


@dataclass(frozen=True)
class Data:
    name: str
    run: dict[str, tuple[Candidate, ...]]
    qrels: dict[str, dict[str, int]]

    @classmethod
    def read(cls, folder: Path, queries: int) -> Data:
        """The first `queries` queries with anything relevant, 100 candidates each."""
        qrels = read_qrels(folder / "qrels.trec")
        run = read_run(folder / "run.bm25.trec")
        query_ids = [q for q in run if max(qrels.get(q, {"": 0}).values()) > 0][:queries]
        return cls(folder.name, {q: tuple(run[q][:100]) for q in query_ids}, {q: qrels[q] for q in query_ids})


class ModelOfSeed:
    """A model of one seed: its direct orders and its thoughts, whose error is `factor` times as large."""

    def __init__(self, data: Data, factor: float, shared: float, seed: int) -> None:
        self.data, self.seed = data, seed
        self._judges = {
            (query_id, with_reasoning): _judge(
                data, query_id, factor if with_reasoning else 1.0, shared, seed, with_reasoning
            )
            for query_id in data.run
            for with_reasoning in (False, True)
        }
        self._cached_ranking = lru_cache(4096)(self._rank_window)

    def direct(self, query_id: str, doc_ids: tuple[str, ...]) -> WindowRanking:
        return self._cached_ranking(query_id, doc_ids, False)

    def reasoned(self, query_id: str, doc_ids: tuple[str, ...]) -> WindowRanking:
        return self._cached_ranking(query_id, doc_ids, True)

    def _rank_window(self, query_id: str, doc_ids: tuple[str, ...], with_reasoning: bool) -> WindowRanking:
        tiers = self._judges[query_id, with_reasoning].tiers(query_id, doc_ids)
        return WindowRanking(tuple(tuple(doc_ids[i] for i in tier) for tier in tiers), frozenset(doc_ids), True)

    def error(self, query_id: str, doc_ids: tuple[str, ...]) -> float:
        """What the direct order of a window loses of the best nDCG@10 that its passages allow."""
        grades = [self.data.qrels[query_id].get(doc_id, 0) for doc_id in self.direct(query_id, doc_ids).doc_ids]
        best = _dcg(sorted(grades, reverse=True))
        return 1 - _dcg(grades) / best if best else 0.0

    def random_for(self, purpose: str, query_id: str, doc_ids: tuple[str, ...]) -> Random:
        """Chance that belongs to one window of this seed, whoever asks and whenever."""
        return Random("|".join((purpose, str(self.seed), query_id, *doc_ids)))


def _judge(data: Data, query_id: str, factor: float, shared: float, seed: int, with_reasoning: bool) -> SimulatedModel:
    difficulty = math.exp(QUERY_SPREAD * Random(f"query|{seed}|{query_id}").gauss())
    shared_variance = shared * (difficulty * DIRECT_NOISE.sd) ** 2
    total_variance = (factor * difficulty * DIRECT_NOISE.sd) ** 2
    own_variance = total_variance - shared_variance
    grades = {
        c.doc_id: GRADE_SCALE * data.qrels[query_id].get(c.doc_id, 0)
        + round(GRADE_SCALE * math.sqrt(shared_variance) * Random(f"doc|{seed}|{query_id}|{c.doc_id}").gauss())
        for c in data.run[query_id]
    }
    noise = replace(
        DIRECT_NOISE,
        sd=GRADE_SCALE * math.sqrt(own_variance),
        persistent=(DIRECT_NOISE.persistent * total_variance - shared_variance)
        / own_variance,  # the shared part is not drawn again for each call
        fresh=DIRECT_NOISE.fresh * total_variance / own_variance,
        position_bias=GRADE_SCALE * DIRECT_NOISE.position_bias,
        tie_gap=GRADE_SCALE * TIE_GAP,
    )
    return SimulatedModel({query_id: grades}, noise, seed=2 * seed + with_reasoning)


def _dcg(grades: Sequence[int]) -> float:
    return sum(max(grade, 0) / math.log2(rank + 2) for rank, grade in enumerate(grades[:10]))


# --- confidence ---


def simulated_confidence(known_windows: Sequence[tuple[ModelOfSeed, str, Window]], auc: float) -> Confidence:
    """A confidence of the wanted AUC over the windows `known`, on which it is uniform from 0 to 1."""
    errors = [judges.error(query_id, window.doc_ids) for judges, query_id, window in known_windows]
    is_error = [error > median(errors) for error in errors]
    sorted_errors = sorted(errors)

    @cache
    def scores(judges: ModelOfSeed, query_id: str, doc_ids: tuple[str, ...]) -> tuple[float, float]:
        """Normal score of the window's error, and of its blur. Equal errors are spread over their ranks."""
        random = judges.random_for("confidence", query_id, doc_ids)
        error = judges.error(query_id, doc_ids)
        low, high = bisect_left(sorted_errors, error), bisect_right(sorted_errors, error)
        rank = (low + random.random() * (high - low)) / len(sorted_errors)
        return NormalDist().inv_cdf(min(max(rank, 1e-4), 1 - 1e-4)), random.gauss()

    def confidence(weight: float, judges: ModelOfSeed, query_id: str, doc_ids: tuple[str, ...]) -> float:
        error, blur = scores(judges, query_id, doc_ids)
        return NormalDist().cdf(-(weight * error + math.sqrt(1 - weight**2) * blur))

    low, high = 0.0, 1.0
    for _ in range(12):
        weight = (low + high) / 2
        measured_auc = auc_of(
            is_error,
            [confidence(weight, judges, query_id, window.doc_ids) for judges, query_id, window in known_windows],
        )
        low, high = (weight, high) if measured_auc < auc else (low, weight)
    return lambda judges, query_id, window: confidence(low, judges, query_id, window.doc_ids)


def auc_of(is_error: Sequence[bool], confidences: Sequence[float]) -> float:
    """How often a window that errs is the less sure of a pair."""
    correct = sorted(value for value, err in zip(confidences, is_error, strict=True) if not err)
    incorrect = [value for value, err in zip(confidences, is_error, strict=True) if err]
    shares = [len(correct) - (bisect_left(correct, value) + bisect_right(correct, value)) / 2 for value in incorrect]
    return fmean(shares) / len(correct)


def agreement_of_two_orders(judges: ModelOfSeed, query_id: str, window: Window) -> float:
    first, reversed_order = (judges.direct(query_id, ids) for ids in (window.doc_ids, window.doc_ids[::-1]))
    return ranking_agreement(first, reversed_order)


# --- policies ---


def direct_policy(judges: ModelOfSeed, query_id: str, window: Window) -> tuple[WindowRanking, ...]:
    return (judges.direct(query_id, window.doc_ids),)


def reasoning_policy(judges: ModelOfSeed, query_id: str, window: Window) -> tuple[WindowRanking, ...]:
    return (judges.reasoned(query_id, window.doc_ids),)


def direct_and_reasoning_policy(judges: ModelOfSeed, query_id: str, window: Window) -> tuple[WindowRanking, ...]:
    return (*direct_policy(judges, query_id, window), *reasoning_policy(judges, query_id, window))


def auto_policy(
    confidence: Confidence,
    reasoning_rule: AutoReasoningPolicy = AutoReasoningPolicy(),
    policy_with_reasoning: Policy = direct_and_reasoning_policy,
) -> Policy:
    def policy(judges: ModelOfSeed, query_id: str, window: Window) -> tuple[WindowRanking, ...]:
        return (
            policy_with_reasoning
            if should_reason(window, confidence(judges, query_id, window), reasoning_rule)
            else direct_policy
        )(judges, query_id, window)

    return policy


def random_policy(share: float, policy_with_reasoning: Policy) -> Policy:
    def policy(judges: ModelOfSeed, query_id: str, window: Window) -> tuple[WindowRanking, ...]:
        chosen = judges.random_for("random", query_id, window.doc_ids).random() < share
        return (policy_with_reasoning if chosen else direct_policy)(judges, query_id, window)

    return policy


@dataclass(frozen=True)
class Result:
    """nDCG@10 in points per query (mean over seeds), and the share of windows thought about."""

    points: tuple[float, ...]
    share: float
    windows: tuple[tuple[ModelOfSeed, str, Window], ...]

    @property
    def mean(self) -> float:
        return fmean(self.points)

    def over(self, baseline: Result) -> tuple[float, float]:
        """Mean paired difference to `other` and its standard error over queries."""
        differences = [a - b for a, b in zip(self.points, baseline.points, strict=True)]
        return fmean(differences), stdev(differences) / math.sqrt(len(differences))


def run_policy(judges_of_seeds: Sequence[ModelOfSeed], policy: Policy, strategy: str) -> Result:
    data = judges_of_seeds[0].data
    points = dict.fromkeys(data.run, 0.0)
    ranked_windows: list[tuple[ModelOfSeed, str, Window]] = []
    reasoned_windows = 0
    for judges in judges_of_seeds:
        reranked: dict[str, list[Candidate]] = {}
        for query_id, candidates in data.run.items():
            generator = make_strategy(strategy)(candidates, judges.seed)
            try:
                round_ = next(generator)
                while True:
                    rankings_of_windows = [policy(judges, query_id, window) for window in round_.windows]
                    for window, rankings in zip(round_.windows, rankings_of_windows, strict=True):
                        ranked_windows.append((judges, query_id, window))
                        reasoned_windows += rankings[-1] is not judges.direct(query_id, window.doc_ids)
                    round_ = generator.send(
                        [WindowResult(*pair) for pair in zip(round_.windows, rankings_of_windows, strict=True)]
                    )
            except StopIteration as stop:
                reranked[query_id] = [Candidate(doc_id, -float(n)) for n, doc_id in enumerate(stop.value.doc_ids)]
        for query_id, value in evaluate(data.qrels, reranked, ["nDCG@10"]).per_query["nDCG@10"].items():
            points[query_id] += 100 * value / len(judges_of_seeds)
    return Result(tuple(points.values()), reasoned_windows / len(ranked_windows), tuple(ranked_windows))


# --- tables ---

HEADER = """\
| {first} | auto | thought about | above max(off, full) | above random | standard errors |
|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Scenario:
    name: str
    model: Sequence[ModelOfSeed]
    strategy: str
    off: Result
    full: Result

    @classmethod
    def of(
        cls,
        name: str,
        data: Data,
        seeds: int,
        strategy: str = "sliding",
        factor: float | None = None,
        shared: float = 0.5,
    ) -> Scenario:
        model = [ModelOfSeed(data, factor or WORLDS[name], shared, seed) for seed in range(seeds)]
        return cls(
            name,
            model,
            strategy,
            run_policy(model, direct_policy, strategy),
            run_policy(model, reasoning_policy, strategy),
        )

    def row(self, label: str, policy: Policy, policy_with_reasoning: Policy = direct_and_reasoning_policy) -> str:
        """`policy` beside the better of off and full, and beside as many thoughts on windows drawn at random."""
        result = run_policy(self.model, policy, self.strategy)
        random_result = run_policy(self.model, random_policy(result.share, policy_with_reasoning), self.strategy)
        gain, error = result.over(random_result)
        above = result.mean - max(self.off.mean, self.full.mean)
        cells = f"{above:+.1f} | {gain:+.1f} ± {error:.1f} | {gain / error if error else 0:.1f}"
        return f"| {label} | {result.mean:.1f} | {result.share:.0%} | {cells} |"

    def __str__(self) -> str:
        return f"{self.name} (off {self.off.mean:.1f}, full {self.full.mean:.1f})"


def auto_policy_at(world: Scenario, auc: float) -> Policy:
    return auto_policy(simulated_confidence(world.off.windows, auc))


def confidence_rows(world: Scenario) -> Iterator[str]:
    for auc in CONFIDENCE_AUCS:
        yield world.row(f"{world}, AUC {auc}", auto_policy_at(world, auc))
    errors = [judges.error(query_id, window.doc_ids) for judges, query_id, window in world.off.windows]
    measured_auc = auc_of(
        [error > median(errors) for error in errors], [agreement_of_two_orders(*key) for key in world.off.windows]
    )
    yield world.row(f"{world}, agreement, AUC {measured_auc:.2f}", auto_policy(agreement_of_two_orders))


def variant_rows(world: Scenario) -> Iterator[str]:
    """Other rules and other scales of the confidence, at AUC .7."""
    confidence = simulated_confidence(world.off.windows, 0.7)
    rules = {
        "head 100, least .5: half of all windows": AutoReasoningPolicy(max_rank=100, min_confidence=0.5),
        "head 30": AutoReasoningPolicy(max_rank=30),
        "least .5": AutoReasoningPolicy(min_confidence=0.5),
        "least 1: every window of the head": AutoReasoningPolicy(min_confidence=1.0),
    }
    for label, rule in rules.items():
        yield world.row(f"{world.name}: {label}", auto_policy(confidence, rule))
    yield world.row(
        f"{world.name}: confidence's cube root, a model that is too sure",
        auto_policy(lambda *key: confidence(*key) ** (1 / 3)),
    )
    yield world.row(
        f"{world.name}: the thought replaces the direct order",
        auto_policy(confidence, policy_with_reasoning=reasoning_policy),
        reasoning_policy,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto_thinking")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with run.bm25.trec and qrels.trec")
    parser.add_argument("--queries", type=int, default=100, help="of each collection, at most")
    parser.add_argument("--runs", type=int, default=860, help="queries times seeds, about")
    options = parser.parse_args(argv)
    collections = [Data.read(folder, options.queries) for folder in options.data]
    for data in collections:
        seeds = max(round(options.runs / len(data.run)), 1)
        print(f"\n{data.name}: {len(data.run)} queries, {seeds} seeds\n\n{HEADER.format(first='world, confidence')}")
        for name in WORLDS:
            print(*confidence_rows(Scenario.of(name, data, seeds)), sep="\n", flush=True)
    data = collections[0]
    seeds = max(round(options.runs / len(data.run)), 1)
    print(f"\n{data.name}, AUC .7\n\n{HEADER.format(first='world, what is changed')}")
    for name in WORLDS:
        print(*variant_rows(Scenario.of(name, data, seeds)), sep="\n", flush=True)
    print(f"\n{data.name}, AUC .7\n\n{HEADER.format(first='world')}")
    for name, factor, shared in LIMIT_WORLDS:
        world = Scenario.of(name, data, seeds, factor=factor, shared=shared)
        print(world.row(f"{world}, {shared:.0%} of the error shared", auto_policy_at(world, 0.7)), flush=True)
    for strategy in ("blocks", "topdown", "tournament", "setwise"):
        for name in WORLDS:
            world = Scenario.of(name, data, seeds, strategy)
            print(world.row(f"{strategy}: {world}", auto_policy_at(world, 0.7)), flush=True)


if __name__ == "__main__":
    main()
