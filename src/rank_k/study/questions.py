"""Ready-made grids for the questions that the paper leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rank_k.study.grid import Study


def _question(
    title: str,
    varies: str,
    fixed: str,
    interpretation: str,
    grids: tuple[Mapping[str, Sequence[Any]], ...],
    **tables: Any,
) -> Study:
    """Return a study without collections and models.

    Args:
        title: The question.
        varies: The settings in which the cells differ.
        fixed: The settings that all cells share.
        interpretation: How to read the results, in one sentence.
        grids: The grids of settings.
        tables: The fields of the study that request additional tables.
    """
    return Study(title, (), (), grids, f"Varies: {varies}. Holds: {fixed}. {interpretation}", **tables)


QUESTIONS = {
    "reasoning": _question(
        "Does reasoning help, and for which queries?",
        "reasoning (off, full)",
        "the windows: one per query, with the first 20 candidates in the same order",
        "Read the differences by thirds of the queries: if reasoning helps only hard queries, it is worth its tokens"
        " only there, and an interval that contains 0 means that no benefit was shown.",
        ({"strategy": ["single"], "reasoning": ["off", "full"]},),
        by_difficulty=True,
    ),
    "budget": _question(
        "How much reasoning is enough?",
        "reasoning tokens per window (off, 250, 500, 1000, 2000, full)",
        "strategy, depth, windows and samples",
        "A budget is enough where the curve of quality against tokens flattens, so that the interval of the next"
        " difference contains 0.",
        ({"strategy": ["sliding"], "reasoning": ["off", "250", "500", "1000", "2000", "full"]},),
    ),
    "depth": _question(
        "How many candidates should be reranked?",
        "depth (20, 50, 100, and 200 if the run has that many)",
        "strategy, window and reasoning",
        "Increase the depth as long as the additional quality is worth its tokens: depth helps weak first stages and"
        " may hurt strong ones.",
        ({"strategy": ["sliding"], "depth": [20, 50, 100, 200]},),
    ),
    "strategy": _question(
        "Which strategy is best?",
        "the strategy (sliding, topdown, blocks, its presets fast and thorough, tournament, setwise)",
        "depth, window, reasoning and samples",
        "Choose a strategy of the Pareto set: tokens are the price, rounds are the waiting time, and every strategy"
        " outside the set costs more without better quality.",
        ({"strategy": ["sliding", "topdown", "blocks", "fast", "thorough", "tournament", "setwise"]},),
    ),
    "language": _question(
        "Does the language of the query matter?",
        "the collection, or the field of the query (--query-fields text ht: the query and its human translation)",
        "candidates, strategy, window and reasoning",
        "Within a collection the difference is paired by query and shows the effect of the query language; between"
        " collections only averages can be compared, because the queries differ.",
        ({"strategy": ["sliding"]},),
    ),
    "documents": _question(
        "How much of a long document should the model see?",
        "the first 128, 256, 450 or 900 tokens of a document, or passages of 225 tokens of which the best one counts"
        " (MaxP)",
        "strategy, depth in documents and reasoning",
        "If quality still increases from 450 to 900 tokens, relevant text comes later in the documents; if passages are"
        " better than both, it can be anywhere, and the additional windows are the price.",
        (
            {"strategy": ["sliding"], "passage_tokens": [128, 256, 450, 900]},
            {"strategy": ["sliding"], "maxp_tokens": [225], "maxp_overlap": [50], "maxp_passages": [4]},
        ),
    ),
    "latency": _question(
        "Which strategy is best under a deadline?",
        "the strategy, the round after which it stops, and the windows in flight (1, 4, 16, all)",
        "depth, window and reasoning",
        "For a deadline, choose the strategy whose curve is highest at that many seconds: the curves show the best"
        " ranking so far after each round and need no additional calls.",
        ({"strategy": ["sliding", "topdown", "blocks", "fast"]},),
        by_round=True,
    ),
}
