"""The table of servers: for each what is sent, and what is read, whatever shape a reply has."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.models import grammar
from rank_k.models.server_types import (
    SERVER_TYPES,
    completion_body,
    context_length,
    detect_server_type,
    join_prefill,
    model_cards,
    read_delta,
    read_logprobs,
    read_usage,
    request_body,
)
from rank_k.types import Message, Request, RequestContext, StreamChunk, Usage

MESSAGES = (Message("system", "S"), Message("user", "U"))
SENT_MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
NO_REASONING = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
OPEN_LAST_MESSAGE = {"continue_final_message": True, "add_generation_prompt": False}
PLAIN_BODY = {"model": "m", "messages": SENT_MESSAGES, "max_tokens": 100, "temperature": 0.5}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
hostile_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def hostile_objects(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these keys, or some of them, and anything inside that has such keys again."""
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=4),
        max_leaves=12,
    )
    return st.dictionaries(st.sampled_from(keys), values | st.just(10**400), max_size=len(keys))


# --- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("plain", {}),
        ("vllm", {}),
        ("sglang", {"separate_reasoning": True}),
        ("llamacpp", {"cache_prompt": True}),
        ("deepseek", {}),
        ("openrouter", {"usage": {"include": True}}),
    ],
)
def test_request_body_of_a_plain_request(name: str, changes: dict[str, Any]) -> None:
    assert request_body(SERVER_TYPES[name], "m", Request(MESSAGES, 100)) == PLAIN_BODY | changes


def test_request_body_uses_max_completion_tokens_for_openai() -> None:
    expected = {"model": "m", "messages": SENT_MESSAGES, "max_completion_tokens": 100, "temperature": 0.5}
    assert request_body(SERVER_TYPES["openai"], "m", Request(MESSAGES, 100)) == expected
    assert "max_completion_tokens" not in completion_body(SERVER_TYPES["openai"], "m", Request(MESSAGES, 100), "p")


@pytest.mark.parametrize("name", SERVER_TYPES)
def test_request_body_contains_sampling_options(name: str) -> None:
    request = Request(MESSAGES, 100, temperature=None, top_p=0.9, min_p=0.1, seed=7, stop=("</think>", "\n\n"))
    body = request_body(SERVER_TYPES[name], "m", request)
    assert "temperature" not in body
    assert body["top_p"] == 0.9
    assert body.get("seed") == (None if name == "deepseek" else 7)
    assert body.get("min_p") == (0.1 if name in ("vllm", "sglang", "llamacpp", "openrouter") else None)
    assert body["stop"] == ["</think>", "\n\n"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vllm", NO_REASONING),
        ("sglang", NO_REASONING),
        ("llamacpp", NO_REASONING),
        ("deepseek", {"thinking": {"type": "disabled"}}),
        ("openrouter", {"reasoning": {"enabled": False}}),
        ("openai", {"reasoning_effort": "none"}),
        ("plain", {}),
    ],
)
def test_request_body_disables_reasoning(name: str, changes: dict[str, Any]) -> None:
    row = SERVER_TYPES[name]
    plain = request_body(row, "m", Request(MESSAGES, 100))
    assert request_body(row, "m", Request(MESSAGES, 100, reasoning=False)) == plain | changes
    assert request_body(row, "m", Request(MESSAGES, 100, reasoning=True)) == plain
    assert request_body(row, "m", Request(MESSAGES, 100, reasoning=False, reasoning_budget=50)) == plain | changes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vllm", {"thinking_token_budget": 50}),
        ("sglang", {"custom_params": {"thinking_budget": 50}}),
        ("llamacpp", {"thinking_budget_tokens": 50}),
        ("openrouter", {"reasoning": {"max_tokens": 50}}),
        ("deepseek", {}),
        ("openai", {}),
        ("plain", {}),
    ],
)
def test_request_body_sends_the_reasoning_budget_where_supported(name: str, changes: dict[str, Any]) -> None:
    row = SERVER_TYPES[name]
    assert bool(row.budget_path) == bool(changes)
    plain = request_body(row, "m", Request(MESSAGES, 100))
    assert request_body(row, "m", Request(MESSAGES, 100, reasoning_budget=50)) == plain | changes


