"""What `rank-k study` shows in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rank_k.cli.progress import format_count
from rank_k.cli.render.evaluation_text import align_table
from rank_k.cli.render.rerank_summary import REPAIRS

if TYPE_CHECKING:
    from rank_k.study.grid import Cell, Study
    from rank_k.study.results import StudyResults
    from rank_k.study.table import CellRow


def cell_listing(study: Study, cells: Sequence[Cell]) -> list[str]:
    """The cells, and the commands that serve their models."""
    lines = [study.title, *([study.about] if study.about else []), "", f"{len(cells)} cells:"]
    lines += [f"  {cell.name}" for cell in cells]
    for model in study.models:
        if model.serve and not model.simulate:
            lines += ["", f"{model.name} at {model.server}:", f"  {model.serve}"]
    return lines


def tables(results: StudyResults) -> list[str]:
    """For each run the cells with quality and cost, and what the study's question is about."""
    lines: list[str] = []
    for heading, rows in results.by_run():
        lines += ["", heading, *_cell_table(rows, results)]
    lines += _average_table(results)
    lines += _difficulty_tables(results)
    lines += _round_tables(results)
    lines += _published_table(results)
    return lines[1:]


def notes(results: StudyResults) -> Iterator[str]:
    """What one should know before one quotes a number."""
    for row in results.rows:
        cost = row.cost
        if cost.unranked:
            windows = sum(query.windows for query in row.query_costs)
            failed_note = (
                f"; {cost.retries_exhausted} were given up: the same command asks again"
                if cost.retries_exhausted
                else ""
            )
            yield f"{row.name}: left in input order: {cost.unranked} of {windows} windows{failed_note}"
        repairs = {
            kind: count
            for kind, count in cost.repairs.items()
            if kind not in ("unranked", "retries_exhausted") and count
        }
        if repairs:
            repair_text = "; ".join(f"{count:,} {REPAIRS.get(kind, kind)}" for kind, count in sorted(repairs.items()))
            yield f"{row.name}: repairs: {repair_text}"
    for name in results.unfinished:
        yield f"{name}: not finished, not in the tables"


def _cell_table(rows: Sequence[CellRow], results: StudyResults) -> list[str]:
    measure = results.study.measures[0]
    header = [
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
    lines: list[list[str]] = []
    for row in rows:
        difference_to_baseline, cost = row.difference, row.cost
        difference_cells = ["", "", ""]
        if difference_to_baseline is not None:
            difference_cells = [
                f"{difference_to_baseline.mean:+.4f}",
                f"{difference_to_baseline.low:+.4f} {difference_to_baseline.high:+.4f}",
                f"{row.corrected_p:.3f}",
            ]
        elif row.baseline:
            difference_cells = ["baseline", "", ""]
        cost_cells = [""] * 6
        if row.cell is not None:
            prefix = "~" if cost.estimated else ""
            tokens = (
                f"{prefix}{format_count(round(n))}"
                for n in (cost.prompt_tokens, cost.reasoning_tokens, cost.answer_tokens)
            )
            cost_cells = [
                f"{cost.rounds:.1f}",
                f"{cost.calls:.1f}",
                *tokens,
                f"{cost.seconds:.1f}" if cost.seconds else "-",
            ]
        pareto_axes = " ".join(axis for axis in results.axes if axis in row.pareto_axes)
        quality = row.primary_quality
        lines.append(
            [row.setting, f"{quality.mean:.4f}", f"{quality.error:.4f}", *difference_cells, *cost_cells, pareto_axes]
        )
    return align_table(header, lines)


def _average_table(results: StudyResults) -> list[str]:
    if not results.averages:
        return []
    header = ["average", "first stage", "model", "cell", results.study.measures[0], "±"]
    rows = [[*average[:4], f"{average.mean:.4f}", f"{average.error:.4f}"] for average in results.averages]
    return ["", *align_table(header, rows, 4)]


def _difficulty_tables(results: StudyResults) -> list[str]:
    lines: list[str] = []
    for (measure, baseline), rows in results.difficulty_tables():
        labels = results.labels
        header = ["cell", "third", "range", labels[baseline], "the cell", "difference", "95 %", "reasoning"]
        table_rows = [
            [
                labels[row.name],
                row.third,
                f"{row.low:.2f} to {row.high:.2f}",
                f"{row.baseline:.4f}",
                f"{row.quality:.4f}",
                f"{row.against.mean:+.4f}",
                f"{row.against.low:+.4f} {row.against.high:+.4f}",
                format_count(round(row.reasoning)),
            ]
            for row in rows
        ]
        lines += ["", f"queries by {measure}", *align_table(header, table_rows, 2)]
    return lines


def _round_tables(results: StudyResults) -> list[str]:
    if not results.round_rows:
        return []
    labels = results.labels
    header = ["stopped after", "round", results.study.measures[0], "±", "seconds"]
    rows = [
        [labels[row.name], str(row.rounds), f"{row.quality.mean:.4f}", f"{row.quality.error:.4f}", f"{row.seconds:.1f}"]
        for row in results.round_rows
    ]
    if not results.has_timings:
        return ["", *align_table(header[:-1], [row[:-1] for row in rows])]
    time_header = [
        "seconds per query",
        *(f"{concurrency or 'all'} at a time" for concurrency in results.concurrency_levels()),
    ]
    concurrency_rows = [
        [labels[name], *(f"{seconds:.1f}" for seconds in seconds_list)] for name, seconds_list in results.latency_rows()
    ]
    return ["", *align_table(header, rows), "", *align_table(time_header, concurrency_rows)]


def _published_table(results: StudyResults) -> list[str]:
    if not results.study.published:
        return []
    header = ["published, not measured here", "first stage", "model", "measure", "source", "value"]
    rows = [
        [result.collection, result.first_stage, result.model, result.measure, result.source, f"{result.value:.4f}"]
        for result in results.study.published
    ]
    return ["", *align_table(header, rows, 5)]
