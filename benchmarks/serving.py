"""What the served API costs: processor time of the server per request, what a request takes in the journal, and
whether memory stays flat.

    python -m benchmarks.serving [--requests 400] [--runs 3] [--soak 20000]

The command is started as users start it, in a process of its own, before a model on loopback that answers at once;
20 passages a request, one window each, no two requests alike. 16 connections ask one request after another.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import psutil
from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.running import run_in_process
from tests.support.serving import ServerProcess, start_server

CONNECTIONS = 16
INSTANT_PLAN = {"first_token": 0.0, "per_token": 0.00002, "flush": 0.05}
FILLER_TEXT = "what the passage says is of no weight here but that it is as long as passages are " * 4

_query_number = count()


@contextmanager
def started_server(*more: str) -> Iterator[ServerProcess]:
    options = ("--queue", "1000", "--per-client", "1000", *more)
    with (
        run_in_process(FaultPlan().changed(INSTANT_PLAN)) as model,
        start_server("--server", model.url, *options) as running,
    ):
        yield running


def request_body() -> bytes:
    """No two are alike; the best passage stands last."""
    n = next(_query_number)
    documents = [f"mark:R{n}-D{i}-G{i} {FILLER_TEXT}" for i in range(20)]
    return json.dumps({"query": f"question {n}", "documents": documents}).encode()


def send_requests(url: str, requests: int) -> None:
    """Ask so often over `CONNECTIONS` connections. Ends the program at the first answer that is not right."""
    address = urlsplit(url).netloc
    remaining = iter(range(requests))
    lock = threading.Lock()
    wrong_responses: list[object] = []

    def run_connection() -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        while not wrong_responses:
            with lock:
                if next(remaining, None) is None:
                    break
                body = request_body()
            connection.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
            response = json.load(connection.getresponse())
            if [result["index"] for result in response.get("results", ())] != list(range(19, -1, -1)):
                wrong_responses.append(response)
        connection.close()

    threads = [threading.Thread(target=run_connection) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong_responses:
        raise SystemExit(f"a wrong answer: {wrong_responses[0]}")


def cpu_per_request(requests: int) -> float:
    """Milliseconds, after some requests to warm up."""
    with started_server() as running:
        process = psutil.Process(running.process.pid)
        send_requests(running.served.url, 50)
        times_before = process.cpu_times()
        send_requests(running.served.url, requests)
        times_after = process.cpu_times()
    return 1000 * (times_after.user + times_after.system - times_before.user - times_before.system) / requests


def journal_bytes(requests: int) -> float:
    """Per request, in a file that keeps them all."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "served.sqlite")
        with started_server("--journal", str(path)) as running:
            send_requests(running.served.url, requests)
        return path.stat().st_size / requests


def soak(requests: int) -> Iterator[tuple[int, float]]:
    """(requests so far, MB resident) at ten points."""
    with started_server() as running:
        process = psutil.Process(running.process.pid)
        for step in range(1, 11):
            send_requests(running.served.url, requests // 10)
            yield step * (requests // 10), process.memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--soak", type=int, default=20_000)
    args = parser.parse_args()
    costs = []
    for _ in range(args.runs):
        costs.append(cpu_per_request(args.requests))
        print(f"{costs[-1]:.2f} ms of processor time a request", flush=True)
    if costs:
        print(f"median of {args.runs}: {statistics.median(costs):.2f} ms")
    if args.requests:
        print(f"{journal_bytes(args.requests) / 1000:.1f} kB of journal a request")
    if args.soak:
        print("requests  resident")
        for request_count, megabytes in soak(args.soak):
            print(f"{request_count:>8}  {megabytes:>5.1f} MB", flush=True)


if __name__ == "__main__":
    main()