@pytest.mark.parametrize(
    ("name", "continuation"), [("vllm", OPEN_LAST_MESSAGE), ("sglang", OPEN_LAST_MESSAGE), ("llamacpp", {})]
)
def test_request_body_sends_a_prefill_as_an_open_message(name: str, continuation: dict[str, Any]) -> None:
    row = SERVER_TYPES[name]
    assert "continue" in row.prefill
    body = request_body(row, "m", Request(MESSAGES, 100, prefill="<think>\nSo"))
    assert body.pop("messages") == [*SENT_MESSAGES, {"role": "assistant", "content": "<think>\nSo"}]
    plain = request_body(row, "m", Request(MESSAGES, 100))
    assert body == {key: value for key, value in plain.items() if key != "messages"} | continuation


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vllm", {"structured_outputs": {"regex": grammar.ranking_regex(3)}}),
        ("sglang", {"regex": grammar.ranking_regex(3)}),
        ("llamacpp", {"grammar": grammar.ranking_gbnf(3)}),
        ("deepseek", {}),
        ("openrouter", {}),
        ("openai", {}),
        ("plain", {}),
    ],
)
def test_request_body_sends_the_grammar_in_the_server_format(name: str, changes: dict[str, Any]) -> None:
    row = SERVER_TYPES[name]
    assert bool(row.grammar) == bool(changes)
    plain, constrained = Request(MESSAGES, 100), Request(MESSAGES, 100, constrain_to_ranking_of=3)
    assert request_body(row, "m", constrained) == request_body(row, "m", plain) | changes
    assert completion_body(row, "m", constrained, "p") == completion_body(row, "m", plain, "p") | changes


@pytest.mark.parametrize("name", SERVER_TYPES)
def test_request_body_requests_logprobs_where_supported(name: str) -> None:
    row, request = SERVER_TYPES[name], Request(MESSAGES, 100, logprobs=True)
    fields = {"logprobs": True, "top_logprobs": 1} if row.logprobs else {}
    plain = Request(MESSAGES, 100)
    assert request_body(row, "m", request) == request_body(row, "m", plain) | fields
    fields = {"logprobs": 1} if row.logprobs else {}
    assert completion_body(row, "m", request, "p") == completion_body(row, "m", plain, "p") | fields
    assert row.logprobs == (name in ("vllm", "sglang", "llamacpp", "openrouter", "openai"))


def test_completion_body_has_a_prompt_and_no_messages() -> None:
    request = Request(MESSAGES, 100, seed=3, stop=("x",), reasoning=False, reasoning_budget=5)
    expected = {"model": "m", "prompt": "rendered", "max_tokens": 100, "temperature": 0.5, "seed": 3, "stop": ["x"]}
    assert completion_body(SERVER_TYPES["vllm"], "m", request, "rendered") == expected
    assert completion_body(SERVER_TYPES["llamacpp"], "m", request, [1, 2]) == expected | {
        "prompt": [1, 2],
        "cache_prompt": True,
    }
    assert completion_body(SERVER_TYPES["sglang"], "m", request, "rendered") == expected


def test_request_body_does_not_change_the_table() -> None:
    original_fields = copy.deepcopy(
        {name: (row.extra, row.no_reasoning, row.continuation) for name, row in SERVER_TYPES.items()}
    )
    for row in SERVER_TYPES.values():
        for reasoning in (None, False):
            request = Request(
                MESSAGES,
                100,
                reasoning=reasoning,
                reasoning_budget=9,
                prefill="p",
                constrain_to_ranking_of=2,
                logprobs=True,
                seed=1,
                stop=("s",),
            )
            body = request_body(row, "m", request)
            assert json.loads(json.dumps(body)) == body  # plain JSON
    assert {
        name: (row.extra, row.no_reasoning, row.continuation) for name, row in SERVER_TYPES.items()
    } == original_fields


