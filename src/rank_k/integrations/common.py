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
from rank_k.reranker import PassageSource, Reranker
from rank_k.types import Candidate, Hit, Passage, Query, RankedHits
from rank_k.window.listwise import WindowReport

LOG = logging.getLogger("rank_k")

Source: TypeAlias = Reranker | str | Path | Model | None
"""A ready reranker, or the model for one as `Reranker` takes it."""


def resolve_reranker(given: Source, options: Mapping[str, Any]) -> Reranker:
    """`given` itself if it is a reranker, else one made of `given`, as its model, and `options`."""
    if isinstance(given, Reranker):
        if options:
            raise InputError(f"{', '.join(options)} given beside a ready reranker", "make the reranker with it")
        return given
    made = Reranker(**options) if given is None else Reranker(given, **options)
    atexit.register(_close, weakref.ref(made))  # frameworks have no place to say when they have done with it
    return made


def _close(reference: weakref.ref[Reranker]) -> None:
    reranker = reference()
    if reranker is not None:
        reranker.close()


def best(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """The `top` best (None: all) of `texts` for `query`, best first.

    Raises `ModelError` if the model could not be had for any window, `InputError` for a `top` below 1.
    """
    _check(top)
    if not texts:
        return ()
    watch = _WindowCounter()
    return watch.checked(reranker.rank(query, texts, on_asked=watch))[:top]


async def abest(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """`best` for async code: neither blocks the loop nor takes one of its threads; cancelling cancels the work."""
    _check(top)
    if not texts:
        return ()
    watch = _WindowCounter()
    return watch.checked(await reranker.arank(query, texts, on_asked=watch))[:top]


def rerank(
    reranker: Reranker,
    run: Iterable[tuple[str, Sequence[Candidate]]],
    queries: Mapping[str, Query],
    passages: Mapping[str, Passage] | PassageSource,
) -> Iterator[QueryResult]:
    """The run's queries with their new rankings, in the run's order; windows of all of them share the slots.

    Raises `ModelError`, in the end, if the model could not be had for any window.
    """
    watch = _WindowCounter()
    yield from reranker.rerank(run, queries, passages, on_asked=watch)
    watch.check()


def _check(top: int | None) -> None:
    if top is not None and top < 1:
        raise InputError(f"{top} documents are asked for", "give 1 or more, or None for all")


class _WindowCounter:
    """Hears what becomes of every window. Called from another thread, and read when that is done with."""

    def __init__(self) -> None:
        self._windows = self._unranked = 0
        self._gave_up: ModelError | None = None
        self._answered = False

    def __call__(self, *window: Any) -> None:
        asked: WindowReport = window[-1]
        self._windows += 1
        self._unranked += not any(order.is_valid for order in asked.result.rankings)
        self._gave_up = asked.error or self._gave_up
        self._answered = self._answered or asked.error is None

    def check(self) -> None:
        if self._gave_up is not None and not self._answered:
            raise self._gave_up
        if self._unranked:
            LOG.warning("%d of %d windows were left in input order", self._unranked, self._windows)

    def checked(self, hits: RankedHits) -> RankedHits:
        self.check()
        return hits
