"""Looking at a journal over HTTP: paths, parameters and refusals. What is shown is the business of `views`.

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

_MOST = 2**53  # what JSON can say of a whole number

Answer = Callable[["Request"], Awaitable[Any]]


class JournalRoutes:
    """`path`: the journal, None where it is no file. `answer` makes a response of what is told."""

    def __init__(self, path: Path | None, doors: AccessConfig, answer: Callable[[Any], Any]) -> None:
        self._path = path
        self._is_open_to_all = doors.open_to_all
        self._answer = answer

    def routes(self) -> list[Any]:
        """Starlette's. Raises `MissingExtra`."""
        route: Any = load("starlette.routing").Route
        return [
            route("/journal/runs", self._looked(_runs)),
            route("/journal/queries", self._looked(_queries)),
            route("/journal/query", self._looked(_query)),
            route("/journal/window", self._looked(_window)),
        ]

    def _looked(self, view: Callable[[Journal, Request], dict[str, Any]]) -> Answer:
        async def answer(request: Request) -> Any:
            return self._answer(await asyncio.to_thread(self._look, view, request))

        return answer

    def _look(self, view: Callable[[Journal, Request], dict[str, Any]], request: Request) -> dict[str, Any]:
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
    return journal_views.runs(journal, _whole(request, "offset", 0))


def _queries(journal: Journal, request: Request) -> dict[str, Any]:
    asked = request.query_params
    return journal_views.queries(journal, asked.get("run"), asked.get("find", "")[:500], _whole(request, "offset", 0))


def _query(journal: Journal, request: Request) -> dict[str, Any]:
    return journal_views.query(journal, _record(journal, request))


def _window(journal: Journal, request: Request) -> dict[str, Any]:
    found = journal_views.window(
        journal, _record(journal, request), _whole(request, "round"), _whole(request, "window")
    )
    if found is None:
        raise ApiError(404, "this query has no such window in the journal", "window")
    return found


def _record(journal: Journal, request: Request) -> QueryRecord:
    found = journal.query(request.query_params.get("run", ""), _whole(request, "position"))
    if found is None:
        raise ApiError(404, "there is no such query in the journal", "position")
    return found


def _whole(request: Request, name: str, default: int | None = None) -> int:
    """The whole number in a parameter. Raises a `Refusal`."""
    given = request.query_params.get(name)
    if given is None and default is not None:
        return default
    if given is None or not (given.isascii() and given.isdecimal()) or int(given[:20]) > _MOST:
        raise invalid_field(name, "a whole number of 0 or more is needed")
    return int(given[:20])