@pytest.mark.parametrize("name", SERVER_TYPES)
def test_request_body_omits_the_request_context(name: str) -> None:
    context = RequestContext("query-id-37", ("doc-id-11",))
    for sample in (0, 3):
        request = Request(MESSAGES, 100, context=context, sample=sample)
        assert request_body(SERVER_TYPES[name], "m", request) == request_body(
            SERVER_TYPES[name], "m", Request(MESSAGES, 100)
        )


def test_server_types_are_keyed_by_name() -> None:
    assert set(SERVER_TYPES) == {"vllm", "sglang", "llamacpp", "deepseek", "openrouter", "openai", "plain"}
    assert all(row.name == name for name, row in SERVER_TYPES.items())


# --- recognizing servers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "owner", "name"),
    [
        ("http://localhost:8000/v1", "vllm", "vllm"),
        ("http://localhost:30000/v1", "sglang", "sglang"),
        ("http://127.0.0.1:8080", "llamacpp", "llamacpp"),
        ("https://api.deepseek.com/v1", None, "deepseek"),
        ("https://openrouter.ai/api/v1", None, "openrouter"),
        ("https://api.openai.com/v1", "system", "openai"),
        ("https://API.OpenAI.com:443/v1", None, "openai"),
        ("https://eu.api.openai.com/v1", None, "openai"),
        ("https://api.openai.com/v1", "vllm", "openai"),  # the host knows best
        ("https://api.openai.com.example.org/v1", None, "plain"),
        ("https://notopenrouter.ai/api/v1", None, "plain"),
        ("http://localhost:8000/v1", "somebody", "plain"),
        ("http://localhost:8000/v1", None, "plain"),
    ],
)
def test_detect_server_type_checks_host_then_owner(url: str, owner: str | None, name: str) -> None:
    models = None if owner is None else {"object": "list", "data": [{"id": "m", "owned_by": owner}]}
    assert detect_server_type(url, models).name == name


def test_detect_server_type_reads_every_model_card() -> None:
    models = {"data": [{"id": "a"}, "nonsense", {"id": "b", "owned_by": "vllm"}]}
    assert detect_server_type("http://x/v1", models).name == "vllm"


@pytest.mark.parametrize(
    ("name", "card", "tokens"),
    [
        ("vllm", {"max_model_len": 40960}, 40960),
        ("openrouter", {"context_length": 131072}, 131072),
        ("plain", {"context_window": 8192}, 8192),
        ("llamacpp", {"meta": {"n_ctx": 4096, "n_ctx_train": 8192}}, 4096),
        ("llamacpp", {"meta": {"n_ctx_train": 8192}}, 8192),
        ("llamacpp", {"meta": None}, None),
        ("vllm", {"max_model_len": None, "context_length": 4096}, 4096),
        ("vllm", {"max_model_len": 0}, None),
        ("vllm", {"max_model_len": True}, None),
        ("vllm", {"max_model_len": "40960"}, None),
        ("vllm", {}, None),
    ],
)
def test_context_length_reads_the_model_card(name: str, card: dict[str, Any], tokens: int | None) -> None:
    assert context_length(SERVER_TYPES[name], card) == tokens


