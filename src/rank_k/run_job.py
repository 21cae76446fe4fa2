"""Rerank a whole run with a `Reranker`: for the commands rerank, study and distill trace.

Every finished call is in the journal. After an interruption, the same job resumes: it repeats no finished call and
writes the same rankings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from rank_k.data.long_documents import PassageSplit, SplitRun
from rank_k.errors import InputError
from rank_k.options import InferenceOptions
from rank_k.reranker import Reranker
from rank_k.types import Candidate, PassageSource, Query, Ranking
from rank_k.window.base import WindowReport


class RunObserver(Protocol):
    """Follows a run, for a progress display."""

    def watch(self, run: Iterable[tuple[str, Sequence[Candidate]]]) -> Iterable[tuple[str, Sequence[Candidate]]]:
        """Yield the queries of `run`. The next query is requested when the reranker is about to start it."""

    def add_result(self, query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
        """Receive the report of a window that was ranked."""


ShowProgress = Callable[[Reranker, int], AbstractContextManager[RunObserver | None]]
"""Called with the reranker and the number of queries; shows the progress while the context is entered."""


def no_progress(reranker: Reranker, query_count: int) -> AbstractContextManager[None]:
    """Show nothing."""
    return nullcontext()


def rerank_run(
    reranker: Reranker,
    run: Iterable[tuple[str, Sequence[Candidate]]],
    queries: Mapping[str, Query],
    passages: PassageSource,
    *,
    query_count: int,
    settings: Mapping[str, Any],
    split: PassageSplit | None = None,
    depth: int = 100,
    max_seconds: float | None = None,
    token_budget: int | None = None,
    show_progress: ShowProgress = no_progress,
) -> Iterator[tuple[str, Ranking]]:
    """Yield each query id of the run with its ranking (of documents, if they are split), in the order of the run.

    Args:
        reranker: The reranker.
        run: Pairs of query id and candidates. With `split`, it is iterated twice.
        queries: The queries by id.
        passages: The passages or, with `split`, the documents.
        query_count: The number of queries, for the progress display.
        settings: Everything that determines the calls of the run. The journal stores it and identifies the run by it.
        split: How long documents are split into passages (default: they are not).
        depth: With `split`, the number of documents to rerank per query. Otherwise the reranker's depth counts.
        max_seconds: Stop after this time with the best ranking so far (default: no limit).
        token_budget: Stop after this many tokens with the best ranking so far (default: no limit).
        show_progress: Shows the progress.

    Raises what `Reranker.rerank` raises.
    """
    reranker.prepare()
    name = reranker.journal.begin_run(settings)
    split_run = None if split is None else SplitRun(run, passages, split, depth)
    candidates = run if split_run is None else split_run
    with show_progress(reranker, query_count) as observer:
        results = reranker.rerank(
            candidates if observer is None else observer.watch(candidates),
            queries,
            passages if split_run is None else split_run,
            max_seconds=max_seconds,
            token_budget=token_budget,
            run_name=name,
            on_result=None if observer is None else observer.add_result,
        )
        rankings = ((result.query_id, result.ranking) for result in results)
        yield from rankings if split_run is None else split_run.document_rankings(rankings)


def passage_split(maxp: Mapping[str, int | None], passage_tokens: int) -> PassageSplit | None:
    """Return how long documents are split, by the values of `LongDocumentOptions`; None if they are not.

    Raises:
        InputError: If the options contradict each other or the truncation to `passage_tokens`.
    """
    tokens, overlap, limit = (maxp.get(name) for name in ("maxp_tokens", "maxp_overlap", "maxp_passages"))
    if tokens is None:
        if overlap is not None or limit is not None:
            option = "maxp_overlap" if overlap is not None else "maxp_passages"
            raise InputError(f"{option} needs maxp_tokens", "also give maxp_tokens, the maximum length of a passage")
        return None
    if tokens > passage_tokens:
        raise InputError(
            f"passages of maxp_tokens {tokens} would be truncated to passage_tokens {passage_tokens}",
            "lower maxp_tokens or raise passage_tokens",
        )
    return PassageSplit(tokens, overlap or 0, limit)


def split_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a reranker for passages of split documents.

    The depth of the reranker counts passages and is unlimited. Passages are not truncated further, even if a distilled
    model has a smaller default for `passage_tokens`.
    """
    passage_tokens = options.get("passage_tokens") or InferenceOptions.passage_tokens
    return {**options, "depth": sys.maxsize, "passage_tokens": passage_tokens}
