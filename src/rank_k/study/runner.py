"""One cell of a study: its run reranked through the study's journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from sys import maxsize
from typing import Any

from rank_k.data.long_documents import DocumentGrades, SplitRun
from rank_k.data.trec import RunWriter, read_qrels
from rank_k.engine import RunStats
from rank_k.models.base import Model
from rank_k.models.simulated import SimulatedModel
from rank_k.reranker import Reranker
from rank_k.simulation.noise_file import noise_by_name
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, ModelPlan, build_strategy
from rank_k.study.inputs import LoadedCollection

ShowProgress = Callable[[Callable[[], RunStats], int], AbstractContextManager[Any]]
"""Given what tells how far a cell has come, and of how many queries: shows it while the cell runs."""


def run_cell(
    cell: Cell,
    collection: LoadedCollection,
    model: ModelPlan,
    connection: Mapping[str, Any],
    folder: StudyFolder,
    show_progress: ShowProgress,
) -> RunStats:
    """Rerank the cell's run and put it into the folder. What the journal holds is not asked again.

    `connection`: options of `Reranker` that say how `model` is reached. Raises what `Reranker` raises; the journal then
    holds the finished calls.
    """
    first_stage = collection.runs[cell.first_stage]
    passage_split = cell.passage_split
    passage_run = None if passage_split is None else SplitRun(first_stage, collection.store, passage_split, cell.depth)
    ranker: str | Model | None = model.model
    if model.simulate:
        ranker = _simulated_judge(model, collection, by_passage=passage_split is not None)
    with Reranker(
        ranker,
        journal=folder.journal,
        strategy=build_strategy(cell),
        depth=cell.depth if passage_run is None else maxsize,
        reasoning=cell.reasoning,
        samples=cell.samples,
        passage_tokens=cell.passage_tokens,
        max_tokens=cell.max_tokens,
        temperature=cell.temperature,
        top_p=cell.top_p,
        constrained=cell.constrained,
        method="listwise",
        **connection,
    ) as reranker:
        reranker.prepare()
        if not model.simulate:
            folder.record_identity(model.name, reranker.model.identity)
        reranker.check(collection.queries[query_id] for query_id in first_stage.query_ids)
        folder.run_file(cell).unlink(missing_ok=True)  # where it is, the cell counts as finished
        run = reranker.journal.begin_run(folder.journal_settings(cell))
        reranker.journal.delete_windows(run)
        with (
            RunWriter(folder.run_file(cell)) as writer,
            show_progress(lambda: reranker.stats, len(first_stage.query_ids)),
        ):
            results = reranker.rerank(
                first_stage if passage_run is None else passage_run,
                collection.queries,
                collection.store if passage_run is None else passage_run,
                run_name=run,
            )
            rankings = ((result.query_id, result.ranking) for result in results)
            for query_id, ranking in rankings if passage_run is None else passage_run.document_rankings(rankings):
                writer.write(query_id, ranking.doc_ids)
        return reranker.stats


def _simulated_judge(model: ModelPlan, collection: LoadedCollection, *, by_passage: bool) -> Model:
    grades = read_qrels(model.judgments) if model.judgments else collection.qrels
    if by_passage:
        grades = {query_id: DocumentGrades(grades_of_query) for query_id, grades_of_query in grades.items()}
    return SimulatedModel(grades, noise_by_name(model.simulate))
