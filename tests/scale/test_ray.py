"""Ray: a local cluster of three nodes reranks as one process does, also when a node and an actor die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rank_k import Reranker
from rank_k.errors import InputError
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.support.waiting import wait_until

ray = pytest.importorskip("ray", reason="pip install 'rank-k[ray]'")
pytest.importorskip("ray.data", reason="pip install 'rank-k[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from rank_k.scale.ray import dataset_of_run, rerank  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("default")]

DATA = make_dataset(24, 30, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}


class Passages:
    def get(self, doc_id: str, query_id: str | None = None) -> Any:
        return DATA.passages[doc_id]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
    for _ in range(2):
        nodes.add_node(num_cpus=2, object_store_memory=200_000_000)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def expected_rankings(url: str) -> dict[str, tuple[str, ...]]:
    with Reranker("oracle", server=url, strategy="blocks") as reranker:
        results = reranker.rerank(DATA.run, QUERIES, DATA.passages)
        return {result.query_id: result.ranking.doc_ids for result in results}


def rankings_of(dataset: Any) -> dict[str, tuple[str, ...]]:
    rows = dataset.take_all()
    assert [row["error"] for row in rows] == [""] * len(rows)
    return {row["query_id"]: tuple(row["doc_ids"]) for row in rows}


def test_ray_reranks_as_one_process_does(cluster: Any, loopback: StartLoopback, tmp_path: Path) -> None:
    server = loopback(child=True)
    dataset = dataset_of_run(DATA.run.items(), QUERIES, Passages(), 30, rows_per_block=6)
    ranked = rerank(
        dataset, "oracle", server=server.url, strategy="blocks", journals=tmp_path, actors=2, queries_at_a_time=6
    )
    assert rankings_of(ranked) == expected_rankings(server.url)
    calls = len(server.calls)
    again = rerank(
        dataset, "oracle", server=server.url, strategy="blocks", journals=tmp_path, actors=1, queries_at_a_time=12
    )
    assert rankings_of(again) == expected_rankings(server.url)
    assert len(server.calls) == calls + calls // 2, "only the reference run, without a journal, sends calls again"


def test_ray_finishes_when_a_node_and_an_actor_die(cluster: Any, loopback: StartLoopback, tmp_path: Path) -> None:
    server = loopback(child=True, first_token=0.3)
    dataset = dataset_of_run(DATA.run.items(), QUERIES, Passages(), 30, rows_per_block=3)
    ranked = rerank(
        dataset,
        "oracle",
        server=server.url,
        strategy="blocks",
        journals=tmp_path,
        actors=2,
        queries_at_a_time=3,
        concurrency=2,
    )
    extra_node = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)

    rows: list[Any] = []
    worker = threading.Thread(target=lambda: rows.extend(ranked.take_all()))
    worker.start()
    wait_until(lambda: len(server.calls) >= 6, "no call arrives")
    cluster.remove_node(extra_node)
    victim = _actor_pids()[0]
    in_flight = 2 * 2
    os.kill(victim, signal.SIGKILL)
    worker.join(300)
    assert {row["query_id"]: tuple(row["doc_ids"]) for row in rows} == expected_rankings(server.url)
    windows = [call.window for call in server.calls if not call.cancelled]
    reference = len(set(windows))
    assert len(windows) <= 2 * reference + in_flight, "at most the calls in flight are repeated"


def _actor_pids() -> list[int]:
    """Return the processes of this test's actors. Ray names a process after the actor's class."""
    ancestors = {process.pid for process in psutil.Process().parents()}
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in ancestors
        and "ray::" in (name := " ".join(process.info["cmdline"] or ()))
        and "RerankActor" in name
    ]


def test_ray_reports_errors_in_a_column(cluster: Any, loopback: StartLoopback, tmp_path: Path) -> None:
    server = loopback(child=True, max_model_len=2048)
    rows = [
        {"query_id": "good", "query": "q", "doc_ids": ["a", "b"], "texts": ["text a", "text b"]},
        {"query_id": "long", "query": "why " * 4000, "doc_ids": ["a", "b"], "texts": ["text a", "text b"]},
        {"query_id": "odd", "query": "q", "doc_ids": ["a"], "texts": ["text a", "text b"]},
    ]
    ranked = rerank(ray.data.from_items(rows), "oracle", server=server.url, journals=tmp_path, actors=1)
    errors = {row["query_id"]: row["error"] for row in ranked.take_all()}
    assert errors["good"] == ""
    assert "why why" in errors["long"]
    assert "1 doc_ids and 2 texts" in errors["odd"]


def test_ray_rejects_datasets_without_the_columns(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column doc_ids"):
        rerank(
            ray.data.from_items([{"query_id": "a", "query": "q"}]), "m", server="http://127.0.0.1:9", journals=tmp_path
        )
