"""The labels as a teacher: what they say, and that a set is shown to the byte as a reranker shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.distill.labels_teacher import LabelsTeacher, label_of_grade, max_grade_by_source
from rank_k.distill.trace import MAX_SET_SIZE, SINGLE_WINDOW, ActiveSets, trace_sets
from rank_k.errors import InputError
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Passage, Query
from rank_k.window.prompt import BUILTIN_TEMPLATES, read_template


def make_set(grades: Sequence[int | None], query: str = "what moves the tides?", source: str = "tides") -> CandidateSet:
    doc_ids = tuple(f"d{number}" for number in range(len(grades)))
    passages = tuple(
        f"Passage {number} [3] of </think> many. " + "The moon pulls at the sea. " * 30 * number
        for number in range(len(grades))
    )
    judged = {doc_id: grade for doc_id, grade in zip(doc_ids, grades, strict=True) if grade is not None}
    return CandidateSet(f"{source}/q/0", "q", query, doc_ids, passages, judged, source, None)


@pytest.mark.parametrize(
    ("grade", "max_grade", "label"),
    [(-1, 1, 0), (0, 1, 0), (1, 1, 2), (0, 3, 0), (1, 3, 1), (2, 3, 1), (3, 3, 2), (1, 2, 1), (2, 2, 2), (5, 3, 2)],
)
def test_label_of_grade_maps_grades_to_labels(grade: int, max_grade: int, label: int) -> None:
    assert label_of_grade(grade, max_grade) == label


def test_max_grade_by_source_is_per_collection() -> None:
    sets = [make_set([0, 2], source="graded"), make_set([1, 3], source="graded"), make_set([0, 0], source="none")]
    assert max_grade_by_source(sets) == {"graded": 3, "none": 1}


def trace_calls(
    candidate_set: CandidateSet, tmp_path: Path, *, form: Any = "verdicts", max_grades: dict[str, int] | None = None
) -> Any:
    """The calls about one set."""
    active_sets = ActiveSets()
    teacher = LabelsTeacher(active_sets.get_set, max_grades or max_grade_by_source([candidate_set]), form)
    options: dict[str, Any] = {"prompt": "compact", "passage_tokens": 50, "journal": tmp_path / "j.sqlite"}
    with Reranker(teacher, strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, **options) as reranker:
        settings = {"grades": candidate_set.grades}
        assert list(trace_sets(reranker, [candidate_set], active_sets, settings=settings)) == [candidate_set.set_id]
        ((metadata, keys),) = reranker.journal.sets_with_calls()
        assert metadata == json.loads(json.dumps(candidate_set.metadata))
        return [reranker.journal.find_call(key) for key in keys]


@pytest.mark.parametrize("prompt", BUILTIN_TEMPLATES)
@pytest.mark.parametrize("passage_tokens", [50, 450])
def test_labels_teacher_gets_the_same_prompt_as_a_reranker(tmp_path: Path, prompt: str, passage_tokens: int) -> None:
    candidate_set = make_set([0, 1, None, 0, 1, 0])
    active_sets = ActiveSets()
    options: dict[str, Any] = {"prompt": prompt, "passage_tokens": passage_tokens}
    teacher = LabelsTeacher(active_sets.get_set, max_grade_by_source([candidate_set]))
    with Reranker(teacher, strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, **options) as reranker:
        list(trace_sets(reranker, [candidate_set], active_sets))
        ((_, (key,)),) = reranker.journal.sets_with_calls()
        call = reranker.journal.find_call(key)
        assert call is not None
        teacher_messages = call.request["messages"]
    model = ScriptedModel(["[1] > [2] > [3] > [4] > [5] > [6]"])
    with Reranker(model, strategy="sliding", depth=6, **options) as reranker:
        run = {"q": [Candidate(doc_id, 0) for doc_id in candidate_set.doc_ids]}
        passages = {
            doc_id: Passage(doc_id, text)
            for doc_id, text in zip(candidate_set.doc_ids, candidate_set.passages, strict=True)
        }
        list(reranker.rerank(run, {"q": Query("q", candidate_set.query)}, passages))
    (request,) = model.history
    assert teacher_messages == [message._asdict() for message in request.messages]
    assert "(3) of" in teacher_messages[0]["content"]
    assert "[6] Passage 5 " in teacher_messages[0]["content"]


def test_labels_teacher_responses_are_stored_like_model_responses(tmp_path: Path) -> None:
    (call,) = trace_calls(make_set([0, 2, None, 1], source="s"), tmp_path)
    assert (call.model, call.purpose, call.doc_ids) == ("labels", "ask", ("d0", "d1", "d2", "d3"))
    assert call.response.reasoning == "[1] no\n[2] yes\n[3] no\n[4] partly"
    assert call.response.text == "[2] > [4] > [1] = [3]"
    assert call.response.usage.completion_tokens == 0


def test_labels_teacher_with_order_form_has_no_reasoning(tmp_path: Path) -> None:
    (call,) = trace_calls(make_set([0, 1]), tmp_path, form="order")
    assert (call.response.reasoning, call.response.text) == (None, "[2] > [1]")


def test_labels_teacher_calls_again_after_labels_change(tmp_path: Path) -> None:
    trace_calls(make_set([0, 1]), tmp_path)
    calls = trace_calls(make_set([1, 0]), tmp_path)
    assert [call.response.text for call in calls] == ["[1] > [2]", "[2] > [1]"]


def test_labels_teacher_rejects_a_set_without_grades(tmp_path: Path) -> None:
    candidate_set = make_set([0, 1])
    candidate_set = replace(candidate_set, set_id="bare", grades=None)
    with pytest.raises(InputError, match="the set bare has no grades; give --qrels"):
        trace_calls(candidate_set, tmp_path)


def test_labels_teacher_truncates_passages_with_the_given_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    passages = tuple(
        " ".join(["incomprehensibilities"] * length) for length in (6, 19, 30)
    )  # five tokens each, estimated
    candidate_set = replace(make_set([0, 1, 0]), passages=passages)
    active_sets = ActiveSets()
    teacher = LabelsTeacher(active_sets.get_set, max_grade_by_source([candidate_set]), "verdicts", file)
    with Reranker(teacher, strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, prompt="compact", passage_tokens=20) as reranker:
        list(trace_sets(reranker, [candidate_set], active_sets))
        ((_, (key,)),) = reranker.journal.sets_with_calls()
        call = reranker.journal.find_call(key)
        assert call is not None
        lines = call.request["messages"][0]["content"].splitlines()
    assert [len(line.split()) - 2 for line in lines[1:4]] == [6, 19, 20]  # its number stands before and after
    with pytest.raises(InputError, match=r"is not a tokenizer"):
        LabelsTeacher(active_sets.get_set, {}, "verdicts", __file__)


def test_read_template_reads_shipped_prompts_by_name(tmp_path: Path) -> None:
    (message,) = read_template("compact").messages("why", ["x", "y"])
    assert message.content == "Query: why\n[1] x [1]\n[2] y [2]\nQuery: why\nWhich passages answer the query?"
    assert read_template("listwise").name == "rank-k"
    with pytest.raises(InputError, match="or one of listwise, compact"):
        read_template("compactt")
