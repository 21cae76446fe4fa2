"""Rank one window by comparing its passages: with or without reasoning, forced answers, constrained decoding, samples.

Every call goes through the journal (`rank_k.models.cached`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rank_k.errors import ContextOverflow, FieldRejected, ModelError, PromptFiltered, RequestRejected
from rank_k.journal import Journal
from rank_k.models.base import Model
from rank_k.models.cached import CachedCalls, CallStats
from rank_k.models.retry import RetryPolicy
from rank_k.models.single_flight import RunOnce
from rank_k.strategies.base import query_seed
from rank_k.types import (
    CallTotals,
    Message,
    OnChunk,
    Passage,
    Query,
    Request,
    RequestContext,
    Response,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.grammar import matches_grammar
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.prompt import PromptTemplate, default_template
from rank_k.window.prompt_builder import PreparedQuery, PromptBuilder, presented_order
from rank_k.window.reasoning import (
    AutoReasoningPolicy,
    ReasoningMode,
    answer_confidence,
    ranking_agreement,
    should_reason,
)
from rank_k.window.repetition import StopOnRepetition
from rank_k.window.sanitize import strip_template_tokens
from rank_k.window.token_allocation import max_answer_tokens, truncate_trace

_SHRINK_FACTOR = 0.8  # of the context, after the server counted more tokens than we did
_MAX_SHRINKS = 6

_REASONING_START = "<think>\n"
_REASONING_END = "\n</think>\n\n"
_EMPTY_REASONING = "<think>\n\n</think>\n\n"

_FORCED_ANSWER_PROMPT = (
    "Stop here. Going by your notes, give the order now: one line of passage numbers, best first, like"
    " [3] > [2] = [1], and nothing else."
)


@dataclass(frozen=True, slots=True)
class ListwiseSettings:
    """How a window is ranked. Tokens are the model's.

    `passage_tokens` 450, `max_tokens` 8,000 (reasoning and answer) and temperature 0.5 are the paper's.
    `temperature` None: the server's default. `constrained`: constrain answers to the grammar of a ranking where the
    server can. `samples`: how many times each window is ranked, in different presented orders. `agreeing_samples`: stop
    early when that many first samples agree. `auto_policy`: when to reason, for `ReasoningMode("auto")`. `label_words`:
    labels, worst first, for models whose reasoning is one label a passage, which is then their answer (see
    `rank_k.window.labels`).
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


