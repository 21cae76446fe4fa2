"""Store and find model calls, and compute their keys."""

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
        "cache_prompt",  # llama.cpp: reuse the computation of a common prefix of prompts
        "separate_reasoning",  # SGLang: send the reasoning in a separate field
        "stream",
        "stream_options",
        "timeout",
        "usage",  # OpenRouter: count the tokens
    }
)
"""Fields of the request body that are not part of the key, because they affect only how the response is sent."""

_RESPONSE_COLUMNS = (
    "response_text, reasoning, finish_reason, log_probabilities,"
    " prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens, usage_estimated, seconds"
)

_ALL_ESTIMATED = 1
_REASONING_ESTIMATED = 2
"""Bits of the column `usage_estimated`: all token counts are estimated, or only the count of reasoning tokens."""

DEFAULT_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Call:
    """A stored model call.

    Attributes:
        model: The name of the model.
        purpose: The purpose of the call: "ask" (rank a window), "direct" (rank a window without reasoning), "close"
            (forced answer after truncated reasoning), "likelihood" (log-likelihood of the query) or "probe" (find out
            what the server supports).
        request: The body of the request.
        response: The response.
        doc_ids: The ids of the passages, in the order in which the prompt presents them.
    """

    model: str
    purpose: str
    request: Mapping[str, Any]
    response: Response
    doc_ids: tuple[str, ...]


def call_key(identity: str, body: Mapping[str, Any], sample: int) -> str:
    """Return the key of a call, a SHA-256 hash. It does not depend on streaming, timeouts or the server's address.

    Args:
        identity: The identity of the model.
        body: The body of the request.
        sample: The number of the sample. It distinguishes otherwise identical requests.
    """
    semantic = {name: value for name, value in body.items() if name not in _TRANSPORT_FIELDS}
    canonical = json.dumps([identity, semantic, sample], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class CallStore:
    """The part of a `Journal` that stores calls."""

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
        """The size of the content in bytes, excluding free pages of the file."""
        pages, free_pages, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free_pages) * page_bytes)

    def find_response(self, key: str) -> Response | None:
        """Return the response of the call with this key, or None if no such call is stored."""
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
        """Store a finished call.

        Args:
            key: The key of the call (`call_key`).
            model: The name of the model.
            purpose: The purpose of the call (see `Call`).
            body: The body of the request.
            response: The response.
            doc_ids: The ids of the passages, in the order in which the prompt presents them (default: none).

        Returns:
            The stored response. If a different process has already stored a call with this key, this is the response
            of that call.

        Raises:
            JournalError: If the call cannot be stored.
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
                _ALL_ESTIMATED * usage.estimated | _REASONING_ESTIMATED * usage.reasoning_estimated,
                response.seconds,
                time.time(),
            ),
        )
        self.stored_calls += 1
        return response if inserted.rowcount else self.find_response(key) or response

    def find_call(self, key: str) -> Call | None:
        """Return the call with this key, or None if no such call is stored."""
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
        """Return token counts and seconds, summed by model and purpose.

        Args:
            run: Count only calls of this run (default: all calls in the journal).
            query_id: Count only calls for windows of this query (default: all queries).

        Returns:
            Tuples of model, purpose, number of calls, summed token counts, and summed duration of the calls in seconds.
        """
        condition, values = condition_on(run, query_id)
        keys = f"SELECT value FROM windows, json_each(call_keys) WHERE {condition}"
        rows = self._db.execute(
            "SELECT model, purpose, count(*), sum(prompt_tokens), sum(completion_tokens),"
            " sum(reasoning_tokens), sum(cached_tokens),"
            f" max(usage_estimated & {_ALL_ESTIMATED}) | max(usage_estimated & {_REASONING_ESTIMATED}), sum(seconds)"
            f" FROM calls {f'WHERE key IN ({keys})' if values else ''} GROUP BY model, purpose ORDER BY 1, 2",
            values,
        )
        return [(decode_text(row[0]), *row[1:3], _decode_usage(row[3:8]), row[8]) for row in rows]

    def _limit_size(self) -> None:
        """If a temporary journal is full, delete the older half of its calls, and all queries, windows and rounds.

        Rankings are kept, because `find_ranking` has not returned them yet.
        """
        if self.path is not None or self.size_in_bytes <= self._max_bytes:
            return
        middle = "SELECT finished_at FROM calls ORDER BY finished_at LIMIT 1 OFFSET (SELECT count(*) / 2 FROM calls)"
        self._db.execute(f"DELETE FROM calls WHERE finished_at < ({middle})")
        for table in ("queries", "windows", "rounds"):
            self._db.execute(f"DELETE FROM {table}")


def condition_on(run: str | None, query_id: str | None = None) -> tuple[str, list[str | bytes]]:
    """Return an SQL condition that selects a run and a query (None: all of them), and its parameters."""
    columns = {"run": run, "query_id": None if query_id is None else encode_text(query_id)}
    given = {name: value for name, value in columns.items() if value is not None}
    return " AND ".join(f"{name} = ?" for name in given) or "TRUE", list(given.values())


def compress_json(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def decompress_json(stored: bytes) -> Any:
    return json.loads(zlib.decompress(stored))


def _decode_response(row: Sequence[Any]) -> Response:
    """Return the response in a database row with the columns `_RESPONSE_COLUMNS`."""
    text, reasoning, finish_reason = (None if part is None else decode_text(part) for part in row[:3])
    tokens = None if row[3] is None else tuple((token, value) for token, value in decompress_json(row[3]))
    return Response(text or "", reasoning, finish_reason, _decode_usage(row[4:9]), row[9], tokens)


def _decode_usage(row: Sequence[int]) -> Usage:
    prompt, completion, reasoning, cached, estimated = row
    flags = bool(estimated & _ALL_ESTIMATED), bool(estimated & _REASONING_ESTIMATED)
    return Usage(prompt, completion, reasoning, cached, *flags)
