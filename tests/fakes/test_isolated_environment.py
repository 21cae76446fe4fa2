"""Tests run without the user's settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def user_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_API_KEY", "the user's own")
        patch.setenv("OPENAI_API_KEY", "the user's own")
        yield


def test_isolated_environment_hides_user_settings(isolated_environment: Path) -> None:
    assert "RANK_K_API_KEY" not in os.environ
    assert "OPENAI_API_KEY" not in os.environ
    assert Path.home() == isolated_environment
