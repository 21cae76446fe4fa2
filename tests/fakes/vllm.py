"""A fake vLLM whose chat template opens the reasoning block, as those of QwQ, DeepSeek-R1 and Qwen3-Thinking do.

Its error messages are those of vLLM 0.32. It shows passages of the prompt in reversed order, after reasoning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.fakes.scripted_server import ServerReply, as_events, as_json, chat_chunk

OPEN, CLOSE = 49152, 49153
"""Token ids of `<think>` and `</think>`. Every other token is one character, its id the code point."""

NO_PARSER = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or"
    " --reasoning-config to use thinking_token_budget."
)


def token_ids(text: str) -> list[int]:
    pieces = re.findall(r"</?think>|.", text, re.DOTALL)
    return [OPEN if piece == "<think>" else CLOSE if piece == "</think>" else ord(piece) for piece in pieces]


def text_of(ids: list[int]) -> str:
    return "".join({OPEN: "<think>", CLOSE: "</think>"}.get(token) or chr(token) for token in ids)


@dataclass(frozen=True, slots=True)
class FakeVllm:
    """`opens`: what the chat template puts behind the assistant's header. `parser`: whether the server was started
    with --reasoning-parser. `truncates`: whether reasoning ends at the token limit."""

    opens: str = "<think>\n"
    parser: bool = False
    truncates: bool = True

    def __call__(self, method: str, path: str, body: Any) -> ServerReply:
        if path == "/v1/models":
            return as_json({"data": [{"id": "smol", "owned_by": "vllm", "max_model_len": 32768}]})
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else self.rendered(body["messages"])
            return as_json({"tokens": token_ids(text)})
        if path == "/v1/completions":
            prompt = text_of(body["prompt"])
            return as_events({"choices": [{"index": 0, "text": reversed_ranking(prompt), "finish_reason": "stop"}]})
        if body.get("thinking_token_budget") is not None and not self.parser:
            return as_events({"error": {"message": NO_PARSER, "type": "BadRequestError", "code": 400}}, done=False)
        prompt = body["messages"][-1]["content"]
        if body.get("chat_template_kwargs", {}).get("enable_thinking") is False:
            return as_events(chat_chunk(reversed_ranking(prompt), "stop"))
        trace = "Passage [1] is about rain and [2] > [3] in detail"
        if self.truncates:
            return as_events(chat_chunk("", reasoning=trace), chat_chunk("", "length"))
        return as_events(chat_chunk("", reasoning=trace), chat_chunk(reversed_ranking(prompt), "stop"))

    def rendered(self, messages: list[dict[str, str]]) -> str:
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
        return f"{turns}<|im_start|>assistant\n{self.opens}"


def reversed_ranking(prompt: str) -> str:
    """The passages that the prompt shows, last first."""
    count = max(map(int, re.findall(r"^\[(\d+)\]", prompt, re.MULTILINE)), default=2)
    return " > ".join(f"[{number}]" for number in range(count, 0, -1))
