"""Judging: who sees what on which side, what is kept of it, and that nothing tells whose a ranking is."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.data.collections.registry import load_collection
from rank_k.data.files import read_queries, read_run, read_translations
from rank_k.errors import FormatError, InputError
from rank_k.evaluation.preferences import UNDONE, Judgment, read_judgments
from rank_k.server.judging_session import (
    MAX_PASSAGE_CHARACTERS,
    JudgingSession,
    PairwiseItems,
    displayed_pair,
    file_names,
    pairwise_items,
)
from rank_k.server.preferences_file import PreferencesFile
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


def asked(systems: tuple[str, ...] = SYSTEMS, depth: int = 3, *, turned: bool = False) -> PairwiseItems:
    """The second run, and any further, is the first one turned round; of the last query all say the same. `turned`: the
    same runs and queries, read in another order."""
    forth, back = (0, 1, 2, 3), (3, 2, 1, 0)
    runs = {
        name: {q: candidates(*(f"{q}-{n}" for n in (back if place and q != "q11" else forth))) for q in QUERIES}
        for place, name in enumerate(systems)
    }
    if turned:
        return pairwise_items(dict(reversed(QUERIES.items())), TRANSLATIONS, dict(reversed(runs.items())), depth)
    return pairwise_items(QUERIES, TRANSLATIONS, runs, depth)


class Texts:
    """Passages that say which they are."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self.texts = texts or {}

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        return Passage(doc_id, self.texts.get(doc_id, f"text of {doc_id}"))


# --- what is asked ---


def test_every_query_is_asked_about_unless_there_is_nothing_to_ask() -> None:
    found = asked()
    assert {question.query.query_id for question in found.asked} == QUERIES.keys() - {"q11"}
    assert (found.identical, found.lacking, found.depth) == (1, 0, 3)
    assert {question.rankings[0] for question in found.asked} == {(f"q{n}-0", f"q{n}-1", f"q{n}-2") for n in range(11)}
    assert [question.translation for question in found.asked if question.translation] == [HEBREW]
    one_sided = pairwise_items(QUERIES, {}, {"a": {"q1": candidates("d")}, "b": {"q1": candidates("e"), "q2": []}})
    assert (len(one_sided.asked), one_sided.lacking) == (1, 11)


def test_three_systems_make_three_questions_a_query() -> None:
    found = asked(("a", "b", "c"))
    assert Counter(question.systems for question in found.asked) == {("a", "b"): 11, ("a", "c"): 11}
    assert found.identical == 1 + 1 + 12, "b and c are the same throughout"


def test_the_order_is_drawn_and_the_same_for_files_in_any_order() -> None:
    order = [question.query.query_id for question in asked().asked]
    assert order != sorted(order)
    assert asked(turned=True) == asked()


@given(st.text(min_size=1), st.text(min_size=1))
@settings(max_examples=50)
def test_sides_are_a_fair_coin_that_falls_the_same_again(judge: str, query_id: str) -> None:
    def sides(systems: tuple[str, str]) -> str:
        (question,) = pairwise_items(
            {query_id: Query(query_id, "")}, {}, {s: {query_id: candidates(s)} for s in systems}
        ).asked
        return question.systems[question.sides(judge)[0]]

    assert sides(("a", "b")) == sides(("b", "a")), "in whatever order the runs are named"


def test_sides_cannot_be_worked_out_from_what_is_shown() -> None:
    """Who knows names, queries and the passages shown still lacks what is further down."""

    def sides(further: str) -> tuple[int, int]:
        runs = {"a": {"q1": candidates("d1", "d2", further)}, "b": {"q1": candidates("d2", "d1")}}
        (question,) = pairwise_items(QUERIES, {}, runs, depth=2).asked
        return question.sides("anna")

    assert len({sides(f"d{number}") for number in range(3, 30)}) == 2


def test_sides_change_with_judge_and_query() -> None:
    question = asked().asked[0]
    by_judge = Counter(question.sides(f"judge {number}") for number in range(2000))
    assert abs(by_judge[0, 1] - 1000) < 120  # five standard deviations
    by_query = Counter(question.sides("anna") for question in asked().asked)
    assert len(by_query) == 2


def test_what_is_shown_tells_nothing_of_systems() -> None:
    """The same passages by other systems are shown the same, but for the token and the sides."""
    store = Texts({"q1-1": "x" * (MAX_PASSAGE_CHARACTERS + 1), "q1-0": HOSTILE})
    question = next(question for question in asked(depth=4).asked if question.query.query_id == "q1")
    for judge in ("anna", "ben", "chen", "dora"):
        seen = displayed_pair(question, judge, store)
        told = json.dumps([seen.query, seen.translation, *map(repr, (*seen.left, *seen.right))])
        assert "secret" not in told
        assert "q1-" not in told.replace("text of q1-", "")
        assert seen.translation == HEBREW
        assert {passage.number for passage in seen.left} == {passage.number for passage in seen.right} == {1, 2, 3, 4}
        assert [passage.number for passage in seen.left] == [1, 2, 3, 4], "numbered from the left, whoever is there"
        assert [passage.number for passage in seen.right] == [4, 3, 2, 1]
        (cut,) = [passage for passage in seen.left if passage.truncated]
        assert len(cut.text) == MAX_PASSAGE_CHARACTERS


def test_names_of_files_are_short_where_that_is_enough() -> None:
    assert file_names(["runs/a.trec", "b.trec"]) == {"runs/a.trec": "a.trec", "b.trec": "b.trec"}
    assert file_names(["x/a", "y/a", "y/b"]) == {"x/a": "x/a", "y/a": "y/a", "y/b": "b"}


