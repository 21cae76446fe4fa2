"""Submit batch files to a server that has OpenAI's batch API, and fetch the results."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rank_k.errors import ConnectionFailed, ModelError, RequestRejected, ServerError
from rank_k.journal import Journal
from rank_k.journal.batches import BatchRecord
from rank_k.models.http import base_url
from rank_k.models.http_errors import error_for_status, error_message, retry_after_seconds
from rank_k.models.retry import RetryPolicy, call_with_retries
from rank_k.scale.batch_files import ENDPOINT, ingest_responses

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")
"""The statuses in which a batch has ended."""

_LISTED_BATCHES = 100


class BatchServer:
    """A client for the file and batch endpoints of a server. Failed requests are repeated as `retries` specifies.

    Args:
        url: The URL of the API, such as `https://api.openai.com/v1`.
        api_key: The API key, sent as a bearer token (default: no key).
        retries: How often failed requests are repeated (default: `RetryPolicy()`).

    Every method raises `ModelError` if the server cannot be reached or refuses a request.
    """

    def __init__(self, url: str, api_key: str | None = None, retries: RetryPolicy = RetryPolicy()) -> None:
        self.url = base_url(url)
        self._api_key = api_key
        self._retries = retries
        self._random = Random()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300), trust_env=True
        )
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def upload(self, path: Path) -> str:
        """Upload a batch file, and return the id that the server assigned to it."""
        import aiohttp

        async def send() -> Any:
            with path.open("rb") as file:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", file, filename=path.name, content_type="application/jsonl")
                return await self._send("POST", "/files", data=form)

        return _text_field(await self._repeat(send), "id")

    async def create(self, input_file_id: str) -> dict[str, Any]:
        """Start a batch for an uploaded file, and return it.

        A failed request is not repeated here, because the batch may have been started nevertheless.
        """
        body = {"input_file_id": input_file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        return dict(await self._send("POST", "/batches", json=body))

    async def find(self, input_file_id: str) -> dict[str, Any] | None:
        """Return the newest batch of an uploaded file, or None if there is none among the server's latest batches."""
        page = await self._get(f"/batches?limit={_LISTED_BATCHES}")
        batches = page.get("data") if isinstance(page, Mapping) else None
        matching = [batch for batch in batches or () if batch.get("input_file_id") == input_file_id]
        return dict(matching[0]) if matching else None

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """Return the batch with this id, as the server describes it."""
        return dict(await self._get(f"/batches/{batch_id}"))

    async def content(self, file_id: str) -> list[bytes]:
        """Return the lines of a file on the server."""

        async def read() -> list[bytes]:
            async with self._request("GET", f"/files/{file_id}/content") as response:
                return [line async for line in response.content]

        return await self._repeat(read)

    async def _get(self, path: str) -> Any:
        return await self._repeat(lambda: self._send("GET", path))

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call_with_retries(call, self._retries, self._random)

    async def _send(self, method: str, path: str, **content: Any) -> Any:
        async with self._request(method, path, **content) as response:
            try:
                return await response.json(content_type=None)
            except ValueError as error:
                raise ServerError(f"{self.url}{path} did not send JSON", "check --server") from error

    @contextlib.asynccontextmanager
    async def _request(self, method: str, path: str, **content: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.request(method, self.url + path, allow_redirects=False, **content) as response:
                if not 200 <= response.status < 300:
                    message = error_message(await response.content.read(65_536))
                    if self._api_key:
                        message = message.replace(self._api_key, "***")
                    wait = retry_after_seconds(response.headers.get("Retry-After"))
                    raise error_for_status(response.status, message, self.url + path, "", wait)
                yield response
        except aiohttp.ClientConnectorError as error:
            raise ConnectionFailed(f"{self.url} cannot be reached ({error.os_error})", "correct --server") from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise ServerError(f"{self.url} dropped the connection ({type(error).__name__})") from error


async def submit_files(journal: Journal, server: BatchServer, folder: Path) -> None:
    """Submit the batch files in `folder` that contain waiting requests and have not been submitted yet.

    Each step is recorded in the journal before the next begins. In particular, a file's name is recorded before the
    batch is started. After a crash, Rank-K first checks whether the server has the batch, so no batch is started twice.
    """
    known = {batch.file: batch for batch in journal.batches()}
    for name in filter(None, journal.count_pending()):
        record = known.get(name)
        if record is None:
            record = BatchRecord(name, server.url, await server.upload(folder / name))
            journal.store_batch(record)
            await _start(journal, server, record)
        elif not record.batch_id:
            await _recover(journal, server, record)


async def _start(journal: Journal, server: BatchServer, record: BatchRecord) -> None:
    try:
        batch = await server.create(record.input_file_id)
    except ModelError as error:
        if not error.retryable:
            raise
        await _recover(journal, server, record)  # the server may have started the batch nevertheless
    else:
        _store(journal, record, batch)


async def _recover(journal: Journal, server: BatchServer, record: BatchRecord) -> None:
    """Find the batch of a file whose submission was interrupted. If the server does not have it, start the batch."""
    for _ in range(5):
        batch = await server.find(record.input_file_id)
        if batch is not None:
            _store(journal, record, batch)
            return
        try:
            _store(journal, record, await server.create(record.input_file_id))
        except ModelError as error:
            if not error.retryable:
                raise
        else:
            return
        await asyncio.sleep(1)
    raise ServerError(f"{server.url} did not start the batch of {record.file}", "run the same command again")


async def ingest_finished_batches(journal: Journal, server: BatchServer) -> tuple[Counter[str], int]:
    """Store the results of batches that have ended.

    Returns:
        The counts of `ingest_responses`, and the number of batches that are still running.
    """
    counts: Counter[str] = Counter()
    running = 0
    for record in journal.batches():
        if record.status == "ingested" or not record.batch_id:
            continue
        batch = await server.batch(record.batch_id)
        if batch.get("status") not in FINAL_STATUSES:
            running += 1
            _store(journal, record, batch)
            continue
        has_results = False
        for name in ("output_file_id", "error_file_id"):
            if batch.get(name):
                has_results = True
                counts += ingest_responses(journal, await server.content(str(batch[name])))
        if batch["status"] == "failed" and not has_results:
            raise RequestRejected(
                f"{server.url} refused {record.file}: {_batch_error(batch)}",
                "correct the options and write the requests to a new file",
            )
        journal.release_files([record.file])  # requests without a response will be written again
        _store(journal, record, {**batch, "status": "ingested"})
    return counts, running


def _store(journal: Journal, record: BatchRecord, batch: Mapping[str, Any]) -> None:
    status = str(batch.get("status", ""))
    journal.store_batch(BatchRecord(record.file, record.server, record.input_file_id, _text_field(batch, "id"), status))


def _batch_error(batch: Mapping[str, Any]) -> str:
    """Return the first error message of a batch."""
    errors = batch.get("errors")
    entries = errors.get("data") if isinstance(errors, Mapping) else None
    first = entries[0] if isinstance(entries, list) and entries else {}
    return str(first.get("message", "no reason given"))[:300] if isinstance(first, Mapping) else str(first)[:300]


def _text_field(payload: Any, name: str) -> str:
    value = payload.get(name) if isinstance(payload, Mapping) else None
    if not isinstance(value, str) or not value:
        raise ServerError(f"the server sent no {name} of the batch", "check that --server has a batch API")
    return value
