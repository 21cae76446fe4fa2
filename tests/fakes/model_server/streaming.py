"""One exchange with a client: a JSON response, or a stream of events with its faults."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tests.fakes.model_server.fault_plan import ENGINE_FAULT, FaultPlan
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.responses import ScriptedResponse, forced_log_probability


class ClientGoneError(ConnectionError):
    """The client has left, or is to be left, before the response is complete."""


@dataclass(slots=True)
class Exchange:
    """One request that is being answered, and the connection it came over."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    record: RecordedRequest

    def send(self, status: int, payload: Any, headers: str = "") -> None:
        self.record.status = status
        body = b"" if payload is None else json.dumps(payload).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def refuse(self, status: int, message: str, kind: str, headers: str = "") -> None:
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.send(status, {"error": error}, headers)

    async def wait_until(self, deadline: float, step: float = 0.05) -> None:
        """Wait for the deadline, but check the client every `step` seconds."""
        while True:
            if self.writer.transport.is_closing() or self.reader.at_eof():
                self.record.cancelled = True
                raise ClientGoneError
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, step))


def message_fields(quirk: str, reasoning: str, answer: str) -> dict[str, Any]:
    """Reasoning and answer in the fields where this kind of server puts them; no answer is a null content."""
    if quirk in ("inline", "missing_open", "none"):
        return {"content": reasoning + answer}
    details = [{"type": "reasoning.text", "text": reasoning, "format": None, "index": 0}]
    trace: Any = details if quirk == "reasoning_details" else reasoning
    return {"content": answer or None} | ({quirk: trace} if reasoning else {})


async def stream_response(
    exchange: Exchange,
    plan: FaultPlan,
    response: ScriptedResponse,
    begin: float,
    chunk_fields: Any,
    body: Any,
    usage: Any,
) -> None:
    loop, record = asyncio.get_running_loop(), exchange.record
    chunk_fields = chunk_fields | {"object": "chat.completion.chunk"}

    def send(*events: bytes) -> None:
        data = b"".join(events)
        # 7 bytes more than half: in mid-line as a rule, and now and then in mid-character
        parts = (data[: len(data) // 2 + 7], data[len(data) // 2 + 7 :]) if plan.ragged else (data,)
        exchange.writer.write(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part))

    def event(payload: Any) -> bytes:
        return b"data: %b\n\n" % json.dumps(payload, ensure_ascii=False).encode()

    def chunk(delta: Any, finish_reason: str | None = None) -> bytes:
        return event(chunk_fields | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def send_tokens(start: int, end: int) -> None:
        reasoning, answer = response.text(start, end)
        if body.get("completion"):
            choice: dict[str, Any] = {"index": 0, "text": reasoning + answer, "finish_reason": None}
            if "forced_text" in body and plan.can("logprobs"):
                log_probabilities = [
                    (token, forced_log_probability(body["marks"][0], token)) for token in response.answer[start:end]
                ]
                choice["logprobs"] = {
                    "content": [{"token": token, "logprob": logprob} for token, logprob in log_probabilities]
                }
            send(event(chunk_fields | {"object": "text_completion", "choices": [choice]}))
            return
        if plan.trap == "answer_in_reasoning" and "</think>" in str(body.get("prefill")):
            send(chunk({"reasoning": answer, "content": None}))
            return
        inline = plan.quirk in ("inline", "missing_open", "none")
        pieces = [(reasoning, answer)] if inline else [(reasoning, ""), ("", answer)]
        send(*(chunk(message_fields(plan.quirk, *piece)) for piece in pieces if any(piece)))

    record.status = 200
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if begin - plan.first_token > loop.time():
        send(b": the model is still being waited for\n\n")
    await exchange.wait_until(begin)
    send(chunk({"role": "assistant", "content": ""}))
    deadline = begin + plan.per_token * response.sent_tokens
    flush = max(plan.flush, 0.001)
    middle = min(response.sent_tokens, len(response.reasoning)) // 2
    sent, fault = 0, record.fault
    while sent < response.sent_tokens:
        # Deadlines are counted from the beginning, so that late wake-ups do not add up.
        await exchange.wait_until(min(deadline, begin + flush * (1 + (loop.time() - begin) // flush)))
        now = loop.time()
        due_tokens = (
            response.sent_tokens if now >= deadline else min(response.sent_tokens, int((now - begin) / plan.per_token))
        )
        if fault and due_tokens >= middle:
            send_tokens(sent, middle)
            if fault == "drop":
                exchange.writer.transport.abort()
                raise ClientGoneError
            if fault == "error_in_stream":
                error = {"message": ENGINE_FAULT, "type": "InternalServerError", "code": 500}
                send(event({"error": error}), b"data: [DONE]\n\n")
                exchange.writer.write(b"0\r\n\r\n")
                return
            if fault == "bad_utf8":
                # one more chunk of reasoning, in which one character is broken
                send(chunk(message_fields(plan.quirk, "¤", "")).replace("¤".encode(), b"\xff\xfe"))
            else:
                send(b'data: {"choices": [{"index": 0, "delta": {"con\n\n')
            sent, fault = middle, ""
        send_tokens(sent, due_tokens)
        sent = due_tokens
    final_events = [chunk({}, response.finish_reason)]
    if (body.get("stream_options") or {}).get("include_usage"):
        final_events.append(event(chunk_fields | {"choices": [], "usage": usage}))
    send(*final_events, b"data: [DONE]\n\n")
    exchange.writer.write(b"0\r\n\r\n")
