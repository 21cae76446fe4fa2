"""Merging shards: the same run as without shards, a journal that replays it, and errors that name the shard."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rank_k import Reranker
from rank_k.data.trec import RunWriter
from rank_k.errors import InputError, JournalError
from rank_k.journal import Journal
from rank_k.models.simulated import Noise, SimulatedModel
from rank_k.run_job import rerank_run
from rank_k.scale.merge import check_shard, merge_shards
from rank_k.scale.shards import Shard
from rank_k.types import Candidate
from tests.fakes.model_server.marked_passages import make_dataset

DATA = make_dataset(12, 30)
QUERIES = {query.query_id: query for query in DATA.queries}
SETTINGS = {"strategy": "sliding"}


class Passages:
    """A passage source without files."""

    def get(self, doc_id: str, query_id: str | None = None):  # type: ignore[no-untyped-def]
        return DATA.passages[doc_id]


def journal_of(run_file: Path) -> Path:
    return run_file.with_name(run_file.name + ".journal.sqlite")


def rerank(output: Path, shard: Shard | None = None, query_ids: tuple[str, ...] = tuple(DATA.run)) -> int:
    """Rerank the queries, or those of a shard, with a noisy simulated judge; return the number of calls sent."""
    run: list[tuple[str, tuple[Candidate, ...]]] = [
        (query_id, tuple(DATA.run[query_id])) for query_id in query_ids if shard is None or shard.contains(query_id)
    ]
    model = SimulatedModel(DATA.qrels, Noise(sd=0.5))
    with Reranker(model, journal=journal_of(output), window=10, stride=5) as reranker:
        if shard is not None:
            check_shard(reranker.journal, shard, reranker.journal.begin_run(SETTINGS), query_ids)
        with RunWriter(output) as writer:
            rankings = rerank_run(reranker, run, QUERIES, Passages(), query_count=len(run), settings=SETTINGS)
            for query_id, ranking in rankings:
                writer.write_query(query_id, ranking.doc_ids)
        return reranker.stats.new_calls


def merge(output: Path, parts: list[Path]) -> None:
    merge_shards(output, journal_of(output), parts, [journal_of(part) for part in parts])


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The outputs of five shards."""
    shards = [Shard(number, 5) for number in range(1, 6)]
    outputs = [shard.path(tmp_path / "reranked.trec") for shard in shards]
    for shard, output in zip(shards, outputs, strict=True):
        rerank(output, shard)
    return outputs


def table_rows(journal: Path) -> Iterator[str]:
    """Yield the rows of all tables but for the times."""
    with closing(sqlite3.connect(journal)) as db:
        for table, columns in (
            ("calls", "key, model, purpose, doc_ids, request, response_text"),
            ("runs", "run, settings"),
            ("queries", "run, position, query_id, text"),
            ("windows", "query_id, round * 1000 + window, *"),
            ("rounds", "position * 1000 + round, *"),
            ("rankings", "*"),
        ):
            yield from (f"{table} {row}" for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2"))


def test_merge_writes_the_run_and_the_journal_of_the_unsharded_run(tmp_path: Path, parts: list[Path]) -> None:
    whole, merged = tmp_path / "whole.trec", tmp_path / "merged.trec"
    assert rerank(whole) > 0
    merge(merged, parts[::-1])
    assert merged.read_bytes() == whole.read_bytes()
    assert list(table_rows(journal_of(merged))) == list(table_rows(journal_of(whole)))


def test_merged_journal_replays_the_run_without_calls(tmp_path: Path, parts: list[Path]) -> None:
    merged = tmp_path / "merged.trec"
    merge(merged, parts)
    before = merged.read_bytes()
    assert rerank(merged) == 0
    assert merged.read_bytes() == before


def test_merge_again_changes_nothing(tmp_path: Path, parts: list[Path]) -> None:
    merged = tmp_path / "merged.trec"
    contents = []
    for _ in range(2):
        merge(merged, parts)
        contents.append((merged.read_bytes(), list(table_rows(journal_of(merged)))))
    assert contents[0] == contents[1]


def test_merge_only_reads_the_parts(tmp_path: Path, parts: list[Path]) -> None:
    def digests() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for part in parts for path in (part, journal_of(part))]

    before = digests()
    merge(tmp_path / "merged.trec", parts)
    assert digests() == before


def test_merge_accepts_shards_without_queries(tmp_path: Path) -> None:
    query_ids = tuple(DATA.run)[:1]
    parts = [Shard(number, 2).path(tmp_path / "part.trec") for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        rerank(part, Shard(number, 2), query_ids)
    assert sorted(part.stat().st_size > 0 for part in parts) == [False, True]
    merge(tmp_path / "merged.trec", parts)
    rerank(tmp_path / "whole.trec", query_ids=query_ids)
    assert (tmp_path / "merged.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()


def test_merge_names_missing_and_repeated_shards(tmp_path: Path, parts: list[Path]) -> None:
    with pytest.raises(InputError, match=r"shards are missing: 2/5, 4/5"):
        merge(tmp_path / "merged.trec", [parts[0], parts[2], parts[4]])
    with pytest.raises(InputError, match=r"1of5.trec and .*1of5.trec are both shard 1"):
        merge(tmp_path / "merged.trec", [*parts, parts[0]])
    parts[3].unlink()
    with pytest.raises(InputError, match=r"4of5.trec does not exist; run that shard"):
        merge(tmp_path / "merged.trec", parts)
    assert not (tmp_path / "merged.trec").exists()


def test_merge_rejects_shards_of_other_divisions_runs_and_options(tmp_path: Path, parts: list[Path]) -> None:
    other_count = tmp_path / "other-count.trec"
    rerank(other_count, Shard(1, 4))
    with pytest.raises(InputError, match=r"is one of 4 shards, but .* is one of 5"):
        merge(tmp_path / "merged.trec", [*parts[:4], other_count])
    other_queries = tmp_path / "other-queries.trec"
    rerank(other_queries, Shard(5, 5), tuple(DATA.run)[:6])
    with pytest.raises(InputError, match="different runs, or were made with different options"):
        merge(tmp_path / "merged.trec", [*parts[:4], other_queries])
    rerank(tmp_path / "whole.trec")
    with pytest.raises(InputError, match="not the journal of a shard"):
        merge(tmp_path / "merged.trec", [*parts[:4], tmp_path / "whole.trec"])


@pytest.mark.parametrize("change", ["drop", "repeat", "swap"])
def test_merge_rejects_a_run_with_other_queries_than_its_shard(tmp_path: Path, parts: list[Path], change: str) -> None:
    part = max(parts, key=lambda path: path.stat().st_size)
    lines = part.read_bytes().splitlines(keepends=True)
    first, rest = lines[:30], lines[30:]
    part.write_bytes(b"".join({"drop": rest, "repeat": [*lines, *first], "swap": [*rest, *first]}[change]))
    with pytest.raises(InputError, match=rf"{part.name} does not have the queries of shard"):
        merge(tmp_path / "merged.trec", parts)
    assert not (tmp_path / "merged.trec").exists()


def test_check_shard_refuses_the_journal_of_another_shard(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "j.sqlite")) as journal:
        run = journal.begin_run(SETTINGS)
        check_shard(journal, Shard(1, 2), run, ["a", "b"])
        check_shard(journal, Shard(1, 2), run, ["a", "b"])
        with pytest.raises(JournalError, match="belongs to shard 1/2, not to 2/2"):
            check_shard(journal, Shard(2, 2), run, ["a", "b"])
