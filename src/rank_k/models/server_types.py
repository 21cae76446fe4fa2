"""The differences between servers with the OpenAI chat API. This module does no I/O.

Everything that Rank-K does differently from server to server is a field of `ServerType`, and `SERVER_TYPES` has one row
per type of server. The functions build request bodies and read responses; `http.py` sends them. Most servers silently
ignore unknown fields, so the effect of a field must be checked on the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from rank_k.models import forced_text, grammar
from rank_k.models.forced_text import Token
from rank_k.types import Request, StreamChunk, Usage

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServerType:
    """How Rank-K communicates with one type of server.

    Attributes:
        name: The name of the server type.
        hosts: Host names of servers of this type.
        owners: Values of `owned_by` in GET /v1/models that identify this type.
        max_tokens: The name of the request field for the token limit.
        extra: Fields to send with every request.
        no_reasoning: Fields to send for an answer without reasoning.
        tokenizes: The name of the field for the text in POST /tokenize; "" if the server has no tokenizer endpoint.
        context: The paths at which an entry of GET /v1/models may contain the context length.
        seed: Whether the server accepts the field `seed`.
        min_p: Whether the server accepts the field `min_p`.
        lists_models: Whether GET /v1/models lists all models that the server accepts.
        keeps_connections: Whether connections can be reused. llama.cpp's server closes them after nearly every
            response, even if the next request may already be on its way.
        budget_path: The path of the request field for the reasoning budget; () if there is none.
        prefill: The forms of prefill that the server supports, best first. "raw" renders the chat template on the
            server, appends the prefill and completes the text. "continue" sends the prefill as an assistant message
            that the model continues.
        continuation: Fields to send with the form "continue".
        grammar: The form in which the server accepts a grammar: "gbnf", "structured", "regex", or "" for none.
        logprobs: Whether the server returns log-probabilities.
        scores_given_text: Whether the server can score a given text: its grammars accept token ids, and it returns the
            probability that a token had before the grammar was applied (see `forced_text.py`).
    """

    name: str
    hosts: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    max_tokens: str = "max_tokens"
    extra: Json = field(default_factory=dict)
    no_reasoning: Json = field(default_factory=dict)
    tokenizes: str = ""
    context: tuple[tuple[str, ...], ...] = (("max_model_len",), ("context_length",), ("context_window",))
    seed: bool = True
    min_p: bool = False
    lists_models: bool = True
    keeps_connections: bool = True
    budget_path: tuple[str, ...] = ()
    prefill: tuple[str, ...] = ()
    continuation: Json = field(default_factory=dict)
    grammar: str = ""
    logprobs: bool = False
    scores_given_text: bool = False


_OPEN_LAST_MESSAGE = {"continue_final_message": True, "add_generation_prompt": False}
_DISABLED_REASONING = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}

SERVER_TYPES = {
    row.name: row
    for row in (
        ServerType(
            "vllm",
            min_p=True,
            owners=("vllm",),
            no_reasoning=_DISABLED_REASONING,
            tokenizes="prompt",
            budget_path=("thinking_token_budget",),
            prefill=("raw", "continue"),
            continuation=_OPEN_LAST_MESSAGE,
            grammar="structured",
            logprobs=True,
        ),
        ServerType(
            "sglang",
            min_p=True,
            owners=("sglang",),
            extra={"separate_reasoning": True},
            no_reasoning=_DISABLED_REASONING,
            tokenizes="prompt",
            budget_path=("custom_params", "thinking_budget"),
            prefill=("continue",),
            continuation=_OPEN_LAST_MESSAGE,
            grammar="regex",
            logprobs=True,
        ),
        ServerType(
            "llamacpp",
            min_p=True,
            owners=("llamacpp",),
            extra={"cache_prompt": True},
            no_reasoning=_DISABLED_REASONING,
            tokenizes="content",
            context=(("meta", "n_ctx"), ("meta", "n_ctx_train")),
            lists_models=False,  # the server accepts any name
            keeps_connections=False,
            budget_path=("thinking_budget_tokens",),
            prefill=("raw", "continue"),
            grammar="gbnf",
            logprobs=True,
            scores_given_text=True,
        ),
        ServerType(
            "deepseek",
            hosts=("api.deepseek.com",),
            no_reasoning={"thinking": {"type": "disabled"}},
            seed=False,
        ),
        ServerType(
            "openrouter",
            min_p=True,
            hosts=("openrouter.ai",),
            extra={"usage": {"include": True}},
            no_reasoning={"reasoning": {"enabled": False}},
            budget_path=("reasoning", "max_tokens"),
            logprobs=True,
        ),
        ServerType(
            "openai",
            hosts=("api.openai.com",),
            max_tokens="max_completion_tokens",
            no_reasoning={"reasoning_effort": "none"},
            logprobs=True,
        ),
        ServerType("plain", lists_models=False),
    )
}


def detect_server_type(url: str, models: Json | None) -> ServerType:
    """Return the type of a server, detected by its host name or its response to GET /v1/models (default: "plain")."""
    host, rows = urlsplit(url).hostname or "", SERVER_TYPES.values()
    by_host = (row for row in rows if any(f".{host}".endswith(f".{name}") for name in row.hosts))
    by_owner = (row for card in model_cards(models) for row in rows if card.get("owned_by") in row.owners)
    return next(chain(by_host, by_owner), SERVER_TYPES["plain"])


def model_cards(models: Json | None) -> list[Json]:
    """Return the entries of a response to GET /v1/models; [] if the response has a different format."""
    entries = models.get("data") if isinstance(models, Mapping) else None
    return [card for card in entries if isinstance(card, Mapping)] if isinstance(entries, list) else []


def context_length(server_type: ServerType, card: Json) -> int | None:
    """Return the context length in tokens that an entry of GET /v1/models states; None if it states none."""
    return next(filter(None, (_token_count(card, *path) for path in server_type.context)), None)


def request_body(server_type: ServerType, model: str, request: Request) -> dict[str, Any]:
    """Return the JSON for POST /v1/chat/completions, without the fields of `STREAMING`.

    A prefill is sent as an assistant message that the model continues (the form "continue").
    """
    messages = [{"role": role, "content": content} for role, content in request.messages]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        **_sampling(server_type, request),
        **server_type.extra,
    }
    if request.prefill:
        messages.append({"role": "assistant", "content": request.prefill})
        body.update(server_type.continuation)
    if request.reasoning is False:
        body.update(server_type.no_reasoning)
    elif request.reasoning_budget is not None and server_type.budget_path:
        _set_at_path(body, server_type.budget_path, request.reasoning_budget)
    if request.logprobs and server_type.logprobs:
        body.update(logprobs=True, top_logprobs=1)
    return body


def completion_body(server_type: ServerType, model: str, request: Request, prompt: str | list[int]) -> dict[str, Any]:
    """Return the JSON for POST /v1/completions, which continues a rendered prompt (the form "raw")."""
    extra = {key: value for key, value in server_type.extra.items() if key == "cache_prompt"}
    body: dict[str, Any] = {"model": model, "prompt": prompt, **_sampling(server_type, request), **extra}
    body["max_tokens"] = body.pop(server_type.max_tokens)
    if request.logprobs and server_type.logprobs:
        body["logprobs"] = 1
    return body


def raw_prompt(request: Request) -> str:
    """Return the prompt before a forced text: the contents of the messages, without a chat template."""
    return "".join(message.content for message in request.messages)


def forced_text_key_body(model: str, request: Request) -> dict[str, Any]:
    """Return the body that the journal stores and uses for the key of the call: the prompt and the forced text."""
    return {"model": model, "prompt": raw_prompt(request), "spelling": request.forced_text}


_NO_ADAPTER: Json = {"lora": [{"id": 0, "scale": 0.0}]}
"""Switches all LoRA adapters off, including those that the list does not contain. Servers ignore an empty list."""


def forced_text_body(model: str, prompt: str, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the JSON for POST /v1/completions that forces `tokens` after `prompt`, with greedy decoding.

    The prompt is not cached, because llama.cpp's rounding depends on the number of tokens that it computes at a time:
    log-probabilities would vary by 0.1 to 0.4 depending on which prompts came before.

    LoRA adapters are switched off, because an adapter that was trained to compare passages no longer estimates
    likelihoods. For example, the log-probability of a query after a passage that answers it is -22 with rank-k-nano's
    adapter and -9 without. Servers without adapters ignore this field.
    """
    constraint = {"grammar": forced_text.gbnf(tokens), "max_tokens": forced_text.max_token_bound(tokens)}
    return {
        "model": model,
        "prompt": prompt,
        **constraint,
        "temperature": 0.0,
        "logprobs": 1,
        "cache_prompt": False,
        **_NO_ADAPTER,
    }


