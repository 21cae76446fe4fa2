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

    `varies`, `fixed`: what the cells differ in and what they share. `interpretation`: how to read the results, one
    sentence. `tables`: the fields of the study that ask for additional tables.
    """
    return Study(title, (), (), grids, f"Varies: {varies}. Holds: {fixed}. {interpretation}", **tables)


QUESTIONS = {
    "reasoning": _question(
        "Does a thought help, and on which queries?",
        "whether a window is thought about (off, full)",
        "the windows: one per query, the first 20 candidates, shown to both alike",
        "Look at the difference by thirds of the queries: a thought that pays only on hard ones is worth its tokens"
        " only there, and an interval that holds 0 says that it was not shown to pay.",
        ({"strategy": ["single"], "reasoning": ["off", "full"]},),
        by_difficulty=True,
    ),
    "budget": _question(
        "How much thought is enough?",
        "reasoning tokens per window (off, 250, 500, 1000, 2000, full)",
        "strategy, depth, windows and samples",
        "The budget is enough where the curve of quality against tokens turns flat: from there on the next point's"
        " interval of the difference holds 0.",
        ({"strategy": ["sliding"], "reasoning": ["off", "250", "500", "1000", "2000", "full"]},),
    ),
    "depth": _question(
        "How deep should one rerank?",
        "how many candidates are compared (20, 50, 100, and 200 where the run has them)",
        "strategy, window and thought",
        "Go as deep as the gain over the cell before still lies above what its tokens would buy elsewhere: depth pays"
        " for weak first stages and may hurt over strong ones.",
        ({"strategy": ["sliding"], "depth": [20, 50, 100, 200]},),
    ),
    "strategy": _question(
        "Which strategy?",
        "the strategy (sliding, topdown, blocks, its presets fast and thorough, tournament, setwise)",
        "depth, window, thought and samples",
        "Choose from the Pareto set: tokens are what you pay, rounds are how long a query waits, and what lies off the"
        " set costs more for less.",
        ({"strategy": ["sliding", "topdown", "blocks", "fast", "thorough", "tournament", "setwise"]},),
    ),
    "language": _question(
        "Does the language of the query matter?",
        "collections, or the fields of a query (--query-fields text ht: the query and its human translation)",
        "the candidates, strategy, window and thought",
        "Within a collection the difference is paired by query and says what the language of the question costs;"
        " across collections only the columns can be compared, as the queries are others.",
        ({"strategy": ["sliding"]},),
    ),
    "documents": _question(
        "How should long documents be shown?",
        "how much of a document the model sees: its first 128, 256, 450 or 900 tokens, or passages of 225 of which the"
        " best one counts (MaxP)",
        "strategy, depth in documents and thought",
        "If quality still rises from 450 to 900, what matters stands further on; if passages beat both, it stands"
        " anywhere, and the extra windows are its price.",
        (
            {"strategy": ["sliding"], "passage_tokens": [128, 256, 450, 900]},
            {"strategy": ["sliding"], "maxp_tokens": [225], "maxp_overlap": [50], "maxp_passages": [4]},
        ),
    ),
    "latency": _question(
        "How good is an answer that cannot wait?",
        "the strategy, and after which round one stops; windows at a time (1, 4, 16, all)",
        "depth, window and thought",
        "For a deadline, take the strategy whose curve is highest at that many seconds: it is read off the best ranking"
        " so far after every round, without asking anything twice.",
        ({"strategy": ["sliding", "topdown", "blocks", "fast"]},),
        by_round=True,
    ),
}
