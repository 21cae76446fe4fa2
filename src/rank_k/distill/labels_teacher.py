"""A teacher that knows nothing but the labels: for those who have judgments and no model to learn from.

Its thought is one verdict a passage, in the order shown; its order follows from the verdicts, equal ones tied:

    <think>
    [1] no
    [2] yes
    [3] partly
    </think>

    [2] > [3] > [1]

The verdicts are `no` for grade 0, below, and passages that nobody judged; `yes` for the highest grade of the
collection; `partly` for what is between. It is a `Model`, asked over the same path as any other, so that what it is
shown is to the byte what a reranker shows, and what it says is kept and selected like any teacher's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.errors import InputError
from rank_k.models.base import Capabilities
from rank_k.optional_deps import load
from rank_k.types import OnChunk, Request, Response, StreamChunk, Usage

AnswerForm = Literal["verdicts", "order"]
ANSWER_FORMS: tuple[AnswerForm, ...] = get_args(AnswerForm)
"""With verdicts as the thought, or the order alone."""

TEACHER_NAME = "labels"
LABEL_WORDS = ("no", "partly", "yes")


def label_of_grade(grade: int, max_grade: int) -> int:
    """0 (no), 1 (partly) or 2 (yes) for a grade, where `max_grade` is the collection's highest."""
    if grade <= 0:
        return 0
    return 2 if grade >= max_grade else 1


def reasoning_and_ranking(labels: Iterable[int]) -> tuple[str, str]:
    """The verdicts in words, one line a passage in the order shown, and the ranking that follows."""
    labels_in_order = list(labels)
    reasoning = "\n".join(f"[{i}] {LABEL_WORDS[label]}" for i, label in enumerate(labels_in_order, 1))
    tiers = ([i for i, label in enumerate(labels_in_order, 1) if label == tier_label] for tier_label in (2, 1, 0))
    return reasoning, " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in tiers if tier)


def max_grade_by_source(sets: Iterable[CandidateSet]) -> dict[str, int]:
    """The highest grade of each collection (`source -> grade`), 1 at least."""
    max_grades: defaultdict[str, int] = defaultdict(lambda: 1)
    for row in sets:
        max_grades[row.source] = max(max_grades[row.source], *(row.grades or {}).values(), 1)
    return dict(max_grades)


class LabelsTeacher:
    """Answers from the grades of the set that a request is about (`get_set`: by its id, the request's query id).

    `max_grades`: see `max_grade_by_source`. `tokenizer_file`: a `tokenizer.json` for truncating passages; without it
    lengths are estimated.
    """

    context_length = 1 << 20  # nothing is cut but passages to their own limit
    capabilities = Capabilities()

    def __init__(
        self,
        get_set: Callable[[str], CandidateSet],
        max_grades: Mapping[str, int],
        form: AnswerForm = "verdicts",
        tokenizer_file: str | Path | None = None,
    ) -> None:
        self._get_set, self._max_grades, self._answer_form = get_set, max_grades, form
        self._load_tokenizer = None if tokenizer_file is None else _load_tokenizer(Path(tokenizer_file))
        self.name = TEACHER_NAME
        self.identity = TEACHER_NAME

    async def prepare(self) -> None:
        """Nothing to find out."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """The question, and the answer: labels that have been mended make another call."""
        reasoning, ranking = self._answer(request)
        return {"messages": [message._asdict() for message in request.messages], "says": f"{reasoning}\n{ranking}"}

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        reasoning, ranking = self._answer(request)
        if on_chunk is not None:
            on_chunk(StreamChunk(reasoning, ranking))
        return Response(ranking, reasoning or None, "stop", Usage())

    async def count_tokens(self, text: str) -> int | None:
        return (
            None if self._load_tokenizer is None else len(self._load_tokenizer.encode(text, add_special_tokens=False))
        )

    async def close(self) -> None:
        """Nothing to free."""

    def _answer(self, request: Request) -> tuple[str, str]:
        candidate_set = self._get_set(request.context.query_id)
        if candidate_set.grades is None:
            raise InputError(f"the set {candidate_set.set_id} has no grades", "give --qrels to rank-k distill sample")
        grades = candidate_set.grades
        reasoning, ranking = reasoning_and_ranking(
            label_of_grade(grades.get(doc_id, 0), self._max_grades[candidate_set.source])
            for doc_id in request.context.doc_ids
        )
        return ("" if self._answer_form == "order" else reasoning), ranking


def _load_tokenizer(path: Path) -> Any:
    tokenizers = load("tokenizers")
    if not path.is_file():
        raise InputError(f"there is no file {path}", "give --tokenizer a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{path} is no tokenizer: {error}", "give --tokenizer a tokenizer.json") from error
