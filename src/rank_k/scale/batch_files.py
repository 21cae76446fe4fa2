"""Batch files in OpenAI's format: write requests that have no response yet, and read the responses.

`vllm run-batch`, OpenAI, Together, xAI and LiteLLM read and write this format: one JSON object per line. The field
`custom_id` identifies a request; Rank-K uses the key of the call in the journal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rank_k.data.lines import json_line
from rank_k.errors import InputError, ModelError, PromptFiltered
from rank_k.journal import Journal
from rank_k.journal.batches import PendingCall
from rank_k.models.sse import ResponseEvent, join_events, parse_payload
from rank_k.types import Request

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""The maximum number of requests and bytes in one file: OpenAI's limits.

The request for a window of 20 passages of 450 tokens has about 40 kB."""

MAX_FAILURES = 2
"""A request that was refused this many times is not written again. Its window keeps the input order."""

ENDPOINT = "/v1/chat/completions"


class RequestFiles:
    """Writes the requests of a run that have no response in the journal to batch files.

    The journal stores the requests of a file before the file gets its final name. A file with a final name therefore
    contains only requests that the journal knows.

    Args:
        folder: The folder for the files `requests-001.jsonl`, `requests-002.jsonl` and so on. Existing files are kept.
        journal: The journal of the run.
        max_requests: The maximum number of requests in a file (default: 50,000).
        max_bytes: The maximum size of a file in bytes (default: 200,000,000).

    Attributes:
        files: The number of requests in each file that was written.
        waiting: The number of requests that are already in an earlier file and wait for a response.
    """

    def __init__(
        self, folder: Path, journal: Journal, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.files: dict[Path, int] = {}
        self.waiting = 0
        self._folder = folder
        self._journal = journal
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._calls: list[PendingCall] = []
        self._keys: set[str] = set()
        self._path = folder
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Release waiting requests whose file does not exist and was not submitted, so that they are written again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        submitted = {batch.file for batch in self._journal.batches() if batch.status != "ingested"}
        names = [name for name in self._journal.count_pending() if name and name not in submitted]
        self._journal.release_files([name for name in names if not (self._folder / name).exists()])
        return self

    def add(self, key: str, request: Request, body: Mapping[str, Any]) -> None:
        """Write a request, unless it is already in a file.

        Raises:
            PromptFiltered: If the server has refused this request `MAX_FAILURES` times.
            InputError: If the request alone exceeds the maximum size of a file.
        """
        pending = self._journal.find_pending(key)
        if pending is not None and pending.failures >= MAX_FAILURES:
            raise PromptFiltered(pending.error, "see rank-k batch status")
        if key in self._keys:
            return
        self._keys.add(key)
        if pending is not None and pending.file:
            self.waiting += 1
            return
        line = json_line({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body})
        if len(line) > self._max_bytes:
            raise InputError(
                f"a request has {len(line)} bytes, but a file may have at most {self._max_bytes}",
                "raise --max-bytes or lower --window",
            )
        if self._file is not None and (
            len(self._calls) >= self._max_requests or self._file.tell() + len(line) > self._max_bytes
        ):
            self._complete_file()
        if self._file is None:
            self._open_file()
        assert self._file is not None
        self._file.write(line)
        context = request.context
        self._calls.append(
            PendingCall(key, str(body["model"]), context.purpose, context.doc_ids, body, self._path.name)
        )

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        if exception_type is None:
            self._complete_file()
        else:
            self._file.close()
            self._part_path.unlink()

    @property
    def _part_path(self) -> Path:
        return self._path.with_name(self._path.name + ".part")

    def _open_file(self) -> None:
        numbers = [int(path.stem.partition("-")[2]) for path in self._folder.glob("requests-[0-9]*.jsonl")]
        self._path = self._folder / f"requests-{max(numbers, default=0) + 1:03}.jsonl"
        self._file = self._part_path.open("wb")

    def _complete_file(self) -> None:
        assert self._file is not None
        self._file.close()
        self._journal.store_pending(self._calls)
        self._part_path.replace(self._path)
        self.files[self._path] = len(self._calls)
        self._calls, self._file = [], None


def ingest_responses(journal: Journal, lines: Iterable[bytes]) -> Counter[str]:
    """Store the responses in the output file or error file of a batch. Lines may be repeated and in any order.

    Args:
        journal: The journal of the run.
        lines: The lines of the file.

    Returns:
        The number of lines of each kind: "stored"; "repeated" (the journal already contains the response); "refused"
        (the server refused the request); "expired" (the server did not respond in time or failed, so the request will
        be written again); "unknown" (the journal does not contain the request); "malformed" (the line is not a valid
        response).
    """
    counts: Counter[str] = Counter()
    for line in lines:
        if line.strip():
            counts[_ingest_line(journal, line)] += 1
    return counts


def _ingest_line(journal: Journal, line: bytes) -> str:
    try:
        result = json.loads(line)
        key = result["custom_id"]
        response, error = result.get("response") or {}, result.get("error")
        status: Any = response.get("status_code", 0)
        body: Any = response.get("body")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return "malformed"
    if not isinstance(key, str) or not isinstance(status, int):
        return "malformed"
    if journal.find_response(key) is not None:
        journal.remove_pending(key)
        return "repeated"
    pending = journal.find_pending(key)
    if pending is None:
        return "unknown"
    if error or status != 200:
        is_refusal = 400 <= status < 500 and status not in (408, 409, 429)
        journal.fail_pending(key, _error_message(error, body, status), failures=int(is_refusal))
        return "refused" if is_refusal else "expired"
    try:
        parsed = join_events([parse_payload(body), ResponseEvent(is_last=True)], 0.0)
    except ModelError as problem:
        journal.fail_pending(key, problem.problem)
        return "malformed"
    if not (parsed.text or parsed.reasoning) or not isinstance(body, Mapping) or not body.get("choices"):
        journal.fail_pending(key, "the response has no text")
        return "malformed"
    journal.store_call(key, pending.model, pending.purpose, pending.request, parsed, pending.doc_ids)
    journal.remove_pending(key)
    return "stored"


def _error_message(error: Any, body: Any, status: int) -> str:
    """Return the error message of a line, from `error` or `body`."""
    for source in (error, body):
        inner = source.get("error", source) if isinstance(source, Mapping) else source
        message = inner.get("message") if isinstance(inner, Mapping) else inner
        if isinstance(message, str) and message:
            return message
    return f"status {status}"
