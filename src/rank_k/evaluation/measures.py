"""Measure the quality of a run against judgments with ir_measures, which uses trec_eval's code."""

from __future__ import annotations

import ast
import ctypes
import difflib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Literal

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.types import Candidate, Run

Ties = Literal["file", "trec_eval"]
"""How equal scores are ordered. `file`: as the run lists them. `trec_eval`: by descending id, as trec_eval does."""

DEFAULT_MEASURES = ("nDCG@10", "nDCG@20", "AP", "RR@10", "R@100", "Judged@10")

_REMEDY = "write ir_measures names such as nDCG@10, AP, RR@10, R@100, P@5, AP(rel=2)"
_MAX_NUMBER = 1_000_000
"""trec_eval allocates memory by cutoffs and grades, unchecked: too large or too small a number crashes it."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Values of one run. Measures have ir_measures's own spelling ("nDCG@10"), in the order given.

    `per_query`: measure -> query_id -> value, over every judged query. `means`: measure -> mean over the
    same queries (for measures that count, such as NumRet, the sum). `missing`: judged queries that the
    run lacks; they count as zero. `unjudged`: queries of the run without judgments; they are left out.
    `tied`: judged queries with equal scores whose order differs from trec_eval's.
    """

    measures: tuple[str, ...]
    per_query: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]
    tied: tuple[str, ...]


def evaluate(
    qrels: Mapping[str, Mapping[str, int]],
    run: Run,
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    ties: Ties = "file",
) -> Evaluation:
    """Evaluate `run` (`query_id -> candidates`) against `qrels` (`query_id -> {doc_id: grade}`).

    The candidates are sorted by score, highest first; equal scores keep the order of the run (for `read_run` that of
    the file), which is the order in which a reranker receives them. With `ties="trec_eval"` scores are 32-bit floats
    and equal ones are sorted by document id, descending. All measures use this order; without it, RR@10 and
    Judged@10 of ir_measures would break ties differently from nDCG@10. nDCG has linear gains and log2 discounts
    (trec_eval's, Järvelin and Kekäläinen 2002).

    Raises:
        InputError: A measure is unknown or cannot be computed for this run, a grade is above a million, or nothing
            is judged.
        MissingExtra: ir_measures is not installed.
    """
    if not qrels:
        raise InputError("there are no judgments to evaluate against", "check the qrels file")
    ir_measures = load("ir_measures")
    parsed = _parse_measures(measures)

    # pytrec_eval rejects undecodable ids and NUL in them, so it is given numbers instead
    short_ids: defaultdict[str, str] = defaultdict(lambda: str(len(short_ids)))
    original_ids = {short_ids[query_id]: query_id for query_id in qrels}
    short_qrels = {
        # every grade below zero means "not relevant"; trec_eval writes beyond its memory where no grade is above -2
        short_ids[query_id]: {short_ids[doc_id]: max(grade, -1) for doc_id, grade in grades.items()}
        for query_id, grades in qrels.items()
    }
    highest_grade = max((grade for grades in short_qrels.values() for grade in grades.values()), default=0)
    if highest_grade > _MAX_NUMBER:
        raise InputError(f"a judgment has the grade {highest_grade}", f"keep grades up to {_MAX_NUMBER:,}")
    judged_run = {query_id: candidates for query_id, candidates in run.items() if query_id in qrels and candidates}
    doc_ids_by_query = {query_id: _order_documents(candidates, ties) for query_id, candidates in judged_run.items()}
    short_run = {
        short_ids[query_id]: {short_ids[doc_id]: -float(rank) for rank, doc_id in enumerate(doc_ids)}
        for query_id, doc_ids in doc_ids_by_query.items()
    }
    try:
        result = ir_measures.evaluator(list(parsed.values()), short_qrels).calc(short_run)
    except (ValueError, TypeError) as error:
        reason = str(error).partition(" The following providers")[0].rstrip(".")
        raise InputError(f"ir_measures cannot compute this here: {reason}", _REMEDY) from error
    except ArithmeticError as error:  # Accuracy, of a query whose documents are all relevant
        raise InputError(
            f"one of {', '.join(parsed)} cannot be computed for this run ({error})", "leave that measure out"
        ) from error
    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in parsed}
    for metric in result.per_query:
        per_query[str(metric.measure)][original_ids[metric.query_id]] = metric.value
    return Evaluation(
        measures=tuple(parsed),
        per_query=per_query,
        # over all judged queries: ir_measures averages Accuracy over those that have a value
        means={
            name: fmean(per_query[name].values())
            if isinstance(measure.aggregator(), ir_measures.MeanAgg)
            else float(result.aggregated[measure])
            for name, measure in parsed.items()
        },
        missing=tuple(query_id for query_id in qrels if not run.get(query_id)),
        unjudged=tuple(query_id for query_id in run if query_id not in qrels),
        tied=tuple(
            query_id
            for query_id, candidates in judged_run.items()
            if ties == "file" and doc_ids_by_query[query_id] != _order_documents(candidates, "trec_eval")
        ),
    )


