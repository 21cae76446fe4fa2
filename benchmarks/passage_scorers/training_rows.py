"""Make training rows: queries of several kinds, graded positives, BM25 negatives and negatives mined by MiniLM.

    python -m benchmarks.passage_scorers.training_rows DATA_FOLDER --package WHEEL [--train-on-all]

DATA_FOLDER: as `benchmarks.passage_scorers.source_collections` wrote it. Writes `train.jsonl`, one row per query:

    {"query_id", "query", "kind", "source", "show_titles",
     "positives": [[doc_id, target], ...], "bm25": [[doc_id, target], ...],
     "mined": [[doc_id, target, cosine ratio], ...]}

and `passages.jsonl` with the passages that the rows name, and `card.json` with all counts. Vectors are cached in
DATA_FOLDER, so the command can be run again to resume.

*Kinds of queries.* `question` as written; `keywords`, the content words of a question (`KEYWORDS_SHARE` of the
questions, instead of it); `title`, the title of a Wikipedia article (passages are shown without titles); `claim`, a
sentence taken out of its passage.

*Mined negatives* are the positives of other queries, from all sources, that MiniLM finds nearest to the query; those
of the query's own source come first, since the style of a passage from another source can tell it apart. Rules for a
passage with cosine c to the query, where the best positive has cosine p and the passage's own most similar query has
cosine s to this query:

    s >= 0.85, or c >= 0.95 p and s >= 0.6     suspected false negative: removed
    c >= 0.95 p and s < 0.6                    target 0.3
    0.85 p <= c < 0.95 p                       target 0.15
    otherwise                                  target 0

"Positive-aware" thresholds follow NV-Retriever (Moreira et al. 2024); the comparison with the passage's own query is
ours. BM25 negatives are ranks 2 to 15 of the query's source without any filter, target 0: the data of rank-k-nano.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import numpy as np
import torch

from benchmarks.passage_scorers.bert import encode, load_bert, load_tokenizer
from benchmarks.passage_scorers.minilm import read_archive
from benchmarks.passage_scorers.source_collections import HELD_OUT_SOURCES, passage_text
from benchmarks.student_data import COLLECTIONS, rows, write
from rank_k.data.long_documents import document_id
from rank_k.data.trec import read_qrels, read_run

MINING_TOKENS = 96
"""Tokens of a passage that the mining model sees."""
CHUNK = 1024
"""Texts that are encoded between two writes to the cache."""
NEIGHBORS = 200
MINED_SAME_SOURCE, MINED_OTHER_SOURCES = 9, 3
BM25_RANKS = range(1, 15)
"""Counted from 0: the first unjudged one may be relevant."""
TARGET_LATER_PIECE, TARGET_RELATED = 0.7, 0.4
KEYWORDS_SHARE = 0.15
MAX_CLAIMS = MAX_TITLES = 3000

_STOP_WORDS = frozenset(
    """a about an and are as at be been being but by can could did do does doing for from had has have he her his how i
    if in into is it its me my of on or our she should so than that the their them there they this to was we were what
    when where which who whom whose why will with would you your""".split()
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--train-on-all", action="store_true", help="use the held-out sources too (to ship a model)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources = [row.name for row in COLLECTIONS if args.train_on_all or row.name not in HELD_OUT_SOURCES]
    passages: dict[str, Row] = {}
    queries: list[Row] = []
    for source in sources:
        source_passages = {row["_id"]: {**row, "source": source} for row in rows(args.data / source, "corpus")}
        passages |= source_passages
        queries += question_rows(args.data / source, source)
        queries += claim_rows(source_passages, queries, source)
        queries += title_rows(source_passages, queries, source)
    pool = sorted({doc_id for row in queries for doc_id, target in row["positives"] if target == 1})
    package = read_archive(args.package)
    encoder, tokenizer = load_bert(package).to(torch.bfloat16), load_tokenizer(package)
    vectors = encode_cached(
        args.data / "vectors", encoder, tokenizer, [passage_text(passages[doc_id]) for doc_id in pool]
    )
    query_vectors = encode_cached(args.data / "query-vectors", encoder, tokenizer, [row["query"] for row in queries])
    removed = add_mined_negatives(queries, query_vectors, pool, vectors, passages)
    used = {row[0] for query in queries for part in ("positives", "bm25", "mined") for row in query[part]}
    write(args.data / "train.jsonl", iter(queries))
    write(args.data / "passages.jsonl", (passages[doc_id] for doc_id in sorted(used)))
    card = describe(queries, passages, used, removed, json.loads((args.data / "counts.json").read_text()))
    (args.data / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


def question_rows(folder: Path, source: str) -> Iterator[Row]:
    """Yield one row per training question with its graded positives and BM25 negatives."""
    qrels, bm25 = read_qrels(folder / "qrels.trec"), read_run(folder / "bm25.trec")
    available = {row["_id"] for row in rows(folder, "corpus")}
    for row in rows(folder, "queries"):
        query_id = row["_id"]
        grades = {doc_id: grade for doc_id, grade in qrels.get(query_id, {}).items() if doc_id in available}
        if row["heldout"] or not any(grade >= 2 for grade in grades.values()):
            continue
        positives = [
            [doc_id, 1.0 if doc_id.endswith("#0") else TARGET_LATER_PIECE] if grade >= 2 else [doc_id, TARGET_RELATED]
            for doc_id, grade in grades.items()
            if grade > 0
        ]
        unjudged = [candidate.doc_id for candidate in bm25.get(query_id, ()) if grades.get(candidate.doc_id, 0) <= 0]
        negatives = [[unjudged[rank], 0.0] for rank in BM25_RANKS if rank < len(unjudged)]
        query, kind = row["text"], "question"
        if crc32(f"keywords {query_id}".encode()) < KEYWORDS_SHARE * 2**32 and (keywords := extract_keywords(query)):
            query, kind = keywords, "keywords"
        yield {
            "query_id": query_id,
            "query": query,
            "kind": kind,
            "source": source,
            "show_titles": True,
            "positives": positives,
            "bm25": negatives,
        }


def extract_keywords(question: str) -> str | None:
    """Return the content words of a question, or None if there are fewer than two."""
    words = [word for word in re.findall(r"[\w'’-]+", question) if word.casefold() not in _STOP_WORDS]
    return " ".join(words) if len(words) >= 2 else None


def claim_rows(passages: Mapping[str, Row], questions: Iterable[Row], source: str) -> list[Row]:
    """Return rows whose query is a sentence of 8 to 25 words out of the middle of a first piece.

    The sentence is removed where the passage is shown as the positive (`cut`).
    """
    positives = {row["positives"][0][0] for row in questions if row["source"] == source}
    claims = []
    for doc_id in sorted(positives, key=lambda doc_id: crc32(doc_id.encode())):
        sentences = _SENTENCES.split(passages[doc_id]["text"])
        candidates = [sentence for sentence in sentences[1:-1] if 8 <= len(sentence.split()) <= 25]
        if len(sentences) >= 4 and candidates:
            sentence = Random(doc_id).choice(candidates)
            claims.append(_extra_row(f"claim-{doc_id}", sentence.rstrip("."), "claim", source, [[doc_id, 1.0]]))
            claims[-1]["cut"] = sentence
        if len(claims) == MAX_CLAIMS // 4:
            break
    return claims


def title_rows(passages: Mapping[str, Row], questions: Iterable[Row], source: str) -> list[Row]:
    """Return rows whose query is the title of an article; its passages are the positives, shown without titles."""
    used = {document_id(doc_id) for row in questions if row["source"] == source for doc_id, _ in row["positives"]}
    by_title: defaultdict[str, list[str]] = defaultdict(list)
    for doc_id, row in passages.items():
        if row["title"]:
            by_title[row["title"].replace(" - ", " ")].append(doc_id)
    titles = [
        _extra_row(f"title-{doc_ids[0]}", title, "title", source, [[doc_id, 1.0] for doc_id in doc_ids])
        for title, doc_ids in by_title.items()
        if len(doc_ids) <= 4 and len(title.split()) >= 2 and document_id(doc_ids[0]) in used
    ]
    for row in titles:
        row["show_titles"] = False
    return sorted(titles, key=lambda row: crc32(row["query_id"].encode()))[:MAX_TITLES]


def _extra_row(query_id: str, query: str, kind: str, source: str, positives: list[list[Any]]) -> Row:
    return {
        "query_id": query_id,
        "query": query,
        "kind": kind,
        "source": source,
        "show_titles": True,
        "positives": positives,
        "bm25": [],
    }


def encode_cached(path: Path, encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Any:
    """Return the vectors of `texts`; finished chunks are kept in the folder `path`."""
    path.mkdir(exist_ok=True)
    chunks = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        file = path / f"{crc32(json.dumps(chunk).encode()):08x}.npy"
        if not file.exists():
            np.save(path / "part.npy", encode(encoder, tokenizer, chunk, MINING_TOKENS).astype(np.float16))
            (path / "part.npy").replace(file)
            print(f"{path.name}: {start + len(chunk)} of {len(texts)}", flush=True)
        chunks.append(np.load(file).astype(np.float32))
    return np.concatenate(chunks)


def add_mined_negatives(
    queries: list[Row], query_vectors: Any, pool: Sequence[str], vectors: Any, passages: Mapping[str, Row]
) -> Counter[str]:
    """Add `mined` to each row; return how many neighbors were treated how."""
    place = {doc_id: index for index, doc_id in enumerate(pool)}
    sources = [passages[doc_id]["source"] for doc_id in pool]
    queries_of: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(queries):
        for doc_id, target in row["positives"]:
            if target == 1 and row["kind"] in ("question", "keywords"):
                queries_of[place[doc_id]].append(number)
    treated: Counter[str] = Counter()
    for number, (row, cosines, nearest) in enumerate(_nearest(queries, query_vectors, vectors)):
        positive_ids = {doc_id for doc_id, _ in row["positives"]}
        documents = {document_id(doc_id) for doc_id in positive_ids}
        best = max(float(cosines[place[doc_id]]) for doc_id, target in row["positives"] if target == 1)
        wanted = {True: MINED_SAME_SOURCE, False: MINED_OTHER_SOURCES}
        row["mined"] = []
        for index in nearest:
            doc_id, own = pool[index], sources[index] == row["source"]
            if not wanted[own] or document_id(doc_id) in documents:
                continue
            similar = max(
                (float(query_vectors[other] @ query_vectors[number]) for other in queries_of[index]), default=0
            )
            ratio = float(cosines[index]) / max(best, 1e-6)
            target = soft_target(ratio, similar)
            treated["removed" if target is None else f"target {target:g}"] += 1
            if target is not None:
                row["mined"].append([doc_id, target, round(ratio, 3)])
                wanted[own] -= 1
    return treated


def _nearest(queries: list[Row], query_vectors: Any, vectors: Any) -> Iterator[tuple[Row, Any, Any]]:
    """Yield each query with its cosines to the pool and the indices of its `NEIGHBORS` nearest, best first."""
    count = min(NEIGHBORS, len(vectors)) - 1
    for start in range(0, len(queries), 256):
        block = slice(start, start + 256)
        for row, cosines in zip(queries[block], query_vectors[block] @ vectors.T, strict=True):
            nearest = np.argpartition(-cosines, count)[: count + 1]
            yield row, cosines, nearest[np.argsort(-cosines[nearest], kind="stable")]


def soft_target(ratio: float, similar: float) -> float | None:
    """Return the target of a mined negative, or None for a suspected false negative (see the module)."""
    if similar >= 0.85 or (ratio >= 0.95 and similar >= 0.6):
        return None
    if ratio >= 0.95:
        return 0.3
    return 0.15 if ratio >= 0.85 else 0.0


def describe(
    queries: list[Row], passages: Mapping[str, Row], used: set[str], removed: Counter[str], counts: Row
) -> Row:
    """Return the numbers of the data card."""
    words = sorted(len(passage_text(passages[doc_id]).split()) for doc_id in used)
    return {
        "rows": len(queries),
        "rows by source": Counter(row["source"] for row in queries),
        "rows by kind": Counter(row["kind"] for row in queries),
        "passages": len(used),
        "words of a passage (10%, 50%, 90%)": [words[len(words) * share // 10] for share in (1, 5, 9)],
        "positives": sum(len(row["positives"]) for row in queries),
        "bm25 negatives": sum(len(row["bm25"]) for row in queries),
        "mined negatives": sum(len(row["mined"]) for row in queries),
        "mined from the query's own source": sum(
            passages[doc_id]["source"] == row["source"] for row in queries for doc_id, *_ in row["mined"]
        ),
        "neighbors of MiniLM, treated": dict(sorted(removed.items())),
        "sources": counts,
    }


if __name__ == "__main__":
    main()
