"""Environments of their own for tests that need other people's packages."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest


def environment(folder: Path, *requirements: str) -> Path:
    """The Python of a fresh environment with `requirements`; skips where they cannot be had."""
    venv.create(folder, with_pip=True)
    options = ["--quiet", "--no-compile", "--no-cache-dir"]  # used once: what is never imported need not be compiled
    python = folder / "bin" / "python"
    for requirement in requirements:  # one after the other: an earlier one decides what a later one is content with
        command = [str(python), "-m", "pip", "install", *options, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if "No matching distribution" in done.stderr:  # which is what pip says of an index out of reach, too
            pytest.skip(f"{requirement} cannot be had: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
    return python
