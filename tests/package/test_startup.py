"""Starting costs nothing: what is not needed is not imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rank_k.cli import VERBS

HEAVY = (
    "numpy",
    "scipy",
    "aiohttp",
    "bm25s",
    "ir_measures",
    "mcp",
    "xllamacpp",
    "tokenizers",
    "yaml",
    "ir_datasets",
    "pyarrow",
)
FOR_WORK = ("asyncio", "sqlite3", "json", "argparse", "dataclasses", "zlib", "logging", "email")

TRIES = 12
"""Of a measurement: what else runs on the machine can only make it larger, so one below the limit is enough."""


def imported_by(*arguments: str) -> set[str]:
    """The names of all modules that a Python run with `arguments` imports."""
    child = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    lines = child.stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def processor_seconds(*arguments: str) -> float:
    """User and system time of a Python run with `arguments`."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_importing_the_package_imports_nothing_of_weight() -> None:
    new = imported_by("-c", "import rank_k") - imported_by("-c", "pass")
    assert "rank_k" in new
    assert not [name for name in new if name.startswith("rank_k.")]
    assert not new & {*HEAVY, *FOR_WORK}


def test_importing_the_package_takes_less_than_50_ms() -> None:
    code = "import time; begun = time.perf_counter(); import rank_k; print(time.perf_counter() - begun)"

    def seconds() -> float:
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert any(seconds() < 0.05 for _ in range(TRIES))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_of_weight(verb: str) -> None:
    imported = imported_by("-m", "rank_k.cli", *filter(None, [verb]), "--help")
    assert "rank_k.cli" in imported
    assert not [name for name in imported if name.partition(".")[0] in HEAVY]


@pytest.mark.parametrize("verb", ["", "rerank"])
def test_help_takes_less_than_150_ms_of_the_processor(verb: str) -> None:
    arguments = ("-m", "rank_k.cli", *filter(None, [verb]), "--help")
    assert any(processor_seconds(*arguments) < 0.15 for _ in range(TRIES))
