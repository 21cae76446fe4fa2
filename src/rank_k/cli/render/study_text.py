"""What `rank-k study` shows in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rank_k.cli.progress import format_count
from rank_k.cli.render.evaluation_text import aligned
from rank_k.cli.render.rerank_summary import REPAIRS

if TYPE_CHECKING:
    from rank_k.study.grid import Cell, Study
    from rank_k.study.results import StudyResults
    from rank_k.study.table import Row


def listing(study: Study, cells: Sequence[Cell]) -> list[str]:
    """The cells, and the commands that serve their models."""
    lines = [study.title, *([study.about] if study.about else []), "", f"{len(cells)} cells:"]
    lines += [f"  {cell.name}" for cell in cells]
    for model in study.models:
        if model.serve and not model.simulate:
            lines += ["", f"{model.name} at {model.server}:", f"  {model.serve}"]
    return lines


def tables(answer: StudyResults) -> list[str]:
    """For each run the cells with quality and cost, and what the study's question is about."""
    lines: list[str] = []
    for heading, rows in answer.by_run():
        lines += ["", heading, *_cells(rows, answer)]
    lines += _averages(answer)
    lines += _by_difficulty(answer)
    lines += _by_round(answer)
    lines += _published(answer)
    return lines[1:]


def notes(answer: StudyResults) -> Iterator[str]:
    """What one should know before one quotes a number."""
    for row in answer.rows:
        cost = row.cost
        if cost.unranked:
            windows = sum(query.windows for query in row.spent)
            given_up = (
                f"; {cost.retries_exhausted} were given up: the same command asks again"
                if cost.retries_exhausted
                else ""
            )
            yield f"{row.name}: left in input order: {cost.unranked} of {windows} windows{given_up}"
        some = {
            kind: count
            for kind, count in cost.repairs.items()
            if kind not in ("unranked", "retries_exhausted") and count
        }
        if some:
            told = "; ".join(f"{count:,} {REPAIRS.get(kind, kind)}" for kind, count in sorted(some.items()))
            yield f"{row.name}: repairs: {told}"
    for name in answer.unfinished:
        yield f"{name}: not finished, not in the tables"


def _cells(rows: Sequence[Row], answer: StudyResults) -> list[str]:
    measure = answer.study.measures[0]
    head = [
        "cell",
        measure,
        "±",
        "difference",
        "95 %",
        "p",
        "rounds",
        "calls",
        "in",
        "reasoning",
        "answer",
        "seconds",
        "best",
    ]
    table: list[list[str]] = []
    for row in rows:
        against, cost = row.against, row.cost
        difference = ["", "", ""]
        if against is not None:
            difference = [f"{against.mean:+.4f}", f"{against.low:+.4f} {against.high:+.4f}", f"{row.p:.3f}"]
        elif row.baseline:
            difference = ["baseline", "", ""]
        spent = [""] * 6
        if row.cell is not None:
            about = "~" if cost.estimated else ""
            tokens = (f"{about}{format_count(round(n))}" for n in (cost.tokens_in, cost.reasoning, cost.answer))
            spent = [f"{cost.rounds:.1f}", f"{cost.calls:.1f}", *tokens, f"{cost.seconds:.1f}" if cost.seconds else "-"]
        best = " ".join(axis for axis in answer.axes if axis in row.on_set)
        quality = row.first
        table.append([row.setting, f"{quality.mean:.4f}", f"{quality.error:.4f}", *difference, *spent, best])
    return aligned(head, table)


def _averages(answer: StudyResults) -> list[str]:
    if not answer.averages:
        return []
    head = ["average", "first stage", "model", "cell", answer.study.measures[0], "±"]
    table = [[*one[:4], f"{one.mean:.4f}", f"{one.error:.4f}"] for one in answer.averages]
    return ["", *aligned(head, table, 4)]


def _by_difficulty(answer: StudyResults) -> list[str]:
    lines: list[str] = []
    for (by, baseline), some in answer.difficulty_tables():
        labels = answer.labels
        head = ["cell", "third", "range", labels[baseline], "the cell", "difference", "95 %", "reasoning"]
        table = [
            [
                labels[one.name],
                one.third,
                f"{one.low:.2f} to {one.high:.2f}",
                f"{one.baseline:.4f}",
                f"{one.quality:.4f}",
                f"{one.against.mean:+.4f}",
                f"{one.against.low:+.4f} {one.against.high:+.4f}",
                format_count(round(one.reasoning)),
            ]
            for one in some
        ]
        lines += ["", f"queries by {by}", *aligned(head, table, 2)]
    return lines


def _by_round(answer: StudyResults) -> list[str]:
    if not answer.rounds:
        return []
    labels = answer.labels
    head = ["stopped after", "round", answer.study.measures[0], "±", "seconds"]
    table = [
        [labels[one.name], str(one.rounds), f"{one.quality.mean:.4f}", f"{one.quality.error:.4f}", f"{one.seconds:.1f}"]
        for one in answer.rounds
    ]
    if not answer.timed:
        return ["", *aligned(head[:-1], [row[:-1] for row in table])]
    waits = ["seconds per query", *(f"{slots or 'all'} at a time" for slots in answer.slot_counts())]
    slots = [[labels[name], *(f"{seconds:.1f}" for seconds in some)] for name, some in answer.slot_rows()]
    return ["", *aligned(head, table), "", *aligned(waits, slots)]


def _published(answer: StudyResults) -> list[str]:
    if not answer.study.published:
        return []
    head = ["published, not measured here", "first stage", "model", "measure", "source", "value"]
    table = [
        [one.collection, one.first_stage, one.model, one.measure, one.source, f"{one.value:.4f}"]
        for one in answer.study.published
    ]
    return ["", *aligned(head, table, 5)]
