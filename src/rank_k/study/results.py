"""All that a study has to say, in one value: for the terminal, for JSON and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

from rank_k.journal import Journal
from rank_k.study.breakdowns import (
    CONCURRENCY_LEVELS,
    DifficultyRow,
    LatencyRow,
    RoundRow,
    compare_by_difficulty,
    evaluate_by_round,
    latency_by_concurrency,
)
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, Study
from rank_k.study.inputs import LoadedCollection
from rank_k.study.table import AverageRow, CellRow, build_rows, cell_to_dict, compute_averages, cost_axes, short_labels


@dataclass(frozen=True, slots=True)
class StudyResults:
    """`unfinished`: names of cells that have no rows."""

    study: Study
    rows: tuple[CellRow, ...]
    unfinished: tuple[str, ...]
    averages: tuple[AverageRow, ...]
    difficulty_rows: tuple[DifficultyRow, ...]
    round_rows: tuple[RoundRow, ...]
    latencies: tuple[LatencyRow, ...]

    @classmethod
    def collect(
        cls,
        study: Study,
        cells: Iterable[Cell],
        collections: Mapping[str, LoadedCollection],
        folder: StudyFolder,
        journal: Journal,
        unfinished: Sequence[str] = (),
    ) -> Self:
        rows = build_rows(study, cells, collections, folder, journal)
        return cls(
            study,
            tuple(rows),
            tuple(unfinished),
            tuple(compute_averages(rows, study.averages)),
            tuple(compare_by_difficulty(rows, collections, folder) if study.by_difficulty else ()),
            tuple(evaluate_by_round(rows, collections, folder, journal) if study.by_round else ()),
            tuple(latency_by_concurrency(rows) if study.by_round else ()),
        )

    @property
    def labels(self) -> dict[str, str]:
        """Short names of the rows."""
        return short_labels(self.rows)

    @property
    def has_timings(self) -> bool:
        """Whether the calls took any time: those of a simulated judge do not."""
        return any(row.cost.seconds for row in self.rows)

    @property
    def axes(self) -> tuple[str, ...]:
        return cost_axes(self.rows)

    def by_run(self) -> Iterator[tuple[str, list[CellRow]]]:
        """The rows of each run and model, under a heading; the first stage leads each."""
        for (collection, first_stage), group in groupby(self.rows, key=lambda row: (row.collection, row.first_stage)):
            rows = list(group)
            first_stage_rows = [row for row in rows if row.cell is None]
            for model in dict.fromkeys(row.cell.model for row in rows if row.cell is not None):
                model_rows = [row for row in rows if row.cell is not None and row.cell.model == model]
                query_count = len(rows[0].first_measure_values)
                yield f"{collection}, {first_stage}, {model}: {query_count} queries", [*first_stage_rows, *model_rows]

    def difficulty_tables(self) -> Iterator[tuple[tuple[str, str], list[DifficultyRow]]]:
        """For each kind of difficulty and baseline."""
        baselines = {row.name: row.baseline for row in self.rows}
        tables = dict.fromkeys((row.criterion, baselines[row.name]) for row in self.difficulty_rows)
        for criterion, baseline in tables:
            yield (
                (criterion, baseline),
                [row for row in self.difficulty_rows if (row.criterion, baselines[row.name]) == (criterion, baseline)],
            )

    def concurrency_levels(self) -> tuple[int | None, ...]:
        return CONCURRENCY_LEVELS

    def latency_rows(self) -> Iterator[tuple[str, list[float]]]:
        for name, group in groupby(self.latencies, key=lambda row: row.name):
            yield name, [row.seconds for row in group]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "title": self.study.title,
            "about": self.study.about,
            "cells": [cell_to_dict(row) for row in self.rows],
            "unfinished": list(self.unfinished),
            "averages": [row._asdict() for row in self.averages],
            "by_difficulty": [
                {
                    **row._asdict(),
                    "against": {"mean": row.against.mean, "low": row.against.low, "high": row.against.high},
                }
                for row in self.difficulty_rows
            ],
            "by_round": [{**row._asdict(), "quality": row.quality._asdict()} for row in self.round_rows],
            "by_concurrency": [row._asdict() for row in self.latencies],
            "published": [
                {
                    "collection": row.collection,
                    "first_stage": row.first_stage,
                    "model": row.model,
                    "measure": row.measure,
                    "value": row.value,
                    "source": row.source,
                }
                for row in self.study.published
            ],
        }
