"""Every way of saying no: a status and a JSON body `{"message", "detail"}`, and `field` where one is at fault.

`message` and `detail` say the same: some clients read the one, some the other.
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
    """A request that gets no ranking."""

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
    """A field of the request is not what it should be."""
    return ApiError(422, f"{field}: {message}", field)


def too_busy(seconds: int, message: str) -> ApiError:
    return ApiError(429, f"{message}; try again in {seconds} s", headers={"Retry-After": str(seconds)})


def server_stopping() -> ApiError:
    return ApiError(503, "the server is stopping", headers={"Retry-After": "30"})


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of an error behind the server. Addresses, keys and what the model's server said are
    none of its business: those are for who runs this one."""
    if isinstance(error, QueryTooLong):
        return invalid_field("query", "it is too long for the model's context")
    if isinstance(error, ModelError):
        if _is_timeout(error):
            return ApiError(504, "the model did not answer in time")
        cause = error.__cause__ if isinstance(error, RetriesExhausted) else error
        if isinstance(cause, ServerOverloaded):
            return ApiError(503, "the model's server has too much to do", headers={"Retry-After": "30"})
        if isinstance(cause, ConnectionFailed):
            return ApiError(502, "the model's server cannot be reached")
        if isinstance(cause, PromptFiltered):
            return ApiError(422, "the model's content filter refused the query or a document")
        if isinstance(cause, RequestRejected):
            return ApiError(502, f"the model's server refused the question ({cause.status})")
        return ApiError(502, "the model's server failed")
    if isinstance(error, JournalError):
        return ApiError(507, "the answer could not be kept")
    if isinstance(error, InputError):
        return ApiError(502, "the model cannot be asked as this server is set up")
    return ApiError(500, "the server failed")


def _is_timeout(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False
