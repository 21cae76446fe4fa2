"""Collections of every kind through the commands, and long documents made of real abstracts."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rank_k.cli import main
from rank_k.data.collections.registry import load_collection
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

pytestmark = pytest.mark.integration


RankK = Callable[..., str]


@pytest.fixture
def rank_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RankK:
    """`rank_k("rerank", ..., code=0)` runs the command in a folder of the test's own; what it said on both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: str | Path, code: int = 0) -> str:
        got = main([str(argument) for argument in arguments])
        told = capfd.readouterr()
        assert got == code, told.err
        if code == 2:
            assert told.err.count("\n") == 1, "one line"
        return told.out + told.err

    return run


def ids_of(run: str | Path) -> dict[str, list[str]]:
    return {query_id: [found.doc_id for found in line] for query_id, line in read_run(run).items()}


# BRIGHT

ORDER = ["forbidden", "plain", "gold", "tail"]


@pytest.fixture
def bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
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


def test_bright_from_documents_to_figures(bright: str, rank_k: RankK) -> None:
    rank_k("retrieve", "--dataset", bright, "--output", "bm25.trec", "--depth", "3")
    assert ids_of("bm25.trec")["0"] == ["plain", "gold", "tail"], "as many as asked for, the excluded not among them"
    lines = [f"0 Q0 {doc_id} 0 {-place} t" for place, doc_id in enumerate(ORDER)] + ["1 Q0 tail 0 1 t"]
    Path("run.trec").write_text("\n".join(lines) + "\n")
    Path("qrels").write_text("0 0 gold 1\n0 0 forbidden 9\n")
    told = rank_k(
        *("rerank", "--dataset", bright, "--run", "run.trec", "--output", "out.trec"),
        *("--simulate", "qrels", "--noise", "none", "--depth", "2", "--report", "report.json"),
    )
    assert ids_of("out.trec") == {"0": ["gold", "plain", "tail"], "1": ["tail"]}
    assert "1 candidates that the data set excludes, left out of the run" in told
    assert json.loads(Path("report.json").read_text())["repairs"]["excluded"] == 1
    told = rank_k("evaluate", "--dataset", bright, "run.trec", "out.trec", "--measures", "RR@10")
    assert "run.trec: 1 documents that bright:biology excludes, left out" in told
    means = told.partition("\n\n")[0]  # what the run cost follows
    assert [line.split()[1] for line in means.splitlines() if line.startswith(("run.trec ", "out.trec "))] == [
        "0.2500",  # second of those allowed, and nothing for the other query
        "0.5000",
    ]


def test_a_bright_that_is_not_there_is_one_line(rank_k: RankK) -> None:
    told = rank_k("retrieve", "--dataset", "bright:pony", "--output", "out.trec", code=2)
    assert "BRIGHT's pony is not on this machine" in told
    assert "get documents/pony-*.parquet and examples/pony-*.parquet" in told


# ir_datasets


