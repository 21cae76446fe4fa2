"""Training by several processes: one clock, one story, and at the end one whole student."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rank_k.distill.base_model import load_base
from rank_k.distill.export import export_merged, run_facts
from rank_k.distill.model_card import card
from rank_k.distill.recipes import FOLDER
from rank_k.distill.training_log import Clock
from tests.support.tiny_model import LAYERS, recipe_text, rows, write_rows, write_tiny_gguf
from tests.support.waiting import LONG_PATIENCE

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


def test_processes_go_by_the_first_one_s_clock() -> None:
    told = iter([5.0, 7.5])
    clock = Clock(2.0, 10.0, lambda mine: next(told))
    assert (clock.seconds, clock.share) == (2.0, 0.2)
    for seconds in (5.0, 7.5):
        clock.tick()
        assert (clock.seconds, clock.share) == (seconds, seconds / 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in transformers' own format, rows, a recipe, and the launch file of the shipped recipe for two CPUs."""
    tmp_path = tmp_path_factory.mktemp("sharded")
    base = load_base(str(write_tiny_gguf(tmp_path / "tiny.gguf")), bf16=False)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", rows(8))
    write_rows(tmp_path / "held.jsonl", rows(4, 9))
    text = recipe_text(tmp_path / "base")
    without_verdicts = text[: text.index("[verdicts]")] + text[text.index("[asking]") :]
    (tmp_path / "recipe.toml").write_text(without_verdicts, encoding="utf-8")
    launch = (FOLDER / "fsdp.yaml").read_text(encoding="utf-8")
    for old, new in (("num_processes: 8", "num_processes: 2"), ("mixed_precision: bf16", 'mixed_precision: "no"')):
        assert old in launch
        launch = launch.replace(old, new)
    (tmp_path / "fsdp.yaml").write_text(f"{launch}use_cpu: true\n", encoding="utf-8")
    return tmp_path


def trained(folder: Path, output: str) -> str:
    """What the processes said."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml"]
    sharded = Path(__file__).with_name("sharded.py")
    asked = ["distill", "train", "--data", "rows.jsonl", "--heldout", "held.jsonl", "--recipe", "recipe.toml"]
    done = subprocess.run(
        [*launch, str(sharded), *asked, "--output", output],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONG_PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def adapter(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(str(output / "trained" / "adapter_model.safetensors"))
    return found


def measures(output: Path) -> list[dict[str, Any]]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_weights_in_shards_come_out_as_one_student(made: Path) -> None:
    whole, parts = made / "whole", made / "parts"
    told = trained(made, "whole")
    assert told.count("whole: 4 steps") == 1  # one process speaks for both
    assert (whole / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()  # in shards, while it went on
    found = adapter(whole)
    assert len(found) == 2 * 7 * LAYERS
    facts = run_facts(whole)
    assert "4 steps of 4 rows" in card(whole, facts, "tiny", "tiny.gguf", "F16", adapter=True)
    assert any(values.abs().max() > 0 for name, values in found.items() if "lora_B" in name)
    held = [line["heldout"] for line in measures(whole) if "heldout" in line]
    assert held
    assert 0 < held[-1]["loss"] < 12

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoint-4")
    shutil.rmtree(parts / "trained")
    trained(made, "parts")  # goes on from the checkpoint before
    again = adapter(parts)
    assert all(torch.allclose(found[name], again[name], atol=1e-6) for name in found)
    assert measures(parts) == measures(whole)

    export_merged(whole, made / "merged")
    merged = load_base(str(made / "merged"), bf16=False).model.state_dict()
    base = load_base(str(made / "base"), bf16=False).model.state_dict()
    assert {name: value.shape for name, value in merged.items()} == {name: value.shape for name, value in base.items()}
    assert any(not torch.allclose(merged[name], base[name], atol=1e-2) for name in base)
