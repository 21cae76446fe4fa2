"""The interface to a language model: one request in, one response out, text while it streams.

A model is anything with the attributes of `Model`: `http.HttpModel` (every real server, the embedded one included),
`simulated.SimulatedModel` and `mock.ScriptedModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from rank_k.types import OnChunk, Request, Response


class Capabilities(NamedTuple):
    """What a model can be asked for beyond a plain reply. A reply must still be checked: servers forget.

    `prefill`: to go on from a given beginning; `grammar`: to be held to a ranking; `budget`: to keep a
    reasoning budget itself; `logprobs`: to tell probabilities; `thinks`: it has a thought of its own, else
    one is begun for it (with `prefill`); `spells`: to say a given text and tell how probable it was.
    """

    prefill: bool = False
    grammar: bool = False
    reasoning_budget: bool = False
    logprobs: bool = False
    reasons: bool = True
    scores_given_text: bool = False


class Model(Protocol):
    @property
    def name(self) -> str:
        """How people know it."""

    @property
    def identity(self) -> str:
        """All that decides the answers apart from the request: part of the journal's key."""

    @property
    def context_length(self) -> int:
        """How many tokens prompt, thought and answer share. Known once `prepare` has run."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked for. Known once `prepare` has run."""

    async def prepare(self) -> None:
        """Find out what must be known before the first request. Raises `ModelError` or `InputError`."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """The request as sent (JSON): the other part of the journal's key."""

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        """Ask once. Cancelling the call cancels the server's work. Raises `ModelError`."""

    async def count_tokens(self, text: str) -> int | None:
        """Exact number of tokens of `text`, or None where this model cannot tell."""

    async def close(self) -> None:
        """Free what is held. The model is not asked again."""