# --- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "delta"),
    [
        ({"content": "text"}, ("", "text")),
        ({"content": None}, ("", "")),
        ({}, ("", "")),
        ({"role": "assistant", "content": ""}, ("", "")),
        ({"reasoning": "r", "content": None}, ("r", "")),  # vLLM
        ({"reasoning_content": "r", "content": None}, ("r", "")),  # SGLang, llama.cpp, DeepSeek
        ({"reasoning_content": "r", "content": "t"}, ("r", "t")),
        ({"reasoning": None, "reasoning_content": "r"}, ("r", "")),
        ({"reasoning": "", "reasoning_content": "r"}, ("r", "")),
        ({"reasoning": "r", "reasoning_content": "r"}, ("r", "")),  # said twice, counted once
        ({"reasoning": "r", "reasoning_details": [{"type": "reasoning.text", "text": "r"}]}, ("r", "")),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "a"}, {"text": "b"}], "content": "t"}, ("ab", "t")),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "s"}]}, ("s", "")),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "content": "t"}, ("", "t")),
        ({"reasoning_details": []}, ("", "")),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}, {"text": "c"}]},
            ("", "abc"),
        ),
        ({"content": [{"type": "text", "text": None}, {"type": "image_url"}, "x", None]}, ("", "")),
        # digits of a thought must not get into the answer
        (
            {"content": [{"type": "reasoning", "text": "[9] > [8]"}, {"type": "text", "text": "[1]"}]},
            ("[9] > [8]", "[1]"),
        ),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "[9]"}]}]}, ("[9]", "")),
        ({"content": {"text": "x"}, "reasoning": 5, "reasoning_content": ["x"]}, ("", "")),
    ],
)
def test_read_delta_finds_reasoning_and_answer(message: dict[str, Any], delta: tuple[str, str]) -> None:
    assert read_delta(message) == StreamChunk(*delta)


@given(hostile_objects("content", "reasoning", "reasoning_content", "reasoning_details", "text", "type", "summary"))
def test_read_delta_never_raises(message: dict[str, Any]) -> None:
    delta = read_delta(message)
    assert isinstance(delta.reasoning, str)
    assert isinstance(delta.text, str)


VLLM_USAGE = {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300}
ESTIMATED = {"reasoning_estimated": True}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # not counted by the server: in the proportion of the characters, here 800 of 1,000
        (VLLM_USAGE, Usage(1000, 300, 240, **ESTIMATED)),
        (
            VLLM_USAGE | {"prompt_tokens_details": {"cached_tokens": 512}},
            Usage(1000, 300, 240, 512, **ESTIMATED),
        ),
        (
            VLLM_USAGE | {"prompt_tokens_details": None, "completion_tokens_details": None},
            Usage(1000, 300, 240, **ESTIMATED),
        ),
        (
            VLLM_USAGE | {"completion_tokens_details": {"reasoning_tokens": 250}},
            Usage(1000, 300, 250),
        ),  # OpenAI, OpenRouter
        (VLLM_USAGE | {"reasoning_tokens": 260}, Usage(1000, 300, 260)),  # SGLang
        (
            VLLM_USAGE | {"completion_tokens_details": {"reasoning_tokens": 0}},
            Usage(1000, 300, 240, **ESTIMATED),
        ),  # it cannot be none
        (
            VLLM_USAGE | {"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 936},
            Usage(1000, 300, 240, 64, **ESTIMATED),
        ),  # DeepSeek
        (None, Usage(0, 250, 200, 0, True)),
        ({}, Usage(0, 250, 200, 0, True)),
        ({"prompt_tokens": 1000}, Usage(1000, 250, 200, 0, True)),
        ({"prompt_tokens": "1000", "completion_tokens": 300.0}, Usage(0, 250, 200, 0, True)),
        ({"prompt_tokens": -1, "completion_tokens": True}, Usage(0, 250, 200, 0, True)),
        ({"prompt_tokens": 10**30, "completion_tokens": 10**30}, Usage(0, 250, 200, 0, True)),
    ],
)
def test_read_usage_of_every_server(usage: dict[str, Any] | None, expected: Usage) -> None:
    assert read_usage(usage, reasoning_characters=800, characters=1000) == expected


