"""`rank-k simulate`: estimate the quality, calls and cost of strategies with a simulated model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rank_k.cli.collection_options import RequestedCollection
from rank_k.cli.common_flags import add_flags, non_negative_float, positive_int
from rank_k.cli.model_options import add_options, import_strategies
from rank_k.cli.progress import progress_bar
from rank_k.cli.render.evaluation_text import without_nan
from rank_k.cli.render.tables import Table, print_tables
from rank_k.cli.render.words import count_noun, format_count, format_seconds
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import InputError
from rank_k.models.simulated import Grades
from rank_k.options import OPTIONS
from rank_k.simulation.call_times import CallTime, expected
from rank_k.simulation.noise_file import noise_by_name
from rank_k.simulation.processes import Simulation, simulate_judges
from rank_k.simulation.replay import SimulationTotals, difference, without_calls
from rank_k.strategies import PRESETS, make_strategy
from rank_k.strategies.base import Strategy
from rank_k.types import Run

FIRST_STAGE = "(first stage)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, "--run", "--qrels", "--dataset")
    parser.add_argument(
        "--strategy",
        dest="strategies",
        type=strategy_names,
        default="sliding,topdown,blocks",
        metavar="NAMES",
        help="strategies, presets (which have their own window and stride) or MODULE:NAME, separated by commas",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="strategy with which the others are compared (default: the first)"
    )
    add_flags(parser, "--noise")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=20,
        metavar="N",
        help="number of different simulated models, each of which ranks all queries",
    )
    defaults = {name: OPTIONS[name].default for name in ("depth", "window", "stride", "first_stage_weight")}
    add_options(parser, [OPTIONS[name] for name in defaults], defaults)
    group = parser.add_argument_group("time and cost")
    group.add_argument(
        "--call-seconds",
        metavar="T",
        help="mean duration of a call in seconds: a number such as 45, or a formula such as 20+2.5w, where w is the"
        " number of passages in the window",
    )
    group.add_argument(
        "--call-spread",
        type=non_negative_float,
        default=0.3,
        metavar="S",
        help="standard deviation of the logarithm of the duration",
    )
    group.add_argument(
        "--concurrency",
        type=concurrency_values,
        default="16",
        metavar="N,N",
        help="numbers of concurrent calls for which times are estimated, separated by commas",
    )
    group.add_argument("--tokens-per-passage", type=non_negative_float, metavar="N", help="prompt tokens per passage")
    group.add_argument(
        "--tokens-per-answer",
        type=non_negative_float,
        metavar="N",
        help="completion tokens per call, including reasoning",
    )
    add_flags(group, "--price-in", "--price-out")
    add_flags(parser, "--json", "--quiet")


def run(args: argparse.Namespace) -> int:
    call_time = None if args.call_seconds is None else CallTime.parse(args.call_seconds, args.call_spread)
    if (args.price_in is not None or args.price_out is not None) and not _has_token_counts(args):
        raise InputError(
            "costs cannot be computed without token counts", "also give --tokens-per-passage and --tokens-per-answer"
        )
    baseline = args.baseline or args.strategies[0]
    if baseline not in args.strategies:
        raise InputError(f"--baseline {baseline} is not in --strategy", f"give one of {', '.join(args.strategies)}")
    noise = noise_by_name(args.noise)
    make_strategies = partial(
        _make_strategies, tuple(args.strategies), args.window, args.stride, args.first_stage_weight
    )
    make_strategies()  # an unknown strategy is reported before files are read
    grades, candidates = _read_inputs(args)
    missing = [query_id for query_id in grades if not candidates.get(query_id)]
    if missing:
        print(
            f"{count_noun(len(missing), 'judged query')} missing from the run, counted as 0: {', '.join(missing[:5])}",
            file=sys.stderr,
        )
    with progress_bar("simulating models", args.seeds, quiet=args.quiet) as update:
        simulation = Simulation(candidates, grades, make_strategies, noise, args.depth)
        totals = simulate_judges(simulation, args.seeds, update)
    rows = [_make_row(name, sums, totals[baseline], call_time, args) for name, sums in totals.items()]
    if args.json:
        settings = {
            key: value for key, value in vars(args).items() if key not in ("verb", "command_line", "json", "quiet")
        }
        output = {"settings": settings | {"baseline": baseline}, "strategies": without_nan(rows)}
        print(json.dumps(output, indent=2, default=str))
        return 0
    caption = (
        f"{count_noun(len(grades), 'query')}, {count_noun(args.seeds, 'simulated model')}, noise {args.noise};"
        f" differences from {baseline}, paired by query"
    )
    cells = [_format_row(row) for row in rows]
    table = Table(list(cells[0]), [list(row.values()) for row in cells])
    print_tables([caption + ("; tokens for all queries" if _has_token_counts(args) else ""), table])
    return 0


def _make_strategies(
    names: Sequence[str], window: int, stride: int, first_stage_weight: float
) -> Mapping[str, Strategy]:
    """Return the strategies by name, including the first stage. Raises `InputError` for an unknown strategy."""
    import_strategies(names)
    strategies: dict[str, Strategy] = {FIRST_STAGE: without_calls}
    for name in names:
        options = PRESETS.get(name) or {"name": name, "window": window, "stride": stride}
        strategies[name] = make_strategy(**options, first_stage_weight=first_stage_weight)
    return strategies


def _read_inputs(args: argparse.Namespace) -> tuple[Grades, Run]:
    """Return the relevance judgments, and the run's candidates for the judged queries."""
    collection = RequestedCollection(args)
    run_file, qrels = collection.file("run"), collection.file("qrels")
    grades = read_qrels(qrels)
    if not grades:
        raise InputError(f"{qrels} has no judgments", "give the qrels of the run's queries")
    complete_run = RunWithoutExcluded(read_run(run_file).items(), collection.excluded)
    run = {query_id: candidates for query_id, candidates in complete_run if query_id in grades}
    if not run:
        raise InputError(
            f"{qrels} has no judgments for the queries of {run_file}", "give qrels and a run of the same queries"
        )
    return grades, run


