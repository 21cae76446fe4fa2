"""The journal -> what is worth learning from, as rows of prompt and completion.

A trace is *usable* if it ends in a complete order of its own accord: nothing mended, no thought cut or going in
circles, a length within bounds. Of a set's usable traces a *rule* keeps some:

    paper   the first one, which was shown the set's own order
    best    the one that agrees best with the judgments, or where the set has no relevant passage with the consensus of
            its traces; the shorter of equals
    short   of those that agree at least as well as the set's mean and are shorter than its mean, the shortest; a set
            may have none ("Stop Overthinking", arXiv 2605.14450)
    all     every one
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import takewhile
from statistics import fmean
from typing import Any

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.near_duplicates import DUPLICATE_SIMILARITY, NearDuplicateIndex, normalize_text
from rank_k.journal import Call, Journal
from rank_k.strategies.aggregate import consensus_ranking
from rank_k.types import Window, WindowRanking, WindowResult
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.reasoning import ranking_agreement
from rank_k.window.repetition import RepetitionDetector
from rank_k.window.sanitize import strip_template_tokens

NDCG_CUTOFF = 10
"""Of nDCG: the order's first ten."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One usable answer to a set. `doc_ids`: ids in the order shown; `tiers`: their numbers, best first;
    `reasoning_tokens`: estimated length of the reasoning; `ndcg`: None where the set has no relevant passage."""

    teacher: str
    prompt: tuple[Mapping[str, str], ...]
    doc_ids: tuple[str, ...]
    reasoning: str
    tiers: tuple[tuple[int, ...], ...]
    reasoning_tokens: int
    ndcg: float | None

    @property
    def ranking(self) -> WindowRanking:
        tiers = tuple(tuple(self.doc_ids[number - 1] for number in tier) for tier in self.tiers)
        return WindowRanking(tiers, frozenset(self.doc_ids), True)

    @property
    def completion(self) -> str:
        """The completion for training: the reasoning, if there is one, and the ranking, as a reranker parses them."""
        ranking = " > ".join(" = ".join(f"[{number}]" for number in tier) for tier in self.tiers)
        return f"<think>\n{self.reasoning}\n</think>\n\n{ranking}" if self.reasoning else ranking


def ndcg(tiers: Iterable[Sequence[int]], cutoff: int = NDCG_CUTOFF) -> float | None:
    """nDCG of an order given as the grades of its tiers, best tier first; None where no grade is above 0.

    Linear gains and log2 discounts (Järvelin and Kekäläinen 2002), as everywhere in the package. Members of a tier
    share its places: each place counts with their mean gain, the expected value over the ways to break the tie
    (McSherry and Najork 2008), so that an order is worth the same however the passages were shown.
    """
    tier_gains = [[max(grade, 0) for grade in tier] for tier in tiers]
    ideal_gains = sorted((gain for tier in tier_gains for gain in tier), reverse=True)
    if not ideal_gains or not ideal_gains[0]:
        return None
    expected_gains = [fmean(tier) for tier in tier_gains for _ in tier]
    return _dcg(expected_gains[:cutoff]) / _dcg(ideal_gains[:cutoff])


def _dcg(gains: Iterable[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


# --- reading the journal ---


def group_samples(calls: Iterable[Call]) -> list[list[Call]]:
    """Return the calls of a set grouped by sample: the request, and the forced answer to it, if any.

    Samples may show the same order and finish in any order: a forced answer belongs to the sample whose reasoning it
    repeats, and among several such samples to the one with its seed, where requests have seeds.
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
"""Characters at the end of the reasoning that are compared: its beginning may have been truncated."""


def _match_score(forced_answer_call: Call, sample: Sequence[Call]) -> tuple[bool, bool, bool]:
    """Return how well a forced answer fits a sample: by its reasoning, its seed, and whether an answer is missing."""
    first_call = sample[0]
    prompt_text = " ".join(
        " ".join(str(message["content"]) for message in forced_answer_call.request.get("messages", ())).split()
    )
    reasoning = " ".join(strip_template_tokens(_reasoning_text(first_call)).split())
    return (
        reasoning[-_REASONING_TAIL:] in prompt_text,
        first_call.request.get("seed") == forced_answer_call.request.get("seed"),
        len(sample) == 1,
    )


