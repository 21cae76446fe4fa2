"""The data for a student of our own: made from labels by `rank-k distill`, step by step.

    python -m benchmarks.student_data OUTPUT_FOLDER [--collections ../shared/data]

Only texts whose licenses allow a trained model to be shipped. Writes `train.jsonl` and `heldout.jsonl` (5 % of the
queries of each source) and tells how many rows there are of what: two and a half minutes of one processor. With
`--form order` the rows hold the order alone, for a student that is not taught to think: the same sets, the same files.

The held-out queries become collections of their own, `heldout-NAME/` with BM25's 20 best for up to 60 queries, on which
`benchmarks.student` measures what is to be chosen: collections that the student is judged on choose nothing.

Labels: `yes` is judged relevant; `partly` is about the same article, or names the same illness, and is among the
first 20 of BM25; `no` is another of the first 15, but for the very first unjudged one, which may be relevant. Of health
questions, of which many pages answer the same ones, passages that hold all words of the question are left out too.

- Sets of questions on Wikipedia paragraphs are pooled, for harder negatives. Sets of answers in a style of their own
  are not: there the style would tell what is relevant.
- Collections of long answers are cut into pieces of the length that the student sees, so that a set can have several
  relevant passages: where there is one at most, a student learns to say no to all after the first yes.
- Half of the questions are in lower case and without question mark, as people type them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

from rank_k.cli import main as rank_k
from rank_k.data.long_documents import PassageSplit, document_id, passage_id
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunWriter, read_qrels, read_run
from rank_k.distill.candidate_sets import read_license
from rank_k.retrieval.analyzers import analyzer_for

PASSAGE_TOKENS = 50
PASSAGE_SPLIT = PassageSplit(PASSAGE_TOKENS, max_passages=3)
MIN_PIECE_CHARACTERS = 40
"""Characters: the rest of an answer behind its last cut may be a word or two."""

Document = dict[str, Any]


def _article_title(document: Document) -> str:
    """The article of a paragraph: some titles are "article - section"."""
    return str(document["title"]).partition(" - ")[0]


@dataclass(frozen=True)
class Collection:
    """`parts`: folders that are pooled, each with a PROVENANCE.md that says its license. `topic`: what passages that
    are partly relevant share with a relevant one; `names`: or they hold all words of the question but those of its
    mould. `pieces`: long texts are cut. `titled`: texts are shown with their titles."""

    name: str
    parts: tuple[str, ...]
    topic: Callable[[Document], str] | None = None
    names: bool = False
    pieces: bool = False
    titled: bool = True

    def license(self, root: Path) -> str:
        """Of its texts, as its parts have it; `root`: the folder of all collections."""
        licenses = {part.rpartition("/")[2]: read_license(root / part) for part in self.parts}
        if len(licenses) == 1:
            return next(iter(licenses.values())) or "unnamed"
        return "; ".join(f"{name}: {license}" for name, license in licenses.items())


COLLECTIONS = (
    Collection(
        "wikipedia",
        ("train/nq-litm", "train/nq-qed", "train/boolq", "train/selqa", "train/quotesum"),
        topic=_article_title,
    ),
    Collection("nq-clapnq", ("train/nq-clapnq",), titled=False),
    Collection("ragqa-lotte-forum", ("train/ragqa-lotte-forum",), pieces=True),
    Collection("dolly-qa", ("train/dolly-qa",), pieces=True),
    Collection("pubmedqa", ("train/pubmedqa",)),
    Collection("medquad", ("medquad-train",), names=True, pieces=True),
)

EVALUATED_COLLECTIONS = (
    "trec-dl19",
    "noveleval",
    "cranfield",
    "vaswani",
    "wikiqa",
    "birco-clinical-trial-dev",
    "birco-wtb-dev",
    "birco-doris-mae-dev",
    "xquad-en-ru",
)
"""Collections that the student is measured on: no query of theirs, and none that is nearly one, is trained on."""

QUESTION_TEMPLATE_WORDS = """\
what is are the causes of symptoms treatments for how to diagnose inherited prevent who at risk many people
affected by research clinical trials being done genetic changes related outlook complications stages do you have
information about"""
"""The words of MedQuAD's questions beside the names of illnesses."""

