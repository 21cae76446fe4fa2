"""Training: what is learnt is what was selected, to the letter; what cannot be stops first; a kill changes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rank_k.distill.train as training
from rank_k.distill.base_model import load_base
from rank_k.distill.heldout_measures import auc, measure
from rank_k.distill.label_traces import LabelTrace
from rank_k.distill.losses import label_loss, listwise_loss
from rank_k.distill.recipes import LabelOptions, read_recipe, recipe_names
from rank_k.distill.train import TrainingRun, train
from rank_k.distill.training_examples import (
    IGNORED_LABEL,
    Batches,
    build_examples,
    label_token_ids_of,
    read_rows,
    tokenize_row,
    training_order,
)
from rank_k.errors import FormatError, InputError
from tests.support.tiny_model import WORDS, recipe_text, row, rows, write_rows, write_tiny_gguf

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As the chat templates of QwQ and Qwen3 do: an assistant's turn loses its thought."""

OPENS_REASONING = DROPS_REASONING.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
"""As QwQ's: the generation prompt opens the thought."""

TEMPLATES = {"smollm2-135m": None, "qwen3-8b": DROPS_REASONING, "qwq-32b": OPENS_REASONING}


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def tokenizer(tiny_gguf: Path) -> Any:
    return load_base(str(tiny_gguf), bf16=False).tokenizer


def make_recipe(folder: Path, tiny_gguf: Path, /, **changes: str) -> Any:
    path = folder / "recipe.toml"
    path.write_text(recipe_text(tiny_gguf, **changes), encoding="utf-8")
    return read_recipe(str(path))


# --- what is learnt ---


@pytest.mark.parametrize("name", recipe_names())
def test_batches_labels_are_the_trace_and_the_ranking(name: str, tokenizer: Any) -> None:
    recipe = read_recipe(name)
    template = TEMPLATES[name]
    if template is not None:
        tokenizer.chat_template = template
    training_row = row("why is it blue", ["the sky [2] scatters", "paint"], [2, 0])
    training_row["completion"][0]["content"] = completion = "<think>\nthe first one says why\n</think>\n\n[1] > [2]"
    example_set = build_examples(iter([training_row]), tokenizer, recipe.training.max_length, recipe.verdicts.words)
    batches = Batches(example_set.examples, [0, 0], tokenizer, recipe.verdicts, 0)
    batch = batches([{"position": 0}, {"position": 1}])
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned_labels = labels[labels != IGNORED_LABEL]
        assert tokenizer.decode(learned_labels) == f"{completion}{tokenizer.eos_token}"
        assert tokenizer.decode(ids).count("<think>") == 1
        assert tokenizer.decode(ids).endswith(f"<|im_start|>assistant\n{completion}{tokenizer.eos_token}")


def test_build_examples_counts_long_rows_and_truncates_none(tokenizer: Any) -> None:
    training_rows = [row("q", ["a", "b"], [0, 2]), row("q", ["word " * 300, "b"], [0, 2])]
    example_set = build_examples(iter(training_rows), tokenizer, 200, WORDS)
    assert (len(example_set.examples), example_set.too_long) == (1, 1)
    assert example_set.sources == {"made up": {"CC0": 1}}
    length = len(tokenize_row(example_set.examples[0], tokenizer).input_ids)
    assert build_examples(iter(training_rows), tokenizer, length, WORDS).too_long == 1
    assert build_examples(iter(training_rows), tokenizer, length - 1, WORDS).too_long == 2


def test_tokenize_row_shows_random_and_learns_target_labels(tokenizer: Any) -> None:
    example_set = build_examples(iter([row("q", ["a", "b", "c"], [0, 2, 1])]), tokenizer, 500, WORDS)
    shown_trace = LabelTrace((2, 2, 0), (0, 2, 1), WORDS)
    tokenized_row = tokenize_row(example_set.examples[0], tokenizer, shown_trace)
    learned = [
        (token, label)
        for token, label in zip(tokenized_row.input_ids, tokenized_row.labels, strict=True)
        if label != IGNORED_LABEL
    ]
    assert tokenizer.decode([token for token, _ in learned]) == f"{shown_trace.text}{tokenizer.eos_token}"
    target_text = tokenizer.decode([label for _, label in learned])
    assert target_text == "<think>\n[1] no\n[2] yes\n[3] partly\n</think>\n\n[1] = [2] > [3]" + tokenizer.eos_token
    tokens = label_token_ids_of(tokenizer, WORDS)
    assert [tokenized_row.labels[position] for position in tokenized_row.label_positions] == [
        tokens[0],
        tokens[2],
        tokens[1],
    ]
    assert [tokenized_row.input_ids[position] for position in tokenized_row.label_positions] == [
        tokens[2],
        tokens[2],
        tokens[0],
    ]
    with pytest.raises(InputError, match="'unquestionably not' is not a single token"):
        label_token_ids_of(tokenizer, ["unquestionably not", "yes"])


