"""What all integrations share: where their reranker comes from, and that failure shows.

Frameworks pass documents on and nothing else: nobody would see there that the model was never reached or that a
window kept its input order. So the first is raised here, and the second logged.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rank_k.engine import QueryResult
from rank_k.errors import InputError, ModelError
from rank_k.models.base import Model
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Hit, Passage, PassageSource, Query, RankedHits
from rank_k.window.base import WindowReport

LOG = logging.getLogger("rank_k")

RerankerSource: TypeAlias = Reranker | str | Path | Model | None
"""A ready reranker, or the model for one as `Reranker` takes it."""


def resolve_reranker(source: RerankerSource, options: Mapping[str, Any]) -> Reranker:
    """`source` itself if it is a reranker, else one made of `source`, as its model, and `options`."""
    if isinstance(source, Reranker):
        if options:
            raise InputError(f"{', '.join(options)} given beside a ready reranker", "make the reranker with it")
        return source
    reranker = Reranker(**options) if source is None else Reranker(source, **options)
    atexit.register(_close, weakref.ref(reranker))  # frameworks have no place to say when they have done with it
    return reranker


def _close(reference: weakref.ref[Reranker]) -> None:
    reranker = reference()
    if reranker is not None:
        reranker.close()


def rank_texts(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """The `top` best (None: all) of `texts` for `query`, best first.

    Raises `ModelError` if the model could not be had for any window, `InputError` for a `top` below 1.
    """
    _check_top(top)
    if not texts:
        return ()
    counter = _WindowCounter()
    return counter.check_and_return(reranker.rank(query, texts, on_result=counter))[:top]


async def arank_texts(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """`rank_texts` for async code: neither blocks the loop nor takes one of its threads; cancelling ends the work."""
    _check_top(top)
    if not texts:
        return ()
    counter = _WindowCounter()
    return counter.check_and_return(await reranker.arank(query, texts, on_result=counter))[:top]


def rerank(
    reranker: Reranker,
    run: Iterable[tuple[str, Sequence[Candidate]]],
    queries: Mapping[str, Query],
    passages: Mapping[str, Passage] | PassageSource,
) -> Iterator[QueryResult]:
    """The run's queries with their new rankings, in the run's order; windows of all of them share the concurrency.

    Raises `ModelError`, in the end, if the model could not be had for any window.
    """
    counter = _WindowCounter()
    yield from reranker.rerank(run, queries, passages, on_result=counter)
    counter.check()


def _check_top(top: int | None) -> None:
    if top is not None and top < 1:
        raise InputError(f"{top} documents are asked for", "give 1 or more, or None for all")


class _WindowCounter:
    """Hears what becomes of every window. Called from another thread, and read when that is done with."""

    def __init__(self) -> None:
        self._windows = self._unranked_windows = 0
        self._error: ModelError | None = None
        self._answered = False

    def __call__(self, *window: Any) -> None:
        report: WindowReport = window[-1]
        self._windows += 1
        self._unranked_windows += not any(order.is_valid for order in report.result.rankings)
        self._error = report.error or self._error
        self._answered = self._answered or report.error is None

    def check(self) -> None:
        if self._error is not None and not self._answered:
            raise self._error
        if self._unranked_windows:
            LOG.warning("%d of %d windows were left in input order", self._unranked_windows, self._windows)

    def check_and_return(self, hits: RankedHits) -> RankedHits:
        self.check()
        return hits
