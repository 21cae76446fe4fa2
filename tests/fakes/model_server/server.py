"""The HTTP server: routes, refusals, the request log and the control endpoints."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from tests.fakes.asyncio_http import read_request
from tests.fakes.model_server.fault_plan import ENGINE_FAULT, TRANSIENT, FaultPlan
from tests.fakes.model_server.marked_passages import MARK, passage_marks, window_key
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.responses import (
    compose_response,
    count_tokens,
    decode_tokens,
    render_chat,
    requested_max_tokens,
    token_ids,
)
from tests.fakes.model_server.streaming import ClientGoneError, Exchange, message_fields, stream_response


class ModelServer:
    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        self._fault_counts: Counter[tuple[str, str]] = Counter()  # (fault, window) -> how often
        self._connection_tasks: set[asyncio.Task[None]] = set()

    async def run(self, port: int, ready: Callable[[str], object], stop: asyncio.Event) -> None:
        """Serve until `stop` is set. `ready` is called with the base URL."""
        server = await asyncio.start_server(self._serve_connection, "127.0.0.1", port, backlog=1024)
        ready(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await stop.wait()
        server.close()
        for task in self._connection_tasks:
            task.cancel()
        if self._connection_tasks:
            await asyncio.wait(self._connection_tasks)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connection_tasks.add(task)
        self.connections += 1
        try:
            while True:
                await self._serve_request(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the ways in which a connection ends
        except asyncio.CancelledError:
            writer.transport.abort()
        except (ValueError, asyncio.LimitOverrunError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        finally:
            self._connection_tasks.discard(task)
            writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, headers, body = await read_request(reader)
        body = {} if body is None else body
        record = RecordedRequest(path, time.monotonic(), authorization=headers.get("authorization", ""))
        exchange = Exchange(reader, writer, record)
        if path in ("/control", "/log"):
            self._handle_control(exchange, method, body)
            return
        self.requests.append(record)
        if self.plan.bodies:
            record.body = body
        try:
            await self._route(exchange, method, body)
        finally:
            record.end = time.monotonic()

    def _handle_control(self, exchange: Exchange, method: str, body: Any) -> None:
        if exchange.record.path == "/log":
            if method == "DELETE":
                self.requests.clear()
                self._fault_counts.clear()
            exchange.send(
                200, {"requests": [asdict(record) for record in self.requests], "connections": self.connections}
            )
            return
        try:
            self.plan = self.plan.changed(body)
        except (ValueError, TypeError) as error:
            exchange.refuse(400, str(error), "plan")
        else:
            exchange.send(200, asdict(self.plan))

    async def _route(self, exchange: Exchange, method: str, body: Any) -> None:
        plan, path = self.plan, exchange.record.path
        if path == "/health":
            exchange.send(200, {})
        elif plan.redirect and path.startswith("/v1/"):
            exchange.send(307, None, f"Location: {plan.redirect}{path.removeprefix('/v1')}\r\n")
        elif plan.api_key and exchange.record.authorization != f"Bearer {plan.api_key}":
            exchange.refuse(401, "Incorrect API key provided.", "invalid_request_error")
        elif (method, path) == ("GET", "/v1/models"):
            card = {"id": plan.model, "object": "model", "created": 0, "owned_by": plan.owned_by}
            length = {"max_model_len": plan.max_model_len} if plan.max_model_len else {}
            exchange.send(200, {"object": "list", "data": [card | length]})
        elif (method, path) == ("POST", "/tokenize"):
            text = body.get("prompt", body.get("content"))
            ids: list[Any] = token_ids(render_chat(body["messages"]) if text is None else text)
            if body.get("with_pieces"):
                ids = [{"id": i, "piece": decode_tokens([i])} for i in ids]
            exchange.send(200, {"count": len(ids), "max_model_len": plan.max_model_len, "tokens": ids})
        elif (method, path) == ("POST", "/apply-template") and plan.can("raw") and plan.owned_by == "llamacpp":
            exchange.send(200, {"prompt": render_chat(body["messages"])})
        elif (method, path) == ("POST", "/v1/completions") and plan.can("spell") and "<[" in body.get("grammar", ""):
            await self._respond(exchange, _chat_of_forced_text(body))
        elif (method, path) == ("POST", "/v1/completions") and plan.can("raw"):
            await self._respond(exchange, _chat_of_completion(body))
        elif (method, path) == ("POST", "/v1/chat/completions"):
            if not (isinstance(body, dict) and body.get("continue_final_message")):
                await self._respond(exchange, body)
            elif plan.can("continue"):
                *messages, last = body["messages"]
                await self._respond(exchange, body | {"messages": messages, "prefill": last["content"]})
            else:
                exchange.refuse(400, "continue_final_message is not supported", "BadRequestError")
        else:
            exchange.refuse(404, "Not Found", "NotFoundError")

    async def _respond(self, exchange: Exchange, body: Any) -> None:
        plan, record, loop = self.plan, exchange.record, asyncio.get_running_loop()
        arrived = loop.time()
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            exchange.refuse(400, "messages: a list is required", "BadRequestError")
            return
        marks = tuple(body["marks"]) if "marks" in body else passage_marks(body["messages"])
        record.window = window_key(marks)
        record.n_messages = len(body["messages"])
        record.stream = bool(body.get("stream"))
        if self._refuses(exchange, body):
            return
        for fault in TRANSIENT:
            fault_key = (fault, record.window)
            if plan.strikes(fault, record.window) and self._fault_counts[fault_key] < getattr(plan, fault).times:
                self._fault_counts[fault_key] += 1
                record.fault = fault
                break
        if record.fault == "http_429":
            retry_after = f"Retry-After: {plan.retry_after}\r\n" if plan.retry_after else ""
            limit = "rate limit: limit 20 per 1 min, try again in 3s"
            exchange.send(429, {"error": {"message": limit}}, retry_after)
            return
        if record.fault == "http_500":
            exchange.refuse(500, ENGINE_FAULT, "InternalServerError")
            return
        response = compose_response(plan, marks, record.window, body)
        prompt_tokens = count_tokens(body["messages"])
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": response.sent_tokens,
            "total_tokens": prompt_tokens + response.sent_tokens,
            "completion_tokens_details": {"reasoning_tokens": min(response.sent_tokens, len(response.reasoning))},
        }
        start = arrived + plan.first_token
        if plan.strikes("slow_start", record.window):
            start += plan.slow_seconds
        response_fields = {"id": f"chatcmpl-{len(self.requests)}", "created": 0, "model": plan.model}
        if record.stream:
            await stream_response(exchange, plan, response, start, response_fields, body, usage)
            return
        await exchange.wait_until(start + plan.per_token * response.sent_tokens)
        if record.fault == "drop":
            exchange.writer.transport.abort()
            raise ClientGoneError
        if record.fault == "error_in_stream":
            exchange.refuse(500, ENGINE_FAULT, "InternalServerError")
            return
        message = {"role": "assistant"} | message_fields(plan.quirk, *response.text(0, response.sent_tokens))
        choice = {"index": 0, "message": message, "finish_reason": response.finish_reason}
        exchange.send(200, response_fields | {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _refuses(self, exchange: Exchange, body: Any) -> bool:
        plan = self.plan
        prompt_tokens = count_tokens(body["messages"])
        max_tokens = requested_max_tokens(body) or 1
        limit = plan.max_model_len or math.inf
        if plan.refuse:
            exchange.refuse(plan.refuse, HTTPStatus(plan.refuse).description or "refused", "RequestRejected")
        elif body.get("model") != plan.model:
            name = body.get("model")
            exchange.refuse(404, f"The model `{name}` does not exist.", "NotFoundError")
        elif prompt_tokens >= limit:  # the next two messages are vLLM's own, for clients that read numbers in them
            exchange.refuse(
                400,
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, {max_tokens} in the "
                "completion). Please reduce the length of the messages or completion.",
                "BadRequestError",
            )
        elif prompt_tokens + max_tokens > limit:
            exchange.refuse(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum "
                f"context length is {limit} tokens and your request has {prompt_tokens} input tokens "
                f"({max_tokens} > {limit} - {prompt_tokens}).",
                "BadRequestError",
            )
        else:
            return False
        return True


def _chat_of_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a completion as the chat that its prompt was rendered from; its text begins the answer."""
    prompt = body["prompt"] if isinstance(body["prompt"], str) else decode_tokens(body["prompt"])
    messages, _, prefill = prompt.partition("\n<|assistant|>\n")
    return {**body, "messages": json.loads(messages), "prefill": prefill, "completion": True}


def _chat_of_forced_text(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a given text behind a passage as a chat about that passage."""
    mark = MARK.search(body["prompt"])
    marks = [mark[1] if mark else str(body["prompt"])]
    tokens = [decode_tokens([int(number)]) for number in re.findall(r"<\[(\d+)\]>", body["grammar"])]
    messages = [{"role": "user", "content": body["prompt"]}]
    return {**body, "messages": messages, "marks": marks, "forced_text": tokens, "completion": True}
