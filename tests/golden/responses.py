"""The fake model's answers: pure functions of the server type, the behavior and the request body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from tests.golden.data import fraction, pick

MODEL = "golden-model"
FAIL_ONCE = ("busy", "drop", "breaks-after-done")
"""Behaviors that fail the first time a body arrives: status 429, a dropped stream, a connection broken after the last
event."""

REASONING_FIELD = {
    "vllm": "reasoning",
    "sglang": "reasoning_content",
    "llamacpp": "reasoning_content",
    "deepseek": "reasoning_content",
    "openrouter": "reasoning",
}
"""Where a server type puts the reasoning; the others put it into the text, in `<think>` tags."""

_ASSISTANT = "<|assistant|>\n"
_PASSAGE = re.compile(r"^(?:\[(\d+)\]|Passage (\d+):) (?![>=])(.+?)(?: \[\d+\])?$", re.MULTILINE)
_QUERY = re.compile(r"[Qq]ue(?:ry|stion)[ \w]*: (.+)")
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Profile:
    """Which server is played. `behaviors`: what it does differently, such as `truncated`."""

    server_type: str
    behaviors: frozenset[str]

    def card(self) -> dict[str, Any]:
        """The entry in GET /v1/models, as this server type writes it."""
        length = context_length(self)
        owner = {"owned_by": self.server_type if self.server_type in ("vllm", "sglang", "llamacpp") else "someone"}
        if self.server_type in ("vllm", "sglang"):
            return {**owner, "max_model_len": length}
        if self.server_type == "llamacpp":
            return {**owner, "meta": {"n_ctx": length, "n_ctx_train": 2 * length}}
        return {**owner, "context_length": length} if self.server_type == "openrouter" else owner


def context_length(profile: Profile) -> int:
    """Tokens that the server says it has."""
    return 1200 if "small-context" in profile.behaviors else 16_384


@dataclass(frozen=True)
class ModelResponse:
    """One response, before it is put into JSON."""

    profile: Profile
    reasoning: str
    text: str
    finish_reason: str
    prompt_tokens: int
    is_completion: bool
    tokens: Sequence[tuple[str, float]] = field(default=())

    def usage(self) -> dict[str, Any]:
        """Token counts, as this server type writes them."""
        reasoning, text = _tokens_in(self.reasoning), _tokens_in(self.text)
        usage: dict[str, Any] = {"prompt_tokens": self.prompt_tokens, "completion_tokens": reasoning + text}
        if self.profile.server_type in ("vllm", "openrouter", "openai"):
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
            usage["prompt_tokens_details"] = {"cached_tokens": 16}
        if self.profile.server_type == "deepseek":
            usage["prompt_cache_hit_tokens"] = 32
        return usage

    def body(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish_reason}
        if self.is_completion:
            choice["text"] = self.text
        else:
            choice["message"] = {"role": "assistant", **self._message_fields(self.reasoning, self.text)}
        return {"id": "reply", "choices": [choice], "usage": self.usage()}

    def events(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The data of the server-sent events."""
        for piece in _pieces(self.reasoning):
            yield self._event(piece, "", None)
        if self.tokens:
            for token, probability in self.tokens:
                content = [{"token": token, "logprob": probability}]
                yield self._event("", token, {"content": content})
        else:
            for piece in _pieces(self.text):
                yield self._event("", piece, None)
        last: dict[str, Any] = {"index": 0, "finish_reason": self.finish_reason}
        last["text" if self.is_completion else "delta"] = "" if self.is_completion else {}
        yield {"id": "reply", "choices": [last]}
        if self.profile.server_type != "plain" and (body.get("stream_options") or {}).get("include_usage"):
            yield {"id": "reply", "choices": [], "usage": self.usage()}

    def _event(self, reasoning: str, text: str, logprobs: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if self.is_completion:
            choice["text"] = reasoning + text
        else:
            choice["delta"] = self._message_fields(reasoning, text)
        if logprobs:
            choice["logprobs"] = logprobs
        return {"id": "reply", "choices": [choice]}

    def _message_fields(self, reasoning: str, text: str) -> dict[str, Any]:
        name = REASONING_FIELD.get(self.profile.server_type)
        if name is None or "inline" in self.profile.behaviors:
            return {"content": reasoning + text}
        return {"content": text or None} | ({name: reasoning} if reasoning else {})


@dataclass(frozen=True)
class Question:
    """What a request asks: its text, the passages in it, and the beginning of the answer that it gives."""

    text: str
    prefill: str
    turns: int
    passages: tuple[str, ...]

    @property
    def query(self) -> str:
        """The query's text, as the prompt repeats it."""
        matches = _QUERY.findall(self.text)
        return str(matches[-1]) if matches else ""

    def tiers(self) -> list[list[int]]:
        """The fake model's ranking: by words shared with the query, then by a coarse hash, so that ties occur."""
        words = set(self.query.casefold().split())

        def score(number: int) -> int:
            passage = self.passages[number - 1]
            return 3 * len(words & set(passage.casefold().rstrip(".").split())) + int(3 * fraction("score", passage))

        numbers = sorted(range(1, len(self.passages) + 1), key=lambda number: (-score(number), number))
        return [list(tier) for _, tier in groupby(numbers, key=score)]


def question_of(body: Mapping[str, Any]) -> Question:
    """Read a chat request, or a completion request for a rendered chat."""
    if "messages" not in body:
        prompt = body["prompt"] if isinstance(body["prompt"], str) else decode_tokens(body["prompt"])
        text, separator, prefill = prompt.rpartition(_ASSISTANT)
        return Question(text, prefill, 1, _numbered_passages(text)) if separator else Question(prompt, "", 1, ())
    messages = list(body["messages"])
    prefill = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    text = "\n".join(message["content"] for message in messages)
    turns = sum(message["role"] == "user" for message in messages)
    return Question(text, prefill, turns, _numbered_passages(text))


def rejection(profile: Profile, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Status and body of the error with which a request is refused, if it is."""
    behaviors, server_type = profile.behaviors, profile.server_type
    begins = path == "/v1/completions" or body.get("continue_final_message") or _ends_open(body)
    if "logprobs" in body and isinstance(body.get("grammar"), str) and "<[" in body["grammar"]:
        begins = False  # a query to be spelled, not a prefill
    is_constrained = any(key in body for key in ("grammar", "regex", "structured_outputs"))
    message = ""
    if "no-prefill" in behaviors and begins:
        message = "the last message must be a user's"
    elif "no-grammar" in behaviors and is_constrained:
        message = "structured outputs are switched off"
    elif "no-budget" in behaviors and ("thinking_token_budget" in body or "custom_params" in body):
        message = "thinking_token_budget needs --reasoning-config"
    elif "content-filter" in behaviors and fraction("filter", question_of(body).text) < 0.5:
        message = "content filter: the request was rejected"
    elif "small-context" in behaviors and _prompt_tokens(body) + int(body.get("max_tokens", 0)) > 800:
        message = "This model's maximum context length is 800 tokens. Please reduce the length of the messages."
    elif server_type in ("deepseek", "openrouter", "openai", "plain") and path != "/v1/chat/completions":
        return 404, {"error": {"message": "Not Found"}}
    return (400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}) if message else None


def response_to(profile: Profile, path: str, body: Mapping[str, Any]) -> ModelResponse:
    """The response to a chat or completion request."""
    is_completion = path == "/v1/completions"
    if is_completion and "<[" in str(body.get("grammar", "")):
        return _spell_query(profile, body)
    question = question_of(body)
    reasoning = "" if _is_direct(profile, question, body) else _reasoning(profile, question, body)
    answer = _answer(profile, question, body)
    if "</think>" in (body.get("stop") or ()):
        reasoning, answer = "", _write_labels(question) if body.get("logprobs") else _reasoning(profile, question, body)
    if reasoning and (profile.server_type not in REASONING_FIELD or "inline" in profile.behaviors):
        opening = "" if question.prefill.startswith("<think>") or "missing-open" in profile.behaviors else "<think>\n"
        reasoning = f"{opening}{reasoning}\n</think>\n\n"
    limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 10**9)
    finish = "stop"
    if "truncated" in profile.behaviors and reasoning and fraction("truncated", question.text) < 0.6:
        limit = min(limit, _tokens_in(reasoning) // 2)
    if limit < _tokens_in(reasoning):
        reasoning, answer, finish = reasoning[: limit * _CHARACTERS_PER_TOKEN], "", "length"
    elif limit < _tokens_in(reasoning) + _tokens_in(answer):
        answer, finish = answer[: (limit - _tokens_in(reasoning)) * _CHARACTERS_PER_TOKEN], "length"
    tokens: list[tuple[str, float]] = []
    if body.get("logprobs"):
        doubt = 0.02 if fraction("certain", profile.server_type, question.text) < 0.5 else 0.7
        pieces = re.findall(r"\s*[^\s\[\]]+|\s*[\[\]]", answer)
        tokens = [(piece, -doubt * fraction("token", piece, question.text)) for piece in pieces]
        answer = "".join(token for token, _ in tokens)
    return ModelResponse(profile, reasoning, answer, finish, _prompt_tokens(body), is_completion, tokens)


def token_response(profile: Profile, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and body of POST /tokenize and POST /apply-template."""
    if profile.server_type not in ("vllm", "sglang", "llamacpp") or "no-tokenize" in profile.behaviors:
        return 404, {"error": {"message": "Not Found"}}
    opening = "<think>\n" if "opens-reasoning" in profile.behaviors else ""
    if path == "/apply-template":
        if profile.server_type != "llamacpp":
            return 404, {"error": {"message": "Not Found"}}
        return 200, {"prompt": _render_messages(body["messages"]) + opening}
    if "messages" in body:
        text = _render_messages(body["messages"]) + opening
    else:
        text = body["prompt"] if "prompt" in body else body["content"]
    pieces = _byte_pieces(text)
    if not body.get("with_pieces"):
        return 200, {"tokens": [_token_id(piece) for piece in pieces], "count": len(pieces)}
    return 200, {"tokens": [{"id": _token_id(piece), "piece": _piece_text(piece)} for piece in pieces]}


# --- What the fake model writes -------------------------------------------------------------------

_PHRASES = (
    "The query wants an explanation. Passage [{a}] seems close to it, although [{b}] uses similar words.",
    "Perhaps [{b}] > [{a}], but that is only a first impression and needs another comparison with the rest.",
    "On reflection the details in [{a}] matter more than the style of [{b}], which stays rather general.",
    "Nothing in [{b}] contradicts [{a}]; the remaining passages look much weaker in this respect.",
)


def _reasoning(profile: Profile, question: Question, body: Mapping[str, Any]) -> str:
    size = max(len(question.passages), 1)
    if "loops" in profile.behaviors:
        return "Wait, let me compare [2] with [1] again, since it might be better than [1].\n" * 120
    count = 2 + int(3 * fraction("length", question.text))
    text = "\n".join(
        pick(_PHRASES, "phrase", number, question.text).format(
            a=1 + int(size * fraction("a", number, question.text)),
            b=1 + int(size * fraction("b", number, question.text)),
        )
        for number in range(count)
    )
    budget = body.get("thinking_token_budget", (body.get("custom_params") or {}).get("thinking_budget"))
    budget = body.get("thinking_budget_tokens", (body.get("reasoning") or {}).get("max_tokens", budget))
    if isinstance(budget, int) and "budget-ignored" not in profile.behaviors:
        text = text[: budget * _CHARACTERS_PER_TOKEN]
    return text


def _answer(profile: Profile, question: Question, body: Mapping[str, Any]) -> str:
    tiers = question.tiers()
    if not tiers:
        return "Four."
    if "unsure" in profile.behaviors:
        shift = int(len(tiers) * fraction("unsure", question.text))
        tiers = [*tiers[shift:], *tiers[:shift]]
    ranking = " > ".join(" = ".join(f"[{number}]" for number in tier) for tier in tiers)
    is_constrained = any(key in body for key in ("grammar", "regex", "structured_outputs"))
    if "malformed" not in profile.behaviors or (is_constrained and "</think>" in question.prefill):
        return ranking
    numbers = [number for tier in tiers for number in tier]
    variants = (
        f"Of the {len(numbers)} passages the best come first: {', '.join(map(str, numbers))}",
        "\n".join(f"{place}. [{number}]" for place, number in enumerate(numbers, 1)),
        json.dumps({"ranking": numbers}),
        f"[{numbers[0]}] > [{numbers[0]}] > [99] > [{numbers[-1]}]",
        "I am sorry, but I cannot help with that request.",
        f"</think>\n\n{ranking}",
        f"**{ranking}**\n\nI hope this helps!",
    )
    return pick(variants, "malformed", question.text)


def _write_labels(question: Question) -> str:
    """One word per passage, as rank-k-nano writes its reasoning."""
    words = ("no", "partly", "yes")
    lines = (f"[{n}] {pick(words, 'verdict', text)}" for n, text in enumerate(question.passages, 1))
    return "\n".join(lines) + "\n"


def _spell_query(profile: Profile, body: Mapping[str, Any]) -> ModelResponse:
    """The text that the grammar prescribes token by token, with log-probabilities."""
    pieces: list[str] = []
    for number, literal in re.findall(r'<\[(\d+)\]>|"([^"]*)"', body["grammar"]):
        written = re.sub(r"\\U(.{8})", lambda match: chr(int(match[1], 16)), literal)
        pieces.append(decode_tokens([int(number)]) if number else written)
    prompt = str(body["prompt"])
    tokens = [(piece, -0.1 - 3 * fraction("likelihood", piece, prompt)) for piece in pieces]
    return ModelResponse(profile, "", "".join(pieces), "stop", _prompt_tokens(body), True, tokens)


def _is_direct(profile: Profile, question: Question, body: Mapping[str, Any]) -> bool:
    """Whether the request asks for the answer without reasoning."""
    if question.turns > 1 or "</think>" in question.prefill:
        return True
    if "always-reasons" in profile.behaviors:
        return False
    template = body.get("chat_template_kwargs") or {}
    switches = (
        template.get("enable_thinking") is False,
        body.get("thinking") == {"type": "disabled"},
        (body.get("reasoning") or {}).get("enabled") is False,
        body.get("reasoning_effort") == "none",
    )
    return any(switches)


# --- Text and tokens ------------------------------------------------------------------------------


def _numbered_passages(text: str) -> tuple[str, ...]:
    best: list[str] = []
    current: list[str] = []
    for match in _PASSAGE.finditer(text):
        number = int(match[1] or match[2])
        if number == 1:
            current = []
        if number == len(current) + 1:
            current.append(match[3])
        if len(current) > len(best):
            best = current
    return tuple(best)


def _ends_open(body: Mapping[str, Any]) -> bool:
    return bool(body.get("messages")) and body["messages"][-1]["role"] == "assistant"


def _render_messages(messages: Sequence[Mapping[str, str]]) -> str:
    return "".join(f"<|{message['role']}|>\n{message['content']}\n" for message in messages) + _ASSISTANT


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    if "messages" in body:
        return sum(_tokens_in(message["content"]) for message in body["messages"])
    return len(body["prompt"]) if isinstance(body["prompt"], list) else _tokens_in(body["prompt"])


def _tokens_in(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _pieces(text: str) -> list[str]:
    return [text[start : start + 31] for start in range(0, len(text), 31)]


def _byte_pieces(text: str) -> list[bytes]:
    """Tokens: words and their leading blank in runs of at most 5 bytes, which may end within a character."""
    words = re.findall(r" ?\w+| ?[^\w\s]|\s", text)
    return [raw[at : at + 5] for raw in (word.encode() for word in words) for at in range(0, len(raw), 5)]


def _token_id(piece: bytes) -> int:
    return int.from_bytes(b"\1" + piece, "big")


def _piece_text(piece: bytes) -> Any:
    """The text of a token; its bytes where it ends within a character, as llama.cpp writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def decode_tokens(ids: Sequence[int]) -> str:
    """The text of tokens of this server."""
    raw = b"".join(number.to_bytes((number.bit_length() + 7) // 8, "big")[1:] for number in ids)
    return raw.decode("utf-8", "replace")
