"""Query likelihood against a loopback llama.cpp server: whole runs, faults, resuming, and the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from rank_k.cli import main
from rank_k.errors import InputError, RequestRejected, RetriesExhausted
from rank_k.models.retry import RetryPolicy
from rank_k.reranker import Reranker
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.running import FakeModelServer
from tests.support.waiting import wait_until

FAST_RETRIES = RetryPolicy(first=0.001, longest=0.01)

DATA = make_dataset(3, 12, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
SERVER_OPTIONS = {"owned_by": "llamacpp", "capabilities": "spell logprobs"}


@pytest.fixture
def llamacpp(loopback: StartLoopback) -> Callable[..., FakeModelServer]:
    return lambda **plan: loopback(**{**SERVER_OPTIONS, **plan})


def make_reranker(server: FakeModelServer, **options: Any) -> Reranker:
    return Reranker(
        "oracle", server=server.url, method="likelihood", retries=FAST_RETRIES, **{"concurrency": 3, **options}
    )


def rank_all(reranker: Reranker) -> dict[str, list[str]]:
    results = reranker.rerank(DATA.run, QUERIES, DATA.passages)
    return {result.query_id: list(result.ranking.doc_ids) for result in results}


def completion_requests(server: FakeModelServer) -> list[RecordedRequest]:
    return [record for record in server.requests if record.path == "/v1/completions"]


PERFECT = {query_id: DATA.perfect(query_id) for query_id in QUERIES}


def test_reranker_likelihood_ranks_a_run_with_llama_cpp(llamacpp: Callable[..., FakeModelServer]) -> None:
    server = llamacpp(bodies=True)
    with make_reranker(server, passage_tokens=200) as reranker:
        assert rank_all(reranker) == PERFECT
        stats = reranker.stats
    assert (stats.windows, stats.calls, stats.unranked_windows, dict(stats.repairs)) == (3, 36, 0, {})
    records = completion_requests(server)
    assert len(records) == 36
    for body in (record.body for record in records):
        assert body["prompt"].startswith("Document: mark:")
        assert body["prompt"].endswith("\nSearch query:")
        assert (body["temperature"], body["logprobs"], body["stream"], body["cache_prompt"]) == (0.0, 1, True, False)
        assert body["max_tokens"] == body["grammar"].count("<[")
        assert body["lora"] == [{"id": 0, "scale": 0.0}], "an adapter is left out"


def test_reranker_likelihood_reports_the_likelihood_of_hits(llamacpp: Callable[..., FakeModelServer]) -> None:
    documents = [DATA.passages[candidate.doc_id].text for candidate in DATA.run["Q00"]]
    with make_reranker(llamacpp()) as reranker:
        hits = reranker.rank("which", documents)
        cached_hits = reranker.rank("which", documents)
    likelihoods = [hit.likelihood for hit in hits]
    assert all(likelihood is not None and likelihood < 0 for likelihood in likelihoods)
    assert likelihoods == sorted(likelihoods, key=lambda likelihood: -(likelihood or 0))
    assert [hit.score for hit in hits] == [1 / hit.rank for hit in hits]
    assert [hit.likelihood for hit in cached_hits] == likelihoods, "from the journal"
    assert hits.traces == ()


@pytest.mark.parametrize("fault", ["http_429", "http_500", "drop", "error_in_stream", "bad_json"])
def test_reranker_likelihood_retries_after_server_faults(llamacpp: Callable[..., FakeModelServer], fault: str) -> None:
    server = llamacpp(**{fault: (0.3, 2)}, retry_after="0")
    with make_reranker(server) as reranker:
        assert rank_all(reranker) == PERFECT
        assert not reranker.stats.unranked_windows
    assert any(record.fault == fault for record in completion_requests(server))


@pytest.mark.parametrize("fault", ["garbage", "cut"])
def test_reranker_likelihood_appends_passages_with_invalid_responses(
    llamacpp: Callable[..., FakeModelServer], fault: str
) -> None:
    with make_reranker(llamacpp(**{fault: 0.3})) as reranker:
        results = rank_all(reranker)
        missing = reranker.stats.repairs["missing"]
        assert not reranker.stats.unranked_windows
    assert 0 < missing < 36
    unscored_count = 0
    for query_id, doc_ids in results.items():
        assert sorted(doc_ids) == sorted(PERFECT[query_id])
        true_position = {doc_id: position for position, doc_id in enumerate(PERFECT[query_id])}
        scored_count = 1
        while scored_count < 12 and true_position[doc_ids[scored_count]] > true_position[doc_ids[scored_count - 1]]:
            scored_count += 1
        first_stage = [candidate.doc_id for candidate in DATA.run[query_id]]
        unscored_ids = [doc_id for doc_id in first_stage if doc_id in doc_ids[scored_count:]]
        assert doc_ids[scored_count:] == unscored_ids, "those without a score stand as the first stage had them"
        unscored_count += len(unscored_ids)
    assert unscored_count <= missing


def test_reranker_likelihood_keeps_the_run_without_probabilities(llamacpp: Callable[..., FakeModelServer]) -> None:
    with make_reranker(llamacpp(capabilities="spell")) as reranker:
        assert rank_all(reranker) == {q: [c.doc_id for c in run] for q, run in DATA.run.items()}
        assert reranker.stats.unranked_windows == 3


def test_reranker_likelihood_raises_when_token_grammars_are_rejected(llamacpp: Callable[..., FakeModelServer]) -> None:
    with make_reranker(llamacpp(capabilities="logprobs")) as reranker, pytest.raises(RequestRejected):
        rank_all(reranker)


@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_reranker_likelihood_rejects_unsupported_servers_before_any_call(loopback: StartLoopback, owner: str) -> None:
    server = loopback(owned_by=owner)
    with make_reranker(server) as reranker, pytest.raises(InputError, match="does not return the probability"):
        reranker.prepare()
    assert completion_requests(server) == []


def test_reranker_likelihood_stops_when_a_request_is_rejected(llamacpp: Callable[..., FakeModelServer]) -> None:
    server = llamacpp(refuse=403)
    with make_reranker(server, concurrency=1) as reranker, pytest.raises(RequestRejected, match="--api-key-env"):
        rank_all(reranker)
    assert len(completion_requests(server)) <= 4


def test_reranker_likelihood_stops_when_retries_are_exhausted(llamacpp: Callable[..., FakeModelServer]) -> None:
    with make_reranker(llamacpp(http_500=(1.0, 10**6))) as reranker, pytest.raises(RetriesExhausted):
        rank_all(reranker)


def test_rerank_likelihood_resumes_after_kill_without_repeating_calls(
    llamacpp: Callable[..., FakeModelServer], tmp_path: Path
) -> None:
    server = llamacpp(first_token=0.3)
    options = ["--server", server.url, "--model", "oracle", "--method", "likelihood", "--concurrency", "2", "--quiet"]
    command = [sys.executable, "-m", "rank_k.cli", "rerank", *write_dataset(DATA, tmp_path), *options]
    with subprocess.Popen(command) as child:
        wait_until(lambda: len(completion_requests(server)) >= 9 or child.poll() is not None, "the client asks nothing")
        assert child.poll() is None
        child.kill()
    with closing(sqlite3.connect(tmp_path / "out.trec.journal.sqlite")) as journal:
        (stored_calls,) = journal.execute("SELECT count(*) FROM calls WHERE purpose = 'likelihood'").fetchone()
    assert 7 <= stored_calls < 36
    server.change(first_token=0.002)
    server.forget()
    subprocess.run(command, check=True)
    assert len(completion_requests(server)) == 36 - stored_calls
    output_ids = [line.split()[2] for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert output_ids == [doc_id for ids in PERFECT.values() for doc_id in ids]


def test_rerank_command_reports_the_likelihood_method(
    llamacpp: Callable[..., FakeModelServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    server = llamacpp()
    options = [
        "--server",
        server.url,
        "--model",
        "oracle",
        "--report",
        str(tmp_path / "r.json"),
        "--method",
        "likelihood",
    ]
    command = ["rerank", *write_dataset(DATA, tmp_path), *options]
    assert main(command) == 0
    assert "method likelihood: passages were scored one by one" in capfd.readouterr().err
    output_ids = [line.split()[2] for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert output_ids == [doc_id for ids in PERFECT.values() for doc_id in ids]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["settings"]["method"] == "likelihood"
    assert main([*command, "--reasoning", "off"]) == 2
    assert "the method likelihood does not use the option reasoning" in capfd.readouterr().err


@pytest.mark.parametrize(("capabilities", "message"), [("spell logprobs", "supported (' blue'"), ("spell", "ignored")])
def test_doctor_probes_likelihoods(
    llamacpp: Callable[..., FakeModelServer], capfd: pytest.CaptureFixture[str], capabilities: str, message: str
) -> None:
    assert main(["doctor", "--server", llamacpp(capabilities=capabilities).url, "--probe"]) == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("likelihood")]
    assert message in line
