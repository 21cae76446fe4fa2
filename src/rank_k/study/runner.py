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
from rank_k.study.grid import Cell, ModelPlan, strategy_of
from rank_k.study.inputs import LoadedCollections

Watch = Callable[[Callable[[], RunStats], int], AbstractContextManager[Any]]
"""Given what tells how far a cell has come, and of how many queries: shows it while the cell runs."""


def run_cell(
    cell: Cell, opened: LoadedCollections, model: ModelPlan, reach: Mapping[str, Any], folder: StudyFolder, watch: Watch
) -> RunStats:
    """Rerank the cell's run and put it into the folder. What the journal holds is not asked again.

    `reach`: options of `Reranker` that say how `model` is reached. Raises what `Reranker` raises; what was finished
    is in the journal then.
    """
    first_stage = opened.runs[cell.first_stage]
    split = cell.passages
    passages = None if split is None else SplitRun(first_stage, opened.store, split, cell.depth)
    asked: str | Model | None = model.model
    if model.simulate:
        asked = _judge(model, opened, by_passage=split is not None)
    with Reranker(
        asked,
        journal=folder.journal,
        strategy=strategy_of(cell),
        depth=cell.depth if passages is None else maxsize,
        reasoning=cell.reasoning,
        samples=cell.samples,
        passage_tokens=cell.passage_tokens,
        max_tokens=cell.max_tokens,
        temperature=cell.temperature,
        top_p=cell.top_p,
        constrained=cell.constrained,
        method="listwise",
        **reach,
    ) as reranker:
        reranker.prepare()
        if not model.simulate:
            folder.identify(model.name, reranker.model.identity)
        reranker.check(opened.queries[query_id] for query_id in first_stage.query_ids)
        folder.output(cell).unlink(missing_ok=True)  # where it is, the cell counts as finished
        run = reranker.journal.begin_run(folder.settings(cell))
        reranker.journal.forget_windows(run)
        with RunWriter(folder.output(cell)) as writer, watch(lambda: reranker.stats, len(first_stage.query_ids)):
            results = reranker.rerank(
                first_stage if passages is None else passages,
                opened.queries,
                opened.store if passages is None else passages,
                run_name=run,
            )
            rankings = ((result.query_id, result.ranking) for result in results)
            for query_id, ranking in rankings if passages is None else passages.collapsed(rankings):
                writer.write(query_id, ranking.doc_ids)
        return reranker.stats


def _judge(model: ModelPlan, opened: LoadedCollections, *, by_passage: bool) -> Model:
    grades = read_qrels(model.judgments) if model.judgments else opened.qrels
    if by_passage:
        grades = {query_id: DocumentGrades(of_query) for query_id, of_query in grades.items()}
    return SimulatedModel(grades, noise_by_name(model.simulate))
