"""A teacher that takes its answers from relevance judgments, for training without a teacher model.

Its reasoning contains one relevance label per passage, and its ranking follows from the labels (see
`rank_k.distill.label_traces`). Passages with the highest grade of the collection get the label `yes`. Unjudged
passages and passages with grade 0 or less get `no`. All other passages get `partly`.

The teacher implements `Model`. Its prompts are therefore identical to those of a reranker, and its responses are
stored and selected like those of a teacher model.
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
    """Return the label of a grade as an index into `LABEL_WORDS`. `max_grade`: the highest grade of the collection."""
    if grade <= 0:
        return 0
    return 2 if grade >= max_grade else 1


def max_grade_by_source(sets: Iterable[CandidateSet]) -> dict[str, int]:
    """Return the highest grade of each collection by its name (`source`). It is at least 1."""
    max_grades: defaultdict[str, int] = defaultdict(lambda: 1)
    for row in sets:
        max_grades[row.source] = max(max_grades[row.source], *(row.grades or {}).values(), 1)
    return dict(max_grades)


class LabelsTeacher:
    """A model whose answers follow from the grades of the candidate set in the request.

    Args:
        get_set: Returns the candidate set with an id. The query id of a request is the id of a set.
        max_grades: The highest grade of each collection (see `max_grade_by_source`).
        form: "verdicts": relevance labels as reasoning, then the ranking; "order": the ranking without reasoning.
        tokenizer_file: The `tokenizer.json` that counts tokens to truncate passages (default: lengths are estimated).
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
        """Return the prompt and the answer. They include the answer because changed labels must lead to a new call."""
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
    except Exception as error:  # the library raises no more specific exception
        raise InputError(f"{path} is not a tokenizer: {error}", "give a tokenizer.json with --tokenizer") from error
