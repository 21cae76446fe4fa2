"""A journal that finds the calls of other journals in its folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from rank_k.journal import Journal
from rank_k.journal.shared import SharedFolderJournal
from tests.journal.records import make_response


def test_shared_journal_finds_and_copies_calls_of_other_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rank_k.journal.shared.RESCAN_SECONDS", 0.0)
    (tmp_path / "damaged.sqlite").write_bytes(b"not a journal" * 100)
    with closing(SharedFolderJournal(tmp_path / "own.sqlite")) as journal:
        assert journal.find_response("k") is None
        with closing(Journal(tmp_path / "other.sqlite")) as other:
            other.store_call("k", "model", "ask", {"a": 1}, make_response(), ("d1",))
            assert journal.find_response("k") == make_response()
            other.store_call("later", "model", "ask", {"a": 2}, make_response())
        assert journal.find_response("later") == make_response(), "the other process has ended"
    with closing(Journal(tmp_path / "own.sqlite")) as journal:
        call = journal.find_call("k")
        assert call is not None
        assert (call.model, call.purpose, dict(call.request), call.doc_ids) == ("model", "ask", {"a": 1}, ("d1",))