def test_build_examples_finds_the_ends_of_passages(tokenizer: Any) -> None:
    """They end with their numbers; a number that a passage holds is not its end."""
    example_set = build_examples(iter([row("q", ["a", "b [1] c [9]", "c"], [0, 2, 1])]), tokenizer, 500, WORDS)
    [example] = example_set.examples
    ends = [tokenizer.decode(example.prompt_ids[: end + 1]) for end in example.passage_ends]
    assert [text[-3:] for text in ends] == ["[1]", "[2]", "[3]"]
    assert [len(text.splitlines()) for text in ends] == sorted({len(text.splitlines()) for text in ends})
    batch = Batches(example_set.examples, [0, 0], tokenizer, LabelOptions(early=1.0), 0)(
        [{"position": 0}, {"position": 1}]
    )
    assert batch["passage_ends"].tolist() == [
        [line, end, target_label]
        for line in (0, 1)
        for end, target_label in zip(example.passage_ends, (0, 2, 1), strict=True)
    ]
    row_without_numbers = row("q", ["a", "b"], [0, 2])
    row_without_numbers["prompt"][-1]["content"] = row_without_numbers["prompt"][-1]["content"].replace(" [1]\n", "\n")
    assert build_examples(iter([row_without_numbers]), tokenizer, 500, WORDS).examples[0].passage_ends == ()


def test_batches_keep_a_share_of_rows_clean(tokenizer: Any) -> None:
    example_set = build_examples(iter(rows(1)), tokenizer, 500, WORDS)
    batches = Batches(example_set.examples, [0] * 400, tokenizer, LabelOptions(corrupt=1.0, clean=0.25), 0)
    tokenized_rows = [batches.row(position) for position in range(400)]
    clean_count = sum(
        tokenized_row.input_ids == tokenize_row(example_set.examples[0], tokenizer).input_ids
        for tokenized_row in tokenized_rows
    )
    assert 100 <= clean_count < 220  # a quarter, and random ones that happen to be right
    assert tokenized_rows == [batches.row(position) for position in range(400)]  # chance is a matter of the place alone


def test_training_order_groups_rows_by_length() -> None:
    lengths = [10 * (start % 7) + start for start in range(50)]
    order = training_order(lengths, 2.5, 4, 3, group_by_length=True)
    assert len(order) == 125
    assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
    assert (
        order
        == training_order(lengths, 2.5, 4, 3, group_by_length=True)
        != training_order(lengths, 2.5, 4, 4, group_by_length=True)
    )
    grouped_spread = sum(
        max(batch_lengths) - min(batch_lengths)
        for batch_lengths in (sorted(lengths[i] for i in order[start : start + 4]) for start in range(0, 48, 4))
    )
    ungrouped_order = training_order(lengths, 1, 4, 3, group_by_length=False)
    ungrouped_spread = sum(
        max(batch_lengths) - min(batch_lengths)
        for batch_lengths in (
            sorted(lengths[i] for i in ungrouped_order[start : start + 4]) for start in range(0, 48, 4)
        )
    )
    assert grouped_spread < ungrouped_spread / 2


# --- losses ---

NO_POSITIONS = torch.zeros(0, 3, dtype=torch.long)


