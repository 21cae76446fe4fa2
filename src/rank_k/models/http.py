"""A model behind an OpenAI-compatible server: one streaming POST per request.

The HTTP client is aiohttp. For a stream of tokens, its C parser needs about half of the CPU time of httpx
(`benchmarks/http_clients.py`). With reasoning models, reading events is most of the work of a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rank_k.errors import (
    ConnectionFailed,
    FieldRejected,
    InputError,
    ModelError,
    RequestRejected,
    ServerError,
)
from rank_k.models import server_types
from rank_k.models.base import Capabilities
from rank_k.models.forced_text import Token, parse_tokens, token_log_probabilities
from rank_k.models.http_errors import SERVERS_PAGE, error_for_status, error_message, retry_after_seconds
from rank_k.models.server_types import SERVER_TYPES
from rank_k.models.sse import ResponseEvent, join_events, parse_event, parse_payload
from rank_k.types import OnChunk, Request, Response

if TYPE_CHECKING:
    import aiohttp

DEFAULT_CONTEXT_LENGTH = 32_768
"""The context length in tokens if neither the server nor the user states it. Most reasoning models support more."""

_KEEPALIVE_SECONDS = 4.0  # idle connections are closed after this time, before uvicorn and llama.cpp close them (5 s)
_MAX_ERROR_BYTES = 65_536  # the maximum number of bytes to read from the body of an error
_MAX_RESPONSE_BYTES = 64_000_000  # a server that sends more is broken or hostile


class HttpModel:
    """A model behind an OpenAI-compatible server.

    Args:
        url: The address of the server, with or without a trailing `/v1`.
        model: The name of the model (default: the model of the server, if it has only one).
        api_key: The API key, sent as a bearer token (default: no key).
        server_type: A name in `SERVER_TYPES`, or "auto" to detect it in `prepare`.
        context_length: The context length in tokens (default: the server's value, or else `DEFAULT_CONTEXT_LENGTH`).
        revision: The revision of the model, as part of the journal's keys.
        identity: Replaces name and revision in the journal's keys. The embedded model uses the checksum of its weights.
        read_timeout: The number of seconds without data after which the connection counts as dropped (default: no
            limit, because a busy server may queue a request for a long time before it sends anything).
        reasons: Whether the model's chat template supports reasoning.

    Raises:
        InputError: If the address or the server type is not valid.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        server_type: str = "auto",
        context_length: int | None = None,
        revision: str = "",
        identity: str = "",
        read_timeout: float | None = None,
        reasons: bool = True,
    ) -> None:
        if server_type != "auto" and server_type not in SERVER_TYPES:
            raise InputError(f"unknown server type {server_type!r}", f"give auto or one of {', '.join(SERVER_TYPES)}")
        self.url = base_url(url)
        self.name = model or ""
        self.server_type = SERVER_TYPES.get(server_type, SERVER_TYPES["plain"])
        self._detects_server_type = server_type == "auto"
        self._api_key = api_key
        self._context_length = context_length
        self._revision = revision
        self._identity = identity
        self._read_timeout = read_timeout
        self._reasons = reasons
        self._prefill_forms = list(self.server_type.prefill)  # forms that the server has not rejected
        self._accepts_budget = True
        self._opening_ids: tuple[int, ...] | None = None  # see `_template_opening`
        self._session: aiohttp.ClientSession | None = None

    @property
    def identity(self) -> str:
        return self._identity or f"{self.name}@{self._revision}"

    @property
    def context_length(self) -> int:
        return self._context_length or DEFAULT_CONTEXT_LENGTH

    @property
    def context_length_is_known(self) -> bool:
        """Whether the user or the server has stated the context length."""
        return self._context_length is not None

    @property
    def capabilities(self) -> Capabilities:
        row = self.server_type
        budget = bool(row.budget_path) and self._accepts_budget
        return Capabilities(
            bool(self._prefill_forms), bool(row.grammar), budget, row.logprobs, self._reasons, row.scores_given_text
        )

    def request_body(self, request: Request) -> Mapping[str, Any]:
        if request.forced_text is not None:
            body = server_types.forced_text_key_body(self.name, request)
        else:
            body = server_types.request_body(self.server_type, self.name, request)
        if self._identity:
            body.pop("model")  # the name of the embedded model depends on its file name
        return body

    async def prepare(self) -> None:
        """Request the list of models from the server.

        Detects the server type and the context length, and checks the address, the key and the name of the model.
        """
        try:
            models = await self._request_json("GET", self.url + "/models")
        except RequestRejected as error:
            if error.status in (401, 403) or 300 <= error.status < 400:
                raise
            models = None  # the server may lack this endpoint
        if self._detects_server_type:
            self.server_type = server_types.detect_server_type(self.url, models)
            self._prefill_forms = list(self.server_type.prefill)
        cards = {str(card.get("id")): card for card in server_types.model_cards(models)}
        if not self.name:
            if len(cards) != 1:
                raise InputError(
                    f"the server at {self.url} has {len(cards) or 'no list of'} models",
                    f"choose one with --model{': ' + ', '.join(islice(cards, 8)) if cards else ''}",
                )
            self.name = next(iter(cards))
        if cards and self.name not in cards and self.server_type.lists_models:
            raise InputError(
                f"the server at {self.url} has no model {self.name!r}", f"it has: {', '.join(islice(cards, 8))}"
            )
        card = cards.get(self.name) or (next(iter(cards.values())) if len(cards) == 1 else None)
        if self._context_length is None and card is not None:
            self._context_length = server_types.context_length(self.server_type, card)

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        """Send a request. A prefill is sent in the best form that the server has not rejected so far.

        Raises:
            RequestRejected: If the server has rejected every form of prefill.
            FieldRejected: If the server rejects the reasoning budget. `capabilities` then no longer contains it.
        """
        if request.forced_text is not None:
            return await self._complete_forced_text(request, request.forced_text, on_chunk)
        if not request.prefill:
            return await self._chat_completion(request, on_chunk)
        while self._prefill_forms:
            form = self._prefill_forms[0]
            send = self._text_completion if form == "raw" else self._chat_completion
            try:
                return await send(request, on_chunk)
            except RequestRejected as error:
                if not error.is_about_fields:
                    raise
                if form in self._prefill_forms:
                    self._prefill_forms.remove(form)
        raise RequestRejected(f"{self.url} cannot continue a given beginning of the answer (prefill)", SERVERS_PAGE)

    async def _chat_completion(self, request: Request, on_chunk: OnChunk | None) -> Response:
        body = server_types.request_body(self.server_type, self.name, request)
        try:
            return await self._stream("/chat/completions", body, on_chunk, request.prefill)
        except RequestRejected as error:
            if request.reasoning_budget is None or not server_types.rejects_budget(self.server_type, error.problem):
                raise
            self._accepts_budget = False
            raise FieldRejected(error.problem, error.remedy, error.status) from error

    async def _text_completion(self, request: Request, on_chunk: OnChunk | None) -> Response:
        """Render the chat template on the server, append the prefill, and complete it as plain text."""
        prompt = await self._render_prompt(request)
        body = server_types.completion_body(self.server_type, self.name, request, prompt)
        return await self._stream("/completions", body, on_chunk, request.prefill)

    async def _complete_forced_text(self, request: Request, forced_text: str, on_chunk: OnChunk | None) -> Response:
        """Return the log-probabilities of the tokens of `forced_text` after the prompt."""
        prompt = server_types.raw_prompt(request)
        prompt_tokens, joined_tokens = await self._tokenize(prompt), await self._tokenize(prompt + forced_text)
        if joined_tokens[: len(prompt_tokens)] == prompt_tokens:
            forced_tokens = joined_tokens[len(prompt_tokens) :]
        else:  # the last token of the prompt and the first one of the text have merged
            forced_tokens = await self._tokenize(forced_text)
        body = server_types.forced_text_body(self.name, prompt, forced_tokens)
        response = await self._stream("/completions", body, on_chunk)
        return replace(response, tokens=token_log_probabilities(forced_tokens, response.tokens or ()))

    async def _tokenize(self, text: str) -> tuple[Token, ...]:
        """Return the tokens of `text`, each with its bytes."""
        tokens = None
        if self.server_type.scores_given_text:
            tokens = parse_tokens(await self._token_list({"content": text, "with_pieces": True}))
        if tokens is None:
            raise RequestRejected(f"{self.url} cannot score a given text", SERVERS_PAGE, 501)
        return tokens

    async def _render_prompt(self, request: Request) -> str | list[int]:
        messages = [{"role": role, "content": content} for role, content in request.messages]
        prefill = request.prefill
        if self.server_type.name == "llamacpp":
            payload = await self._post_json("/apply-template", {"messages": messages})
            prompt = payload.get("prompt") if isinstance(payload, Mapping) else None
            if not isinstance(prompt, str):
                raise RequestRejected(f"{self.url} does not render chat templates", SERVERS_PAGE, 501)
            return server_types.join_prefill(prompt, prefill)
        # vLLM renders into token ids, which its completions accept as a prompt.
        prompt_ids = await self._token_ids({"messages": messages, "add_generation_prompt": True})
        if prefill.startswith(server_types.OPENING):
            prompt_ids = prompt_ids[: len(prompt_ids) - len(await self._template_opening(prompt_ids))]
        return prompt_ids + await self._token_ids({"prompt": prefill, "add_special_tokens": False})

    async def _template_opening(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the token ids with which the chat template opens the reasoning block; () if it does not.

        Templates of QwQ, DeepSeek-R1 and Qwen3-Thinking end a prompt with `<think>` and a line end. If a prefill
        also opens the block, it replaces these tokens. The result is cached, because the template is the same for
        every prompt.
        """
        if self._opening_ids is None:
            self._opening_ids = ()
            for line_ends in ("\n", "", "\n\n"):
                opening = server_types.OPENING + line_ends
                ids = await self._token_ids({"prompt": opening, "add_special_tokens": False})
                if ids and list(prompt_ids[-len(ids) :]) == ids:
                    self._opening_ids = tuple(ids)
                    break
        return self._opening_ids

    async def _token_ids(self, body: Mapping[str, Any]) -> list[int]:
        tokens = await self._token_list({"model": self.name, **body})
        if tokens is None:
            raise RequestRejected(f"{self.url} does not tokenize chats", SERVERS_PAGE, 501)
        return tokens

    async def _token_list(self, body: Mapping[str, Any]) -> list[Any] | None:
        """Return the list of tokens from the server's tokenizer; None if the response does not contain one."""
        payload = await self._post_json("/tokenize", body)
        tokens = payload.get("tokens") if isinstance(payload, Mapping) else None
        return tokens if isinstance(tokens, list) else None

    async def _stream(
        self, path: str, body: Mapping[str, Any], on_chunk: OnChunk | None, prefill: str = ""
    ) -> Response:
        started = time.monotonic()
        events: list[ResponseEvent] = []
        async with self._send_request("POST", self.url + path, {**body, **server_types.STREAMING}) as response:
            if response.headers.get("Content-Type", "").startswith("application/json"):  # this server does not stream
                event = parse_payload(await self._read_json(response))
                chunk = event.chunk._replace(text=event.chunk.text.removeprefix(prefill))  # some repeat the prefill
                _append_event(events, event._replace(chunk=chunk, is_last=True), on_chunk)
            else:
                await _read_events(response, events, on_chunk)
        return join_events(events, time.monotonic() - started, prefill)

    async def count_tokens(self, text: str) -> int | None:
        if not self.server_type.tokenizes:
            return None
        try:
            tokens = await self._token_list({"model": self.name, self.server_type.tokenizes: text})
        except RequestRejected:
            return None  # this server has no tokenizer endpoint
        return None if tokens is None else len(tokens)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- connections and requests ---

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            headers = {"Accept": "text/event-stream, application/json", "User-Agent": "rank-k"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, socket_factory=_keepalive_socket
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._read_timeout),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=not _is_loopback(self.url),
                auto_decompress=True,
            )
        return self._session

    @contextlib.asynccontextmanager
    async def _send_request(
        self, method: str, url: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and yield the response. Every failure is raised as a `ModelError`."""
        import aiohttp

        headers = {} if body is None else {"Content-Type": "application/json"}
        if not self.server_type.keeps_connections:
            headers["Connection"] = "close"
        session = self._open_session()
        try:
            async with session.request(
                method,
                url,
                data=None if body is None else json.dumps(body).encode("ascii"),
                headers=headers,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._read_error(response)
                yield response
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or error.os_error or "no connection"
            raise ConnectionFailed(
                f"no server responds at {self.url} ({reason})", "start the server, or correct --server"
            ) from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise ServerError(
                f"the server at {self.url} dropped the connection ({type(error).__name__})",
                "see the server's log; run the same command again to resume",
            ) from error

    async def _read_error(self, response: aiohttp.ClientResponse) -> ModelError:
        status = response.status
        raw = await response.content.read(_MAX_ERROR_BYTES)
        message = error_message(raw)
        if self._api_key:
            message = message.replace(self._api_key, "***")
        if 300 <= status < 400:
            location = response.headers.get("Location", "elsewhere")[:200]
            return RequestRejected(f"{self.url} redirects to {location}", "give that address with --server", status)
        return error_for_status(
            status, message, self.url, self.name, retry_after_seconds(response.headers.get("Retry-After"))
        )

    async def _read_json(self, response: aiohttp.ClientResponse) -> Any:
        raw, broken = b"", None
        try:
            async for chunk in response.content.iter_any():
                raw += chunk
                if len(raw) > _MAX_RESPONSE_BYTES:
                    raise ServerError(
                        f"the response of the server at {self.url} is longer than {_MAX_RESPONSE_BYTES:,} bytes",
                        "see the server's log",
                    )
        except _connection_errors() as error:
            broken = error  # the JSON document may be complete nevertheless
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            if broken is not None:
                raise broken from None
            raise ServerError(
                f"the server at {self.url} did not send JSON", "check that it is an OpenAI-compatible server"
            ) from error

    async def _request_json(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._send_request(method, url, body) as response:
            return await self._read_json(response)

    async def _post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST to an endpoint outside of the OpenAI API.

        Repeat the request once if it fails, because the server may have closed an idle connection.
        """
        url = self.url.removesuffix("/v1") + path
        try:
            return await self._request_json("POST", url, body)
        except ServerError:
            return await self._request_json("POST", url, body)


async def _read_events(response: aiohttp.ClientResponse, events: list[ResponseEvent], on_chunk: OnChunk | None) -> None:
    """Append the events of a stream to `events`, until the server or `on_chunk` ends the response.

    If the response is complete, it is kept even if the connection breaks before the HTTP body ends (some proxies drop
    the last chunk), because a second request would cost the same again.
    """
    pending, received_bytes = b"", 0
    try:
        async for data in response.content.iter_any():
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and _append_event(events, parse_event(line[5:].strip()), on_chunk):
                    if events[-1].is_last:
                        await _drain(response)
                    return
            received_bytes += len(data)
            if received_bytes > _MAX_RESPONSE_BYTES:
                raise ServerError(
                    f"the server's response is longer than {_MAX_RESPONSE_BYTES:,} bytes", "see the server's log"
                )
    except _connection_errors():
        if not any(event.ends_response for event in events):
            raise


def _append_event(events: list[ResponseEvent], event: ResponseEvent, on_chunk: OnChunk | None) -> bool:
    """Append an event. Return whether the server or `on_chunk` ends the response with it."""
    events.append(event)
    if on_chunk is not None and any(event.chunk) and on_chunk(event.chunk):
        events.append(ResponseEvent(finish_reason="stopped"))
        return True
    return event.is_last


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the rest of the body. Otherwise, the connection could not be used for the next request."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            async for _ in response.content.iter_any():
                pass


def _connection_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a broken connection raises while a body is read."""
    import aiohttp

    return (aiohttp.ClientError, ConnectionError, TimeoutError)


def base_url(url: str) -> str:
    """Return `url` in a normalized form. If it has no path, the path becomes `/v1`.

    Raises:
        InputError: If `url` is not the address of a server.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host_name = (parts.hostname or "").encode("idna")  # raises if the name is not valid
        is_valid = parts.scheme in ("http", "https") and bool(host_name) and parts.port != 0
    except ValueError:  # a port out of range, an incomplete IPv6 address, an invalid name
        is_valid = False
    if not is_valid:
        raise InputError(f"{url!r} is not the address of a server", "give an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:  # the message must not contain them
        raise InputError("the server address contains a password or a query", "give the key with --api-key-env instead")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _keepalive_socket(address_info: Any) -> socket.socket:
    """Return a socket that detects a lost connection. Without a read timeout, nothing else would detect it."""
    family, socket_type, protocol, _, _ = address_info
    connection = socket.socket(family, socket_type, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