DEPTH = 20
HELD_OUT_QUERIES = 60
SAMPLE_OPTIONS = "--sizes 3-10 --ranks 1-15 --sets-per-query 1 --positives 1-3 --none 0.15 --skip-negatives 1".split()
TRACE_OPTIONS = f"--teacher labels --prompt compact --passage-tokens {PASSAGE_TOKENS} --form".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the data")
    parser.add_argument("--collections", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--form", choices=("verdicts", "order"), default="verdicts", help="what a row teaches")
    args = parser.parse_args()
    started = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    excluded = [str(args.collections / name / "queries.jsonl") for name in EVALUATED_COLLECTIONS]
    sets = [sample_collection(collection, args.collections, excluded, args.output) for collection in COLLECTIONS]
    journal, train, held_out = (args.output / name for name in ("traces.sqlite", "train.jsonl", "heldout.jsonl"))
    run("distill", "trace", "--sets", *sets, *TRACE_OPTIONS, args.form, "--journal", journal, "--quiet")
    run("distill", "select", "--journal", journal, "--output", train, "--heldout", held_out)
    for path in (train, held_out):
        print_counts(path)
    for collection in COLLECTIONS:
        write_held_out(collection.name, held_out, args.output)
    print(f"{time.monotonic() - started:.0f} s")


def sample_collection(collection: Collection, root: Path, excluded: list[str], output: Path) -> Path:
    """The candidate sets of one collection, with its passages, judgments and run beside them."""
    folder = output / collection.name
    folder.mkdir(exist_ok=True)
    queries, documents, sets = (folder / name for name in ("queries.jsonl", "corpus.jsonl", "sets.jsonl"))
    part_folders = [root / part for part in collection.parts]
    write(
        queries,
        (
            {"_id": row["_id"], "text": normalize_question(row)}
            for part_folder in part_folders
            for row in rows(part_folder, "queries")
        ),
    )
    topics: dict[str, str] = {}
    write(documents, passages(collection, part_folders, topics))
    bm25 = folder / "bm25.trec"
    run("retrieve", "--queries", queries, "--documents", documents, "--depth", str(DEPTH), "--output", bm25)
    write_judgments(collection, part_folders, topics, folder)
    files = ("--queries", queries, "--documents", documents, "--qrels", folder / "qrels.trec", "--output", sets)
    source_options = ("--source", collection.name, "--license", collection.license(root))
    run(
        "distill",
        "sample",
        "--runs",
        folder / "run.trec",
        *files,
        *SAMPLE_OPTIONS,
        *source_options,
        "--exclude-queries",
        *excluded,
    )
    return sets


def write_held_out(name: str, held_out: Path, output: Path) -> None:
    """The first held-out queries of a collection as one that can be reranked: queries, passages, judgments, BM25's run.

    Only queries that have a relevant passage among BM25's best: the others are the same for every ranking of them.
    """
    source, folder = output / name, output / f"heldout-{name}"
    folder.mkdir(exist_ok=True)
    training_rows = (json.loads(line) for line in held_out.open(encoding="utf-8"))
    ids = dict.fromkeys(row["query_id"] for row in training_rows if row["source"] == name)
    qrels, run = read_qrels(source / "qrels.trec"), read_run(source / "bm25.trec")

    def relevant(query_id: str) -> bool:
        return any(qrels.get(query_id, {}).get(candidate.doc_id, 0) > 0 for candidate in run.get(query_id, ()))

    query_ids = list(filter(relevant, ids))[:HELD_OUT_QUERIES]
    doc_ids = {candidate.doc_id for query_id in query_ids for candidate in run[query_id]}
    write(folder / "queries.jsonl", (row for row in rows(source, "queries") if row["_id"] in set(query_ids)))
    write(folder / "corpus.jsonl", (row for row in rows(source, "corpus") if row["_id"] in doc_ids))
    with (
        (folder / "qrels.trec").open("w", encoding="utf-8") as qrels_file,
        RunWriter(folder / "run.bm25.trec") as writer,
    ):
        for query_id in query_ids:
            qrels_file.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in qrels[query_id].items())
            writer.write_query(query_id, [candidate.doc_id for candidate in run[query_id]])


def rows(folder: Path, name: str) -> Iterator[Document]:
    path = next(folder.glob(f"{name}.jsonl*"))
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from map(json.loads, file)


