"""Starting costs nothing: what is not needed is not imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rank_k.cli import VERBS
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.integration

HEAVY_MODULES = (
    "numpy",
    "scipy",
    "aiohttp",
    "rich",
    "bm25s",
    "ir_measures",
    "mcp",
    "xllamacpp",
    "tokenizers",
    "yaml",
    "ir_datasets",
    "pyarrow",
)
WORK_MODULES = ("asyncio", "sqlite3", "json", "argparse", "dataclasses", "zlib", "logging", "email")

REPEATS = 8
"""How often a measurement is repeated. Other work on the machine can only make one larger, so the least counts."""


def imported_modules(*arguments: str) -> set[str]:
    """The names of all modules that a Python run with `arguments` imports."""
    child = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    lines = child.stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def cpu_seconds(*arguments: str) -> float:
    """Return the user and system time of a Python run with `arguments`."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def relative_cost(*arguments: str) -> float:
    """Return the processor time of a Python run with `arguments` as a multiple of that of a Python that does nothing.

    Both are measured in turn, so that the ratio holds on machines of any speed.
    """
    runs = [(cpu_seconds(*arguments), cpu_seconds("-c", "pass")) for _ in range(REPEATS)]
    return min(run for run, _ in runs) / min(bare for _, bare in runs)


def test_import_loads_no_heavy_modules() -> None:
    new = imported_modules("-c", "import rank_k") - imported_modules("-c", "pass")
    assert "rank_k" in new
    assert not [name for name in new if name.startswith("rank_k.")]
    assert not new & {*HEAVY_MODULES, *WORK_MODULES}


def test_import_takes_little_more_cpu_than_python() -> None:
    assert relative_cost("-c", "import rank_k") < 3  # measured: 2.0 without cached bytecode; numpy adds 10 or more


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_heavy_modules(verb: str) -> None:
    imported = imported_modules("-m", "rank_k.cli", *filter(None, [verb]), "--help")
    assert "rank_k.cli" in imported
    assert not [name for name in imported if name.partition(".")[0] in HEAVY_MODULES]


@pytest.mark.parametrize(("verb", "limit"), [("", 10), ("rerank", 30)])
def test_help_cpu_is_a_small_multiple_of_python(verb: str, limit: float) -> None:
    # A verb imports what it needs to run, also for its help. numpy alone would add 10 or more.
    assert relative_cost("-m", "rank_k.cli", *filter(None, [verb]), "--help") < limit
