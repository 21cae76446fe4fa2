"""Collections by name; passages by id."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rank_k.data.collections import CollectionFiles, PassageStore, load_collection
from rank_k.errors import InputError
from rank_k.records import Passage


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_the_layout_of_beir(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv")
    expected = CollectionFiles(root / "corpus.jsonl", root / "queries.jsonl", root / "qrels/test.tsv")
    assert load_collection(f"beir:{root}") == expected
    assert load_collection(f"beir:{root}", split="dev").qrels == root / "qrels/dev.tsv"


def test_trec_judgments_runs_and_compressed_files(tmp_path: Path) -> None:
    names = ["corpus.jsonl.gz", "queries.jsonl.gz", "qrels.trec", "run.b.trec.gz", "run.a.trec", "notes.md"]
    root = folder_of(tmp_path, *names)
    assert load_collection(f"beir:{root}") == CollectionFiles(
        root / "corpus.jsonl.gz",
        root / "queries.jsonl.gz",
        root / "qrels.trec",
        (root / "run.a.trec", root / "run.b.trec.gz"),
    )


def test_a_split_with_queries_of_its_own(tmp_path: Path) -> None:
    names = ["corpus.jsonl", "queries.jsonl", "qrels.trec", "queries.train.jsonl", "qrels.train.trec"]
    root = folder_of(tmp_path, *names)
    train = load_collection(f"beir:{root}", split="train")
    assert (train.queries, train.qrels) == (root / "queries.train.jsonl", root / "qrels.train.trec")
    test = load_collection(f"beir:{root}")
    assert (test.queries, test.qrels) == (root / "queries.jsonl", root / "qrels.trec")


def test_no_judgments_at_all_are_no_error(tmp_path: Path) -> None:
    assert load_collection(f"beir:{folder_of(tmp_path, 'corpus.jsonl', 'queries.jsonl')}").qrels is None


def test_the_judgments_of_another_split_are_not_taken(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "corpus.jsonl", "queries.jsonl", "qrels.trec", "qrels/dev.tsv.gz")
    with pytest.raises(InputError) as caught:
        load_collection(f"beir:{root}", split="train")
    assert "looked for qrels/train.tsv, qrels.train.trec" in str(caught.value)
    assert caught.value.remedy == "choose one of the splits dev, test"


@pytest.mark.parametrize(
    ("names", "problem", "remedy"),
    [
        (["queries.jsonl"], "has no documents", "corpus.jsonl"),
        (["corpus.jsonl"], "has no queries", "queries.jsonl"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, names: list[str], problem: str, remedy: str) -> None:
    root = folder_of(tmp_path, *names)
    with pytest.raises(InputError) as caught:
        load_collection(f"beir:{root}")
    assert f"{root} {problem}" in str(caught.value)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("name", ["beir", "beir:", "msmarco", "bright:biology", "", "BEIR:x"])
def test_what_is_not_understood_says_what_is(name: str) -> None:
    with pytest.raises(InputError, match="beir:DIR"):
        load_collection(name)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent is no folder"):
        load_collection(f"beir:{tmp_path / 'absent'}")


def test_home_is_understood(isolated_environment: Path) -> None:
    folder_of(isolated_environment / "set", "corpus.jsonl", "queries.jsonl")
    assert load_collection("beir:~/set").documents == isolated_environment / "set" / "corpus.jsonl"


def test_passages_by_id(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_bytes(gzip.compress(b"d1\tone\nd2\ttwo\nd1\tone\n"))
    store = PassageStore.of_file(path, ["d1", "d7"])
    assert store.get("d1") == Passage("d1", "one")
    with pytest.raises(InputError) as caught:
        store.get("d7", "q3")
    assert str(caught.value).startswith(f"document d7 of query q3 is not in {path}; ")
    with pytest.raises(InputError, match="document d2 is not in"):
        store.get("d2")


def test_one_id_with_two_texts(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_text("d1\tone\nd2\ttwo\nd1\tother\n")
    assert PassageStore.of_file(path, ["d2"]).get("d2") == Passage("d2", "two")
    with pytest.raises(InputError, match="document d1 stands twice"):
        PassageStore.of_file(path, ["d1"])
