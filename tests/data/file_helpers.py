"""Small files for the tests of readers and writers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

from rank_k.data.passages import read_passages
from rank_k.types import Passage

without_health_checks = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def write_file(tmp_path: Path, content: str | bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all_passages(path: Path) -> list[Passage]:
    return list(read_passages(path))
