"""The journal over HTTP, read-only: paths, parameters and refusals. `journal_views` returns what is shown.

The file is opened for each request, in a thread: a job may be writing to it. It holds texts, so only clients with a
key, or on this machine, may read it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rank_k.errors import JournalError
from rank_k.journal import Journal
from rank_k.optional_deps import load
from rank_k.server import journal_views
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig
from rank_k.server.http_io import json_response
from rank_k.server.schema import validate

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class JournalView(NamedTuple):
    """A path of the journal viewer.

    Attributes:
        summary: What it returns, for the OpenAPI document.
        parameters: The dataclass of its query parameters.
        read: Returns the view's JSON values.
    """

    summary: str
    parameters: type
    read: Callable[[Journal, Any], dict[str, Any]]


VIEWS = {
    "/journal/runs": JournalView(
        "the journal's runs, the last one begun first", journal_views.RunsParameters, journal_views.runs
    ),
    "/journal/queries": JournalView(
        "queries of a run, or of all", journal_views.QueriesParameters, journal_views.queries
    ),
    "/journal/query": JournalView(
        "a query's passages, rounds, windows and ranking", journal_views.QueryParameters, journal_views.query
    ),
    "/journal/window": JournalView(
        "a window's passages, orders and calls", journal_views.WindowParameters, journal_views.window
    ),
}
"""The views of a journal, by path."""


def routes(journal: Path | None, access: AccessConfig) -> list[Any]:
    """Return Starlette routes. `journal`: the file, None if there is none. Raises `MissingExtra`."""

    async def handle(view: JournalView, request: Request) -> Response:
        if access.open_to_all:
            raise ApiError(403, "anybody can reach this server: it shows its journal only to who has a key")
        parameters: Any = validate(view.parameters, request.query_params)
        return json_response(await asyncio.to_thread(_read, journal, view, parameters))

    route: Any = load("starlette.routing").Route
    return [route(path, partial(handle, view)) for path, view in VIEWS.items()]


def _read(path: Path | None, view: JournalView, parameters: Any) -> dict[str, Any]:
    if path is None and isinstance(parameters, journal_views.RunsParameters):
        return {"journal": None, "total": 0, "offset": 0, "runs": [], "queries": []}
    if path is None:
        raise ApiError(404, "this server keeps its calls where they cannot be looked at")
    try:
        with closing(Journal(path, read_only=True)) as journal:
            return {"journal": path.name, **view.read(journal, parameters)}
    except (JournalError, sqlite3.Error) as error:
        raise ApiError(503, "the journal cannot be read") from error
