"""A fake vLLM whose chat template opens the reasoning block, as those of QwQ, DeepSeek-R1 and Qwen3-Thinking do.

Its error messages are those of vLLM 0.32. It shows passages of the prompt in reversed order, after reasoning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.fakes.scripted_server import HttpResponse, as_events, as_json, chat_chunk

OPEN_TOKEN, CLOSE_TOKEN = 49152, 49153
"""Token ids of `<think>` and `</think>`. Every other token is one character, its id the code point."""

NO_PARSER_MESSAGE = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or"
    " --reasoning-config to use thinking_token_budget."
)


def token_ids(text: str) -> list[int]:
    pieces = re.findall(r"</?think>|.", text, re.DOTALL)
    return [
        OPEN_TOKEN if piece == "<think>" else CLOSE_TOKEN if piece == "</think>" else ord(piece) for piece in pieces
    ]


def decode_tokens(ids: list[int]) -> str:
    return "".join({OPEN_TOKEN: "<think>", CLOSE_TOKEN: "</think>"}.get(token) or chr(token) for token in ids)


@dataclass(frozen=True, slots=True)
class FakeVllm:
    """Responds as vLLM does.

    `template_opening`: what the chat template puts behind the assistant's header. `has_reasoning_parser`: whether the
    server was started with --reasoning-parser. `truncates_reasoning`: whether reasoning ends at the token limit.
    """

    template_opening: str = "<think>\n"
    has_reasoning_parser: bool = False
    truncates_reasoning: bool = True

    def __call__(self, method: str, path: str, body: Any) -> HttpResponse:
        if path == "/v1/models":
            return as_json({"data": [{"id": "smol", "owned_by": "vllm", "max_model_len": 32768}]})
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else self.render_chat(body["messages"])
            return as_json({"tokens": token_ids(text)})
        if path == "/v1/completions":
            prompt = decode_tokens(body["prompt"])
            return as_events({"choices": [{"index": 0, "text": reversed_ranking(prompt), "finish_reason": "stop"}]})
        if body.get("thinking_token_budget") is not None and not self.has_reasoning_parser:
            return as_events(
                {"error": {"message": NO_PARSER_MESSAGE, "type": "BadRequestError", "code": 400}}, done=False
            )
        prompt = body["messages"][-1]["content"]
        if body.get("chat_template_kwargs", {}).get("enable_thinking") is False:
            return as_events(chat_chunk(reversed_ranking(prompt), "stop"))
        trace = "Passage [1] is about rain and [2] > [3] in detail"
        if self.truncates_reasoning:
            return as_events(chat_chunk("", reasoning=trace), chat_chunk("", "length"))
        return as_events(chat_chunk("", reasoning=trace), chat_chunk(reversed_ranking(prompt), "stop"))

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
        return f"{turns}<|im_start|>assistant\n{self.template_opening}"


def reversed_ranking(prompt: str) -> str:
    """The passages that the prompt shows, last first."""
    count = max(map(int, re.findall(r"^\[(\d+)\]", prompt, re.MULTILINE)), default=2)
    return " > ".join(f"[{number}]" for number in range(count, 0, -1))