def canonical_names(measures: Sequence[str]) -> tuple[str, ...]:
    """Return the measures in ir_measures's own spelling, each once. Raises `InputError` for an unknown one."""
    return tuple(_parse_measures(measures))


def ndcg(ranked_grades: Sequence[float], judged_grades: Iterable[float] | None = None, cutoff: int = 10) -> float:
    """Return nDCG at `cutoff` with linear gains and log2 discounts, as `evaluate` does; 0 where nothing is relevant.

    Args:
        ranked_grades: The grade of each ranked passage, best rank first; 0 without judgment, and grades below 0 count
            as 0. The members of a tie can share the mean of their grades.
        judged_grades: The grades of all judged passages, which give the ideal ranking (default: `ranked_grades`).
        cutoff: The number of ranks that count.
    """

    def gain(grades: Iterable[float]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(islice(grades, cutoff), 1))

    ideal = gain(sorted(ranked_grades if judged_grades is None else judged_grades, reverse=True))
    return gain(ranked_grades) / ideal if ideal > 0 else 0.0


def _parse_measures(measures: Sequence[str]) -> dict[str, Any]:
    parsed = {str(measure): measure for measure in map(_parse_measure, measures)}
    if not parsed:
        raise InputError("no measure is given", _REMEDY)
    return parsed


def _order_documents(candidates: Sequence[Candidate], ties: Ties) -> list[str]:
    def sort_key(candidate: Candidate) -> tuple[float, bytes]:
        if ties == "file":
            return candidate.score, b""
        return ctypes.c_float(candidate.score).value, candidate.doc_id.encode("utf-8", "surrogatepass")

    return list(dict.fromkeys(candidate.doc_id for candidate in sorted(candidates, key=sort_key, reverse=True)))


def _parse_measure(name: str) -> Any:
    """Return the measure called `name`. ir_measures's own parser needs a part of `ast` that Python 3.14 dropped."""
    registry = load("ir_measures").measures.registry
    try:
        node: ast.expr = ast.parse(name.strip(), mode="eval").body
        cutoff: Any = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            cutoff = ast.literal_eval(node.right)
            node = node.left
        parameters: dict[str, Any] = {}
        if isinstance(node, ast.Call) and not node.args:
            parameters = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            node = node.func
        measure = registry[node.id if isinstance(node, ast.Name) else ""]
        if cutoff is not None:
            measure = measure @ cutoff
        measure = measure(**parameters)
        measure.validate_params()
    except (SyntaxError, ValueError, LookupError, AssertionError, TypeError, RecursionError, MemoryError) as error:
        suggestion = _suggest_measure(name, registry)
        hint = f" (did you mean {suggestion}?)" if suggestion else ""
        raise InputError(f"unknown measure {name!r}{hint}", _REMEDY) from error
    numbers = [value for value in measure.params.values() if isinstance(value, int)]
    gains = measure.params.get("gains", {}).values()
    if not all(1 <= value <= _MAX_NUMBER for value in numbers if not isinstance(value, bool)) or not all(
        isinstance(gain, int) and 0 <= gain <= _MAX_NUMBER for gain in gains
    ):
        raise InputError(
            f"measure {name!r} has a number out of range",
            f"write cutoffs and rel between 1 and {_MAX_NUMBER:,}, gains as whole numbers from 0",
        )
    return measure


def _suggest_measure(name: str, registry: Mapping[str, Any]) -> str:
    stem, separator, cutoff = name.partition("@")
    by_lower = {measure.lower(): measure for measure in reversed(list(registry))}  # aliases come last
    matches = difflib.get_close_matches(stem.lower(), by_lower, n=1)
    return by_lower[matches[0]] + separator + cutoff if matches and by_lower[matches[0]] != stem else ""
