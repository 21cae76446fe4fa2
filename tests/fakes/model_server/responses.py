"""The text of one response: reasoning, answer, and how many of their tokens are sent. No I/O."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import hash_fraction, mark_relevance, oracle_tiers, response_tokens


@dataclass(frozen=True, slots=True)
class ScriptedResponse:
    """A response as tokens. `sent_tokens` of them are sent; the token limit truncates the rest."""

    reasoning: list[str]
    answer: list[str]
    sent_tokens: int

    @property
    def finish_reason(self) -> str:
        return "stop" if self.sent_tokens == len(self.reasoning) + len(self.answer) else "length"

    def text(self, start: int, end: int) -> tuple[str, str]:
        """Reasoning and answer from token `start` to before token `end`."""
        shift = len(self.reasoning)
        return (
            "".join(self.reasoning[start:end]),
            "".join(self.answer[max(0, start - shift) : max(0, end - shift)]),
        )


def _answer_tokens(plan: FaultPlan, marks: Sequence[str], window: str, constrained: bool) -> list[str]:
    """The answer as tokens; if `constrained` by a grammar, it is always well formed."""
    tiers = oracle_tiers(marks)
    if not marks:
        text = "Hello there."
    elif not constrained and plan.strikes("garbage", window):
        text = "I am sorry, but I cannot help with that request."
    elif not constrained and plan.strikes("prose", window):
        listed = ", ".join(str(i) for tier in tiers for i in tier)
        text = f"Of the {len(marks)} passages, the 3 best answer the question directly: {listed}"
    else:
        text = " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in tiers)
    return re.findall(r"\S+\s*", text)


_FILLER_WORDS = [f"{a}{b}{c}" for a in ("ka", "mo", "ti", "su", "re") for b in ("l", "n", "st", "v") for c in "aeiou"]
"""So many words that the reasoning does not repeat itself."""


def _reasoning_tokens(plan: FaultPlan, marks: Sequence[str], window: str, length: int) -> list[str]:
    """`length` tokens that mention passages, and even orders of them, at random: none is the answer."""
    rng = random.Random(window)
    opening = ["<think>\n"] if plan.quirk == "inline" else []
    closing = ["\n</think>\n\n"] if plan.quirk in ("inline", "missing_open") else []
    word_count = length - len(opening) - len(closing)
    words: list[str] = []
    if plan.trap == "repetition_stopped":
        words = re.findall(r"\S+\s", "Wait, let me think about [2] again, since it might be better than [1].\n")
        words = (words * (word_count // len(words) + 1))[:word_count]
    while len(words) < word_count:
        for number in rng.sample(range(1, len(marks) + 1), len(marks)) or [0]:
            other = rng.randint(1, len(marks) or 1)
            filler = " ".join(rng.choices(_FILLER_WORDS, k=rng.randint(6, 14)))
            first, second = rng.choice(_FILLER_WORDS), rng.choice(_FILLER_WORDS)
            phrase = f"{filler} [{number}] {first} [{number}] > [{other}], {second} — naïve?\n"
            words += re.findall(r"\S+\s", phrase)
    return [*opening, *words[:word_count], *closing]


def forced_response(plan: FaultPlan, window: str, tokens: list[str]) -> ScriptedResponse:
    """A text that the grammar prescribes, unless this window is to be misspelt or truncated."""
    if plan.strikes("garbage", window):
        tokens = [token.swapcase() for token in tokens]
    sent_tokens = len(tokens) // 2 if plan.strikes("cut", window) else len(tokens)
    return ScriptedResponse([], tokens, sent_tokens)


def forced_log_probability(mark: str, token: str) -> float:
    """The log-probability of a token of the query behind a passage: the better the passage, the higher."""
    return -100.0 + mark_relevance(mark) - 0.001 * hash_fraction(token)


def compose_response(plan: FaultPlan, marks: tuple[str, ...], window: str, body: Mapping[str, Any]) -> ScriptedResponse:
    if "forced_text" in body:
        return forced_response(plan, window, body["forced_text"])
    constrained = plan.can("grammar") and any(key in body for key in ("grammar", "regex", "structured_outputs"))
    answer = _answer_tokens(plan, marks, window, constrained)
    switches = body.get("chat_template_kwargs") or {}
    answers_directly = plan.quirk == "none" or switches.get("enable_thinking", switches.get("thinking")) is False
    prefill = str(body.get("prefill") or "")
    if plan.trap == "always_thinks" and plan.quirk != "none" and "</think>" not in prefill:
        answers_directly = False
    elif _has_earlier_turns(body) or "</think>" in prefill:
        answers_directly = True
    if answers_directly:
        reasoning = []
        if plan.trap == "two_ends" and "</think>" in prefill:
            answer = ["</think>\n\n", *answer]
    else:
        length = response_tokens(marks) if marks else 40
        if plan.trap == "repetition_stopped":
            length = 100_000
        budget = body.get("thinking_token_budget")
        if plan.can("budget") and isinstance(budget, int):
            length = min(length, budget + len(answer))
        reasoning = _reasoning_tokens(plan, marks, window, max(length - len(answer), 3))
        if prefill.startswith("<think>") and reasoning and reasoning[0].startswith("<think>"):
            reasoning = reasoning[1:]
    if "</think>" in (body.get("stop") or ()):
        reasoning = [token for token in reasoning if "</think>" not in token]
        answer = []
    sent_tokens = min(len(reasoning) + len(answer), requested_max_tokens(body) or sys.maxsize)
    if reasoning and plan.strikes("cut", window):
        sent_tokens = min(sent_tokens, 2 + int((len(reasoning) - 2) * hash_fraction("where", window)))
    return ScriptedResponse(reasoning, answer, sent_tokens)


def requested_max_tokens(body: Mapping[str, Any]) -> int | None:
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit


def render_chat(messages: Iterable[Mapping[str, Any]]) -> str:
    """Messages in this server's chat template, which is JSON, and the beginning of the assistant's turn."""
    return f"{json.dumps(list(messages))}\n<|assistant|>\n"


def token_ids(text: str) -> list[int]:
    """Return the token ids of `text`, four characters a token."""
    return [int.from_bytes(text[i : i + 4].encode("utf-32-be", "surrogatepass"), "big") for i in range(0, len(text), 4)]


def decode_tokens(ids: Iterable[int]) -> str:
    """The text whose `token_ids` are `ids`."""
    pieces = (i.to_bytes(16, "big").decode("utf-32-be", "surrogatepass") for i in ids)
    return "".join(piece.lstrip("\0") for piece in pieces)


def _has_earlier_turns(body: Mapping[str, Any]) -> bool:
    """Whether the order is asked for in a later turn."""
    return len([message for message in body["messages"] if message.get("role") != "system"]) > 1


def count_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    return sum(len(str(message.get("content") or "")) for message in messages) // 4
