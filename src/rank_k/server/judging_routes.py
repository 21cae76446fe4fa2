"""Judging over HTTP: a question, what is said of it, the same taken back, and all that was said, as JSON.

Nothing that is sent before the last of these names a system. No request names a file: runs, queries, documents and
where judgments are kept were named when the server was started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.errors import InputError, RankKError
from rank_k.evaluation.preferences import CHOICES, UNDONE
from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.config import AccessConfig
from rank_k.server.http_io import json_response, read_body, response
from rank_k.server.judging_session import JudgingSession, PairwiseItem, PairwiseItems, displayed_pair
from rank_k.server.preferences_file import PreferencesFile
from rank_k.server.requests import json_object
from rank_k.server.service import RerankService
from rank_k.types import PassageSource

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_MAX_NAME_LENGTH = 100
_MAX_SECONDS = 86_400.0
_MAX_SESSIONS = 100
"""In memory. Any other is made again from the rows."""


class JudgingRoutes:
    """A `RouteGroup` of the application. Owns neither `store` nor `file`."""

    name = "judge"
    open_paths: frozenset[str] = frozenset()

    def __init__(self, items: PairwiseItems, store: PassageSource, file: PreferencesFile) -> None:
        self._items = items
        self._store = store
        self._file = file
        self._sessions: dict[str, JudgingSession] = {}
        self._write_lock = asyncio.Lock()

    def routes(self, service: RerankService, access: AccessConfig) -> list[Any]:
        route: Any = load("starlette.routing").Route
        self._service, self._access = service, access
        return [
            route("/judge/question", self._get_question),
            route("/judge/choice", self._post_choice, methods=["POST"]),
            route("/judge/undo", self._post_undo, methods=["POST"]),
            route("/judge/judgments.jsonl", self._get_judgments),
        ]

    async def _get_question(self, request: Request) -> Response:
        return await self._state_response(self._session(dict(request.query_params)))

    async def _post_choice(self, request: Request) -> Response:
        body = await self._read_json(request)
        session, token, choice = self._session(body), body.get("token"), body.get("choice")
        if choice not in CHOICES:
            raise invalid_field("choice", f"write one of {', '.join(CHOICES)}")
        seconds = _parse_seconds(body)
        async with self._write_lock:
            item = session.find_item(token) if isinstance(token, str) else None
            if item is None:
                raise ApiError(409, "this is no longer asked: load the page again", "token")
            if session.choice_for(item.token(session.name)) != choice:  # else it was sent twice
                await self._store_judgment(session, item, choice, seconds)
        return await self._state_response(session)

    async def _post_undo(self, request: Request) -> Response:
        session = self._session(await self._read_json(request))
        async with self._write_lock:
            item = session.last_judged()
            if item is None:
                raise ApiError(409, "there is nothing to take back")
            await self._store_judgment(session, item, UNDONE, None)
        return await self._state_response(session, item)

    async def _get_judgments(self, request: Request) -> Response:
        if self._access.open_to_all:
            raise ApiError(403, "anybody can reach this server: take the file itself, or have it ask for a key")
        async with self._write_lock:
            content = await asyncio.to_thread(self._file.content)
        name = "judgments.jsonl"
        headers = {"Content-Type": "application/jsonl", "Content-Disposition": f'attachment; filename="{name}"'}
        return response(content, 200, headers)

    async def _state_response(self, session: JudgingSession, item: PairwiseItem | None = None) -> Response:
        """Return a judge's progress and the next item: `item` or the first that is left."""
        item = item or session.next_item()
        state: dict[str, Any] = {
            "judge": session.name,
            "done": session.done,
            "total": session.total,
            "can_undo": session.last_judged() is not None,
            "identical": self._items.identical,
            "question": None,
        }
        if item is not None:
            try:
                state["question"] = asdict(await asyncio.to_thread(displayed_pair, item, session.name, self._store))
            except (RankKError, OSError) as error:
                self._service.report_error(error if isinstance(error, RankKError) else _unreadable_error(error))
                raise ApiError(500, "a passage cannot be read; whoever runs this server has been told why") from None
        return json_response(state)

    async def _store_judgment(
        self, session: JudgingSession, item: PairwiseItem, choice: str, seconds: float | None
    ) -> None:
        """Returns once it is on disk, and counts."""
        row = session.judgment(item, choice, seconds, datetime.now(UTC))
        try:
            await asyncio.to_thread(self._file.append, row)
        except OSError as error:
            self._service.report_error(_unwritable_error(self._file.path, error))
            raise ApiError(507, "it could not be kept; whoever runs this server has been told why") from None
        session.apply(row)

    def _session(self, fields: Mapping[str, Any]) -> JudgingSession:
        name = fields.get("judge")
        name = name.strip() if isinstance(name, str) else ""
        if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
            raise invalid_field("judge", f"a name of 1 to {_MAX_NAME_LENGTH} letters is needed")
        session = self._sessions.pop(name, None) or JudgingSession(name, self._items, self._file.rows)
        self._sessions[name] = session  # the last one used stands last
        if len(self._sessions) > _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session

    async def _read_json(self, request: Request) -> dict[str, Any]:
        limits = self._service.limits
        return json_object(await read_body(request, limits.body, limits.body_seconds))


def _parse_seconds(body: Mapping[str, Any]) -> float | None:
    value = body.get("seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise invalid_field("seconds", "must be a number from 0")
    return round(min(float(value), _MAX_SECONDS), 1) if value < _MAX_SECONDS else _MAX_SECONDS


def _unreadable_error(error: OSError) -> InputError:
    return InputError(f"the documents cannot be read ({error.strerror})", "look whether they are still there")


def _unwritable_error(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path} ({error.strerror})", "judging goes on once that is mended")
