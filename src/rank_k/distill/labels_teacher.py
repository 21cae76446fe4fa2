"""A teacher that answers from relevance judgments, for training without a teacher model.

Its reasoning is one label per passage in the order presented, and its ranking follows from the labels (see
`rank_k.distill.label_traces`): `no` for grade 0, below, and unjudged passages; `yes` for the highest grade of the
collection; `partly` for grades in between.

It is a `Model` like any other, so that its prompts are byte-identical to those of a reranker, and its responses are
stored and selected like those of any teacher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.distill.label_traces import LabelTrace
from rank_k.errors import InputError
from rank_k.models.base import Capabilities
from rank_k.optional_deps import load
from rank_k.types import OnChunk, Request, Response, StreamChunk, Usage

LABEL_WORDS = ("no", "partly", "yes")


def label_of_grade(grade: int, max_grade: int) -> int:
    """Return the index in `LABEL_WORDS` of a grade, where `max_grade` is the collection's highest."""
    if grade <= 0:
        return 0
    return 2 if grade >= max_grade else 1


def max_grade_by_source(sets: Iterable[CandidateSet]) -> dict[str, int]:
    """Return the highest grade of each collection (`source -> grade`), at least 1."""
    max_grades: defaultdict[str, int] = defaultdict(lambda: 1)
    for row in sets:
        max_grades[row.source] = max(max_grades[row.source], *(row.grades or {}).values(), 1)
    return dict(max_grades)


class LabelsTeacher:
    """Answers from the grades of the set that a request is about.

    Args:
        get_set: Returns a set by its id, which is the request's query id.
        max_grades: The highest grade of each source (see `max_grade_by_source`).
        form: Labels as the reasoning, or the ranking alone.
        tokenizer_file: A `tokenizer.json` for truncating passages; without it, lengths are estimated.
    """

    name = identity = "labels"
    context_length = 1 << 20  # passages are truncated only to their own limit
    capabilities = Capabilities()

    def __init__(
        self,
        get_set: Callable[[str], CandidateSet],
        max_grades: Mapping[str, int],
        form: Literal["verdicts", "order"] = "verdicts",
        tokenizer_file: str | Path | None = None,
    ) -> None:
        self._get_set, self._max_grades, self._form = get_set, max_grades, form
        self._tokenizer = None if tokenizer_file is None else _load_tokenizer(Path(tokenizer_file))

    async def prepare(self) -> None:
        """Do nothing."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """Return the prompt and the answer, so that changed labels are stored as a new call."""
        reasoning, ranking = self._answer(request)
        return {"messages": [message._asdict() for message in request.messages], "says": f"{reasoning}\n{ranking}"}

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        reasoning, ranking = self._answer(request)
        if on_chunk is not None:
            on_chunk(StreamChunk(reasoning, ranking))
        return Response(ranking, reasoning or None, "stop", Usage())

    async def count_tokens(self, text: str) -> int | None:
        return None if self._tokenizer is None else len(self._tokenizer.encode(text, add_special_tokens=False))

    async def close(self) -> None:
        """Do nothing."""

    def _answer(self, request: Request) -> tuple[str, str]:
        """Return the reasoning and the ranking."""
        candidate_set = self._get_set(request.context.query_id)
        grades, max_grade = candidate_set.grades, self._max_grades[candidate_set.source]
        if grades is None:
            raise InputError(f"the set {candidate_set.set_id} has no grades", "give --qrels to rank-k distill sample")
        labels = tuple(label_of_grade(grades.get(doc_id, 0), max_grade) for doc_id in request.context.doc_ids)
        trace = LabelTrace(labels, labels, LABEL_WORDS)
        return "" if self._form == "order" else trace.reasoning, trace.ranking


def _load_tokenizer(path: Path) -> Any:
    tokenizers = load("tokenizers")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{path} is not a tokenizer: {error}", "give a tokenizer.json with --tokenizer") from error
