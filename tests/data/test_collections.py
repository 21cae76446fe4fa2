"""Collections by name; passages by id."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rank_k.data.collections.base import CollectionFiles, RunWithoutExcluded
from rank_k.data.collections.beir import load_beir
from rank_k.data.collections.registry import find_collection
from rank_k.data.corpus_index import open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import FormatError, InputError, MissingExtra
from rank_k.types import Candidate, Passage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def create_empty_files(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_load_beir_reads_beir_layout(tmp_path: Path) -> None:
    folder = create_empty_files(tmp_path, "corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv")
    expected = CollectionFiles(folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels/test.tsv")
    assert load_beir(str(folder)) == expected


def test_load_beir_finds_trec_qrels_runs_and_compressed_files(tmp_path: Path) -> None:
    names = ["corpus.jsonl.gz", "queries.jsonl.gz", "qrels.trec", "run.b.trec.gz", "run.a.trec", "notes.md"]
    folder = create_empty_files(tmp_path, *names)
    assert load_beir(str(folder)) == CollectionFiles(
        folder / "corpus.jsonl.gz",
        folder / "queries.jsonl.gz",
        folder / "qrels.trec",
        (folder / "run.a.trec", folder / "run.b.trec.gz"),
    )


def test_load_beir_prefers_queries_of_the_split(tmp_path: Path) -> None:
    names = ["corpus.jsonl", "queries.jsonl", "qrels.trec", "queries.test.jsonl", "qrels.test.trec", "qrels/train.tsv"]
    files = load_beir(str(create_empty_files(tmp_path, *names)))
    assert (files.queries, files.qrels) == (tmp_path / "queries.test.jsonl", tmp_path / "qrels.test.trec")


def test_load_beir_allows_missing_qrels(tmp_path: Path) -> None:
    assert load_beir(str(create_empty_files(tmp_path, "corpus.jsonl", "queries.jsonl"))).qrels is None


@pytest.mark.parametrize(
    ("names", "problem", "remedy"),
    [
        (["queries.jsonl"], "has no documents", "corpus.jsonl"),
        (["corpus.jsonl"], "has no queries", "queries.jsonl"),
    ],
)
def test_load_beir_names_missing_file(tmp_path: Path, names: list[str], problem: str, remedy: str) -> None:
    folder = create_empty_files(tmp_path, *names)
    with pytest.raises(InputError) as error_info:
        load_beir(str(folder))
    assert f"{folder} {problem}" in str(error_info.value)
    assert remedy in error_info.value.remedy


@pytest.mark.parametrize("name", ["beir:", "msmarco", "bright:", "", "BEIR:x", "hub:x"])
def test_find_collection_rejects_unknown_name_and_lists_valid_forms(name: str) -> None:
    with pytest.raises(InputError, match="beir:DIR"):
        find_collection(name)


def test_load_beir_rejects_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent is not a directory"):
        load_beir(str(tmp_path / "absent"))


def test_load_beir_expands_home_directory(isolated_environment: Path) -> None:
    create_empty_files(isolated_environment / "set", "corpus.jsonl", "queries.jsonl")
    assert load_beir("~/set").documents == isolated_environment / "set" / "corpus.jsonl"


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_open_corpus_index_gets_passages_by_id(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_bytes(compress(b"d1\tone\nd2\ttwo\nd1\tone\n"))
    with closing(open_corpus_index(path)) as store:
        assert store.get("d1") == Passage("d1", "one")
        assert store.get("d2", "q3") == Passage("d2", "two")
        with pytest.raises(InputError) as error_info:
            store.get("d7", "q3")
        assert str(error_info.value).startswith(f"document d7 of query q3 is not in {path}; ")
        with pytest.raises(InputError, match="document d7 is not in"):
            store.get("d7")


def test_corpus_index_rejects_id_with_two_texts(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_text("d1\tone\nd2\ttwo\nd1\tother\n")
    with closing(open_corpus_index(path)) as store:
        assert store.get("d2") == Passage("d2", "two")
        with pytest.raises(InputError, match=r"lines 1 and 3 of .*corpus\.tsv give different texts for document d1"):
            store.get("d1")


def test_load_beir_reads_zstandard_files(tmp_path: Path) -> None:
    folder = create_empty_files(
        tmp_path, "corpus.jsonl.zst", "queries.jsonl.zst", "qrels/test.tsv.zst", "run.a.trec.zst"
    )
    (folder / "queries.jsonl.zst").write_bytes(zstd.compress(b'{"_id": "q", "text": "sky"}\n'))
    (folder / "qrels/test.tsv.zst").write_bytes(zstd.compress(b"query-id\tcorpus-id\tscore\nq\td\t1\n"))
    (folder / "run.a.trec.zst").write_bytes(zstd.compress(b"q Q0 d 1 0.5 t\n") + zstd.compress(b"q Q0 e 2 0.4 t\n"))
    files = load_beir(str(folder))
    assert files.qrels is not None
    assert read_queries(files.queries)["q"].text == "sky"
    assert read_qrels(files.qrels) == {"q": {"d": 1}}
    assert [candidate.doc_id for candidate in read_run(files.runs[0])["q"]] == ["d", "e"]


def test_read_passages_rejects_damaged_zstandard(tmp_path: Path) -> None:
    path, compressed = tmp_path / "corpus.tsv", zstd.compress(b"".join(b"%d\t%d\n" % (i, i**9) for i in range(999)))
    for damaged in (compressed[:-5], compressed[:20] + b"damage" + compressed[26:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged Zstandard data"):
            list(read_passages(path))


def test_open_corpus_index_names_extra_for_zstandard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_bytes(zstd.compress(b"d1\tone\n"))
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    if sys.version_info < (3, 14):
        with pytest.raises(MissingExtra, match=r"rank-k\[data\]"):
            open_corpus_index(path)


def test_without_excluded_removes_documents_on_every_iteration() -> None:
    run = {"q": (Candidate("a", 3.0), Candidate("b", 2.0), Candidate("c", 1.0)), "r": (Candidate("a", 1.0),)}
    allowed = RunWithoutExcluded(run.items(), {"q": frozenset("ac")})
    for _ in range(2):
        assert dict(allowed) == {"q": (Candidate("b", 2.0),), "r": (Candidate("a", 1.0),)}
    assert allowed.count_excluded() == 2
