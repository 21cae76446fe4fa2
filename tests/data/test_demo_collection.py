"""The demo collection: its passages, its judgments, and that these hold from Python 3.11 to 3.13."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.collections import demo
from rank_k.data.collections.registry import find_collection
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Passage
from tests.paths import ROOT
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.integration

SOURCE = ROOT / "src"
JUDGED_RELEASES = {(3, 11, 2), (3, 11, 7), (3, 12, 1), (3, 13, 0)}
"""Where the judged texts come from. Other releases of these versions have a text here and there of their own."""

PYENV_VERSIONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
"""Found at import: within a test HOME is another."""

SUMMARY_PROGRAM = """
import ast, json, sys, sysconfig, time, tomllib
from importlib.resources import files
from pathlib import Path
begin = time.process_time()
from rank_k.data.collections import demo
from rank_k.data.collections.registry import find_collection
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels
count = len(demo.load_passages())
seconds = time.process_time() - begin
begin = time.process_time()
root = Path(sysconfig.get_path("stdlib"))
for place in (root.joinpath(*module.split(".")) for module in demo.SOURCE_MODULES):
    for source in (place.with_name(place.name + ".py"), place / "__init__.py"):
        if source.is_file():
            ast.parse(source.read_bytes())
parsing = time.process_time() - begin
questions = tomllib.loads(files("rank_k.data.collections").joinpath(demo.QUESTIONS_FILE).read_text(encoding="utf-8"))
listed = sum(len(entry["judgments"]) for entry in questions.values())
print(json.dumps({
    "release": list(sys.version_info[:3]), "passages": count, "seconds": seconds, "parsing": parsing,
    "listed": listed,
    "qrels": demo.load_qrels(), "modules": sorted(sys.modules),
}))
"""


def summarize_collection(interpreter: str, *options: str) -> dict[str, Any]:
    """What `interpreter` makes of the collection, with no third-party package in reach."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(
        [interpreter, "-S", *options, "-c", SUMMARY_PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    summary: dict[str, Any] = json.loads(process.stdout)
    return summary


def find_interpreter(version: str) -> str | None:
    """A Python of that version: this one, on PATH (pyenv's shims may be there and not work), or among pyenv's."""
    if sysconfig.get_python_version() == version:
        return sys.executable
    on_path = shutil.which(f"python{version}")
    for candidate in [
        *([on_path] if on_path else []),
        *map(str, sorted(PYENV_VERSIONS.glob(f"{version}.*/bin/python"))),
    ]:
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.fixture
def rebuilt_passages() -> Iterator[None]:
    """Passages are made again, in the test and after it."""
    demo._passages_by_id.cache_clear()
    yield
    demo._passages_by_id.cache_clear()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_demo_judgments_hold_in_every_python_version(version: str) -> None:
    interpreter = find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no working Python {version} on PATH or under pyenv")
    summary = summarize_collection(interpreter)
    share_of_judgments = sum(map(len, summary["qrels"].values())) / summary["listed"]
    assert share_of_judgments >= (0.95 if tuple(summary["release"]) in JUDGED_RELEASES else 0.75)
    for query_id, grades in summary["qrels"].items():
        assert sum(grade >= 1 for grade in grades.values()) >= 2, query_id
        assert max(grades.values()) >= 2, query_id
    assert summary["passages"] > 3000
    assert summary["seconds"] < 6 * summary["parsing"]  # measured: 1.7 to 1.9 times as long as parsing the same sources
    assert not {"antigravity", "this", "tkinter", "idlelib", "turtle", "numpy", "bm25s"} & set(summary["modules"])


def test_demo_qrels_do_not_change_without_docstrings() -> None:
    """`python -OO` drops the docstrings of what it imports; ours are read from source."""
    assert summarize_collection(sys.executable, "-OO")["qrels"] == demo.load_qrels()


@pytest.mark.usefixtures("rebuilt_passages")
def test_demo_passages_report_python_without_help_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"pydoc_data.*; install"):
        demo.load_passages()


@pytest.mark.usefixtures("rebuilt_passages")
def test_demo_questions_report_python_without_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"source of its standard library.*; run"):
        demo.load_questions()


def test_demo_passages_are_distinct_and_within_length() -> None:
    passages = demo.load_passages()
    assert len({passage.doc_id for passage in passages}) == len(passages)
    assert len({passage.text for passage in passages}) == len(passages)
    words = [len(passage.text.split()) for passage in passages]
    assert min(words) > demo.MIN_WORDS
    assert sum(count > 150 for count in words) < 20  # a sentence or an example that cannot be cut
    assert not any(character.isspace() for passage in passages for character in passage.doc_id)


def test_demo_passages_contain_known_texts() -> None:
    texts = {passage.doc_id: passage.text for passage in demo.load_passages()}
    assert texts["list.copy"] == "list.copy()\nReturn a shallow copy of the list."
    assert texts["asyncio.wait_for"].startswith("asyncio.wait_for(fut, timeout)\nWait for the single Future")
    assert texts["topic:pass/pass-is-a-null-operation"].startswith('The "pass" statement\n"pass" is a null operation')
    assert "::=" not in texts["topic:pass/pass-is-a-null-operation"]