def test_label_loss_by_hand() -> None:
    """One row of four tokens over a vocabulary of three: a verdict at place 1, another token at place 3."""
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([[IGNORED_LABEL, 1, IGNORED_LABEL, 0]])
    relevance_labels = torch.tensor([[0, 1, 1]])
    label_term = -math.log(1 / (math.e + 2))  # place 0 sees (1, 0), so logits 1, 0, 0; right is token 1
    other_term = -math.log(math.e**2 / (math.e**2 + 2))
    settings = LabelOptions(words=["no", "yes"], other_weight=0.15, best_weight=1.5)
    loss = label_loss(hidden, head, labels, relevance_labels, NO_POSITIONS, [0, 1], settings)
    assert float(loss) == pytest.approx(label_term + 0.15 * other_term, abs=1e-5)
    loss_without_labels = label_loss(hidden, head, labels, NO_POSITIONS, NO_POSITIONS, [0, 1], settings)
    mean_term = (-math.log(1 / (math.e + 2)) + other_term) / 2
    assert float(loss_without_labels) == pytest.approx(0.15 * mean_term, abs=1e-5)


def test_label_loss_at_passage_ends_by_hand() -> None:
    """At place 2 the state is (2, 0): among the two verdicts alone that is log-odds of 2 for the first one."""
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    labels, relevance_labels, passage_ends = (
        torch.tensor([[IGNORED_LABEL, 1, 0, 0]]),
        torch.tensor([[0, 1, 1]]),
        torch.tensor([[0, 2, 1]]),
    )
    loss_by_weight = {
        early: float(
            label_loss(
                hidden, head, labels, relevance_labels, passage_ends, [0, 1], LabelOptions(["no", "yes"], early=early)
            )
        )
        for early in (0.0, 0.5)
    }
    assert loss_by_weight[0.5] - loss_by_weight[0.0] == pytest.approx(0.5 * math.log(1 + math.exp(2)), abs=1e-5)


def test_label_loss_weights_the_best_label() -> None:
    hidden, head = torch.zeros(1, 3, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    hidden[0, 0] = torch.tensor([3.0, 0.0])
    labels, relevance_labels = torch.tensor([[IGNORED_LABEL, 0, 1]]), torch.tensor([[0, 1, 0], [0, 2, 1]])
    easy_loss, even_loss = -math.log(1 / (1 + math.exp(-3))), math.log(2)
    for weight in (1.0, 3.0):
        settings = LabelOptions(words=["no", "yes"], best_weight=weight)
        loss = label_loss(
            hidden, head, labels, relevance_labels, NO_POSITIONS, [0, 1], settings
        )  # no other tokens are learnt
        assert float(loss) == pytest.approx((easy_loss + weight * even_loss) / (1 + weight), abs=1e-5)


def test_listwise_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 0.0], [5.0, 5.0], [1.0, 1.0]])
    rows_of, target_labels = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 0])
    expected = -math.log(math.e / (math.e + 1))  # the second window has verdicts of one kind: it says nothing
    assert float(listwise_loss(logits, rows_of, target_labels)) == pytest.approx(expected, abs=1e-5)
    assert float(listwise_loss(logits, rows_of, torch.zeros(4, dtype=torch.long))) == 0.0
    logits_of_three = torch.zeros(3, 3)
    value = listwise_loss(logits_of_three, torch.zeros(3, dtype=torch.long), torch.tensor([2, 1, 0]))
    assert float(value) == pytest.approx(math.log(3) + 0.5 * math.log(3), abs=1e-5)


