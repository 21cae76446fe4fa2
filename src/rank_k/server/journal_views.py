"""What the page shows of a journal, as plain values: runs, their queries, a query's rounds, a window's calls.

Passages are named by their place in the first stage's order, from 0. Their texts are read out of the prompts, as a
journal keeps no others: they are as the model saw them, cut and made harmless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rank_k.journal import Call, Journal, QueryRecord, WindowRecord
from rank_k.types import Ranking, Usage
from rank_k.window.prompt import passages_in
from rank_k.window.query_likelihood import TEMPLATE, log_probability

PAGE = 50
"""Rows at a time."""

_EXCERPT = 300  # characters


def runs(journal: Journal, offset: int) -> dict[str, Any]:
    """A page of runs, the last one begun first."""
    found = journal.runs()
    told = []
    for record in found[offset : offset + PAGE]:
        total, _ = journal.opened(record.run, limit=0)
        told.append({"run": record.run, "started_at": record.started_at, "settings": record.settings, "queries": total})
    return {"total": len(found), "offset": offset, "runs": told}


def queries(journal: Journal, run: str | None, find: str, offset: int) -> dict[str, Any]:
    """A page of a run's queries, or of all runs'; `find`: of those whose id or text holds it."""
    total, found = journal.opened(run, find=find, offset=offset, limit=PAGE)
    return {"total": total, "offset": offset, "queries": [_summed_up(journal, record) for record in found]}


def query(journal: Journal, record: QueryRecord) -> dict[str, Any]:
    """How a query's ranking came about.

    `rounds`: how it stood before each round, as tiers; `ranking`: how it ended, None while it is under way. Both are
    without the candidates that were not compared, which follow as they were.
    """
    windows = list(journal.windows(record.run, record.query_id))
    rounds = journal.rounds(record.run, record.position)
    if rounds:
        windows = [window for window in windows if window.round < len(rounds)]  # others are of an earlier attempt
    final = journal.ranking(record.run, record.position) if record.finished else None
    if rounds:
        compared: Iterable[str] = rounds[0].doc_ids
    else:
        compared = dict.fromkeys(doc_id for window in windows for doc_id in window.window.doc_ids)
    place = {doc_id: number for number, doc_id in enumerate(compared)}
    texts = _texts(journal, windows, place)
    return {
        **_identity(record),
        "passages": [{"doc_id": doc_id, "text": _excerpt(texts.get(doc_id))} for doc_id in place],
        "rounds": [_tiers(ranking, place) for ranking in rounds],
        "ranking": None if final is None else _tiers(final, place),
        "windows": [_window(journal, window, place) for window in windows],
    }


def window(journal: Journal, record: QueryRecord, number: int, position: int) -> dict[str, Any] | None:
    """All that was asked and answered about one window, or None if there is none. Places and texts as in `query`."""
    found = list(journal.windows(record.run, record.query_id))
    wanted = next((w for w in found if (w.round, w.position) == (number, position)), None)
    if wanted is None:
        return None
    shown = wanted.window.doc_ids
    place = {doc_id: number for number, doc_id in enumerate(shown)}
    texts = _texts(journal, [wanted], place)
    return {
        "round": number,
        "window": position,
        "reach": wanted.window.rank_range,
        "passages": [{"doc_id": doc_id, "text": texts.get(doc_id)} for doc_id in shown],
        "orders": _orders(wanted, place),
        "repairs": dict(wanted.repairs),
        "calls": [_call(call, shown) for call in map(journal.call, wanted.call_keys) if call is not None],
    }


# --- parts ---


def _identity(record: QueryRecord) -> dict[str, Any]:
    return {
        "run": record.run,
        "position": record.position,
        "query_id": record.query_id,
        "text": record.text,
        "opened_at": record.started_at,
        "finished": record.finished,
    }


def _summed_up(journal: Journal, record: QueryRecord) -> dict[str, Any]:
    windows = list(journal.windows(record.run, record.query_id))
    repairs: Counter[str] = Counter()
    for found in windows:
        repairs.update(found.repairs)
    return {
        **_identity(record),
        "text": _excerpt(record.text),
        "rounds": len({found.round for found in windows}),
        "windows": len(windows),
        "passages": len({doc_id for found in windows for doc_id in found.window.doc_ids}),
        "repairs": dict(repairs),
    }


def _window(journal: Journal, found: WindowRecord, place: Mapping[str, int]) -> dict[str, Any]:
    replies = [reply for reply in map(journal.find_response, found.call_keys) if reply is not None]
    usage = sum((reply.usage for reply in replies), Usage())
    return {
        "round": found.round,
        "window": found.position,
        "shown": [place[doc_id] for doc_id in found.window.doc_ids if doc_id in place],
        "reach": found.window.rank_range,
        "orders": _orders(found, place),
        "repairs": dict(found.repairs),
        "calls": len(found.call_keys),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": sum(reply.seconds for reply in replies),
    }


def _orders(found: WindowRecord, place: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "tiers": [[place[doc_id] for doc_id in tier if doc_id in place] for tier in order.tiers],
            "placed": sorted(place[doc_id] for doc_id in order.ranked_ids if doc_id in place),
            "ranked": order.is_valid,
        }
        for order in found.rankings
    ]


def _call(call: Call, shown: Sequence[str]) -> dict[str, Any]:
    """`shown`: for each number that the prompt and the trace say, the place in the window of the passage it means."""
    place = {doc_id: number for number, doc_id in enumerate(shown)}
    numbered = _numbered(call, shown)
    usage = call.response.usage
    likelihood = log_probability(call.response, call.response.text) if call.purpose == "likelihood" else None
    return {
        "purpose": call.purpose,
        "model": call.model,
        "messages": _messages(call.request),
        "shown": [place[doc_id] for doc_id in numbered],
        "reasoning": call.response.reasoning,
        "text": call.response.text,
        "finish_reason": call.response.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cached_tokens": usage.cached_tokens,
        "estimated": usage.estimated,
        "seconds": call.response.seconds,
        "likelihood": likelihood,
    }


def _numbered(call: Call, shown: Sequence[str]) -> Sequence[str]:
    """The ids behind the numbers of a prompt. Samples and second looks show a window in an order of their own, which
    is kept with the call; but who asks the same later may call the passages by other ids."""
    if call.purpose == "likelihood":
        return call.doc_ids if set(call.doc_ids) <= set(shown) else ()
    return call.doc_ids if sorted(call.doc_ids) == sorted(shown) else shown


def _messages(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was sent, whatever the dialect."""
    found = request.get("messages")
    if not isinstance(found, list):
        return [{"role": "prompt", "content": str(request.get("prompt") or "")}]
    pairs = [(m.get("role"), m.get("content")) if isinstance(m, Mapping) else tuple(m)[:2] for m in found]
    return [{"role": str(role), "content": str(content)} for role, content in pairs]


