"""Human judging: judges see two rankings of a query side by side, and their preferences are stored in a file.

Judges must not know which system produced which ranking. Therefore the page shows no system names, scores or document
ids; only the export of all judgments contains them. Which ranking is on the left is pseudo-random: it is derived from
the judge, the query, the systems and both full rankings. It does not change when the page is reloaded, the server is
restarted or the runs are given in a different order, and judges cannot compute it without the runs.

Clients cannot choose files: the runs, queries, documents and the preferences file are options of the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from rank_k.data.lines import json_line
from rank_k.data.part_file import lock_exclusively
from rank_k.errors import FormatError, InputError, RankKError
from rank_k.evaluation.preferences import UNDONE, Judgment, current_judgments, read_judgments
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.http_io import Request, Response, RouteGroup, json_response, read_json, response, route
from rank_k.server.schema import described, validate
from rank_k.types import PassageSource, Query, Run

MAX_PASSAGE_CHARACTERS = 20_000
"""The maximum number of characters of a passage that the page shows."""


@dataclass(frozen=True, slots=True)
class PairwiseItem:
    """Two rankings of a query, to be compared by judges.

    Attributes:
        query: The query.
        translation: The translation of the query, if there is one.
        systems: The names of the two systems.
        rankings: The document ids of the passages that the page shows, for each system.
        digest: A hash of both full rankings.
    """

    query: Query
    translation: str | None
    systems: tuple[str, str]
    rankings: tuple[tuple[str, ...], tuple[str, ...]]
    digest: str

    def sides(self, judge: str) -> tuple[int, int]:
        """Return the index in `rankings` of the ranking on the left, and of the ranking on the right."""
        return (1, 0) if _digest("sides", self.digest, judge, self.query.query_id, *self.systems)[0] % 2 else (0, 1)

    def displayed(self, judge: str) -> tuple[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return the left and right systems and the left and right document ids, as this judge sees them."""
        left, right = self.sides(judge)
        return (self.systems[left], self.systems[right]), (self.rankings[left], self.rankings[right])

    def token(self, judge: str) -> str:
        """Return an id for the item as this judge sees it. It changes with runs and depth, and hides the systems."""
        left, right = self.displayed(judge)[1]
        parts = (self.query.query_id, *self.systems, "left", *left, "right", *right)
        return _digest("shown", self.digest, judge, *parts).hex()[:32]


@dataclass(frozen=True, slots=True)
class PairwiseItems:
    """All items of a judging study.

    Attributes:
        items: The items in the order in which judges see them.
        depth: The maximum number of passages per ranking.
        identical: The number of pairs that are left out because both rankings show the same passages.
        missing: The number of pairs that are left out because a run does not contain the query.
    """

    items: tuple[PairwiseItem, ...]
    depth: int
    identical: int = 0
    missing: int = 0


def pairwise_items(
    queries: Mapping[str, Query], translations: Mapping[str, str], runs: Mapping[str, Run], depth: int = 10
) -> PairwiseItems:
    """Return an item for each query and each pair of runs.

    The order of the items is pseudo-random and the same for all judges. If judges stop early, they have judged a random
    sample of all pairs. The samples of different judges overlap, so that their agreement can be computed.

    Args:
        queries: The queries by id.
        translations: Translations of queries by query id.
        runs: The runs by name.
        depth: The number of passages per ranking.
    """
    items, identical, missing = [], 0, 0
    for query in queries.values():
        for systems in combinations(sorted(runs), 2):
            full_rankings = [[candidate.doc_id for candidate in runs[name].get(query.query_id, ())] for name in systems]
            first, second = (tuple(doc_ids[:depth]) for doc_ids in full_rankings)
            if not (first and second):
                missing += 1
            elif first == second:
                identical += 1
            else:
                digest = _digest(*full_rankings[0], "", *full_rankings[1]).hex()
                translation = translations.get(query.query_id)
                items.append(PairwiseItem(query, translation, (systems[0], systems[1]), (first, second), digest))
    items.sort(key=lambda item: _digest("order", item.query.query_id, *item.systems))
    return PairwiseItems(tuple(items), depth, identical, missing)


def displayed_pair(item: PairwiseItem, judge: str, store: PassageSource) -> dict[str, Any]:
    """Return the two rankings of an item as JSON values.

    A passage that is in both rankings has the same number in both. `truncated` is true if only the beginning of
    the text is included.

    Args:
        item: The item.
        judge: The name of the judge.
        store: The passages. Reading them may take some time.

    Raises:
        InputError: If `store` lacks a passage.
    """
    passages: dict[str, Any] = {}
    left, right = item.displayed(judge)[1]
    for number, doc_id in enumerate(dict.fromkeys(left + right), 1):
        text = store.get(doc_id, item.query.query_id).text
        truncated = len(text) > MAX_PASSAGE_CHARACTERS
        passages[doc_id] = {"number": number, "text": text[:MAX_PASSAGE_CHARACTERS], "truncated": truncated}
    return {
        "token": item.token(judge),
        "query": item.query.text,
        "translation": item.translation,
        "left": [passages[doc_id] for doc_id in left],
        "right": [passages[doc_id] for doc_id in right],
    }


