"""Where the standard deviations in `rank_k.models.simulated.PRESETS` come from.

A simulated judge should rank as well as the models it stands for. The shape of its errors (what part is the same
in every call, and so on) is given; their size, `sd`, is the one at which sliding windows of 20 with a stride of 10
over the 100 best of BM25 reach a given nDCG@10 on the 43 queries of TREC Deep Learning 2019: .727 for `strong`,
.62 for `weak`. Those figures are of the published BM25 run (.5058 by itself) and the official judgments, so that is
what is ranked here; a judge needs no text. Lists of judged passages only, like the `run.bm25.trec` of the same
folder, have better passages in reach and give higher figures for the same judge. Gains are linear and the ideal is
that of all judgments, as in trec_eval; means are over queries and ten judges (seeds).

    python -m benchmarks.calibrate_noise              # the presets as they are
    python -m benchmarks.calibrate_noise --fit        # and the sd that would meet each target
    python -m benchmarks.calibrate_noise --binary     # by how much to scale the presets for binary judgments
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate, ndcg
from rank_k.models.simulated import PRESETS, Grades, Noise, SimulatedModel
from rank_k.simulation.replay import replay_strategy, simulate
from rank_k.strategies import make_strategy
from rank_k.types import Run

TARGETS = {"strong": 0.727, "weak": 0.62}
DEPTH = 100
SEEDS = 10


def quality(run: Run, grades: Grades, noise: Noise, seed: int) -> float:
    """Mean nDCG@10 of sliding windows with the judge of `seed`, its answers read as any model's are."""
    head = {query_id: candidates[:DEPTH] for query_id, candidates in run.items()}
    [totals] = simulate(
        {"": head}, grades, {"sliding": make_strategy("sliding", window=20, stride=10)}, {"": noise}, seed
    ).values()
    return totals.quality.mean


def print_binary_factor(run: Run, grades: Grades, name: str, seeds: int) -> None:
    """Print the factor for a preset at which a judge that knows only whether passages are relevant (grade 2 or 3)
    ranks as well, by binary judgments, as a judge with the unscaled preset that knows all grades."""
    head = {query_id: run[query_id][:DEPTH] for query_id in grades}
    binary = {
        query_id: {doc_id: int(grade >= 2) for doc_id, grade in known.items()} for query_id, known in grades.items()
    }
    strategy = make_strategy("sliding", window=20, stride=10)
    preset = replace(PRESETS[name], highest_grade=0)

    def binary_ndcg(known_grades: Grades, factor: float) -> float:
        noise = replace(
            preset,
            sd=preset.sd * factor,
            position_bias=preset.position_bias * factor,
            tie_gap=preset.tie_gap * factor,
        )
        values = []
        for seed in range(seeds):
            judge = SimulatedModel(known_grades, noise, seed=seed)
            for query_id, candidates in head.items():
                doc_ids = replay_strategy(strategy, candidates, query_id, judge).doc_ids
                relevance = [binary[query_id].get(doc_id, 0) for doc_id in doc_ids]
                values.append(ndcg(relevance, binary[query_id].values()))
        return fmean(values)

    target = binary_ndcg(grades, 1.0)
    low, high = 0.1, 1.5  # quality falls as the error grows
    while high - low > 0.01:
        factor = (low + high) / 2
        low, high = (factor, high) if binary_ndcg(binary, factor) > target else (low, factor)
    print(f"{name:12} factor {(low + high) / 2:.2f}, nDCG@10 by binary judgments {target:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec-dl19"))
    parser.add_argument("--run", default="fullrun.anserini-bm25.trec.gz")
    parser.add_argument("--qrels", default="qrels.official.trec.gz")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fit", action="store_true", help="find the sd that meets each target")
    parser.add_argument("--binary", action="store_true", help="only find the factors for binary judgments")
    args = parser.parse_args()
    run, grades = read_run(args.data / args.run), read_qrels(args.data / args.qrels)
    judged = {query_id: query_grades for query_id, query_grades in grades.items() if query_id in run}

    for name in TARGETS if args.binary else ():
        print_binary_factor(run, judged, name, args.seeds)
    if args.binary:
        return

    def qualities(noise: Noise) -> list[float]:
        return [quality(run, judged, noise, seed) for seed in range(args.seeds)]

    def row(name: str, noise: Noise) -> None:
        values = qualities(noise)
        target = f"{TARGETS[name]:.3f}" if name in TARGETS else ""
        print(f"{name:12}{noise.sd:6.2f}{fmean(values):10.4f}{stdev(values):10.4f}{target:>8}", flush=True)

    first_stage = evaluate(judged, run, ["nDCG@10"]).means["nDCG@10"]
    print(f"judge           sd   nDCG@10  sd(seeds)  target\n{'first stage':18}{first_stage:10.4f}")
    for name, noise in PRESETS.items():
        row(name, noise)
    for name, target in TARGETS.items() if args.fit else ():
        low, high = 0.1, 3.0  # quality falls as the error grows
        while high - low > 0.01:
            sd = (low + high) / 2
            low, high = (sd, high) if fmean(qualities(replace(PRESETS[name], sd=sd))) > target else (low, sd)
        row(name, replace(PRESETS[name], sd=round((low + high) / 2, 2)))


if __name__ == "__main__":
    main()
