"""`rank-k simulate`: what strategies would be worth and cost, before a simulated judge."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.cli.collection_options import DATASET_HELP
from rank_k.cli.model_options import NOISE_HELP, import_strategies, non_negative_float, positive_int

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rank_k.models.simulated import Grades, Noise
    from rank_k.simulation.call_times import CallTime, Seconds
    from rank_k.simulation.replay import Cell, SimulationTotals
    from rank_k.strategies.base import Strategy
    from rank_k.types import Run

NAME = "simulate"
HELP = "try strategies on a simulated judge: plan before you pay"
EXAMPLE = "rank-k simulate --run bm25.trec --qrels qrels.trec --noise strong --call-seconds 20+2.5w --concurrency 16,64"

FIRST_STAGE = "(first stage)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, metavar="FILE", help="TREC run, or score.json (the data set's own)")
    parser.add_argument("--qrels", type=Path, metavar="FILE", help="judgments, which are what the judge knows")
    parser.add_argument("--dataset", metavar="NAME", help=f"{DATASET_HELP}, whose judgments and run are used")
    parser.add_argument(
        "--strategy",
        dest="strategies",
        type=strategy_names,
        default="sliding,topdown,blocks",
        metavar="NAMES",
        help="with commas between: strategies, presets (with windows of their own) or MODULE:NAME",
    )
    parser.add_argument("--baseline", metavar="NAME", help="the strategy to compare with (the first one)")
    parser.add_argument("--noise", default="strong", metavar="NOISE", help=NOISE_HELP)
    parser.add_argument(
        "--seeds", type=positive_int, default=20, metavar="N", help="so many judges, each asked everything"
    )
    parser.add_argument("--depth", type=positive_int, default=100, metavar="N", help="candidates compared per query")
    parser.add_argument("--window", type=positive_int, default=20, metavar="N", help="passages shown at a time")
    parser.add_argument("--stride", type=positive_int, default=10, metavar="N", help="by which a window slides")
    parser.add_argument(
        "--first-stage-weight",
        type=non_negative_float,
        default=1.0,
        metavar="A",
        help="weight of the first stage's order",
    )
    group = parser.add_argument_group("time and money", "for w passages in a window")
    group.add_argument("--call-seconds", metavar="T", help="of a call on average: 45, or 20+2.5w")
    group.add_argument("--call-spread", type=non_negative_float, default=0.3, metavar="S", help="of its logarithm")
    group.add_argument("--concurrency", type=concurrency_values, default="16", metavar="N,N", help="calls at a time")
    group.add_argument("--tokens-per-passage", type=non_negative_float, metavar="N", help="tokens in")
    group.add_argument(
        "--tokens-per-answer", type=non_negative_float, metavar="N", help="tokens out per call, reasoning included"
    )
    group.add_argument("--price-in", type=non_negative_float, metavar="P", help="per million tokens in")
    group.add_argument("--price-out", type=non_negative_float, metavar="P", help="per million tokens out")
    parser.add_argument("--json", action="store_true", help="JSON with every query's values, on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from rank_k.cli.render.evaluation_text import without_nan
    from rank_k.errors import InputError
    from rank_k.simulation.call_times import CallTime
    from rank_k.simulation.noise_file import noise_by_name

    call_time = None if args.call_seconds is None else CallTime.parse(args.call_seconds, args.call_spread)
    if (args.price_in is not None or args.price_out is not None) and not _has_token_counts(args):
        raise InputError("prices are per token", "give --tokens-per-passage and --tokens-per-answer too")
    baseline = args.baseline or args.strategies[0]
    if baseline not in args.strategies:
        raise InputError(f"--baseline {baseline} is none of --strategy", f"name one of {', '.join(args.strategies)}")
    simulation = _Simulation(args, noise_by_name(args.noise))
    simulation.make_strategies()  # mistakes in names come before work on files
    simulation.read()
    if simulation.missing:
        examples = ", ".join(simulation.missing[:5])
        print(f"{len(simulation.missing)} judged queries missing in the run, counted as 0: {examples}", file=sys.stderr)
    totals = _simulate_all(simulation, args.seeds, args.quiet)
    rows = [_make_row(name, sums, totals[baseline], call_time, args) for name, sums in totals.items()]
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("verb", "json", "quiet")}
        output = {"settings": settings | {"baseline": baseline}, "strategies": without_nan(rows)}
        print(json.dumps(output, indent=2, default=str))
    else:
        print("\n".join(_table_lines(rows, baseline, len(simulation.grades), args)))
    return 0


class _Simulation:
    """What is to be simulated: all that a process has to know. Strategies are made where they are needed."""

    def __init__(self, args: argparse.Namespace, noise: Noise) -> None:
        self._args = args
        self._noise = noise
        self.grades: Grades = {}
        self.run: Run = {}

    @property
    def missing(self) -> list[str]:
        return [query_id for query_id in self.grades if not self.run.get(query_id)]

    def read(self) -> None:
        """Judgments, and the run's candidates for the judged queries."""
        from rank_k.cli.collection_options import find_named_collection
        from rank_k.data.collections.base import RunWithoutExcluded
        from rank_k.data.trec import read_qrels, read_run
        from rank_k.errors import InputError

        args = self._args
        dataset = find_named_collection(args.dataset) if args.dataset else None
        qrels = args.qrels or (None if dataset is None else dataset.qrels)
        run_file = args.run or (None if dataset is None else dataset.first_stage)
        if run_file is None or qrels is None:
            option = "--run" if run_file is None else "--qrels"
            note = "" if dataset is None else f" ({args.dataset} has none)"
            raise InputError(f"{option} is missing{note}", f"give {option} FILE, or --dataset with {DATASET_HELP}")
        self.grades = read_qrels(qrels)
        if not self.grades:
            raise InputError(f"{qrels} holds no judgments", "give the qrels that the run is evaluated by")
        run = RunWithoutExcluded(read_run(run_file).items(), {} if dataset is None else dataset.excluded)
        self.run = {query_id: candidates for query_id, candidates in run if query_id in self.grades}
        if not self.run:
            raise InputError(
                f"none of the queries of {run_file} is judged in {qrels}", "give files that belong together"
            )

    def make_strategies(self) -> dict[str, Strategy]:
        """The strategies by name, as they are now made. Raises `InputError` for one that cannot be."""
        from rank_k.strategies import PRESETS, make_strategy

        args = self._args
        import_strategies(args.strategies)
        window_options = {"window": args.window, "stride": args.stride}
        settings = {name: PRESETS.get(name) or {"name": name, **window_options} for name in args.strategies}
        return {
            name: make_strategy(**options, first_stage_weight=args.first_stage_weight)
            for name, options in settings.items()
        }

    def run_seed(self, seed: int) -> dict[Cell, SimulationTotals]:
        """Everything before the judge of `seed`."""
        from rank_k.simulation.replay import simulate, without_calls

        plans = {FIRST_STAGE: without_calls, **self.make_strategies()}
        return simulate({"": self.run}, self.grades, plans, {"": self._noise}, seed, self._args.depth)


