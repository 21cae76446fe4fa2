"""What is shown of a window: passages harmless and cut, sharing the model's context with thought and answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rank_k.data.token_estimate import estimate_tokens, max_token_bound, truncate_graphemes
from rank_k.errors import QueryTooLong
from rank_k.models.base import Model
from rank_k.types import Message, Passage, Query
from rank_k.window.prompt import PromptTemplate
from rank_k.window.sanitize import join_lines, sanitize
from rank_k.window.token_allocation import allocate_tokens

CHAT_TOKENS = 64  # what a chat template adds to the messages, at most
_MARKER_TOKENS = 8  # "[12] " and the line's end
_LONGEST_TOKEN = 64  # characters: more than any but runs of blanks and the like
_ESTIMATE_MARGIN = 1.15  # on estimated lengths, where the context is nearly full


@dataclass(slots=True)
class PreparedPassage:
    """One passage as it can be shown: harmless, and no longer than `passage_tokens`."""

    text: str
    tokens: int | None = None  # counted only where it matters


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A query's texts, ready to be shown. `repairs`: what had to be cut or could only be estimated."""

    query: Query
    text: str
    passages: Mapping[str, PreparedPassage]
    repairs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Makes the messages of windows. Lengths are counted by `model` where it can, else estimated.

    Counting is left out wherever a bound already says that everything fits: for most passages it does.
    """

    model: Model
    template: PromptTemplate
    passage_tokens: int
    max_tokens: int

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        repairs: Counter[str] = Counter()
        text = sanitize(query.text, markers=False)
        shown = {doc_id: await self._shown(passage.text, repairs) for doc_id, passage in passages.items()}
        await self._check_query(text)
        return PreparedQuery(query, text, shown, repairs)

    async def _shown(self, text: str, repairs: Counter[str]) -> PreparedPassage:
        """A passage, harmless and cut. What lies far beyond the cut goes first: nobody counts tokens of megabytes."""
        beginning = truncate_graphemes(text, self.passage_tokens * _LONGEST_TOKEN)
        cuts = repairs["passages_truncated"]
        shown = await self._within(sanitize(beginning), self.passage_tokens, repairs)
        if len(beginning) < len(text):
            repairs["passages_truncated"] = cuts + 1
        return shown

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for two passages and a short answer."""
        await self._check_query(sanitize(query.text, markers=False))

    async def messages(
        self, texts: PreparedQuery, doc_ids: Sequence[str], context: int, repairs: Counter[str]
    ) -> tuple[tuple[Message, ...], int]:
        """The messages about `doc_ids` in this order, and the tokens that thought and answer may have together.

        All of it fits into `context` by the rule of `rank_k.window.token_allocation`; each cut is counted in `repairs`.
        """
        passages = [texts.passages[doc_id] for doc_id in doc_ids]
        frame = self._frame(texts.text, len(passages))
        overhead = CHAT_TOKENS + _MARKER_TOKENS * len(passages)
        bound = max_token_bound(frame) + overhead + sum(max_token_bound(passage.text) for passage in passages)
        shown = [passage.text for passage in passages]
        if bound + self.max_tokens <= context:
            return self.template.messages(texts.text, shown), self.max_tokens
        frame_tokens = await self._count(frame, repairs) + overhead
        for passage in passages:
            if passage.tokens is None:
                passage.tokens = await self._count(passage.text, repairs)
        share = allocate_tokens(context, frame_tokens, [passage.tokens or 0 for passage in passages], self.max_tokens)
        if share.max_tokens < self.max_tokens:
            repairs["max_tokens_lowered"] = 1
        for i, passage in enumerate(passages):
            if (passage.tokens or 0) > share.passage_tokens:
                repairs["context_truncated"] += 1
                shown[i] = (await self._within(passage.text, share.passage_tokens, Counter())).text
        return self.template.messages(texts.text, shown), share.max_tokens

    async def _check_query(self, text: str) -> None:
        frame = self._frame(text, 2)
        overhead = CHAT_TOKENS + 2 * _MARKER_TOKENS
        if max_token_bound(frame) + overhead + self.max_tokens <= self.model.context_length:
            return
        tokens = await self._count(frame, Counter()) + overhead
        try:
            allocate_tokens(self.model.context_length, tokens, (16, 16), self.max_tokens)
        except QueryTooLong as error:
            raise QueryTooLong(f"query {join_lines(text)[:60]!r}...: {error.problem}", error.remedy) from None

    def _frame(self, query: str, size: int) -> str:
        return "\n".join(message.content for message in self.template.messages(query, [""] * size))

    async def _count(self, text: str, repairs: Counter[str]) -> int:
        """Tokens of `text`: by the model where it can tell, else estimated, with a margin, and counted."""
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            repairs["tokens_estimated"] = 1
            tokens = int(estimate_tokens(text) * _ESTIMATE_MARGIN)
        return tokens

    async def _within(self, text: str, limit: int, repairs: Counter[str]) -> PreparedPassage:
        """`text`, cut to `limit` tokens if it has more."""
        if max_token_bound(text) <= limit:
            return PreparedPassage(text)
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            tokens = estimate_tokens(text)
            if tokens > limit:
                repairs["tokens_estimated"] = 1
        if tokens <= limit:
            return PreparedPassage(text, tokens)
        repairs["passages_truncated"] += 1
        while tokens > limit and text:
            text = truncate_graphemes(text, min(len(text) * limit // tokens, len(text) - 1))
            counted = await self.model.count_tokens(text)
            tokens = estimate_tokens(text) if counted is None else counted
        return PreparedPassage(text, tokens)
