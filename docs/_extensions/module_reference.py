"""The modules of a package in Markdown, with the first sentence of their docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import rank_k

ROOT = Path(rank_k.__file__).parent
END_OF_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")


def render_modules(package: str) -> Iterator[str]:
    """Yield a table of the modules directly in `package`, a folder of `rank_k`, or "." for the top-level modules."""
    yield from ("| module | purpose |", "|---|---|")
    for path in sorted((ROOT / package).glob("*.py")):
        if path.stem not in ("__init__", "__main__"):
            yield f"| `{path.relative_to(ROOT).as_posix()}` | {purpose(path)} |"


def purpose(path: Path) -> str:
    """Return the first sentence of a module's docstring, in Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return END_OF_SENTENCE.split(paragraph)[0].replace("|", r"\|").replace("<", r"\<")
