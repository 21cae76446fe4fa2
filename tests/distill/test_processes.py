"""Training by several processes: one clock, one story, and at the end one whole student."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rank_k.distill.base_model import load_base
from rank_k.distill.export import export_merged
from rank_k.distill.model_card import render_card
from rank_k.distill.recipes import RECIPES_FOLDER
from rank_k.distill.run_folder import TrainingClock, read_run_metadata
from tests.support.tiny_model import LAYERS, recipe_text, rows, write_rows, write_tiny_gguf
from tests.support.waiting import LONG_PATIENCE

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


def replace_first(value: float, values: list[float]) -> None:
    values[0] = value


def test_training_clock_uses_the_first_process_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TrainingClock(2.0, 10.0)
    assert (clock.seconds, clock.elapsed_share) == (2.0, 0.2)
    for seconds in (5.0, 7.5):
        monkeypatch.setattr("accelerate.utils.broadcast_object_list", partial(replace_first, seconds))
        clock.tick()
        assert (clock.seconds, clock.elapsed_share) == (seconds, seconds / 10)


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in transformers' own format, rows, a recipe, and the launch file of the shipped recipe for two CPUs."""
    tmp_path = tmp_path_factory.mktemp("sharded")
    base = load_base(str(write_tiny_gguf(tmp_path / "tiny.gguf")), bf16=False)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", rows(8))
    write_rows(tmp_path / "heldout.jsonl", rows(4, 9))
    text = recipe_text(tmp_path / "base")
    recipe_without_labels = text[: text.index("[verdicts]")] + text[text.index("[asking]") :]
    (tmp_path / "recipe.toml").write_text(recipe_without_labels, encoding="utf-8")
    launch = (RECIPES_FOLDER / "fsdp.yaml").read_text(encoding="utf-8")
    for old, new in (("num_processes: 8", "num_processes: 2"), ("mixed_precision: bf16", 'mixed_precision: "no"')):
        assert old in launch
        launch = launch.replace(old, new)
    (tmp_path / "fsdp.yaml").write_text(f"{launch}use_cpu: true\n", encoding="utf-8")
    return tmp_path


def train_sharded(folder: Path, output: str) -> str:
    """What the processes said."""
    launch_command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml"]
    script = Path(__file__).parents[1] / "support" / "sharded.py"
    arguments = ["distill", "train", "--data", "rows.jsonl", "--heldout", "heldout.jsonl", "--recipe", "recipe.toml"]
    completed = subprocess.run(
        [*launch_command, str(script), *arguments, "--output", output],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONG_PATIENCE,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stderr


def load_adapter(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(str(output / "trained" / "adapter_model.safetensors"))
    return tensors


def read_measures(output: Path) -> list[dict[str, Any]]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_train_saves_sharded_weights_as_one_student(training_folder: Path) -> None:
    full_run, resumed_run = training_folder / "whole", training_folder / "parts"
    stderr = train_sharded(training_folder, "whole")
    assert stderr.count("whole: 4 steps") == 1  # one process speaks for both
    assert (full_run / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()  # in shards, while it went on
    tensors = load_adapter(full_run)
    assert len(tensors) == 2 * 7 * LAYERS
    metadata = read_run_metadata(full_run)
    assert "4 steps of 4 rows" in render_card(full_run, metadata, "tiny", "tiny.gguf", "F16", adapter=True)
    assert any(values.abs().max() > 0 for name, values in tensors.items() if "lora_B" in name)
    heldout_records = [line["heldout"] for line in read_measures(full_run) if "heldout" in line]
    assert heldout_records
    assert 0 < heldout_records[-1]["loss"] < 12

    shutil.copytree(full_run, resumed_run)
    shutil.rmtree(resumed_run / "checkpoint-4")
    shutil.rmtree(resumed_run / "trained")
    train_sharded(training_folder, "parts")  # goes on from the checkpoint before
    resumed_tensors = load_adapter(resumed_run)
    assert all(torch.allclose(tensors[name], resumed_tensors[name], atol=1e-6) for name in tensors)
    assert read_measures(resumed_run) == read_measures(full_run)

    export_merged(full_run, training_folder / "merged")
    merged = load_base(str(training_folder / "merged"), bf16=False).model.state_dict()
    base = load_base(str(training_folder / "base"), bf16=False).model.state_dict()
    assert {name: value.shape for name, value in merged.items()} == {name: value.shape for name, value in base.items()}
    assert any(not torch.allclose(merged[name], base[name], atol=1e-2) for name in base)
