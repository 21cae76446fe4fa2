"""Looking at a journal over HTTP: paths, parameters and refusals. What is shown is the business of `journal_views`.

The file is opened read-only for each look, in a thread of its own: a job may be writing to it, and nothing that comes
in here can change it. It holds texts, so that nobody but who has a key, or is on this machine, may look.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.errors import JournalError
from rank_k.journal import Journal, QueryRecord
from rank_k.optional_deps import load
from rank_k.server import journal_views
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.config import AccessConfig

if TYPE_CHECKING:
    from starlette.requests import Request

_MAX_INTEGER = 2**53  # what JSON can say of a whole number

Handler = Callable[["Request"], Awaitable[Any]]


class JournalRoutes:
    """`path`: the journal, None where it is no file. `to_response` makes a response of a view."""

    def __init__(self, path: Path | None, access: AccessConfig, to_response: Callable[[Any], Any]) -> None:
        self._path = path
        self._is_open_to_all = access.open_to_all
        self._to_response = to_response

    def routes(self) -> list[Any]:
        """Starlette's. Raises `MissingExtra`."""
        route: Any = load("starlette.routing").Route
        return [
            route("/journal/runs", self._make_handler(_runs)),
            route("/journal/queries", self._make_handler(_queries)),
            route("/journal/query", self._make_handler(_query)),
            route("/journal/window", self._make_handler(_window)),
        ]

    def _make_handler(self, view: Callable[[Journal, Request], dict[str, Any]]) -> Handler:
        async def handle(request: Request) -> Any:
            return self._to_response(await asyncio.to_thread(self._read_view, view, request))

        return handle

    def _read_view(self, view: Callable[[Journal, Request], dict[str, Any]], request: Request) -> dict[str, Any]:
        if self._is_open_to_all:
            raise ApiError(403, "anybody can reach this server: it shows its journal only to who has a key")
        if self._path is None and view in (_runs, _queries):
            return {"journal": None, "total": 0, "offset": 0, "runs": [], "queries": []}
        if self._path is None:
            raise ApiError(404, "this server keeps its calls where they cannot be looked at")
        try:
            with closing(Journal(self._path, read_only=True)) as journal:
                return {"journal": self._path.name, **view(journal, request)}
        except (JournalError, sqlite3.Error) as error:
            raise ApiError(503, "the journal cannot be read") from error


def _runs(journal: Journal, request: Request) -> dict[str, Any]:
    return journal_views.runs(journal, _integer_parameter(request, "offset", 0))


def _queries(journal: Journal, request: Request) -> dict[str, Any]:
    parameters = request.query_params
    return journal_views.queries(
        journal, parameters.get("run"), parameters.get("find", "")[:500], _integer_parameter(request, "offset", 0)
    )


def _query(journal: Journal, request: Request) -> dict[str, Any]:
    return journal_views.query(journal, _record(journal, request))


def _window(journal: Journal, request: Request) -> dict[str, Any]:
    window = journal_views.window(
        journal, _record(journal, request), _integer_parameter(request, "round"), _integer_parameter(request, "window")
    )
    if window is None:
        raise ApiError(404, "this query has no such window in the journal", "window")
    return window


def _record(journal: Journal, request: Request) -> QueryRecord:
    record = journal.find_query(request.query_params.get("run", ""), _integer_parameter(request, "position"))
    if record is None:
        raise ApiError(404, "there is no such query in the journal", "position")
    return record


def _integer_parameter(request: Request, name: str, default: int | None = None) -> int:
    """The whole number in a parameter. Raises `ApiError`."""
    value = request.query_params.get(name)
    if value is None and default is not None:
        return default
    if value is None or not (value.isascii() and value.isdecimal()) or int(value[:20]) > _MAX_INTEGER:
        raise invalid_field(name, "a whole number of 0 or more is needed")
    return int(value[:20])
