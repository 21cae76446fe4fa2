"""`rank-k batch`: files by hand, a batch API, and errors."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.cli.helpers import BASE, BEST_RANKING, RankK, read_ranking
from tests.conftest import StartLoopback
from tests.fakes.batch_server import BatchFaults, run_batch_server

pytestmark = pytest.mark.integration

JOB = ("--output", "out.trec", "--folder", "requests", "--model", "oracle")
RUN = BASE[1:]


def answer_by_hand(model_url: str, requests: Path, results: Path) -> None:
    """Do what `vllm run-batch` does."""
    lines = []
    for line in requests.read_text().splitlines():
        request = json.loads(line)
        connection = HTTPConnection(model_url.split("/")[2])
        connection.request(request["method"], request["url"], json.dumps(request["body"]))
        body = json.loads(connection.getresponse().read())
        connection.close()
        lines.append(json.dumps({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}}))
    results.write_text("\n".join(reversed(lines)) + "\n")


def test_batch_files_by_hand(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback(quirk="reasoning")
    result = rank_k("batch", "next", *RUN, *JOB, code=0)
    assert result.lines == ["requests/requests-001.jsonl: 3 requests"]
    assert not Path("out.trec").exists()
    result = rank_k("batch", "next", *RUN, *JOB, code=0)
    assert result.lines == [
        "3 requests in earlier files without a response (rank-k batch status out.trec.journal.sqlite)"
    ]
    assert "requests-001.jsonl" in rank_k("batch", "status", "out.trec.journal.sqlite", code=0).out
    answer_by_hand(server.url, Path("requests/requests-001.jsonl"), Path("results.jsonl"))
    for expected in ("3 responses stored", "3 repeated responses"):
        result = rank_k("batch", "ingest", "out.trec.journal.sqlite", "results.jsonl", code=0)
        assert result.lines == [expected]
    result = rank_k("batch", "next", *RUN, *JOB, code=0)
    assert result.lines == ["the run is complete: out.trec"]
    assert read_ranking("out.trec") == BEST_RANKING
    calls = len(server.calls)
    online = ("--server", server.url, "--model", "oracle", "--server-type", "plain")
    journal = ("--journal", "out.trec.journal.sqlite")
    rank_k("rerank", *RUN, "--output", "online.trec", *online, *journal, code=0)
    assert len(server.calls) == calls, "the same requests, so that the journal has all responses"
    assert Path("online.trec").read_bytes() == Path("out.trec").read_bytes()


def test_batch_submit_runs_until_the_run_is_complete(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    with run_batch_server(loopback(quirk="reasoning").url, BatchFaults(expired=0.4, failing_uploads=1)) as fake:
        command = ("batch", "submit", *RUN, *JOB, "--server", fake.url, "--poll-seconds", "0.05")
        result = rank_k(*command, "--api-key-env", "KEY", code=2)
        assert "KEY" in result.err
        result = rank_k(*command, code=0)
        assert result.lines[-1].startswith("the run is complete after ")
        assert read_ranking("out.trec") == BEST_RANKING
        assert max(fake.answered.values()) == 1
        answered = sum(fake.answered.values())
        rank_k(*command, code=0)
        assert sum(fake.answered.values()) == answered
    assert "3" in rank_k("journal", "cost", "out.trec.journal.sqlite", code=0).out


def test_batch_ends_when_the_server_answers_nothing(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    with run_batch_server(loopback(quirk="reasoning").url, BatchFaults(missing=1.0)) as fake:
        command = ("batch", "submit", *RUN, *JOB, "--server", fake.url, "--poll-seconds", "0.05")
        assert "returned no response to 3 requests" in rank_k(*command).err


def test_batch_reports_mistakes_in_one_line(collection_folder: Path, rank_k: RankK) -> None:
    Path("results.jsonl").write_text("{}\n")
    assert "no journal" in rank_k("batch", "ingest", "nothing.sqlite", "results.jsonl", code=2).err
    assert "batch next: " in rank_k("batch", "next", *RUN, *JOB, "--max-bytes", "10", code=2).err
    assert "batch" in rank_k("batch", code=2).err
