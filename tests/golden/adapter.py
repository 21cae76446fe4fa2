"""The only module of the golden tests that imports `rank_k`: everything else goes through its command line.

When a module or class of the package is renamed, this is the one place to change.
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import rank_k
from rank_k import build
from rank_k.cli import main
from rank_k.models import launch, student, weights

PROGRAM = (sys.executable, "-m", "rank_k.cli")
"""The command line as a child process."""
SOURCE = Path(rank_k.__file__).parents[1]
VERSION = rank_k.__version__
EMBEDDED_KEY = "embedded-key"


def run_command(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a command line in this process. Returns exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    thresholds = gc.get_threshold()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(argv)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
    finally:
        gc.set_threshold(*thresholds)
    return code, out.getvalue(), err.getvalue()


class _FakeEmbeddedServer:
    """Replaces the llama.cpp child process: an address, a key and a context."""

    api_key = EMBEDDED_KEY
    context_length = 8192
    failure = None

    def __init__(self, url: str) -> None:
        self.url = url

    async def close(self) -> None:
        """Nothing was started."""


@contextmanager
def embedded_server_at(url: str) -> Iterator[list[dict[str, Any]]]:
    """Send the embedded model's requests to `url`; no weights are needed. Yields what the server was started with."""
    row = weights.NAMED[weights.DEFAULT_WEIGHTS]
    located = weights.Weights(row.name, row.path, row.sha256, row.context_length, row.default_method)
    starts: list[dict[str, Any]] = []

    async def start(
        loaded: weights.Weights, *, context_length: int, concurrency: int, threads: int | None, adapter: Path | None
    ) -> _FakeEmbeddedServer:
        name = None if adapter is None else Path(adapter).name
        starts.append({"weights": loaded.name, "context": context_length, "slots": concurrency, "adapter": name})
        return _FakeEmbeddedServer(url)

    with (
        patch.object(launch.EmbeddedServer, "start", start),
        patch.object(build, "locate", lambda name: located),
        patch.object(student, "locate", lambda name: located),
    ):
        yield starts
