"""Rank a window by asking a model to compare its passages, with or without reasoning.

This module also implements forced answers after truncated reasoning, constrained decoding, and repeated samples. The
model is usually a `CachedModel` around a `StopOnRepetition`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rank_k.errors import ContextOverflow, FieldRejected, RequestRejected
from rank_k.models.base import Model
from rank_k.models.grammar import matches_grammar
from rank_k.models.reasoning_trace import CLOSING_MARKER, split_continuation, split_stream
from rank_k.models.run_once import run_once
from rank_k.option_values import ReasoningMode
from rank_k.options import DEFAULT_MAX_TOKENS, InferenceOptions
from rank_k.strategies.base import query_seed
from rank_k.types import (
    Message,
    OnChunk,
    Request,
    RequestContext,
    Response,
    StreamChunk,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.base import WindowRanker, WindowReport
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.prompt import PromptTemplate, default_template
from rank_k.window.prompt_builder import PreparedQuery, PromptBuilder, presented_order
from rank_k.window.reasoning import (
    AutoReasoningPolicy,
    answer_confidence,
    ranking_agreement,
    should_reason,
)
from rank_k.window.sanitize import strip_template_tokens
from rank_k.window.token_allocation import max_answer_tokens, truncate_trace

_SHRINK_FACTOR = 0.8  # by which the assumed context is shortened when the server counts more tokens than Rank-K
_MAX_SHRINKS = 6

_REASONING_START = "<think>\n"
_REASONING_END = "\n</think>\n\n"
_EMPTY_REASONING = "<think>\n\n</think>\n\n"

_FORCED_ANSWER_PROMPT = (
    "Stop here. Going by your notes, give the order now: one line of passage numbers, best first, like"
    " [3] > [2] = [1], and nothing else."
)


@dataclass(frozen=True, kw_only=True)
class ListwiseSettings(InferenceOptions):
    """The inference options, and settings that users cannot change.

    Attributes:
        agreeing_samples: Stop sampling early if the first `agreeing_samples` samples agree.
        auto_policy: Decides when to reason, if `reasoning` is "auto".
        label_words: The labels, worst first, of models that write one relevance label per passage instead of reasoning.
            The labels are then the answer (see `rank_k.window.labels`). Empty for other models.
    """

    agreeing_samples: int = 2
    auto_policy: AutoReasoningPolicy = AutoReasoningPolicy()
    label_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample of a window. Its calls share these values. `context`: the assumed context length in tokens."""

    query: PreparedQuery
    window: Window
    number: int
    context: int
    reasoning: ReasoningMode
    report: WindowReport
    on_chunk: OnChunk | None


