"""All that a study has to say, in one value: for the terminal, for JSON and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

from rank_k.journal import Journal
from rank_k.study.breakdowns import (
    SLOTS,
    AfterRound,
    ByDifficulty,
    WithSlots,
    by_difficulty,
    by_round,
    with_slots,
)
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, Study
from rank_k.study.inputs import LoadedCollections
from rank_k.study.table import AverageRow, Row, averages_of, axes_of, cell_to_dict, labels_of, rows_of


@dataclass(frozen=True, slots=True)
class StudyResults:
    """`unfinished`: names of cells that have no rows."""

    study: Study
    rows: tuple[Row, ...]
    unfinished: tuple[str, ...]
    averages: tuple[AverageRow, ...]
    difficulty: tuple[ByDifficulty, ...]
    rounds: tuple[AfterRound, ...]
    slots: tuple[WithSlots, ...]

    @classmethod
    def of(
        cls,
        study: Study,
        cells: Iterable[Cell],
        opened: Mapping[str, LoadedCollections],
        folder: StudyFolder,
        journal: Journal,
        unfinished: Sequence[str] = (),
    ) -> Self:
        rows = rows_of(study, cells, opened, folder, journal)
        return cls(
            study,
            tuple(rows),
            tuple(unfinished),
            tuple(averages_of(rows, study.averages)),
            tuple(by_difficulty(rows, opened, folder) if study.by_difficulty else ()),
            tuple(by_round(rows, opened, folder, journal) if study.by_round else ()),
            tuple(with_slots(rows) if study.by_round else ()),
        )

    @property
    def labels(self) -> dict[str, str]:
        """Short names of the rows."""
        return labels_of(self.rows)

    @property
    def timed(self) -> bool:
        """Whether the calls took any time: those of a simulated judge do not."""
        return any(row.cost.seconds for row in self.rows)

    @property
    def axes(self) -> tuple[str, ...]:
        return axes_of(self.rows)

    def by_run(self) -> Iterator[tuple[str, list[Row]]]:
        """The rows of each run and model, under a heading; the first stage leads each."""
        for (collection, first_stage), some in groupby(self.rows, key=lambda row: (row.collection, row.first_stage)):
            rows = list(some)
            leading = [row for row in rows if row.cell is None]
            for model in dict.fromkeys(row.cell.model for row in rows if row.cell is not None):
                of_model = [row for row in rows if row.cell is not None and row.cell.model == model]
                queries = len(rows[0].first_values)
                yield f"{collection}, {first_stage}, {model}: {queries} queries", [*leading, *of_model]

    def difficulty_tables(self) -> Iterator[tuple[tuple[str, str], list[ByDifficulty]]]:
        """For each kind of difficulty and baseline."""
        baselines = {row.name: row.baseline for row in self.rows}
        kinds = dict.fromkeys((one.by, baselines[one.name]) for one in self.difficulty)
        for by, baseline in kinds:
            yield (by, baseline), [one for one in self.difficulty if (one.by, baselines[one.name]) == (by, baseline)]

    def slot_counts(self) -> tuple[int | None, ...]:
        return SLOTS

    def slot_rows(self) -> Iterator[tuple[str, list[float]]]:
        for name, some in groupby(self.slots, key=lambda one: one.name):
            yield name, [one.seconds for one in some]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "title": self.study.title,
            "about": self.study.about,
            "cells": [cell_to_dict(row) for row in self.rows],
            "unfinished": list(self.unfinished),
            "averages": [one._asdict() for one in self.averages],
            "by_difficulty": [
                {
                    **one._asdict(),
                    "against": {"mean": one.against.mean, "low": one.against.low, "high": one.against.high},
                }
                for one in self.difficulty
            ],
            "by_round": [{**one._asdict(), "quality": one.quality._asdict()} for one in self.rounds],
            "with_slots": [one._asdict() for one in self.slots],
            "published": [
                {
                    "collection": one.collection,
                    "first_stage": one.first_stage,
                    "model": one.model,
                    "measure": one.measure,
                    "value": one.value,
                    "source": one.source,
                }
                for one in self.study.published
            ],
        }
