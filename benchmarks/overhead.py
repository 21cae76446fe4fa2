"""What the client itself costs: wall time beside a zero-overhead client's, processor time and memory per call.

    python -m benchmarks.overhead [--concurrency 16 64] [--flush 0.05] [--rounds 1] [--source DIR/src ...]

40 queries x 100 passages, window 20, stride 10, 360 streaming calls against a server on loopback that takes
0.2 s + 2 ms per token. The server runs in a process of its own, and so does the client, as the command a user
types: its processor time and memory are all of that process, start-up and files included. The bound is the
event simulation of `benchmarks.ideal`: same latencies, same scheduling rule, no overhead.

The row "bare aiohttp" is `benchmarks.bare_client`, which sends requests of the same size to the same kind of server
and only reads the responses. The column "to bare" is the processor time per call as a ratio to that row. `--source`
measures the `rank-k` command of other checkouts as well, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import Dataset, make_dataset
from tests.fakes.model_server.running import run_in_process

from benchmarks.ideal import simulate_dataset
from rank_k.strategies.sliding import window_spans
from rank_k.window.prompt import default_template


@dataclass(frozen=True)
class Cost:
    client: str
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


def measure(
    concurrency: int,
    flush: float = 0.05,
    queries: int = 40,
    *options: str,
    source: str = "src",
    server_count: int = 1,
    **plan: Any,
) -> Cost:
    """Run the command of the package in `source` once, against fresh servers and a fresh journal."""
    dataset = make_dataset(queries, 100)
    strategy = options[options.index("--strategy") + 1] if "--strategy" in options else "sliding"
    bound = simulate_dataset(dataset, concurrency, strategy=strategy).makespan
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server_plan = FaultPlan().changed({"flush": flush, **plan})
        servers = [stack.enter_context(run_in_process(server_plan)) for _ in range(server_count)]
        command = [sys.executable, "-m", "rank_k.cli", "rerank", "--quiet", *write_dataset(dataset, Path(folder))]
        command += ["--server", ",".join(server.url for server in servers), "--model", "oracle"]
        usage = _run([*command, "--concurrency", str(concurrency), *options], source)
        calls = [call for server in servers for call in server.calls]
        ranked = _read_ranking(Path(folder) / "out.trec")
    perfect = all(
        _grades(dataset, query_id, ranked[query_id]) == _grades(dataset, query_id, dataset.perfect(query_id))
        for query_id in ranked
    )
    return _cost(f"rank-k ({source})", concurrency, calls, usage, bound, perfect)


def measure_bare_client(concurrency: int, flush: float = 0.05, queries: int = 40) -> Cost:
    """Send one request for each window of the sliding strategy with `benchmarks.bare_client`."""
    dataset = make_dataset(queries, 100)
    with tempfile.TemporaryDirectory() as folder, run_in_process(FaultPlan().changed({"flush": flush})) as server:
        file = Path(folder) / "requests.jsonl"
        file.write_text("".join(_requests(dataset)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.bare_client", server.url, str(file), str(concurrency)]
        usage = _run(command, ".")
        return _cost("bare aiohttp", concurrency, server.calls, usage, float("nan"), True)


def _requests(dataset: Dataset) -> Iterator[str]:
    template = default_template()
    for query in dataset.queries:
        doc_ids = [candidate.doc_id for candidate in dataset.run[query.query_id]]
        for start, end in window_spans(len(doc_ids), 20, 10):
            messages = template.messages(query.text, [dataset.passages[doc_id].text for doc_id in doc_ids[start:end]])
            body = {"model": "oracle", "messages": [message._asdict() for message in messages], "max_tokens": 8000}
            yield json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}) + "\n"


def _run(command: Sequence[str], source: str) -> resource.struct_rusage:
    """Run the command to its end; returns what the process used."""
    client = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": source})
    _, status, usage = os.wait4(client.pid, 0)
    client.returncode = os.waitstatus_to_exitcode(status)
    if client.returncode:
        raise SystemExit(f"the client failed: {client.returncode}")
    return usage


def _cost(
    client: str, concurrency: int, calls: Sequence[Any], usage: resource.struct_rusage, bound: float, perfect: bool
) -> Cost:
    return Cost(
        client,
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
    parser.add_argument(
        "--source", nargs="+", default=["src"], metavar="DIR", help="folders with the package to measure"
    )
    args = parser.parse_args()
    print(f"{'client':<40}concurrency  calls  first to last    bound   ratio  CPU/call  to bare    peak  ranking")
    for concurrency in args.concurrency * args.rounds:
        bare = measure_bare_client(concurrency, args.flush)
        for cost in (bare, *(measure(concurrency, args.flush, source=source) for source in args.source)):
            print(
                f"{cost.client:<40}{cost.concurrency:>11}  {cost.calls:>5}  {cost.first_to_last:>11.2f} s"
                f"  {cost.bound:>5.2f} s  {cost.ratio:.4f}  {cost.cpu_ms:>5.2f} ms  {cost.cpu_ms / bare.cpu_ms:>7.3f}"
                f"  {cost.peak_mb:>3.0f} MB  {'perfect' if cost.perfect else 'NOT PERFECT'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
