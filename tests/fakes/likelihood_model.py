"""A model that scores given texts: the longer the passage, the likelier the query."""

from __future__ import annotations

from rank_k.models.base import Capabilities
from rank_k.models.mock import ScriptedModel
from rank_k.types import Request, Response, Usage


def score_by_prompt_length(request: Request) -> Response:
    assert request.forced_text is not None
    score = len(request.messages[0].content) - 1000.0
    return Response(request.forced_text, None, "stop", Usage(10, 1), tokens=((request.forced_text, score),))


def make_likelihood_model() -> ScriptedModel:
    """Return a model that has log-probabilities and no reasoning."""
    return ScriptedModel(
        score_by_prompt_length, capabilities=Capabilities(logprobs=True, reasons=False, scores_given_text=True)
    )
