"""Functions that all integrations share: they create the reranker, rank, and report failures.

Frameworks return only documents, so users would not notice failures. Therefore an error is raised if no window could be
ranked because the model did not respond. If only some windows could not be ranked, a warning is logged.
"""

from __future__ import annotations

import logging
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
"""A reranker, or the model for a new reranker: the first argument of `Reranker`."""


def resolve_reranker(source: RerankerSource, options: Mapping[str, Any]) -> Reranker:
    """Return `source` if it is a reranker, else a new reranker.

    Args:
        source: A reranker, or the model for a new one.
        options: The options of a new reranker.

    Raises:
        InputError: If `source` is a reranker and there are options.
    """
    if isinstance(source, Reranker):
        if options:
            raise InputError(
                f"an existing reranker cannot take the options {', '.join(options)}", "pass them to Reranker(...)"
            )
        return source
    return Reranker(source, **options) if source is not None else Reranker(**options)


def rank_texts(
    reranker: Reranker, query: str, texts: Sequence[str | Mapping[str, Any]], top: int | None = None
) -> Sequence[Hit]:
    """Return the best `texts` for `query`, the best first.

    Args:
        reranker: The reranker.
        query: The text of the query.
        texts: The texts of the documents, or mappings with a "text".
        top: The number of hits to return (None: all).

    Raises:
        InputError: If `top` is below 1.
        ModelError: If the model could not be reached for any window.
    """
    with _checked_windows() as on_result:
        return reranker.rank(query, texts, top_n=top, on_result=on_result) if texts else ()


async def arank_texts(reranker: Reranker, query: str, texts: Sequence[str], top: int | None = None) -> Sequence[Hit]:
    """`rank_texts` for async code. It does not block the event loop, and cancelling it cancels the calls in flight."""
    with _checked_windows() as on_result:
        return await reranker.arank(query, texts, top_n=top, on_result=on_result) if texts else ()


def rerank(
    reranker: Reranker,
    candidates: Mapping[str, Collection[str]],
    queries: Mapping[str, str],
    passages: Mapping[str, Passage] | PassageSource,
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the id of each query and the ids of its documents, the best first. Queries are ranked concurrently.

    Args:
        reranker: The reranker.
        candidates: The document ids of each query in first-stage order, by query id.
        queries: The texts of the queries by query id.
        passages: The documents by id, or a source of them.

    Raises:
        ModelError: After the last query, if the model could not be reached for any window.
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
def _checked_windows() -> Iterator[Callable[..., None]]:
    """Yield an `on_result` hook that counts windows. On exit, raise an error or log a warning (see the module).

    The hook is called in a different thread. The counts are read after the ranking.
    """
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
        LOG.warning(
            "%d of %d windows could not be ranked and kept their input order", counts["unranked"], counts["windows"]
        )
