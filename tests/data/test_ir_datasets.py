"""Collections of ir_datasets and of BRIGHT: out of local files, and one message for what is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rank_k.data.collections.bright import SUBSETS, load_bright
from rank_k.data.collections.ir_datasets import IrDataset
from rank_k.data.collections.registry import find_collection, load_collection
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import FormatError, InputError, MissingExtra
from rank_k.types import Candidate, Passage

ir_datasets: Any = pytest.importorskip("ir_datasets", reason="needs the extra [data]")


# ir_datasets


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its home in a folder of the test's own, and every address refused at once."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir home"))
    monkeypatch.setenv("IR_DATASETS_DL_TRIES", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    return tmp_path / "ir home"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`registered(name, *parts)` adds a data set to the registry for as long as the test runs."""

    def register(name: str, *parts: Any) -> None:
        monkeypatch.setitem(ir_datasets.registry._registered, name, ir_datasets.Dataset(*parts))

    return register


class TopicsQuery(NamedTuple):
    query_id: str
    title: str
    description: str
    terms: tuple[str, ...]

    def default_text(self) -> str:
        return self.title


class Topics(ir_datasets.formats.BaseQueries):  # type: ignore[misc]
    def queries_iter(self) -> Iterator[TopicsQuery]:
        yield TopicsQuery("1", "sky", "why it is bl\u00fce", ("a",))

    def queries_cls(self) -> type:
        return TopicsQuery


class Judged(ir_datasets.formats.BaseQrels):  # type: ignore[misc]
    def __init__(self, *rows: tuple[str, str, int], marks: dict[int, str] | None = None) -> None:
        self.rows, self.marks = rows, marks or {}

    def qrels_iter(self) -> Iterator[Any]:
        return (ir_datasets.formats.GenericQrel(*row) for row in self.rows)

    def qrels_defs(self) -> dict[int, str]:
        return self.marks


class Scored(ir_datasets.formats.BaseScoredDocs):  # type: ignore[misc]
    def scoreddocs_iter(self) -> Iterator[Any]:
        for doc_id, score in (("d2", 1.5), ("d1", 2.25), ("d3", 1e-9)):
            yield ir_datasets.formats.GenericScoredDoc("1", doc_id, score)


def local(path: Path, content: str) -> Any:
    path.write_text(content, encoding="utf-8")
    return ir_datasets.util.LocalDownload(path)


def documents(tmp_path: Path) -> Any:
    return ir_datasets.formats.TsvDocs(local(tmp_path / "docs.tsv", "d1\tone\nd2\ttw\u00f6\nd3\tthree\n"))


def test_a_data_set_is_read_as_ones_own_files_are(tmp_path: Path, registered: Any) -> None:
    registered("ours/test", documents(tmp_path), Topics(), Judged(("1", "d1", 2), ("1", "d3", 0)), Scored())
    found = find_collection("ours/test")
    assert found.qrels is not None
    assert found.first_stage is not None
    assert read_queries(found.queries)["1"].text == "sky"
    assert read_queries(found.queries, "title,description")["1"].text == "sky\nwhy it is bl\u00fce"
    assert read_qrels(found.qrels) == {"1": {"d1": 2, "d3": 0}}
    run = read_run(found.first_stage)
    assert run == {"1": (Candidate("d1", 2.25), Candidate("d2", 1.5), Candidate("d3", 1e-9))}
    assert found.excluded == {}
    assert list(found.corpus.passages()) == [Passage("d1", "one"), Passage("d2", "tw\u00f6"), Passage("d3", "three")]
    store = found.corpus.store()
    assert store.get("d2") == Passage("d2", "tw\u00f6")
    with pytest.raises(InputError, match="document d9 of query 1 is not in data set ours/test"):
        store.get("d9", "1")
    store.close()


def test_a_new_version_of_a_data_set_is_seen(registered: Any) -> None:
    registered("ours", Judged(("1", "d1", 1)))
    assert IrDataset("ours").qrels is not None
    registered("ours", Judged(("1", "d1", 3)))
    again = IrDataset("ours").qrels
    assert again is not None
    assert read_qrels(again) == {"1": {"d1": 3}}