def test_read_usage_without_reasoning_counts_no_reasoning_tokens() -> None:
    assert read_usage(VLLM_USAGE, 0, 200) == Usage(1000, 300, 0)
    assert read_usage(VLLM_USAGE, 0, 0) == Usage(1000, 300, 0)
    assert read_usage(VLLM_USAGE, 200, 200) == Usage(1000, 300, 300), "all of it is reasoning"
    assert read_usage(VLLM_USAGE, 1, 10**6).reasoning_tokens == 1, "there was some"
    assert read_usage(None, 0, 5) == Usage(0, 2, 0, 0, True)


USAGE_KEYS = (
    *("prompt_tokens", "completion_tokens", "completion_tokens_details", "prompt_tokens_details"),
    *("reasoning_tokens", "cached_tokens", "prompt_cache_hit_tokens"),
)


@given(hostile_objects(*USAGE_KEYS), st.integers(0, 10**7), st.integers(0, 10**7))
def test_read_usage_never_raises_and_fits_64_bits(usage: dict[str, Any], reasoning: int, text: int) -> None:
    parsed = read_usage(usage, reasoning, reasoning + text)
    for count in (parsed.prompt_tokens, parsed.completion_tokens, parsed.reasoning_tokens, parsed.cached_tokens):
        assert 0 <= count < 2**63


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            {"logprobs": {"content": [{"token": "[", "logprob": -0.5}, {"token": "1", "logprob": 0}]}},
            [("[", -0.5), ("1", 0.0)],
        ),
        ({"logprobs": {"tokens": ["[", "1"], "token_logprobs": [-0.5, -1]}}, [("[", -0.5), ("1", -1.0)]),
        ({"logprobs": {"tokens": ["["], "token_logprobs": [None]}}, []),
        ({"logprobs": {"content": [{"token": "x"}, {"logprob": -1}, "y", {"token": 3, "logprob": -1}]}}, []),
        ({"logprobs": {"content": [{"token": "x", "logprob": float("-inf")}]}}, [("x", -9999.0)]),
        ({"logprobs": {"content": [{"token": "x", "logprob": float("nan")}]}}, [("x", -9999.0)]),
        ({"logprobs": {"content": [{"token": "x", "logprob": 1e-7}]}}, [("x", 0.0)]),
        ({"logprobs": {"content": [{"token": "x", "logprob": -(10**400)}]}}, [("x", -9999.0)]),
        ({"logprobs": None}, []),
        ({}, []),
    ],
)
def test_read_logprobs_of_both_endpoints(choice: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    assert read_logprobs(choice) == expected


@given(hostile_objects("logprobs", "content", "token", "logprob", "tokens", "token_logprobs"))
def test_read_logprobs_never_raises(choice: dict[str, Any]) -> None:
    for text, logprob in read_logprobs(choice):
        assert isinstance(text, str)
        assert -9999 <= logprob <= 0


@given(hostile_json | hostile_objects("data", "id", "owned_by", "max_model_len", "meta", "n_ctx", "context_length"))
def test_model_cards_never_raises(models: Any) -> None:
    row = detect_server_type("http://localhost:8000/v1", models)
    for card in model_cards(models):
        for server_type in (row, *SERVER_TYPES.values()):
            context = context_length(server_type, card)
            assert context is None or context > 0


# --- prefills --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prefill", "expected"),
    [
        ("<|assistant|>", "<think>\nSo", "<|assistant|><think>\nSo"),
        ("<|assistant|><think>\n", "<think>\nSo", "<|assistant|><think>\nSo"),  # a template that opens the thought
        ("<|assistant|><think>", "<think>\nSo", "<|assistant|><think>\nSo"),
        ("<|assistant|><think>\n", "[3", "<|assistant|><think>\n[3"),
        ("<|assistant|>", "", "<|assistant|>"),
    ],
)
def test_join_prefill_opens_the_reasoning_once(prompt: str, prefill: str, expected: str) -> None:
    assert join_prefill(prompt, prefill) == expected
