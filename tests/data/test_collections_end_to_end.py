"""Collections of every kind through the commands, and long documents made of real abstracts."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rank_k.data.collections.beir import load_beir
from rank_k.data.long_documents import PassageSplit, SplitRun, document_id, passage_id
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import SimulatedModel
from rank_k.reranker import Reranker
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Candidate, Passage, Ranking
from tests.paths import SHARED
from tests.support.commands import run_command

pytestmark = pytest.mark.integration


RankK = Callable[..., str]


@pytest.fixture
def rank_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RankK:
    """`rank_k("rerank", ..., code=0)` runs the command in a temporary folder and returns both output streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: str | Path, code: int = 0) -> str:
        result = run_command(capfd, *arguments, code=code)
        return result.out + result.err

    return run


def read_ranked_ids(run: str | Path) -> dict[str, list[str]]:
    return {query_id: [candidate.doc_id for candidate in candidates] for query_id, candidates in read_run(run).items()}


# BRIGHT

ORDER = ["forbidden", "plain", "gold", "tail"]


@pytest.fixture
def bright_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "data" / "BRIGHT"
    texts = {"forbidden": "sky sky sky", "plain": "sky sky", "gold": "sky", "tail": "sky and sea", "other": "sea"}
    parts: dict[str, list[dict[str, Any]]] = {
        "documents": [{"id": doc_id, "content": text} for doc_id, text in texts.items()],
        "examples": [
            {"id": "0", "query": "sky", "excluded_ids": ["forbidden"], "gold_ids": ["gold"]},
            {"id": "1", "query": "sea", "excluded_ids": ["N/A"], "gold_ids": ["other"]},
        ],
    }
    for part, rows in parts.items():
        (root / part).mkdir(parents=True)
        (root / part / "biology.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("RANK_K_DATA", str(tmp_path / "data"))
    return "bright:biology"


def test_bright_through_retrieve_rerank_and_evaluate(bright_name: str, rank_k: RankK) -> None:
    rank_k("retrieve", "--dataset", bright_name, "--output", "bm25.trec", "--depth", "3")
    assert read_ranked_ids("bm25.trec")["0"] == ["plain", "gold", "tail"], (
        "as many as asked for, the excluded not among them"
    )
    lines = [f"0 Q0 {doc_id} 0 {-position} t" for position, doc_id in enumerate(ORDER)] + ["1 Q0 tail 0 1 t"]
    Path("run.trec").write_text("\n".join(lines) + "\n")
    Path("qrels").write_text("0 0 gold 1\n0 0 forbidden 9\n")
    output = rank_k(
        *("rerank", "--dataset", bright_name, "--run", "run.trec", "--output", "out.trec"),
        *("--simulate", "qrels", "--noise", "none", "--depth", "2", "--report", "report.json"),
    )
    assert read_ranked_ids("out.trec") == {"0": ["gold", "plain", "tail"], "1": ["tail"]}
    assert "1 candidate left out of the run, because the data set excludes" in output
    assert json.loads(Path("report.json").read_text())["repairs"]["excluded"] == 1
    output = rank_k("evaluate", "--dataset", bright_name, "run.trec", "out.trec", "--measures", "RR@10")
    assert "run.trec: 1 document left out, because bright:biology excludes" in output
    means = output.partition("\n\n")[0]  # what the run cost follows
    assert [line.split()[1] for line in means.splitlines() if line.startswith(("run.trec ", "out.trec "))] == [
        "0.2500",  # second of those allowed, and nothing for the other query
        "0.5000",
    ]


def test_retrieve_reports_missing_bright_in_one_line(rank_k: RankK) -> None:
    output = rank_k("retrieve", "--dataset", "bright:pony", "--output", "out.trec", code=2)
    assert "BRIGHT's pony is not on this machine" in output
    assert "get documents/pony-*.parquet and examples/pony-*.parquet" in output


# ir_datasets


def test_rerank_uses_scored_documents_of_ir_datasets(
    tmp_path: Path, rank_k: RankK, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir_datasets = pytest.importorskip("ir_datasets", reason="needs the extra [data]")
    (tmp_path / "docs").write_text("d1\tsky sky\nd2\tsky\nd3\tsea\n")
    (tmp_path / "queries").write_text("1\tsky\n")
    (tmp_path / "qrels").write_text("1 0 d2 1\n")
    (tmp_path / "scored").write_text("1 Q0 d1 0 3 x\n1 Q0 d3 1 2 x\n1 Q0 d2 2 1 x\n")
    downloads = {
        name: ir_datasets.util.LocalDownload(tmp_path / name) for name in ("docs", "queries", "qrels", "scored")
    }
    parts = (
        ir_datasets.formats.TsvDocs(downloads["docs"]),
        ir_datasets.formats.TsvQueries(downloads["queries"]),
        ir_datasets.formats.TrecQrels(downloads["qrels"], {}),
        ir_datasets.formats.TrecScoredDocs(downloads["scored"]),
    )
    monkeypatch.setitem(ir_datasets.registry._registered, "ours/test", ir_datasets.Dataset(*parts))
    rank_k("rerank", "--dataset", "ours/test", "--output", "out.trec", "--simulate", "qrels", "--noise", "none")
    assert read_ranked_ids("out.trec") == {"1": ["d2", "d1", "d3"]}
    assert "1.0000" in rank_k("evaluate", "--dataset", "ours/test", "out.trec", "--measures", "RR@10")
    rank_k("retrieve", "--dataset", "ours/test", "--output", "bm25.trec")
    assert read_ranked_ids("bm25.trec") == {"1": ["d1", "d2"]}
    monkeypatch.setitem(ir_datasets.registry._registered, "ours/bare", ir_datasets.Dataset(*parts[:2]))
    assert "--run is missing" in rank_k("rerank", "--dataset", "ours/bare", "--output", "x", code=2)
    assert "--qrels is missing (ours/bare has none)" in rank_k("evaluate", "--dataset", "ours/bare", "out.trec", code=2)


def test_retrieve_reports_missing_ir_dataset_in_one_line(rank_k: RankK, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ir_datasets", reason="needs the extra [data]")
    monkeypatch.setenv("IR_DATASETS_DL_TRIES", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "cannot be downloaded" in rank_k("retrieve", "--dataset", "vaswani", "--output", "out.trec", code=2)
    assert "there is no dataset" in rank_k("retrieve", "--dataset", "vaswani2", "--output", "out.trec", code=2)


def test_rerank_suggests_run_of_the_collection(tmp_path: Path, rank_k: RankK) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "run.bm25.trec"):
        (tmp_path / name).touch()
    output = rank_k("rerank", "--dataset", f"beir:{tmp_path}", "--output", "out.trec", code=2)
    assert f"give --run FILE, such as {tmp_path / 'run.bm25.trec'}" in output


# Big corpora


def test_rerank_indexes_large_corpus_once(tmp_path: Path, rank_k: RankK) -> None:
    padding = random.Random(7).randbytes(1200).hex()
    with (tmp_path / "corpus.tsv").open("w") as file:
        file.writelines(f"d{i}\tpassage {i} {padding}\n" for i in range(4000))
    (tmp_path / "queries.tsv").write_text("1\tsky\n")
    (tmp_path / "run").write_text("".join(f"1 Q0 d{i} 0 {-i} t\n" for i in range(0, 4000, 100)))
    (tmp_path / "qrels").write_text("1 0 d3900 1\n")
    index_file, modification_times = tmp_path / "corpus.tsv.index.sqlite", []
    for output in ("one", "two"):
        files = ("--run", "run", "--queries", "queries.tsv", "--documents", "corpus.tsv")
        rank_k("rerank", *files, "--output", output, "--simulate", "qrels", "--noise", "none")
        modification_times.append(index_file.stat().st_mtime_ns)
        assert read_ranked_ids(output)["1"][0] == "d3900"
    assert modification_times[0] == modification_times[1]


# Long documents


def test_rerank_rejects_inconsistent_maxp_options(rank_k: RankK) -> None:
    base = ("rerank", "--run", "r", "--queries", "q", "--documents", "d", "--output", "o")
    assert "maxp_overlap needs maxp_tokens" in rank_k(*base, "--maxp-overlap", "5", code=2)
    assert "maxp_passages needs maxp_tokens" in rank_k(*base, "--maxp-passages", "5", code=2)
    assert "truncated to passage_tokens 450" in rank_k(*base, "--maxp-tokens", "500", code=2)
    assert "at most half, 50" in rank_k(*base, "--maxp-tokens", "100", "--maxp-overlap", "51", code=2)


ABSTRACTS_PER_DOCUMENT = 5


@pytest.fixture(scope="module")
def long_documents() -> dict[str, list[Passage]]:
    """Documents of five cranfield abstracts each: `document id -> its abstracts`."""
    if not SHARED.is_dir():
        pytest.skip("needs the collections in ../shared beside the checkout")
    abstracts = [passage for passage in read_passages(SHARED / "cranfield" / "corpus.jsonl.gz") if passage.text]
    random.Random(zlib.crc32(b"cranfield")).shuffle(abstracts)
    return {
        f"doc#{i}": abstracts[i : i + ABSTRACTS_PER_DOCUMENT] for i in range(0, len(abstracts), ABSTRACTS_PER_DOCUMENT)
    }


def join_abstracts(abstracts: list[Passage]) -> str:
    return "\n".join(abstract.text for abstract in abstracts)


def grade_passages(
    long_documents: dict[str, list[Passage]], abstract_grades: dict[str, int], split: PassageSplit
) -> dict[str, int]:
    """Grades of passages: the highest of an abstract that has half of its text in the passage, or all there is."""
    grades: dict[str, int] = {}
    for doc_id, abstracts in long_documents.items():
        if not any(abstract.doc_id in abstract_grades for abstract in abstracts):
            continue
        for number, (start, end) in enumerate(split.spans(join_abstracts(abstracts))):
            offset = best_grade = 0
            for abstract in abstracts:
                overlap = min(end, offset + len(abstract.text)) - max(start, offset)
                if 2 * overlap >= min(len(abstract.text), end - start):
                    best_grade = max(best_grade, abstract_grades.get(abstract.doc_id, 0))
                offset += len(abstract.text) + 1
            grades[passage_id(doc_id, number)] = best_grade
    return grades


def test_split_run_ranks_documents_by_best_passage(long_documents: dict[str, list[Passage]]) -> None:
    files = load_beir(str(SHARED / "cranfield"))
    assert files.qrels is not None
    queries = {query_id: query for query_id, query in read_queries(files.queries).items() if int(query_id) <= 15}
    documents = {doc_id: Passage(doc_id, join_abstracts(abstracts)) for doc_id, abstracts in long_documents.items()}
    run = dict(retrieve(queries.values(), documents.values(), depth=30))
    split, depth = PassageSplit(250, 50), 20
    qrels = read_qrels(files.qrels)
    grades = {query_id: grade_passages(long_documents, qrels[query_id], split) for query_id in queries}

    class DictStore:
        def get(self, doc_id: str, query_id: str | None = None) -> Passage:
            return documents[doc_id]

    passages = SplitRun(run.items(), DictStore(), split, depth)
    passage_rankings: dict[str, Ranking] = {}
    with Reranker(SimulatedModel(grades), window=80, stride=20, depth=10_000, passage_tokens=300) as reranker:
        for result in reranker.rerank(passages, queries, passages):
            passage_rankings[result.query_id] = result.ranking
    document_rankings = dict(passages.document_rankings(passage_rankings.items()))

    assert max(len(ranking.doc_ids) for ranking in passage_rankings.values()) > 4 * depth
    document_grades: dict[str, dict[str, int]] = {}
    for query_id, ranking in document_rankings.items():
        first_stage_ids = [candidate.doc_id for candidate in run[query_id]]
        assert sorted(ranking.doc_ids) == sorted(first_stage_ids)
        assert list(ranking.doc_ids[depth:]) == first_stage_ids[depth:], "the tail is kept"
        positions = {passage: position for position, passage in enumerate(passage_rankings[query_id].doc_ids)}
        best_positions: dict[str, int] = {}
        for passage, position in positions.items():
            best_positions[document_id(passage)] = min(position, best_positions.get(document_id(passage), position))
        assert [best_positions[doc_id] for doc_id in ranking.doc_ids[:depth]] == sorted(best_positions.values())
        document_grades[query_id] = {}
        for doc_id in best_positions:
            passage_ids = [passage for passage in positions if document_id(passage) == doc_id]
            document_grades[query_id][doc_id] = max(grades[query_id].get(passage, 0) for passage in passage_ids)

    ideal_run = {}
    for query_id, candidates in run.items():
        doc_ids = [candidate.doc_id for candidate in candidates[:depth]]
        doc_ids.sort(key=document_grades[query_id].__getitem__, reverse=True)
        ideal_run[query_id] = [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)]
    reranked_run = {
        query_id: [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ranking.doc_ids, 1)]
        for query_id, ranking in document_rankings.items()
    }
    reranked_ndcg, ideal_ndcg, first_stage_ndcg = (
        evaluate(document_grades, runs, ["nDCG@10"]).means["nDCG@10"] for runs in (reranked_run, ideal_run, run)
    )
    assert reranked_ndcg == ideal_ndcg
    assert reranked_ndcg > first_stage_ndcg + 0.2


def test_rerank_maxp_options_rank_by_document_grade(
    tmp_path: Path, rank_k: RankK, long_documents: dict[str, list[Passage]]
) -> None:
    with (tmp_path / "corpus.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"_id": doc_id, "text": join_abstracts(abstracts)}) + "\n"
            for doc_id, abstracts in long_documents.items()
        )
    abstract_grades = read_qrels(SHARED / "cranfield" / "qrels.trec")
    queries = (SHARED / "cranfield" / "queries.jsonl").read_text().splitlines()[:10]
    (tmp_path / "queries.jsonl").write_text("\n".join(queries) + "\n")
    with (tmp_path / "qrels").open("w") as file:
        for line in queries:
            query_id = json.loads(line)["_id"]
            for doc_id, abstracts in long_documents.items():
                grade = max(abstract_grades[query_id].get(abstract.doc_id, 0) for abstract in abstracts)
                file.write(f"{query_id} 0 {doc_id} {grade}\n")
    files = ("--documents", "corpus.jsonl", "--queries", "queries.jsonl")
    rank_k("retrieve", *files, "--output", "bm25.trec", "--depth", "25")
    rank_k(
        *("rerank", *files, "--run", "bm25.trec", "--output", "out.trec", "--simulate", "qrels"),
        *("--noise", "none"),
        *("--maxp-tokens", "200", "--maxp-overlap", "40", "--maxp-passages", "6", "--depth", "15"),
        *("--strategy", "single", "--window", "100"),
    )
    grades, before, after = read_qrels(tmp_path / "qrels"), read_ranked_ids("bm25.trec"), read_ranked_ids("out.trec")
    assert list(after) == list(before)
    for query_id, doc_ids in after.items():
        assert sorted(doc_ids) == sorted(before[query_id])
        assert doc_ids[15:] == before[query_id][15:]
        expected = sorted(before[query_id][:15], key=lambda doc_id, query_id=query_id: -grades[query_id][doc_id])  # type: ignore[misc]
        assert doc_ids[:15] == expected, "noiseless: by grade, equal ones as the first stage had them"
