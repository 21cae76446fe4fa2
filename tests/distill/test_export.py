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
from rank_k.distill.model_card import card
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import Run, train
from rank_k.distill.training_examples import build_examples
from rank_k.errors import InputError
from rank_k.models.student import find_student
from rank_k.window.prompt import read_template
from tests.support.tiny_model import PROMPT, WORDS, near, recipe_text, rows, served_tokens, write_rows, write_tiny_gguf

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def trained(folder: Path, tiny: Path, kind: str) -> Path:
    """A student of a few large steps, so that what it learnt shows."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe_text(tiny, kind=f'kind = "{kind}"'), encoding="utf-8")
    data, held = write_rows(folder / "rows.jsonl", rows(8)), write_rows(folder / "held.jsonl", rows(3, 5))
    train(Run(data, read_recipe(str(folder / "recipe.toml")), folder / "student", held))
    return folder / "student"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return trained(tmp_path_factory.mktemp("students") / "lora", tiny, "lora")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return trained(tmp_path_factory.mktemp("students") / "full", tiny, "full")


def next_tokens(model: Any, tokenizer: Any) -> dict[str, float]:
    """Log-probabilities of the ten likeliest next tokens, by transformers."""
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        chances = torch.log_softmax(model(ids).logits[0, -1].float(), -1)
    best = chances.topk(10)
    return {tokenizer.decode(token): float(value) for value, token in zip(best.values, best.indices, strict=True)}


def merged_model(student: Path, folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_merged(student, folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(str(folder))


def test_llama_cpp_computes_what_transformers_does(adapted: Path, full: Path, tiny: Path, tmp_path: Path) -> None:
    before = served_tokens(tiny)
    for student in (adapted, full):
        expected = next_tokens(*merged_model(student, tmp_path / f"merged-{student.parent.name}"))
        whole = export_gguf(student, tmp_path / f"{student.parent.name}.gguf")
        assert near(expected, served_tokens(whole.gguf), 0.05)
        assert not near(expected, before, 0.05), "training changed nothing that shows"
    eight = export_gguf(full, tmp_path / "eight.gguf", kind="Q8_0")
    four = export_gguf(full, tmp_path / "four.gguf", kind="Q4_0")
    assert near(expected, served_tokens(eight.gguf), 0.3)
    assert four.size < eight.size < whole.size


def test_an_adapter_on_its_base_is_the_whole(adapted: Path, tiny: Path, tmp_path: Path) -> None:
    whole = export_gguf(adapted, tmp_path / "whole.gguf")
    adapter = export_gguf(adapted, tmp_path / "adapter.gguf", adapter=True)
    assert adapter.size < 100_000 < whole.size
    assert near(served_tokens(whole.gguf), served_tokens(tiny, adapter.gguf), 0.02)
    found = find_student(adapter.gguf)
    assert found is not None
    assert (found.adapter, found.weights.path) == (adapter.gguf, tiny)


def asked_otherwise(run: Path, student: Path, **asking: str) -> dict[str, Any]:
    """A copy of a run in the folder `student` whose recipe says that; its facts."""
    shutil.copytree(run, student)
    facts: dict[str, Any] = json.loads((student / "run.json").read_text())
    facts["recipe"]["asking"] |= asking
    (student / "run.json").write_text(json.dumps(facts))
    return facts


def test_likelihood_counts_only_beside_an_adapter_that_can_be_left_out(adapted: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    asked_otherwise(adapted, student, method="combined")
    for adapter, method in ((True, "combined"), (False, "listwise")):
        found = find_student(export_gguf(student, tmp_path / f"{method}.gguf", adapter=adapter).gguf)
        assert found is not None
        assert found.asking["method"] == method


def test_a_student_is_asked_as_it_was_trained_and_on_what_it_was_trained_on(adapted: Path, tmp_path: Path) -> None:
    """Whatever became of the prompt's file and of the weights since."""
    student = tmp_path / "student"
    facts = asked_otherwise(adapted, student, prompt="no-longer-there.txt")
    found = find_student(export_gguf(student, adapter=True).gguf)
    assert found is not None
    assert found.template.messages("q", ["a", "b"]) == read_template("compact").messages("q", ["a", "b"])
    (student / "run.json").write_text(json.dumps(facts | {"base_sha256": "0" * 64}))
    with pytest.raises(InputError, match="is not what"):
        export_gguf(student, adapter=True)


