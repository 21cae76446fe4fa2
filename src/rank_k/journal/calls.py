"""Storing and finding calls, and the keys that they are found by."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_k.journal.schema import decode_text, encode_text, open_database
from rank_k.types import Response, Usage

_TRANSPORT_FIELDS = frozenset(
    {
        "cache_prompt",  # llama.cpp: reuse the computation of the prompt's beginning
        "separate_reasoning",  # SGLang: send the reasoning in a separate field
        "stream",
        "stream_options",
        "timeout",
        "usage",  # OpenRouter: count the tokens
    }
)
"""Fields of a request's body that say how the response is computed or sent, and not what is requested."""

_RESPONSE_COLUMNS = (
    "response_text, reasoning, finish_reason, log_probabilities,"
    " prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens, usage_estimated, seconds"
)

DEFAULT_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Call:
    """A stored call. `doc_ids`: the passages that it is about, in the order in which the prompt presents them."""

    model: str
    purpose: str
    request: Mapping[str, Any]
    response: Response
    doc_ids: tuple[str, ...]


def call_key(identity: str, body: Mapping[str, Any], sample: int) -> str:
    """Return the key of a call: the sha256 of the model's identity, the semantic request and the sample's number.

    Streaming, timeouts and the server's address do not change it.
    """
    semantic = {name: value for name, value in body.items() if name not in _TRANSPORT_FIELDS}
    canonical = json.dumps([identity, semantic, sample], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class CallStore:
    """An open journal and its calls (see `Journal`)."""

    def __init__(
        self, path: str | Path | None = None, *, read_only: bool = False, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = None if path is None else Path(path)
        self.stored_calls = 0
        """The number of calls stored since the journal was opened."""
        self._max_bytes = max_bytes
        self._db = open_database(self.path, read_only=read_only)

    def close(self) -> None:
        self._db.close()

    @property
    def size_in_bytes(self) -> int:
        """The size of the journal's content."""
        pages, free_pages, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free_pages) * page_bytes)

    def find_response(self, key: str) -> Response | None:
        """Return the response stored under `key`, or None."""
        row = self._db.execute(f"SELECT {_RESPONSE_COLUMNS} FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else _decode_response(row)

    def store_call(
        self,
        key: str,
        model: str,
        purpose: str,
        body: Mapping[str, Any],
        response: Response,
        doc_ids: Sequence[str] = (),
    ) -> Response:
        """Store a finished call; returns the response that the journal now holds (another process may have been first).

        `doc_ids`: the passages that the call is about, in the order in which the prompt presents them.
        """
        self._limit_size()
        usage = response.usage
        inserted = self._db.execute(
            f"INSERT OR IGNORE INTO calls (key, model, purpose, doc_ids, request, {_RESPONSE_COLUMNS}, finished_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key,
                encode_text(model),
                purpose,
                json.dumps(doc_ids),
                compress_json(body),
                encode_text(response.text),
                None if response.reasoning is None else encode_text(response.reasoning),
                None if response.finish_reason is None else encode_text(response.finish_reason),
                None if response.tokens is None else compress_json(response.tokens),
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.reasoning_tokens,
                usage.cached_tokens,
                usage.estimated,
                response.seconds,
                time.time(),
            ),
        )
        self.stored_calls += 1
        return response if inserted.rowcount else self.find_response(key) or response

    def find_request(self, key: str) -> Mapping[str, Any]:
        """Return the request's body of the call `key`. Raises KeyError."""
        if (call := self.find_call(key)) is None:
            raise KeyError(key)
        return call.request

    def find_call(self, key: str) -> Call | None:
        """Return the call stored under `key`, or None."""
        columns = f"model, purpose, request, doc_ids, {_RESPONSE_COLUMNS}"
        row = self._db.execute(f"SELECT {columns} FROM calls WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        model, purpose, request, doc_ids, *response = row
        doc_ids = tuple(json.loads(doc_ids))
        return Call(decode_text(model), purpose, decompress_json(request), _decode_response(response), doc_ids)

    def usage_totals(
        self, run: str | None = None, query_id: str | None = None
    ) -> list[tuple[str, str, int, Usage, float]]:
        """Return (model, purpose, calls, usage, seconds), summed over the whole file or over the windows of a run, of a
        query, or of a query in a run."""
        columns = {"run": run, "query_id": None if query_id is None else encode_text(query_id)}
        filters = {name: value for name, value in columns.items() if value is not None}
        condition = " AND ".join(f"{name} = ?" for name in filters)
        keys = f"SELECT value FROM windows, json_each(call_keys) WHERE {condition}"
        rows = self._db.execute(
            "SELECT model, purpose, count(*), sum(prompt_tokens), sum(completion_tokens),"
            " sum(reasoning_tokens), sum(cached_tokens), max(usage_estimated), sum(seconds)"
            f" FROM calls {f'WHERE key IN ({keys})' if filters else ''} GROUP BY model, purpose ORDER BY 1, 2",
            tuple(filters.values()),
        )
        return [(decode_text(row[0]), *row[1:3], _decode_usage(row[3:8]), row[8]) for row in rows]

    def _limit_size(self) -> None:
        """Delete the older half of a full temporary journal's calls, and all that was stored about queries but their
        rankings, which are still to be read."""
        if self.path is not None or self.size_in_bytes <= self._max_bytes:
            return
        middle = "SELECT finished_at FROM calls ORDER BY finished_at LIMIT 1 OFFSET (SELECT count(*) / 2 FROM calls)"
        self._db.execute(f"DELETE FROM calls WHERE finished_at < ({middle})")
        for table in ("queries", "windows", "rounds"):
            self._db.execute(f"DELETE FROM {table}")


def compress_json(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def decompress_json(stored: bytes) -> Any:
    return json.loads(zlib.decompress(stored))


def _decode_response(row: Sequence[Any]) -> Response:
    """Return the response stored in the columns `_RESPONSE_COLUMNS`."""
    text, reasoning, finish_reason = (None if part is None else decode_text(part) for part in row[:3])
    tokens = None if row[3] is None else tuple((token, value) for token, value in decompress_json(row[3]))
    return Response(text or "", reasoning, finish_reason, _decode_usage(row[4:9]), row[9], tokens)


def _decode_usage(row: Sequence[int]) -> Usage:
    prompt, completion, reasoning, cached, estimated = row
    return Usage(prompt, completion, reasoning, cached, bool(estimated))
