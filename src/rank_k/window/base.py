"""The interface of window rankers, and the report that they return for each window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rank_k.errors import ModelError
from rank_k.option_values import ReasoningMode
from rank_k.types import (
    CallTotals,
    OnChunk,
    Passage,
    Query,
    Request,
    Response,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.prompt_builder import PreparedQuery, PromptBuilder


@dataclass(slots=True, kw_only=True)
class WindowReport(CallTotals):
    """A ranked window, with the totals of its calls.

    Attributes:
        result: The window's rankings.
        traces: The reasoning traces, one per sample; empty if the window's method is likelihood.
        call_keys: The keys of the window's calls in the journal.
        error: The error if the model did not respond, else None.
    """

    result: WindowResult
    traces: tuple[str, ...] = ()
    call_keys: list[str] = field(default_factory=list)
    error: ModelError | None = None

    @classmethod
    def unranked(cls, window: Window) -> WindowReport:
        """Return a report for `window` with the passages in input order. Calls and result are filled in later."""
        return cls(result=WindowResult(window, (WindowRanking.unranked(window),)))

    def add_call(self, request: Request, response: Response) -> None:
        self.call_keys.append(response.call_key)
        self.calls += 1
        self.usage += response.usage
        if not response.cached:
            self.new_calls += 1
            self.model_seconds += response.seconds
        if response.finish_reason == "stopped":
            self.repairs["repetition_stopped"] += 1
            self.saved_tokens += max(request.max_tokens - response.usage.completion_tokens, 0)


class WindowRanker(Protocol):
    """Ranks windows: a `ListwiseRanker`, `ScoreRanker` or `CombinedRanker`.

    `prompt_builder` prepares queries and passages for prompts.
    """

    prompt_builder: PromptBuilder

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Probe the model before it ranks its first window, or its first window with `reasoning`. Each probe runs once.

        `reasoning`: the reasoning mode (default: that of the ranker's settings).
        """

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no space for passages in the model's context."""
        await self.prompt_builder.check_query(query)

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Return the query and its passages, prepared for prompts. Raises `QueryTooLong` like `check_query`."""
        return await self.prompt_builder.prepare_query(query, passages)

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """Rank one window. Raises `ModelError` if the model does not respond, but not if its answer is unusable.

        `reasoning`: the reasoning mode (default: that of the ranker's settings). `on_chunk`: called with each chunk of
        the response while it streams.
        """
