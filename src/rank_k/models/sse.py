"""Read server-sent events, as bytes, into a `Response`. Pure, except for `on_chunk`, which receives every chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rank_k.errors import ServerError
from rank_k.models import server_types
from rank_k.models.http_errors import error_from_event
from rank_k.types import OnChunk, Response, StreamChunk

MAX_RESPONSE_CHARACTERS = 8_000_000
"""Characters; a server that sends more is broken or hostile."""


class ResponseReader:
    """Reads server-sent events, fed as bytes, into a `Response`."""

    def __init__(self, on_chunk: OnChunk | None, echoed_prefill: str = "") -> None:
        self._on_chunk = on_chunk
        self._echoed_prefill = echoed_prefill  # a prefill that some servers say again at the beginning of a whole reply
        self._tokens: list[tuple[str, float]] = []
        self._pending = b""
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._character_count = 0
        self._usage: Any = None
        self._finish_reason: str | None = None
        self.complete = False

    @property
    def finished(self) -> bool:
        """Whether the server has ended the response, with a finish reason or the last event."""
        return self.complete or self._finish_reason is not None

    def feed(self, chunk: bytes) -> bool:
        """Read the next bytes. Return True when the server or `on_chunk` has ended the response."""
        lines = (self._pending + chunk).split(b"\n")
        self._pending = lines.pop()
        if len(self._pending) > MAX_RESPONSE_CHARACTERS:
            raise ServerError("the server sent an event without end", "look into its log")
        for line in lines:
            if line.startswith(b"data:") and self._read_event(line[5:].strip()):
                return True
        return False

    def _read_event(self, data: bytes) -> bool:
        if data == b"[DONE]":
            self.complete = True
            return True
        try:
            event = json.loads(data.decode("utf-8", "replace"))
        except ValueError as error:
            raise ServerError("the server sent an event that is not JSON", "look into its log") from error
        return self._read_payload(event, "delta")

    def read_json(self, body: Any) -> None:
        """Read a response that came in one piece."""
        self._read_payload(body, "message")
        self._text = ["".join(self._text).removeprefix(self._echoed_prefill)]
        self.complete = True

    def _read_payload(self, event: Any, key: str) -> bool:
        if not isinstance(event, Mapping):
            return False
        if event.get("error"):
            raise error_from_event(event["error"])
        if isinstance(event.get("usage"), Mapping):
            self._usage = event["usage"]
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            return False
        choice = choices[0]
        if isinstance(choice.get("finish_reason"), str):
            self._finish_reason = choice["finish_reason"]
        self._tokens += server_types.read_logprobs(choice)
        message = choice.get(key)
        if message is None and isinstance(choice.get("text"), str):  # of /v1/completions
            message = {"content": choice["text"]}
        return isinstance(message, Mapping) and self._append_chunk(server_types.read_delta(message))

    def _append_chunk(self, delta: StreamChunk) -> bool:
        self._reasoning.append(delta.reasoning)
        self._text.append(delta.text)
        self._character_count += len(delta.reasoning) + len(delta.text)
        if self._character_count > MAX_RESPONSE_CHARACTERS:
            self._finish_reason = "length"
            return True
        if self._on_chunk is not None and (delta.reasoning or delta.text) and self._on_chunk(delta):
            self._finish_reason = "stopped"
            return True
        return False

    def response(self, seconds: float) -> Response:
        if not self.finished:
            raise ServerError("the server ended the stream in mid-reply", "look into its log")
        reasoning, text = "".join(self._reasoning), "".join(self._text)
        return Response(
            text=text,
            reasoning=reasoning or None,
            finish_reason=self._finish_reason,
            usage=server_types.read_usage(self._usage, len(reasoning), len(text)),
            seconds=seconds,
            tokens=tuple(self._tokens) or None,
        )
