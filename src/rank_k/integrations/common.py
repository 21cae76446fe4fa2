"""What all integrations share: where their reranker comes from, and how failures are reported.

Frameworks pass on documents and nothing else, so that nobody would notice that the model was never reached, or that a
window kept its input order. The first is raised here, and the second is logged.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from rank_k.build import ModelSource
from rank_k.errors import InputError, ModelError
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Hit, Passage, PassageSource, Query
from rank_k.window.base import WindowReport

LOG = logging.getLogger("rank_k")

RerankerSource: TypeAlias = Reranker | ModelSource
"""A reranker, or the model for one as `Reranker` takes it."""


def resolve_reranker(source: RerankerSource, options: Mapping[str, Any]) -> Reranker:
    """Return `source` if it is a reranker, else a reranker of the model `source` with `options`."""
    if isinstance(source, Reranker):
        if options:
            raise InputError(f"{', '.join(options)} given beside a ready reranker", "make the reranker with it")
        return source
    reranker = Reranker(source, **options) if source is not None else Reranker(**options)
    atexit.register(_close, weakref.ref(reranker))  # frameworks do not say when they no longer need it
    return reranker


def _close(reference: weakref.ref[Reranker]) -> None:
    reranker = reference()
    if reranker is not None:
        reranker.close()


def rank_texts(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """Return the `top` best (None: all) of `texts` for `query`, best first.

    Raises:
        InputError: If `top` is below 1.
        ModelError: If the model could not be reached for any window.
    """
    with _checked_windows(top) as on_result:
        return reranker.rank(query, texts, on_result=on_result)[:top] if texts else ()


async def arank_texts(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """`rank_texts` for async code: it neither blocks the loop nor takes one of its threads, and can be cancelled."""
    with _checked_windows(top) as on_result:
        return (await reranker.arank(query, texts, on_result=on_result))[:top] if texts else ()


def rerank(
    reranker: Reranker,
    candidates: Mapping[str, Collection[str]],
    queries: Mapping[str, str],
    passages: Mapping[str, Passage] | PassageSource,
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the id of each query and the ids of its documents, best first. All queries share the concurrency.

    Args:
        reranker: The reranker.
        candidates: The document ids of each query, by query id, in the order of the first stage.
        queries: The texts of the queries.
        passages: The documents.

    Raises:
        ModelError: At the end, if the model could not be reached for any window.
    """
    if not candidates:
        return
    run = (
        (query_id, [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)])
        for query_id, doc_ids in candidates.items()
    )
    queries_by_id = {query_id: Query(query_id, text) for query_id, text in queries.items()}
    with _checked_windows() as on_result:
        for result in reranker.rerank(run, queries_by_id, passages, on_result=on_result):
            yield result.query_id, result.ranking.doc_ids


@contextmanager
def _checked_windows(top: int | None = None) -> Iterator[Callable[..., None]]:
    """Yield a hook for the results of windows. At the end, raise an error if no window was answered, else log.

    The hook is called from another thread, and the counts are read when that is done. `top`: the number of documents to
    return, which is checked too.
    """
    if top is not None and top < 1:
        raise InputError(f"{top} documents are asked for", "give 1 or more, or None for all")
    counts: Counter[str] = Counter()
    last_error: list[ModelError] = []

    def count(*window: Any) -> None:
        report: WindowReport = window[-1]
        counts["windows"] += 1
        counts["answered"] += report.error is None
        counts["unranked"] += not any(ranking.is_valid for ranking in report.result.rankings)
        if report.error is not None:
            last_error[:] = [report.error]

    yield count
    if last_error and not counts["answered"]:
        raise last_error[0]
    if counts["unranked"]:
        LOG.warning("%d of %d windows were left in input order", counts["unranked"], counts["windows"])
