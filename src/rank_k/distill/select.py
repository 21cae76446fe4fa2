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
from rank_k.distill.near_duplicates import REPEATED, NearDuplicateIndex, normalized
from rank_k.journal import Call, Journal
from rank_k.strategies.aggregate import consensus
from rank_k.types import Window, WindowRanking, WindowResult
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from rank_k.window.reasoning import agreement
from rank_k.window.repetition import RepetitionTracker
from rank_k.window.sanitize import strip_template_tokens

CUT = 10
"""Of nDCG: the order's first ten."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One usable answer to a set. `shown`: ids in the order shown; `tiers`: their numbers, best first; `length` of
    the thought in tokens, estimated; `ndcg`: None where the set has no relevant passage."""

    teacher: str
    prompt: tuple[Mapping[str, str], ...]
    shown: tuple[str, ...]
    thought: str
    tiers: tuple[tuple[int, ...], ...]
    length: int
    ndcg: float | None

    @property
    def order(self) -> WindowRanking:
        tiers = tuple(tuple(self.shown[number - 1] for number in tier) for tier in self.tiers)
        return WindowRanking(tiers, frozenset(self.shown), True)

    @property
    def completion(self) -> str:
        """What the student is to say: the thought, if there is one, and the order, as a reranker reads them."""
        ranking = " > ".join(" = ".join(f"[{number}]" for number in tier) for tier in self.tiers)
        return f"<think>\n{self.thought}\n</think>\n\n{ranking}" if self.thought else ranking


def ndcg(tiers: Iterable[Sequence[int]], cut: int = CUT) -> float | None:
    """nDCG of an order given as the grades of its tiers, best tier first; None where no grade is above 0.

    Linear gains and log2 discounts (Järvelin and Kekäläinen 2002), as everywhere in the package. Members of a tier
    share its places: each place counts with their mean gain, the expected value over the ways to break the tie
    (McSherry and Najork 2008), so that an order is worth the same however the passages were shown.
    """
    gains = [[max(grade, 0) for grade in tier] for tier in tiers]
    ideal = sorted((gain for tier in gains for gain in tier), reverse=True)
    if not ideal or not ideal[0]:
        return None
    expected = [fmean(tier) for tier in gains for _ in tier]
    return _dcg(expected[:cut]) / _dcg(ideal[:cut])


def _dcg(gains: Iterable[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))


# --- reading the journal ---


def samples(calls: Iterable[Call]) -> list[list[Call]]:
    """The calls of a set, those of one look at it together: the question, and what was asked again to end it.

    Looks may show the same order and end in any order: what was asked again belongs to the look whose thought it
    carries, and of several such ones to that of its seed, where the model was given one.
    """
    found: list[list[Call]] = []
    for call in calls:
        looks = [look for look in found if (look[0].doc_ids, look[0].model) == (call.doc_ids, call.model)]
        if call.purpose == "close" and looks:
            max(reversed(looks), key=lambda look: _belongs(call, look)).append(call)
        else:
            found.append([call])
    return found


_END = 200
"""Characters of a thought's end by which it is known again: its beginning may have been left out for want of room."""


def _belongs(close: Call, look: Sequence[Call]) -> tuple[bool, bool, bool]:
    """How well `close` fits to a look: by its thought, its seed, and whether it lacks an end yet."""
    first = look[0]
    said = " ".join(" ".join(str(message["content"]) for message in close.request.get("messages", ())).split())
    thought = " ".join(strip_template_tokens(_thought(first)).split())
    return thought[-_END:] in said, first.request.get("seed") == close.request.get("seed"), len(look) == 1


def _thought(call: Call) -> str:
    """The thought in a reply that was begun for the model, or that the model has apart."""
    return (
        ((call.response.reasoning or "") + call.response.text).partition("</think>")[0].replace("<think>", "").strip()
    )


