"""The worked example of the documentation: from a first-stage run to a student that reranks, with the CPU's recipe."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rank_k.cli import main as rank_k
from rank_k.data.trec import read_run
from tests.support.embedded import USER_CACHE, needs_weights

pytestmark = [pytest.mark.training, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

WORKED_EXAMPLE = """
rank-k retrieve --dataset python-docs --depth 20 --output bm25.trec
rank-k distill sample --dataset python-docs --runs bm25.trec --sizes 5-8 --ranks 1-20 --sets-per-query 1
    --positives 1-2 --license PSF-2.0 --output sets.jsonl
rank-k distill trace --sets sets.jsonl --teacher labels --prompt compact --passage-tokens 50 --journal traces.sqlite
rank-k distill select --journal traces.sqlite --output sft.jsonl
rank-k distill train --data sft.jsonl --recipe smollm2-135m --max-steps 2 --output student
rank-k distill export --student student --adapter
rank-k rerank --dataset python-docs --run bm25.trec --depth 4 --max-seconds 30 --model student
    --output reranked.trec
"""
"""Commands, one per line; indented lines continue a command. Without `--max-steps 2`, the student learns something."""


@needs_weights
def test_worked_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    for command in WORKED_EXAMPLE.replace("\n    ", " ").strip().splitlines():
        program, *arguments = shlex.split(command)
        assert program == "rank-k"
        assert rank_k(arguments) == 0, command
    output = capsys.readouterr().err
    assert "training: 2 steps\nstep 1/2, loss " in output
    assert "s/step" in output
    assert not [line for line in output.splitlines() if "Warning" in line or "config file" in line]
    assert (tmp_path / "student" / "README.md").read_text(encoding="utf-8").startswith("# smollm2-135m\n")
    first_stage, reranked = (dict(read_run(Path(name))) for name in ("bm25.trec", "reranked.trec"))
    assert {query_id: len(candidates) for query_id, candidates in reranked.items()} == {
        query_id: len(candidates) for query_id, candidates in first_stage.items()
    }
