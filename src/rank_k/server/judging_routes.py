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
from rank_k.server.judging_session import JudgingSession, PairwiseItem, PairwiseItems, PassageStore, displayed_pair
from rank_k.server.preferences_file import PreferencesFile
from rank_k.server.requests import json_object
from rank_k.server.service import RerankService

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_LONGEST_NAME = 100
_MOST_SECONDS = 86_400.0
_JUDGES_KEPT = 100
"""In memory. Any other is made again from the rows."""


class JudgingRoutes:
    """A `Room` of the application. Owns neither `store` nor `file`."""

    name = "judge"
    open_paths: frozenset[str] = frozenset()

    def __init__(self, asked: PairwiseItems, store: PassageStore, file: PreferencesFile) -> None:
        self._asked = asked
        self._store = store
        self._file = file
        self._judges: dict[str, JudgingSession] = {}
        self._writing = asyncio.Lock()

    def routes(self, desk: RerankService, doors: AccessConfig) -> list[Any]:
        route: Any = load("starlette.routing").Route
        self._desk, self._doors = desk, doors
        return [
            route("/judge/question", self._question),
            route("/judge/choice", self._choice, methods=["POST"]),
            route("/judge/undo", self._undo, methods=["POST"]),
            route("/judge/judgments.jsonl", self._judgments),
        ]

    async def _question(self, request: Request) -> Response:
        return await self._where(self._judge(dict(request.query_params)))

    async def _choice(self, request: Request) -> Response:
        body = await self._body(request)
        judge, token, choice = self._judge(body), body.get("token"), body.get("choice")
        if choice not in CHOICES:
            raise invalid_field("choice", f"write one of {', '.join(CHOICES)}")
        seconds = _seconds(body)
        async with self._writing:
            question = judge.question(token) if isinstance(token, str) else None
            if question is None:
                raise ApiError(409, "this is no longer asked: load the page again", "token")
            if judge.said(question.token(judge.name)) != choice:  # else it was sent twice
                await self._keep(judge, question, choice, seconds)
        return await self._where(judge)

    async def _undo(self, request: Request) -> Response:
        judge = self._judge(await self._body(request))
        async with self._writing:
            question = judge.last()
            if question is None:
                raise ApiError(409, "there is nothing to take back")
            await self._keep(judge, question, UNDONE, None)
        return await self._where(judge, question)

    async def _judgments(self, request: Request) -> Response:
        if self._doors.open_to_all:
            raise ApiError(403, "anybody can reach this server: take the file itself, or have it ask for a key")
        async with self._writing:
            content = await asyncio.to_thread(self._file.content)
        name = "judgments.jsonl"
        headers = {"Content-Type": "application/jsonl", "Content-Disposition": f'attachment; filename="{name}"'}
        return response(content, 200, headers)

    async def _where(self, judge: JudgingSession, question: PairwiseItem | None = None) -> Response:
        """Where a judge stands: how far, and what comes next, `question` or the first that is left."""
        question = question or judge.next()
        told: dict[str, Any] = {
            "judge": judge.name,
            "done": judge.done,
            "total": judge.total,
            "can_undo": judge.last() is not None,
            "identical": self._asked.identical,
            "question": None,
        }
        if question is not None:
            try:
                told["question"] = asdict(await asyncio.to_thread(displayed_pair, question, judge.name, self._store))
            except (RankKError, OSError) as error:
                self._desk.failed(error if isinstance(error, RankKError) else _unreadable(error))
                raise ApiError(500, "a passage cannot be read; whoever runs this server has been told why") from None
        return json_response(told)

    async def _keep(self, judge: JudgingSession, question: PairwiseItem, choice: str, seconds: float | None) -> None:
        """Returns once it is on disk, and counts."""
        row = judge.judgment(question, choice, seconds, datetime.now(UTC))
        try:
            await asyncio.to_thread(self._file.append, row)
        except OSError as error:
            self._desk.failed(_unwritable(self._file.path, error))
            raise ApiError(507, "it could not be kept; whoever runs this server has been told why") from None
        judge.take(row)

    def _judge(self, told: Mapping[str, Any]) -> JudgingSession:
        name = told.get("judge")
        name = name.strip() if isinstance(name, str) else ""
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise invalid_field("judge", f"a name of 1 to {_LONGEST_NAME} letters is needed")
        judge = self._judges.pop(name, None) or JudgingSession(name, self._asked, self._file.rows)
        self._judges[name] = judge  # the last one used stands last
        if len(self._judges) > _JUDGES_KEPT:
            del self._judges[next(iter(self._judges))]
        return judge

    async def _body(self, request: Request) -> dict[str, Any]:
        limits = self._desk.limits
        return json_object(await read_body(request, limits.body, limits.body_seconds))


def _seconds(body: Mapping[str, Any]) -> float | None:
    value = body.get("seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise invalid_field("seconds", "must be a number from 0")
    return round(min(float(value), _MOST_SECONDS), 1) if value < _MOST_SECONDS else _MOST_SECONDS


def _unreadable(error: OSError) -> InputError:
    return InputError(f"the documents cannot be read ({error.strerror})", "look whether they are still there")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path} ({error.strerror})", "judging goes on once that is mended")
