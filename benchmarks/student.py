"""What the student is worth: one table, on collections that neither it nor a choice about it has seen.

    python -m benchmarks.student STUDENT... [--collections ../shared/data] [--names trec-dl19 ...] [--queries N]
                                 [--output FOLDER]

STUDENT: folders or GGUF files that `rank-k distill export` wrote; give the one trained with traces first, then its
ablations (asked with its trace suppressed: add `:off` to its name; asked to compare alone: `:listwise`; likelihood
first: `:combined`). Each collection's own BM25 run, or its first N queries, is reranked to depth 20 through the
embedded model, as a user would, with the commands of the package. Beside the students stand a random order, BM25, the
untrained weights asked to compare, and query likelihood by the same weights. The first student is compared with BM25
and with query likelihood, paired by query, with the bootstrap's 95 % interval.

Runs and journals stay in the output folder: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import get_args

from rank_k.cli import main as rank_k
from rank_k.data.trec import RunWriter, read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.run_costs import read_run_cost
from rank_k.evaluation.significance import paired_difference
from rank_k.models.weights import DEFAULT_WEIGHTS
from rank_k.types import Candidate, ScoringMethod

DEPTH = 20
NAMES = ("trec-dl19", "wikiqa", "noveleval")
MEASURE = "nDCG@10"

Run = Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `per_query`: nDCG@10; `seconds`, `tokens` (in and out) for a query, None where no model
    was asked."""

    name: str
    per_query: Mapping[str, float]
    seconds: float | None = None
    tokens: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.per_query.values())

    def __str__(self) -> str:
        cost = "| - | - |" if self.seconds is None else f"| {self.seconds:.1f} | {self.tokens:,.0f} |"
        return f"| {self.name} | {self.mean:.4f} {cost}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", metavar="STUDENT")
    parser.add_argument("--collections", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--queries", type=int, metavar="N", help="the first N of each run (all)")
    parser.add_argument("--output", type=Path, default=Path("student-benchmark"))
    args = parser.parse_args()
    for name in args.names:
        folder = args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        print(f"\n{name}, the {DEPTH} best of BM25\n")
        print(f"| ranked by | {MEASURE} | s/query | tokens/query |\n|---|---|---|---|")
        rows = []
        for row in measure_collection(args.collections / name, folder, args.students, args.queries):
            print(row, flush=True)
            rows.append(row)
        print()
        first_students, baselines = rows[4:5], {row.name: row for row in rows[1:4]}
        for student_row in first_students:
            for baseline in ("BM25", "query likelihood"):
                difference = paired_difference(student_row.per_query, baselines[baseline].per_query)
                print(
                    f"{student_row.name} less {baseline}: {difference.mean:+.4f}"
                    f" ({difference.low:+.4f} to {difference.high:+.4f});"
                    f" better in {difference.better}, worse in {difference.worse} of {difference.queries} queries"
                )


def measure_collection(
    collection: Path, folder: Path, students: Sequence[str], queries_count: int | None
) -> Iterator[Row]:
    """The rows of one collection: random, BM25, untrained, likelihood, then the students."""
    qrels = read_qrels(collection / "qrels.trec")
    first_stage = dict(islice(read_run(next(iter(sorted(collection.glob("run.*bm25*"))))).items(), queries_count))
    qrels = {query_id: qrels[query_id] for query_id in first_stage if query_id in qrels}
    run_file = folder / "bm25.trec"
    with RunWriter(run_file, "bm25") as writer:
        for query_id, run in first_stage.items():
            writer.write_query(query_id, [candidate.doc_id for candidate in run])
    bm25 = {query_id: run[:DEPTH] for query_id, run in first_stage.items()}
    random = {query_id: shuffle_candidates(query_id, run) for query_id, run in bm25.items()}
    yield Row("random order", ndcg(qrels, random))
    yield Row("BM25", ndcg(qrels, bm25))
    queries, documents = collection / "queries.jsonl", next(collection.glob("corpus.jsonl*"))
    common = ("--run", run_file, "--queries", queries, "--documents", documents, "--depth", DEPTH, "--quiet")
    yield rerank_and_measure(
        "untrained, compared", qrels, bm25, folder, *common, "--model", DEFAULT_WEIGHTS, "--reasoning", "off"
    )
    yield rerank_and_measure("query likelihood", qrels, bm25, folder, *common, "--method", "likelihood")
    for student_spec in students:
        path, *suffixes = student_spec.split(":")
        options = [
            option
            for suffix in suffixes
            for option in ("--method" if suffix in get_args(ScoringMethod) else "--reasoning", suffix)
        ]
        yield rerank_and_measure(f"student {student_spec}", qrels, bm25, folder, *common, "--model", path, *options)


def shuffle_candidates(seed: str, run: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in a random order, with scores that say so: measures go by score."""
    shuffled = Random(seed).sample(list(run), len(run))
    return [Candidate(candidate.doc_id, 1 / rank) for rank, candidate in enumerate(shuffled, 1)]


def rerank_and_measure(
    name: str, qrels: Mapping[str, Mapping[str, int]], bm25: Run, folder: Path, *options: object
) -> Row:
    """Rerank by the command, and measure. The cost is that of the calls, as the journal has it."""
    file_stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    output, report = folder / f"{file_stem}.trec", folder / f"{file_stem}.json"
    code = rank_k([str(argument) for argument in ("rerank", *options, "--output", output, "--report", report)])
    if code:
        raise SystemExit(code)
    report_values = json.loads(report.read_text(encoding="utf-8"))
    tokens = report_values["prompt_tokens"] + report_values["completion_tokens"]
    run = {query_id: candidates[:DEPTH] for query_id, candidates in read_run(output).items()}
    cost = read_run_cost(Path(f"{output}.journal.sqlite"), output)  # what is replayed took no time now
    return Row(name, ndcg(qrels, run), cost.model_seconds / len(bm25) if cost else None, tokens / len(bm25))


def ndcg(qrels: Mapping[str, Mapping[str, int]], run: Run) -> Mapping[str, float]:
    return evaluate(qrels, run, [MEASURE]).per_query[MEASURE]


if __name__ == "__main__":
    main()
