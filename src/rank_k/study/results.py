"""The results of a study in one object. The tables in the terminal, JSON and the HTML report are made from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, ClassVar, Self

from rank_k.journal import Journal
from rank_k.study.breakdowns import (
    CONCURRENCY_LEVELS,
    DifficultyRow,
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
    """The tables of a study.

    Attributes:
        study: The study.
        rows: A row for each first stage and each finished cell.
        unfinished: The names of cells without results.
        averages: The averages over collections.
        difficulty_rows: Gains by the difficulty of queries.
        round_rows: Quality after each round.
        latencies: For each cell, the mean seconds of a query that runs alone, for each concurrency level.
        concurrency_levels: The concurrency levels of `latencies`, in windows in flight. None means all windows of a
            round.
    """

    study: Study
    rows: tuple[CellRow, ...]
    unfinished: tuple[str, ...]
    averages: tuple[AverageRow, ...]
    difficulty_rows: tuple[DifficultyRow, ...]
    round_rows: tuple[RoundRow, ...]
    latencies: Mapping[str, Sequence[float]]
    concurrency_levels: ClassVar[tuple[int | None, ...]] = CONCURRENCY_LEVELS

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
        """Return the results of the finished `cells`."""
        rows = build_rows(study, cells, collections, folder, journal)
        return cls(
            study,
            tuple(rows),
            tuple(unfinished),
            tuple(compute_averages(rows, study.averages)),
            tuple(compare_by_difficulty(rows, collections, folder) if study.by_difficulty else ()),
            tuple(evaluate_by_round(rows, collections, folder, journal) if study.by_round else ()),
            latency_by_concurrency(rows) if study.by_round else {},
        )

    @property
    def labels(self) -> dict[str, str]:
        """Short names of the rows."""
        return short_labels(self.rows)

    @property
    def has_timings(self) -> bool:
        """Whether the calls took time. Calls to simulated models do not."""
        return "seconds" in self.axes

    @property
    def axes(self) -> tuple[str, ...]:
        """The kinds of cost that quality is plotted against."""
        return cost_axes(self.rows)

    def by_run(self) -> Iterator[tuple[str, list[CellRow]]]:
        """Yield a heading and the rows of each run and model. The row of the first stage comes first."""
        for (collection, first_stage), group in groupby(self.rows, key=lambda row: (row.collection, row.first_stage)):
            first, *cells = group
            for model in dict.fromkeys(row.model for row in cells):
                heading = f"{collection}, {first_stage}, {model}: {len(first.first_measure_values)} queries"
                yield heading, [first, *(row for row in cells if row.model == model)]

    def difficulty_tables(self) -> Iterator[tuple[tuple[str, str], list[DifficultyRow]]]:
        """Yield the criterion, the baseline and the rows of each table of gains by difficulty."""
        baselines = {row.name: row.baseline for row in self.rows}
        tables: dict[tuple[str, str], list[DifficultyRow]] = defaultdict(list)
        for row in self.difficulty_rows:
            tables[row.criterion, baselines[row.name]].append(row)
        yield from tables.items()

    def to_dict(self) -> dict[str, Any]:
        """Return the results as a JSON object."""
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
            "by_concurrency": [
                {"name": name, "concurrency": concurrency, "seconds": seconds}
                for name, latencies in self.latencies.items()
                for concurrency, seconds in zip(CONCURRENCY_LEVELS, latencies, strict=True)
            ],
            "published": [asdict(row) for row in self.study.published],
        }