# --- output ----------------------------------------------------------------------------------------


def _make_row(
    name: str, sums: SimulationTotals, baseline: SimulationTotals, call_time: CallTime | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the results of a strategy as a JSON object."""
    row: dict[str, Any] = {
        "strategy": name,
        "ndcg@10": sums.quality.mean,
        "error": sums.quality.error,
        "difference": None,
        "calls": sums.calls,
        "passages": sums.passages,
        "rounds": sums.rounds,
        "most_calls": sums.most[0],
        "most_rounds": sums.most[1],
    }
    if sums is not baseline:
        paired = difference(sums, baseline)
        row["difference"] = {"mean": paired.mean, "error": paired.error, "interval": paired.interval}
    if _has_token_counts(args):
        queries = len(sums.ndcg)
        row["tokens_in"] = sums.passages * (args.tokens_per_passage or 0) * queries
        row["tokens_out"] = sums.calls * (args.tokens_per_answer or 0) * queries
        if args.price_in is not None or args.price_out is not None:
            cost = row["tokens_in"] * (args.price_in or 0) + row["tokens_out"] * (args.price_out or 0)
            row["cost"] = cost / 1e6
    if call_time is not None:
        row["seconds"] = {str(n): expected(sums.plays, call_time, n)._asdict() for n in args.concurrency}
    return row | {"per_query": sums.by_query()}


def _has_token_counts(args: argparse.Namespace) -> bool:
    return args.tokens_per_passage is not None or args.tokens_per_answer is not None


def _format_row(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row as text, by column."""
    cells = {
        "strategy": row["strategy"],
        "nDCG@10 (se)": f"{100 * row['ndcg@10']:.2f} ({100 * row['error']:.2f})",
        "difference (se)": "",
        "95% interval": "",
        **{column: f"{row[column]:.1f}" for column in ("calls", "passages", "rounds")},
    }
    if (difference := row["difference"]) is not None:
        low, high = difference["interval"]
        cells["difference (se)"] = f"{100 * difference['mean']:+.2f} ({100 * difference['error']:.2f})"
        cells["95% interval"] = f"{100 * low:+.2f} to {100 * high:+.2f}"
    if "tokens_in" in row:
        cells["tokens in"] = format_count(round(row["tokens_in"]))
        cells["tokens out"] = format_count(round(row["tokens_out"]))
    if "cost" in row:
        cells["cost"] = f"{row['cost']:.2f}"
    for level, seconds in row.get("seconds", {}).items():
        cells[f"a query at {level}"] = format_seconds(seconds["query"])
        cells[f"all at {level}"] = format_seconds(seconds["run"])
    return cells


def strategy_names(text: str) -> list[str]:
    """Parse names separated by commas, and remove repeated names."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    if not names:
        raise argparse.ArgumentTypeError("give the name of a strategy")
    return names


def concurrency_values(text: str) -> list[int]:
    """Parse whole numbers separated by commas."""
    return [positive_int(part.strip()) for part in text.split(",")]