def test_a_data_set_of_ir_datasets_brings_its_own_run(
    tmp_path: Path, rank_k: RankK, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir = pytest.importorskip("ir_datasets", reason="needs the extra [data]")
    (tmp_path / "docs").write_text("d1\tsky sky\nd2\tsky\nd3\tsea\n")
    (tmp_path / "queries").write_text("1\tsky\n")
    (tmp_path / "qrels").write_text("1 0 d2 1\n")
    (tmp_path / "scored").write_text("1 Q0 d1 0 3 x\n1 Q0 d3 1 2 x\n1 Q0 d2 2 1 x\n")
    local = {name: ir.util.LocalDownload(tmp_path / name) for name in ("docs", "queries", "qrels", "scored")}
    parts = (
        ir.formats.TsvDocs(local["docs"]),
        ir.formats.TsvQueries(local["queries"]),
        ir.formats.TrecQrels(local["qrels"], {}),
        ir.formats.TrecScoredDocs(local["scored"]),
    )
    monkeypatch.setitem(ir.registry._registered, "ours/test", ir.Dataset(*parts))
    rank_k("rerank", "--dataset", "ours/test", "--output", "out.trec", "--simulate", "qrels", "--noise", "none")
    assert ids_of("out.trec") == {"1": ["d2", "d1", "d3"]}
    assert "1.0000" in rank_k("evaluate", "--dataset", "ours/test", "out.trec", "--measures", "RR@10")
    rank_k("retrieve", "--dataset", "ours/test", "--output", "bm25.trec")
    assert ids_of("bm25.trec") == {"1": ["d1", "d2"]}
    monkeypatch.setitem(ir.registry._registered, "ours/bare", ir.Dataset(*parts[:2]))
    assert "--run is missing" in rank_k("rerank", "--dataset", "ours/bare", "--output", "x", code=2)
    assert "ours/bare has no judgments" in rank_k("evaluate", "--dataset", "ours/bare", "out.trec", code=2)


def test_data_sets_that_are_not_there_are_one_line(rank_k: RankK, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ir_datasets", reason="needs the extra [data]")
    monkeypatch.setenv("IR_DATASETS_DL_TRIES", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "cannot be downloaded" in rank_k("retrieve", "--dataset", "vaswani", "--output", "out.trec", code=2)
    assert "there is no data set" in rank_k("retrieve", "--dataset", "vaswani2", "--output", "out.trec", code=2)


def test_a_run_that_lies_beside_is_named_where_none_is_given(tmp_path: Path, rank_k: RankK) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "run.bm25.trec"):
        (tmp_path / name).touch()
    told = rank_k("rerank", "--dataset", f"beir:{tmp_path}", "--output", "out.trec", code=2)
    assert f"give --run FILE, such as {tmp_path / 'run.bm25.trec'}" in told


# Big corpora


def test_a_big_corpus_is_indexed_once(tmp_path: Path, rank_k: RankK) -> None:
    noise = random.Random(7).randbytes(1200).hex()
    with (tmp_path / "corpus.tsv").open("w") as file:
        file.writelines(f"d{i}\tpassage {i} {noise}\n" for i in range(4000))
    (tmp_path / "queries.tsv").write_text("1\tsky\n")
    (tmp_path / "run").write_text("".join(f"1 Q0 d{i} 0 {-i} t\n" for i in range(0, 4000, 100)))
    (tmp_path / "qrels").write_text("1 0 d3900 1\n")
    index, times = tmp_path / "corpus.tsv.offsets", []
    for output in ("one", "two"):
        files = ("--run", "run", "--queries", "queries.tsv", "--documents", "corpus.tsv")
        rank_k("rerank", *files, "--output", output, "--simulate", "qrels", "--noise", "none")
        times.append(index.stat().st_mtime_ns)
        assert ids_of(output)["1"][0] == "d3900"
    assert times[0] == times[1]
    assert index.stat().st_size < (tmp_path / "corpus.tsv").stat().st_size / 20


# Long documents


def test_options_that_do_not_go_together_are_one_line(rank_k: RankK) -> None:
    base = ("rerank", "--run", "r", "--queries", "q", "--documents", "d", "--output", "o")
    assert "give --maxp-tokens TOKENS too" in rank_k(*base, "--maxp-overlap", "5", code=2)
    assert "give --maxp-tokens TOKENS too" in rank_k(*base, "--maxp-passages", "5", code=2)
    assert "--passage-tokens 450" in rank_k(*base, "--maxp-tokens", "500", code=2)
    assert "at most half, 50" in rank_k(*base, "--maxp-tokens", "100", "--maxp-overlap", "51", code=2)


ABSTRACTS = 5


@pytest.fixture(scope="module")
def joined() -> dict[str, list[Passage]]:
    """Documents of five cranfield abstracts each: `document id -> its abstracts`."""
    if not SHARED.is_dir():
        pytest.skip("needs the collections in ../shared beside the checkout")
    abstracts = [passage for passage in read_passages(SHARED / "cranfield" / "corpus.jsonl.gz") if passage.text]
    random.Random(zlib.crc32(b"cranfield")).shuffle(abstracts)
    return {f"doc#{i}": abstracts[i : i + ABSTRACTS] for i in range(0, len(abstracts), ABSTRACTS)}


def whole(abstracts: list[Passage]) -> str:
    return "\n".join(abstract.text for abstract in abstracts)


def graded(joined: dict[str, list[Passage]], of_abstracts: dict[str, int], split: PassageSplit) -> dict[str, int]:
    """Grades of passages: the highest of an abstract that has half of its text in the passage, or all there is."""
    grades: dict[str, int] = {}
    for doc_id, abstracts in joined.items():
        if not any(abstract.doc_id in of_abstracts for abstract in abstracts):
            continue
        for number, (start, end) in enumerate(split.spans(whole(abstracts))):
            place = best = 0
            for abstract in abstracts:
                inside = min(end, place + len(abstract.text)) - max(start, place)
                if 2 * inside >= min(len(abstract.text), end - start):
                    best = max(best, of_abstracts.get(abstract.doc_id, 0))
                place += len(abstract.text) + 1
            grades[passage_id(doc_id, number)] = best
    return grades


def test_documents_rank_as_their_best_passages_and_a_noiseless_judge_is_best(joined: dict[str, list[Passage]]) -> None:
    files = load_collection(f"beir:{SHARED / 'cranfield'}")
    assert files.qrels is not None
    queries = {query_id: query for query_id, query in read_queries(files.queries).items() if int(query_id) <= 15}
    documents = {doc_id: Passage(doc_id, whole(abstracts)) for doc_id, abstracts in joined.items()}
    run = dict(retrieve(queries.values(), documents.values(), depth=30))
    split, depth = PassageSplit(250, 50), 20
    judged = read_qrels(files.qrels)
    grades = {query_id: graded(joined, judged[query_id], split) for query_id in queries}

    class Texts:
        def get(self, doc_id: str, query_id: str | None = None) -> Passage:
            return documents[doc_id]

    passages = SplitRun(run.items(), Texts(), split, depth)
    of_passages: dict[str, Ranking] = {}
    with Reranker(SimulatedModel(grades), window=80, stride=20, depth=10_000, passage_tokens=300) as reranker:
        for result in reranker.rerank(passages, queries, passages):
            of_passages[result.query_id] = result.ranking
    reranked = dict(passages.collapsed(of_passages.items()))

    assert max(len(ranking.doc_ids) for ranking in of_passages.values()) > 4 * depth
    of_documents: dict[str, dict[str, int]] = {}
    for query_id, ranking in reranked.items():
        before = [candidate.doc_id for candidate in run[query_id]]
        assert sorted(ranking.doc_ids) == sorted(before)
        assert list(ranking.doc_ids[depth:]) == before[depth:], "the tail is kept"
        places = {passage: place for place, passage in enumerate(of_passages[query_id].doc_ids)}
        best: dict[str, int] = {}
        for passage, place in places.items():
            best[document_id(passage)] = min(place, best.get(document_id(passage), place))
        assert [best[doc_id] for doc_id in ranking.doc_ids[:depth]] == sorted(best.values())
        of_documents[query_id] = {}
        for doc_id in best:
            found = [grades[query_id].get(passage, 0) for passage in places if document_id(passage) == doc_id]
            of_documents[query_id][doc_id] = max(found)

    ideal = {}
    for query_id, line in run.items():
        by_grade = sorted(line[:depth], key=lambda found, query_id=query_id: -of_documents[query_id][found.doc_id])  # type: ignore[misc]
        ideal[query_id] = [Candidate(found.doc_id, 1 / rank) for rank, found in enumerate(by_grade, 1)]
    ranked = {
        query_id: [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ranking.doc_ids, 1)]
        for query_id, ranking in reranked.items()
    }
    reached, best_value, first = (
        evaluate(of_documents, runs, ["nDCG@10"]).means["nDCG@10"] for runs in (ranked, ideal, run)
    )
    assert reached == best_value
    assert reached > first + 0.2


def test_long_documents_through_the_command(tmp_path: Path, rank_k: RankK, joined: dict[str, list[Passage]]) -> None:
    with (tmp_path / "corpus.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"_id": doc_id, "text": whole(abstracts)}) + "\n" for doc_id, abstracts in joined.items()
        )
    of_abstracts = read_qrels(SHARED / "cranfield" / "qrels.trec")
    queries = (SHARED / "cranfield" / "queries.jsonl").read_text().splitlines()[:10]
    (tmp_path / "queries.jsonl").write_text("\n".join(queries) + "\n")
    with (tmp_path / "qrels").open("w") as file:
        for line in queries:
            query_id = json.loads(line)["_id"]
            for doc_id, abstracts in joined.items():
                grade = max(of_abstracts[query_id].get(abstract.doc_id, 0) for abstract in abstracts)
                file.write(f"{query_id} 0 {doc_id} {grade}\n")
    files = ("--documents", "corpus.jsonl", "--queries", "queries.jsonl")
    rank_k("retrieve", *files, "--output", "bm25.trec", "--depth", "25")
    rank_k(
        *("rerank", *files, "--run", "bm25.trec", "--output", "out.trec", "--simulate", "qrels"),
        *("--noise", "none"),
        *("--maxp-tokens", "200", "--maxp-overlap", "40", "--maxp-passages", "6", "--depth", "15"),
        *("--strategy", "single", "--window", "100"),
    )
    grades, before, after = read_qrels(tmp_path / "qrels"), ids_of("bm25.trec"), ids_of("out.trec")
    assert list(after) == list(before)
    for query_id, doc_ids in after.items():
        assert sorted(doc_ids) == sorted(before[query_id])
        assert doc_ids[15:] == before[query_id][15:]
        expected = sorted(before[query_id][:15], key=lambda doc_id, query_id=query_id: -grades[query_id][doc_id])  # type: ignore[misc]
        assert doc_ids[:15] == expected, "noiseless: by grade, equal ones as the first stage had them"
