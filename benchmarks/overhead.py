"""What the client itself costs: wall time beside a zero-overhead client's, processor time and memory per call.

    python -m benchmarks.overhead [--concurrency 16 64] [--flush 0.05] [--rounds 1]

40 queries x 100 passages, window 20, stride 10, 360 streaming calls against a server on loopback that takes
0.2 s + 2 ms per token. The server runs in a process of its own, and so does the client, as the command a user
types: its processor time and memory are all of that process, start-up and files included. The bound is the
event simulation of `benchmarks.ideal`: same latencies, same scheduling rule, no overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import Dataset, make_dataset
from tests.fakes.model_server.running import run_in_process

from benchmarks.ideal import simulate_dataset


@dataclass(frozen=True)
class Cost:
    concurrency: int
    calls: int
    first_to_last: float
    bound: float
    cpu_ms: float
    peak_mb: float
    perfect: bool

    @property
    def ratio(self) -> float:
        return self.first_to_last / self.bound


def write_dataset(dataset: Dataset, folder: Path) -> list[str]:
    """The data set as files; returns the options that name them."""
    with (folder / "queries.jsonl").open("w") as file:
        for query in dataset.queries:
            file.write(json.dumps({"_id": query.query_id, "text": query.text}) + "\n")
    with (folder / "corpus.jsonl").open("w") as file:
        for passage in dataset.passages.values():
            file.write(json.dumps({"_id": passage.doc_id, "title": "", "text": passage.text}) + "\n")
    with (folder / "run.trec").open("w") as file:
        for query_id, candidates in dataset.run.items():
            for rank, candidate in enumerate(candidates, 1):
                file.write(f"{query_id} Q0 {candidate.doc_id} {rank} {candidate.score} first\n")
    return [
        *("--run", str(folder / "run.trec"), "--queries", str(folder / "queries.jsonl")),
        *("--documents", str(folder / "corpus.jsonl"), "--output", str(folder / "out.trec")),
    ]


def measure(concurrency: int, flush: float = 0.05, queries: int = 40, *options: str, **plan: Any) -> Cost:
    """Run the command once against a fresh server and journal."""
    dataset = make_dataset(queries, 100)
    strategy = options[options.index("--strategy") + 1] if "--strategy" in options else "sliding"
    bound = simulate_dataset(dataset, concurrency, strategy=strategy).makespan
    with (
        tempfile.TemporaryDirectory() as folder,
        run_in_process(FaultPlan().changed({"flush": flush, **plan})) as server,
    ):
        command = [sys.executable, "-m", "rank_k.cli", "rerank", "--quiet", *write_dataset(dataset, Path(folder))]
        command += ["--server", server.url, "--model", "oracle", "--concurrency", str(concurrency), *options]
        client = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "src"})
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
        if client.returncode:
            raise SystemExit(f"the client failed: {client.returncode}")
        calls = server.calls
        ranked = _read_ranking(Path(folder) / "out.trec")
    perfect = all(
        _grades(dataset, query_id, ranked[query_id]) == _grades(dataset, query_id, dataset.perfect(query_id))
        for query_id in ranked
    )
    return Cost(
        concurrency,
        len(calls),
        max(call.end or 0.0 for call in calls) - min(call.start for call in calls),
        bound,
        (usage.ru_utime + usage.ru_stime) / len(calls) * 1000,
        usage.ru_maxrss / 1024,
        perfect,
    )


def _read_ranking(path: Path) -> dict[str, list[str]]:
    doc_ids_of_query: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        query_id, _, doc_id, *_ = line.split()
        doc_ids_of_query.setdefault(query_id, []).append(doc_id)
    return doc_ids_of_query


def _grades(dataset: Dataset, query_id: str, doc_ids: Sequence[str]) -> list[int]:
    return [dataset.qrels[query_id][doc_id] for doc_id in doc_ids[:10]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--flush", type=float, default=0.05, help="seconds of tokens a server sends at a time")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    print("concurrency  calls  first to last  bound    ratio  CPU/call  peak     ranking")
    for concurrency in args.concurrency * args.rounds:
        cost = measure(concurrency, args.flush)
        print(
            f"{cost.concurrency:>11}  {cost.calls:>5}  {cost.first_to_last:>10.2f} s  {cost.bound:>5.2f} s"
            f"  {cost.ratio:.4f}  {cost.cpu_ms:>5.2f} ms  {cost.peak_mb:>4.0f} MB"
            f"  {'perfect' if cost.perfect else 'NOT PERFECT'}",
            flush=True,
        )
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)", file=sys.stderr)


if __name__ == "__main__":
    main()
