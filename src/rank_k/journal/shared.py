"""A journal that also finds calls in the other journals of its folder."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from rank_k.errors import JournalError
from rank_k.journal.runs import Journal
from rank_k.types import Response

RESCAN_SECONDS = 5.0
"""The minimum number of seconds between two searches of the folder for new journals."""


class SharedFolderJournal(Journal):
    """A journal that one process writes, and that looks up calls in all journals of its folder.

    If a process dies, a process that takes over its work finds the calls that were already paid for, and copies them
    to its own journal. Journals that cannot be read, because they are being created or are damaged, are skipped.

    Args:
        path: The file of this journal. The other journals are the files in its folder with the same suffix.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folder = path.parent
        self._suffix = path.suffix
        self._own_path = path.resolve()
        self._others: dict[Path, Journal] = {}
        self._next_scan = 0.0

    def find_response(self, key: str) -> Response | None:
        """Return the response to the call `key` from any journal in the folder, or None."""
        response = super().find_response(key)
        if response is not None:
            return response
        self._scan_folder()
        for other in self._others.values():
            try:
                call = other.find_call(key)
            except (JournalError, sqlite3.Error):
                continue
            if call is not None:
                return self.store_call(key, call.model, call.purpose, call.request, call.response, call.doc_ids)
        return None

    def close(self) -> None:
        for other in self._others.values():
            other.close()
        super().close()

    def _scan_folder(self) -> None:
        """Open journals that were added to the folder since the last search."""
        now = time.monotonic()
        if now < self._next_scan:
            return
        self._next_scan = now + RESCAN_SECONDS
        for path in sorted(self._folder.glob(f"*{self._suffix}")):
            if path not in self._others and path.resolve() != self._own_path:
                try:
                    self._others[path] = Journal(path, read_only=True)
                except JournalError:
                    continue