def test_excluded_documents_are_no_judgments(registered: Any) -> None:
    rows = ("1", "d1", 1), ("1", "d2", -100), ("2", "d2", -100)
    registered("ours", Judged(*rows, marks={1: "Relevant", -100: "Excluded from evaluation"}))
    found = IrDataset("ours")
    assert found.qrels is not None
    assert read_qrels(found.qrels) == {"1": {"d1": 1}}
    assert found.excluded == {"1": {"d2"}, "2": {"d2"}}


def test_of_several_subtopics_the_highest_grade_counts(registered: Any) -> None:
    registered("ours", Judged(("1", "d1", 1), ("1", "d1", 2), ("1", "d1", 0)))
    found = IrDataset("ours").qrels
    assert found is not None
    assert read_qrels(found) == {"1": {"d1": 2}}


def test_parts_that_are_lacking(registered: Any) -> None:
    registered("ours", Judged(("1", "d1", 1)))
    found = IrDataset("ours")
    assert found.first_stage is None
    with pytest.raises(InputError, match="data set ours has no queries"):
        _ = found.queries
    with pytest.raises(InputError, match="data set ours has no documents"):
        _ = found.corpus


def test_ids_that_trec_cannot_hold_are_told(registered: Any) -> None:
    registered("ours", Judged(("1", "two words", 1)))
    with pytest.raises(InputError, match="'two words' cannot stand in a TREC run"):
        _ = IrDataset("ours").qrels


def test_unknown_ids_name_those_that_are_near() -> None:
    with pytest.raises(InputError, match="there is no data set 'msmarco-pasage'") as caught:
        IrDataset("msmarco-pasage")
    assert "did you mean msmarco-passage" in caught.value.remedy
    assert "beir:DIR" in caught.value.remedy


def test_without_ir_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rank-k\[data\]'"):
        find_collection("vaswani")


def test_what_must_be_asked_for_says_where_and_where_to_put_it(
    no_network: Path, registered: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    message = f"Ask NIST for the disks.\nThen place them here: {no_network / 'disks'}"
    missing = ir_datasets.util.Download([ir_datasets.util.LocalDownload(no_network / "disks", message)])
    registered("ours", ir_datasets.formats.TsvDocs(missing))
    for attempt in (lambda: IrDataset("ours").corpus.store(), lambda: list(IrDataset("ours").corpus.passages())):
        with pytest.raises(InputError, match="the documents of ours cannot be had") as caught:
            attempt()
        assert message in caught.value.remedy
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "part"), [("vaswani", "queries"), ("vaswani", "qrels"), ("antique/test", "queries")])
def test_what_cannot_be_downloaded_is_one_message(
    no_network: Path, name: str, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"not on this machine and cannot be downloaded \(http") as caught:
        getattr(IrDataset(name), part)
    top = name.partition("/")[0]
    assert str(no_network / top) in caught.value.remedy
    assert f"https://ir-datasets.com/{top}.html" in caught.value.remedy
    assert capfd.readouterr() == ("", "")


