"""Folders that tests read files from."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The root of the checkout."""

SHARED = ROOT.parent / "shared" / "data"
"""Real collections beside the checkout. Tests that need them skip where they are absent."""
