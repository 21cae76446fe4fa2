"""Measure the quality of a run against judgments, with ir_measures and the code of trec_eval."""

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
"""The order of documents with equal scores, which is that of the run, or by descending id as in trec_eval."""

DEFAULT_MEASURES = ("nDCG@10", "nDCG@20", "AP", "RR@10", "R@100", "Judged@10")

_REMEDY = "write names as in ir_measures (nDCG@10, AP, RR@10, R@100, P@5, AP(rel=2)) or trec_eval (ndcg_cut_10, map)"
_MAX_NUMBER = 1_000_000
"""The largest accepted cutoff and grade. trec_eval allocates memory in proportion to them without checks."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of one run, in the order given and named as in ir_measures (`nDCG@10`).

    Attributes:
        per_query: The values: measure -> query id -> value, for every judged query.
        means: The mean of each measure over the same queries; for measures that count, such as NumRet, the sum.
        missing: The judged queries that the run lacks. They count as 0.
        unjudged: The queries of the run without judgments. They are left out.
        tied: The judged queries in which documents with equal scores are in a different order than in trec_eval.
    """

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
    """Evaluate a run against judgments.

    All measures use the same order of documents. (ir_measures itself breaks ties in RR@10 and Judged@10 differently
    than in nDCG@10.) nDCG has linear gains and log2 discounts, as in trec_eval (Järvelin and Kekäläinen 2002).

    Args:
        qrels: The judgments: query id -> document id -> grade.
        run: The run: query id -> candidates. They are sorted by score, highest first.
        measures: Names of measures (default: `DEFAULT_MEASURES`).
        ties: The order of equal scores (default: "file", the order of the run, in which a reranker receives the
            candidates). With "trec_eval", scores are 32-bit floats and equal scores are sorted by descending id.

    Returns:
        The values by query and their means.

    Raises:
        InputError: If a measure is unknown or cannot be computed for this run, a grade is above a million, or the
            qrels are empty.
        MissingExtra: If ir_measures is not installed.
    """
    if not qrels:
        raise InputError("there are no judgments to evaluate against", "check the qrels file")
    ir_measures = load("ir_measures")
    parsed = parse_measures(measures)

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
        raise InputError(f"ir_measures cannot compute these measures: {reason}", _REMEDY) from error
    except ArithmeticError as error:  # Accuracy, of a query whose documents are all relevant
        raise InputError(
            f"one of {', '.join(parsed)} cannot be computed for this run ({error})", "leave that measure out"
        ) from error
    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in parsed}
    for metric in result.per_query:
        per_query[str(metric.measure)][original_ids[metric.query_id]] = metric.value
    return Evaluation(
        per_query=per_query,
        # averages over all judged queries; ir_measures averages Accuracy only over queries that have a value
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


def ndcg(ranked_grades: Sequence[float], judged_grades: Iterable[float] | None = None, cutoff: int = 10) -> float:
    """Return nDCG with linear gains and log2 discounts, as `evaluate` computes it; 0 if no passage is relevant.

    Args:
        ranked_grades: The grade of each ranked passage, best rank first. Unjudged passages have grade 0, and grades
            below 0 count as 0. Tied passages can have the mean of their grades.
        judged_grades: The grades of all judged passages, for the ideal ranking (default: `ranked_grades`).
        cutoff: The number of ranks that count (default: 10).
    """

    def gain(grades: Iterable[float]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(islice(grades, cutoff), 1))

    ideal = gain(sorted(ranked_grades if judged_grades is None else judged_grades, reverse=True))
    return gain(ranked_grades) / ideal if ideal > 0 else 0.0


def parse_measures(measures: Sequence[str]) -> dict[str, Any]:
    """Return measure objects of ir_measures by their names in ir_measures, without duplicates.

    Args:
        measures: Names of measures in ir_measures (`nDCG@10`) or trec_eval (`ndcg_cut_10`, `map`).

    Raises:
        InputError: If a measure is unknown, or there is none.
    """
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
    """Return the measure called `name` in ir_measures or in trec_eval."""
    ir_measures = load("ir_measures")
    try:
        measure = _parse_ir_measures_name(name, ir_measures.measures.registry)
    except (SyntaxError, ValueError, LookupError, AssertionError, TypeError, RecursionError, MemoryError) as error:
        try:
            [measure] = ir_measures.parse_trec_measure(name)  # "P" alone stands for several cutoffs
        except (ValueError, AssertionError):
            suggestion = _suggest_measure(name, ir_measures.measures.registry)
            hint = f" (did you mean {suggestion}?)" if suggestion else ""
            raise InputError(f"unknown measure {name!r}{hint}", _REMEDY) from error
    numbers = [value for value in measure.params.values() if isinstance(value, int)]
    gains = measure.params.get("gains", {}).values()
    if not all(1 <= value <= _MAX_NUMBER for value in numbers if not isinstance(value, bool)) or not all(
        isinstance(gain, int) and 0 <= gain <= _MAX_NUMBER for gain in gains
    ):
        raise InputError(
            f"measure {name!r} has a number out of range",
            f"write cutoffs and rel from 1 to {_MAX_NUMBER:,}, and gains as whole numbers of at least 0",
        )
    return measure


def _parse_ir_measures_name(name: str, registry: Mapping[str, Any]) -> Any:
    """Return the measure that ir_measures calls `name`.

    The parser of ir_measures itself uses a part of `ast` that Python 3.14 removed.
    """
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
    return measure


def _suggest_measure(name: str, registry: Mapping[str, Any]) -> str:
    stem, separator, cutoff = name.partition("@")
    by_lower = {measure.lower(): measure for measure in reversed(list(registry))}  # aliases come last
    matches = difflib.get_close_matches(stem.lower(), by_lower, n=1)
    return by_lower[matches[0]] + separator + cutoff if matches and by_lower[matches[0]] != stem else ""
