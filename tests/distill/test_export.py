"""Export: the numbers in a GGUF file are those that were trained, to llama.cpp too; then the whole chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rank_k.cli import main as rank_k
from rank_k.distill.base_model import load_base
from rank_k.distill.export import export_gguf, export_merged
from rank_k.distill.model_card import render_card
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import TrainingRun, train
from rank_k.distill.training_examples import build_examples
from rank_k.errors import InputError
from rank_k.models.student import find_student
from rank_k.window.prompt import read_template, template_of_student
from tests.support.tiny_model import (
    PROMPT,
    WORDS,
    agree_within,
    llama_cpp_log_probabilities,
    recipe_text,
    rows,
    write_rows,
    write_tiny_gguf,
)

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def train_student(folder: Path, tiny_gguf: Path, kind: str) -> Path:
    """A student of a few large steps, so that what it learnt shows."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe_text(tiny_gguf, kind=f'kind = "{kind}"'), encoding="utf-8")
    data, heldout_file = write_rows(folder / "rows.jsonl", rows(8)), write_rows(folder / "heldout.jsonl", rows(3, 5))
    train(TrainingRun(data, read_recipe(str(folder / "recipe.toml")), folder / "student", heldout_file))
    return folder / "student"


@pytest.fixture(scope="module")
def lora_student(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    return train_student(tmp_path_factory.mktemp("students") / "lora", tiny_gguf, "lora")


@pytest.fixture(scope="module")
def full_student(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    return train_student(tmp_path_factory.mktemp("students") / "full", tiny_gguf, "full")


def next_token_log_probabilities(model: Any, tokenizer: Any) -> dict[str, float]:
    """Log-probabilities of the ten likeliest next tokens, by transformers."""
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(ids).logits[0, -1].float(), -1)
    top_ten = log_probabilities.topk(10)
    return {tokenizer.decode(token): float(value) for value, token in zip(top_ten.values, top_ten.indices, strict=True)}


def merged_model(student: Path, folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_merged(student, folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(str(folder))


def test_export_gguf_matches_transformers_in_llama_cpp(
    lora_student: Path, full_student: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    base_tokens = llama_cpp_log_probabilities(tiny_gguf)
    for student in (lora_student, full_student):
        expected = next_token_log_probabilities(*merged_model(student, tmp_path / f"merged-{student.parent.name}"))
        full_model = export_gguf(student, tmp_path / f"{student.parent.name}.gguf")
        assert agree_within(expected, llama_cpp_log_probabilities(full_model), 0.05)
        assert not agree_within(expected, base_tokens, 0.05), "training changed nothing that shows"
    eight_bit = export_gguf(full_student, tmp_path / "eight.gguf", quantization="Q8_0")
    four_bit = export_gguf(full_student, tmp_path / "four.gguf", quantization="Q4_0")
    assert agree_within(expected, llama_cpp_log_probabilities(eight_bit), 0.3)
    assert four_bit.stat().st_size < eight_bit.stat().st_size < full_model.stat().st_size


def test_export_gguf_adapter_matches_full_weights(lora_student: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    full_model = export_gguf(lora_student, tmp_path / "whole.gguf")
    adapter = export_gguf(lora_student, tmp_path / "adapter.gguf", adapter=True)
    assert adapter.stat().st_size < 100_000 < full_model.stat().st_size
    assert agree_within(llama_cpp_log_probabilities(full_model), llama_cpp_log_probabilities(tiny_gguf, adapter), 0.02)
    adapter_student = find_student(adapter)
    assert adapter_student is not None
    assert (adapter_student.adapter, adapter_student.weights.path) == (adapter, tiny_gguf)


def copy_run_with_options(run: Path, student: Path, **options: str) -> dict[str, Any]:
    """A copy of a run in the folder `student` whose recipe says that; its facts."""
    shutil.copytree(run, student)
    metadata: dict[str, Any] = json.loads((student / "run.json").read_text())
    metadata["recipe"]["asking"] |= options
    (student / "run.json").write_text(json.dumps(metadata))
    return metadata


def test_export_gguf_keeps_combined_method_for_adapters_only(lora_student: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    copy_run_with_options(lora_student, student, method="combined")
    for adapter, method in ((True, "combined"), (False, "listwise")):
        exported_student = find_student(export_gguf(student, tmp_path / f"{method}.gguf", adapter=adapter))
        assert exported_student is not None
        assert exported_student.asking["method"] == method


def test_export_gguf_uses_the_stored_prompt_and_base_checksum(lora_student: Path, tmp_path: Path) -> None:
    """Whatever became of the prompt's file and of the weights since."""
    student = tmp_path / "student"
    metadata = copy_run_with_options(lora_student, student, prompt="no-longer-there.txt")
    exported_student = find_student(export_gguf(student, adapter=True))
    assert exported_student is not None
    assert template_of_student("s", exported_student.prompt).messages("q", ["a", "b"]) == read_template(
        "compact"
    ).messages("q", ["a", "b"])
    (student / "run.json").write_text(json.dumps(metadata | {"base_sha256": "0" * 64}))
    with pytest.raises(InputError, match="has changed since"):
        export_gguf(student, adapter=True)


def test_render_card_escapes_sources(lora_student: Path) -> None:
    metadata = json.loads((lora_student / "run.json").read_text())
    metadata["sources"] = {"a | b\n## Trained": {"CC0\n| forged | 9 | MIT |": 3}}
    text = render_card(lora_student, metadata, "name", "file", "F16", adapter=True)
    assert "| a \\| b ## Trained | 3 | CC0 \\| forged \\| 9 \\| MIT \\| |" in text


def test_export_gguf_round_trips_weights(full_student: Path, tmp_path: Path) -> None:
    """What is exported and loaded again by transformers is what was trained: names, halves of pairs, all of it."""
    from safetensors.torch import load_file

    full_model = export_gguf(full_student, tmp_path / "whole.gguf")
    loaded = load_base(str(full_model), bf16=False).model.state_dict()
    for name, values in load_file(str(full_student / "trained" / "model.safetensors")).items():
        assert torch.allclose(loaded[name], values.float(), atol=2e-3), name


def test_export_gguf_writes_a_card_with_provenance(lora_student: Path, tmp_path: Path) -> None:
    exported = export_gguf(lora_student, tmp_path / "student.gguf", adapter=True)
    text = exported.with_suffix(".md").read_text(encoding="utf-8")
    assert "| made up | 8 | CC0 |" in text
    assert "LoRA of rank 4, 8 steps of 2 rows" in text
    assert "| 8 | " in text
    assert "have not run it at its full size" in text


def test_export_gguf_rejects_what_it_cannot_export(lora_student: Path, full_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the folder of a training run"):
        export_gguf(tmp_path)
    with pytest.raises(InputError, match="there is no adapter"):
        export_gguf(full_student, tmp_path / "x.gguf", adapter=True)
    assert not (tmp_path / "x.gguf").exists()
    with pytest.raises(InputError, match="unknown quantization type Q3"):
        export_gguf(lora_student, quantization="Q3")
    for content in ("{}", "[]", "[" * 100_000):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match="is not the folder of a training run"):
            export_gguf(tmp_path)
    metadata = json.loads((lora_student / "run.json").read_text())
    metadata["recipe"]["base"]["weights"] = "Qwen/QwQ-32B"
    (tmp_path / "run.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="has neither trained weights nor a checkpoint"):
        export_gguf(tmp_path)
    shutil.copytree(lora_student / "trained", tmp_path / "trained")
    with pytest.raises(InputError, match="the base model is not a GGUF file"):
        export_gguf(tmp_path)


# --- the whole chain ---


def run_command(*arguments: object) -> None:
    assert rank_k([str(argument) for argument in arguments]) == 0, arguments


def test_distill_commands_train_a_student_that_reranks(
    tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sample, trace, select, train, export, rerank, evaluate: each as a command, on what the one before wrote."""
    words = "sun moon tide rain snow wind leaf stone".split()
    documents = [
        {"_id": f"d{i}", "text": f"the {a} and the {b}"}
        for i, (a, b) in enumerate((a, b) for a in words for b in words if a != b)
    ]
    queries = [{"_id": f"q{i}", "text": f"what of the {word}"} for i, word in enumerate(words)]
    paths = {name: tmp_path / name for name in ("documents.jsonl", "queries.jsonl", "qrels.trec", "bm25.trec")}
    write_rows(paths["documents.jsonl"], documents)
    write_rows(paths["queries.jsonl"], queries)
    with paths["qrels.trec"].open("w") as file:
        for number, word in enumerate(words):
            for document in documents:
                if document["text"].startswith(f"the {word} "):
                    file.write(f"q{number} 0 {document['_id']} 1\n")
    collection = ("--queries", paths["queries.jsonl"], "--documents", paths["documents.jsonl"])
    run_command("retrieve", *collection, "--depth", 20, "--output", paths["bm25.trec"])
    sets, journal, data, heldout_file = (
        tmp_path / name for name in ("sets.jsonl", "t.sqlite", "data.jsonl", "heldout.jsonl")
    )
    sizes = ("--sizes", "3-6", "--ranks", "1-15", "--sets-per-query", 2, "--source", "weather", "--license", "CC0")
    run_command(
        "distill",
        "sample",
        "--runs",
        paths["bm25.trec"],
        *collection,
        "--qrels",
        paths["qrels.trec"],
        "--output",
        sets,
        *sizes,
    )
    run_command(
        "distill",
        "trace",
        "--sets",
        sets,
        "--teacher",
        "labels",
        "--prompt",
        "compact",
        "--journal",
        journal,
        "--quiet",
    )
    run_command(
        "distill", "select", "--journal", journal, "--output", data, "--heldout", heldout_file, "--heldout-share", 0.3
    )
    (tmp_path / "tiny.toml").write_text(recipe_text(tiny_gguf), encoding="utf-8")
    student = tmp_path / "student"
    options = ("--data", data, "--heldout", heldout_file, "--recipe", tmp_path / "tiny.toml", "--output", student)
    run_command("distill", "train", *options, "--max-steps", 4)
    run_command("distill", "export", "--student", student, "--adapter")
    new_run = tmp_path / "new.trec"
    run_command(
        "rerank", "--run", paths["bm25.trec"], *collection, "--output", new_run, "--model", student, "--depth", 6
    )
    run_command("evaluate", "--qrels", paths["qrels.trec"], paths["bm25.trec"], new_run)
    output = capsys.readouterr()
    assert "GB of memory on all devices" in output.err
    assert "training: 4 steps\nstep 1/4, loss " in output.err
    assert "held-out rows: " in output.err
    assert "nDCG@10" in output.out
    assert len(new_run.read_text().splitlines()) == len(paths["bm25.trec"].read_text().splitlines())
    assert build_examples(iter([]), None, 1, WORDS).examples == []
