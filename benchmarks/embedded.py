"""BM25's best reranked by the embedded model, through the command line: by comparison and by query likelihood.

    python -m benchmarks.embedded [--data ../shared/data/trec-dl19 ...] [--method likelihood comparison] [--queries 43]

Prints the commands, their summaries, what a query took, and the table of measures. Interrupted, the same command
goes on. The model has as many threads as cores it may use: on a machine with other work, run it under `taskset -c 0`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from rank_k.models.weights import DEFAULT_WEIGHTS

RUNS = ("run.anserini-bm25-condensed100.trec", "run.bm25.trec")
"""First stages, the first that is there; all are BM25."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[Path("../shared/data/trec-dl19")], help="BEIR folders")
    parser.add_argument("--method", nargs="+", choices=("listwise", "likelihood"), default=["listwise", "likelihood"])
    parser.add_argument("--reasoning", default="off", help="of comparison")
    parser.add_argument("--passage-tokens", nargs="+", type=int, default=[0], help="0: as long as is usual")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--queries", type=int, default=sys.maxsize, help="the first so many")
    parser.add_argument("--output", type=Path, default=Path("build/embedded"))
    args = parser.parse_args()
    for data in args.data:
        output = args.output / data.name
        output.mkdir(parents=True, exist_ok=True)
        run, qrels = _write_first_stage(data, output, args.queries)
        outputs = [
            _rerank_and_print_cost(data, run, output, method, args.reasoning, passage_tokens, args.depth)
            for method in args.method
            for passage_tokens in args.passage_tokens
        ]
        _rank_k("evaluate", "--qrels", qrels, run, *outputs)


def _write_first_stage(data: Path, output: Path, queries: int) -> tuple[Path, Path]:
    """BM25's run of the first `queries` queries, and their judgments."""
    full_run = next(data / name for name in RUNS if (data / name).exists())
    query_ids = set(list(dict.fromkeys(line.split()[0] for line in full_run.open()))[:queries])
    run, qrels = output / "bm25.trec", output / "qrels.trec"
    for source, target in ((full_run, run), (data / "qrels.trec", qrels)):
        with source.open() as lines:
            target.write_text("".join(line for line in lines if line.split()[0] in query_ids))
    return run, qrels


def _rerank_and_print_cost(
    data: Path, run: Path, output: Path, method: str, reasoning: str, passage_tokens: int, depth: int
) -> Path:
    """The run reranked; what a query took is printed."""
    name = method if method == "likelihood" else f"think-{reasoning}"
    options: list[object] = (
        ["--method", method] if method == "likelihood" else ["--model", DEFAULT_WEIGHTS, "--reasoning", reasoning]
    )
    if passage_tokens:
        name += f"-{passage_tokens}"
        options += ["--passage-tokens", passage_tokens]
    run_file, report = output / f"{name}.trec", output / f"{name}.json"
    usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _rank_k(
        *("rerank", "--run", run, "--queries", data / "queries.jsonl", "--documents", next(data.glob("corpus.jsonl*"))),
        *("--output", run_file, "--report", report, "--depth", depth, *options),
    )
    usage_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = usage_after.ru_utime - usage_before.ru_utime + usage_after.ru_stime - usage_before.ru_stime
    summary = json.loads(report.read_text(encoding="utf-8"))
    query_count = summary["queries"]
    seconds = sum(query["seconds"] for query in summary["per_query"]) / query_count
    print(
        f"a query: {seconds:.1f} s of the model, {summary['prompt_tokens'] / query_count:,.0f} tokens in,"
        f" {summary['completion_tokens'] / query_count:,.0f} out; the command: {summary['new_calls']} calls,"
        f" {cpu_seconds:.0f} s of processor time",
        flush=True,
    )
    return run_file


def _rank_k(*arguments: object) -> None:
    argv = [str(argument) for argument in arguments]
    print("$ rank-k", " ".join(argv), flush=True)
    subprocess.run([sys.executable, "-m", "rank_k.cli", *argv], check=True)


if __name__ == "__main__":
    main()
