"""Parse the events of a streamed completion, and join them to a response. This module does no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from rank_k.errors import ServerError
from rank_k.models import server_types
from rank_k.models.http_errors import error_from_event
from rank_k.models.reasoning_trace import split_continuation
from rank_k.types import Response, StreamChunk


class ResponseEvent(NamedTuple):
    """An event of a streamed response.

    Attributes:
        chunk: The new part of the reasoning and of the text.
        finish_reason: Why the response ended; None in all events that do not contain it.
        tokens: (text, log-probability) of the tokens in the chunk; empty if the server does not send them.
        usage: The server's token counts; None in all events that do not contain them.
        is_last: Whether the server ends the stream with this event.
    """

    chunk: StreamChunk = StreamChunk("", "")
    finish_reason: str | None = None
    tokens: Sequence[tuple[str, float]] = ()
    usage: Mapping[str, Any] | None = None
    is_last: bool = False

    @property
    def ends_response(self) -> bool:
        """Whether the response is complete after this event."""
        return self.is_last or self.finish_reason is not None


def parse_event(data: bytes) -> ResponseEvent:
    """Return the event in a line of data. Raises `ModelError` if the data is not JSON or reports an error."""
    if data == b"[DONE]":
        return ResponseEvent(is_last=True)
    try:
        payload = json.loads(data.decode("utf-8", "replace"))
    except ValueError as error:
        raise ServerError("the server sent an event that is not JSON", "see the server's log") from error
    return parse_payload(payload)


def parse_payload(payload: Any) -> ResponseEvent:
    """Return the event in the JSON of a streamed event, or of a response that is not streamed.

    Raises `ModelError` if the JSON reports an error.
    """
    if not isinstance(payload, Mapping):
        return ResponseEvent()
    if payload.get("error"):
        raise error_from_event(payload["error"])
    usage = payload["usage"] if isinstance(payload.get("usage"), Mapping) else None
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return ResponseEvent(usage=usage)
    choice = choices[0]
    finish_reason = choice["finish_reason"] if isinstance(choice.get("finish_reason"), str) else None
    message = choice.get("delta", choice.get("message"))
    if message is None:
        message = {"content": choice.get("text")}  # the format of /v1/completions
    chunk = server_types.read_delta(message) if isinstance(message, Mapping) else StreamChunk("", "")
    return ResponseEvent(chunk, finish_reason, server_types.read_logprobs(choice), usage)


def join_events(events: Sequence[ResponseEvent], seconds: float, prefill: str = "") -> Response:
    """Return the response that consists of `events`.

    Args:
        events: The events in order.
        seconds: The duration of the response.
        prefill: The beginning of the assistant's message, which the response continues ("": none).

    Raises:
        ServerError: If the events end before the response is complete.
    """
    if not any(event.ends_response for event in events):
        raise ServerError("the server ended the stream before the response was complete", "see the server's log")
    reasoning = "".join(event.chunk.reasoning for event in events)
    text = "".join(event.chunk.text for event in events)
    usages = [event.usage for event in events if event.usage is not None]
    finish_reasons = [event.finish_reason for event in events if event.finish_reason is not None]
    response = Response(
        text=text,
        reasoning=reasoning or None,
        finish_reason=finish_reasons[-1] if finish_reasons else None,
        seconds=seconds,
        tokens=tuple(chain.from_iterable(event.tokens for event in events)) or None,
    )
    parts = split_continuation(prefill, response)
    characters = len(reasoning) + len(text)
    has_answer = bool(parts.answer.strip())
    reasoning_characters = max(len(parts.trace), len(reasoning)) if has_answer or not parts.trace else characters
    usage = server_types.read_usage(usages[-1] if usages else None, reasoning_characters, characters)
    return replace(response, usage=usage)
