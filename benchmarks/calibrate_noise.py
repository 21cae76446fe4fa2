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
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import PRESETS, Grades, Noise
from rank_k.simulation.replay import simulate
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec-dl19"))
    parser.add_argument("--run", default="fullrun.anserini-bm25.trec.gz")
    parser.add_argument("--qrels", default="qrels.official.trec.gz")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fit", action="store_true", help="find the sd that meets each target")
    args = parser.parse_args()
    run, grades = read_run(args.data / args.run), read_qrels(args.data / args.qrels)
    judged = {query_id: query_grades for query_id, query_grades in grades.items() if query_id in run}

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
