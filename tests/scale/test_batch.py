"""Batch files: exactly the requests that are missing, the same ranking as online, and nothing paid twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k import Reranker
from rank_k.errors import InputError, RequestRejected
from rank_k.journal import Journal
from rank_k.models.batch import BatchModel
from rank_k.models.retry import RetryPolicy
from rank_k.scale.batch_files import RequestFiles, ingest_responses
from rank_k.scale.batch_server import BatchServer, ingest_finished_batches, submit_files
from tests.conftest import StartLoopback
from tests.fakes.batch_server import BatchFaults, FakeBatchServer, run_batch_server
from tests.fakes.model_server.marked_passages import make_dataset

pytestmark = pytest.mark.integration

DATA = make_dataset(6, 40)
QUERIES = {query.query_id: query for query in DATA.queries}
QUICK = RetryPolicy(first=0.01, longest=0.02)
OPTIONS: dict[str, Any] = {"strategy": "blocks", "depth": 40}


class BatchJob:
    """A run that is reranked by batch files."""

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.journal = folder / "job.sqlite"
        self.options = {**OPTIONS, **options}
        self.limits: dict[str, int] = {}
        self.rankings: dict[str, tuple[str, ...]] = {}
        self.unranked = 0

    def write_next(self) -> dict[Path, int]:
        """Write the next requests; return the files with the number of their requests."""
        model = BatchModel("oracle", context_length=40960)
        with Reranker(model, journal=self.journal, **self.options) as reranker:
            with RequestFiles(self.folder, reranker.journal, **self.limits) as files:
                model.add_request = files.add
                results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages))
            self.rankings = {result.query_id: result.ranking.doc_ids for result in results if result.finished}
            self.unranked = reranker.stats.unranked_windows
        return files.files

    def run(self, fake: FakeBatchServer) -> int:
        """Submit and ingest until every query is ranked; return the number of rounds of files."""

        async def submit() -> None:
            async with BatchServer(fake.url, retries=QUICK) as server:
                with closing(Journal(self.journal)) as journal:
                    await submit_files(journal, server, self.folder)
                    running = 1
                    while running:
                        _, running = await ingest_finished_batches(journal, server)

        for rounds in range(20):
            self.write_next()
            if len(self.rankings) == len(DATA.run):
                return rounds
            asyncio.run(submit())
        raise AssertionError("the job does not finish")


def online_rankings(loopback: StartLoopback, **options: Any) -> dict[str, tuple[str, ...]]:
    server = loopback(quirk="reasoning")
    with Reranker(
        "oracle", server=server.url, server_type="plain", context_length=40960, **OPTIONS | options
    ) as reranker:
        return {result.query_id: result.ranking.doc_ids for result in reranker.rerank(DATA.run, QUERIES, DATA.passages)}


def test_batch_gives_the_ranking_of_the_online_run_in_two_rounds(loopback: StartLoopback, tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    with run_batch_server(loopback(quirk="reasoning").url) as fake:
        assert job.run(fake) == 2
        assert job.rankings == online_rankings(loopback)
        assert max(fake.answered.values()) == 1


@pytest.mark.parametrize(
    "faults",
    [
        BatchFaults(expired=0.3, shuffled=True),
        BatchFaults(missing=0.3, repeated=0.3),
        BatchFaults(refused=0.3),
        BatchFaults(failing_uploads=2, polls_before_end=3),
        BatchFaults(lost_answers_of_create=1),
    ],
    ids=["expired", "missing-repeated", "refused", "upload", "lost-answer"],
)
def test_batch_survives_faults_without_paying_twice(
    loopback: StartLoopback, tmp_path: Path, faults: BatchFaults
) -> None:
    job = BatchJob(tmp_path)
    with run_batch_server(loopback(quirk="reasoning").url, faults) as fake:
        job.run(fake)
        assert job.rankings == online_rankings(loopback)
        assert job.unranked == 0
        assert max(fake.answered.values()) == 1


def test_batch_answers_truncated_reasoning_in_the_next_round(loopback: StartLoopback, tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    with run_batch_server(loopback(quirk="reasoning", cut=0.5).url) as fake:
        assert job.run(fake) > 2
        assert job.unranked == 0
        assert max(fake.answered.values()) == 1


def test_batch_with_samples_writes_all_first_samples_at_once(loopback: StartLoopback, tmp_path: Path) -> None:
    job = BatchJob(tmp_path, samples=3)
    assert sum(job.write_next().values()) == 2 * sum(BatchJob(tmp_path / "single").write_next().values())
    with run_batch_server(loopback(quirk="reasoning").url) as fake:
        job.run(fake)
        assert job.rankings == online_rankings(loopback, samples=3)


def test_next_writes_waiting_requests_only_once(tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    [path] = job.write_next()
    assert job.write_next() == {}
    path.unlink()  # nobody has its results
    assert list(job.write_next().values()) == [6 * 2]


def test_next_splits_files_at_the_limits(tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    job.limits = {"max_requests": 5}
    assert list(job.write_next().values()) == [5, 5, 2]
    whole = sorted(line for path in tmp_path.glob("requests-*.jsonl") for line in path.read_bytes().splitlines())
    other = BatchJob(tmp_path / "bytes")
    other.limits = {"max_bytes": 3 * max(map(len, whole))}
    paths = list(other.write_next())
    assert len(paths) > 3
    assert max(path.stat().st_size for path in paths) <= other.limits["max_bytes"]
    assert sorted(line for path in paths for line in path.read_bytes().splitlines()) == whole
    other = BatchJob(tmp_path / "small")
    other.limits = {"max_bytes": 100}
    with pytest.raises(InputError, match="but a file may have at most"):
        other.write_next()
    assert not list((tmp_path / "small").glob("requests-*"))


def test_submission_that_crashed_before_it_was_recorded_is_not_repeated(
    loopback: StartLoopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client dies after the server has started the batch, before the journal knows its id."""
    job = BatchJob(tmp_path)
    job.write_next()

    async def submit(crashes: bool) -> None:
        async with BatchServer(fake.url, retries=QUICK) as server:
            create = server.create

            async def create_and_crash(input_file_id: str) -> dict[str, Any]:
                await create(input_file_id)
                raise KeyboardInterrupt

            if crashes:
                monkeypatch.setattr(server, "create", create_and_crash)
            with closing(Journal(job.journal)) as journal:
                await submit_files(journal, server, job.folder)

    with run_batch_server(loopback(quirk="reasoning").url) as fake:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(submit(crashes=True))
        asyncio.run(submit(crashes=False))
        assert len(fake.batches) == 1
        job.run(fake)
        assert max(fake.answered.values()) == 1


