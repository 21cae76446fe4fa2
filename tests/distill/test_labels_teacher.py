"""The labels as a teacher: what they say, and that a set is shown to the byte as a reranker shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.distill.labels_teacher import LabelsTeacher, label_word, reasoning_and_ranking, top_grades
from rank_k.distill.trace import LARGEST, WHOLE_SET, ActiveSets, traced
from rank_k.errors import InputError
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Passage, Query
from rank_k.window.parsing import parse_ranking
from rank_k.window.prompt import SHIPPED, read_template


def a_set(grades: Sequence[int | None], query: str = "what moves the tides?", source: str = "tides") -> CandidateSet:
    doc_ids = tuple(f"d{n}" for n in range(len(grades)))
    passages = tuple(
        f"Passage {n} [3] of </think> many. " + "The moon pulls at the sea. " * 30 * n for n in range(len(grades))
    )
    judged = {d: g for d, g in zip(doc_ids, grades, strict=True) if g is not None}
    return CandidateSet(f"{source}/q/0", "q", query, doc_ids, passages, judged, source, None)


@pytest.mark.parametrize(
    ("grade", "top", "said"),
    [(-1, 1, 0), (0, 1, 0), (1, 1, 2), (0, 3, 0), (1, 3, 1), (2, 3, 1), (3, 3, 2), (1, 2, 1), (2, 2, 2), (5, 3, 2)],
)
def test_grades_as_verdicts(grade: int, top: int, said: int) -> None:
    assert label_word(grade, top) == said


def test_the_example_in_words() -> None:
    assert reasoning_and_ranking([0, 2, 1]) == ("[1] no\n[2] yes\n[3] partly", "[2] > [3] > [1]")
    assert reasoning_and_ranking([0, 0, 2, 2]) == ("[1] no\n[2] no\n[3] yes\n[4] yes", "[3] = [4] > [1] = [2]")
    assert reasoning_and_ranking([0, 0])[1] == "[1] = [2]"


@given(st.lists(st.integers(0, 2), min_size=2, max_size=30))
def test_the_order_is_the_one_that_follows_from_the_verdicts(verdicts: list[int]) -> None:
    thought, order = reasoning_and_ranking(verdicts)
    answer = parse_ranking(order, len(verdicts), reasoning=thought, finish_reason="stop")
    assert (answer.is_valid, answer.repairs, len(answer.ranked_numbers)) == (True, {}, len(verdicts))
    assert [{verdicts[i - 1] for i in tier} for tier in answer.tiers] == [{v} for v in (2, 1, 0) if v in verdicts]
    assert all(list(tier) == sorted(tier) for tier in answer.tiers)
    assert [line.split() for line in thought.splitlines()] == [
        [f"[{n}]", ("no", "partly", "yes")[v]] for n, v in enumerate(verdicts, 1)
    ]


def test_the_highest_grade_is_told_by_collection() -> None:
    sets = [a_set([0, 2], source="graded"), a_set([1, 3], source="graded"), a_set([0, 0], source="none")]
    assert top_grades(sets) == {"graded": 3, "none": 1}


def asked(row: CandidateSet, tmp_path: Path, *, form: Any = "verdicts", tops: dict[str, int] | None = None) -> Any:
    """The calls about one set."""
    under_way = ActiveSets()
    teacher = LabelsTeacher(under_way.set_of, tops or top_grades([row]), form)
    options: dict[str, Any] = {"prompt": "compact", "passage_tokens": 50, "journal": tmp_path / "j.sqlite"}
    with Reranker(teacher, strategy=WHOLE_SET, depth=LARGEST, **options) as reranker:
        run_name = reranker.journal.begin_run({"grades": row.grades})
        assert list(traced(reranker, [row], under_way, run_name=run_name)) == [row.set_id]
        ((facts, keys),) = reranker.journal.traced_sets()
        assert facts == json.loads(json.dumps(row.facts))
        return [reranker.journal.call(key) for key in keys]


@pytest.mark.parametrize("prompt", SHIPPED)
@pytest.mark.parametrize("passage_tokens", [50, 450])
def test_a_set_is_shown_as_a_reranker_shows_it(tmp_path: Path, prompt: str, passage_tokens: int) -> None:
    row = a_set([0, 1, None, 0, 1, 0])
    under_way = ActiveSets()
    options: dict[str, Any] = {"prompt": prompt, "passage_tokens": passage_tokens}
    teacher = LabelsTeacher(under_way.set_of, top_grades([row]))
    with Reranker(teacher, strategy=WHOLE_SET, depth=LARGEST, **options) as reranker:
        list(traced(reranker, [row], under_way))
        ((_, (key,)),) = reranker.journal.traced_sets()
        shown = reranker.journal.request(key)["messages"]
    model = ScriptedModel(["[1] > [2] > [3] > [4] > [5] > [6]"])
    with Reranker(model, strategy="sliding", depth=6, **options) as reranker:
        run = {"q": [Candidate(doc_id, 0) for doc_id in row.doc_ids]}
        passages = {d: Passage(d, text) for d, text in zip(row.doc_ids, row.passages, strict=True)}
        list(reranker.rerank(run, {"q": Query("q", row.query)}, passages))
    (request,) = model.history
    assert shown == [message._asdict() for message in request.messages]
    assert "(3) of" in shown[0]["content"]
    assert "[6] Passage 5 " in shown[0]["content"]


def test_what_the_labels_say_is_kept_as_any_teachers_reply(tmp_path: Path) -> None:
    (call,) = asked(a_set([0, 2, None, 1], source="s"), tmp_path)
    assert (call.model, call.purpose, call.shown) == ("labels", "ask", ("d0", "d1", "d2", "d3"))
    assert call.reply.reasoning == "[1] no\n[2] yes\n[3] no\n[4] partly"
    assert call.reply.text == "[2] > [4] > [1] = [3]"
    assert call.reply.usage.completion_tokens == 0


def test_the_order_alone(tmp_path: Path) -> None:
    (call,) = asked(a_set([0, 1]), tmp_path, form="order")
    assert (call.reply.reasoning, call.reply.text) == (None, "[2] > [1]")


def test_mended_labels_make_another_call_which_comes_first(tmp_path: Path) -> None:
    asked(a_set([0, 1]), tmp_path)
    calls = asked(a_set([1, 0]), tmp_path)
    assert [call.reply.text for call in calls] == ["[1] > [2]", "[2] > [1]"]


def test_a_set_without_grades_is_told(tmp_path: Path) -> None:
    row = a_set([0, 1])
    row = replace(row, set_id="bare", grades=None)
    with pytest.raises(InputError, match="the set bare has no grades; give --qrels"):
        asked(row, tmp_path)


def test_passages_are_cut_by_the_tokenizer_that_is_given(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    texts = tuple(" ".join(["incomprehensibilities"] * length) for length in (6, 19, 30))  # five tokens each, estimated
    row = replace(a_set([0, 1, 0]), passages=texts)
    under_way = ActiveSets()
    teacher = LabelsTeacher(under_way.set_of, top_grades([row]), "verdicts", file)
    with Reranker(teacher, strategy=WHOLE_SET, depth=LARGEST, prompt="compact", passage_tokens=20) as reranker:
        list(traced(reranker, [row], under_way))
        ((_, (key,)),) = reranker.journal.traced_sets()
        lines = reranker.journal.request(key)["messages"][0]["content"].splitlines()
    assert [len(line.split()) - 2 for line in lines[1:4]] == [6, 19, 20]  # its number stands before and after
    with pytest.raises(InputError, match=r"is no tokenizer"):
        LabelsTeacher(under_way.set_of, {}, "verdicts", __file__)


def test_shipped_prompts_go_by_name(tmp_path: Path) -> None:
    (message,) = read_template("compact").messages("why", ["x", "y"])
    assert message.content == "Query: why\n[1] x [1]\n[2] y [2]\nQuery: why\nWhich passages answer the query?"
    assert read_template("listwise").name == "rank-k"
    with pytest.raises(InputError, match="or one of listwise, compact"):
        read_template("compactt")
