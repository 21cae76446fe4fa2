"""The results of `rank-k study` as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rank_k.cli.render.rerank_summary import describe_repair
from rank_k.cli.render.tables import Table
from rank_k.cli.render.words import count_noun, format_count
from rank_k.evaluation.significance import PairedDifference
from rank_k.study.grid import Cell, Study
from rank_k.study.results import StudyResults
from rank_k.study.table import CellRow, Estimate


def cell_listing(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Return the lines of a list of the cells, followed by the commands that start the servers of their models."""
    lines = [study.title, *([study.about] if study.about else []), "", f"{count_noun(len(cells), 'cell')}:"]
    lines += [f"  {cell.name}" for cell in cells]
    for model in study.models:
        if model.serve and not model.simulate:
            lines += ["", f"{model.name} at {model.server}:", f"  {model.serve}"]
    return lines


def tables(results: StudyResults) -> Iterator[Table]:
    """Yield a table of quality and cost for each run, and the tables that the study asks for in addition."""
    measure, labels = results.study.measures[0], results.labels
    for heading, rows in results.by_run():
        cells = [_format_row(row, results) for row in rows]
        yield Table(list(cells[0]), [list(row.values()) for row in cells], title=heading)
    if results.averages:
        columns = ["average", "first stage", "model", "cell", measure, "±"]
        yield Table(columns, [[*row[:4], f"{row.mean:.4f}", f"{row.error:.4f}"] for row in results.averages], "llll")
    for (criterion, baseline), difficulty_rows in results.difficulty_tables():
        columns = ["cell", "third", "range", labels[baseline], "the cell", "difference", "95%", "reasoning"]
        lines = [
            [
                *(labels[row.name], row.third, f"{row.low:.2f} to {row.high:.2f}"),
                *(f"{row.baseline:.4f}", f"{row.quality:.4f}", *_format_difference(row.against)),
                format_count(round(row.reasoning)),
            ]
            for row in difficulty_rows
        ]
        yield Table(columns, lines, "ll", title=f"queries by {criterion}")
    if results.round_rows:
        columns = ["stopped after", "round", measure, "±", "seconds"]
        lines = [
            [labels[row.name], str(row.rounds), *_format_estimate(row.quality), f"{row.seconds:.1f}"]
            for row in results.round_rows
        ]
        end = len(columns) if results.has_timings else -1
        yield Table(columns[:end], [line[:end] for line in lines])
    if results.latencies and results.has_timings:
        columns = ["seconds per query", *(f"{level or 'all'} at a time" for level in results.concurrency_levels)]
        yield Table(
            columns,
            [[labels[name], *(f"{each:.1f}" for each in seconds)] for name, seconds in results.latencies.items()],
        )
    if results.study.published:
        columns = ["published elsewhere", "first stage", "model", "measure", "source", "value"]
        lines = [
            [row.collection, row.first_stage, row.model, row.measure, row.source, f"{row.value:.4f}"]
            for row in results.study.published
        ]
        yield Table(columns, lines, "lllll")


def _format_row(row: CellRow, results: StudyResults) -> dict[str, str]:
    """Return the cells of a row of the main table as text, by column."""
    mean, error = _format_estimate(row.primary_quality)
    difference, interval = ("baseline" if row.baseline else "", "")
    if row.difference is not None:
        difference, interval = _format_difference(row.difference)
    cells = {
        "cell": row.setting,
        **_format_unranked(row, results),
        results.study.measures[0]: mean,
        "±": error,
        "difference": difference,
        "95%": interval,
        "p": "" if row.difference is None else f"{row.corrected_p:.3f}",
        **dict.fromkeys(("rounds", "calls", "in", "reasoning", "answer", "seconds"), ""),
        "best": " ".join(axis for axis in results.axes if axis in row.pareto_axes),
    }
    if row.cell is not None:
        usage, costs = row.cost.usage, row.mean_cost
        is_estimated = {
            "in": usage.estimated,
            "reasoning": usage.reasoning_is_estimated,
            "answer": usage.reasoning_is_estimated,
        }
        cells |= {name: f"{costs[name]:.1f}" for name in ("rounds", "calls")}
        cells |= {
            name: ("~" if estimated else "") + format_count(round(costs[f"tokens_{name}"]))
            for name, estimated in is_estimated.items()
        }
        cells["seconds"] = f"{costs['seconds']:.1f}" if costs["seconds"] else "-"
    return cells


def _format_unranked(row: CellRow, results: StudyResults) -> dict[str, str]:
    """Return the column with the share of unranked windows; no column if the study has no unranked windows."""
    if not any(each.cost.unranked for each in results.rows):
        return {}
    return {"unranked windows": f"{row.unranked_share:.0%} !" if row.cost.unranked else ""}


def _format_estimate(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.mean:.4f}", f"{estimate.error:.4f}"


def _format_difference(difference: PairedDifference) -> tuple[str, str]:
    """Return the mean difference and its interval as text."""
    return f"{difference.mean:+.4f}", f"{difference.low:+.4f} {difference.high:+.4f}"


def notes(results: StudyResults) -> Iterator[str]:
    """Yield notes on unranked windows, repairs and unfinished cells."""
    for row in results.rows:
        repairs = {kind: count for kind, count in sorted(row.cost.repairs.items()) if count}
        repairs.pop("unranked", None)
        given_up = repairs.pop("retries_exhausted", 0)
        if row.cost.unranked:
            windows = sum(query.windows for query in row.cost.queries.values())
            given_up_note = (
                f" ({given_up:,} had no response: run the same command to request them again)" if given_up else ""
            )
            unranked = f"{row.cost.unranked:,} of {count_noun(windows, 'window')}"
            yield f"{row.name}: left in input order: {unranked}{given_up_note}"
        if repairs:
            repair_text = "; ".join(describe_repair(kind, count) for kind, count in repairs.items())
            yield f"{row.name}: repairs: {repair_text}"
    for name in results.unfinished:
        yield f"{name}: not in the tables, because it is not finished"
