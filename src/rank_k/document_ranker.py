"""Rank the documents of a single query, for `Reranker.rank`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from inspect import signature
from itertools import count
from typing import Any, NoReturn
from uuid import uuid4

from rank_k.build import build_job, build_strategy
from rank_k.engine import Engine, deadline_after
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.models.base import Model
from rank_k.option_values import ReasoningMode
from rank_k.options import RerankOptions
from rank_k.strategies.base import Strategy
from rank_k.types import Candidate, Document, Hit, Passage, Query, RankedHits, Ranking, keep_input_order
from rank_k.window.base import WindowReport

Hook = Callable[..., None]


class DocumentRanker:
    """Ranks documents for single queries. In the journal, all queries of this object form one run.

    Args:
        make_engine: Returns an engine. It is called with keyword arguments of `Engine`.
        prepare: Prepares the model and the window ranker, given a deadline and a reasoning mode. Returns whether they
            are prepared.
        journal: The journal that stores the run. The run begins with the first query.
        model: The model, whose name is part of the run's settings.
        options: The options of the reranker.
        strategy: The default strategy.
    """

    def __init__(
        self,
        make_engine: Callable[..., Engine],
        prepare: Callable[[float | None, ReasoningMode | None], Awaitable[bool]],
        journal: Journal,
        model: Model,
        options: RerankOptions,
        strategy: Strategy,
    ) -> None:
        self._make_engine = make_engine
        self._prepare = prepare
        self._journal = journal
        self._model = model
        self._options = options
        self._strategy = strategy
        self._run = ""
        self._positions = count()

    async def rank(
        self,
        query: str,
        documents: Iterable[Document],
        *,
        top_n: int | None = None,
        max_seconds: float | None = None,
        strategy: str | Strategy | None = None,
        reasoning: str | int | ReasoningMode | None = None,
        name: str = "",
        on_window: Hook | None = None,
        on_chunk: Hook | None = None,
        on_result: Hook | None = None,
        on_ranking: Hook | None = None,
        **unknown: Any,
    ) -> RankedHits:
        """Return the documents in the order of their relevance to `query`; see `Reranker.rank`."""
        for argument in unknown:
            _reject_argument(argument)
        deadline = deadline_after(max_seconds)
        for option, value in {"strategy": strategy, "reasoning": reasoning}.items():
            if value is not None and self._options.method == "likelihood":
                raise InputError(f"{option} is for comparison, not for likelihood", "leave it out")
        if not isinstance(query, str):
            raise InputError(f"the query is of type {type(query).__name__}", "give a text, and then the documents")
        if not query.strip():
            raise InputError("the query is empty", "give the text of the query")
        if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
            raise InputError(f"top_n must be a whole number of at least 1 (got {top_n!r})", "leave it out to get all")
        documents = list_documents(documents)
        texts = document_texts(documents)
        query_strategy = self._strategy if strategy is None else build_strategy(strategy, self._options)
        mode = None if reasoning is None else ReasoningMode.parse(reasoning)
        if not await self._prepare(deadline, mode):
            return keep_input_order(texts, documents, top_n)
        if not self._run:
            settings = {"made": "one query at a time", "model": self._model.name, **self._options.settings()}
            self._run = self._journal.begin_run({**settings, "name": uuid4().hex})
        position = next(self._positions)
        candidates = tuple(Candidate(str(i), 1 / (i + 1)) for i in range(len(texts)))
        passages = {str(i): Passage(str(i), text) for i, text in enumerate(texts)}
        job = build_job(Query("", query), candidates, passages, self._options.depth, name or str(position + 1))
        traces: list[str] = []
        likelihoods: dict[str, float] = {}

        def collect_result(query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
            traces.extend(report.traces)
            likelihoods.update(report.result.likelihoods)
            if on_result is not None:
                on_result(round_number, window_number, report)

        engine = self._make_engine(
            strategy=query_strategy,
            run=self._run,
            deadline=deadline,
            reasoning=mode,
            first_position=position,
            on_window=_without_query_id(on_window),
            on_result=collect_result,
            on_chunk=_without_query_id(on_chunk),
            on_ranking=_without_query_id(on_ranking),
        )
        [result] = [result async for result in engine.run([job])]
        stats = engine.stats
        return RankedHits(
            _hits(documents, texts, result.ranking, likelihoods)[:top_n],
            tuple(traces),
            stats.usage,
            dict(stats.repairs),
            stats.unranked_windows,
            result.finished,
            len(job.tail),
        )


def _hits(
    documents: Sequence[Document], texts: Sequence[str], ranking: Ranking, likelihoods: Mapping[str, float]
) -> tuple[Hit, ...]:
    """Return the documents in the order of `ranking`, whose ids are positions in `documents`."""
    probabilities = ranking.probability or {}
    return tuple(
        Hit(
            index=int(doc_id),
            text=texts[int(doc_id)],
            rank=rank,
            score=1 / rank,
            tied=tied,
            probability=probabilities.get(doc_id),
            likelihood=likelihoods.get(doc_id),
            document=documents[int(doc_id)],
        )
        for rank, (doc_id, tied) in enumerate(zip(ranking.doc_ids, ranking.tied, strict=True), 1)
    )


def _without_query_id(hook: Hook | None) -> Hook | None:
    return hook and (lambda query_id, *arguments: hook(*arguments))


def _reject_argument(name: str) -> NoReturn:
    """Raise `TypeError` for an argument that `Reranker.rank` does not have."""
    known = [
        parameter for parameter in signature(DocumentRanker.rank).parameters if parameter not in ("self", "unknown")
    ]
    matches = ["top_n"] if name in ("top_k", "k", "limit") else get_close_matches(name, known, n=1)
    hint = f"; did you mean {matches[0]!r}?" if matches else f"; the arguments are {', '.join(known)}"
    raise TypeError(f"rank() got an unexpected keyword argument {name!r}{hint}")


def list_documents(documents: Iterable[Document]) -> Sequence[Document]:
    """Return `documents` as a sequence. Raises `InputError` if it is a single text, a mapping or a set."""
    if isinstance(documents, str | bytes):
        raise InputError("documents is a single text", "give a list of texts")
    if isinstance(documents, Mapping):
        remedy = "give a list: [document]" if "text" in documents else "give a list: list(documents.values())"
        raise InputError("documents is a mapping", remedy)
    if isinstance(documents, Set) or not isinstance(documents, Iterable):
        raise InputError(f"documents is of type {type(documents).__name__}", "give a list of texts")
    return documents if isinstance(documents, Sequence) else list(documents)


def document_texts(documents: Sequence[Document]) -> list[str]:
    """Return the texts of `documents`. Raises `InputError` if one is neither a text nor a mapping with a text."""
    texts = []
    for position, document in enumerate(documents):
        text = document.get("text") if isinstance(document, Mapping) else document
        if not isinstance(text, str):
            raise InputError(
                f"documents[{position}] is of type {type(document).__name__} and has no text",
                'give texts, or mappings with a "text"',
            )
        texts.append(text)
    return texts