def test_demo_questions_have_enough_judgments() -> None:
    questions = demo.load_questions()
    assert 38 <= len(questions) <= 45
    assert [question.query.query_id for question in questions if question.featured] == [
        question.query.query_id for question in questions
    ][::7]
    assert sum(question.featured for question in questions) == 6
    assert len({question.query.text for question in questions}) == len(questions)
    for question in questions:
        assert len(question.judgments) >= 12
        assert set(question.judgments.values()) <= {0, 1, 2, 3}
    relevant_counts = [sum(grade > 0 for grade in question.judgments.values()) for question in questions]
    assert sum(relevant_counts) / len(relevant_counts) > 8
    assert sum(3 in question.judgments.values() for question in questions) > 0.8 * len(questions)


def test_demo_qrels_omit_changed_and_missing_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    judgments = demo.load_qrels()["cache-results"]
    assert judgments["functools.cache"] == 3
    texts = dict(demo._passages_by_id())
    changed = Passage("functools.cache", f"{texts['functools.cache'].text} It is deprecated.")
    monkeypatch.setattr(demo, "_passages_by_id", lambda: {**texts, "functools.cache": changed})
    assert demo.load_qrels()["cache-results"] == {
        doc_id: grade for doc_id, grade in judgments.items() if doc_id != "functools.cache"
    }
    del texts["functools.lru_cache"]
    monkeypatch.setattr(demo, "_passages_by_id", lambda: texts)
    assert demo.load_qrels()["cache-results"] == {
        doc_id: grade for doc_id, grade in judgments.items() if doc_id != "functools.lru_cache"
    }


def test_demo_bm25_finds_relevant_passages_but_is_not_perfect() -> None:
    """A first stage that found all or nothing would leave a reranker nothing to show."""
    questions, qrels = demo.load_questions(), demo.load_qrels()
    run = dict(retrieve([question.query for question in questions], demo.load_passages(), depth=12))
    has_relevant = [any(qrels[query_id].get(candidate.doc_id, 0) for candidate in run[query_id]) for query_id in run]
    assert sum(has_relevant) > 0.9 * len(questions)
    assert 0.25 < evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"] < 0.75
    featured = [question.query.query_id for question in questions if question.featured]
    assert all(any(qrels[query_id].get(c.doc_id, 0) for c in run[query_id]) for query_id in featured)


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=300).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=8))
def test_split_text_keeps_every_word(paragraphs: list[str]) -> None:
    text = "\n\n".join(f"{paragraph}." for paragraph in paragraphs)
    parts = demo._split_text(text, "title")
    assert " ".join(body for _, body in parts).split() == text.split()
    assert all(title == "title" and body for title, body in parts)


@given(st.lists(WORDS, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_fingerprint_depends_on_words_only(words: list[str], rng: random.Random) -> None:
    plain = " ".join(words)
    prefixes, suffixes = ["", "``", "“", "(", "*"], [" ", ", ", ")\n   "]
    decorated = "".join(f"{rng.choice(prefixes)}{word}{rng.choice(suffixes)}" for word in words)
    assert demo.fingerprint(plain) == demo.fingerprint(decorated.upper())
    assert demo.fingerprint(plain) != demo.fingerprint(f"{plain} more")


def test_split_text_realigns_after_inserted_paragraph() -> None:
    rng = random.Random(7)
    paragraphs = [f"Paragraph {n} " + "says so. " * rng.randint(8, 30) for n in range(40)]
    bodies_before = [body for _, body in demo._split_text("\n\n".join(paragraphs), "")]
    paragraphs.insert(3, "This one is new, and it is here only to move what follows it.")
    bodies_after = [body for _, body in demo._split_text("\n\n".join(paragraphs), "")]
    assert len(set(bodies_before) - set(bodies_after)) <= 6 < len(bodies_before) / 2


def test_split_text_handles_headings_definitions_and_tables() -> None:
    filler = "The reader is told what it does and why. " * 4
    text = (
        f"Methods\n=======\n\n{filler}\n\nx.join(items)\n\n   {filler}\n\nx.split()\n\n   {filler}\n\n"
        '   stmt ::= "x" expression\n\nChanged in version 3.9: gone.\n\n'
        "+------+---------+\n| Name | Meaning |\n|======|=========|\n"
        "| 'a'  | first   |\n|      | letter  |\n+------+---------+\n"
    )
    parts = demo._split_text(text, "topic")
    assert {title for title, _ in parts} == {"Methods"}
    assert [body.split()[0] for _, body in parts][:3] == ["The", "x.join(items)", "x.split()"]
    body = "\n".join(body for _, body in parts)
    assert "* Name: Meaning\n* 'a': first letter" in body
    assert "::=" not in body
    assert "3.9" not in body


def test_find_collection_returns_python_docs() -> None:
    collection = find_collection("python-docs")
    assert collection.qrels is not None
    assert read_qrels(collection.qrels) == demo.load_qrels()
    queries = read_queries(collection.queries)
    assert [query.text for query in queries.values()] == [q.query.text for q in demo.load_questions()]
    store = collection.corpus.store()
    passage = demo.load_passages()[17]
    assert store.get(passage.doc_id) == passage
    store.close()
    assert find_collection("python-docs") == collection, "made once"
