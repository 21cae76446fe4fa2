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
from rank_k.data.collections.registry import find_collection
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
def register_dataset(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`register_dataset(name, *parts)` adds a data set to the registry for as long as the test runs."""

    def register(name: str, *parts: Any) -> None:
        monkeypatch.setitem(ir_datasets.registry._registered, name, ir_datasets.Dataset(*parts))

    return register


class FakeQuery(NamedTuple):
    query_id: str
    title: str
    description: str
    terms: tuple[str, ...]

    def default_text(self) -> str:
        return self.title


class FakeQueries(ir_datasets.formats.BaseQueries):  # type: ignore[misc]
    def queries_iter(self) -> Iterator[FakeQuery]:
        yield FakeQuery("1", "sky", "why it is bl\u00fce", ("a",))

    def queries_cls(self) -> type:
        return FakeQuery


class FakeQrels(ir_datasets.formats.BaseQrels):  # type: ignore[misc]
    def __init__(self, *rows: tuple[str, str, int], grade_meanings: dict[int, str] | None = None) -> None:
        self.rows, self.grade_meanings = rows, grade_meanings or {}

    def qrels_iter(self) -> Iterator[Any]:
        return (ir_datasets.formats.GenericQrel(*row) for row in self.rows)

    def qrels_defs(self) -> dict[int, str]:
        return self.grade_meanings


class FakeScoredDocs(ir_datasets.formats.BaseScoredDocs):  # type: ignore[misc]
    def scoreddocs_iter(self) -> Iterator[Any]:
        for doc_id, score in (("d2", 1.5), ("d1", 2.25), ("d3", 1e-9)):
            yield ir_datasets.formats.GenericScoredDoc("1", doc_id, score)


def local_download(path: Path, content: str) -> Any:
    path.write_text(content, encoding="utf-8")
    return ir_datasets.util.LocalDownload(path)


def tsv_documents(tmp_path: Path) -> Any:
    return ir_datasets.formats.TsvDocs(local_download(tmp_path / "docs.tsv", "d1\tone\nd2\ttw\u00f6\nd3\tthree\n"))


def test_find_collection_reads_all_parts_of_ir_dataset(tmp_path: Path, register_dataset: Any) -> None:
    register_dataset(
        "ours/test", tsv_documents(tmp_path), FakeQueries(), FakeQrels(("1", "d1", 2), ("1", "d3", 0)), FakeScoredDocs()
    )
    collection = find_collection("ours/test")
    assert collection.qrels is not None
    assert collection.first_stage is not None
    assert read_queries(collection.queries)["1"].text == "sky"
    assert read_queries(collection.queries, "title,description")["1"].text == "sky\nwhy it is bl\u00fce"
    assert read_qrels(collection.qrels) == {"1": {"d1": 2, "d3": 0}}
    run = read_run(collection.first_stage)
    assert run == {"1": (Candidate("d1", 2.25), Candidate("d2", 1.5), Candidate("d3", 1e-9))}
    assert collection.excluded == {}
    assert list(collection.corpus.passages()) == [
        Passage("d1", "one"),
        Passage("d2", "tw\u00f6"),
        Passage("d3", "three"),
    ]
    store = collection.corpus.store()
    assert store.get("d2") == Passage("d2", "tw\u00f6")
    with pytest.raises(InputError, match="document d9 of query 1 is not in dataset ours/test"):
        store.get("d9", "1")
    store.close()


def test_ir_dataset_qrels_reflect_new_version(register_dataset: Any) -> None:
    register_dataset("ours", FakeQrels(("1", "d1", 1)))
    assert IrDataset("ours").qrels is not None
    register_dataset("ours", FakeQrels(("1", "d1", 3)))
    qrels_path = IrDataset("ours").qrels
    assert qrels_path is not None
    assert read_qrels(qrels_path) == {"1": {"d1": 3}}


def test_ir_dataset_separates_excluded_documents_from_qrels(register_dataset: Any) -> None:
    rows = ("1", "d1", 1), ("1", "d2", -100), ("2", "d2", -100)
    register_dataset("ours", FakeQrels(*rows, grade_meanings={1: "Relevant", -100: "Excluded from evaluation"}))
    dataset = IrDataset("ours")
    assert dataset.qrels is not None
    assert read_qrels(dataset.qrels) == {"1": {"d1": 1}}
    assert dataset.excluded == {"1": {"d2"}, "2": {"d2"}}


def test_ir_dataset_qrels_keep_highest_grade_of_subtopics(register_dataset: Any) -> None:
    register_dataset("ours", FakeQrels(("1", "d1", 1), ("1", "d1", 2), ("1", "d1", 0)))
    qrels_path = IrDataset("ours").qrels
    assert qrels_path is not None
    assert read_qrels(qrels_path) == {"1": {"d1": 2}}


def test_ir_dataset_reports_missing_parts(register_dataset: Any) -> None:
    register_dataset("ours", FakeQrels(("1", "d1", 1)))
    dataset = IrDataset("ours")
    assert dataset.first_stage is None
    with pytest.raises(InputError, match="dataset ours has no queries"):
        _ = dataset.queries
    with pytest.raises(InputError, match="dataset ours has no documents"):
        _ = dataset.corpus


def test_ir_dataset_rejects_ids_with_white_space(register_dataset: Any) -> None:
    register_dataset("ours", FakeQrels(("1", "two words", 1)))
    with pytest.raises(InputError, match="'two words' cannot be written to a TREC file"):
        _ = IrDataset("ours").qrels


def test_ir_dataset_suggests_similar_ids() -> None:
    with pytest.raises(InputError, match="there is no dataset 'msmarco-pasage'") as error_info:
        IrDataset("msmarco-pasage")
    assert "did you mean msmarco-passage" in error_info.value.remedy
    assert "beir:DIR" in error_info.value.remedy


def test_find_collection_names_extra_without_ir_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rank-k\[data\]'"):
        find_collection("vaswani")


def test_ir_dataset_error_explains_manual_download(
    no_network: Path, register_dataset: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    message = f"Ask NIST for the disks.\nThen place them here: {no_network / 'disks'}"
    missing = ir_datasets.util.Download([ir_datasets.util.LocalDownload(no_network / "disks", message)])
    register_dataset("ours", ir_datasets.formats.TsvDocs(missing))
    for load in (lambda: IrDataset("ours").corpus.store(), lambda: list(IrDataset("ours").corpus.passages())):
        with pytest.raises(InputError, match="the documents of ours cannot be read") as error_info:
            load()
        assert message in error_info.value.remedy
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "part"), [("vaswani", "queries"), ("vaswani", "qrels"), ("antique/test", "queries")])
def test_ir_dataset_reports_failed_download_in_one_message(
    no_network: Path, name: str, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"not on this machine and cannot be downloaded \(http") as error_info:
        getattr(IrDataset(name), part)
    dataset_folder = name.partition("/")[0]
    assert str(no_network / dataset_folder) in error_info.value.remedy
    assert f"https://ir-datasets.com/{dataset_folder}.html" in error_info.value.remedy
    assert capfd.readouterr() == ("", "")


def test_ir_dataset_prints_terms_of_use_after_download(
    tmp_path: Path, register_dataset: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    terms = "Please confirm you agree to the terms at <https://example.org/terms>"
    path = tmp_path / "queries.tsv"
    path.write_text("1\tsky\n")
    copied = tmp_path / "copy" / "queries.tsv"
    download = ir_datasets.util.Download([ir_datasets.util.LocalDownload(path)], copied, dua=terms)
    register_dataset("ours", ir_datasets.formats.TsvQueries(download))
    assert read_queries(IrDataset("ours").queries)["1"].text == "sky"
    assert terms in capfd.readouterr().err


# BRIGHT

DOCUMENTS = [{"id": "a/1", "content": "one"}, {"id": "b", "content": "tw\u00f6\nlines"}, {"id": "c", "content": ""}]
EXAMPLES = [
    {"id": "0", "query": "why?", "excluded_ids": ["N/A"], "gold_ids": ["a/1", "b", "b"], "reasoning": "x"},
    {"id": "1", "query": "how\nso?", "excluded_ids": ["c", "a/1"], "gold_ids": ["b"], "reasoning": "y"},
    {"id": "2", "query": "what", "excluded_ids": [], "gold_ids": [], "reasoning": ""},
]


def write_bright(root: Path, file_format: str, subset: str = "biology") -> Path:
    for part, rows in (("documents", DOCUMENTS), ("examples", EXAMPLES)):
        (root / part).mkdir(parents=True, exist_ok=True)
        if file_format == "parquet":
            pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [bright]")
            parquet = __import__("pyarrow.parquet").parquet
            for number in (0, 1):  # in two shards
                shard = pyarrow.Table.from_pylist(rows[number * 2 : number * 2 + 2])
                parquet.write_table(shard, root / part / f"{subset}-0000{number}-of-00002.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / part / f"{subset}.jsonl").write_text(lines)
    return root


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_find_collection_reads_local_bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    write_bright(tmp_path / "data" / "BRIGHT", file_format)
    monkeypatch.setenv("RANK_K_DATA", str(tmp_path / "data"))
    for name in ("bright:biology", f"bright:{tmp_path}/data/BRIGHT/biology"):
        collection = find_collection(name)
        assert collection.qrels is not None
        assert {query.query_id: query.text for query in read_queries(collection.queries).values()} == {
            "0": "why?",
            "1": "how\nso?",
            "2": "what",
        }
        assert read_qrels(collection.qrels) == {"0": {"a/1": 1, "b": 1}, "1": {"b": 1}}
        assert collection.excluded == {"1": {"c", "a/1"}}
        expected = [Passage(row["id"], row["content"]) for row in DOCUMENTS]
        assert list(collection.corpus.passages()) == expected
        store = collection.corpus.store()
        assert [store.get(passage.doc_id) for passage in expected] == expected
        store.close()


def test_load_bright_detects_changed_files(tmp_path: Path) -> None:
    root = write_bright(tmp_path, "parquet")
    before = load_bright(f"{root}/biology")
    assert load_bright(f"{root}/biology") == before
    for path in (root / "examples").iterdir():
        os.utime(path, (1, 1))
    assert load_bright(f"{root}/biology").queries != before.queries


def test_load_bright_ignores_subsets_with_same_prefix(tmp_path: Path) -> None:
    root = write_bright(write_bright(tmp_path, "jsonl", "pony"), "jsonl", "pony_club")
    assert load_bright(f"{root}/pony").documents == root / "documents" / "pony.jsonl"


@pytest.mark.parametrize("name", ["bright:biology", "bright:here/biology"])
def test_find_collection_explains_how_to_get_bright(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="BRIGHT's biology is not on this machine") as error_info:
        find_collection(name)
    remedy = error_info.value.remedy
    assert "get documents/biology-*.parquet and examples/biology-*.parquet" in remedy
    assert "https://huggingface.co/datasets/xlangai/BRIGHT" in remedy
    assert ("into here" if "/" in name else "RANK_K_DATA/BRIGHT") in remedy


def test_load_bright_reports_missing_examples(tmp_path: Path) -> None:
    root = write_bright(tmp_path, "jsonl")
    (root / "examples" / "biology.jsonl").unlink()
    with pytest.raises(InputError, match="has no examples of biology"):
        load_bright(f"{root}/biology")


def test_find_collection_downloads_bright_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra [bright]")
    downloads: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        downloads.append((repository, options))
        return str(write_bright(tmp_path / "snapshot", "parquet"))

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert read_queries(find_collection("bright:biology").queries)["0"].text == "why?"
    patterns = ["documents/biology-*", "examples/biology-*"]
    assert downloads == [("xlangai/BRIGHT", {"repo_type": "dataset", "allow_patterns": patterns})]


def test_find_collection_lists_bright_subsets_for_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no subset 'biologie'") as error_info:
        find_collection("bright:biologie")
    assert all(subset in error_info.value.remedy for subset in SUBSETS)
    with pytest.raises(InputError, match="does not name a subset"):
        find_collection("bright:folder/")


@pytest.mark.parametrize(
    ("part", "content", "problem"),
    [
        ("examples/biology.jsonl", '{"id": "0"}\n', "no query"),
        ("examples/biology.jsonl", "rubbish\n", "invalid JSON"),
        ("documents/biology.jsonl", '{"id": "0"}\n', "no text"),
        ("documents/biology.parquet", "PAR1 rubbish", "not Parquet data"),
    ],
)
def test_load_bright_rejects_malformed_files(tmp_path: Path, part: str, content: str, problem: str) -> None:
    root = write_bright(tmp_path, "jsonl")
    (root / part).write_text(content)
    with pytest.raises(FormatError, match=problem) as error_info:
        list(read_passages(load_bright(f"{root}/biology").documents))
    assert error_info.value.path == str(root / part)


def test_load_bright_names_extra_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_bright(tmp_path, "parquet")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtra, match=r"rank-k\[bright\]"):
        load_bright(f"{root}/biology")
