"""TREC DL 2019, the 20 best of BM25, reranked by the embedded model through the command line.

    python -m benchmarks.embedded [--data ../shared/data/trec-dl19] [--think off] [--queries 43]

Prints the commands, the summary and the table of measures. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec-dl19"))
    parser.add_argument("--think", default="off")
    parser.add_argument("--output", type=Path, default=Path("build/embedded"))
    parser.add_argument("--queries", type=int, default=43)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    whole = args.data / "run.anserini-bm25-condensed100.trec"
    lines = whole.read_text().splitlines(keepends=True)
    kept = set(list(dict.fromkeys(line.split()[0] for line in lines))[: args.queries])
    run, output = args.output / "bm25.trec", args.output / f"think-{args.think}.trec"
    run.write_text("".join(line for line in lines if line.split()[0] in kept))
    _rank_k(
        *("rerank", "--run", run, "--queries", args.data / "queries.jsonl"),
        *("--documents", args.data / "corpus.jsonl.gz", "--output", output, "--depth", 20, "--think", args.think),
    )
    _rank_k("evaluate", "--qrels", args.data / "qrels.trec", run, output)


def _rank_k(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print("$ rank-k", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "rank_k.cli", *words], check=True)


if __name__ == "__main__":
    main()
