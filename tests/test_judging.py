"""Judging: who sees what on which side, what is kept of it, and that nothing tells whose a ranking is."""

from __future__ import annotations

import json
import os
import random
import re
import stat
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.collections import load_collection
from rank_k.data.files import read_queries, read_run, read_translations
from rank_k.errors import FormatError, InputError
from rank_k.evaluation.preferences import UNDONE, Judgment, read_judgments
from rank_k.records import Candidate, Passage, Query
from rank_k.serve.app import Room
from rank_k.serve.comparing_room import ComparingRoom
from rank_k.serve.judging import MOST_CHARACTERS, Judge, Questions, file_names, questions, shown
from rank_k.serve.judging_room import JudgingRoom
from rank_k.serve.judgments import JudgmentFile
from rank_k.serve.pages import paths
from rank_k.serve.rules import Doors
from tests.serving import Answer, Served, command, served

SYSTEMS = ("secret-bm25.trec", "secret-reranked.trec")
HOSTILE = "<img src=x onerror=alert(1)>"
HEBREW = "מה גורם לגאות ושפל?"
QUERIES = {f"q{number}": Query(f"q{number}", f"what is {number}") for number in range(12)}
TRANSLATIONS = {"q1": HEBREW}
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def candidates(*doc_ids: str) -> list[Candidate]:
    return [Candidate(doc_id, -place) for place, doc_id in enumerate(doc_ids)]


def asked(systems: tuple[str, ...] = SYSTEMS, depth: int = 3, *, turned: bool = False) -> Questions:
    """The second run, and any further, is the first one turned round; of the last query all say the same. `turned`: the
    same runs and queries, read in another order."""
    forth, back = (0, 1, 2, 3), (3, 2, 1, 0)
    runs = {
        name: {q: candidates(*(f"{q}-{n}" for n in (back if place and q != "q11" else forth))) for q in QUERIES}
        for place, name in enumerate(systems)
    }
    if turned:
        return questions(dict(reversed(QUERIES.items())), TRANSLATIONS, dict(reversed(runs.items())), depth)
    return questions(QUERIES, TRANSLATIONS, runs, depth)


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
    assert (found.alike, found.lacking, found.depth) == (1, 0, 3)
    assert {question.rankings[0] for question in found.asked} == {(f"q{n}-0", f"q{n}-1", f"q{n}-2") for n in range(11)}
    assert [question.translation for question in found.asked if question.translation] == [HEBREW]
    one_sided = questions(QUERIES, {}, {"a": {"q1": candidates("d")}, "b": {"q1": candidates("e"), "q2": []}})
    assert (len(one_sided.asked), one_sided.lacking) == (1, 11)


def test_three_systems_make_three_questions_a_query() -> None:
    found = asked(("a", "b", "c"))
    assert Counter(question.systems for question in found.asked) == {("a", "b"): 11, ("a", "c"): 11}
    assert found.alike == 1 + 1 + 12, "b and c are the same throughout"


def test_the_order_is_drawn_and_the_same_for_files_in_any_order() -> None:
    order = [question.query.query_id for question in asked().asked]
    assert order != sorted(order)
    assert asked(turned=True) == asked()


@given(st.text(min_size=1), st.text(min_size=1))
@settings(max_examples=50, deadline=None)
def test_sides_are_a_fair_coin_that_falls_the_same_again(judge: str, query_id: str) -> None:
    def sides(systems: tuple[str, str]) -> str:
        (question,) = questions(
            {query_id: Query(query_id, "")}, {}, {s: {query_id: candidates(s)} for s in systems}
        ).asked
        return question.systems[question.sides(judge)[0]]

    assert sides(("a", "b")) == sides(("b", "a")), "in whatever order the runs are named"