def test_translations_are_read_where_there_are_any(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    rows = [{"_id": "1", "text": "a", "ht": " б "}, {"_id": 2, "text": "b"}, {"id": "3", "text": "c", "ht": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_translations(file) == {"1": "б"}
    assert read_translations(file, "text") == {"1": "a", "2": "b", "3": "c"}
    file.write_text("1\tone\n")
    assert read_translations(file) == {}
    file.write_text('{"_id": "1", "text": "a", "ht": ["b"]}')
    with pytest.raises(FormatError, match=r"queries.jsonl:1: .* as ht"):
        read_translations(file)


XQUAD = SHARED / "xquad-en-ru"


@pytest.mark.skipif(not XQUAD.is_dir(), reason="needs the collections in ../shared beside the checkout")
def test_a_real_cross_language_set_has_its_translations() -> None:
    files = load_collection(f"beir:{XQUAD}")
    translations = read_translations(files.queries)
    assert translations.keys() == read_queries(files.queries).keys()
    assert sum(any("а" <= letter <= "я" for letter in text) for text in translations.values()) > 1180
    run = read_run(files.runs[0])
    other = {query_id: found[::-1] for query_id, found in run.items()}
    asked = pairwise_items(read_queries(files.queries), translations, {"bm25": run, "turned": other})
    with files.corpus.store() as store:
        seen = displayed_pair(asked.asked[0], "anna", store)
    assert seen.translation == translations[asked.asked[0].query.query_id]
    assert len(seen.left) == len(seen.right) == 10


# --- a judge's way ---


def test_a_judge_goes_through_all_and_back() -> None:
    found, rows = asked(), []
    anna = JudgingSession("anna", found, [])
    while (question := anna.next_item()) is not None:
        row = anna.judgment(question, "left", 1.5, NOON)  # a clock that stands still
        assert row.left_doc_ids == question.rankings[question.sides("anna")[0]]
        assert row.winner == question.systems[question.sides("anna")[0]]
        anna.apply(row)
        rows.append(row)
    assert anna.done == anna.total == 11
    assert len({row.time for row in rows}) == 11, "told apart"
    last = anna.last_judged()
    assert last is not None
    anna.apply(anna.judgment(last, UNDONE, None, NOON - timedelta(days=1)))
    assert (anna.done, anna.next_item()) == (10, last)
    again = JudgingSession("anna", found, rows)
    assert (again.done, again.last_judged()) == (11, last)
    assert JudgingSession("ben", found, rows).done == 0


def test_what_was_said_of_other_passages_is_asked_again() -> None:
    anna = JudgingSession("anna", asked(), [])
    question = anna.next_item()
    assert question is not None
    row = anna.judgment(question, "tie", None, NOON)
    assert JudgingSession("anna", asked(), [row]).done == 1
    assert JudgingSession("anna", asked(depth=2), [row]).done == 0
    assert JudgingSession("anna", asked(("a", "b")), [row]).done == 0


# --- the file ---


@pytest.fixture
def row() -> Judgment:
    anna = JudgingSession("anna", asked(), [])
    question = anna.next_item()
    assert question is not None
    return anna.judgment(question, "tie", 3.25, NOON)


def kept(path: Path) -> list[Judgment]:
    file = PreferencesFile(path)
    file.close()
    return file.rows


def test_rows_are_on_disk_at_once_and_nobody_else_reads_them(tmp_path: Path, row: Judgment) -> None:
    path = tmp_path / "judgments.jsonl"
    file = PreferencesFile(path)
    assert file.rows == []
    file.append(row)
    assert read_judgments(path) == file.rows == [row]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.append(row)
    assert file.content().count(b"\n") == 2
    file.close()
    assert kept(path) == [row, row]


def test_a_file_is_one_servers(tmp_path: Path, row: Judgment) -> None:
    file = PreferencesFile(tmp_path / "judgments.jsonl")
    with pytest.raises(InputError, match="another server writes"):
        PreferencesFile(tmp_path / "judgments.jsonl")
    file.close()
    assert kept(tmp_path / "judgments.jsonl") == []


def test_every_cut_of_a_file_leaves_whole_rows(tmp_path: Path, row: Judgment) -> None:
    path = tmp_path / "judgments.jsonl"
    line = json.dumps(row.row()).encode() + b"\n"
    for length in [*range(len(line) + 1, len(line) + 30), *range(len(line) + 30, 2 * len(line), 37)]:
        path.write_bytes((line + line)[:length])
        if length < len(line) + len(b'{"judge": "'):
            with pytest.raises(FormatError):  # may be anything
                kept(path)
            assert path.stat().st_size == length, "what is not known is not touched"
            continue
        assert kept(path) == [row], length
        assert path.read_bytes() == line
    path.write_bytes((line + line)[:-1])
    assert kept(path) == [row, row]
    assert path.read_bytes() == line + line, "a whole row that lacked its end"


@pytest.mark.parametrize("text", ["q1 0 d1 1\nq2 0 d2", '{"judge": "anna"}', '{"_id": "1"}\n{"judge": "an', "x"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels.trec"
    path.write_text(text)
    with pytest.raises(FormatError):
        PreferencesFile(path)
    assert path.read_text() == text


def test_a_row_that_did_not_fit_is_not_there(tmp_path: Path, row: Judgment, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "judgments.jsonl"
    file = PreferencesFile(path)
    file.append(row)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", lambda descriptor, data: full(descriptor, bytes(data)[:40]))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        file.append(row)
    monkeypatch.undo()
    assert read_judgments(path) == file.rows == [row]
    file.append(row)
    file.close()
    assert kept(path) == [row, row]
