"""The errors that Rank-K raises::

    RankKError                  says what is wrong and, in `remedy`, what to do
    ├── InputError              the user's data, options or environment need a change (exit status 2)
    │   ├── FormatError         a line of a file has the wrong format; has path, line number and the expected format
    │   ├── QueryTooLong        the query alone does not fit the model's context
    │   ├── StrategyError       a strategy ranks candidates that it was not given, or loses some
    │   ├── MissingExtra        an optional dependency is not installed (also an ImportError)
    │   ├── MissingWeights      the weights of the embedded model have not been downloaded
    │   └── JournalError        the journal cannot be used, or the file is not a journal
    └── ModelError              the model did not respond; `retryable` says whether retrying can help
        ├── ConnectionFailed    the server cannot be reached (retryable)
        ├── ServerOverloaded    429 or 503; `retry_after` in seconds if the server sent it (retryable)
        ├── ServerError         any other 5xx, a dropped connection, a broken stream (retryable)
        ├── ContextOverflow     the server says that the prompt does not fit; the prompt is then truncated further
        ├── RequestRejected     any other 4xx: wrong key, unknown model, bad request
        │   ├── FieldRejected   the server rejects an optional field; the request can be sent without it
        │   └── PromptFiltered  a content filter rejects one prompt; other windows are not affected
        ├── ResponsePending     the request waits in a batch file
        └── RetriesExhausted    no response after all retries

An unusable *answer* is not an error. It is a `ParsedAnswer` with repairs (see `rank_k.window.parsing`).
"""

from __future__ import annotations

from pathlib import Path


class RankKError(Exception):
    """Base class. `str()` is one line: what is wrong, then what to do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class InputError(RankKError):
    """The user's data, options or environment need a change."""


class FormatError(InputError):
    """A line of a file has the wrong format. `line` counts from 1; 0 means the file as a whole."""

    def __init__(self, path: str | Path, line: int, problem: str, expected: str) -> None:
        self.path, self.line, self.expected = str(path), line, expected
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {problem}", f"expected {expected}")


class QueryTooLong(InputError):
    """The query alone leaves no space for passages and an answer in the model's context."""


class StrategyError(InputError):
    """A strategy violates the protocol of strategies."""


class MissingExtra(InputError, ImportError):
    """An optional dependency is not installed."""


class MissingWeights(InputError):
    """The embedded model's weights are not on this machine."""


class ModelError(RankKError):
    """The model did not respond."""

    retryable = False


class ConnectionFailed(ModelError):
    retryable = True


class ServerOverloaded(ModelError):
    retryable = True

    def __init__(self, problem: str, remedy: str = "", retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(problem, remedy)


class ServerError(ModelError):
    retryable = True


class ContextOverflow(ModelError):
    """The server counted more tokens than its context holds."""


class RequestRejected(ModelError):
    def __init__(self, problem: str, remedy: str = "", status: int = 400) -> None:
        self.status = status
        super().__init__(problem, remedy)

    @property
    def is_about_fields(self) -> bool:
        """Whether the server may accept the request with fewer fields, because it rejected neither key nor prompt."""
        return self.status not in (401, 403) and not isinstance(self, PromptFiltered)


class FieldRejected(RequestRejected):
    """The server rejects an optional field of the request, such as a reasoning budget."""


class PromptFiltered(RequestRejected):
    """The server's content filter rejects one prompt. It may accept the next prompt."""


class ResponsePending(ModelError):
    """The request was written to a batch file and has no response yet."""


class RetriesExhausted(ModelError):
    """The model did not respond to any attempt."""


class JournalError(InputError):
    """The journal cannot be used, for example because the disk is full or because its version is not supported."""