@dataclass(slots=True, kw_only=True)
class WindowReport(CallTotals):
    """A ranked window, with the totals of its calls.

    `call_keys`: the keys of its calls in the journal. `traces`: the reasoning traces, one per sample; none if the
    window is ranked by likelihood. `error`: why the model did not respond, if it did not.
    """

    result: WindowResult
    traces: tuple[str, ...] = ()
    call_keys: list[str] = field(default_factory=list)
    error: ModelError | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample of a window: what its calls have in common. `context`: the assumed context length in tokens."""

    query: PreparedQuery
    window: Window
    number: int
    context: int
    reasoning: ReasoningMode
    stats: CallStats
    on_chunk: OnChunk | None


class ListwiseRanker:
    """Rank windows with `model`, through `journal`. Call `prepare` first.

    `calls`: those of another ranker, to share its concurrency limit.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        settings: ListwiseSettings = ListwiseSettings(),
        template: PromptTemplate | None = None,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        concurrency: int = 1_000_000,
        calls: CachedCalls | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.template = template or default_template()
        self._prompt_builder = PromptBuilder(model, self.template, settings.passage_tokens, settings.max_tokens)
        self._calls = calls or CachedCalls(model, journal, retries, on_retry, concurrency)
        self._grammar_probe = RunOnce(self._probe_grammar)
        self._no_reasoning_probe = RunOnce(self._probe_no_reasoning)
        self._budget_rejected = False  # by the server: the token limit is used instead
        self._needs_empty_reasoning = False  # the model reasons although told not to: prefill empty reasoning

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Find out, once and through the journal, whether the model reasons although told not to.

        Only where `reasoning` (default: that of the settings) is off or auto.
        """
        capabilities = self.model.capabilities
        mode = reasoning or self.settings.reasoning
        if mode.kind in ("off", "auto") and capabilities.reasons and capabilities.prefill:
            self._needs_empty_reasoning = await self._no_reasoning_probe()

    async def _probe_no_reasoning(self) -> bool:
        request = Request(
            (Message("user", "What is two and two? Answer with the number alone."),), 64, 0.0, reasoning=False
        )
        response = await self._call(request, "probe", None)
        answer = parse_ranking(response.text, 1, reasoning=response.reasoning, finish_reason=response.finish_reason)
        return bool(answer.trace.strip()) or answer.reasoning_truncated

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        return await self._prompt_builder.prepare_query(query, passages)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for two passages and a short answer."""
        await self._prompt_builder.check_query(query)

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """Rank one window, reasoning as the settings say or as `reasoning` says (call `prepare(reasoning)` first).

        `on_chunk` hears replies as they arrive; one that is known already, at once. What it returns does not count.
        Raises `ModelError` when the model cannot be had, never for a bad answer.
        """
        stats = CallStats()
        mode = reasoning or self.settings.reasoning
        sample = _Sample(prepared_query, window, 0, self.model.context_length, mode, stats, on_chunk)
        if self.settings.samples == 1:
            samples = [await self._rank_sample_in_context(sample)]
        else:
            samples = await self._rank_samples(sample)
        rankings = tuple(ranking for sample_rankings, _ in samples for ranking in sample_rankings)
        report = WindowReport(
            result=WindowResult(window, rankings),
            traces=tuple(trace for _, trace in samples),
            call_keys=stats.call_keys,
        )
        report += stats
        report.repairs = +report.repairs
        return report

    async def _rank_samples(self, sample: _Sample) -> list[tuple[tuple[WindowRanking, ...], str]]:
        """Rank the window several times in different presented orders; stop early if the first samples agree."""
        first_count, max_count = min(self.settings.agreeing_samples, self.settings.samples), self.settings.samples
        first_samples = (replace(sample, number=number) for number in range(first_count))
        samples = await asyncio.gather(*map(self._rank_sample_in_context, first_samples))
        rankings = [sample_rankings[-1] for sample_rankings, _ in samples]
        if all(ranking.is_valid and ranking.tiers == rankings[0].tiers for ranking in rankings):
            sample.stats.repairs["samples_skipped"] += max_count - first_count
            return samples
        remaining_samples = (replace(sample, number=number) for number in range(first_count, max_count))
        return samples + await asyncio.gather(*map(self._rank_sample_in_context, remaining_samples))

    async def _rank_sample_in_context(self, sample: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        """Return the rankings of one sample (two where auto mode reasoned) and its trace.

        Shorten the assumed context and try again when the server counts more tokens than fit.
        """
        for shrink_count in range(_MAX_SHRINKS + 1):
            try:
                return await self._rank_sample(sample)
            except ContextOverflow:
                if shrink_count == _MAX_SHRINKS:
                    raise
                sample = replace(sample, context=int(sample.context * _SHRINK_FACTOR))
        raise AssertionError("the loop returns or raises")

    async def _rank_sample(self, sample: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        reasoning = sample.reasoning
        presented_ids = presented_order(sample.query.query.query_id, sample.window.doc_ids, sample.number)
        request = await self._build_request(sample, presented_ids)
        if reasoning.kind in ("full", "budget"):
            answer = await self._rank_with_reasoning(request, reasoning.tokens, sample)
            sample.stats.repairs.update(answer.repairs)
            return (_window_ranking(answer, presented_ids, sample.window),), answer.trace
        direct_answer, response = await self._rank_without_reasoning(request, sample)
        direct_ranking = _window_ranking(direct_answer, presented_ids, sample.window)
        if reasoning.kind == "off" or not await self._should_reason(request, direct_ranking, response, sample):
            sample.stats.repairs.update(direct_answer.repairs)
            return (direct_ranking,), direct_answer.trace
        sample.stats.repairs["windows_reasoned"] += 1
        answer = await self._rank_with_reasoning(request, None, sample)
        sample.stats.repairs.update(answer.repairs)
        reasoned_ranking = _window_ranking(answer, presented_ids, sample.window)
        valid_rankings = tuple(ranking for ranking in (direct_ranking, reasoned_ranking) if ranking.is_valid)
        return valid_rankings or (reasoned_ranking,), answer.trace

    async def _build_request(self, sample: _Sample, presented_ids: tuple[str, ...]) -> Request:
        query_id = sample.query.query.query_id
        messages, max_tokens = await self._prompt_builder.messages(
            sample.query, presented_ids, sample.context, sample.stats.repairs
        )
        return Request(
            messages,
            max_tokens,
            self.settings.temperature,
            self.settings.top_p,
            seed=(query_seed(query_id) + sample.number) % 2**31,
            sample=sample.number,
            context=RequestContext(query_id, presented_ids),
        )

    # --- without reasoning ---

    async def _rank_without_reasoning(self, request: Request, sample: _Sample) -> tuple[ParsedAnswer, Response]:
        """The answer at once."""
        direct_request = await self._answer_request(request)
        wants_logprobs = sample.reasoning.kind == "auto" and self.model.capabilities.logprobs
        direct_request = replace(direct_request, reasoning=False, logprobs=wants_logprobs)
        if self._needs_empty_reasoning:
            direct_request = replace(direct_request, prefill=_EMPTY_REASONING)
        response = await self._call(direct_request, "direct", sample)
        return self._parse_answer(
            response, direct_request, sample.stats, reasoning_closed=self._needs_empty_reasoning
        ), response

    async def _should_reason(
        self, request: Request, direct_ranking: WindowRanking, response: Response, sample: _Sample
    ) -> bool:
        """Apply the auto policy, by the response's probabilities or by a second ranking of the reversed window."""
        policy = self.settings.auto_policy
        if not direct_ranking.is_valid:
            return True
        if not should_reason(sample.window, None, policy):
            return False
        size, top_positions = len(request.context.doc_ids), policy.positions_in_top_k(sample.window)
        direct_confidence = None if response.tokens is None else answer_confidence(response.tokens, size, top_positions)
        if direct_confidence is None:
            reversed_ids = tuple(reversed(request.context.doc_ids))
            reversed_answer, _ = await self._rank_without_reasoning(
                await self._build_request(sample, reversed_ids), sample
            )
            direct_confidence = ranking_agreement(
                direct_ranking, _window_ranking(reversed_answer, reversed_ids, sample.window), top_positions
            )
        return should_reason(sample.window, direct_confidence, policy)

    # --- with reasoning ---

    async def _rank_with_reasoning(self, request: Request, tokens: int | None, sample: _Sample) -> ParsedAnswer:
        """The answer after reasoning of at most `tokens` (None: unlimited)."""
        capabilities = self.model.capabilities
        size = len(request.context.doc_ids)
        if not capabilities.reasons and capabilities.prefill:
            return await self._rank_with_prefilled_reasoning(request, tokens, sample)
        response = await self._request_reasoning(request, tokens, sample)
        if tokens is not None and response.usage.reasoning_tokens > tokens:
            sample.stats.repairs["budget_exceeded"] += 1
        answer = _parse_response(response, size)
        is_incomplete = "truncated" in answer.repairs and "missing" in answer.repairs
        if answer.reasoning_truncated:
            sample.stats.repairs["forced_answers"] += 1
        elif is_incomplete and answer.trace and tokens is not None:
            sample.stats.repairs["answer_requested_again"] += 1  # the budget ended in the midst of the answer
        elif (
            not answer.is_valid
            and answer.trace
            and capabilities.prefill
            and capabilities.grammar
            and self.settings.constrained
        ):
            sample.stats.repairs["answer_requested_again"] += 1
        else:
            return answer
        return await self._force_answer(request, answer, sample)

    async def _request_reasoning(self, request: Request, tokens: int | None, sample: _Sample) -> Response:
        """Return the reply to `request`, its reasoning limited to `tokens` (None: not limited).

        The server's own budget is used where it has one. A server that refuses it (vLLM without a reasoning parser)
        gets `tokens` as the token limit of the whole reply instead, and the answer is requested in a second call.
        """
        if tokens is None:
            return await self._call(request, "ask", sample)
        if self.model.capabilities.reasoning_budget:
            max_tokens = min(tokens + max_answer_tokens(len(request.context.doc_ids)), request.max_tokens)
            try:
                return await self._call(replace(request, reasoning_budget=tokens, max_tokens=max_tokens), "ask", sample)
            except FieldRejected:
                self._budget_rejected = True
        sample.stats.repairs["budget_rejected"] += self._budget_rejected
        return await self._call(replace(request, max_tokens=min(tokens, request.max_tokens)), "ask", sample)

    async def _rank_with_prefilled_reasoning(
        self, request: Request, tokens: int | None, sample: _Sample
    ) -> ParsedAnswer:
        """Reasoning for a model that does not reason by itself: prefilled, ended at the budget, then the answer."""
        size = len(request.context.doc_ids)
        max_reasoning_tokens = max(request.max_tokens - max_answer_tokens(size), 1)
        reasoning_request = replace(
            request,
            prefill=_REASONING_START,
            stop=("</think>",),
            max_tokens=min(tokens or max_reasoning_tokens, max_reasoning_tokens),
        )
        label_words = self.settings.label_words
        reasoning_request = replace(reasoning_request, logprobs=bool(label_words) and self.model.capabilities.logprobs)
        response = await self._call(reasoning_request, "ask", sample)
        if response.finish_reason != "stop":
            sample.stats.repairs["forced_answers"] += 1
        reasoning_text = (response.reasoning or "") + response.text
        trace = reasoning_text.partition("</think>")[0].replace("<think>", "").strip()
        repairs = {} if response.finish_reason == "stop" else {"truncated": 1}
        if label_words:
            answer = parse_labels(trace, size, label_words, response.tokens)
            if answer.is_valid:
                return replace(answer, repairs={**answer.repairs, **repairs})
        return await self._force_answer(request, ParsedAnswer((), frozenset(), repairs, False, trace), sample)

    async def _force_answer(self, request: Request, truncated_answer: ParsedAnswer, sample: _Sample) -> ParsedAnswer:
        """Force an answer after truncated reasoning: the trace is prefilled where the server supports that, else
        a new turn repeats it as notes."""
        trace = truncated_answer.trace
        answer = None
        if self.model.capabilities.prefill:
            forced_request = await self._answer_request(request)
            fitting_trace = truncate_trace(trace, request, forced_request.max_tokens, sample.context)
            forced_request = replace(
                forced_request, prefill=f"{_REASONING_START}{strip_template_tokens(fitting_trace)}{_REASONING_END}"
            )
            try:
                response = await self._call(forced_request, "close", sample)
                answer = self._parse_answer(response, forced_request, sample.stats, reasoning_closed=True)
            except PromptFiltered:
                raise
            except RequestRejected as error:
                if error.status in (401, 403):
                    raise
        if answer is None or not answer.is_valid:
            forced_request = await self._new_turn_request(request, trace, sample.context)
            response = await self._call(forced_request, "close", sample)
            answer = self._parse_answer(response, forced_request, sample.stats, reasoning_closed=False)
        traces = (trace, answer.trace if answer.trace not in trace else "")
        repairs = Counter(answer.repairs)
        repairs["truncated"] += truncated_answer.repairs.get("truncated", 0)
        return replace(answer, trace="\n".join(filter(None, traces)), repairs=+repairs)

    async def _answer_request(self, request: Request) -> Request:
        """Return `request` for the answer alone: short, and constrained to a ranking where the server can."""
        size = len(request.context.doc_ids)
        use_grammar = self.settings.constrained and self.model.capabilities.grammar and await self._accepts_grammar()
        max_tokens = min(request.max_tokens, max_answer_tokens(size))
        return replace(request, max_tokens=max_tokens, constrain_to_ranking_of=size if use_grammar else None)

    async def _accepts_grammar(self) -> bool:
        """Whether the server takes a grammar rather than refusing it: found out once, through the journal.

        The embedded one does, and asking it would push the prompt just read out of its cache.
        """
        if not self.model.capabilities.reasons:
            return True
        return await self._grammar_probe()

    async def _probe_grammar(self) -> bool:
        request = Request(
            (Message("user", "Put [1] and [2] in any order."),), 32, 0.0, reasoning=False, constrain_to_ranking_of=2
        )
        try:
            await self._call(request, "probe", None)
        except RequestRejected as error:
            if error.status in (401, 403):
                raise
            return False
        return True

    async def _new_turn_request(self, request: Request, trace: str, context_length: int) -> Request:
        """Repeat the request with the reasoning so far as notes and ask for the ranking."""
        size = len(request.context.doc_ids)
        answer_request = replace(await self._answer_request(request), reasoning=False)
        max_tokens = min(request.max_tokens, 1024 + 8 * size)  # it may reason again
        notes = " ".join(strip_template_tokens(truncate_trace(trace, request, max_tokens, context_length)).split())
        new_messages = (Message("assistant", f"My notes so far: {notes}"), Message("user", _FORCED_ANSWER_PROMPT))
        return replace(answer_request, messages=(*request.messages, *new_messages), max_tokens=max_tokens)

    # --- calls ---

    async def _call(self, request: Request, purpose: str, sample: _Sample | None) -> Response:
        stats = sample.stats if sample else CallStats()
        on_chunk = sample.on_chunk if sample else None
        response = await self._calls.complete(request, purpose, stats, on_chunk, self._complete)
        if response.finish_reason == "stopped":
            stats.repairs["repetition_stopped"] += 1
            stats.saved_tokens += max(request.max_tokens - response.usage.completion_tokens, 0)
        return response

    async def _complete(self, request: Request, on_chunk: OnChunk) -> Response:
        """Call the model; stop and truncate a repetitive response."""
        monitor = StopOnRepetition(on_chunk, max(len(request.context.doc_ids), 1))
        response = await self.model.complete(request, monitor)
        if response.finish_reason == "stopped" and monitor.repetition_found:
            reasoning, text = monitor.truncate_repetition(response)
            response = replace(response, reasoning=reasoning, text=text)
        if request.prefill and "</think>" not in request.prefill:  # the whole response is reasoning
            response = replace(
                response, usage=replace(response.usage, reasoning_tokens=response.usage.completion_tokens)
            )
        return response

    def _parse_answer(
        self, response: Response, request: Request, stats: CallStats, reasoning_closed: bool
    ) -> ParsedAnswer:
        """Parse the answer in a response; count answers that violate the requested grammar."""
        size = len(request.context.doc_ids)
        answer_text = response.text.rpartition("</think>")[2]
        if (
            request.constrain_to_ranking_of is not None
            and not matches_grammar(answer_text, size)
            and response.finish_reason != "length"
        ):
            stats.repairs["constraint_violated"] += 1
        return _parse_response(response, size, reasoning_closed)


def _parse_response(response: Response, size: int, reasoning_closed: bool = False) -> ParsedAnswer:
    finish_reason = "length" if response.finish_reason == "stopped" else response.finish_reason
    return parse_ranking(
        response.text,
        size,
        reasoning=response.reasoning,
        finish_reason=finish_reason,
        reasoning_closed=reasoning_closed,
    )


def _window_ranking(answer: ParsedAnswer, presented_ids: Sequence[str], window: Window) -> WindowRanking:
    """The answer in terms of ids; what the model did not place follows in the window's order."""
    ranked_ids = frozenset(presented_ids[number - 1] for number in answer.ranked_numbers)
    tiers = [
        tuple(presented_ids[number - 1] for number in tier if number in answer.ranked_numbers) for tier in answer.tiers
    ]
    unranked_tiers = ((doc_id,) for doc_id in window.doc_ids if doc_id not in ranked_ids)
    return WindowRanking((*filter(None, tiers), *unranked_tiers), ranked_ids, answer.is_valid)
