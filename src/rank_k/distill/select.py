"""Select training rows from the journal.

A trace is *usable* if its ranking is complete and needed no parse repairs, if its reasoning is neither truncated nor
repetitive, and if the length of the reasoning is within the given range. A *rule* selects among the usable traces of a
set:

    paper   the first trace; the trace whose prompt presents the passages in the order of the set comes first
    best    the trace that agrees best with the judgments or, if the set has no relevant passage, with the consensus of
            the traces of the set; if tied, the shortest
    short   the shortest trace among those whose agreement is at least the set's mean and whose length is below the
            set's mean; there may be none ("Stop Overthinking", arXiv 2605.14450)
    all     all traces
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import takewhile
from statistics import fmean
from typing import Any

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.near_duplicates import (
    CONTAMINATION_SIMILARITY,
    DUPLICATE_SIMILARITY,
    NearDuplicateIndex,
    normalize_text,
)
from rank_k.evaluation.measures import ndcg
from rank_k.journal import Call, Journal
from rank_k.models.reasoning_trace import split_continuation, stored_prefill
from rank_k.strategies.aggregate import consensus_ranking
from rank_k.types import Window, WindowRanking, WindowResult
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.reasoning import ranking_agreement
from rank_k.window.repetition import repetition_detector
from rank_k.window.sanitize import strip_template_tokens

RULES = ("paper", "short", "best", "all")


@dataclass(frozen=True, slots=True)
class Trace:
    """A usable trace: the answer of a teacher to a candidate set.

    Args:
        teacher: The name of the model.
        prompt: The messages of the prompt.
        doc_ids: The ids of the passages, in the order in which the prompt presents them.
        reasoning: The text of the reasoning.
        tiers: The ranking: groups of tied passages, best group first. A passage is given by its position, from 1.
        reasoning_tokens: The estimated length of the reasoning in tokens.
        ndcg: nDCG@10 of the ranking; None if the set has no relevant passage.
    """

    teacher: str
    prompt: tuple[Mapping[str, str], ...]
    doc_ids: tuple[str, ...]
    reasoning: str
    tiers: tuple[tuple[int, ...], ...]
    reasoning_tokens: int
    ndcg: float | None

    @property
    def completion(self) -> str:
        """The completion for training: the reasoning, if any, and the ranking, in the format that a reranker parses."""
        ranking = " > ".join(" = ".join(f"[{number}]" for number in tier) for tier in self.tiers)
        return f"<think>\n{self.reasoning}\n</think>\n\n{ranking}" if self.reasoning else ranking


def tier_ndcg(tiers: Iterable[Sequence[int]]) -> float | None:
    """Return the nDCG@10 of a ranking with ties; None if no grade is above 0.

    Each position of a tier counts with the mean gain of the tier. The result is the expected nDCG@10 over all ways to
    break the ties (McSherry and Najork 2008). It does not depend on the order in which passages were presented.

    Args:
        tiers: The grades of the passages in each tier, best tier first.
    """
    tier_gains = [[max(grade, 0) for grade in tier] for tier in tiers]
    gains = [gain for tier in tier_gains for gain in tier]
    return ndcg([fmean(tier) for tier in tier_gains for _ in tier], gains) if any(gains) else None


# --- reading the journal ---


def group_samples(calls: Iterable[Call]) -> list[list[Call]]:
    """Return the calls of a set grouped by sample: the first call and, if any, the call that requests a forced answer.

    Several samples may present the passages in the same order, and calls may finish in any order. A forced answer
    belongs to the sample whose reasoning its prompt repeats. If there are several such samples, it belongs to the one
    with the same seed, if requests have seeds.
    """
    grouped: list[list[Call]] = []
    for call in calls:
        matching_samples = [
            sample for sample in grouped if (sample[0].doc_ids, sample[0].model) == (call.doc_ids, call.model)
        ]
        if call.purpose == "close" and matching_samples:
            max(reversed(matching_samples), key=lambda sample: _match_score(call, sample)).append(call)
        else:
            grouped.append([call])
    return grouped


_REASONING_TAIL = 200
"""The number of characters at the end of the reasoning that are compared. Its beginning may have been truncated."""


def _match_score(forced_answer_call: Call, sample: Sequence[Call]) -> tuple[bool, bool, bool]:
    """Return how well a forced answer fits a sample: same reasoning, same seed, no forced answer yet (True: better)."""
    request, first_request = forced_answer_call.request, sample[0].request
    prompt_words = [word for message in request.get("messages", ()) for word in str(message["content"]).split()]
    reasoning = " ".join(strip_template_tokens(_reasoning_text(sample[0])).split())
    return (
        reasoning[-_REASONING_TAIL:] in " ".join(prompt_words),
        first_request.get("seed") == request.get("seed"),
        len(sample) == 1,
    )


def _reasoning_text(call: Call) -> str:
    """Return the reasoning of a response. It may be part of the text or a separate field."""
    return split_continuation(stored_prefill(call.request), call.response).trace


def parse_sample(calls: Sequence[Call]) -> ParsedAnswer | str:
    """Return the parsed answer of a sample, or the reason why it is not usable."""
    first_call, last_response = calls[0], calls[-1].response
    finish_reason, passage_count = first_call.response.finish_reason, len(first_call.doc_ids)
    if not passage_count or "messages" not in first_call.request:
        return "not_recorded"
    if finish_reason == "stopped":
        return "repetition_stopped"
    is_prefilled = "</think>" in (first_call.request.get("stop") or ())  # a second call requests the answer
    if is_prefilled != (len(calls) > 1) or (is_prefilled and finish_reason != "stop"):
        return "truncated"
    answer = parse_ranking(
        last_response.text,
        passage_count,
        reasoning=last_response.reasoning,
        finish_reason=last_response.finish_reason,
        reasoning_closed=is_prefilled,
    )
    if not answer.is_valid:
        return "truncated" if answer.reasoning_truncated else "unranked"
    if answer.repairs:
        return "repaired"
    trace = _reasoning_text(first_call) if is_prefilled else answer.trace
    is_repetitive = repetition_detector(passage_count)(trace) is not None
    return "repetition_stopped" if is_repetitive else replace(answer, trace=trace)


# --- rules ---


def apply_rule(rule: str, traces: Sequence[Trace]) -> list[Trace]:
    """Return the traces of a set that `rule` (one of `RULES`) selects."""
    if rule == "all":
        return list(traces)
    if rule == "paper":
        return [*traces[:1]]
    qualities = trace_qualities(traces)
    if rule == "best":
        best = max(range(len(traces)), key=lambda i: (qualities[i], -traces[i].reasoning_tokens, -i))
        return [traces[best]]
    min_quality = fmean(qualities) - 1e-9  # rounding can make the mean of equal numbers larger than these numbers
    mean_length = fmean(trace.reasoning_tokens for trace in traces)
    candidates = [
        trace
        for trace, quality in zip(traces, qualities, strict=True)
        if quality >= min_quality and trace.reasoning_tokens < mean_length
    ]
    return sorted(candidates, key=lambda trace: trace.reasoning_tokens)[:1]


def trace_qualities(traces: Sequence[Trace]) -> list[float]:
    """Return the quality of each trace of a set, from 0 to 1.

    It is the nDCG@10 of the trace or, if the set has no relevant passage, its agreement with the consensus.
    """
    ndcgs = [trace.ndcg for trace in traces if trace.ndcg is not None]
    if len(ndcgs) == len(traces):
        return ndcgs
    rankings = tuple(
        WindowRanking(
            tuple(tuple(trace.doc_ids[number - 1] for number in tier) for tier in trace.tiers),
            frozenset(trace.doc_ids),
            True,
        )
        for trace in traces
    )
    window = Window(traces[0].doc_ids, (1, len(traces[0].doc_ids)))
    consensus = consensus_ranking(WindowResult(window, rankings))
    return [ranking_agreement(ranking, consensus) for ranking in rankings]


# --- selection ---


@dataclass(slots=True)
class Selector:
    """Selects training rows from a journal.

    Skips a set with the same query and passages as an earlier set, and a query that nearly duplicates an earlier query
    with a different id. This takes about 1 KB of memory per query.

    Args:
        rule: The rule that selects among the traces of a set; one of `RULES`.
        grades: Relevance judgments by query id (default: the grades that the sets contain).
        set_ids: The ids of the sets to read (default: all sets).
        token_range: The minimum and maximum number of reasoning tokens.
        min_ndcg: The minimum nDCG@10 of a trace. It does not apply to sets without a relevant passage.
        excluded_queries: Queries to leave out, such as evaluation queries. Their near duplicates are left out, too.
        counts: The number of sets and traces for each outcome.
    """

    rule: str = "paper"
    grades: Mapping[str, Mapping[str, int]] | None = None
    set_ids: frozenset[str] | None = None
    token_range: tuple[int, int | None] = (0, None)
    min_ndcg: float = 0.0
    excluded_queries: NearDuplicateIndex = field(default_factory=lambda: NearDuplicateIndex(CONTAMINATION_SIMILARITY))
    counts: Counter[str] = field(default_factory=Counter)
    _query_index: NearDuplicateIndex = field(default_factory=lambda: NearDuplicateIndex(DUPLICATE_SIMILARITY))
    _set_hashes: set[bytes] = field(default_factory=set)

    def rows(self, journal: Journal) -> Iterator[dict[str, Any]]:
        """Yield training rows in the format of TRL, in the order in which the sets were stored in the journal."""
        for metadata, keys in journal.sets_with_calls():
            if self.set_ids is not None and metadata["set_id"] not in self.set_ids:
                continue
            self.counts["sets"] += 1
            if (reason := self._exclusion_reason(metadata)) is not None:
                self.counts[reason] += 1
                continue
            traces = self._usable_traces(metadata, filter(None, map(journal.find_call, keys)))
            selected = apply_rule(self.rule, traces) if traces else []
            self.counts.update(without_trace=not traces, not_by_rule=len(traces) - len(selected), rows=len(selected))
            if selected:
                self._remember_set(metadata)
            for trace in selected:
                yield self._training_row(metadata, trace)

    def _exclusion_reason(self, metadata: Mapping[str, Any]) -> str | None:
        """Return the reason why a set is left out, or None if it is not. Does not need the calls of the set."""
        query = metadata["query"]
        if self.excluded_queries.find(query) is not None:
            return "contaminated"
        if _set_hash(metadata) in self._set_hashes:
            return "repeated_sets"
        if self._query_index.find(query) not in (None, _query_name(metadata)):
            return "near_queries"
        return None

    def _remember_set(self, metadata: Mapping[str, Any]) -> None:
        """Remember a set that produced rows. Its later duplicates are then left out."""
        self._set_hashes.add(_set_hash(metadata))
        if self._query_index.find(metadata["query"]) is None:
            self._query_index.add(metadata["query"], _query_name(metadata))

    def _usable_traces(self, metadata: Mapping[str, Any], calls: Iterable[Call]) -> list[Trace]:
        """Return the usable traces of a set. Those that present the passages in the order of the set come first."""
        grades = metadata["grades"] if self.grades is None else self.grades.get(metadata["query_id"])
        set_order = tuple(metadata["doc_ids"])
        traces = []
        for sample in sorted(group_samples(calls), key=lambda calls: (calls[0].doc_ids != set_order, calls[0].doc_ids)):
            self.counts["traces"] += 1
            trace = self._read_trace(sample, grades or {})
            if isinstance(trace, str):
                self.counts[trace] += 1
            else:
                traces.append(trace)
        return traces

    def _read_trace(self, sample: Sequence[Call], grades: Mapping[str, int]) -> Trace | str:
        """Return the trace of a sample, or the reason why it is not usable."""
        answer, call = parse_sample(sample), sample[0]
        if isinstance(answer, str):
            return answer
        reasoning = strip_template_tokens(answer.trace).strip()
        tokens, (min_tokens, max_tokens) = estimate_tokens(reasoning), self.token_range
        if tokens < min_tokens:
            return "too_short"
        if max_tokens is not None and tokens > max_tokens:
            return "too_long"
        trace_ndcg = tier_ndcg([[grades.get(call.doc_ids[number - 1], 0) for number in tier] for tier in answer.tiers])
        if trace_ndcg is not None and trace_ndcg < self.min_ndcg:
            return "below_ndcg"
        # An assistant message at the end is the beginning of the answer (a prefill), not part of the prompt.
        prompt = tuple(takewhile(lambda message: message["role"] != "assistant", call.request["messages"]))
        return Trace(call.model, prompt, call.doc_ids, reasoning, answer.tiers, tokens, trace_ndcg)

    def _training_row(self, metadata: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
        return {
            "prompt": list(trace.prompt),
            "completion": [{"role": "assistant", "content": trace.completion}],
            "set_id": metadata["set_id"],
            "query_id": metadata["query_id"],
            "query": metadata["query"],
            "doc_ids": list(trace.doc_ids),
            "teacher": trace.teacher,
            "rule": self.rule,
            "ndcg": trace.ndcg,
            "source": metadata["source"],
            "license": metadata["license"],
        }


def _query_name(metadata: Mapping[str, Any]) -> str:
    return repr((metadata["source"], metadata["query_id"]))


def _set_hash(metadata: Mapping[str, Any]) -> bytes:
    """Return a hash that is equal for two sets with the same query and the same passages in any order."""
    content = repr((normalize_text(metadata["query"]), sorted(metadata["doc_ids"])))
    return sha256(content.encode("utf-8", "surrogatepass")).digest()


def is_heldout(query_id: str, source: str, share: float, seed: int = 0) -> bool:
    """Return whether a query is in the `share` held out from training. Only its id, source and `seed` matter."""
    digest = sha256(f"{seed}|{source}|{query_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