def test_sides_cannot_be_worked_out_from_what_is_shown() -> None:
    """Who knows names, queries and the passages shown still lacks what is further down."""

    def sides(further: str) -> tuple[int, int]:
        runs = {"a": {"q1": candidates("d1", "d2", further)}, "b": {"q1": candidates("d2", "d1")}}
        (question,) = questions(QUERIES, {}, runs, depth=2).asked
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
    store = Texts({"q1-1": "x" * (MOST_CHARACTERS + 1), "q1-0": HOSTILE})
    question = next(question for question in asked(depth=4).asked if question.query.query_id == "q1")
    for judge in ("anna", "ben", "chen", "dora"):
        seen = shown(question, judge, store)
        told = json.dumps([seen.query, seen.translation, *map(repr, (*seen.left, *seen.right))])
        assert "secret" not in told
        assert "q1-" not in told.replace("text of q1-", "")
        assert seen.translation == HEBREW
        assert {passage.number for passage in seen.left} == {passage.number for passage in seen.right} == {1, 2, 3, 4}
        assert [passage.number for passage in seen.left] == [1, 2, 3, 4], "numbered from the left, whoever is there"
        assert [passage.number for passage in seen.right] == [4, 3, 2, 1]
        (cut,) = [passage for passage in seen.left if passage.cut]
        assert len(cut.text) == MOST_CHARACTERS


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


XQUAD = Path(__file__).parents[2] / "shared" / "data" / "xquad-en-ru"


@pytest.mark.skipif(not XQUAD.is_dir(), reason="needs the collections in ../shared beside the checkout")
def test_a_real_cross_language_set_has_its_translations() -> None:
    files = load_collection(f"beir:{XQUAD}")
    translations = read_translations(files.queries)
    assert translations.keys() == read_queries(files.queries).keys()
    assert sum(any("а" <= letter <= "я" for letter in text) for text in translations.values()) > 1180
    run = read_run(files.runs[0])
    other = {query_id: found[::-1] for query_id, found in run.items()}
    asked = questions(read_queries(files.queries), translations, {"bm25": run, "turned": other})
    with files.corpus.store() as store:
        seen = shown(asked.asked[0], "anna", store)
    assert seen.translation == translations[asked.asked[0].query.query_id]
    assert len(seen.left) == len(seen.right) == 10


# --- a judge's way ---


def test_a_judge_goes_through_all_and_back() -> None:
    found, rows = asked(), []
    anna = Judge("anna", found, [])
    while (question := anna.next()) is not None:
        row = anna.judgment(question, "left", 1.5, NOON)  # a clock that stands still
        assert row.left_doc_ids == question.rankings[question.sides("anna")[0]]
        assert row.winner == question.systems[question.sides("anna")[0]]
        anna.take(row)
        rows.append(row)
    assert anna.done == anna.total == 11
    assert len({row.time for row in rows}) == 11, "told apart"
    last = anna.last()
    assert last is not None
    anna.take(anna.judgment(last, UNDONE, None, NOON - timedelta(days=1)))
    assert (anna.done, anna.next()) == (10, last)
    again = Judge("anna", found, rows)
    assert (again.done, again.last()) == (11, last)
    assert Judge("ben", found, rows).done == 0


def test_what_was_said_of_other_passages_is_asked_again() -> None:
    anna = Judge("anna", asked(), [])
    question = anna.next()
    assert question is not None
    row = anna.judgment(question, "tie", None, NOON)
    assert Judge("anna", asked(), [row]).done == 1
    assert Judge("anna", asked(depth=2), [row]).done == 0
    assert Judge("anna", asked(("a", "b")), [row]).done == 0


# --- the file ---


@pytest.fixture
def row() -> Judgment:
    anna = Judge("anna", asked(), [])
    question = anna.next()
    assert question is not None
    return anna.judgment(question, "tie", 3.25, NOON)


def kept(path: Path) -> list[Judgment]:
    file = JudgmentFile(path)
    file.close()
    return file.rows


def test_rows_are_on_disk_at_once_and_nobody_else_reads_them(tmp_path: Path, row: Judgment) -> None:
    path = tmp_path / "judgments.jsonl"
    file = JudgmentFile(path)
    assert file.rows == []
    file.append(row)
    assert read_judgments(path) == file.rows == [row]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.append(row)
    assert file.content().count(b"\n") == 2
    file.close()
    assert kept(path) == [row, row]


def test_a_file_is_one_servers(tmp_path: Path, row: Judgment) -> None:
    file = JudgmentFile(tmp_path / "judgments.jsonl")
    with pytest.raises(InputError, match="another server writes"):
        JudgmentFile(tmp_path / "judgments.jsonl")
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
        JudgmentFile(path)
    assert path.read_text() == text


