"""Asking about some windows by likelihood and about the others by comparison (see `strategies.cascade`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rank_k.models.base import OnText
from rank_k.types import Passage, Query, Window
from rank_k.window.listwise import Asked, Asker
from rank_k.window.prompt_builder import QueryTexts
from rank_k.window.query_likelihood import LikelihoodAsker
from rank_k.window.reasoning import Think


@dataclass(frozen=True, slots=True)
class _Texts(QueryTexts):
    """The texts to be compared, and `alone` those to be looked at by themselves: they may be cut elsewhere."""

    alone: QueryTexts


class CascadeAsker:
    """Asks about each window as its `by` says. In an `Engine`, an `Asker`'s equal."""

    def __init__(self, likelihood: LikelihoodAsker, comparison: Asker) -> None:
        self.likelihood = likelihood
        self.comparison = comparison

    async def prepare(self, think: Think | None = None) -> None:
        """Raise `InputError` if the model cannot tell how likely a text is."""
        await self.likelihood.prepare(think)
        await self.comparison.prepare(think)

    async def check(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for either."""
        await self.likelihood.check(query)
        await self.comparison.check(query)

    async def texts(self, query: Query, passages: Mapping[str, Passage]) -> QueryTexts:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        alone = await self.likelihood.texts(query, passages)
        compared = await self.comparison.texts(query, passages)
        repairs = Counter(alone.repairs) | Counter(compared.repairs)  # a passage cut for both is cut once
        return _Texts(query, compared.text, compared.passages, repairs, alone)

    async def ask(
        self, texts: QueryTexts, window: Window, *, think: Think | None = None, on_text: OnText | None = None
    ) -> Asked:
        """What either makes of the window. Raises `ModelError` when the model cannot be had."""
        if window.by == "likelihood" and isinstance(texts, _Texts):
            return await self.likelihood.ask(texts.alone, window, think=think, on_text=on_text)
        return await self.comparison.ask(texts, window, think=think, on_text=on_text)
