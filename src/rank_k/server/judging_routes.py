"""Judging over HTTP: the next question, a choice, undoing it, and all judgments as JSONL.

Only the last of these names systems. No request names a file: runs, queries, documents and the file of the judgments
are named when the server is started.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rank_k.errors import InputError, RankKError
from rank_k.evaluation.preferences import UNDONE
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.http_io import Request, Response, RouteGroup, json_response, read_json, response, route
from rank_k.server.judging_session import JudgingSession, PairwiseItem, PairwiseItems, displayed_pair
from rank_k.server.preferences_file import PreferencesFile
from rank_k.server.schema import described, validate
from rank_k.types import PassageSource

_MAX_NAME_LENGTH = 100
_MAX_SECONDS = 86_400.0
_MAX_SESSIONS = 100
"""In memory. Any other is restored from the rows."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    judge: str = described(f"a name of 1 to {_MAX_NAME_LENGTH} letters")


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest(JudgeRequest):
    token: Any = described("the question's", None)
    choice: Literal["left", "right", "tie"] = described("left, right or tie")
    seconds: float | None = described("how long the question was on the screen", None, ge=0, strict=True)


class JudgingRoutes:
    """The routes of a study. Owns neither `store` nor `file`."""

    def __init__(self, items: PairwiseItems, store: PassageSource, file: PreferencesFile) -> None:
        self._items = items
        self._store = store
        self._file = file
        self._sessions: dict[str, JudgingSession] = {}
        self._write_lock = asyncio.Lock()

    def route_group(self) -> RouteGroup:
        """Return the routes. Raises `MissingExtra`."""
        routes = [
            route("/judge/question", self._get_question),
            route("/judge/choice", self._post_choice, "POST"),
            route("/judge/undo", self._post_undo, "POST"),
            route("/judge/judgments.jsonl", self._get_judgments),
        ]
        return RouteGroup("judge", routes, private_paths=frozenset({"/judge/judgments.jsonl"}))

    async def _get_question(self, request: Request) -> Response:
        return await self._state_response(self._session(validate(JudgeRequest, request.query_params)))

    async def _post_choice(self, request: Request) -> Response:
        body = validate(ChoiceRequest, await read_json(request))
        session = self._session(body)
        seconds = None if body.seconds is None else round(min(body.seconds, _MAX_SECONDS), 1)
        async with self._write_lock:
            item = session.find_item(body.token) if isinstance(body.token, str) else None
            if item is None:
                raise ApiError(409, "this is no longer asked: load the page again", "token")
            if session.choice_for(item.token(session.name)) != body.choice:  # else it was sent twice
                await self._store_judgment(session, item, body.choice, seconds)
        return await self._state_response(session)

    async def _post_undo(self, request: Request) -> Response:
        session = self._session(validate(JudgeRequest, await read_json(request)))
        async with self._write_lock:
            item = session.last_judged()
            if item is None:
                raise ApiError(409, "there is nothing to take back")
            await self._store_judgment(session, item, UNDONE, None)
        return await self._state_response(session, item)

    async def _get_judgments(self, request: Request) -> Response:
        async with self._write_lock:
            content = await asyncio.to_thread(self._file.path.read_bytes)
        disposition = 'attachment; filename="judgments.jsonl"'
        return response(content, 200, {"Content-Type": "application/jsonl", "Content-Disposition": disposition})

    async def _state_response(self, session: JudgingSession, item: PairwiseItem | None = None) -> Response:
        """Return a judge's progress and the next item: `item` or the first that is left."""
        item = item or session.next_item()
        try:
            pair = await asyncio.to_thread(displayed_pair, item, session.name, self._store) if item else None
        except (RankKError, OSError) as error:
            if isinstance(error, OSError):
                error = InputError(f"the documents cannot be read ({error.strerror})", "check that they still exist")
            raise ApiError(500, "a passage cannot be read; whoever runs this server has been told why") from error
        state = {
            "judge": session.name,
            "done": session.done,
            "total": session.total,
            "can_undo": session.last_judged() is not None,
            "identical": self._items.identical,
            "question": pair,
        }
        return json_response(state)

    async def _store_judgment(
        self, session: JudgingSession, item: PairwiseItem, choice: str, seconds: float | None
    ) -> None:
        """Return once the judgment is on disk, and counts."""
        row = session.judgment(item, choice, seconds, datetime.now(UTC))
        try:
            await asyncio.to_thread(self._file.append, row)
        except OSError as error:
            cause = InputError(f"cannot write {self._file.path} ({error.strerror})", "judging continues once you can")
            raise ApiError(507, "it could not be kept; whoever runs this server has been told why") from cause
        session.apply(row)

    def _session(self, request: JudgeRequest) -> JudgingSession:
        name = request.judge.strip()
        if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
            raise invalid_field("judge", f"a name of 1 to {_MAX_NAME_LENGTH} letters is needed")
        session = self._sessions.pop(name, None) or JudgingSession(name, self._items, self._file.rows)
        self._sessions[name] = session  # the one used last comes last
        if len(self._sessions) > _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session