def test_terms_of_use_are_shown_when_it_works(
    tmp_path: Path, registered: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    terms = "Please confirm you agree to the terms at <https://example.org/terms>"
    path = tmp_path / "queries.tsv"
    path.write_text("1\tsky\n")
    copied = tmp_path / "copy" / "queries.tsv"
    download = ir_datasets.util.Download([ir_datasets.util.LocalDownload(path)], copied, dua=terms)
    registered("ours", ir_datasets.formats.TsvQueries(download))
    assert read_queries(IrDataset("ours").queries)["1"].text == "sky"
    assert terms in capfd.readouterr().err


# BRIGHT

DOCUMENTS = [{"id": "a/1", "content": "one"}, {"id": "b", "content": "tw\u00f6\nlines"}, {"id": "c", "content": ""}]
EXAMPLES = [
    {"id": "0", "query": "why?", "excluded_ids": ["N/A"], "gold_ids": ["a/1", "b", "b"], "reasoning": "x"},
    {"id": "1", "query": "how\nso?", "excluded_ids": ["c", "a/1"], "gold_ids": ["b"], "reasoning": "y"},
    {"id": "2", "query": "what", "excluded_ids": [], "gold_ids": [], "reasoning": ""},
]


def bright(root: Path, form: str, subset: str = "biology") -> Path:
    for part, rows in (("documents", DOCUMENTS), ("examples", EXAMPLES)):
        (root / part).mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [bright]")
            parquet = __import__("pyarrow.parquet").parquet
            for number in (0, 1):  # in two shards
                shard = pyarrow.Table.from_pylist(rows[number * 2 : number * 2 + 2])
                parquet.write_table(shard, root / part / f"{subset}-0000{number}-of-00002.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / part / f"{subset}.jsonl").write_text(lines)
    return root


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_local_copy_of_bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    bright(tmp_path / "data" / "BRIGHT", form)
    monkeypatch.setenv("RANK_K_DATA", str(tmp_path / "data"))
    for name in ("bright:biology", f"bright:{tmp_path}/data/BRIGHT/biology"):
        found = find_collection(name)
        assert found.qrels is not None
        assert {query.query_id: query.text for query in read_queries(found.queries).values()} == {
            "0": "why?",
            "1": "how\nso?",
            "2": "what",
        }
        assert read_qrels(found.qrels) == {"0": {"a/1": 1, "b": 1}, "1": {"b": 1}}
        assert found.excluded == {"1": {"c", "a/1"}}
        expected = [Passage(row["id"], row["content"]) for row in DOCUMENTS]
        assert list(found.corpus.passages()) == expected
        store = found.corpus.store()
        assert [store.get(passage.doc_id) for passage in expected] == expected
        store.close()


def test_a_new_copy_of_bright_is_seen(tmp_path: Path) -> None:
    root = bright(tmp_path, "parquet")
    before = load_bright(f"{root}/biology")
    assert load_bright(f"{root}/biology") == before
    for path in (root / "examples").iterdir():
        os.utime(path, (1, 1))
    assert load_bright(f"{root}/biology").queries != before.queries


def test_bright_beside_others(tmp_path: Path) -> None:
    root = bright(bright(tmp_path, "jsonl", "pony"), "jsonl", "pony_club")
    assert load_bright(f"{root}/pony").documents == root / "documents" / "pony.jsonl"


@pytest.mark.parametrize("name", ["bright:biology", "bright:here/biology"])
def test_a_bright_that_is_nowhere_says_what_to_get_and_where_to_put_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="BRIGHT's biology is not on this machine") as caught:
        load_collection(name)
    remedy = caught.value.remedy
    assert "get documents/biology-*.parquet and examples/biology-*.parquet" in remedy
    assert "https://huggingface.co/datasets/xlangai/BRIGHT" in remedy
    assert ("into here" if "/" in name else "RANK_K_DATA/BRIGHT") in remedy


def test_half_a_bright_is_told(tmp_path: Path) -> None:
    root = bright(tmp_path, "jsonl")
    (root / "examples" / "biology.jsonl").unlink()
    with pytest.raises(InputError, match="has no examples of biology"):
        load_bright(f"{root}/biology")


def test_bright_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra [bright]")
    asked: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(bright(tmp_path / "snapshot", "parquet"))

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert read_queries(find_collection("bright:biology").queries)["0"].text == "why?"
    patterns = ["documents/biology-*", "examples/biology-*"]
    assert asked == [("xlangai/BRIGHT", {"repo_type": "dataset", "allow_patterns": patterns})]


def test_an_unknown_subset_names_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no subset 'biologie'") as caught:
        load_collection("bright:biologie")
    assert all(subset in caught.value.remedy for subset in SUBSETS)
    with pytest.raises(InputError, match="names no subset"):
        load_collection("bright:folder/")


@pytest.mark.parametrize(
    ("part", "content", "found"),
    [
        ("examples/biology.jsonl", '{"id": "0"}\n', "no query"),
        ("examples/biology.jsonl", "rubbish\n", "invalid JSON"),
        ("documents/biology.jsonl", '{"id": "0"}\n', "no text"),
        ("documents/biology.parquet", "PAR1 rubbish", "no parquet data"),
    ],
)
def test_files_that_are_not_brights(tmp_path: Path, part: str, content: str, found: str) -> None:
    root = bright(tmp_path, "jsonl")
    (root / part).write_text(content)
    with pytest.raises(FormatError, match=found) as caught:
        list(read_passages(load_bright(f"{root}/biology").documents))
    assert caught.value.path == str(root / part)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bright(tmp_path, "parquet")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtra, match=r"rank-k\[bright\]"):
        load_bright(f"{root}/biology")
