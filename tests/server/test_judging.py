"""Judging: who sees what on which side, what is kept of it, and that nothing tells whose a ranking is."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.data.collections.beir import load_beir
from rank_k.data.queries import read_queries, read_translations
from rank_k.data.trec import read_run
from rank_k.errors import FormatError, InputError
from rank_k.evaluation.preferences import UNDONE, Judgment, read_judgments
from rank_k.server.judging import (
    MAX_PASSAGE_CHARACTERS,
    JudgingSession,
    PairwiseItems,
    PreferencesFile,
    displayed_pair,
    pairwise_items,
    system_names,
)
from rank_k.types import Candidate, Passage, Query
from tests.paths import SHARED

SYSTEMS = ("secret-bm25.trec", "secret-reranked.trec")
HOSTILE = "<img src=x onerror=alert(1)>"
HEBREW = "מה גורם לגאות ושפל?"
QUERIES = {f"q{number}": Query(f"q{number}", f"what is {number}") for number in range(12)}
TRANSLATIONS = {"q1": HEBREW}
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def candidates(*doc_ids: str) -> list[Candidate]:
    return [Candidate(doc_id, -place) for place, doc_id in enumerate(doc_ids)]


def make_items(systems: tuple[str, ...] = SYSTEMS, depth: int = 3, *, reverse_input: bool = False) -> PairwiseItems:
    """Every run after the first reverses the first one, except for the last query, where all runs are the same.

    `reverse_input`: the same runs and queries, read in another order.
    """
    forward, backward = (0, 1, 2, 3), (3, 2, 1, 0)
    runs = {
        name: {q: candidates(*(f"{q}-{n}" for n in (backward if place and q != "q11" else forward))) for q in QUERIES}
        for place, name in enumerate(systems)
    }
    if reverse_input:
        return pairwise_items(dict(reversed(QUERIES.items())), TRANSLATIONS, dict(reversed(runs.items())), depth)
    return pairwise_items(QUERIES, TRANSLATIONS, runs, depth)


class FakePassageStore:
    """Passages that say which they are."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self.texts = texts or {}

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        return Passage(doc_id, self.texts.get(doc_id, f"text of {doc_id}"))


# --- what is asked ---


def test_pairwise_items_cover_queries_with_differences() -> None:
    items = make_items()
    assert {question.query.query_id for question in items.items} == QUERIES.keys() - {"q11"}
    assert (items.identical, items.missing, items.depth) == (1, 0, 3)
    assert {question.rankings[0] for question in items.items} == {(f"q{n}-0", f"q{n}-1", f"q{n}-2") for n in range(11)}
    assert [question.translation for question in items.items if question.translation] == [HEBREW]
    one_sided = pairwise_items(QUERIES, {}, {"a": {"q1": candidates("d")}, "b": {"q1": candidates("e"), "q2": []}})
    assert (len(one_sided.items), one_sided.missing) == (1, 11)


def test_pairwise_items_cover_every_pair_of_systems() -> None:
    items = make_items(("a", "b", "c"))
    assert Counter(question.systems for question in items.items) == {("a", "b"): 11, ("a", "c"): 11}
    assert items.identical == 1 + 1 + 12, "b and c are the same throughout"


def test_pairwise_items_order_is_random_but_stable() -> None:
    order = [question.query.query_id for question in make_items().items]
    assert order != sorted(order)
    assert make_items(reverse_input=True) == make_items()


@given(st.text(min_size=1), st.text(min_size=1))
@settings(max_examples=50)
def test_sides_do_not_depend_on_run_order(judge: str, query_id: str) -> None:
    def sides(systems: tuple[str, str]) -> str:
        (question,) = pairwise_items(
            {query_id: Query(query_id, "")}, {}, {s: {query_id: candidates(s)} for s in systems}
        ).items
        return question.systems[question.sides(judge)[0]]

    assert sides(("a", "b")) == sides(("b", "a")), "in whatever order the runs are named"


