"""Journals for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rank_k.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a journal that does not exist yet."""
    return tmp_path / "j.sqlite"


@pytest.fixture
def journal() -> Iterator[Journal]:
    """A temporary journal."""
    temporary = Journal()
    yield temporary
    temporary.close()
