"""A study's report as one HTML file."""

from __future__ import annotations

from pathlib import Path

from rank_k.evaluation.studies.answer import Answer


def write_page(path: Path, answer: Answer) -> None:
    path.write_text(answer.study.title)
