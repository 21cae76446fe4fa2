"""Rerank a Ray dataset with a fixed pool of actors, each with its own reranker and journal.

    import ray
    from rank_k.scale.ray import rerank
    queries = ray.data.read_parquet("candidates.parquet")  # columns query_id, query, doc_ids, texts
    ranked = rerank(queries, "hltcoe/Rank-K-32B", server="http://node1:8000/v1", journals="/shared/journals")
    ranked.write_parquet("ranked")

Ray distributes batches of queries to the actors. It may run a batch again, for example when an actor dies. Before an
actor sends a request, it looks up the call in all journals of the folder, so finished calls are not repeated. If a
query fails, its error is in the column `error`, and the job continues.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rank_k.errors import InputError, RankKError
from rank_k.journal.shared import SharedFolderJournal
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Passage, PassageSource, Query, Usage
from rank_k.window.base import WindowReport

if TYPE_CHECKING:
    from ray.data import Dataset

COLUMNS = ("query_id", "query", "doc_ids", "texts")
"""The columns of the input. `doc_ids` and `texts` are lists of the same length in the order of the first stage."""

JOURNAL_SUFFIX = ".sqlite"


def rerank(
    dataset: Dataset,
    model: str | None = None,
    *,
    journals: str | Path,
    actors: int = 4,
    queries_at_a_time: int = 64,
    **options: Any,
) -> Dataset:
    """Return a dataset with one row per query: its documents, best first, and the tokens that were used.

    Args:
        dataset: Rows with the columns `query_id`, `query`, `doc_ids` and `texts`.
        model: The model, as in `Reranker`.
        journals: A folder that all nodes share. Each actor writes one journal in this folder and reads all of them.
        actors: The number of actors. Each takes one processor core.
        queries_at_a_time: The number of queries in a batch. An actor works on two batches at a time.
        options: Options of `Reranker`, such as `server`, `strategy` and `reasoning`.

    Returns:
        A lazy dataset with these columns: `query_id`; `doc_ids` (list); `tied` (list, whether a document is tied with
        the one before it); `finished` (whether the query was reranked completely); `unranked_windows`, `prompt_tokens`,
        `completion_tokens` and `reasoning_tokens` (counts for the query); and `error` (the error message, or "" if the
        query did not fail). If the query failed, `doc_ids` has the input order.

    Raises:
        InputError: If a column is missing or an option is invalid.
        MissingExtra: If Ray is not installed.
    """
    ray_data = load("ray.data")
    if missing := [column for column in COLUMNS if column not in (dataset.columns() or ())]:
        raise InputError(f"the dataset has no column {missing[0]}", f"it needs {', '.join(COLUMNS)}")
    for name, value in {"actors": actors, "queries_at_a_time": queries_at_a_time}.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1 (got {value})", f"give {name} a positive number")
    folder = Path(journals)
    folder.mkdir(parents=True, exist_ok=True)
    Reranker(model, **options).close()  # raises if an option is invalid
    return dataset.map_batches(
        RerankActor,
        batch_size=queries_at_a_time,
        batch_format="pyarrow",
        compute=ray_data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        fn_constructor_kwargs={"model": model, "options": options, "journals": str(folder)},
    )


class RerankActor:
    """Reranks batches of queries. Ray creates one instance per actor."""

    def __init__(self, model: str | None, options: Mapping[str, Any], journals: str) -> None:
        journal = SharedFolderJournal(Path(journals) / f"{uuid4().hex}{JOURNAL_SUFFIX}")
        self._reranker = Reranker(model, journal=journal, **options)

    async def __call__(self, batch: Any) -> AsyncIterator[Any]:
        """Yield a table with the results for a batch. `batch` is a pyarrow table with the columns `COLUMNS`."""
        rows = await asyncio.to_thread(self._rerank_rows, batch.to_pylist())
        yield load("pyarrow").Table.from_pylist(rows, schema=_schema())

    def _rerank_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the results for queries. If reranking fails, rerank each query separately to isolate the failure."""
        try:
            return self._rerank_together(rows)
        except RankKError as error:
            if len(rows) > 1:
                return [result for row in rows for result in self._rerank_rows([row])]
            [row] = rows
            return [_result_row(row["query_id"], row["doc_ids"], error=str(error))]

    def _rerank_together(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        run: dict[str, list[Candidate]] = {}
        passages: dict[str, Passage] = {}
        queries: dict[str, Query] = {}
        for row in rows:
            query_id, doc_ids, texts = row["query_id"], row["doc_ids"], row["texts"]
            if query_id in run:
                raise InputError(f"query {query_id} is in the dataset twice", "give each query its own id")
            if len(doc_ids) != len(texts):
                raise InputError(
                    f"query {query_id} has {len(doc_ids)} doc_ids and {len(texts)} texts", "give one text per document"
                )
            queries[query_id] = Query(query_id, row["query"])
            run[query_id] = [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)]
            passages |= {doc_id: Passage(doc_id, text) for doc_id, text in zip(doc_ids, texts, strict=True)}
        totals: dict[str, Usage] = dict.fromkeys(run, Usage())
        unranked: Counter[str] = Counter()

        def count(query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
            totals[query_id] += report.usage
            unranked[query_id] += not any(ranking.is_valid for ranking in report.result.rankings)

        return [
            _result_row(
                result.query_id,
                result.ranking.doc_ids,
                tied=result.ranking.tied,
                finished=result.finished,
                unranked_windows=unranked[result.query_id],
                usage=totals[result.query_id],
            )
            for result in self._reranker.rerank(run, queries, passages, on_result=count)
        ]


def _result_row(
    query_id: str,
    doc_ids: Sequence[str],
    *,
    tied: Sequence[bool] = (),
    finished: bool = False,
    unranked_windows: int = 0,
    usage: Usage = Usage(),
    error: str = "",
) -> dict[str, Any]:
    return {
        "query_id": query_id,
        "doc_ids": list(doc_ids),
        "tied": list(tied) or [False] * len(doc_ids),
        "finished": finished,
        "unranked_windows": unranked_windows,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "error": error,
    }


def _schema() -> Any:
    """Return the schema of the output. It is explicit because an empty batch must have the same schema."""
    arrow = load("pyarrow")
    counts = ("unranked_windows", "prompt_tokens", "completion_tokens", "reasoning_tokens")
    return arrow.schema(
        [
            ("query_id", arrow.string()),
            ("doc_ids", arrow.list_(arrow.string())),
            ("tied", arrow.list_(arrow.bool_())),
            ("finished", arrow.bool_()),
            *((name, arrow.int64()) for name in counts),
            ("error", arrow.string()),
        ]
    )


def dataset_of_run(
    run: Iterable[tuple[str, Sequence[Candidate]]],
    queries: Mapping[str, Query],
    passages: PassageSource,
    depth: int,
    rows_per_block: int = 1000,
) -> Dataset:
    """Return a run as a dataset with the columns `COLUMNS`, in the order of the run.

    Args:
        run: Pairs of query id and candidates, best first.
        queries: The queries by id.
        passages: The source of the passages.
        depth: The maximum number of candidates per query. Further candidates are left out.
        rows_per_block: The number of queries in a block of the dataset. One block at a time is built in memory.
    """
    ray, arrow = load("ray"), load("pyarrow")
    load("ray.data")
    blocks = []
    for rows in _chunks(run, rows_per_block):
        table = arrow.Table.from_pylist(
            [
                {
                    "query_id": query_id,
                    "query": queries[query_id].text,
                    "doc_ids": [candidate.doc_id for candidate in candidates[:depth]],
                    "texts": [passages.get(candidate.doc_id, query_id).text for candidate in candidates[:depth]],
                }
                for query_id, candidates in rows
            ]
        )
        blocks.append(ray.put(table))
    return ray.data.from_arrow_refs(blocks)


def _chunks(
    run: Iterable[tuple[str, Sequence[Candidate]]], size: int
) -> Iterator[list[tuple[str, Sequence[Candidate]]]]:
    iterator = iter(run)
    while chunk := list(islice(iterator, size)):
        yield chunk
