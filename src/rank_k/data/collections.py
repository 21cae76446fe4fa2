"""Collections by name, and the passages of a corpus by id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rank_k.data.files import read_passages
from rank_k.errors import InputError
from rank_k.records import Passage


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """Where the parts of a collection are. `qrels` is None where nothing has been judged.

    `queries` may hold more queries than `qrels` judges: BEIR keeps all splits in one file.
    """

    documents: Path
    queries: Path
    qrels: Path | None
    runs: tuple[Path, ...] = ()
    """First-stage runs that lie beside it (`run.*.trec`), by name."""


def load_collection(name: str, split: str = "test") -> CollectionFiles:
    """The files of the collection called `name`; nothing is read or downloaded.

    `beir:DIR` is a folder in the layout of BEIR (Thakur et al. 2021): `corpus.jsonl`, `queries.jsonl` and
    `qrels/<split>.tsv`. Judgments may also be `qrels.<split>.trec`, or `qrels.trec` for the split "test",
    and `queries.<split>.jsonl` goes before `queries.jsonl`. Each may be compressed (`.gz`).

    Raises `InputError` naming what is missing and where it was looked for.
    """
    scheme, colon, place = name.partition(":")
    if scheme != "beir" or not colon or not place:
        raise InputError(f"dataset {name!r} is not understood", "write beir:DIR, a folder in the BEIR layout")
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise InputError(f"dataset {name}: {folder} is no folder", "name the one that holds corpus.jsonl")
    qrels_names = [f"qrels/{split}.tsv", f"qrels.{split}.trec", *(["qrels.trec"] if split == "test" else [])]
    qrels = _first_present(folder, qrels_names)
    if qrels is None and (judged := _splits(folder)):
        raise InputError(
            f"dataset {name} has no judgments for the split {split!r} (looked for {', '.join(qrels_names)})",
            f"choose one of the splits {', '.join(judged)}",
        )
    return CollectionFiles(
        documents=_required(folder, ["corpus.jsonl"], "documents"),
        queries=_required(folder, [f"queries.{split}.jsonl", "queries.jsonl"], "queries"),
        qrels=qrels,
        runs=tuple(sorted([*folder.glob("run.*.trec"), *folder.glob("run.*.trec.gz")])),
    )


def _first_present(folder: Path, names: list[str]) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _required(folder: Path, names: list[str], what: str) -> Path:
    path = _first_present(folder, names)
    if path is None:
        raise InputError(f"{folder} has no {what}", f"put {' or '.join(names)} (or .gz) there")
    return path


def _splits(folder: Path) -> list[str]:
    tsv = {path.name.removesuffix(".gz").removesuffix(".tsv") for path in folder.glob("qrels/*.tsv*")}
    trec = {path.name.split(".")[1] for path in folder.glob("qrels.*.trec*")}
    plain = {"test"} if _first_present(folder, ["qrels.trec"]) else set()
    return sorted(tsv | trec | plain)


class PassageStore:
    """The wanted passages of one corpus, by id. Made by `of_file`."""

    def __init__(self, source: Path, passages: Mapping[str, Passage]) -> None:
        self._source, self._passages = source, passages

    @classmethod
    def of_file(cls, path: str | Path, wanted: Collection[str]) -> PassageStore:
        """Read the passages whose ids are `wanted`. An id that the file lacks is no error until asked for.

        Raises `FormatError` for a bad line, `InputError` for one id with two texts.
        """
        passages: dict[str, Passage] = {}
        for passage in read_passages(path, wanted):
            if passages.setdefault(passage.doc_id, passage) != passage:
                raise InputError(
                    f"document {passage.doc_id} stands twice in {path}, with different texts",
                    "keep one of them",
                )
        return cls(Path(path), passages)

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """The passage. Raises `InputError` if the corpus lacks it; `query_id` only serves that message."""
        try:
            return self._passages[doc_id]
        except KeyError:
            of_query = "" if query_id is None else f" of query {query_id}"
            raise InputError(
                f"document {doc_id}{of_query} is not in {self._source}",
                "give the documents that the run was made from",
            ) from None