def read_sample(calls: Sequence[Call]) -> ParsedAnswer | str:
    """The answer of one look at a set, or why it is not one to learn from."""
    first, size = calls[0], len(calls[0].doc_ids)
    reply = first.response
    if not size or "messages" not in first.request:
        return "not_told"
    if reply.finish_reason == "stopped":
        return "repetition_stopped"
    if "</think>" in (first.request.get("stop") or ()):  # the thought was begun for the model, its answer asked for
        if reply.finish_reason != "stop" or len(calls) == 1:
            return "cut"
        thought = _thought(first)
        last = calls[-1].response
        answer = parse_ranking(
            last.text, size, reasoning=last.reasoning, finish_reason=last.finish_reason, reasoning_closed=True
        )
        answer = ParsedAnswer(answer.tiers, answer.ranked_numbers, answer.repairs, answer.is_valid, thought)
    elif len(calls) > 1:
        return "cut"
    else:
        answer = parse_ranking(reply.text, size, reasoning=reply.reasoning, finish_reason=reply.finish_reason)
    if not answer.is_valid:
        return "cut" if answer.reasoning_truncated else "unranked"
    if answer.repairs:
        return "repaired"
    return "repetition_stopped" if RepetitionTracker(size).feed(answer.trace) else answer


# --- rules ---


def _paper(traces: Sequence[Trace], worth: Sequence[float]) -> list[int]:
    return [0]


def _best(traces: Sequence[Trace], worth: Sequence[float]) -> list[int]:
    return [max(range(len(traces)), key=lambda i: (worth[i], -traces[i].length, -i))]


def _short(traces: Sequence[Trace], worth: Sequence[float]) -> list[int]:
    least = fmean(worth) - 1e-9  # a mean of equal numbers may lie a little above them
    below = fmean(trace.length for trace in traces)
    found = [i for i, trace in enumerate(traces) if worth[i] >= least and trace.length < below]
    return sorted(found, key=lambda i: (traces[i].length, i))[:1]


def _all(traces: Sequence[Trace], worth: Sequence[float]) -> list[int]:
    return list(range(len(traces)))


RULES: dict[str, Callable[[Sequence[Trace], Sequence[float]], list[int]]] = {
    "paper": _paper,
    "short": _short,
    "best": _best,
    "all": _all,
}


def worth_of(traces: Sequence[Trace]) -> list[float]:
    """How well each trace of a set agrees: its nDCG, or where there is none, with the consensus of all (0 to 1)."""
    known = [trace.ndcg for trace in traces if trace.ndcg is not None]
    if len(known) == len(traces):
        return known
    orders = tuple(trace.order for trace in traces)
    middle = consensus(WindowResult(Window(traces[0].shown, (1, len(traces[0].shown))), orders))
    return [agreement(order, middle) for order in orders]


# --- selecting ---