def test_a_card_holds_what_rows_from_elsewhere_say(adapted: Path) -> None:
    facts = json.loads((adapted / "run.json").read_text())
    facts["sources"] = {"a | b\n## Trained": {"CC0\n| forged | 9 | MIT |": 3}}
    told = card(adapted, facts, "name", "file", "F16", adapter=True)
    assert "| a \\| b ## Trained | 3 | CC0 \\| forged \\| 9 \\| MIT \\| |" in told


def test_weights_as_they_were_come_out_as_they_went_in(full: Path, tmp_path: Path) -> None:
    """What is exported and loaded again by transformers is what was trained: names, halves of pairs, all of it."""
    from safetensors.torch import load_file

    whole = export_gguf(full, tmp_path / "whole.gguf")
    again = load_base(str(whole.gguf), bf16=False).model.state_dict()
    for name, values in load_file(str(full / "trained" / "model.safetensors")).items():
        assert torch.allclose(again[name], values.float(), atol=2e-3), name


def test_a_card_says_what_a_student_was_made_of(adapted: Path, tmp_path: Path) -> None:
    made = export_gguf(adapted, tmp_path / "student.gguf", adapter=True)
    told = made.card.read_text(encoding="utf-8")
    assert "| made up | 8 | CC0 |" in told
    assert "LoRA of rank 4, 8 steps of 2 rows" in told
    assert "| 8 | " in told
    assert "not run at its full size" in told


def test_what_cannot_be_exported_is_told(adapted: Path, full: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        export_gguf(tmp_path)
    with pytest.raises(InputError, match="there is no adapter"):
        export_gguf(full, tmp_path / "x.gguf", adapter=True)
    assert not (tmp_path / "x.gguf").exists()
    with pytest.raises(InputError, match="there is no type Q3"):
        export_gguf(adapted, kind="Q3")
    for content in ("{}", "[]", "[" * 100_000):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match="holds no run"):
            export_gguf(tmp_path)
    facts = json.loads((adapted / "run.json").read_text())
    facts["recipe"]["base"]["weights"] = "Qwen/QwQ-32B"
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="has left nothing yet"):
        export_gguf(tmp_path)
    shutil.copytree(adapted / "trained", tmp_path / "trained")
    with pytest.raises(InputError, match="did not come as a GGUF file"):
        export_gguf(tmp_path)


# --- the whole chain ---


def run(*arguments: object) -> None:
    assert rank_k([str(argument) for argument in arguments]) == 0, arguments


def test_from_runs_to_a_student_that_reranks(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    run("retrieve", *collection, "--depth", 20, "--output", paths["bm25.trec"])
    sets, journal, data, held = (tmp_path / name for name in ("sets.jsonl", "t.sqlite", "data.jsonl", "held.jsonl"))
    sizes = ("--sizes", "3-6", "--ranks", "1-15", "--sets-per-query", 2, "--source", "weather", "--license", "CC0")
    run(
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
    run(
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
    run("distill", "select", "--journal", journal, "--output", data, "--heldout", held, "--heldout-share", 0.3)
    (tmp_path / "tiny.toml").write_text(recipe_text(tiny), encoding="utf-8")
    student = tmp_path / "student"
    options = ("--data", data, "--heldout", held, "--recipe", tmp_path / "tiny.toml", "--output", student)
    run("distill", "train", *options, "--max-steps", 4)
    run("distill", "export", "--student", student, "--adapter")
    new = tmp_path / "new.trec"
    run("rerank", "--run", paths["bm25.trec"], *collection, "--output", new, "--model", student, "--depth", 6)
    run("evaluate", "--qrels", paths["qrels.trec"], paths["bm25.trec"], new)
    told = capsys.readouterr()
    assert "GB over all devices" in told.err
    assert "held out: " in told.err
    assert "nDCG@10" in told.out
    assert len(new.read_text().splitlines()) == len(paths["bm25.trec"].read_text().splitlines())
    assert build_examples(iter([]), None, 1, WORDS).kept == []
