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
import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from zlib import crc32

from benchmarks.ideal import simulate
from rank_k.answer import parse_answer
from rank_k.data.files import read_qrels, read_run
from rank_k.models.base import Request, Subject
from rank_k.models.simulated import PRESETS, Grades, Noise, SimulatedJudge, with_sd
from rank_k.records import Order, Run, Window
from rank_k.strategies import make

TARGETS = {"strong": 0.727, "weak": 0.62}
DEPTH = 100
SEEDS = 10


def ndcg_at_10(doc_ids: Sequence[str], grades: dict[str, int]) -> float:
    def gain(ordered: Sequence[int]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(ordered[:10], 1))

    ideal = gain(sorted(grades.values(), reverse=True))
    return gain([grades.get(doc_id, 0) for doc_id in doc_ids]) / ideal if ideal else 0.0


def quality(run: Run, grades: Grades, noise: Noise, seed: int, loop: asyncio.AbstractEventLoop) -> float:
    """Mean nDCG@10 of sliding windows with the judge of `seed`, its answers read as any model's are."""
    judge = SimulatedJudge(grades, noise, seed=seed)
    queries = [query_id for query_id in run if query_id in grades]
    sliding = make("sliding", window=20, stride=10)

    def order(query: int, window: Window) -> Order:
        ids = window.doc_ids
        request = Request((), 1, think=False, subject=Subject(queries[query], ids))
        answer = parse_answer(loop.run_until_complete(judge.ask(request)).text, len(ids), finish_reason="stop")
        tiers = tuple(tuple(ids[i - 1] for i in tier) for tier in answer.tiers)
        return Order(tiers, frozenset(ids[i - 1] for i in answer.placed), answer.ranked)

    steps = (sliding(run[query_id][:DEPTH], crc32(query_id.encode())) for query_id in queries)
    rankings = simulate(steps, 1, lambda query, window: 1.0, order).rankings
    scores = zip(queries, rankings, strict=True)
    return fmean(ndcg_at_10(ranking.doc_ids, dict(grades[query_id])) for query_id, ranking in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec-dl19"))
    parser.add_argument("--run", default="fullrun.anserini-bm25.trec.gz")
    parser.add_argument("--qrels", default="qrels.official.trec.gz")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fit", action="store_true", help="find the sd that meets each target")
    args = parser.parse_args()
    run, grades = read_run(args.data / args.run), read_qrels(args.data / args.qrels)
    loop = asyncio.new_event_loop()

    def qualities(noise: Noise) -> list[float]:
        return [quality(run, grades, noise, seed, loop) for seed in range(args.seeds)]

    def row(name: str, noise: Noise) -> None:
        found = qualities(noise)
        target = f"{TARGETS[name]:.3f}" if name in TARGETS else ""
        print(f"{name:12}{noise.sd:6.2f}{fmean(found):10.4f}{stdev(found):10.4f}{target:>8}", flush=True)

    first_stage = fmean(ndcg_at_10([c.doc_id for c in run[q]], grades[q]) for q in run if q in grades)
    print(f"judge           sd   nDCG@10  sd(seeds)  target\n{'first stage':18}{first_stage:10.4f}")
    for name, noise in PRESETS.items():
        row(name, noise)
    for name, target in TARGETS.items() if args.fit else ():
        low, high = 0.1, 3.0  # quality falls as the error grows
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (middle, high) if fmean(qualities(with_sd(PRESETS[name], middle))) > target else (low, middle)
        row(name, with_sd(PRESETS[name], round((low + high) / 2, 2)))
    loop.close()


if __name__ == "__main__":
    main()