def test_measure_by_hand(tiny_gguf: Path) -> None:
    assert auc([3, 1, 2], [1, 0, 0]) == 1.0
    assert auc([1, 1, 2], [1, 0, 0]) == 0.25
    base = load_base(str(tiny_gguf), bf16=False)
    example_set = build_examples(iter(rows(6)), base.tokenizer, 500, WORDS)
    measures = measure(base.model, base.tokenizer, example_set.examples, free_answers=1, max_new_tokens=8)
    assert measures["rows"] == 6
    row = tokenize_row(example_set.examples[0], base.tokenizer)
    with torch.no_grad():  # of one row by the model's own loss, a mean over its tokens
        model_loss = base.model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
    assert measure(base.model, base.tokenizer, example_set.examples[:1])["loss"] == pytest.approx(
        float(model_loss), rel=1e-5
    )
    assert measures["auc"] is not None
    assert measures["early_auc"] is not None
    assert 0 <= measures["auc"] <= 1
    assert 0 <= measures["early_auc"] <= 1
    assert (measures["free_ndcg"], measures["well_formed"]) == (None, 0.0)  # eight random tokens are no order
    assert measures == measure(base.model, base.tokenizer, example_set.examples, free_answers=1, max_new_tokens=8)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": "max_length = 4096"}, "longer than the context of 1024 tokens"),
        ({"targets": 'targets = ["q_proj", "z_proj"]'}, "no projection called z_proj.*down_proj"),
        ({"words": 'words = ["absolutely irrelevant", "yes"]'}, "is not a single token|no trace in"),
        ({"prompt": 'prompt = "listwise"'}, "not made with the prompt listwise"),
        ({"max_length": "max_length = 8"}, "nothing to learn.*all 4 rows have more than 8 tokens"),
        ({"weights": 'weights = "nowhere.gguf"'}, "nowhere.gguf"),
        ({"weights": 'weights = "/"'}, "cannot be loaded"),
    ],
)
def test_train_rejects_invalid_recipes_before_the_first_step(
    tmp_path: Path, tiny_gguf: Path, changes: dict[str, str], message: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    with pytest.raises(InputError, match=message):
        train(TrainingRun(data, make_recipe(tmp_path, tiny_gguf, **changes), tmp_path / "out"))
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_train_rejects_invalid_rows(tmp_path: Path, tiny_gguf: Path) -> None:
    training_rows = rows(2)
    del training_rows[1]["completion"]
    data = write_rows(tmp_path / "rows.jsonl", training_rows)
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: the prompt or the assistant's completion is missing"):
        train(TrainingRun(data, make_recipe(tmp_path, tiny_gguf), tmp_path / "out"))
    with pytest.raises(InputError, match="No such file"):
        train(TrainingRun(tmp_path / "nowhere", make_recipe(tmp_path, tiny_gguf), tmp_path / "out"))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(FormatError, match="nested too deeply"):
        list(read_rows(tmp_path / "deep.jsonl", "compact"))
    with pytest.raises(FormatError, match="invalid JSON"):
        list(read_rows(write_rows(tmp_path / "x", []).with_name("recipe.toml"), "compact"))


def test_train_rejects_the_folder_of_another_run(tmp_path: Path, tiny_gguf: Path) -> None:
    data, recipe = write_rows(tmp_path / "rows.jsonl", rows(4)), make_recipe(tmp_path, tiny_gguf)
    train(TrainingRun(data, recipe, tmp_path / "out", max_steps=1))
    with pytest.raises(InputError, match="a different recipe"):
        train(TrainingRun(data, replace(recipe, name="other"), tmp_path / "out"))
    with pytest.raises(InputError, match="a different data_sha256"):
        train(TrainingRun(write_rows(tmp_path / "more.jsonl", rows(5)), recipe, tmp_path / "out"))


@pytest.mark.parametrize("is_heldout", [False, True])
def test_train_rejects_rows_made_with_another_prompt(tmp_path: Path, tiny_gguf: Path, is_heldout: bool) -> None:
    *training_rows, last = rows(4)
    last["prompt"][-1]["content"] = last["prompt"][-1]["content"].replace("Which passages", "Tell which passages")
    rows_file, mixed_file = (
        write_rows(tmp_path / "rows.jsonl", training_rows),
        write_rows(tmp_path / "mixed.jsonl", [*training_rows, last]),
    )
    run = TrainingRun(rows_file, make_recipe(tmp_path, tiny_gguf), tmp_path / "out", mixed_file)
    run = run if is_heldout else replace(run, data=mixed_file, heldout=None)
    with pytest.raises(InputError, match=r"line 4 of .*mixed\.jsonl was not made with the prompt compact"):
        train(run)


# --- killed and gone on ---

PROGRAM = """
import sys
from pathlib import Path
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import TrainingRun, train
data, recipe, output, heldout = sys.argv[1:]
run = TrainingRun(Path(data), read_recipe(recipe), Path(output), Path(heldout))
train(run, lambda record: print(record, flush=True))
"""


def read_losses(output: Path) -> dict[int, float]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}


def read_heldout_measures(output: Path) -> list[Any]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["heldout"] for record in map(json.loads, lines) if "heldout" in record]