def _digest(*parts: str) -> bytes:
    """Return a hash of several texts. Each text is prefixed with its length, so that the boundaries are hashed too."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).digest()


def system_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the names of systems by path: the name of the file if it is unique, else the path."""
    base_names = [path.replace("\\", "/").rpartition("/")[2] for path in paths]
    return {path: name if base_names.count(name) == 1 else path for path, name in zip(paths, base_names, strict=True)}


# --- a judge's session ---


class JudgingSession:
    """The judgments of one judge.

    Args:
        name: The name of the judge.
        items: The items of the study.
        rows: Earlier judgments of all judges. Judgments of other judges or of rankings that have changed are ignored.

    Attributes:
        items: The items by token.
        judgments: The current judgments by token.
    """

    def __init__(self, name: str, items: PairwiseItems, rows: Iterable[Judgment]) -> None:
        self.name = name
        self._depth = items.depth
        self.items = {item.token(name): item for item in items.items}
        self.judgments: dict[str, Judgment] = {}
        rows = [row for row in rows if row.judge == name]
        self._last_time = max((row.time for row in rows), default=datetime.min.replace(tzinfo=UTC))
        tokens = {(item.query.query_id, item.systems): token for token, item in self.items.items()}
        for row in current_judgments(rows).judgments:
            token = tokens.get((row.query_id, row.pair), "")
            judged = (row.left, row.right), (row.left_doc_ids, row.right_doc_ids)
            if token and self.items[token].displayed(name) == judged:
                self.judgments[token] = row

    def next_item(self) -> PairwiseItem | None:
        """Return the first item without a judgment, or None if all items are judged."""
        return next((item for token, item in self.items.items() if token not in self.judgments), None)

    def last_judged(self) -> PairwiseItem | None:
        """Return the item of the latest judgment that is not undone, or None."""
        token = max(self.judgments, key=lambda token: self.judgments[token].time, default=None)
        return None if token is None else self.items[token]

    def judgment(self, item: PairwiseItem, choice: str, seconds: float | None, now: datetime) -> Judgment:
        """Return the row of a judgment. Its time is later than that of all earlier rows of this judge.

        Args:
            item: The item.
            choice: "left", "right", "tie" or "undone".
            seconds: How long the item was visible, if known.
            now: The current time.
        """
        (left, right), (left_ids, right_ids) = item.displayed(self.name)
        return Judgment(
            judge=self.name,
            query_id=item.query.query_id,
            left=left,
            right=right,
            choice=choice,
            time=max(now, self._last_time + timedelta(microseconds=1)),
            seconds=seconds,
            depth=self._depth,
            blind=True,
            query=item.query.text,
            translation=item.translation,
            left_doc_ids=left_ids,
            right_doc_ids=right_ids,
        )

    def apply(self, item: PairwiseItem, row: Judgment) -> None:
        """Replace the judgment of `item` by `row`."""
        self._last_time = row.time
        self.judgments.pop(item.token(self.name), None)
        if row.choice != UNDONE:
            self.judgments[item.token(self.name)] = row


# --- the file ---


