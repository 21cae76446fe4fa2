"""What ends training early, or before it begins, and what is left in the folder of the run."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

import rank_k.distill.train as training
from rank_k.distill.losses import label_loss
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import TrainingRun, train
from rank_k.errors import InputError
from tests.support.tiny_model import recipe_text, rows, write_rows, write_tiny_gguf

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

pytest.importorskip("torch", reason="pip install 'rank-k[train]'")


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def make_recipe(folder: Path, tiny_gguf: Path, /, **changes: str) -> Any:
    path = folder / "recipe.toml"
    path.write_text(recipe_text(tiny_gguf, **changes), encoding="utf-8")
    return read_recipe(str(path))


def test_train_stops_at_the_time_limit_while_weights_load(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_slowly(weights: str, *, bf16: bool) -> Any:
        time.sleep(120)

    monkeypatch.setattr(training, "load_model", load_slowly)
    data, started = write_rows(tmp_path / "rows.jsonl", rows(8)), time.monotonic()
    with pytest.raises(InputError, match=r"time limit of 1 s passed before the first step; .*--time-limit"):
        train(TrainingRun(data, make_recipe(tmp_path, tiny_gguf), tmp_path / "out", time_limit=1))
    assert time.monotonic() - started < 60


def test_train_stops_at_the_time_limit_inside_a_step(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step would take two minutes. The student is what the first step left."""
    losses: list[int] = []

    def slow_loss(*args: Any) -> Any:
        losses.append(1)
        if len(losses) > 1:
            signal.setitimer(signal.ITIMER_REAL, 1)  # the time limit passes
            time.sleep(120)
        return label_loss(*args)

    monkeypatch.setattr(training, "label_loss", slow_loss)
    data = write_rows(tmp_path / "rows.jsonl", rows(8))
    result = train(TrainingRun(data, make_recipe(tmp_path, tiny_gguf), tmp_path / "out", time_limit=3600))
    assert (result.steps, len(losses)) == (1, 2)
    assert (tmp_path / "out" / "trained" / "adapter_model.safetensors").is_file()


def test_train_checks_rows_before_it_loads_anything(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_tokenizer", lambda weights: pytest.fail("the tokenizer was loaded"))
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    recipe = make_recipe(tmp_path, tiny_gguf, prompt='prompt = "listwise"')
    with pytest.raises(InputError, match="not made with the prompt listwise"):
        train(TrainingRun(data, recipe, tmp_path / "out"))


def test_train_writes_the_model_card_as_readme(tmp_path: Path, tiny_gguf: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    train(TrainingRun(data, make_recipe(tmp_path, tiny_gguf), tmp_path / "out", max_steps=1))
    for folder in ("out", "out/trained"):
        card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("# tiny\n")
        assert "| made up | 4 | CC0 |" in card
        assert "huggingface.co" not in card
