"""One window in, one outcome out: the prompt made, the model asked, a cut thought closed, the answer read.

Every call goes through the journal: it is looked up there first, and kept there before it is used.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from zlib import crc32

from rank_k.answer import Answer, parse_answer
from rank_k.context import shared
from rank_k.errors import ContextOverflow, QueryTooLong
from rank_k.journal import Journal, call_key
from rank_k.models.base import Model, OnText, Reply, Request, Subject, Usage
from rank_k.models.retries import Retries, with_retries
from rank_k.prompt import PromptTemplate, default_template, harmless, one_line
from rank_k.records import Message, Order, Outcome, Passage, Query, Window
from rank_k.tokens import cut_at, estimated_tokens, most_tokens

_CHAT_TOKENS = 64  # what a chat template adds to the messages, at most
_MARKER_TOKENS = 8  # "[12] " and the line's end
_ESTIMATE_MARGIN = 1.15  # on estimated lengths, where the context is nearly full
_SHRINK = 0.8  # of the context, after the server counted more tokens than we did
_SHRINKS = 6

_CLOSE = (
    "Stop here. Going by your notes, give the order now: one line of passage numbers, best first, like"
    " [3] > [2] = [1], and nothing else."
)


@dataclass(frozen=True, slots=True)
class AskSettings:
    """How a window is asked. Tokens are the model's.

    `passage_tokens` 450, `max_tokens` 8,000 (thought and answer) and temperature 0.5 are the paper's.
    `think` None: the model's own way; False: the answer at once. `temperature` None: the server's own.
    """

    passage_tokens: int = 450
    max_tokens: int = 8000
    temperature: float | None = 0.5
    top_p: float | None = None
    think: bool | None = None


@dataclass(slots=True)
class Shown:
    """One passage as it can be shown: harmless, and no longer than `passage_tokens`."""

    text: str
    tokens: int | None = None  # counted only where it matters


@dataclass(frozen=True, slots=True)
class QueryTexts:
    """A query's texts, ready to be shown. `repairs`: what had to be cut or could only be estimated."""

    query: Query
    text: str
    passages: Mapping[str, Shown]
    repairs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of one window. `calls` are keys of the journal; `asked` of them went to the model now."""

    outcome: Outcome
    traces: tuple[str, ...]
    calls: tuple[str, ...]
    usage: Usage
    repairs: Mapping[str, int]
    asked: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Spent:
    """What the calls of one window add up to."""

    calls: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    repairs: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    seconds: float = 0.0


class Asker:
    """Asks `model` about windows, through `journal`."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        settings: AskSettings = AskSettings(),
        template: PromptTemplate | None = None,
        retries: Retries = Retries(),
        on_retry: Callable[[Exception, float], None] | None = None,
        slots: int = 1_000_000,
    ) -> None:
        self.model = model
        self.settings = settings
        self.template = template or default_template()
        self._journal = journal
        self._retries = retries
        self._random = Random()
        self._on_retry = on_retry
        self._slots = asyncio.Semaphore(slots)  # shared by all who ask at the same time

    async def texts(self, query: Query, passages: Mapping[str, Passage]) -> QueryTexts:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        repairs: Counter[str] = Counter()
        text = harmless(query.text, markers=False)
        shown = {}
        for doc_id, passage in passages.items():
            shown[doc_id] = await self._within(harmless(passage.text), self.settings.passage_tokens, repairs)
        found = QueryTexts(query, text, shown, repairs)
        await self._check_query(text)
        return found

    async def check(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for two passages and a short answer."""
        await self._check_query(harmless(query.text, markers=False))

    async def ask(self, texts: QueryTexts, window: Window, *, sample: int = 0, on_text: OnText | None = None) -> Asked:
        """Ask about one window. Raises `ModelError` when the model cannot be had, never for a bad answer."""
        spent = _Spent()
        context = self.model.context
        for shrinks in range(_SHRINKS + 1):
            request = await self._request(texts, window, context, sample, spent.repairs)
            try:
                answer = await self._answer(request, len(window.doc_ids), spent, on_text)
                break
            except ContextOverflow:
                if shrinks == _SHRINKS:
                    raise
                context = int(context * _SHRINK)
        spent.repairs.update(answer.repairs)
        order = _order(answer, window)
        return Asked(
            Outcome(window, (order,)),
            (answer.trace,),
            tuple(spent.calls),
            spent.usage,
            spent.repairs,
            spent.asked,
            spent.seconds,
        )

    # --- prompt ---

    async def _check_query(self, text: str) -> None:
        """A query must leave room for two bare passages and a short answer: said before money is spent."""
        frame = self._frame(text, 2)
        bound = most_tokens(frame) + _CHAT_TOKENS
        if bound + 2 * _MARKER_TOKENS + self.settings.max_tokens > self.model.context:
            tokens = await self._count(frame, Counter()) + _CHAT_TOKENS + 2 * _MARKER_TOKENS
            try:
                shared(self.model.context, tokens, (16, 16), self.settings.max_tokens)
            except QueryTooLong as error:
                raise QueryTooLong(f"query {one_line(text)[:60]!r}...: {error.problem}", error.remedy) from None

    def _frame(self, query: str, size: int) -> str:
        return "\n".join(message.content for message in self.template.messages(query, [""] * size))

    async def _request(
        self, texts: QueryTexts, window: Window, context: int, sample: int, repairs: Counter[str]
    ) -> Request:
        """The question, everything in it sharing `context` by the rule of `rank_k.context`."""
        settings = self.settings
        passages = [texts.passages[doc_id] for doc_id in window.doc_ids]
        budget = settings.max_tokens
        frame = self._frame(texts.text, len(passages))
        overhead = _CHAT_TOKENS + _MARKER_TOKENS * len(passages)
        bound = most_tokens(frame) + overhead + sum(most_tokens(passage.text) for passage in passages)
        shown = [passage.text for passage in passages]
        if bound + budget > context:
            frame_tokens = await self._count(frame, repairs) + overhead
            for passage in passages:
                if passage.tokens is None:
                    passage.tokens = await self._count(passage.text, repairs)
            share = shared(context, frame_tokens, [passage.tokens or 0 for passage in passages], budget)
            if share.budget < budget:
                repairs["budget_cut"] = 1
                budget = share.budget
            shown = []
            for passage in passages:
                if (passage.tokens or 0) > share.passage:
                    repairs["context_cut"] += 1
                    cut = await self._within(passage.text, share.passage, Counter())
                    shown.append(cut.text)
                else:
                    shown.append(passage.text)
        return Request(
            messages=self.template.messages(texts.text, shown),
            max_tokens=budget,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=(crc32(texts.query.query_id.encode("utf-8", "surrogateescape")) + sample) % 2**31,
            think=settings.think,
            sample=sample,
            subject=Subject(texts.query.query_id, window.doc_ids),
        )

    async def _count(self, text: str, repairs: Counter[str]) -> int:
        """Tokens of `text`: by the model where it can tell, else estimated, with a margin, and counted."""
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            repairs["tokens_estimated"] = 1
            tokens = int(estimated_tokens(text) * _ESTIMATE_MARGIN)
        return tokens

    async def _within(self, text: str, limit: int, repairs: Counter[str]) -> Shown:
        """`text`, cut to `limit` tokens if it has more."""
        if most_tokens(text) <= limit:
            return Shown(text)
        tokens = await self.model.count_tokens(text)
        if tokens is None:
            tokens = estimated_tokens(text)
            if tokens > limit:
                repairs["tokens_estimated"] = 1
        if tokens <= limit:
            return Shown(text, tokens)
        repairs["passages_cut"] += 1
        while tokens > limit and text:
            text = cut_at(text, min(len(text) * limit // tokens, len(text) - 1))
            counted = await self.model.count_tokens(text)
            tokens = estimated_tokens(text) if counted is None else counted
        return Shown(text, tokens)

    # --- calls ---

    async def _answer(self, request: Request, size: int, spent: _Spent, on_text: OnText | None) -> Answer:
        reply = await self._call(request, "ask", spent, on_text)
        answer = _read(reply, size)
        if not answer.thought_was_cut:
            return answer
        spent.repairs["thought_closed"] = 1
        closing = self._closing(request, answer.trace, size)
        reply = await self._call(closing, "close", spent, on_text)
        closed = _read(reply, size)
        trace = "\n".join(filter(None, (answer.trace, closed.trace)))
        repairs = Counter(answer.repairs) + Counter(closed.repairs)
        if closed.ranked:
            del repairs["unranked"]
        return replace(closed, trace=trace, repairs=repairs)

    def _closing(self, request: Request, trace: str, size: int) -> Request:
        """The question again, the notes so far, and the demand for the order: a fresh turn."""
        budget = min(request.max_tokens, 1024 + 8 * size)
        room = self.model.context - request.max_tokens - budget - _CHAT_TOKENS
        prompt = sum(estimated_tokens(message.content) for message in request.messages)
        kept = max(min(request.max_tokens, self.model.context - prompt - budget - _CHAT_TOKENS, room), 64)
        notes = harmless(trace, markers=False)
        if estimated_tokens(notes) > kept:
            notes = "... " + notes[-(len(notes) * kept // estimated_tokens(notes)) :]
        turns = (Message("assistant", f"My notes so far: {notes}"), Message("user", _CLOSE))
        return replace(request, messages=(*request.messages, *turns), max_tokens=budget, think=False)

    async def _call(self, request: Request, purpose: str, spent: _Spent, on_text: OnText | None) -> Reply:
        body = self.model.body(request)
        key = call_key(self.model.identity, body, request.sample)
        reply = self._journal.reply(key)
        if reply is None:
            async with self._slots:
                reply = await with_retries(
                    lambda: self.model.ask(request, on_text), self._retries, self._random, self._on_retry
                )
            reply = self._journal.keep(key, self.model.name, purpose, body, reply)
            spent.asked += 1
            spent.seconds += reply.seconds
        spent.calls.append(key)
        spent.usage += reply.usage
        return reply


def _read(reply: Reply, size: int) -> Answer:
    return parse_answer(reply.text, size, reasoning=reply.reasoning, finish_reason=reply.finish_reason)


def _order(answer: Answer, window: Window) -> Order:
    def ids(numbers: Sequence[int]) -> tuple[str, ...]:
        return tuple(window.doc_ids[number - 1] for number in numbers)

    return Order(tuple(map(ids, answer.tiers)), frozenset(ids(sorted(answer.placed))), answer.ranked)
