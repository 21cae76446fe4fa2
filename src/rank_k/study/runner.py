"""Run one cell of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rank_k.data.long_documents import passage_grades
from rank_k.data.trec import RunWriter, read_qrels
from rank_k.engine import RunStats
from rank_k.models.base import Model
from rank_k.models.simulated import SimulatedModel
from rank_k.reranker import Reranker
from rank_k.run_job import ShowProgress, rerank_run, split_overrides
from rank_k.simulation.noise_file import noise_by_name
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, ModelPlan
from rank_k.study.inputs import LoadedCollection


def run_cell(
    cell: Cell,
    collection: LoadedCollection,
    model: ModelPlan,
    connection: Mapping[str, Any],
    folder: StudyFolder,
    show_progress: ShowProgress,
) -> RunStats:
    """Rerank the first-stage run of a cell and write the result to the folder. Calls in the journal are not repeated.

    Args:
        cell: The cell.
        collection: The collection of the cell.
        model: The model of the cell.
        connection: Options of `Reranker` for the connection to the model, such as `server` and `api_key`.
        folder: The folder with the runs and the journal.
        show_progress: Shows the progress.

    Returns:
        The counts of queries, windows, calls and tokens.

    Raises what `Reranker` raises. The journal then contains all finished calls.
    """
    first_stage = collection.runs[cell.first_stage]
    split = cell.passage_split
    options = {**cell.options, **connection}
    source: str | Model | None = model.model
    if model.simulate:
        grades = read_qrels(model.judgments) if model.judgments else collection.qrels
        source = SimulatedModel(grades if split is None else passage_grades(grades), noise_by_name(model.simulate))
    with Reranker(
        source, journal=folder.journal, **(options if split is None else split_overrides(options))
    ) as reranker:
        reranker.prepare()
        if not model.simulate:
            folder.record_identity(model.name, reranker.model.identity)
        reranker.check(collection.queries[query_id] for query_id in first_stage.query_ids)
        folder.run_file(cell).unlink(missing_ok=True)  # an existing file means that the cell is finished
        reranker.journal.delete_windows(folder.journal_run(cell))
        rankings = rerank_run(
            reranker,
            first_stage,
            collection.queries,
            collection.store,
            query_count=len(first_stage.query_ids),
            settings=folder.journal_settings(cell),
            split=split,
            depth=cell.depth,
            show_progress=show_progress,
        )
        with RunWriter(folder.run_file(cell)) as writer:
            for query_id, ranking in rankings:
                writer.write_query(query_id, ranking.doc_ids)
        return reranker.stats