def _sampling(server_type: ServerType, request: Request) -> dict[str, Any]:
    """Return the sampling fields that both endpoints accept."""
    size = request.constrain_to_ranking_of
    fields = {
        server_type.max_tokens: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "min_p": request.min_p if server_type.min_p else None,
        "seed": request.seed if server_type.seed else None,
        "stop": list(request.stop) or None,
        **({} if size is None else _CONSTRAINTS[server_type.grammar](size)),
    }
    return {key: value for key, value in fields.items() if value is not None}


_CONSTRAINTS: Mapping[str, Callable[[int], Json]] = {
    "": lambda size: {},
    "gbnf": lambda size: {"grammar": grammar.ranking_gbnf(size)},
    "structured": lambda size: {"structured_outputs": {"regex": grammar.ranking_regex(size)}},
    "regex": lambda size: {"regex": grammar.ranking_regex(size)},
}
"""The fields that constrain the answer to a ranking of `size` passages, by `ServerType.grammar`."""


def rejects_budget(server_type: ServerType, message: str) -> bool:
    """Return whether a server's error message is about the field of the reasoning budget.

    vLLM without a reasoning parser sends a 400: "thinking_token_budget is set but reasoning_config is not configured".
    """
    return any(key in message for key in server_type.budget_path if key != server_type.max_tokens)