class PreferencesFile:
    """The file of all judgments (JSONL). Rows are only appended. Each row is written to disk before it takes effect.

    Only the owner of the file gets permissions, because it contains the names of judges. Only one server at a time can
    open it. If the last row is incomplete because the machine stopped while writing it, the row is removed.

    Args:
        path: The file. It is created if it does not exist.

    Attributes:
        rows: All rows of the file.

    Raises:
        InputError: If the file cannot be written, or a different server has opened it.
        FormatError: If the file contains rows that are not judgments.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror})", "choose another file with --preferences-file"
            ) from error
        try:
            lock_exclusively(self._descriptor, path)
            self.rows = self._read()
            self._size = os.fstat(self._descriptor).st_size
        except BaseException:
            self.close()
            raise

    def append(self, row: Judgment) -> None:
        """Append a row and write it to disk. If this raises an `OSError`, the file is unchanged."""
        line = json_line(row.to_dict())
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)
        self.rows.append(row)

    def _read(self) -> list[Judgment]:
        content = self.path.read_bytes()
        complete_length = content.rfind(b"\n") + 1
        last_row = content[complete_length:]
        try:
            rows = read_judgments(self.path) if content.strip() else []
        except FormatError as error:
            is_partial = last_row.startswith(b'{"judge": "') and isinstance(error.__cause__, json.JSONDecodeError)
            if error.line != content.count(b"\n") + 1 or not is_partial:
                raise
            os.ftruncate(self._descriptor, complete_length)
            return read_judgments(self.path) if complete_length else []
        if last_row:
            os.write(self._descriptor, b"\n")
        return rows

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._descriptor)


# --- routes ---

_MAX_NAME_LENGTH = 100
_MAX_SECONDS = 86_400.0
_MAX_SESSIONS = 100
"""The maximum number of sessions in memory. Older sessions are restored from the rows when they are needed again."""


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """The fields that all requests of judges share."""

    judge: str = described(f"a name of 1 to {_MAX_NAME_LENGTH} printable characters")


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest(JudgeRequest):
    """The body of `/judge/choice`."""

    token: Any = described("the token of the item", None)
    choice: Literal["left", "right", "tie"] = described("left, right or tie")
    seconds: float | None = described("how long the item was visible", None, ge=0, strict=True)


class JudgingRoutes:
    """The routes of the page *Judge*.

    Args:
        items: The items of the study.
        store: The passages. The caller closes it.
        file: The preferences file. The caller closes it.
    """

    def __init__(self, items: PairwiseItems, store: PassageSource, file: PreferencesFile) -> None:
        self._identical = items.identical
        self._store = store
        self._file = file
        self._session = lru_cache(_MAX_SESSIONS)(lambda name: JudgingSession(name, items, file.rows))
        self._write_lock = asyncio.Lock()

    def route_group(self) -> RouteGroup:
        """Return the routes. Raises `MissingExtra` if the extra `serve` is not installed."""
        routes = [
            route("/judge/question", self._get_question),
            route("/judge/choice", self._post_choice, "POST"),
            route("/judge/undo", self._post_undo, "POST"),
            route("/judge/judgments.jsonl", self._get_judgments),
        ]
        return RouteGroup("judge", routes, private_paths=frozenset({"/judge/judgments.jsonl"}))

    async def _get_question(self, request: Request) -> Response:
        return await self._state_response(self._find_session(validate(JudgeRequest, request.query_params)))

    async def _post_choice(self, request: Request) -> Response:
        body = validate(ChoiceRequest, await read_json(request))
        session = self._find_session(body)
        seconds = None if body.seconds is None else round(min(body.seconds, _MAX_SECONDS), 1)
        async with self._write_lock:
            item = session.items.get(body.token) if isinstance(body.token, str) else None
            if item is None:
                raise ApiError(409, "this pair has changed: reload the page", "token")
            previous = session.judgments.get(body.token)
            if previous is None or previous.choice != body.choice:  # repeated requests have no effect
                await self._store_judgment(session, item, body.choice, seconds)
        return await self._state_response(session)

    async def _post_undo(self, request: Request) -> Response:
        session = self._find_session(validate(JudgeRequest, await read_json(request)))
        async with self._write_lock:
            item = session.last_judged()
            if item is None:
                raise ApiError(409, "there is no judgment to undo")
            await self._store_judgment(session, item, UNDONE, None)
        return await self._state_response(session, item)

    async def _get_judgments(self, request: Request) -> Response:
        async with self._write_lock:
            content = await asyncio.to_thread(self._file.path.read_bytes)
        headers = {
            "Content-Type": "application/jsonl",
            "Content-Disposition": 'attachment; filename="judgments.jsonl"',
        }
        return response(content, 200, headers)

    async def _state_response(self, session: JudgingSession, item: PairwiseItem | None = None) -> Response:
        """Return the progress of a judge and the item to show: `item`, or else the next item to judge."""
        item = item or session.next_item()
        try:
            pair = await asyncio.to_thread(displayed_pair, item, session.name, self._store) if item else None
        except (RankKError, OSError) as error:
            if isinstance(error, OSError):
                error = InputError(f"cannot read the documents ({error.strerror})", "check that the files still exist")
            raise ApiError(500, "a passage could not be read; the server has printed the reason") from error
        state = {
            "judge": session.name,
            "done": len(session.judgments),
            "total": len(session.items),
            "can_undo": bool(session.judgments),
            "identical": self._identical,
            "question": pair,
        }
        return json_response(state)

    async def _store_judgment(
        self, session: JudgingSession, item: PairwiseItem, choice: str, seconds: float | None
    ) -> None:
        """Store a judgment on disk, then update the session."""
        row = session.judgment(item, choice, seconds, datetime.now(UTC))
        try:
            await asyncio.to_thread(self._file.append, row)
        except OSError as error:
            cause = InputError(
                f"cannot write {self._file.path} ({error.strerror})", "judges can continue once the file is writable"
            )
            raise ApiError(507, "the judgment could not be stored; the server has printed the reason") from cause
        session.apply(item, row)

    def _find_session(self, request: JudgeRequest) -> JudgingSession:
        name = request.judge.strip()
        if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
            raise invalid_field("judge", f"enter a name of 1 to {_MAX_NAME_LENGTH} printable characters")
        return self._session(name)
