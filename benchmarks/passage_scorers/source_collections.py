"""Prepare the training sources: passages of 100 to 200 tokens, queries, judgments, BM25 runs, and the held-out part.

    python -m benchmarks.passage_scorers.source_collections OUTPUT_FOLDER [--collections ../shared/data]

Writes for each source `NAME/` with corpus.jsonl, queries.jsonl, qrels.trec and bm25.trec (depth 20), and for
measurements `heldout-NAME/` with the first held-out queries that have a relevant passage among BM25's best 20. Two
sources are held out entirely: `pubmedqa` (titles of papers) and `nq-clapnq` (web questions; only those whose positive
is a passage and not an answer written by a person). Of the others, the 5% of the queries that `rank-k distill select`
holds out are held out here too. Queries that nearly repeat a query of an evaluation set are dropped, and so are
training queries that nearly repeat a held-out one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from benchmarks.student_data import COLLECTIONS, EVALUATED_COLLECTIONS, Collection, normalize_question, rows, run, write
from rank_k.data.long_documents import PassageSplit, passage_id
from rank_k.data.trec import RunWriter, read_qrels, read_run
from rank_k.distill.near_duplicates import CONTAMINATION_SIMILARITY, NearDuplicateIndex
from rank_k.distill.select import is_heldout

HELD_OUT_SOURCES = ("nq-clapnq", "pubmedqa")
HELD_OUT_SHARE = 0.05
HELD_OUT_QUERIES = 100
"""Queries of each held-out collection at most."""
DEPTH = 20
PASSAGE_SPLIT = PassageSplit(150, max_passages=3)
MIN_PIECE_WORDS = 25
"""A shorter rest of a document is left out."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--collections", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    args = parser.parse_args()
    index = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    for name in EVALUATED_COLLECTIONS:
        for row in rows(args.collections / name, "queries"):
            index.add(row["text"], f"{name} {row['_id']}")
    queries_by_source = {
        collection.name: read_source_queries(collection, args.collections) for collection in COLLECTIONS
    }
    counts: Row = defaultdict(dict)
    for name, queries in queries_by_source.items():
        clean = [row for row in queries if index.find(row["text"]) is None]
        counts[name]["like an evaluation query"] = len(queries) - len(clean)
        queries_by_source[name] = clean
    for name, queries in queries_by_source.items():
        for row in queries:
            if row["heldout"]:
                index.add(row["text"], f"{name} {row['_id']}")
    for collection in COLLECTIONS:
        name, queries = collection.name, queries_by_source[collection.name]
        kept = [row for row in queries if row["heldout"] or index.find(row["text"]) is None]
        counts[name]["like a held-out query"] = len(queries) - len(kept)
        counts[name]["held out"] = sum(row["heldout"] for row in kept)
        counts[name]["for training"] = len(kept) - counts[name]["held out"]
        counts[name]["license"] = collection.license(args.collections)
        counts[name]["passages"] = write_source(collection, args.collections, args.output / name, kept)
        counts[name]["measured"] = write_heldout(args.output / name, args.output / f"heldout-{name}", kept)
        print(name, json.dumps(counts[name]), flush=True)
    (args.output / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def read_source_queries(collection: Collection, root: Path) -> list[Row]:
    """Return `_id`, `text` and `heldout` of the queries of a source."""
    whole_source = collection.name in HELD_OUT_SOURCES
    return [
        {
            "_id": row["_id"],
            "text": normalize_question(row),
            "heldout": whole_source or is_heldout(row["_id"], collection.name, HELD_OUT_SHARE),
        }
        for part in collection.parts
        for row in rows(root / part, "queries")
        if row.get("part") != "train-answer"
    ]


def write_source(collection: Collection, root: Path, folder: Path, queries: list[Row]) -> int:
    """Write corpus, queries, judgments and BM25 run of one source; return the number of passages.

    Judgments: 2 for the pieces of a relevant document, 1 for BM25 candidates on the topic of one (`Collection.topic`),
    0 for those judged not relevant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    topics: dict[str, str] = {}
    pieces: defaultdict[str, list[str]] = defaultdict(list)
    write(folder / "corpus.jsonl", _passages(collection, root, topics, pieces))
    write(folder / "queries.jsonl", iter(queries))
    files = ("--queries", folder / "queries.jsonl", "--documents", folder / "corpus.jsonl")
    run("retrieve", *files, "--depth", str(DEPTH), "--output", folder / "bm25.trec")
    first_stage = read_run(folder / "bm25.trec")
    query_ids = {row["_id"] for row in queries}
    with (folder / "qrels.trec").open("w", encoding="utf-8") as qrels:
        for part in collection.parts:
            for query_id, document_grades in read_qrels(root / part / "qrels.trec").items():
                if query_id not in query_ids:
                    continue
                grades = {piece: 2 * grade for doc, grade in document_grades.items() for piece in pieces[doc]}
                relevant_topics = {topics[piece] for piece, grade in grades.items() if grade > 0} - {""}
                for candidate in first_stage.get(query_id, ()):
                    if grades.get(candidate.doc_id, 0) <= 0 and topics[candidate.doc_id] in relevant_topics:
                        grades[candidate.doc_id] = 1
                qrels.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in grades.items())
    return len(topics)


def _passages(
    collection: Collection, root: Path, topics: dict[str, str], pieces: defaultdict[str, list[str]]
) -> Iterator[Row]:
    for part in collection.parts:
        for document in rows(root / part, "corpus"):
            title = document["title"] if collection.titled else ""
            texts = list(PASSAGE_SPLIT.passages(document["text"])) if collection.pieces else [document["text"]]
            for number, text in enumerate(texts):
                if number and len(text.split()) < MIN_PIECE_WORDS:
                    continue
                doc_id = passage_id(document["_id"], number)
                topics[doc_id] = collection.topic(document) if collection.topic else ""
                pieces[document["_id"]].append(doc_id)
                yield {"_id": doc_id, "title": title, "text": " ".join(text.split())}


def write_heldout(source: Path, folder: Path, queries: list[Row]) -> int:
    """Write the held-out queries of a source as a collection of its own; return their number."""
    folder.mkdir(exist_ok=True)
    qrels, bm25 = read_qrels(source / "qrels.trec"), read_run(source / "bm25.trec")

    def usable(query_id: str) -> bool:
        return any(qrels.get(query_id, {}).get(candidate.doc_id, 0) > 0 for candidate in bm25.get(query_id, ()))

    heldout_ids = [row["_id"] for row in queries if row["heldout"] and usable(row["_id"])]
    chosen = sorted(heldout_ids, key=lambda query_id: crc32(query_id.encode()))[:HELD_OUT_QUERIES]
    doc_ids = {candidate.doc_id for query_id in chosen for candidate in bm25[query_id]}
    write(folder / "queries.jsonl", (row for row in rows(source, "queries") if row["_id"] in set(chosen)))
    write(folder / "corpus.jsonl", (row for row in rows(source, "corpus") if row["_id"] in doc_ids))
    with (folder / "qrels.trec").open("w") as file, RunWriter(folder / "run.bm25.trec") as writer:
        for query_id in chosen:
            file.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in qrels[query_id].items())
            writer.write_query(query_id, [candidate.doc_id for candidate in bm25[query_id]])
    return len(chosen)


def passage_text(row: Mapping[str, Any]) -> str:
    """Return what a scorer sees of a passage."""
    return f"{row['title']} {row['text']}".strip()


if __name__ == "__main__":
    main()
