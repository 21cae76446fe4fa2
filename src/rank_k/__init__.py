"""Rank-K: listwise reranking with reasoning language models.

    from rank_k import Reranker
    ranking = Reranker().rank("why is the sky blue", passages)

Names are imported when first used, so that `import rank_k` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_MODULE_OF_NAME = {
    "ParsedAnswer": "rank_k.window.parsing",
    "Candidate": "rank_k.types",
    "Hit": "rank_k.types",
    "HttpModel": "rank_k.models.http",
    "Journal": "rank_k.journal",
    "Noise": "rank_k.models.simulated",
    "Passage": "rank_k.types",
    "Query": "rank_k.types",
    "RankKError": "rank_k.errors",
    "RankedHits": "rank_k.types",
    "Reranker": "rank_k.reranker",
    "ScriptedModel": "rank_k.models.mock",
    "SimulatedModel": "rank_k.models.simulated",
    "parse_ranking": "rank_k.window.parsing",
}

__all__ = [
    "Candidate",
    "Hit",
    "HttpModel",
    "Journal",
    "Noise",
    "ParsedAnswer",
    "Passage",
    "Query",
    "RankKError",
    "RankedHits",
    "Reranker",
    "ScriptedModel",
    "SimulatedModel",
    "parse_ranking",
]

if TYPE_CHECKING:
    from rank_k.errors import RankKError
    from rank_k.journal import Journal
    from rank_k.models.http import HttpModel
    from rank_k.models.mock import ScriptedModel
    from rank_k.models.simulated import Noise, SimulatedModel
    from rank_k.reranker import Reranker
    from rank_k.types import Candidate, Hit, Passage, Query, RankedHits
    from rank_k.window.parsing import ParsedAnswer, parse_ranking


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'rank_k' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