class ListwiseRanker(WindowRanker):
    """Rank windows by asking `model` to compare their passages."""

    def __init__(
        self, model: Model, settings: ListwiseSettings = ListwiseSettings(), template: PromptTemplate | None = None
    ) -> None:
        self.model = model
        self.settings = settings
        self.template = template or default_template()
        max_tokens = settings.max_tokens or DEFAULT_MAX_TOKENS
        self.prompt_builder = PromptBuilder(model, self.template, settings.passage_tokens, max_tokens)
        self._reasoning = ReasoningMode.parse(settings.reasoning)
        self._needs_empty_reasoning = run_once(self._probe_reasoning)
        self._accepts_grammar = run_once(self._probe_grammar)
        self._budget_rejected = False  # if True, the token limit replaces the reasoning budget

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Probe once whether the model reasons even if it is requested not to.

        The probe is needed only if `reasoning` (default: that of the settings) is off or auto.
        """
        if (reasoning or self._reasoning).kind in ("off", "auto"):
            await self._needs_empty_reasoning()

    async def _probe_reasoning(self) -> bool:
        """Return whether the model reasons despite `reasoning=False`. A prefill of empty reasoning then prevents it."""
        capabilities = self.model.capabilities
        if not capabilities.reasons or not capabilities.prefill:
            return False
        response = await self._probe("What is two and two? Answer with the number alone.", 64)
        answer = parse_ranking(response.text, 1, reasoning=response.reasoning, finish_reason=response.finish_reason)
        return bool(answer.trace.strip()) or answer.reasoning_truncated

    async def _probe_grammar(self) -> bool:
        """Return whether the server accepts a grammar.

        Models that do not reason are not probed: the embedded server always accepts a grammar, and a probe would evict
        the current prompt from its cache.
        """
        if not self.model.capabilities.reasons:
            return True
        try:
            await self._probe("Put [1] and [2] in any order.", 32, constrain_to_ranking_of=2)
        except RequestRejected as error:
            if error.status in (401, 403):
                raise
            return False
        return True

    async def _probe(self, question: str, max_tokens: int, constrain_to_ranking_of: int | None = None) -> Response:
        request = Request(
            (Message("user", question),),
            max_tokens,
            temperature=0.0,
            reasoning=False,
            constrain_to_ranking_of=constrain_to_ranking_of,
            context=RequestContext(purpose="probe"),
        )
        return await self.model.complete(request)

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """Rank one window. Raises `ModelError` if the model does not respond, but not if its answer is unusable.

        `reasoning`: the reasoning mode (default: that of the settings). Call `prepare(reasoning)` first.
        """
        report = WindowReport.unranked(window)
        mode = reasoning or self._reasoning
        sample = _Sample(prepared_query, window, 0, self.model.context_length, mode, report, on_chunk)
        samples = await self._rank_samples(sample)
        rankings = tuple(ranking for sample_rankings, _ in samples for ranking in sample_rankings)
        report.result = WindowResult(window, rankings)
        report.traces = tuple(trace for _, trace in samples)
        report.repairs = +report.repairs  # removes kinds with a count of zero
        return report

    async def _rank_samples(self, sample: _Sample) -> list[tuple[tuple[WindowRanking, ...], str]]:
        """Rank the window several times in different presented orders; stop early if the first samples agree."""
        first_count, max_count = min(self.settings.agreeing_samples, self.settings.samples), self.settings.samples
        first_samples = (replace(sample, number=number) for number in range(first_count))
        samples = await asyncio.gather(*map(self._rank_sample_in_context, first_samples))
        rankings = [sample_rankings[-1] for sample_rankings, _ in samples]
        if all(ranking.is_valid and ranking.tiers == rankings[0].tiers for ranking in rankings):
            sample.report.repairs["samples_skipped"] += max_count - first_count
            return samples
        remaining_samples = (replace(sample, number=number) for number in range(first_count, max_count))
        return samples + await asyncio.gather(*map(self._rank_sample_in_context, remaining_samples))

    async def _rank_sample_in_context(self, sample: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        """Return the rankings of one sample (two if auto mode reasoned) and its trace.

        While the server rejects the prompt as too long, assume a shorter context and try again.
        """
        for _ in range(_MAX_SHRINKS):
            try:
                return await self._rank_sample(sample)
            except ContextOverflow:
                sample = replace(sample, context=int(sample.context * _SHRINK_FACTOR))
        return await self._rank_sample(sample)

    async def _rank_sample(self, sample: _Sample) -> tuple[tuple[WindowRanking, ...], str]:
        reasoning, repairs = sample.reasoning, sample.report.repairs
        presented_ids = presented_order(sample.query.query.query_id, sample.window.doc_ids, sample.number)
        request = await self._build_request(sample, presented_ids)
        rankings = []
        if reasoning.kind in ("off", "auto"):
            answer, response = await self._rank_without_reasoning(request, sample)
            rankings.append(_window_ranking(answer, presented_ids, sample.window))
            if reasoning.kind == "off" or not await self._should_reason(request, rankings[0], response, sample):
                repairs.update(answer.repairs)
                return tuple(rankings), answer.trace
            repairs["windows_reasoned"] += 1
        answer = await self._rank_with_reasoning(request, reasoning.tokens, sample)
        repairs.update(answer.repairs)
        rankings.append(_window_ranking(answer, presented_ids, sample.window))
        valid_rankings = tuple(ranking for ranking in rankings if ranking.is_valid)
        return valid_rankings or (rankings[-1],), answer.trace

    async def _build_request(self, sample: _Sample, presented_ids: tuple[str, ...]) -> Request:
        query_id = sample.query.query.query_id
        messages, max_tokens = await self.prompt_builder.messages(
            sample.query, presented_ids, sample.context, sample.report.repairs
        )
        return Request(
            messages,
            max_tokens,
            self.settings.temperature,
            self.settings.top_p,
            self.settings.min_p,
            seed=(query_seed(query_id) + sample.number + self.settings.seed) % 2**31,
            sample=sample.number,
            context=RequestContext(query_id, presented_ids),
        )

    # --- without reasoning ---

    async def _rank_without_reasoning(self, request: Request, sample: _Sample) -> tuple[ParsedAnswer, Response]:
        """Request the answer at once."""
        needs_empty_reasoning = await self._needs_empty_reasoning()
        direct_request = replace(
            await self._answer_request(request),
            reasoning=False,
            logprobs=sample.reasoning.kind == "auto" and self.model.capabilities.logprobs,
            prefill=_EMPTY_REASONING if needs_empty_reasoning else "",
        )
        return await self._ask(direct_request, "direct", sample, reasoning_closed=needs_empty_reasoning)

    async def _should_reason(
        self, request: Request, direct_ranking: WindowRanking, response: Response, sample: _Sample
    ) -> bool:
        """Return whether the auto policy decides to reason after the direct ranking.

        The confidence comes from the token probabilities of the response. Without them, it is the agreement with a
        second direct ranking, of the reversed window.
        """
        policy, window = self.settings.auto_policy, sample.window
        if not direct_ranking.is_valid or not should_reason(window, None, policy):
            return not direct_ranking.is_valid
        top_positions = policy.positions_in_top_k(window)
        confidence = answer_confidence(response.tokens or (), len(window.doc_ids), top_positions)
        if confidence is None:
            reversed_ids = tuple(reversed(request.context.doc_ids))
            reversed_request = await self._build_request(sample, reversed_ids)
            reversed_answer, _ = await self._rank_without_reasoning(reversed_request, sample)
            reversed_ranking = _window_ranking(reversed_answer, reversed_ids, window)
            confidence = ranking_agreement(direct_ranking, reversed_ranking, top_positions)
        return should_reason(window, confidence, policy)

    # --- with reasoning ---

    async def _rank_with_reasoning(self, request: Request, tokens: int | None, sample: _Sample) -> ParsedAnswer:
        """Return the answer after at most `tokens` tokens of reasoning (None: unlimited)."""
        capabilities, repairs = self.model.capabilities, sample.report.repairs
        if not capabilities.reasons and capabilities.prefill:
            return await self._rank_with_prefilled_reasoning(request, tokens, sample)
        answer, response = await self._request_reasoning(request, tokens, sample)
        if tokens is not None and response.usage.reasoning_tokens > tokens:
            repairs["budget_exceeded"] += 1
        can_constrain = self.settings.constrained and capabilities.prefill and capabilities.grammar
        budget_ended_answer = tokens is not None and "truncated" in answer.repairs and "missing" in answer.repairs
        if answer.reasoning_truncated:
            repairs["forced_answers"] += 1
        elif answer.trace and (budget_ended_answer or (not answer.is_valid and can_constrain)):
            repairs["answer_requested_again"] += 1
        else:
            return answer
        return await self._force_answer(request, answer, sample)

    async def _request_reasoning(
        self, request: Request, tokens: int | None, sample: _Sample
    ) -> tuple[ParsedAnswer, Response]:
        """Return the response to `request`, its reasoning limited to `tokens` (None: not limited).

        The server's own budget is used if it has one. A server that rejects it (vLLM without a reasoning parser) gets
        `tokens` as the token limit of the whole response instead, and the answer is requested in a second call.
        """
        if tokens is None:
            return await self._ask(request, "ask", sample)
        if self.model.capabilities.reasoning_budget:
            max_tokens = min(tokens + max_answer_tokens(len(sample.window.doc_ids)), request.max_tokens)
            try:
                return await self._ask(replace(request, reasoning_budget=tokens, max_tokens=max_tokens), "ask", sample)
            except FieldRejected:
                self._budget_rejected = True
        sample.report.repairs["budget_rejected"] += self._budget_rejected
        return await self._ask(replace(request, max_tokens=min(tokens, request.max_tokens)), "ask", sample)

    async def _rank_with_prefilled_reasoning(
        self, request: Request, tokens: int | None, sample: _Sample
    ) -> ParsedAnswer:
        """Prefill `<think>`, so that a model reasons that would otherwise answer at once; stop at the budget."""
        size, label_words = len(sample.window.doc_ids), self.settings.label_words
        max_reasoning_tokens = max(request.max_tokens - max_answer_tokens(size), 1)
        reasoning_request = replace(
            request,
            prefill=_REASONING_START,
            stop=("</think>",),
            max_tokens=min(tokens or max_reasoning_tokens, max_reasoning_tokens),
            logprobs=bool(label_words) and self.model.capabilities.logprobs,
        )
        response = await self._call(reasoning_request, "ask", sample)
        trace = split_continuation(reasoning_request.prefill, response).trace
        repairs = {}
        if response.finish_reason != "stop":
            sample.report.repairs["forced_answers"] += 1
            repairs["truncated"] = 1
        if label_words:
            answer = parse_labels(trace, size, label_words, response.tokens)
            if answer.is_valid:
                return replace(answer, repairs={**answer.repairs, **repairs})
        return await self._force_answer(request, ParsedAnswer((), frozenset(), repairs, False, trace), sample)

    async def _force_answer(self, request: Request, truncated_answer: ParsedAnswer, sample: _Sample) -> ParsedAnswer:
        """Force an answer after truncated reasoning.

        The trace is prefilled if the server supports prefills. Otherwise a new turn repeats the trace as notes.
        """
        trace = truncated_answer.trace
        answer = None
        answer_request = await self._answer_request(request)
        if self.model.capabilities.prefill:
            fitting_trace = truncate_trace(trace, request, answer_request.max_tokens, sample.context)
            prefill = f"{_REASONING_START}{strip_template_tokens(fitting_trace)}{_REASONING_END}"
            try:
                answer, _ = await self._ask(replace(answer_request, prefill=prefill), "close", sample, True)
            except RequestRejected as error:
                if not error.is_about_fields:
                    raise
        if answer is None or not answer.is_valid:
            max_tokens = min(request.max_tokens, 1024 + 8 * len(sample.window.doc_ids))  # it may reason again
            fitting_trace = truncate_trace(trace, request, max_tokens, sample.context)
            notes = " ".join(strip_template_tokens(fitting_trace).split())
            new_messages = (Message("assistant", f"My notes so far: {notes}"), Message("user", _FORCED_ANSWER_PROMPT))
            new_turn = replace(
                answer_request, messages=(*request.messages, *new_messages), max_tokens=max_tokens, reasoning=False
            )
            answer, _ = await self._ask(new_turn, "close", sample)
        traces = (trace, answer.trace if answer.trace not in trace else "")
        repairs = Counter(answer.repairs)
        repairs["truncated"] += truncated_answer.repairs.get("truncated", 0)
        return replace(answer, trace="\n".join(filter(None, traces)), repairs=+repairs)

    # --- calls ---

    async def _answer_request(self, request: Request) -> Request:
        """Return `request` for an answer without reasoning: short, and constrained if the server supports grammars."""
        size = len(request.context.doc_ids)
        use_grammar = self.settings.constrained and self.model.capabilities.grammar and await self._accepts_grammar()
        max_tokens = min(request.max_tokens, max_answer_tokens(size))
        return replace(request, max_tokens=max_tokens, constrain_to_ranking_of=size if use_grammar else None)

    async def _ask(
        self, request: Request, purpose: str, sample: _Sample, reasoning_closed: bool = False
    ) -> tuple[ParsedAnswer, Response]:
        """Send a request and parse the answer; count an answer that violates the requested grammar."""
        response = await self._call(request, purpose, sample)
        size = len(request.context.doc_ids)
        if (
            request.constrain_to_ranking_of is not None
            and not matches_grammar(CLOSING_MARKER.split(response.text)[-1], size)
            and response.finish_reason != "length"
        ):
            sample.report.repairs["constraint_violated"] += 1
        answer = parse_ranking(
            response.text,
            size,
            reasoning=response.reasoning,
            finish_reason="length" if response.finish_reason == "stopped" else response.finish_reason,
            reasoning_closed=reasoning_closed,
        )
        return answer, response

    async def _call(self, request: Request, purpose: str, sample: _Sample) -> Response:
        request = replace(request, context=replace(request.context, purpose=purpose))
        on_chunk = sample.on_chunk
        if on_chunk is None:
            response = await self.model.complete(request)
        else:
            separate = split_stream(request.prefill, may_reason=request.reasoning is not False)
            response = await self.model.complete(request, lambda chunk: _pass_on(separate(chunk), on_chunk))
            _pass_on(separate(None), on_chunk)
        sample.report.add_call(request, response)
        return response


def _pass_on(chunk: StreamChunk, on_chunk: OnChunk) -> bool:
    """Call `on_chunk` with `chunk` unless it is empty, and return whether to stop the response."""
    return any(chunk) and bool(on_chunk(chunk))


def _window_ranking(answer: ParsedAnswer, presented_ids: Sequence[str], window: Window) -> WindowRanking:
    """Return the ranking with document ids. Passages that the model did not rank follow in the window's order."""
    ranked_ids = frozenset(presented_ids[number - 1] for number in answer.ranked_numbers)
    tiers = [
        tuple(presented_ids[number - 1] for number in tier if number in answer.ranked_numbers) for tier in answer.tiers
    ]
    unranked_tiers = ((doc_id,) for doc_id in window.doc_ids if doc_id not in ranked_ids)
    return WindowRanking((*filter(None, tiers), *unranked_tiers), ranked_ids, answer.is_valid)