def _reasoning_text(call: Call) -> str:
    """Return the reasoning of a response, whether it is part of the text or separate."""
    return (
        ((call.response.reasoning or "") + call.response.text).partition("</think>")[0].replace("<think>", "").strip()
    )


def parse_sample(calls: Sequence[Call]) -> ParsedAnswer | str:
    """Return the answer of one sample, or the reason why it cannot be learned from."""
    first_call, passage_count = calls[0], len(calls[0].doc_ids)
    response = first_call.response
    if not passage_count or "messages" not in first_call.request:
        return "not_recorded"
    if response.finish_reason == "stopped":
        return "repetition_stopped"
    if "</think>" in (first_call.request.get("stop") or ()):  # prefilled reasoning, with a forced answer
        if response.finish_reason != "stop" or len(calls) == 1:
            return "truncated"
        reasoning = _reasoning_text(first_call)
        last_response = calls[-1].response
        answer = parse_ranking(
            last_response.text,
            passage_count,
            reasoning=last_response.reasoning,
            finish_reason=last_response.finish_reason,
            reasoning_closed=True,
        )
        answer = ParsedAnswer(answer.tiers, answer.ranked_numbers, answer.repairs, answer.is_valid, reasoning)
    elif len(calls) > 1:
        return "truncated"
    else:
        answer = parse_ranking(
            response.text, passage_count, reasoning=response.reasoning, finish_reason=response.finish_reason
        )
    if not answer.is_valid:
        return "truncated" if answer.reasoning_truncated else "unranked"
    if answer.repairs:
        return "repaired"
    return "repetition_stopped" if RepetitionDetector(passage_count).feed(answer.trace) else answer


# --- rules ---


def _paper_rule(traces: Sequence[Trace], quality: Sequence[float]) -> list[int]:
    return [0]


def _best_rule(traces: Sequence[Trace], quality: Sequence[float]) -> list[int]:
    return [max(range(len(traces)), key=lambda i: (quality[i], -traces[i].reasoning_tokens, -i))]


def _short_rule(traces: Sequence[Trace], quality: Sequence[float]) -> list[int]:
    min_quality = fmean(quality) - 1e-9  # a mean of equal numbers may lie a little above them
    mean_length = fmean(trace.reasoning_tokens for trace in traces)
    candidates = [
        i for i, trace in enumerate(traces) if quality[i] >= min_quality and trace.reasoning_tokens < mean_length
    ]
    return sorted(candidates, key=lambda i: (traces[i].reasoning_tokens, i))[:1]


def _all_rule(traces: Sequence[Trace], quality: Sequence[float]) -> list[int]:
    return list(range(len(traces)))


RULES: dict[str, Callable[[Sequence[Trace], Sequence[float]], list[int]]] = {
    "paper": _paper_rule,
    "short": _short_rule,
    "best": _best_rule,
    "all": _all_rule,
}


def trace_qualities(traces: Sequence[Trace]) -> list[float]:
    """How well each trace of a set agrees: its nDCG, or where there is none, with the consensus of all (0 to 1)."""
    ndcgs = [trace.ndcg for trace in traces if trace.ndcg is not None]
    if len(ndcgs) == len(traces):
        return ndcgs
    rankings = tuple(trace.ranking for trace in traces)
    window = Window(traces[0].doc_ids, (1, len(traces[0].doc_ids)))
    consensus = consensus_ranking(WindowResult(window, rankings))
    return [ranking_agreement(ranking, consensus) for ranking in rankings]


# --- selecting ---


