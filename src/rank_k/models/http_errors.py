"""Convert error responses of servers (HTTP status, headers and message) to `ModelError`s. This module does no I/O."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from rank_k.errors import ContextOverflow, ModelError, PromptFiltered, RequestRejected, ServerError, ServerOverloaded

SERVERS_PAGE = "see docs/reference/servers.md"
"""The remedy if a server does not support a request."""

_CONTEXT_WORDS = re.compile(
    r"context.{0,40}(?:length|size|window|exceed)|exceed.{0,60}context|maximum.{0,40}tokens|too many tokens"
    r"|prompt is too long|longer than the (?:maximum )?model|input is too long",
    re.IGNORECASE | re.DOTALL,
)

_CONTENT_FILTER = re.compile(
    r"content[ _-]?(?:filter|policy|moderation|management policy)|usage polic|moderation|\bflagged\b"
    r"|data_inspection_failed|inappropriate content|content exists risk|prohibited_content|safety system",
    re.IGNORECASE,
)
"""Terms in the content-filter errors of OpenAI, Azure, OpenRouter, Alibaba Cloud, DeepSeek and Gemini."""


def error_for_status(status: int, message: str, url: str, model: str, retry_after: float | None) -> ModelError:
    """Return the error for an HTTP status.

    Args:
        status: The HTTP status of the response.
        message: The server's error message; "" if there is none.
        url: The address of the server.
        model: The name of the requested model.
        retry_after: The seconds in the header Retry-After, or None.
    """
    detail = f": {message}" if message else ""
    if status in (400, 413, 422) and _CONTEXT_WORDS.search(message):
        return ContextOverflow(f"the prompt does not fit the model's context{detail}", "lower --passage-tokens")
    if status in (429, 503, 529):
        return ServerOverloaded(f"{url} is overloaded ({status}){detail}", "lower --concurrency", retry_after)
    if status in (408, 409, 425) or status >= 500:
        return ServerError(f"{url} failed ({status}){detail}", "see the server's log")
    if status in (400, 403, 422, 451) and _CONTENT_FILTER.search(message):
        return PromptFiltered(
            f"the content filter of {url} refused a prompt ({status}){detail}",
            "the window keeps its input order; to have it ranked, rephrase the query or remove the passage",
            status,
        )
    if status in (401, 403):
        return RequestRejected(
            f"{url} refused the key ({status}){detail}", "check --api-key-env and the key in that variable", status
        )
    if status == 404:
        return RequestRejected(
            f"{url} does not know the model {model!r} or the path (404){detail}",
            "check --model, and that --server ends in /v1",
            status,
        )
    return RequestRejected(f"{url} refused the request ({status}){detail}", SERVERS_PAGE, status)


def error_from_event(error: Any) -> ModelError:
    """Return the error for the value of `error` in a streamed event or a JSON response."""
    message = str(_code_and_message(error))[:300]
    code = error.get("code") if isinstance(error, Mapping) else None
    status = 400 if _CONTENT_FILTER.search(message) else 500
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    return error_for_status(status, message, "the server", "", None)


def error_message(raw: bytes) -> str:
    """Return the message in the body of an error response, on one line."""
    message: Any = raw.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        body = json.loads(raw)
        if isinstance(body, Mapping):
            message = _code_and_message(body.get("error", body)) or message
    return " ".join(str(message).split())[:300]


def _code_and_message(error: Any) -> Any:
    """Return the message of an error object, preceded by its code if the code is a word such as "content_filter"."""
    if not isinstance(error, Mapping):
        return error
    message, code = error.get("message") or error.get("detail"), error.get("code")
    is_word = isinstance(code, str) and bool(code) and not code.isdecimal() and code not in str(message)
    return f"{code}: {message}" if message and is_word else message


def retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds to wait by a Retry-After header, which is a number or a date; None if it is neither."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if header is None:
        return None
    with contextlib.suppress(ValueError):
        return max(float(header), 0.0)
    with contextlib.suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    return None
