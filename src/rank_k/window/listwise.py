"""One window in, one outcome out: asked directly or with thought, a thought closed, an answer constrained,
samples taken. Every call goes through the journal (`calls.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from rank_k.data.token_estimate import estimate_tokens
from rank_k.errors import ContextOverflow, FieldRejected, ModelError, PromptFiltered, RequestRejected
from rank_k.journal import Journal
from rank_k.models.base import Model
from rank_k.models.cached import CachedCalls, CallStats
from rank_k.models.retry import RetryPolicy
from rank_k.models.single_flight import RunOnce
from rank_k.strategies.base import seed_of
from rank_k.types import (
    Message,
    OnChunk,
    Passage,
    Query,
    Request,
    RequestContext,
    Response,
    StreamChunk,
    Usage,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.grammar import follows
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.prompt import PromptTemplate, default_template
from rank_k.window.prompt_builder import CHAT_TOKENS, PreparedQuery, PromptBuilder
from rank_k.window.reasoning import AutoReasoningPolicy, ReasoningMode, agreement, confidence, should_reason
from rank_k.window.repetition import RepetitionDetector
from rank_k.window.sanitize import strip_template_tokens

_SHRINK = 0.8  # of the context, after the server counted more tokens than we did
_SHRINKS = 6

_REASONING_START = "<think>\n"
_REASONING_END = "\n</think>\n\n"
_EMPTY_REASONING = "<think>\n\n</think>\n\n"

_FORCED_ANSWER_PROMPT = (
    "Stop here. Going by your notes, give the order now: one line of passage numbers, best first, like"
    " [3] > [2] = [1], and nothing else."
)


@dataclass(frozen=True, slots=True)
class ListwiseSettings:
    """How a window is asked. Tokens are the model's.

    `passage_tokens` 450, `max_tokens` 8,000 (thought and answer) and temperature 0.5 are the paper's.
    `temperature` None: the server's own. `constrain`: hold answers to the grammar of a ranking where the server
    can. `samples`: how often each window is asked, in different presented orders; `agree`: stop early when the
    first so many agree. `rule`: when a thought pays, for `Think("auto")`. `verdicts`: words, worst first, for models
    that think in one verdict a passage, which is then their answer (see `verdicts.py`).
    """

    passage_tokens: int = 450
    max_tokens: int = 8000
    temperature: float | None = 0.5
    top_p: float | None = None
    reasoning: ReasoningMode = ReasoningMode()
    constrained: bool = True
    samples: int = 1
    agreeing_samples: int = 2
    auto_policy: AutoReasoningPolicy = AutoReasoningPolicy()
    label_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowReport:
    """What became of one window. `calls` are keys of the journal; `asked` of them went to the model now.

    `traces`: one per order; none where windows are ordered by likelihood. `saved`: tokens not spent since a thought
    that went in circles was ended.
    """

    result: WindowResult
    traces: tuple[str, ...]
    calls: tuple[str, ...]
    usage: Usage
    repairs: Mapping[str, int]
    new_calls: int = 0
    seconds: float = 0.0
    saved_tokens: int = 0
    error: ModelError | None = None
    """Why no answer came, where none did."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """One look at a window: all that its calls have in common. `context`: tokens believed to be there."""

    query: PreparedQuery
    window: Window
    number: int
    context: int
    reasoning: ReasoningMode
    stats: CallStats
    on_chunk: OnChunk | None


class ListwiseRanker:
    """Asks `model` about windows, through `journal`. `prepare` comes first.

    `calls`: those of another asker, to share its slots.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        settings: ListwiseSettings = ListwiseSettings(),
        template: PromptTemplate | None = None,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        slots: int = 1_000_000,
        calls: CachedCalls | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.template = template or default_template()
        self._prompt_builder = PromptBuilder(model, self.template, settings.passage_tokens, settings.max_tokens)
        self._calls = calls or CachedCalls(model, journal, retries, on_retry, slots)
        self._grammar_probe = RunOnce(self._probe_grammar)
        self._no_reasoning_probe = RunOnce(self._probe_no_reasoning)
        self._budget_refused = False  # by the server: the token limit is used instead
        self._needs_empty_reasoning = False  # the model thinks although asked not to: show it a thought that is over

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Find out, once and through the journal, what the model makes of being asked not to think.

        Only where `think` (default: the settings') asks for that.
        """
        able = self.model.capabilities
        if (reasoning or self.settings.reasoning).kind in ("off", "auto") and able.reasons and able.prefill:
            self._needs_empty_reasoning = await self._no_reasoning_probe()

    async def _probe_no_reasoning(self) -> bool:
        question = Request(
            (Message("user", "What is two and two? Answer with the number alone."),), 64, 0.0, reasoning=False
        )
        reply = await self._call(question, "probe", None)
        answer = parse_ranking(reply.text, 1, reasoning=reply.reasoning, finish_reason=reply.finish_reason)
        return bool(answer.trace.strip()) or answer.reasoning_truncated

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        return await self._prompt_builder.prepare_query(query, passages)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for two passages and a short answer."""
        await self._prompt_builder.check_query(query)

    async def rank(
        self,
        texts: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_text: OnChunk | None = None,
    ) -> WindowReport:
        """Ask about one window, thinking as the settings say or as `think` does (`prepare(think)` comes first).

        `on_text` hears replies as they arrive; one that is known already, at once. What it returns does not count.
        Raises `ModelError` when the model cannot be had, never for a bad answer.
        """
        spent = CallStats()
        look = _Sample(
            texts, window, 0, self.model.context_length, reasoning or self.settings.reasoning, spent, on_text
        )
        taken = [await self._sample(look)] if self.settings.samples == 1 else await self._samples(look)
        found = tuple(order for orders, _ in taken for order in orders)
        return WindowReport(
            WindowResult(window, found),
            tuple(trace for _, trace in taken),
            tuple(spent.calls),
            spent.usage,
            +spent.repairs,
            spent.new_calls,
            spent.seconds,
            spent.saved_tokens,
        )

    async def _samples(self, look: _Sample) -> list[tuple[tuple[WindowRanking, ...], str]]:
        """Several looks at the window, each in an order of its own; no more than needed if the first ones agree."""
        first, most = min(self.settings.agreeing_samples, self.settings.samples), self.settings.samples
        taken = await asyncio.gather(*(self._sample(replace(look, number=n)) for n in range(first)))
        orders = [orders[-1] for orders, _ in taken]
        if all(order.is_valid and order.tiers == orders[0].tiers for order in orders):
            look.stats.repairs["samples_skipped"] += most - first
            return taken
        more = (self._sample(replace(look, number=n)) for n in range(first, most))
        return taken + await asyncio.gather(*more)

    async def _sample(self, look: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        """One look at the window: its orders (two where a direct one and a thoughtful one were taken) and trace."""
        for shrinks in range(_SHRINKS + 1):
            try:
                return await self._rank_sample(look)
            except ContextOverflow:
                if shrinks == _SHRINKS:
                    raise
                look = replace(look, context=int(look.context * _SHRINK))
        raise AssertionError("the loop returns or raises")

    async def _rank_sample(self, look: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        reasoning = look.reasoning
        shown = sample_order(look.query.query.query_id, look.window.doc_ids, look.number)
        question = await self._build_request(look, shown)
        if reasoning.kind in ("full", "budget"):
            answer = await self._rank_with_reasoning(question, reasoning.tokens, look)
            look.stats.repairs.update(answer.repairs)
            return (_window_ranking(answer, shown, look.window),), answer.trace
        direct, reply = await self._rank_without_reasoning(question, look)
        direct_order = _window_ranking(direct, shown, look.window)
        if reasoning.kind == "off" or not await self._should_reason(question, direct_order, reply, look):
            look.stats.repairs.update(direct.repairs)
            return (direct_order,), direct.trace
        look.stats.repairs["windows_reasoned"] += 1
        answer = await self._rank_with_reasoning(question, None, look)
        look.stats.repairs.update(answer.repairs)
        thought_order = _window_ranking(answer, shown, look.window)
        orders = tuple(order for order in (direct_order, thought_order) if order.is_valid)
        return orders or (thought_order,), answer.trace

    async def _build_request(self, look: _Sample, shown: tuple[str, ...]) -> Request:
        query_id = look.query.query.query_id
        messages, budget = await self._prompt_builder.messages(look.query, shown, look.context, look.stats.repairs)
        return Request(
            messages,
            budget,
            self.settings.temperature,
            self.settings.top_p,
            seed=(seed_of(query_id) + look.number) % 2**31,
            sample=look.number,
            context=RequestContext(query_id, shown),
        )

    # --- without a thought ---

    async def _rank_without_reasoning(self, question: Request, look: _Sample) -> tuple[ParsedAnswer, Response]:
        """The answer at once."""
        asking = await self._answer_request(question)
        wants_logprobs = look.reasoning.kind == "auto" and self.model.capabilities.logprobs
        asking = replace(asking, reasoning=False, logprobs=wants_logprobs)
        if self._needs_empty_reasoning:
            asking = replace(asking, prefill=_EMPTY_REASONING)
        reply = await self._call(asking, "direct", look)
        return self._parse_answer(reply, asking, look.stats, reasoning_closed=self._needs_empty_reasoning), reply

    async def _should_reason(self, question: Request, order: WindowRanking, reply: Response, look: _Sample) -> bool:
        """What the rule says, going by the reply's probabilities, or by a second look at the window turned round."""
        rule = self.settings.auto_policy
        if not order.is_valid:
            return True
        if not should_reason(look.window, None, rule):
            return False
        size, cut = len(question.context.doc_ids), rule.places(look.window)
        sure = None if reply.tokens is None else confidence(reply.tokens, size, cut)
        if sure is None:
            turned = tuple(reversed(question.context.doc_ids))
            other, _ = await self._rank_without_reasoning(await self._build_request(look, turned), look)
            sure = agreement(order, _window_ranking(other, turned, look.window), cut)
        return should_reason(look.window, sure, rule)

    # --- with a thought ---

    async def _rank_with_reasoning(self, question: Request, tokens: int | None, look: _Sample) -> ParsedAnswer:
        """The answer after a thought of at most `tokens` (None: as long as it likes)."""
        able = self.model.capabilities
        size = len(question.context.doc_ids)
        if not able.reasons and able.prefill:
            return await self._rank_with_prefilled_reasoning(question, tokens, look)
        reply = await self._request_reasoning(question, tokens, look)
        if tokens is not None and reply.usage.reasoning_tokens > tokens:
            look.stats.repairs["budget_exceeded"] += 1
        answer = _parse_response(reply, size)
        short = "truncated" in answer.repairs and "missing" in answer.repairs
        if answer.reasoning_truncated:
            look.stats.repairs["forced_answers"] += 1
        elif short and answer.trace and tokens is not None:
            look.stats.repairs["answer_requested_again"] += 1  # the budget ended in the midst of the answer
        elif not answer.is_valid and answer.trace and able.prefill and able.grammar and self.settings.constrained:
            look.stats.repairs["answer_requested_again"] += 1
        else:
            return answer
        return await self._force_answer(question, answer, look)

    async def _request_reasoning(self, question: Request, tokens: int | None, look: _Sample) -> Response:
        """Return the reply to `question`, its reasoning limited to `tokens` (None: not limited).

        The server's own budget is used where it has one. A server that refuses it (vLLM without a reasoning parser)
        gets `tokens` as the token limit of the whole reply instead, and the answer is requested in a second call.
        """
        if tokens is None:
            return await self._call(question, "ask", look)
        if self.model.capabilities.reasoning_budget:
            max_tokens = min(tokens + _answer_tokens(len(question.context.doc_ids)), question.max_tokens)
            try:
                return await self._call(replace(question, reasoning_budget=tokens, max_tokens=max_tokens), "ask", look)
            except FieldRejected:
                self._budget_refused = True
        look.stats.repairs["budget_rejected"] += self._budget_refused
        return await self._call(replace(question, max_tokens=min(tokens, question.max_tokens)), "ask", look)

    async def _rank_with_prefilled_reasoning(
        self, question: Request, tokens: int | None, look: _Sample
    ) -> ParsedAnswer:
        """A thought for a model that has none of its own: begun for it, ended at the budget, then the answer."""
        size = len(question.context.doc_ids)
        room = max(question.max_tokens - _answer_tokens(size), 1)
        asking = replace(question, prefill=_REASONING_START, stop=("</think>",), max_tokens=min(tokens or room, room))
        words = self.settings.label_words
        asking = replace(asking, logprobs=bool(words) and self.model.capabilities.logprobs)
        reply = await self._call(asking, "ask", look)
        if reply.finish_reason != "stop":
            look.stats.repairs["forced_answers"] += 1
        thought = (reply.reasoning or "") + reply.text
        trace = thought.partition("</think>")[0].replace("<think>", "").strip()
        cut = {} if reply.finish_reason == "stop" else {"truncated": 1}
        if words:
            answer = parse_labels(trace, size, words, reply.tokens)
            if answer.is_valid:
                return replace(answer, repairs={**answer.repairs, **cut})
        return await self._force_answer(question, ParsedAnswer((), frozenset(), cut, False, trace), look)

    async def _force_answer(self, question: Request, so_far: ParsedAnswer, look: _Sample) -> ParsedAnswer:
        """The answer that follows from a thought that was ended: with the trace in place where the server can
        go on from it, else in a fresh turn that carries the notes."""
        trace = so_far.trace
        answer = None
        if self.model.capabilities.prefill:
            asking = await self._answer_request(question)
            kept = _fitting_trace(trace, question, asking.max_tokens, look.context)
            asking = replace(asking, prefill=f"{_REASONING_START}{strip_template_tokens(kept)}{_REASONING_END}")
            try:
                reply = await self._call(asking, "close", look)
                answer = self._parse_answer(reply, asking, look.stats, reasoning_closed=True)
            except PromptFiltered:
                raise
            except RequestRejected as error:
                if error.status in (401, 403):
                    raise
        if answer is None or not answer.is_valid:
            asking = await self._fresh_turn(question, trace, look.context)
            reply = await self._call(asking, "close", look)
            answer = self._parse_answer(reply, asking, look.stats, reasoning_closed=False)
        traces = (trace, answer.trace if answer.trace not in trace else "")
        repairs = Counter(answer.repairs)
        repairs["truncated"] += so_far.repairs.get("truncated", 0)
        return replace(answer, trace="\n".join(filter(None, traces)), repairs=+repairs)

    async def _answer_request(self, question: Request) -> Request:
        """`question` for the answer alone: short, and held to a ranking where the server can."""
        size = len(question.context.doc_ids)
        held = self.settings.constrained and self.model.capabilities.grammar and await self._accepts_grammar()
        tokens = min(question.max_tokens, _answer_tokens(size))
        return replace(question, max_tokens=tokens, constrain_to_ranking_of=size if held else None)

    async def _accepts_grammar(self) -> bool:
        """Whether the server takes a grammar rather than refusing it: found out once, through the journal.

        The embedded one does, and asking it would push the prompt just read out of its cache.
        """
        if not self.model.capabilities.reasons:
            return True
        return await self._grammar_probe()

    async def _probe_grammar(self) -> bool:
        question = Request(
            (Message("user", "Put [1] and [2] in any order."),), 32, 0.0, reasoning=False, constrain_to_ranking_of=2
        )
        try:
            await self._call(question, "probe", None)
        except RequestRejected as error:
            if error.status in (401, 403):
                raise
            return False
        return True

    async def _fresh_turn(self, question: Request, trace: str, context: int) -> Request:
        """The question again, the notes so far, and the demand for the order."""
        size = len(question.context.doc_ids)
        asking = replace(await self._answer_request(question), reasoning=False)
        budget = min(question.max_tokens, 1024 + 8 * size)  # it may think again
        notes = " ".join(strip_template_tokens(_fitting_trace(trace, question, budget, context)).split())
        turns = (Message("assistant", f"My notes so far: {notes}"), Message("user", _FORCED_ANSWER_PROMPT))
        return replace(asking, messages=(*question.messages, *turns), max_tokens=budget)

    # --- calls ---

    async def _call(self, request: Request, purpose: str, look: _Sample | None) -> Response:
        spent = look.stats if look else CallStats()
        on_text = look.on_chunk if look else None
        reply = await self._calls.complete(request, purpose, spent, on_text, self._complete)
        if reply.finish_reason == "stopped":
            spent.repairs["repetition_stopped"] += 1
            spent.saved_tokens += max(request.max_tokens - reply.usage.completion_tokens, 0)
        return reply

    async def _complete(self, request: Request, on_text: OnChunk) -> Response:
        """Ask, and end a reply that goes in circles before its circles."""
        watch = _RepetitionWatch(on_text, max(len(request.context.doc_ids), 1))
        reply = await self.model.complete(request, watch)
        if reply.finish_reason == "stopped" and watch.repetitive:
            reasoning, text = watch.before_repetition(reply)
            reply = replace(reply, reasoning=reasoning, text=text)
        if request.prefill and "</think>" not in request.prefill:  # all that came was thought
            reply = replace(reply, usage=replace(reply.usage, reasoning_tokens=reply.usage.completion_tokens))
        return reply

    def _parse_answer(self, reply: Response, asking: Request, spent: CallStats, reasoning_closed: bool) -> ParsedAnswer:
        """The answer in a reply; notes where the server forgot the grammar."""
        size = len(asking.context.doc_ids)
        said = reply.text.rpartition("</think>")[2]
        if asking.constrain_to_ranking_of is not None and not follows(said, size) and reply.finish_reason != "length":
            spent.repairs["constraint_violated"] += 1
        return _parse_response(reply, size, reasoning_closed)


class _RepetitionWatch:
    """Looks at a reply while it streams: passes it on, and says stop when it goes in circles."""

    def __init__(self, on_text: OnChunk, passages: int) -> None:
        self._on_text = on_text
        self._reasoning, self._text = RepetitionDetector(passages), RepetitionDetector(passages)
        self.repetitive = False

    def __call__(self, delta: StreamChunk) -> bool:
        self._on_text(delta)
        if delta.reasoning and self._reasoning.feed(delta.reasoning):
            self.repetitive = True
        if delta.text and self._text.feed(delta.text):
            self.repetitive = True
        return self.repetitive

    def before_repetition(self, reply: Response) -> tuple[str | None, str]:
        """Reasoning and text of `reply` up to where they begin to repeat themselves."""
        reasoning, text = reply.reasoning, reply.text
        if reasoning is not None and self._reasoning.start is not None:
            reasoning = reasoning[: self._reasoning.start]
        if self._text.start is not None:
            text = text[: self._text.start]
        return reasoning, text


def _fitting_trace(trace: str, question: Request, budget: int, context: int) -> str:
    """The end of `trace`, as much of it as fits into `context` tokens beside the prompt and `budget`."""
    prompt = sum(estimate_tokens(message.content) for message in question.messages)
    room = max(context - prompt - budget - 2 * CHAT_TOKENS, question.max_tokens - budget, 64)
    length = estimate_tokens(trace)
    return trace if length <= room else "... " + trace[-(len(trace) * room // length) :]


def _parse_response(reply: Response, size: int, reasoning_closed: bool = False) -> ParsedAnswer:
    finish = "length" if reply.finish_reason == "stopped" else reply.finish_reason
    return parse_ranking(
        reply.text, size, reasoning=reply.reasoning, finish_reason=finish, reasoning_closed=reasoning_closed
    )


def _answer_tokens(size: int) -> int:
    """Tokens of a ranking of `size` passages: up to eight each in a vocabulary that splits digits."""
    return 32 + 8 * size


def sample_order(query_id: str, doc_ids: Sequence[str], sample: int) -> tuple[str, ...]:
    """The order in which a sample shows the window: the first as it is, the others shuffled."""
    shown = list(doc_ids)
    if sample:
        Random(f"{sample}|{query_id}|{'|'.join(doc_ids)}").shuffle(shown)
    return tuple(shown)


def _window_ranking(answer: ParsedAnswer, shown: Sequence[str], window: Window) -> WindowRanking:
    """The answer in terms of ids; what the model did not place follows in the window's order."""
    placed = frozenset(shown[number - 1] for number in answer.ranked_numbers)
    tiers = [tuple(shown[number - 1] for number in tier if number in answer.ranked_numbers) for tier in answer.tiers]
    rest = ((doc_id,) for doc_id in window.doc_ids if doc_id not in placed)
    return WindowRanking((*filter(None, tiers), *rest), placed, answer.is_valid)