def _texts(journal: Journal, windows: Iterable[WindowRecord], wanted: Mapping[str, int]) -> dict[str, str]:
    """Passages by id, as far as they can be read out of prompts."""
    texts: dict[str, str] = {}
    for found in windows:
        if all(doc_id in texts for doc_id in found.window.doc_ids):
            continue
        for key in found.call_keys:
            call = journal.call(key)
            if call is not None:
                texts |= _shown_in(call, found.window.doc_ids)
            if call is None or call.purpose != "likelihood":
                break
        if len(texts) >= len(wanted):
            break
    return texts


def _shown_in(call: Call, shown: Sequence[str]) -> dict[str, str]:
    numbered = _numbered(call, shown)
    contents = [message["content"] for message in _messages(call.request)]
    if call.purpose == "likelihood":
        said = contents[0].removeprefix(TEMPLATE.before).rpartition("\n")[0] if contents else ""
        return dict.fromkeys(numbered[:1], said)
    found = max(map(passages_in, contents), key=len, default=())
    return dict(zip(numbered, found, strict=False)) if len(found) == len(numbered) else {}


def _tiers(ranking: Ranking, place: Mapping[str, int]) -> list[list[int]]:
    tiers = ([place[doc_id] for doc_id in tier if doc_id in place] for tier in ranking.tiers)
    return [tier for tier in tiers if tier]


def _excerpt(text: str | None) -> str | None:
    return text if text is None or len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
