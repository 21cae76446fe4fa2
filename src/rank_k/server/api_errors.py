"""Errors of the API: a status and a JSON body `{"message", "detail"}`, and `field` if a field is invalid.

`message` and `detail` have the same text: some clients read the one, some the other.
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
    """A request that gets no ranking. What it is raised from is reported to whoever runs the server."""

    def __init__(self, status: int, message: str, field: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        body = {"message": self.message, "detail": self.message}
        return {**body, "field": self.field} if self.field else body


def invalid_field(field: str, message: str) -> ApiError:
    """Return the error for an invalid field of a request."""
    return ApiError(422, f"{field}: {message}", field)


def too_busy(seconds: int, message: str) -> ApiError:
    return ApiError(429, f"{message}; try again in {seconds} s", headers={"Retry-After": str(seconds)})


def server_stopping() -> ApiError:
    return ApiError(503, "the server is stopping", headers={"Retry-After": "30"})


_STATUS_AND_MESSAGE: Mapping[type[Exception], tuple[int, str]] = {
    ServerOverloaded: (503, "the model's server has too much to do"),
    ConnectionFailed: (502, "the model's server cannot be reached"),
    PromptFiltered: (422, "the model's content filter refused the query or a document"),
    RequestRejected: (502, "the model's server refused the question ({status})"),
    ModelError: (502, "the model's server failed"),
    JournalError: (507, "the answer could not be kept"),
    InputError: (502, "the model cannot be asked as this server is set up"),
    Exception: (500, "the server failed"),
}
"""By type of error; the first that fits counts."""


def to_api_error(error: BaseException) -> ApiError:
    """Return the error for the client. It has no addresses, keys or messages of the model's server."""
    if isinstance(error, QueryTooLong):
        return invalid_field("query", "it is too long for the model's context")
    if isinstance(error, ModelError) and _is_timeout(error):
        return ApiError(504, "the model did not answer in time")
    cause = error.__cause__ if isinstance(error, RetriesExhausted) and error.__cause__ else error
    status, message = next(row for kind, row in _STATUS_AND_MESSAGE.items() if isinstance(cause, kind))
    headers = {"Retry-After": "30"} if status == 503 else {}
    return ApiError(status, message.format(status=getattr(cause, "status", "")), headers=headers)


def _is_timeout(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error is not None
