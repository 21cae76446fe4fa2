"""Training uses bfloat16 only where the hardware is fast at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rank_k.distill import train as training
from rank_k.distill.base_model import bf16_is_fast, load_model
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import TrainingRun, train
from tests.support.tiny_model import recipe_text, rows, write_rows, write_tiny_gguf

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

WITH_BF16 = {"avx2": True, "avx512_bf16": True, "cpu_name": "bf16 in a name is no instruction"}
AVX2_ONLY = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "bf16 in a name is no instruction"}


def trained_in_bf16(monkeypatch: pytest.MonkeyPatch, run: TrainingRun, instructions: Mapping[str, Any]) -> bool:
    """Train on a CPU with these instructions, and return whether the base's weights were loaded as bfloat16."""
    bf16_values: list[bool] = []

    def load_and_record(weights: str, *, bf16: bool) -> Any:
        bf16_values.append(bf16)
        return load_model(weights, bf16=bf16)

    monkeypatch.setattr(training, "load_model", load_and_record)
    pretend_cpu(monkeypatch, instructions)
    train(run)
    return bf16_values[0]


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, instructions: Mapping[str, Any]) -> None:
    """Make this machine one without a GPU, and with a CPU of these instructions."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def run(tmp_path: Path, weights: Path) -> TrainingRun:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(weights, bf16="bf16 = true"), encoding="utf-8")
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    return TrainingRun(data, read_recipe(str(recipe)), tmp_path / "student", max_steps=1)


@pytest.mark.parametrize(("instructions", "fast"), [(WITH_BF16, True), (AVX2_ONLY, False), ({}, False)])
def test_bf16_is_fast_on_a_cpu_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, instructions: Mapping[str, Any], fast: bool
) -> None:
    pretend_cpu(monkeypatch, instructions)
    assert bf16_is_fast() is fast


def test_train_uses_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, run: TrainingRun) -> None:
    assert trained_in_bf16(monkeypatch, run, WITH_BF16)
    assert json.loads((run.output / "run.json").read_text())["bf16"] is True


def test_train_uses_float32_on_an_avx2_cpu_and_resumes_in_it(monkeypatch: pytest.MonkeyPatch, run: TrainingRun) -> None:
    assert not trained_in_bf16(monkeypatch, run, AVX2_ONLY)
    assert json.loads((run.output / "run.json").read_text())["bf16"] is False
    assert not trained_in_bf16(monkeypatch, run, WITH_BF16)
