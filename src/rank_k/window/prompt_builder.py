"""Build the prompt of a window: passages, sanitized and truncated, share the context with reasoning and answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from rank_k.data.token_estimate import estimate_tokens, max_token_bound, truncate_graphemes
from rank_k.errors import QueryTooLong
from rank_k.models.base import Model
from rank_k.types import Message, Passage, Query
from rank_k.window.prompt import PromptTemplate
from rank_k.window.sanitize import join_lines, sanitize
from rank_k.window.token_allocation import CHAT_TOKENS, allocate_tokens

_MARKER_TOKENS = 8  # "[12] " and the line's end
_MAX_TOKEN_CHARACTERS = 64  # characters: more than any but runs of blanks and the like
_ESTIMATE_MARGIN = 1.15  # on estimated lengths, where the context is nearly full


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A query and its passages, sanitized and truncated, ready for prompts.

    Attributes:
        query: The query.
        text: Its sanitized text.
        passages: The texts of the passages by id.
        token_counts: The tokens of the passages by id; they are counted only where it matters.
        repairs: What had to be truncated or could only be estimated.
    """

    query: Query
    text: str
    passages: Mapping[str, str]
    token_counts: dict[str, int]
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
        texts: dict[str, str] = {}
        token_counts: dict[str, int] = {}
        for doc_id, passage in passages.items():
            texts[doc_id], tokens = await self._prepare_passage(passage.text, repairs)
            if tokens is not None:
                token_counts[doc_id] = tokens
        await self._check_query(text)
        return PreparedQuery(query, text, texts, token_counts, repairs)

    async def _prepare_passage(self, text: str, repairs: Counter[str]) -> tuple[str, int | None]:
        """Return the passage, sanitized and truncated, and its tokens if they were counted.

        Text far beyond the limit is cut first, so that few tokens are counted.
        """
        beginning = truncate_graphemes(text, self.passage_tokens * _MAX_TOKEN_CHARACTERS)
        truncated_before = repairs["passages_truncated"]
        prepared_passage = await self._truncate_passage(sanitize(beginning), self.passage_tokens, repairs)
        if len(beginning) < len(text):
            repairs["passages_truncated"] = truncated_before + 1
        return prepared_passage

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for two passages and a short answer."""
        await self._check_query(sanitize(query.text, markers=False))

    async def messages(
        self, prepared_query: PreparedQuery, doc_ids: Sequence[str], context_length: int, repairs: Counter[str]
    ) -> tuple[tuple[Message, ...], int]:
        """Return the messages about `doc_ids` in this order, and how many tokens reasoning and answer may have.

        All of it fits into `context_length` by the rule of `rank_k.window.token_allocation`. Each truncation is counted
        in `repairs`.
        """
        texts, max_tokens = await self._fit(prepared_query, doc_ids, context_length, repairs)
        return self.template.messages(prepared_query.text, texts), max_tokens

    async def fit_passage(self, prepared_query: PreparedQuery, doc_id: str, repairs: Counter[str]) -> str:
        """Return a passage, truncated so that a prompt about it alone fits into the model's context."""
        [text], _ = await self._fit(prepared_query, [doc_id], self.model.context_length, repairs)
        return text

    async def _fit(
        self, prepared_query: PreparedQuery, doc_ids: Sequence[str], context_length: int, repairs: Counter[str]
    ) -> tuple[list[str], int]:
        texts = [prepared_query.passages[doc_id] for doc_id in doc_ids]
        frame = self._prompt_without_passages(prepared_query.text, len(texts))
        overhead = CHAT_TOKENS + _MARKER_TOKENS * len(texts)
        bound = max_token_bound(frame) + overhead + sum(map(max_token_bound, texts))
        if bound + self.max_tokens <= context_length:
            return texts, self.max_tokens
        frame_tokens = await self._count_tokens(frame, repairs) + overhead
        counts = prepared_query.token_counts
        for doc_id, text in zip(doc_ids, texts, strict=True):
            if doc_id not in counts:
                counts[doc_id] = await self._count_tokens(text, repairs)
        passage_tokens = [counts[doc_id] for doc_id in doc_ids]
        allocation = allocate_tokens(context_length, frame_tokens, passage_tokens, self.max_tokens)
        if allocation.max_tokens < self.max_tokens:
            repairs["max_tokens_lowered"] = 1
        for i, tokens in enumerate(passage_tokens):
            if tokens > allocation.passage_tokens:
                repairs["context_truncated"] += 1
                texts[i], _ = await self._truncate_passage(texts[i], allocation.passage_tokens, Counter())
        return texts, allocation.max_tokens

    async def _check_query(self, text: str) -> None:
        frame = self._prompt_without_passages(text, 2)
        overhead = CHAT_TOKENS + 2 * _MARKER_TOKENS
        if max_token_bound(frame) + overhead + self.max_tokens <= self.model.context_length:
            return
        tokens = await self._count_tokens(frame, Counter()) + overhead
        try:
            allocate_tokens(self.model.context_length, tokens, (16, 16), self.max_tokens)
        except QueryTooLong as error:
            raise QueryTooLong(f"query {join_lines(text)[:60]!r}...: {error.problem}", error.remedy) from None

    def _prompt_without_passages(self, query: str, passage_count: int) -> str:
        return "\n".join(message.content for message in self.template.messages(query, [""] * passage_count))

    async def _count_tokens(self, text: str, repairs: Counter[str]) -> int:
        """Tokens of `text`: by the model where it can tell, else estimated, with a margin, and counted."""
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            repairs["tokens_estimated"] = 1
            tokens = int(estimate_tokens(text) * _ESTIMATE_MARGIN)
        return tokens

    async def _truncate_passage(self, text: str, max_tokens: int, repairs: Counter[str]) -> tuple[str, int | None]:
        """Return `text`, truncated to `max_tokens` tokens, and its tokens if they were counted."""
        if max_token_bound(text) <= max_tokens:
            return text, None
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            tokens = estimate_tokens(text)
            if tokens > max_tokens:
                repairs["tokens_estimated"] = 1
        if tokens <= max_tokens:
            return text, tokens
        repairs["passages_truncated"] += 1
        while tokens > max_tokens and text:
            text = truncate_graphemes(text, min(len(text) * max_tokens // tokens, len(text) - 1))
            token_count = await self.model.count_tokens(text)
            tokens = estimate_tokens(text) if token_count is None else token_count
        return text, tokens


def presented_order(query_id: str, doc_ids: Sequence[str], sample: int) -> tuple[str, ...]:
    """The order in which a sample shows the window: the first as it is, the others shuffled."""
    presented_ids = list(doc_ids)
    if sample:
        Random(f"{sample}|{query_id}|{'|'.join(doc_ids)}").shuffle(presented_ids)
    return tuple(presented_ids)
