"""The journal viewer: runs, queries, rounds, windows and calls as JSON for the page *Runs*.

The journal is never changed. It is opened for each request, in a thread, because a different process may be writing to
it. It contains the texts of queries and passages, so only clients with a key or on this machine may read it.

In the JSON, queries, rounds and windows count from 0, as in the journal, and a passage is identified by its position in
the first-stage order, from 0. The page counts from 1. A journal does not store passages separately, so their texts are
extracted from the prompts: truncated and sanitized, as the model saw them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rank_k.errors import JournalError
from rank_k.journal import Call, Journal, QueryRecord, WindowRecord
from rank_k.models.reasoning_trace import split_continuation, stored_prefill
from rank_k.server.api_errors import ApiError
from rank_k.server.http_io import LARGEST_INTEGER, Request, Response, RouteGroup, json_response, route
from rank_k.server.schema import described, validate
from rank_k.types import Ranking, Usage
from rank_k.window.prompt import extract_passages
from rank_k.window.scorers import LIKELIHOOD_TEMPLATE, query_log_probability

PAGE_SIZE = 50
"""The number of rows per page."""

_EXCERPT_LENGTH = 300  # characters


@dataclass(frozen=True, kw_only=True)
class RunsParameters:
    """The query parameters of `/journal/runs`."""

    offset: int = described("number of rows to skip", 0, ge=0, le=LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class QueriesParameters(RunsParameters):
    """The query parameters of `/journal/queries`."""

    run: str | None = described("name of a run (default: all runs)", None)
    find: str = described("return only queries whose id or text contains this string", "")
    newest_first: bool = described("sort queries by their start, the latest first", False)


@dataclass(frozen=True, kw_only=True)
class QueryParameters:
    """The query parameters of `/journal/query`."""

    run: str = described("name of the run", "")
    position: int = described("position of the query in the run, from 0", ge=0, le=LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class WindowParameters(QueryParameters):
    """The query parameters of `/journal/window`."""

    round: int = described("number of the round, from 0", ge=0, le=LARGEST_INTEGER)
    window: int = described("number of the window in the round, from 0", ge=0, le=LARGEST_INTEGER)


def runs(journal: Journal, parameters: RunsParameters) -> dict[str, Any]:
    """Return a page of runs, sorted by their start, the latest first."""
    records = journal.runs()
    rows = [
        {
            "run": record.run,
            "started_at": record.started_at,
            "settings": record.settings,
            "queries": journal.find_queries(record.run, limit=0)[0],
        }
        for record in records[parameters.offset : parameters.offset + PAGE_SIZE]
    ]
    return {"total": len(records), "offset": parameters.offset, "runs": rows}


def queries(journal: Journal, parameters: QueriesParameters) -> dict[str, Any]:
    """Return a page of the queries of a run, or of all runs."""
    find = partial(journal.find_queries, parameters.run, find=parameters.find[:500])
    total, records = find(offset=parameters.offset, limit=PAGE_SIZE)
    if parameters.newest_first:
        end = max(total - parameters.offset, 0)
        start = max(end - PAGE_SIZE, 0)
        records = find(offset=start, limit=end - start)[1][::-1]
    rows = [_query_summary(journal, record) for record in records]
    return {"total": total, "offset": parameters.offset, "queries": rows}


def query(journal: Journal, parameters: QueryParameters) -> dict[str, Any]:
    """Return the passages, rounds, windows and ranking of a query.

    `rounds` contains the ranking before each round, and `ranking` the final ranking, or None if the query is not
    finished. A ranking is a list of lists, each of which contains tied passages. Rankings omit the candidates that were
    not compared, which follow in input order.
    """
    record = _find_query(journal, parameters)
    rounds = journal.rounds(record.run, record.position)
    windows = list(journal.windows(record.run, record.query_id))
    if rounds:  # later windows are from an interrupted run
        windows = [window for window in windows if window.round < len(rounds)]
    compared = rounds[0].doc_ids if rounds else [doc_id for window in windows for doc_id in window.window.doc_ids]
    places = {doc_id: number for number, doc_id in enumerate(dict.fromkeys(compared))}
    final_ranking = journal.find_ranking(record.run, record.position) if record.finished else None
    texts = _texts(journal, windows)
    return {
        **_identity(record),
        "passages": [{"doc_id": doc_id, "text": _excerpt(texts.get(doc_id))} for doc_id in places],
        "rounds": [_tiers(ranking, places) for ranking in rounds],
        "ranking": None if final_ranking is None else _tiers(final_ranking, places),
        "windows": [_window_summary(journal, window, places) for window in windows],
    }


def window(journal: Journal, parameters: WindowParameters) -> dict[str, Any]:
    """Return the passages, orders, requests and responses of one window."""
    record = _find_query(journal, parameters)
    windows = journal.windows(record.run, record.query_id)
    position = (parameters.round, parameters.window)
    window_record = next((w for w in windows if (w.round, w.window_number) == position), None)
    if window_record is None:
        raise ApiError(404, "the journal has no such window", "window")
    doc_ids = window_record.window.doc_ids
    places = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    texts = _texts(journal, [window_record])
    return {
        "round": parameters.round,
        "window": parameters.window,
        "reach": window_record.window.rank_range,
        "passages": [{"doc_id": doc_id, "text": texts.get(doc_id)} for doc_id in doc_ids],
        "orders": _orders(window_record, places),
        "repairs": dict(window_record.repairs),
        "calls": [_call(call, doc_ids) for call in map(journal.find_call, window_record.call_keys) if call is not None],
    }


# --- parts ---


def _find_query(journal: Journal, parameters: QueryParameters) -> QueryRecord:
    record = journal.find_query(parameters.run, parameters.position)
    if record is None:
        raise ApiError(404, "the journal has no such query", "position")
    return record


def _identity(record: QueryRecord) -> dict[str, Any]:
    return {
        "run": record.run,
        "position": record.position,
        "query_id": record.query_id,
        "text": record.text,
        "opened_at": record.started_at,
        "finished": record.finished,
    }


def _query_summary(journal: Journal, record: QueryRecord) -> dict[str, Any]:
    windows = list(journal.windows(record.run, record.query_id))
    return {
        **_identity(record),
        "text": _excerpt(record.text),
        "rounds": len({window.round for window in windows}),
        "windows": len(windows),
        "passages": len({doc_id for window in windows for doc_id in window.window.doc_ids}),
        "repairs": dict(sum((Counter(window.repairs) for window in windows), Counter())),
    }


def _window_summary(journal: Journal, window: WindowRecord, places: Mapping[str, int]) -> dict[str, Any]:
    responses = [response for response in map(journal.find_response, window.call_keys) if response is not None]
    usage = sum((response.usage for response in responses), Usage())
    return {
        "round": window.round,
        "window": window.window_number,
        "shown": [places[doc_id] for doc_id in window.window.doc_ids if doc_id in places],
        "reach": window.window.rank_range,
        "orders": _orders(window, places),
        "repairs": dict(window.repairs),
        "calls": len(window.call_keys),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": sum(response.seconds for response in responses),
    }


def _orders(window: WindowRecord, places: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "tiers": [[places[doc_id] for doc_id in tier if doc_id in places] for tier in order.tiers],
            "placed": sorted(places[doc_id] for doc_id in order.ranked_ids if doc_id in places),
            "ranked": order.is_valid,
        }
        for order in window.rankings
    ]


def _call(call: Call, doc_ids: Sequence[str]) -> dict[str, Any]:
    """Return a call. `shown` lists the passages in the order of the prompt, by their positions in the window."""
    places = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    numbered_ids = _numbered_ids(call, doc_ids)
    usage, likelihood = call.response.usage, None
    reasoning, text, *_ = split_continuation(stored_prefill(call.request), call.response)
    if call.purpose == "likelihood":
        reasoning, text = "", call.response.text
        likelihood = query_log_probability(call.response, text)
    return {
        "purpose": call.purpose,
        "model": call.model,
        "messages": _messages(call.request),
        "shown": [places[doc_id] for doc_id in numbered_ids],
        "reasoning": reasoning or None,
        "text": text,
        "finish_reason": call.response.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cached_tokens": usage.cached_tokens,
        "estimated": usage.estimated,
        "seconds": call.response.seconds,
        "likelihood": likelihood,
    }


def _numbered_ids(call: Call, doc_ids: Sequence[str]) -> Sequence[str]:
    """Return the document ids in the order in which the prompt numbers the passages.

    Each sample shows the passages of a window in a different order, which is stored with its call. If the call is
    shared with a query that has the same passages under different ids, the order of the window is returned.
    """
    if call.purpose == "likelihood":
        return call.doc_ids if set(call.doc_ids) <= set(doc_ids) else ()
    return call.doc_ids if sorted(call.doc_ids) == sorted(doc_ids) else doc_ids


def _messages(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a request, whose format depends on the type of the server."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        return [{"role": "prompt", "content": str(request.get("prompt") or "")}]
    pairs = [
        (message.get("role"), message.get("content")) if isinstance(message, Mapping) else tuple(message)[:2]
        for message in messages
    ]
    return [{"role": str(role), "content": str(content)} for role, content in pairs]


def _texts(journal: Journal, windows: Iterable[WindowRecord]) -> dict[str, str]:
    """Return the texts of passages by document id, as far as they can be extracted from the prompts."""
    texts: dict[str, str] = {}
    for window in windows:
        for key in window.call_keys:
            if all(doc_id in texts for doc_id in window.window.doc_ids):
                break
            if (call := journal.find_call(key)) is not None:
                texts |= _texts_in_call(call, window.window.doc_ids)
    return texts


def _texts_in_call(call: Call, doc_ids: Sequence[str]) -> dict[str, str]:
    numbered_ids = _numbered_ids(call, doc_ids)
    contents = [message["content"] for message in _messages(call.request)]
    if call.purpose == "likelihood":
        passage = contents[0].removeprefix(LIKELIHOOD_TEMPLATE.before).rpartition("\n")[0] if contents else ""
        return dict.fromkeys(numbered_ids[:1], passage)
    passages = max(map(extract_passages, contents), key=len, default=())
    return dict(zip(numbered_ids, passages, strict=False)) if len(passages) == len(numbered_ids) else {}


def _tiers(ranking: Ranking, places: Mapping[str, int]) -> list[list[int]]:
    tiers = ([places[doc_id] for doc_id in tier if doc_id in places] for tier in ranking.tiers)
    return [tier for tier in tiers if tier]


def _excerpt(text: str | None) -> str | None:
    return text if text is None or len(text) <= _EXCERPT_LENGTH else text[: _EXCERPT_LENGTH - 1] + "…"


# --- routes ---


class JournalView(NamedTuple):
    """A path of the journal viewer.

    Attributes:
        summary: A description of the response, for the OpenAPI document.
        parameters: The dataclass of the query parameters.
        read: Returns the response as JSON values, given a journal and parameters.
    """

    summary: str
    parameters: type
    read: Callable[[Journal, Any], dict[str, Any]]


VIEWS = {
    "/journal/runs": JournalView("the runs of the journal by their start, the latest first", RunsParameters, runs),
    "/journal/queries": JournalView("the queries of a run or of all runs", QueriesParameters, queries),
    "/journal/query": JournalView("the passages, rounds, windows and ranking of a query", QueryParameters, query),
    "/journal/window": JournalView("the passages, orders and calls of a window", WindowParameters, window),
}
"""The paths of the journal viewer."""


def route_group(path: Path | None) -> RouteGroup:
    """Return the routes for the journal at `path` (None: a temporary journal).

    Raises:
        MissingExtra: If the extra `serve` is not installed.
    """
    routes = [route(address, partial(_get_view, path, view)) for address, view in VIEWS.items()]
    return RouteGroup("journal", routes, private_paths=frozenset(VIEWS))


async def _get_view(path: Path | None, view: JournalView, request: Request) -> Response:
    parameters: Any = validate(view.parameters, request.query_params)
    return json_response(await asyncio.to_thread(_read_view, path, view, parameters))


def _read_view(path: Path | None, view: JournalView, parameters: Any) -> dict[str, Any]:
    """Return a view as JSON values. A temporary journal cannot be viewed: an empty journal is used instead."""
    try:
        with closing(Journal() if path is None else Journal(path, read_only=True)) as journal:
            return {"journal": path and path.name, **view.read(journal, parameters)}
    except (JournalError, sqlite3.Error) as error:
        raise ApiError(503, "the journal cannot be read") from error