def test_sides_depend_on_full_rankings() -> None:
    """Who knows names, queries and the passages shown still lacks what is further down."""

    def sides(further: str) -> tuple[int, int]:
        runs = {"a": {"q1": candidates("d1", "d2", further)}, "b": {"q1": candidates("d2", "d1")}}
        (question,) = pairwise_items(QUERIES, {}, runs, depth=2).items
        return question.sides("anna")

    assert len({sides(f"d{number}") for number in range(3, 30)}) == 2


def test_sides_vary_with_judge_and_query() -> None:
    question = make_items().items[0]
    by_judge = Counter(question.sides(f"judge {number}") for number in range(2000))
    assert abs(by_judge[0, 1] - 1000) < 120  # five standard deviations
    by_query = Counter(question.sides("anna") for question in make_items().items)
    assert len(by_query) == 2


def test_displayed_pair_hides_systems() -> None:
    """The same passages by other systems are shown the same, but for the token and the sides."""
    store = FakePassageStore({"q1-1": "x" * (MAX_PASSAGE_CHARACTERS + 1), "q1-0": HOSTILE})
    question = next(question for question in make_items(depth=4).items if question.query.query_id == "q1")
    for judge in ("anna", "ben", "chen", "dora"):
        pair = displayed_pair(question, judge, store)
        displayed_text = json.dumps({**pair, "token": ""})
        assert "secret" not in displayed_text
        assert "q1-" not in displayed_text.replace("text of q1-", "")
        assert pair["translation"] == HEBREW
        numbers = {side: [passage["number"] for passage in pair[side]] for side in ("left", "right")}
        assert numbers == {"left": [1, 2, 3, 4], "right": [4, 3, 2, 1]}, "numbered from the left, whoever is there"
        (truncated,) = [passage for passage in pair["left"] if passage["truncated"]]
        assert len(truncated["text"]) == MAX_PASSAGE_CHARACTERS


def test_file_names_are_shortest_unique_names() -> None:
    assert system_names(["runs/a.trec", "b.trec"]) == {"runs/a.trec": "a.trec", "b.trec": "b.trec"}
    assert system_names(["x/a", "y/a", "y/b"]) == {"x/a": "x/a", "y/a": "y/a", "y/b": "b"}


