"""Environments of their own for packages that ours must not depend on."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

OPTIONS = ["--quiet", "--disable-pip-version-check", "--no-compile", "--no-cache-dir"]
"""What is used once and in part need be neither compiled as a whole nor kept."""


def create_environment(folder: Path, *requirements: str) -> Path:
    """The Python of a fresh environment in `folder` with `requirements`. Skips the test where they cannot be had."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [str(python), "-m", "pip", "install", *OPTIONS, *requirements]
    result = subprocess.run(install, capture_output=True, text=True)
    if "No matching distribution" in result.stderr:  # which is what pip says of an index out of reach, too
        pytest.skip(f"{' '.join(requirements)} cannot be installed: {result.stderr[-300:]}")
    assert result.returncode == 0, result.stderr
    return python