def test_a_row_that_did_not_fit_is_not_there(tmp_path: Path, row: Judgment, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "judgments.jsonl"
    file = JudgmentFile(path)
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


# --- over HTTP ---


@contextmanager
def study(
    path: Path,
    doors: Doors = Doors(),
    store: Texts | None = None,
    of: Questions | None = None,
    beside: Sequence[Room] = (),
) -> Iterator[Served]:
    file = JudgmentFile(path)
    try:
        room = JudgingRoom(of or asked(), store or Texts(), file)
        with served(None, doors=doors, rooms=[room, *beside]) as running:
            yield running
    finally:
        file.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with study(tmp_path / "judgments.jsonl") as running:
        yield running
        assert running.errors == []


def at(server: Served, judge: str = "anna") -> Any:
    answer = server.get(f"/judge/question?judge={judge}")
    assert answer.status == 200, answer.json
    return answer.json


def say(server: Served, state: Any, choice: str, **more: Any) -> Answer:
    return server.post(
        {"judge": state["judge"], "token": state["question"]["token"], "choice": choice, **more}, "/judge/choice"
    )


def test_a_study_from_its_first_question_to_its_last(server: Served, tmp_path: Path) -> None:
    state = at(server)
    assert (state["done"], state["total"], state["alike"], state["can_undo"]) == (0, 11, 1, False)
    seen = []
    while state["question"] is not None:
        seen.append(state["question"]["query"])
        answer = say(server, state, ("left", "right", "tie")[len(seen) % 3], seconds=2.04)
        assert answer.status == 200
        state = answer.json
        assert (state["done"], len(read_judgments(tmp_path / "judgments.jsonl"))) == (len(seen), len(seen))
    assert len(set(seen)) == 11
    export = server.get("/judge/judgments.jsonl")
    assert export.headers["content-disposition"] == 'attachment; filename="judgments.jsonl"'
    rows = [json.loads(line) for line in export.raw.decode().splitlines()]
    assert {row["query"] for row in rows} == set(seen)
    assert {(row["depth"], row["seconds"], row["names_hidden"], row["judge"]) for row in rows} == {
        (3, 2.0, True, "anna")
    }
    assert {frozenset((row["left"], row["right"])) for row in rows} == {frozenset(SYSTEMS)}
    assert [row["translation"] for row in rows if row["query"] == "what is 1"] == [HEBREW]
    assert main(["evaluate", "--preferences", str(tmp_path / "judgments.jsonl")]) == 0


def test_rows_say_what_was_on_which_side(server: Served) -> None:
    state = at(server)
    left = [passage["text"] for passage in state["question"]["left"]]
    say(server, state, "left")
    row = json.loads(server.get("/judge/judgments.jsonl").raw)
    assert [f"text of {doc_id}" for doc_id in row["left_doc_ids"]] == left
    assert (row["left"] == SYSTEMS[0]) == row["left_doc_ids"][0].endswith("-0")


def test_the_last_one_can_be_taken_back_and_then_the_one_before(server: Served) -> None:
    first = at(server)
    second = say(server, first, "left").json
    third = say(server, second, "right").json
    back = server.post({"judge": "anna"}, "/judge/undo").json
    assert back["question"] == second["question"]
    assert (back["done"], back["can_undo"]) == (1, True)
    assert server.post({"judge": "anna"}, "/judge/undo").json["question"] == first["question"]
    none = server.post({"judge": "anna"}, "/judge/undo")
    assert (none.status, none.json["message"]) == (409, "there is nothing to take back")
    assert say(server, first, "tie").json["question"] == second["question"]
    assert say(server, second, "tie").json["question"] == third["question"]
    rows = [json.loads(line) for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert [row["choice"] for row in rows] == ["left", "right", "undone", "undone", "tie", "tie"]


def test_a_reload_and_a_restart_go_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    with study(path) as server:
        state = say(server, at(server), "left").json
        assert at(server) == state
        other = at(server, "ben")
        assert other["done"] == 0
    with study(path, of=asked(turned=True)) as server:
        assert at(server) == state
        assert server.post({"judge": "anna"}, "/judge/undo").json["done"] == 0


def test_what_is_sent_twice_is_kept_once_and_a_change_of_mind_counts(server: Served) -> None:
    state = at(server)
    after = say(server, state, "left").json
    assert say(server, state, "left").json == after
    assert say(server, state, "right").json["done"] == 1
    rows = [json.loads(line)["choice"] for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert rows == ["left", "right"]


def test_judges_at_the_same_time_lose_nothing(server: Served) -> None:
    def judging(judge: str) -> None:
        state = at(server, judge)
        while state["question"] is not None:
            state = say(server, state, random.choice(["left", "right", "tie"])).json

    threads = [threading.Thread(target=judging, args=(f"judge{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    rows = [json.loads(line) for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert Counter(row["judge"] for row in rows) == dict.fromkeys((f"judge{number}" for number in range(6)), 11)


def test_names_of_systems_are_nowhere_before_the_export(tmp_path: Path) -> None:
    """In no answer to anything, mistakes included; nor ids of documents."""
    with study(tmp_path / "judgments.jsonl") as server:
        state = at(server)
        after = say(server, state, "left")
        answers = [
            after,
            server.get("/judge/question?judge=anna"),
            server.get("/judge/question?judge=ben"),
            server.post({"judge": "anna"}, "/judge/undo"),
            say(server, state, "nothing"),
            say(server, {**state, "judge": ""}, "left"),
            server.post({"judge": "anna", "token": "other", "choice": "left"}, "/judge/choice"),
            server.post([], "/judge/choice"),
            server.get("/judge/choice"),
            server.get("/judge/" + SYSTEMS[0][:3]),
            *map(server.get, (*paths(), "/page/rooms.json", "/health", "/metrics", "/openapi.json", "/v1/models")),
        ]
        for answer in answers:
            told = answer.raw.decode() + str(answer.headers)
            for name in SYSTEMS:
                assert name not in told
                assert name.partition(".")[0] not in told
            assert str(tmp_path) not in told
        assert all(name in server.get("/judge/judgments.jsonl").raw.decode() for name in SYSTEMS)


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"judge": ""}, 422, "judge"),
        ({"judge": 7}, 422, "judge"),
        ({"judge": "a" * 101}, 422, "judge"),
        ({"judge": "a\u0000b"}, 422, "judge"),
        ({"choice": "undone"}, 422, "choice"),
        ({"choice": None}, 422, "choice"),
        ({"choice": ["left"]}, 422, "choice"),
        ({"token": "0" * 32}, 409, "token"),
        ({"token": None}, 409, "token"),
        ({"token": ["left"]}, 409, "token"),
        ({"seconds": -1}, 422, "seconds"),
        ({"seconds": "long"}, 422, "seconds"),
        ({"seconds": True}, 422, "seconds"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_kept(
    server: Served, change: dict[str, Any], status: int, field: str
) -> None:
    state = at(server)
    body = {"judge": "anna", "token": state["question"]["token"], "choice": "left"}
    answer = server.post({**body, **change}, "/judge/choice")
    assert (answer.status, answer.json.get("field")) == (status, field)
    assert server.get("/judge/judgments.jsonl").raw == b""


def test_other_pages_and_other_kinds_of_body_are_refused(server: Served) -> None:
    state = at(server)
    body = json.dumps({"judge": "anna", "token": state["question"]["token"], "choice": "left"}).encode()
    for path in ("/judge/choice", "/judge/undo"):
        assert server.post(body, path, Origin="https://evil.example").status == 403
        assert server.post(body, path, Host="evil.example").status == 421
        assert server.ask("POST", path, body, Content_Type="text/plain").status == 415
        assert server.ask("POST", path, body, Content_Type="application/x-www-form-urlencoded").status == 415
    assert server.get("/judge/judgments.jsonl", Origin="https://evil.example").status == 403
    assert server.get("/judge/judgments.jsonl").raw == b""


def test_where_a_key_is_asked_for_judging_needs_it(tmp_path: Path) -> None:
    key = "sk-judges-0123456789"
    with study(tmp_path / "judgments.jsonl", Doors(keys=(key,))) as server:
        for path in ("/judge/question?judge=anna", "/judge/judgments.jsonl", "/page/rooms.json"):
            assert server.get(path).status == 401
            assert server.get(path, Authorization=f"Bearer {key}").status == 200
        assert server.post({"judge": "anna"}, "/judge/undo").status == 401
        assert server.get("/judge").status == 200, "the page itself tells nothing"


def test_who_lets_in_everybody_gives_nobody_the_names(tmp_path: Path) -> None:
    """Judges may come from elsewhere without a key; the export, and the report, are for who has one."""
    file = JudgmentFile(tmp_path / "judgments.jsonl")
    rooms: list[Room] = [JudgingRoom(asked(), Texts(), file), ComparingRoom(lambda: "secret")]
    with served(None, doors=Doors(host="0.0.0.0"), rooms=rooms) as server:
        assert say(server, at(server), "left").status == 200
        for path in ("/judge/judgments.jsonl", "/compare/report"):
            answer = server.get(path)
            assert answer.status == 403
            assert "secret" not in answer.raw.decode()
    file.close()


def test_a_judgment_that_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with study(tmp_path / "judgments.jsonl") as server:
        state = at(server)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        answer = say(server, state, "left")
        assert (answer.status, at(server)["done"]) == (507, 0)
        monkeypatch.undo()
        assert say(server, state, "left").json["done"] == 1
        assert "No space left" in str(server.errors[0])
        assert str(tmp_path) not in answer.raw.decode()


def test_a_passage_that_is_gone_is_told_to_who_runs_the_server(tmp_path: Path) -> None:
    class Gone(Texts):
        def get(self, doc_id: str, query_id: str | None = None) -> Passage:
            raise InputError(f"document {doc_id} is not in secret.jsonl")

    with study(tmp_path / "judgments.jsonl", store=Gone()) as server:
        answer = server.get("/judge/question?judge=anna")
        assert answer.status == 500
        assert "secret" not in answer.raw.decode()
        assert "secret.jsonl" in str(server.errors[0])


def test_more_judges_than_are_held_in_memory(server: Served) -> None:
    state = say(server, at(server), "left").json
    for number in range(101):
        at(server, f"passer-by{number}")
    assert at(server) == state


def test_its_style_sheet_does_not_meet_the_other_pages() -> None:
    """The pages' own sheet is loaded too: what both name would be laid out by both."""
    folder = files("rank_k.serve") / "page"
    page, own = (
        set(re.findall(r"[.#][a-z][\w-]*(?=[^{}]*\{)", (folder / name).read_text()))
        for name in ("page.css", "judge.css")
    )
    assert {".headline", "#asked"} <= own
    assert own & page == {".card"}, "which is meant"
    ids = re.findall(r'id="([^"]*)"', (folder / "judge.html").read_text())
    assert not {f"#{name}" for name in ids} & page


# --- the report ---


def test_the_report_is_made_once_beside_other_work() -> None:
    made = []
    begun, finish = threading.Event(), threading.Event()

    def make() -> str:
        made.append(1)
        begun.set()
        assert finish.wait(30)
        return "<!doctype html><title>r</title>"

    key = "sk-compare-0123456789"
    room = ComparingRoom(make)
    with served(None, doors=Doors(keys=(key,)), rooms=[room]) as server:
        assert server.get("/compare/report").status == 401
        answers: list[Answer] = []
        waiting = [
            threading.Thread(
                target=lambda: answers.append(server.get("/compare/report", Authorization=f"Bearer {key}"))
            )
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        assert begun.wait(30)
        started = time.monotonic()
        assert server.get("/health").status == 200, "others are served meanwhile"
        assert time.monotonic() - started < 5
        finish.set()
        for thread in waiting:
            thread.join(timeout=30)
        (path,) = {answer.json["path"] for answer in answers}
        assert made == [1]
        page = server.get(path)
        assert (page.status, page.raw) == (200, b"<!doctype html><title>r</title>")
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert server.get("/compare/" + "x" * 32, Authorization=f"Bearer {key}").status == 404
        assert server.get(path[:-1]).status == 401
        assert path.encode() not in server.get("/metrics", Authorization=f"Bearer {key}").raw


def test_a_report_that_cannot_be_made_may_be_made_later() -> None:
    results: list[str | Exception] = [InputError("run.trec is secret"), "page"]

    def make() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    with served(None, rooms=[ComparingRoom(make)]) as server:
        refused = server.get("/compare/report")
        assert refused.status == 500
        assert "secret" not in refused.raw.decode()
        assert "run.trec is secret" in str(server.errors[0])
        assert server.get(server.get("/compare/report").json["path"]).raw == b"page"


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, queries, documents and judgments."""
    monkeypatch.chdir(tmp_path)
    write: dict[str, list[str]] = defaultdict(list)
    for q in range(6):
        write["queries.jsonl"].append(json.dumps({"_id": f"q{q}", "text": f"query {q}", "ht": f"вопрос {q}"}))
        write["qrels"].append(f"q{q} 0 q{q}-0 1")
        for n in range(4):
            write["corpus.jsonl"].append(json.dumps({"_id": f"q{q}-{n}", "text": f"passage {n} of {q}"}))
            write["good.trec"].append(f"q{q} Q0 q{q}-{n} {n + 1} {10 - n} t")
            write["bad.trec"].append(f"q{q} Q0 q{q}-{n} {4 - n} {n} t")
    for name, lines in write.items():
        Path(name).write_text("\n".join(lines) + "\n")
    return tmp_path


NOBODY = ("--server", "http://127.0.0.1:9/v1", "--model", "m")
FILES = ("--queries", "queries.jsonl", "--documents", "corpus.jsonl")


def test_the_command_serves_both_pages(folder: Path) -> None:
    options = ("--compare", "bad.trec", "good.trec", *FILES, "--qrels", "qrels", "--judgments", "said.jsonl")
    with command(*NOBODY, *options, "--shown", "2") as running:
        server = running.served
        assert server.get("/page/rooms.json").json == ["compare", "judge"]
        report = server.get(server.get("/compare/report").json["path"]).raw.decode()
        state = at(server)
        assert state["total"] == 6
        assert state["question"]["translation"].startswith("вопрос ")
        assert len(state["question"]["left"]) == 2
        say(server, state, "left")
    rows = read_judgments(folder / "said.jsonl")
    assert [(row.pair, row.depth) for row in rows] == [(("bad.trec", "good.trec"), 2)]
    made = folder / "made.html"
    same_runs = ("bad.trec", "good.trec", "--baseline", "bad.trec", "--qrels", "qrels", "--queries", "queries.jsonl")
    assert main(["evaluate", *same_runs, "--report", str(made)]) == 0
    assert '<a href="/compare" aria-current="page">Compare</a>' in report
    same = made.read_text().partition("<header>")[2].partition("<dt>Command</dt>")[0]
    assert same == report.partition("<header>")[2].partition("<dt>Command</dt>")[0], "one implementation"
    assert "rank-k evaluate bad.trec good.trec --qrels qrels --baseline bad.trec" in report


def test_judging_needs_no_model(folder: Path) -> None:
    with command("--compare", "bad.trec", "good.trec", *FILES, "--judgments", "said.jsonl") as running:
        assert running.served.get("/page/rooms.json").json == ["judge"]
        assert say(running.served, at(running.served), "tie").json["done"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--compare", "good.trec", "bad.trec"], "nothing to compare the runs by; give --qrels"),
        (["--qrels", "qrels"], "--qrels is for runs to look at"),
        (["--judgments", "said.jsonl"], "--judgments is for runs to look at"),
        (["--compare", "good.trec", "--judgments", "said.jsonl", *FILES], "one run has nothing to be judged against"),
        (["--compare", "good.trec", "bad.trec", "--judgments", "said.jsonl"], "--queries is missing"),
        (["--compare", "good.trec", "bad.trec", "--judgments", "qrels", *FILES], "qrels"),
        (["--compare", "good.trec", "bad.trec", "--judgments", "corpus.jsonl", *FILES], "would replace a file"),
        (["--compare", "good.trec", "good.trec", "--judgments", "said.jsonl", *FILES], "one run has nothing"),
        (["--compare", "good.trec", "no.trec", "--judgments", "said.jsonl", *FILES], "no.trec"),
        (["--compare", "good.trec", "bad.trec", "--qrels", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    folder: Path, capfd: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert main(["serve", *NOBODY, "--port", "0", *options]) == 2
    err = capfd.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (folder / "said.jsonl").exists()


def test_documents_that_are_not_there_are_missed_at_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = Path("corpus.jsonl").read_text().splitlines()
    Path("corpus.jsonl").write_text("\n".join(lines[1:]) + "\n")
    options = ("--compare", "bad.trec", "good.trec", *FILES, "--judgments", "said.jsonl")
    assert main(["serve", *NOBODY, "--port", "0", *options]) == 2
    assert "document q0-0 of query q0 is not in corpus.jsonl" in capfd.readouterr().err