def _set_at_path(body: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        body = body.setdefault(key, {})
    body[path[-1]] = value


def read_logprobs(choice: Json) -> list[tuple[str, float]]:
    """Return (text, log-probability) of the tokens in a choice, in the format of either endpoint."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        return []
    entries = logprobs.get("content")
    if isinstance(entries, list):
        pairs = [(entry.get("token"), entry.get("logprob")) for entry in entries if isinstance(entry, Mapping)]
    elif isinstance(logprobs.get("tokens"), list) and isinstance(logprobs.get("token_logprobs"), list):
        pairs = list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=False))
    else:
        return []
    # vLLM sends -9999 for a probability of 0. With the arguments in this order, NaN becomes -9999.
    return [
        (text, float(min(0.0, max(-9999.0, logprob))))
        for text, logprob in pairs
        if isinstance(text, str) and isinstance(logprob, float | int)
    ]


STREAMING: Json = {"stream": True, "stream_options": {"include_usage": True}}


OPENING = "<think>"


def join_prefill(prompt: str, prefill: str) -> str:
    """Return a rendered prompt followed by a prefill. If both open the reasoning block, keep only one opening."""
    if prompt.rstrip().endswith(OPENING) and prefill.startswith(OPENING):
        return prompt.rstrip() + prefill.removeprefix(OPENING)
    return prompt + prefill


_REASONING_FIELDS = ("reasoning", "reasoning_content")  # vLLM and OpenRouter; SGLang, llama.cpp, DeepSeek


def read_delta(message: Json) -> StreamChunk:
    """Return the reasoning and the text of a `delta` (streaming) or of a `message` (not streaming)."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    text_parts = (_part_text(part) for part in parts if _part_type(part) in ("text", "output_text"))
    text = content if isinstance(content, str) else "".join(text_parts)
    for key in _REASONING_FIELDS:
        if isinstance(value := message.get(key), str) and value:
            return StreamChunk(value, text)
    details = message.get("reasoning_details")
    if isinstance(details, list):
        return StreamChunk("".join(map(_part_text, details)), text)
    reasoning_parts = (_part_text(part) for part in parts if _part_type(part) in ("reasoning", "thinking"))
    return StreamChunk("".join(reasoning_parts), text)


def _part_type(part: Any) -> Any:
    """Return the type of a content part. Some servers, such as Mistral's, send reasoning as a content part."""
    return part.get("type", "text") if isinstance(part, Mapping) else None


def _part_text(part: Any) -> str:
    """Return the text of a content part or reasoning part. A part of type "thinking" contains further parts."""
    if not isinstance(part, Mapping):
        return ""
    text = part.get("text") or part.get("summary") or part.get("thinking")
    if isinstance(text, list):
        text = "".join(item["text"] for item in text if isinstance(item, Mapping) and isinstance(item.get("text"), str))
    return text if isinstance(text, str) else ""


def read_usage(usage: Json | None, reasoning_characters: int, characters: int) -> Usage:
    """Return the token counts of a response, from the server's `usage` if possible.

    If the server does not count reasoning tokens separately, they are estimated: their share of the completion tokens
    is the share of the reasoning in the characters. Without `usage`, completion and reasoning tokens are estimated at
    four characters per token.

    Args:
        usage: The counts as the server sent them; None if it sent none.
        reasoning_characters: The length of the reasoning trace in characters, regardless of the field it is in.
        characters: The length of the whole response in characters, including the reasoning.
    """
    prompt = _token_count(usage, "prompt_tokens") or 0
    completion = _token_count(usage, "completion_tokens")
    if completion is None:
        return Usage(prompt, -(-characters // 4), -(-reasoning_characters // 4), 0, True)
    paths = (("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",))
    counts = (_token_count(usage, *path) for path in paths)
    reasoning = next((count for count in counts if count is not None), 0)
    is_estimated = not reasoning and 0 < reasoning_characters < characters
    if not reasoning and reasoning_characters:
        reasoning = min(max(round(completion * reasoning_characters / characters), 1), completion)
    cached = _token_count(usage, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _token_count(usage, "prompt_cache_hit_tokens")  # DeepSeek
    return Usage(prompt, completion, reasoning, cached or 0, reasoning_estimated=is_estimated)


def _token_count(value: Any, *path: str) -> int | None:
    """Return the number of tokens at `path` in `value`; None if there is no number or it is out of range."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
