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

Form = Literal["verdicts", "order"]
FORMS: tuple[Form, ...] = get_args(Form)
"""With verdicts as the thought, or the order alone."""

NAME = "labels"
LABEL_WORDS = ("no", "partly", "yes")


def label_word(grade: int, top: int) -> int:
    """0 (no), 1 (partly) or 2 (yes) for a grade, where `top` is the collection's highest."""
    if grade <= 0:
        return 0
    return 2 if grade >= top else 1


def reasoning_and_ranking(verdicts: Iterable[int]) -> tuple[str, str]:
    """The verdicts in words, one line a passage in the order shown, and the ranking that follows."""
    found = list(verdicts)
    thought = "\n".join(f"[{i}] {LABEL_WORDS[level]}" for i, level in enumerate(found, 1))
    tiers = ([i for i, level in enumerate(found, 1) if level == wanted] for wanted in (2, 1, 0))
    return thought, " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in tiers if tier)


def top_grades(sets: Iterable[CandidateSet]) -> dict[str, int]:
    """The highest grade of each collection (`source -> grade`), 1 at least."""
    found: defaultdict[str, int] = defaultdict(lambda: 1)
    for row in sets:
        found[row.source] = max(found[row.source], *(row.grades or {}).values(), 1)
    return dict(found)


class LabelsTeacher:
    """Answers from the grades of the set that a request is about (`set_of`: by its id, the request's query id).

    `tops`: see `top_grades`. `tokenizer`: a `tokenizer.json` by which passages are cut, else lengths are estimated.
    """

    context_length = 1 << 20  # nothing is cut but passages to their own limit
    capabilities = Capabilities()

    def __init__(
        self,
        set_of: Callable[[str], CandidateSet],
        tops: Mapping[str, int],
        form: Form = "verdicts",
        tokenizer: str | Path | None = None,
    ) -> None:
        self._set_of, self._tops, self._form = set_of, tops, form
        self._tokenizer = None if tokenizer is None else _tokenizer(Path(tokenizer))
        self.name = NAME
        self.identity = NAME

    async def prepare(self) -> None:
        """Nothing to find out."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """The question, and the answer: labels that have been mended make another call."""
        thought, order = self._said(request)
        return {"messages": [message._asdict() for message in request.messages], "says": f"{thought}\n{order}"}

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        thought, order = self._said(request)
        if on_text is not None:
            on_text(StreamChunk(thought, order))
        return Response(order, thought or None, "stop", Usage())

    async def count_tokens(self, text: str) -> int | None:
        return None if self._tokenizer is None else len(self._tokenizer.encode(text, add_special_tokens=False))

    async def close(self) -> None:
        """Nothing to free."""

    def _said(self, request: Request) -> tuple[str, str]:
        row = self._set_of(request.context.query_id)
        if row.grades is None:
            raise InputError(f"the set {row.set_id} has no grades", "give --qrels to rank-k distill sample")
        grades = row.grades
        thought, order = reasoning_and_ranking(
            label_word(grades.get(doc_id, 0), self._tops[row.source]) for doc_id in request.context.doc_ids
        )
        return ("" if self._form == "order" else thought), order


def _tokenizer(path: Path) -> Any:
    tokenizers = load("tokenizers")
    if not path.is_file():
        raise InputError(f"there is no file {path}", "give --tokenizer a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{path} is no tokenizer: {error}", "give --tokenizer a tokenizer.json") from error