def test_requests_that_are_refused_twice_leave_their_window_in_input_order(tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    refusal = {"status_code": 400, "body": {"error": {"message": "flagged by the content filter"}}}
    for _ in range(2):
        [path] = job.write_next()
        keys = {json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()}
        lines = [json.dumps({"custom_id": key, "response": refusal}).encode() for key in keys]
        with closing(Journal(job.journal)) as journal:
            assert ingest_responses(journal, lines) == Counter(refused=12)
    [path] = job.write_next()
    assert keys.isdisjoint(json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()), "the second round"
    assert job.unranked == 12


def test_failed_batch_is_an_error_that_names_the_reason(loopback: StartLoopback, tmp_path: Path) -> None:
    job = BatchJob(tmp_path)
    job.write_next()

    async def run() -> None:
        async with BatchServer(fake.url, retries=QUICK) as server:
            with closing(Journal(job.journal)) as journal:
                await submit_files(journal, server, job.folder)
                [batch] = fake.batches.values()
                batch |= {"status": "failed", "errors": {"data": [{"message": "token limit exceeded"}]}}
                fake.faults.polls_before_end = 99
                fake.batches[batch["id"]] = _Final(batch)
                await ingest_finished_batches(journal, server)

    with (
        run_batch_server(loopback(quirk="reasoning").url) as fake,
        pytest.raises(RequestRejected, match="token limit exceeded"),
    ):
        asyncio.run(run())


class _Final(dict[str, Any]):
    """A batch whose status no longer changes."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name != "status":
            super().__setitem__(name, value)


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b'{"custom_id": 1}', b"[" * 10_000]), max_size=8)
)
def test_ingest_accepts_any_bytes(lines: list[bytes]) -> None:
    with closing(Journal()) as journal:
        counts = ingest_responses(journal, lines)
    assert set(counts) <= {"malformed", "unknown"}


@pytest.mark.parametrize("body", [None, {}, {"choices": []}, {"choices": [{}]}, {"error": "x"}, "text", [1]])
def test_ingest_stores_nothing_that_is_not_an_answer(tmp_path: Path, body: Any) -> None:
    job = BatchJob(tmp_path)
    [path] = job.write_next()
    key = json.loads(path.read_bytes().splitlines()[0])["custom_id"]
    line = json.dumps({"custom_id": key, "response": {"status_code": 200, "body": body}}).encode()
    with closing(Journal(job.journal)) as journal:
        assert ingest_responses(journal, [line]) == Counter(malformed=1)
        assert journal.find_response(key) is None
    assert sum(job.write_next().values()) == 1, "the request is written again"


def test_batch_server_reports_a_server_without_a_batch_api(loopback: StartLoopback, tmp_path: Path) -> None:
    path = tmp_path / "requests-001.jsonl"
    path.write_bytes(b"{}\n")

    async def upload() -> None:
        async with BatchServer(loopback().url, retries=QUICK) as server:
            await server.upload(path)

    with pytest.raises(RequestRejected, match="/v1/files refused the request"):
        asyncio.run(upload())