def test_train_resumes_after_a_kill_with_identical_results(tmp_path: Path, tiny_gguf: Path) -> None:
    data, heldout = write_rows(tmp_path / "rows.jsonl", rows(8)), write_rows(tmp_path / "heldout.jsonl", rows(4, 9))
    recipe = make_recipe(tmp_path, tiny_gguf)
    full_run, killed_run = tmp_path / "whole", tmp_path / "parts"
    result = train(TrainingRun(data, recipe, full_run, heldout))
    assert (result.steps, result.rows) == (8, 8)
    assert len(read_losses(full_run)) == 8
    command = [sys.executable, "-c", PROGRAM, str(data), str(tmp_path / "recipe.toml"), str(killed_run), str(heldout)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "'loss'" in line and "'step': 5" in line:  # after the checkpoint of step 3, before that of step 6
                process.send_signal(signal.SIGKILL)
                break
    assert (killed_run / "checkpoint-3" / "complete.json").is_file()
    incomplete = killed_run / "checkpoint-6"
    incomplete.mkdir()  # as a kill in the midst of writing would have left it
    (incomplete / "trainer_state.json").write_text("{", encoding="utf-8")
    resumed = train(TrainingRun(data, recipe, killed_run, heldout))
    assert resumed.steps == 8
    assert read_losses(killed_run) == pytest.approx(read_losses(full_run), abs=1e-6)
    assert read_heldout_measures(killed_run) == read_heldout_measures(full_run)
    assert len((killed_run / "curves.csv").read_text().splitlines()) == 1 + len(read_heldout_measures(full_run)) > 2
    first_weights, second_weights = (load_weights(folder) for folder in (full_run, killed_run))
    assert all(torch.equal(first_weights[name], second_weights[name]) for name in first_weights)
    unchanged = train(TrainingRun(data, recipe, killed_run, heldout))  # nothing is left to do, and nothing changes
    assert unchanged.steps == 8
    assert read_losses(killed_run) == pytest.approx(read_losses(full_run), abs=1e-6)


def load_weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(str(output / "trained" / "adapter_model.safetensors"))
    assert any(values.abs().max() > 0 for name, values in tensors.items() if "lora_B" in name)
    return tensors


def test_train_stops_at_the_time_limit_with_a_checkpoint(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit passes between two steps, also on a machine that takes longer to load the weights."""
    monkeypatch.setattr(training, "_seconds_left", lambda run, clock: None)
    data = write_rows(tmp_path / "rows.jsonl", rows(8))
    recipe = make_recipe(
        tmp_path, tiny_gguf, epochs="epochs = 5000", kind='kind = "full"', freeze_layers="freeze_layers = 1"
    )
    started = time.monotonic()
    result = train(TrainingRun(data, recipe, tmp_path / "out", time_limit=3))
    assert 3 <= result.seconds < time.monotonic() - started + 1
    assert 1 <= result.steps < 20_000
    assert (tmp_path / "out" / f"checkpoint-{result.steps}" / "complete.json").is_file()
    records = [json.loads(line) for line in (tmp_path / "out" / "measures.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert rates[-1] < max(rates) / 2 or len(rates) < 4  # falls with time


# --- reinforcement ---


def test_rewards_work_with_grpo_trainer(tmp_path: Path, tiny_gguf: Path) -> None:
    """TRL's own trainer takes the rewards as they are: a few steps on a model of random numbers."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rank_k.distill.rewards import format_reward, length_reward, ndcg_reward

    base = load_base(str(tiny_gguf), bf16=False)
    training_rows = [{"prompt": training_row["prompt"], "grades": [1, 0]} for training_row in rows(4)]
    reward_values: list[list[float]] = []

    def recording_reward(**columns: Any) -> list[float]:
        reward_values.append(format_reward(**columns))
        return reward_values[-1]

    settings = GRPOConfig(
        output_dir=str(tmp_path / "grpo"),
        max_steps=2,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        report_to=[],
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = GRPOTrainer(
        model=base.model,
        reward_funcs=[recording_reward, ndcg_reward, length_reward],
        args=settings,
        train_dataset=Dataset.from_list(training_rows),
        processing_class=base.tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert reward_values
    assert all(0 <= value <= 1 for values in reward_values for value in values)
    assert any("rewards/ndcg_reward/mean" in entry for entry in trainer.state.log_history)
