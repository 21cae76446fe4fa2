"""A small collection, and the command run in this process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cli.helpers import DEPTH, GRADES, TOPICS, RankK
from tests.support.commands import run_command


@pytest.fixture
def rank_k(capfd: pytest.CaptureFixture[str]) -> RankK:
    """`rank_k("rerank", "--run", ...)` runs the command in this process."""

    return partial(run_command, capfd)


@pytest.fixture
def collection_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small collection in a folder of its own, in which the command runs. BM25 finds the documents of a topic
    in the order of their ids, since each says less of it than the one before."""
    files: dict[str, list[str]] = {"queries.jsonl": [], "corpus.jsonl": [], "qrels.trec": [], "run.trec": []}
    for query_id, (text, title_words) in TOPICS.items():
        files["queries.jsonl"].append(json.dumps({"_id": query_id, "text": text}))
        for i, grade in enumerate(GRADES):
            doc_id = f"{query_id}-d{i}"
            passage_text = f"mark:{doc_id}-G{grade} {title_words} " + "and so on for a while " * (i + 1)
            files["corpus.jsonl"].append(json.dumps({"_id": doc_id, "title": "", "text": passage_text}))
            files["qrels.trec"].append(f"{query_id} 0 {doc_id} {grade}")
            files["run.trec"].append(f"{query_id} Q0 {doc_id} {i + 1} {DEPTH - i} bm25")
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path