@dataclass(slots=True)
class Selector:
    """Selects from a journal. `counts` has the number of sets and traces for each outcome.

    `grades`: judgments by query id, instead of those of the sets. `set_ids`: the sets to read. `token_range`: minimum
    and maximum number of reasoning tokens. `min_ndcg`: of traces of sets with a relevant passage. `excluded_queries`:
    queries that must not be trained on. A query nearly the same as one of another id met before, and a set of the
    same query and passages, are left out; for that about 1 KB is remembered of each query.
    """

    rule: str = "paper"
    grades: Mapping[str, Mapping[str, int]] | None = None
    set_ids: frozenset[str] | None = None
    token_range: tuple[int, int | None] = (0, None)
    min_ndcg: float = 0.0
    excluded_queries: NearDuplicateIndex | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _query_index: NearDuplicateIndex = field(default_factory=lambda: NearDuplicateIndex(DUPLICATE_SIMILARITY))
    _query_keys: set[tuple[str, str]] = field(default_factory=set)
    _set_hashes: set[bytes] = field(default_factory=set)

    def rows(self, journal: Journal) -> Iterator[dict[str, Any]]:
        """The rows of prompt and completion, as TRL takes them, in the order in which the sets were traced."""
        for metadata, keys in journal.sets_with_calls():
            if self.set_ids is not None and metadata["set_id"] not in self.set_ids:
                continue
            self.counts["sets"] += 1
            if (reason := self._exclusion_reason(metadata)) is not None:
                self.counts[reason] += 1
                continue
            traces = self._usable_traces(
                metadata, (call for key in keys if (call := journal.find_call(key)) is not None)
            )
            if not traces:
                self.counts["without_trace"] += 1
                continue
            selected = [traces[i] for i in RULES[self.rule](traces, trace_qualities(traces))]
            if selected:
                self._remember_set(metadata)
            self.counts["not_by_rule"] += len(traces) - len(selected)
            self.counts["rows"] += len(selected)
            yield from (self._training_row(metadata, trace) for trace in selected)

    def _exclusion_reason(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a set is left out unread."""
        query = metadata["query"]
        if self.excluded_queries is not None and self.excluded_queries.find(query) is not None:
            return "contaminated"
        if _set_hash(metadata) in self._set_hashes:
            return "repeated_sets"
        if (metadata["source"], metadata["query_id"]) not in self._query_keys and self._query_index.find(
            query
        ) is not None:
            return "near_queries"
        return None

    def _remember_set(self, metadata: Mapping[str, Any]) -> None:
        """A set that gave a row: the next one like it is left out. One that gave none stands in no other's way."""
        self._set_hashes.add(_set_hash(metadata))
        query_key = (metadata["source"], metadata["query_id"])
        if query_key not in self._query_keys:
            self._query_keys.add(query_key)
            self._query_index.add(metadata["query"], metadata["query_id"])

    def _usable_traces(self, metadata: Mapping[str, Any], calls: Iterable[Call]) -> list[Trace]:
        grades = metadata["grades"] if self.grades is None else self.grades.get(metadata["query_id"])
        traces = []
        set_order = tuple(metadata["doc_ids"])
        # the one that showed the set's own order first: which one was finished first is chance
        for sample in sorted(
            group_samples(calls), key=lambda sample: (sample[0].doc_ids != set_order, sample[0].doc_ids)
        ):
            self.counts["traces"] += 1
            answer = parse_sample(sample)
            if isinstance(answer, str):
                self.counts[answer] += 1
                continue
            trace = _build_trace(sample[0], answer, grades or {})
            if (reason := self._rejection_reason(trace)) is not None:
                self.counts[reason] += 1
                continue
            traces.append(trace)
        return traces

    def _rejection_reason(self, trace: Trace) -> str | None:
        min_tokens, max_tokens = self.token_range
        if trace.reasoning_tokens < min_tokens:
            return "too_short"
        if max_tokens is not None and trace.reasoning_tokens > max_tokens:
            return "too_long"
        return "below_ndcg" if trace.ndcg is not None and trace.ndcg < self.min_ndcg else None

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


def _set_hash(metadata: Mapping[str, Any]) -> bytes:
    """What two sets of the same query and passages have in common."""
    content = repr((normalize_text(metadata["query"]), sorted(metadata["doc_ids"])))
    return sha256(content.encode("utf-8", "surrogatepass")).digest()


def _build_trace(call: Call, answer: ParsedAnswer, grades: Mapping[str, int]) -> Trace:
    reasoning = strip_template_tokens(answer.trace).strip()
    trace_ndcg = ndcg([[grades.get(call.doc_ids[number - 1], 0) for number in tier] for tier in answer.tiers])
    return Trace(
        call.model,
        _prompt_messages(call),
        call.doc_ids,
        reasoning,
        answer.tiers,
        estimate_tokens(reasoning),
        trace_ndcg,
    )


def _prompt_messages(call: Call) -> tuple[Mapping[str, str], ...]:
    """The messages as asked, without the beginning of an answer that some teachers are given."""
    return tuple(takewhile(lambda message: message["role"] != "assistant", call.request["messages"]))


def is_heldout(query_id: str, source: str, share: float, seed: int = 0) -> bool:
    """Whether a query belongs to the `share` that is kept from training: decided by its id alone."""
    digest = sha256(f"{seed}|{source}|{query_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
