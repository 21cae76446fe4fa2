"""Store requests that wait for a response in a batch file, and the batches that were submitted to a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rank_k.journal.calls import CallStore, compress_json, decompress_json
from rank_k.journal.schema import decode_text, encode_text


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A request that has no response yet.

    Attributes:
        key: The key of the call, which is the `custom_id` of its line in a batch file.
        model: The name of the model.
        purpose: The purpose of the call (see `Call`).
        doc_ids: The passages that the call is about, in the order in which the prompt presents them.
        request: The body of the request.
        file: The name of the batch file that contains the request; empty if the request must be written to a new file.
        failures: The number of times that a server refused the request.
        error: The error message of the last failure; empty if there was none.
    """

    key: str
    model: str
    purpose: str
    doc_ids: tuple[str, ...]
    request: Mapping[str, Any]
    file: str = ""
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A submitted batch file.

    Attributes:
        file: The name of the batch file.
        server: The URL of the server.
        input_file_id: The id that the server assigned to the uploaded file.
        batch_id: The id that the server assigned to the batch; empty until the server has confirmed the batch.
        status: The last known status, as the server calls it; "ingested" after its results were stored in the journal.
    """

    file: str
    server: str
    input_file_id: str
    batch_id: str = ""
    status: str = "submitting"


class BatchStore(CallStore):
    """The part of a `Journal` that stores batch files and their requests."""

    def store_pending(self, calls: Iterable[PendingCall]) -> None:
        """Store requests that were written to a batch file. If this fails, none of them is stored."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for call in calls:
                self._db.execute(
                    "INSERT INTO pending_calls (key, model, purpose, doc_ids, request, file, failures, error)"
                    " VALUES (?, ?, ?, ?, ?, ?, 0, '') ON CONFLICT (key) DO UPDATE SET file = excluded.file",
                    (
                        call.key,
                        encode_text(call.model),
                        call.purpose,
                        json.dumps(call.doc_ids),
                        compress_json(call.request),
                        call.file,
                    ),
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def find_pending(self, key: str) -> PendingCall | None:
        """Return the waiting request with this key, or None."""
        row = self._db.execute(
            "SELECT key, model, purpose, doc_ids, request, file, failures, error FROM pending_calls WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        _, model, purpose, doc_ids, request, file, failures, error = row
        return PendingCall(
            key,
            decode_text(model),
            purpose,
            tuple(json.loads(doc_ids)),
            decompress_json(request),
            file,
            failures,
            decode_text(error),
        )

    def count_pending(self) -> dict[str, int]:
        """Return the number of waiting requests by the name of their batch file ("": not in a batch file)."""
        return dict(self._db.execute("SELECT file, count(*) FROM pending_calls GROUP BY file ORDER BY file"))

    def remove_pending(self, key: str) -> None:
        """Delete a waiting request after its response was stored in the journal."""
        self._db.execute("DELETE FROM pending_calls WHERE key = ?", (key,))

    def fail_pending(self, key: str, error: str, failures: int = 1) -> None:
        """Store that a request got no response and must be written to a new file. Add `failures` to its failures."""
        self._db.execute(
            "UPDATE pending_calls SET file = '', failures = failures + ?, error = ? WHERE key = ?",
            (failures, encode_text(error[:1000]), key),
        )

    def release_files(self, names: Sequence[str]) -> None:
        """Store that the waiting requests in these batch files must be written to new files."""
        for name in names:
            self._db.execute("UPDATE pending_calls SET file = '' WHERE file = ?", (name,))

    def store_batch(self, batch: BatchRecord) -> None:
        """Store the state of a submitted file. It is written to disk at once, so it survives a power failure."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "INSERT OR REPLACE INTO batches (file, server, input_file_id, batch_id, status, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (batch.file, batch.server, batch.input_file_id, batch.batch_id, batch.status, time.time()),
        )
        self._db.execute("PRAGMA synchronous = NORMAL")

    def batches(self) -> list[BatchRecord]:
        """Return the submitted batch files, sorted by name."""
        rows = self._db.execute("SELECT file, server, input_file_id, batch_id, status FROM batches ORDER BY file")
        return [BatchRecord(*row) for row in rows]