# --- several judges at the same time ---------------------------------------------------------------

_MIN_QUERIES_FOR_PROCESSES = 2_000
"""Queries to be ranked, over all judges and strategies, from which on starting processes pays."""

_worker_simulation: _Simulation | None = None


def _simulate_all(simulation: _Simulation, seeds: int, quiet: bool) -> dict[str, SimulationTotals]:
    """By strategy, over all judges."""
    from rank_k.simulation.replay import SimulationTotals

    totals: dict[str, SimulationTotals] = {}
    with _Progress(seeds, quiet) as progress:
        for seed_totals in _simulate_seeds(simulation, seeds):
            for cell, cell_totals in seed_totals.items():
                totals.setdefault(cell.strategy, SimulationTotals()).update(cell_totals)
            progress.step()
    return totals


def _simulate_seeds(simulation: _Simulation, seeds: int) -> Iterator[dict[Cell, SimulationTotals]]:
    processes = min(os.cpu_count() or 1, seeds)
    if (
        processes == 1
        or seeds * len(simulation.grades) * len(simulation.make_strategies()) < _MIN_QUERIES_FOR_PROCESSES
    ):
        yield from map(simulation.run_seed, range(seeds))
        return
    import signal
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import active_children, get_context

    from rank_k.errors import RankKError

    # the judges share the cores already: libraries must not start threads on top
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (simulation,))
    # they inherit that Ctrl-C does not reach them: it is for this process to end them, without a word of theirs
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        futures = [pool.submit(_simulate_seed, seed) for seed in range(seeds)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
    try:
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise RankKError("a process of the simulation was ended from outside", "is there enough memory?") from error
    except BaseException:
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _start_worker(simulation: _Simulation) -> None:
    """In a process of its own."""
    global _worker_simulation
    _worker_simulation = simulation


def _simulate_seed(seed: int) -> dict[Cell, SimulationTotals]:
    assert _worker_simulation is not None, "_start_worker runs first"
    return _worker_simulation.run_seed(seed)


class _Progress:
    """How many judges are done: often on a terminal, else every half minute."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._terminal = sys.stderr.isatty()
        self._done = 0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def step(self) -> None:
        from rank_k.cli.progress import format_seconds

        self._done += 1
        now = time.monotonic()
        if self._quiet or now - self._printed < (0.2 if self._terminal else 30):
            return
        self._printed = now
        time_left = format_seconds((self._total - self._done) * (now - self._started) / self._done)
        line = f"{self._done}/{self._total} judges, {time_left} left"
        print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()


# --- output ----------------------------------------------------------------------------------


def _make_row(
    name: str, sums: SimulationTotals, baseline: SimulationTotals, call_time: CallTime | None, args: argparse.Namespace
) -> dict[str, Any]:
    from rank_k.simulation.call_times import expected
    from rank_k.simulation.replay import difference

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
        prompt_tokens = sums.passages * (args.tokens_per_passage or 0) * queries
        completion_tokens = sums.calls * (args.tokens_per_answer or 0) * queries
        row |= {"tokens_in": prompt_tokens, "tokens_out": completion_tokens}
        if args.price_in is not None or args.price_out is not None:
            row["cost"] = (prompt_tokens * (args.price_in or 0) + completion_tokens * (args.price_out or 0)) / 1e6
    if call_time is not None:
        seconds: Mapping[int, Seconds] = {n: expected(sums.plays, call_time, n) for n in args.concurrency}
        row["seconds"] = {str(concurrency): value._asdict() for concurrency, value in seconds.items()}
    return row | {"per_query": sums.by_query()}


def _has_token_counts(args: argparse.Namespace) -> bool:
    return args.tokens_per_passage is not None or args.tokens_per_answer is not None


def _table_lines(rows: Sequence[Mapping[str, Any]], baseline: str, queries: int, args: argparse.Namespace) -> list[str]:
    from rank_k.cli.progress import format_count, format_seconds

    columns = ["strategy", "nDCG@10 (se)", "difference (se)", "95 % interval", "calls", "passages", "rounds"]
    has_tokens, has_cost = "tokens_in" in rows[0], "cost" in rows[0]
    columns += ["tokens in", "tokens out"] if has_tokens else []
    columns += ["cost"] if has_cost else []
    concurrency_levels = list(rows[0].get("seconds", {}))
    columns += [f"{column} at {level}" for level in concurrency_levels for column in ("a query", "all")]
    table = [columns]
    for row in rows:
        difference = row["difference"]
        cells = [row["strategy"], f"{100 * row['ndcg@10']:.2f} ({100 * row['error']:.2f})"]
        cells += (
            ["", ""] if difference is None else [f"{100 * difference['mean']:+.2f} ({100 * difference['error']:.2f})"]
        )
        cells += (
            [] if difference is None else ["{:+.2f} to {:+.2f}".format(*(100 * end for end in difference["interval"]))]
        )
        cells += [f"{row['calls']:.1f}", f"{row['passages']:.1f}", f"{row['rounds']:.1f}"]
        cells += [format_count(round(row["tokens_in"])), format_count(round(row["tokens_out"]))] if has_tokens else []
        cells += [f"{row['cost']:.2f}"] if has_cost else []
        for level in concurrency_levels:
            cells += [format_seconds(row["seconds"][level][column]) for column in ("query", "run")]
        table.append(cells)
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    caption = f"{queries} queries, {args.seeds} judges, noise {args.noise}; differences to {baseline}, paired by query"
    if has_tokens:
        caption += "; tokens of all queries"
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return [caption, "", *lines]


def strategy_names(text: str) -> list[str]:
    """Strategies with commas between, each once, for argparse."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    if not names:
        raise argparse.ArgumentTypeError("it must name a strategy")
    return names


def concurrency_values(text: str) -> list[int]:
    """Whole numbers with commas between, for argparse."""
    return [positive_int(part.strip()) for part in text.split(",")]