@dataclass(slots=True)
class Selector:
    """Selects from a journal. `counts` says of each set and trace what became of it.

    `grades`: judgments by query id, instead of those the sets came with. `only`: ids of the sets to take. `lengths`:
    the least and most tokens of a thought. `least_ndcg`: of traces of sets with a relevant passage. `excluded`:
    queries that must not be trained on. A query nearly the same as one of another id met before, and a set of the
    same query and passages, are left out; for that about 1 KB is remembered of each query.
    """

    rule: str = "paper"
    grades: Mapping[str, Mapping[str, int]] | None = None
    only: frozenset[str] | None = None
    lengths: tuple[int, int | None] = (0, None)
    least_ndcg: float = 0.0
    excluded: NearDuplicateIndex | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _met: NearDuplicateIndex = field(default_factory=lambda: NearDuplicateIndex(REPEATED))
    _queries: set[tuple[str, str]] = field(default_factory=set)
    _sets: set[bytes] = field(default_factory=set)

    def rows(self, journal: Journal) -> Iterator[dict[str, Any]]:
        """The rows of prompt and completion, as TRL takes them, in the order in which the sets were traced."""
        for facts, keys in journal.traced_sets():
            if self.only is not None and facts["set_id"] not in self.only:
                continue
            self.counts["sets"] += 1
            if (reason := self._why_not(facts)) is not None:
                self.counts[reason] += 1
                continue
            traces = self._usable(facts, (call for key in keys if (call := journal.call(key)) is not None))
            if not traces:
                self.counts["without_trace"] += 1
                continue
            kept = [traces[i] for i in RULES[self.rule](traces, worth_of(traces))]
            if kept:
                self._remember(facts)
            self.counts["not_by_rule"] += len(traces) - len(kept)
            self.counts["rows"] += len(kept)
            yield from (self._row(facts, trace) for trace in kept)

    def _why_not(self, facts: Mapping[str, Any]) -> str | None:
        """Why a set is left out unread."""
        query = facts["query"]
        if self.excluded is not None and self.excluded.find(query) is not None:
            return "contaminated"
        if _same(facts) in self._sets:
            return "repeated_sets"
        if (facts["source"], facts["query_id"]) not in self._queries and self._met.find(query) is not None:
            return "near_queries"
        return None

    def _remember(self, facts: Mapping[str, Any]) -> None:
        """A set that gave a row: the next one like it is left out. One that gave none stands in no other's way."""
        self._sets.add(_same(facts))
        owner = (facts["source"], facts["query_id"])
        if owner not in self._queries:
            self._queries.add(owner)
            self._met.add(facts["query"], facts["query_id"])

    def _usable(self, facts: Mapping[str, Any], calls: Iterable[Call]) -> list[Trace]:
        grades = facts["grades"] if self.grades is None else self.grades.get(facts["query_id"])
        found = []
        own = tuple(facts["doc_ids"])
        # the one that showed the set's own order first: which one was finished first is chance
        for sample in sorted(samples(calls), key=lambda sample: (sample[0].doc_ids != own, sample[0].doc_ids)):
            self.counts["traces"] += 1
            answer = read_sample(sample)
            if isinstance(answer, str):
                self.counts[answer] += 1
                continue
            trace = _trace(sample[0], answer, grades or {})
            if (reason := self._out_of_bounds(trace)) is not None:
                self.counts[reason] += 1
                continue
            found.append(trace)
        return found

    def _out_of_bounds(self, trace: Trace) -> str | None:
        least, most = self.lengths
        if trace.length < least:
            return "too_short"
        if most is not None and trace.length > most:
            return "too_long"
        return "below_ndcg" if trace.ndcg is not None and trace.ndcg < self.least_ndcg else None

    def _row(self, facts: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
        return {
            "prompt": list(trace.prompt),
            "completion": [{"role": "assistant", "content": trace.completion}],
            "set_id": facts["set_id"],
            "query_id": facts["query_id"],
            "query": facts["query"],
            "doc_ids": list(trace.shown),
            "teacher": trace.teacher,
            "rule": self.rule,
            "ndcg": trace.ndcg,
            "source": facts["source"],
            "license": facts["license"],
        }


def _same(facts: Mapping[str, Any]) -> bytes:
    """What two sets of the same query and passages have in common."""
    told = repr((normalized(facts["query"]), sorted(facts["doc_ids"])))
    return sha256(told.encode("utf-8", "surrogatepass")).digest()


def _trace(call: Call, answer: ParsedAnswer, grades: Mapping[str, int]) -> Trace:
    thought = strip_template_tokens(answer.trace).strip()
    found = ndcg([[grades.get(call.doc_ids[number - 1], 0) for number in tier] for tier in answer.tiers])
    return Trace(call.model, _question(call), call.doc_ids, thought, answer.tiers, estimate_tokens(thought), found)


def _question(call: Call) -> tuple[Mapping[str, str], ...]:
    """The messages as asked, without the beginning of an answer that some teachers are given."""
    return tuple(takewhile(lambda message: message["role"] != "assistant", call.request["messages"]))


def held_out(query_id: str, source: str, share: float, seed: int = 0) -> bool:
    """Whether a query belongs to the `share` that is kept from training: decided by its id alone."""
    told = sha256(f"{seed}|{source}|{query_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(told[:8], "big") < share * 2**64
