"""Build the prompt of a window from sanitized passages, truncated so that reasoning and answer fit the context too."""

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
_MAX_TOKEN_CHARACTERS = 64  # longer tokens are rare: runs of spaces and similar
_ESTIMATE_MARGIN = 1.15  # multiplies estimated lengths when the context is nearly full


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A query and its passages, sanitized and truncated. `repairs`: what was truncated or could only be estimated.

    `passages`: texts by id. `lengths`: numbers of tokens by id, for passages whose tokens had to be counted.
    """

    query: Query
    text: str
    passages: Mapping[str, str]
    repairs: Mapping[str, int]
    lengths: dict[str, int]


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds the messages of windows. Tokens are counted by `model` if it can count them, and estimated otherwise.

    Nothing is counted if an upper bound shows that everything fits, which is the case for most passages.
    """

    model: Model
    template: PromptTemplate
    passage_tokens: int
    max_tokens: int

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Return the query and its passages, prepared for prompts. Raises `QueryTooLong` like `check_query`."""
        await self.check_query(query)
        repairs: Counter[str] = Counter()
        texts, lengths = {}, {}
        for doc_id, passage in passages.items():
            # Text far beyond the limit is removed first, which limits the number of tokens to count.
            beginning = truncate_graphemes(passage.text, self.passage_tokens * _MAX_TOKEN_CHARACTERS)
            sanitized = sanitize(beginning)
            texts[doc_id], length = await self._truncate(sanitized, self.passage_tokens, repairs)
            if length is not None:
                lengths[doc_id] = length
            if len(beginning) < len(passage.text) or len(texts[doc_id]) < len(sanitized):
                repairs["passages_truncated"] += 1
        return PreparedQuery(query, sanitize(query.text, markers=False), texts, repairs, lengths)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no space for two passages and a short answer."""
        text = sanitize(query.text, markers=False)
        frame = self._prompt_without_passages(text, 2)
        overhead = CHAT_TOKENS + 2 * _MARKER_TOKENS
        if max_token_bound(frame) + overhead + self.max_tokens <= self.model.context_length:
            return
        tokens = await self._count_tokens(frame, Counter()) + overhead
        try:
            allocate_tokens(self.model.context_length, tokens, (16, 16), self.max_tokens)
        except QueryTooLong as error:
            raise QueryTooLong(f"query {join_lines(text)[:60]!r}...: {error.problem}", error.remedy) from None

    async def messages(
        self, prepared_query: PreparedQuery, doc_ids: Sequence[str], context_length: int, repairs: Counter[str]
    ) -> tuple[tuple[Message, ...], int]:
        """Return the messages about `doc_ids` in this order, and the token limit of reasoning and answer.

        Together they fit into `context_length`; `rank_k.window.token_allocation` describes how. Each truncation is
        counted in `repairs`.
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
        lengths = prepared_query.lengths
        for doc_id, text in zip(doc_ids, texts, strict=True):
            if doc_id not in lengths:
                lengths[doc_id] = await self._count_tokens(text, repairs)
        allocation = allocate_tokens(
            context_length, frame_tokens, [lengths[doc_id] for doc_id in doc_ids], self.max_tokens
        )
        if allocation.max_tokens < self.max_tokens:
            repairs["max_tokens_lowered"] = 1
        for i, doc_id in enumerate(doc_ids):
            if lengths[doc_id] > allocation.passage_tokens:
                repairs["context_truncated"] += 1
                texts[i], _ = await self._truncate(texts[i], allocation.passage_tokens, Counter())
        return texts, allocation.max_tokens

    def _prompt_without_passages(self, query: str, passage_count: int) -> str:
        return "\n".join(message.content for message in self.template.messages(query, [""] * passage_count))

    async def _count_tokens(self, text: str, repairs: Counter[str]) -> int:
        """Return the number of tokens of `text`, counted by the model or else estimated with a margin.

        An estimate is recorded in `repairs`.
        """
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            repairs["tokens_estimated"] = 1
            return int(estimate_tokens(text) * _ESTIMATE_MARGIN)
        return tokens

    async def _truncate(self, text: str, max_tokens: int, repairs: Counter[str]) -> tuple[str, int | None]:
        """Return `text`, truncated to `max_tokens`, and its number of tokens (None: they were not counted)."""
        if max_token_bound(text) <= max_tokens:
            return text, None
        while True:
            counted = await self.model.count_tokens(text)
            tokens = estimate_tokens(text) if counted is None else counted
            if tokens <= max_tokens or not text:
                return text, tokens
            if counted is None:
                repairs["tokens_estimated"] = 1
            text = truncate_graphemes(text, min(len(text) * max_tokens // tokens, len(text) - 1))


def presented_order(query_id: str, doc_ids: Sequence[str], sample: int) -> tuple[str, ...]:
    """Return the order in which a sample presents the window: the input order for sample 0, otherwise a random one."""
    presented_ids = list(doc_ids)
    if sample:
        Random(f"{sample}|{query_id}|{'|'.join(doc_ids)}").shuffle(presented_ids)
    return tuple(presented_ids)
