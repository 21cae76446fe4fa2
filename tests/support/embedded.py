"""The embedded model's weights, for tests with the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from rank_k.errors import MissingWeights
from rank_k.models.weights import DEFAULT_WEIGHTS, cache_directory, locate


def _find_user_cache() -> Path | None:
    try:
        locate(DEFAULT_WEIGHTS)
    except MissingWeights:
        return None
    return cache_directory()


USER_CACHE = _find_user_cache()  # before the tests are given homes of their own
needs_weights = pytest.mark.skipif(USER_CACHE is None, reason="the embedded weights are not here: rank-k fetch")
