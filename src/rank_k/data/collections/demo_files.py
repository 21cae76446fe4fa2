"""Python's own documentation as a data set like any other: `--dataset python-docs`. Its files are in the cache."""

from __future__ import annotations

import hashlib
import json

from rank_k.data.cache_directory import cache_directory, write_cached
from rank_k.data.collections.demo import passages, questions
from rank_k.data.collections.registry import CollectionFiles
from rank_k.data.files import trec_field

NAME = "python-docs"


def load_python_docs() -> CollectionFiles:
    """The collection of `rank-k demo`, made from the documentation of the Python that runs us: once for each text.

    Raises `InputError` where that was installed without its documentation, or where the cache cannot be written.
    """
    judged = questions()
    parts = {
        "corpus.jsonl": [_line({"_id": passage.doc_id, "text": passage.text}) for passage in passages()],
        "queries.jsonl": [_line({"_id": q.query.query_id, "text": q.query.text}) for q in judged],
        "qrels.trec": [
            b"%b 0 %b %d\n" % (trec_field("query id", q.query.query_id), trec_field("document id", doc_id), grade)
            for q in judged
            for doc_id, grade in q.judgments.items()
        ],
    }
    digest = hashlib.sha256(b"".join(line for lines in parts.values() for line in lines)).hexdigest()[:16]
    paths = []
    for name, lines in parts.items():
        path = cache_directory() / NAME / digest / name
        paths.append(path if path.is_file() else write_cached(f"{NAME}/{digest}/{name}", lines))
    documents, queries, qrels = paths
    return CollectionFiles(documents, queries, qrels)


def _line(record: dict[str, str]) -> bytes:
    return json.dumps(record).encode() + b"\n"