def write(path: Path, records: Iterator[Document]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in records:
            file.write(json.dumps(row) + "\n")


def normalize_question(row: Document) -> str:
    text = " ".join(str(row["text"]).replace("(are)", "").replace(" ?", "?").split())
    return text.lower().rstrip("?") if crc32(row["_id"].encode()) % 2 else re.sub(r"\?+$", "?", text)


def passages(collection: Collection, part_folders: list[Path], topics: dict[str, str]) -> Iterator[Document]:
    """The passages of a collection; notes the topic of each in `topics`."""
    for part_folder in part_folders:
        for document in rows(part_folder, "corpus"):
            title = document["title"] if collection.titled else ""
            texts = list(PASSAGE_SPLIT.passages(document["text"])) if collection.pieces else [document["text"]]
            for number, text in enumerate(texts):
                if number and len(text) < MIN_PIECE_CHARACTERS:
                    continue
                doc_id = passage_id(document["_id"], number)
                topics[doc_id] = collection.topic(document) if collection.topic else ""
                yield {"_id": doc_id, "title": title, "text": text}


def write_judgments(collection: Collection, part_folders: list[Path], topics: dict[str, str], folder: Path) -> None:
    """Judgments of passages, 2 for those of a relevant document and 1 for related ones, if the collection knows any;
    and the run without those that may be relevant though nobody said so."""
    relevant_factor = 2 if collection.topic or collection.names else 1
    passages_of_document: defaultdict[str, list[str]] = defaultdict(list)
    for doc_id in topics:
        passages_of_document[document_id(doc_id)].append(doc_id)
    first_stage = read_run(folder / "bm25.trec")
    related = related_by_name(folder) if collection.names else related_by_topic(topics)
    with (folder / "qrels.trec").open("w", encoding="utf-8") as qrels, RunWriter(folder / "run.trec") as writer:
        for part_folder in part_folders:
            for query_id, document_grades in read_qrels(part_folder / "qrels.trec").items():
                grades = {p: g * relevant_factor for d, g in document_grades.items() for p in passages_of_document[d]}
                ranking = [candidate.doc_id for candidate in first_stage.get(query_id, ())]
                partly_relevant, doubtful = related(query_id, [p for p in ranking if grades.get(p, 0) <= 0], grades)
                grades.update(dict.fromkeys(partly_relevant, 1))
                qrels.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in grades.items())
                writer.write_query(query_id, [doc_id for doc_id in ranking if doc_id not in doubtful])


FindRelated = Callable[[str, list[str], dict[str, int]], tuple[list[str], list[str]]]
"""A query, its candidates not judged relevant, its grades -> partly relevant ones, and doubtful ones."""


def related_by_topic(topics: dict[str, str]) -> FindRelated:
    def related(_: str, candidates: list[str], grades: dict[str, int]) -> tuple[list[str], list[str]]:
        relevant_topics = {topics[doc_id] for doc_id, grade in grades.items() if grade > 0} - {""}
        return [doc_id for doc_id in candidates if topics[doc_id] in relevant_topics], []

    return related


def related_by_name(folder: Path) -> FindRelated:
    analyze = analyzer_for("en")
    words_of_passage = {
        passage.doc_id: frozenset(analyze(passage.text)) for passage in read_passages(folder / "corpus.jsonl")
    }
    words_of_query = {
        query.query_id: frozenset(analyze(query.text)) for query in read_queries(folder / "queries.jsonl").values()
    }
    template_words = frozenset(analyze(QUESTION_TEMPLATE_WORDS))

    def related(query_id: str, candidates: list[str], grades: dict[str, int]) -> tuple[list[str], list[str]]:
        query_words = words_of_query[query_id]
        doc_ids = [doc_id for doc_id in candidates if query_words - template_words <= words_of_passage[doc_id]]
        doubtful = [doc_id for doc_id in doc_ids if query_words <= words_of_passage[doc_id]]
        return [doc_id for doc_id in doc_ids if doc_id not in doubtful], doubtful

    return related


def run(*arguments: str | Path) -> None:
    code = rank_k([*map(str, arguments)])
    if code:
        raise SystemExit(code)


def print_counts(path: Path) -> None:
    """Counts, on standard output."""
    rows: Counter[str] = Counter()
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    positives: Counter[int] = Counter()
    sizes, lengths = [], []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            completion = row["completion"][0]["content"]
            label_counts = Counter(
                word for word in completion.partition("</think>")[0].split() if word in ("no", "partly", "yes")
            )
            rows[row["source"]] += 1
            labels[row["source"]] += label_counts
            positives[label_counts["yes"] + label_counts["partly"]] += 1
            sizes.append(len(row["doc_ids"]))
            lengths.append(len(row["prompt"][0]["content"]) + len(completion))
    total = sum(rows.values())
    print(f"\n{path}: {total:,} rows, {fmean(sizes):.1f} passages and {fmean(lengths):,.0f} characters a row")
    print("relevant passages: " + ", ".join(f"{n} in {positives[n] / total:.0%}" for n in sorted(positives)))
    for source, count in rows.items():
        no, partly, yes = (labels[source][label] for label in ("no", "partly", "yes"))
        print(f"{source:<20} {count:>6,} rows, {no:>7,} no {partly:>6,} partly {yes:>6,} yes")


if __name__ == "__main__":
    main()
