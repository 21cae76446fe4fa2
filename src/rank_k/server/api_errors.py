"""Errors of the HTTP API: a status and a JSON body `{"message", "detail"}`, with `field` if a field is invalid.

`message` and `detail` have the same text, because some clients read `message` and others `detail`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rank_k.errors import (
    ConnectionFailed,
    InputError,
    JournalError,
    ModelError,
    PromptFiltered,
    QueryTooLong,
    RequestRejected,
    RetriesExhausted,
    ServerOverloaded,
)


class ApiError(Exception):
    """An error response. The cause of the exception is reported to the operator of the server, not to the client.

    Args:
        status: The HTTP status.
        message: The text for the client.
        field: The invalid field of the request; empty if the error is not about a field.
        headers: Additional response headers.
    """

    def __init__(self, status: int, message: str, field: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the response body as JSON values."""
        body = {"message": self.message, "detail": self.message}
        return {**body, "field": self.field} if self.field else body


def invalid_field(field: str, message: str) -> ApiError:
    """Return the error for an invalid field of a request."""
    return ApiError(422, f"{field}: {message}", field)


def too_busy(seconds: int, message: str) -> ApiError:
    """Return the error for a full queue, with the number of seconds after which the client should try again."""
    return ApiError(429, f"{message}; try again in {seconds} s", headers={"Retry-After": str(seconds)})


def server_stopping() -> ApiError:
    """Return the error for requests that are still waiting or running when the server stops."""
    return ApiError(503, "the server is stopping", headers={"Retry-After": "30"})


_STATUS_AND_MESSAGE: Mapping[type[Exception], tuple[int, str]] = {
    ServerOverloaded: (503, "the model server is overloaded"),
    ConnectionFailed: (502, "the model server cannot be reached"),
    PromptFiltered: (422, "the content filter of the model server rejected the query or a document"),
    RequestRejected: (502, "the model server rejected the request (status {status})"),
    ModelError: (502, "the model server failed"),
    JournalError: (507, "the response could not be stored in the journal"),
    InputError: (502, "the model cannot be used with the options of this server"),
    Exception: (500, "internal server error"),
}
"""The HTTP status and the message for each type of error. The first type that matches is used."""


def to_api_error(error: BaseException) -> ApiError:
    """Return the error for the client. It contains no addresses, keys or messages of the model server."""
    if isinstance(error, QueryTooLong):
        return invalid_field("query", "too long for the context of the model")
    if isinstance(error, ModelError) and _is_timeout(error):
        return ApiError(504, "the model did not respond in time")
    cause = error.__cause__ if isinstance(error, RetriesExhausted) and error.__cause__ else error
    status, message = next(row for kind, row in _STATUS_AND_MESSAGE.items() if isinstance(cause, kind))
    headers = {"Retry-After": "30"} if status == 503 else {}
    return ApiError(status, message.format(status=getattr(cause, "status", "")), headers=headers)


def _is_timeout(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error is not None