def test_read_translations_reads_translation_field(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    rows = [{"_id": "1", "text": "a", "ht": " б "}, {"_id": 2, "text": "b"}, {"id": "3", "text": "c", "ht": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_translations(file) == {"1": "б"}
    assert read_translations(file, "text") == {"1": "a", "2": "b", "3": "c"}
    file.write_text("1\tone\n")
    assert read_translations(file) == {}
    file.write_text('{"_id": "1", "text": "a", "ht": ["b"]}')
    with pytest.raises(FormatError, match=r"queries.jsonl:1: the field ht is "):
        read_translations(file)


XQUAD = SHARED / "xquad-en-ru"


@pytest.mark.skipif(not XQUAD.is_dir(), reason="needs the collections in ../shared beside the checkout")
def test_read_translations_reads_xquad() -> None:
    files = load_beir(str(XQUAD))
    translations = read_translations(files.queries)
    assert translations.keys() == read_queries(files.queries).keys()
    assert sum(any("а" <= letter <= "я" for letter in text) for text in translations.values()) > 1180
    run = read_run(files.runs[0])
    reversed_run = {query_id: candidates[::-1] for query_id, candidates in run.items()}
    items = pairwise_items(read_queries(files.queries), translations, {"bm25": run, "turned": reversed_run})
    with closing(files.corpus.store()) as store:
        pair = displayed_pair(items.items[0], "anna", store)
    assert pair["translation"] == translations[items.items[0].query.query_id]
    assert len(pair["left"]) == len(pair["right"]) == 10


# --- a judge's way ---


def test_judging_session_visits_all_items_and_undoes() -> None:
    items, rows = make_items(), []
    anna = JudgingSession("anna", items, [])
    while (question := anna.next_item()) is not None:
        row = anna.judgment(question, "left", 1.5, NOON)  # a clock that stands still
        assert row.left_doc_ids == question.rankings[question.sides("anna")[0]]
        assert row.winner == question.systems[question.sides("anna")[0]]
        anna.apply(question, row)
        rows.append(row)
    assert len(anna.judgments) == len(anna.items) == 11
    assert len({row.time for row in rows}) == 11, "told apart"
    last = anna.last_judged()
    assert last is not None
    anna.apply(last, anna.judgment(last, UNDONE, None, NOON - timedelta(days=1)))
    assert (len(anna.judgments), anna.next_item()) == (10, last)
    resumed = JudgingSession("anna", items, rows)
    assert (len(resumed.judgments), resumed.last_judged()) == (11, last)
    assert len(JudgingSession("ben", items, rows).judgments) == 0


def test_judging_session_ignores_rows_for_other_passages() -> None:
    anna = JudgingSession("anna", make_items(), [])
    question = anna.next_item()
    assert question is not None
    row = anna.judgment(question, "tie", None, NOON)
    assert len(JudgingSession("anna", make_items(), [row]).judgments) == 1
    assert len(JudgingSession("anna", make_items(depth=2), [row]).judgments) == 0
    assert len(JudgingSession("anna", make_items(("a", "b")), [row]).judgments) == 0


# --- the file ---


@pytest.fixture
def row() -> Judgment:
    anna = JudgingSession("anna", make_items(), [])
    question = anna.next_item()
    assert question is not None
    return anna.judgment(question, "tie", 3.25, NOON)


def read_file(path: Path) -> list[Judgment]:
    file = PreferencesFile(path)
    file.close()
    return file.rows


def test_preferences_file_writes_private_rows_immediately(tmp_path: Path, row: Judgment) -> None:
    path = tmp_path / "judgments.jsonl"
    file = PreferencesFile(path)
    assert file.rows == []
    file.append(row)
    assert read_judgments(path) == file.rows == [row]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.append(row)
    assert path.read_bytes().count(b"\n") == 2
    file.close()
    assert read_file(path) == [row, row]


def test_preferences_file_is_locked(tmp_path: Path, row: Judgment) -> None:
    file = PreferencesFile(tmp_path / "judgments.jsonl")
    with pytest.raises(InputError, match="another process is writing"):
        PreferencesFile(tmp_path / "judgments.jsonl")
    file.close()
    assert read_file(tmp_path / "judgments.jsonl") == []


def test_preferences_file_repairs_truncated_rows(tmp_path: Path, row: Judgment) -> None:
    path = tmp_path / "judgments.jsonl"
    line = json.dumps(row.to_dict()).encode() + b"\n"
    for length in [*range(len(line) + 1, len(line) + 30), *range(len(line) + 30, 2 * len(line), 37)]:
        path.write_bytes((line + line)[:length])
        if length < len(line) + len(b'{"judge": "'):
            with pytest.raises(FormatError):  # may be anything
                read_file(path)
            assert path.stat().st_size == length, "what is not known is not touched"
            continue
        assert read_file(path) == [row], length
        assert path.read_bytes() == line
    path.write_bytes((line + line)[:-1])
    assert read_file(path) == [row, row]
    assert path.read_bytes() == line + line, "a whole row that lacked its end"


@pytest.mark.parametrize("text", ["q1 0 d1 1\nq2 0 d2", '{"judge": "anna"}', '{"_id": "1"}\n{"judge": "an', "x"])
def test_preferences_file_rejects_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels.trec"
    path.write_text(text)
    with pytest.raises(FormatError):
        PreferencesFile(path)
    assert path.read_text() == text


def test_preferences_file_rolls_back_failed_append(
    tmp_path: Path, row: Judgment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "judgments.jsonl"
    file = PreferencesFile(path)
    file.append(row)
    write = os.write

    def write_partially(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", lambda descriptor, data: write_partially(descriptor, bytes(data)[:40]))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        file.append(row)
    monkeypatch.undo()
    assert read_judgments(path) == file.rows == [row]
    file.append(row)
    file.close()
    assert read_file(path) == [row, row]
