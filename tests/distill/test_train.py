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

from rank_k.distill.base_model import load_base
from rank_k.distill.batches import Batches, label_tokens, training_order, with_labels
from rank_k.distill.heldout_measures import auc, measure, ndcg
from rank_k.distill.label_traces import LabelTrace
from rank_k.distill.losses import label_loss, listwise_loss
from rank_k.distill.recipes import LabelOptions, read_recipe, recipe_names
from rank_k.distill.train import Run, train
from rank_k.distill.training_examples import IGNORED, build_examples, read_rows, token_labels
from rank_k.errors import FormatError, InputError
from tests.support.tiny_model import WORDS, recipe_text, row, rows, write_rows, write_tiny_gguf

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch", reason="pip install 'rank-k[train]'")

EATS_TRACES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As the chat templates of QwQ and Qwen3 do: an assistant's turn loses its thought."""

THINKS = EATS_TRACES.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
"""As QwQ's: the generation prompt opens the thought."""

TEMPLATES = {"smollm2-135m": None, "qwen3-8b": EATS_TRACES, "qwq-32b": THINKS}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_base(str(tiny), bf16=False).tokenizer


def recipe_of(folder: Path, tiny: Path, /, **changes: str) -> Any:
    path = folder / "recipe.toml"
    path.write_text(recipe_text(tiny, **changes), encoding="utf-8")
    return read_recipe(str(path))


# --- what is learnt ---


@pytest.mark.parametrize("name", recipe_names())
def test_a_batch_s_labels_are_the_trace_and_the_order(name: str, tokenizer: Any) -> None:
    recipe = read_recipe(name)
    template = TEMPLATES[name]
    if template is not None:
        tokenizer.chat_template = template
    made = row("why is it blue", ["the sky [2] scatters", "paint"], [2, 0])
    made["completion"][0]["content"] = said = "<think>\nthe first one says why\n</think>\n\n[1] > [2]"
    found = build_examples(iter([made]), tokenizer, recipe.training.max_length, recipe.verdicts.words)
    batches = Batches(found.kept, [0, 0], tokenizer, recipe.verdicts, 0)
    batch = batches([{"place": 0}, {"place": 1}])
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = labels[labels != IGNORED]
        assert tokenizer.decode(learnt) == f"{said}{tokenizer.eos_token}"
        assert tokenizer.decode(ids).count("<think>") == 1
        assert tokenizer.decode(ids).endswith(f"<|im_start|>assistant\n{said}{tokenizer.eos_token}")


def test_a_row_too_long_is_counted_and_not_cut(tokenizer: Any) -> None:
    made = [row("q", ["a", "b"], [0, 2]), row("q", ["word " * 300, "b"], [0, 2])]
    found = build_examples(iter(made), tokenizer, 200, WORDS)
    assert (len(found.kept), found.too_long) == (1, 1)
    assert found.sources == {"made up": {"CC0": 1}}
    length = len(token_labels(found.kept[0], tokenizer)[0])
    assert build_examples(iter(made), tokenizer, length, WORDS).too_long == 1
    assert build_examples(iter(made), tokenizer, length - 1, WORDS).too_long == 2


def test_shown_verdicts_are_read_and_right_ones_learnt(tokenizer: Any) -> None:
    found = build_examples(iter([row("q", ["a", "b", "c"], [0, 2, 1])]), tokenizer, 500, WORDS)
    shown = LabelTrace((2, 2, 0), (0, 2, 1), WORDS)
    made = with_labels(found.kept[0], shown, tokenizer)
    learnt = [(token, label) for token, label in zip(made.input_ids, made.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode([token for token, _ in learnt]) == f"{shown.text}{tokenizer.eos_token}"
    said = tokenizer.decode([label for _, label in learnt])
    assert said == "<think>\n[1] no\n[2] yes\n[3] partly\n</think>\n\n[1] = [2] > [3]" + tokenizer.eos_token
    tokens = label_tokens(tokenizer, WORDS)
    assert [made.labels[at] for at in made.verdict_at] == [tokens[0], tokens[2], tokens[1]]
    assert [made.input_ids[at] for at in made.verdict_at] == [tokens[2], tokens[2], tokens[0]]
    with pytest.raises(InputError, match="'unquestionably not' is not one token"):
        label_tokens(tokenizer, ["unquestionably not", "yes"])


def test_the_ends_of_passages_are_found(tokenizer: Any) -> None:
    """They end with their numbers; a number that a passage holds is not its end."""
    found = build_examples(iter([row("q", ["a", "b [1] c [9]", "c"], [0, 2, 1])]), tokenizer, 500, WORDS)
    [example] = found.kept
    ends = [tokenizer.decode(example.prompt_ids[: end + 1]) for end in example.ends]
    assert [text[-3:] for text in ends] == ["[1]", "[2]", "[3]"]
    assert [len(text.splitlines()) for text in ends] == sorted({len(text.splitlines()) for text in ends})
    batch = Batches(found.kept, [0, 0], tokenizer, LabelOptions(early=1.0), 0)([{"place": 0}, {"place": 1}])
    assert batch["ends"].tolist() == [
        [line, end, right] for line in (0, 1) for end, right in zip(example.ends, (0, 2, 1), strict=True)
    ]
    bare = row("q", ["a", "b"], [0, 2])
    bare["prompt"][-1]["content"] = bare["prompt"][-1]["content"].replace(" [1]\n", "\n")
    assert build_examples(iter([bare]), tokenizer, 500, WORDS).kept[0].ends == ()


def test_some_rows_stay_clean(tokenizer: Any) -> None:
    found = build_examples(iter(rows(1)), tokenizer, 500, WORDS)
    batches = Batches(found.kept, [0] * 400, tokenizer, LabelOptions(corrupt=1.0, clean=0.25), 0)
    seen = [batches.row(place) for place in range(400)]
    clean = sum(made.input_ids[-len(made.labels) :] == token_labels(found.kept[0], tokenizer)[0] for made in seen)
    assert 100 <= clean < 220  # a quarter, and random ones that happen to be right
    assert seen == [batches.row(place) for place in range(400)]  # chance is a matter of the place alone


def test_the_order_of_rows() -> None:
    lengths = [10 * (n % 7) + n for n in range(50)]
    order = training_order(lengths, 2.5, 4, 3, grouped=True)
    assert len(order) == 125
    assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
    assert order == training_order(lengths, 2.5, 4, 3, grouped=True) != training_order(lengths, 2.5, 4, 4, grouped=True)
    spread = sum(
        max(part) - min(part) for part in (sorted(lengths[i] for i in order[n : n + 4]) for n in range(0, 48, 4))
    )
    plain = training_order(lengths, 1, 4, 3, grouped=False)
    loose = sum(
        max(part) - min(part) for part in (sorted(lengths[i] for i in plain[n : n + 4]) for n in range(0, 48, 4))
    )
    assert spread < loose / 2


# --- losses ---

NOWHERE = torch.zeros(0, 3, dtype=torch.long)


def test_the_loss_by_hand() -> None:
    """One row of four tokens over a vocabulary of three: a verdict at place 1, another token at place 3."""
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([[IGNORED, 1, IGNORED, 0]])
    verdicts = torch.tensor([[0, 1, 1]])
    of_verdict = -math.log(1 / (math.e + 2))  # place 0 sees (1, 0), so logits 1, 0, 0; right is token 1
    of_other = -math.log(math.e**2 / (math.e**2 + 2))
    settings = LabelOptions(words=["no", "yes"], other_weight=0.15, best_weight=1.5)
    loss = label_loss(hidden, head, labels, verdicts, NOWHERE, [0, 1], settings)
    assert float(loss) == pytest.approx(of_verdict + 0.15 * of_other, abs=1e-5)
    alone = label_loss(hidden, head, labels, NOWHERE, NOWHERE, [0, 1], settings)
    both = (-math.log(1 / (math.e + 2)) + of_other) / 2
    assert float(alone) == pytest.approx(0.15 * both, abs=1e-5)


def test_what_is_learnt_at_the_ends_by_hand() -> None:
    """At place 2 the state is (2, 0): among the two verdicts alone that is log-odds of 2 for the first one."""
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    labels, verdicts, ends = torch.tensor([[IGNORED, 1, 0, 0]]), torch.tensor([[0, 1, 1]]), torch.tensor([[0, 2, 1]])
    losses = {
        early: float(label_loss(hidden, head, labels, verdicts, ends, [0, 1], LabelOptions(["no", "yes"], early=early)))
        for early in (0.0, 0.5)
    }
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * math.log(1 + math.exp(2)), abs=1e-5)


def test_the_best_verdicts_weigh_more() -> None:
    hidden, head = torch.zeros(1, 3, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    hidden[0, 0] = torch.tensor([3.0, 0.0])
    labels, verdicts = torch.tensor([[IGNORED, 0, 1]]), torch.tensor([[0, 1, 0], [0, 2, 1]])
    easy, even = -math.log(1 / (1 + math.exp(-3))), math.log(2)
    for weight in (1.0, 3.0):
        settings = LabelOptions(words=["no", "yes"], best_weight=weight)
        loss = label_loss(hidden, head, labels, verdicts, NOWHERE, [0, 1], settings)  # no other tokens are learnt
        assert float(loss) == pytest.approx((easy + weight * even) / (1 + weight), abs=1e-5)


def test_the_listwise_part_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 0.0], [5.0, 5.0], [1.0, 1.0]])
    rows_of, right = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 0])
    only = -math.log(math.e / (math.e + 1))  # the second window has verdicts of one kind: it says nothing
    assert float(listwise_loss(logits, rows_of, right)) == pytest.approx(only, abs=1e-5)
    assert float(listwise_loss(logits, rows_of, torch.zeros(4, dtype=torch.long))) == 0.0
    three = torch.zeros(3, 3)
    value = listwise_loss(three, torch.zeros(3, dtype=torch.long), torch.tensor([2, 1, 0]))
    assert float(value) == pytest.approx(math.log(3) + 0.5 * math.log(3), abs=1e-5)


def test_measures_by_hand(tiny: Path) -> None:
    assert auc([3, 1, 2], [1, 0, 0]) == 1.0
    assert auc([1, 1, 2], [1, 0, 0]) == 0.25
    assert ndcg([0, 1]) == pytest.approx(1 / math.log2(3))
    base = load_base(str(tiny), bf16=False)
    held = build_examples(iter(rows(6)), base.tokenizer, 500, WORDS)
    found = measure(base.model, base.tokenizer, held.kept, free=1, new_tokens=8)
    assert found.rows == 6
    ids, labels = token_labels(held.kept[0], base.tokenizer)
    with torch.no_grad():  # of one row by the model's own loss, a mean over its tokens
        own = base.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert measure(base.model, base.tokenizer, held.kept[:1]).loss == pytest.approx(float(own), rel=1e-5)
    assert found.auc is not None
    assert found.early_auc is not None
    assert 0 <= found.auc <= 1
    assert 0 <= found.early_auc <= 1
    assert (found.free_ndcg, found.well_formed) == (None, 0.0)  # eight random tokens are no order
    assert found == measure(base.model, base.tokenizer, held.kept, free=1, new_tokens=8)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_length": "max_length = 4096"}, "longer than the context of 1024 tokens"),
        ({"targets": 'targets = ["q_proj", "z_proj"]'}, "no projection called z_proj.*down_proj"),
        ({"words": 'words = ["absolutely irrelevant", "yes"]'}, "is not one token|no trace in"),
        ({"prompt": 'prompt = "listwise"'}, "not made with the prompt listwise"),
        ({"max_length": "max_length = 8"}, "nothing to learn.*all 4 rows are longer"),
        ({"weights": 'weights = "nowhere.gguf"'}, "nowhere.gguf"),
        ({"weights": 'weights = "/"'}, "cannot be loaded"),
    ],
)
def test_what_cannot_be_stops_before_the_first_step(
    tmp_path: Path, tiny: Path, changes: dict[str, str], told: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(4))
    with pytest.raises(InputError, match=told):
        train(Run(data, recipe_of(tmp_path, tiny, **changes), tmp_path / "out"))
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_rows_without_a_completion_stop_it(tmp_path: Path, tiny: Path) -> None:
    made = rows(2)
    del made[1]["completion"]
    data = write_rows(tmp_path / "rows.jsonl", made)
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: no prompt, or no completion"):
        train(Run(data, recipe_of(tmp_path, tiny), tmp_path / "out"))
    with pytest.raises(InputError, match="No such file"):
        train(Run(tmp_path / "nowhere", recipe_of(tmp_path, tiny), tmp_path / "out"))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(FormatError, match="nested too deeply"):
        list(read_rows(tmp_path / "deep.jsonl"))
    with pytest.raises(FormatError, match="invalid JSON"):
        list(read_rows(write_rows(tmp_path / "x", []).with_name("recipe.toml")))


def test_another_run_s_folder_is_left_alone(tmp_path: Path, tiny: Path) -> None:
    data, recipe = write_rows(tmp_path / "rows.jsonl", rows(4)), recipe_of(tmp_path, tiny)
    train(Run(data, recipe, tmp_path / "out", max_steps=1))
    with pytest.raises(InputError, match="another recipe"):
        train(Run(data, replace(recipe, name="other"), tmp_path / "out"))
    with pytest.raises(InputError, match="another data_sha256"):
        train(Run(write_rows(tmp_path / "more.jsonl", rows(5)), recipe, tmp_path / "out"))


@pytest.mark.parametrize("held_out", [False, True])
def test_one_row_of_another_prompt_stops_it(tmp_path: Path, tiny: Path, held_out: bool) -> None:
    *made, last = rows(4)
    last["prompt"][-1]["content"] = last["prompt"][-1]["content"].replace("Which passages", "Tell which passages")
    right, mixed = write_rows(tmp_path / "rows.jsonl", made), write_rows(tmp_path / "mixed.jsonl", [*made, last])
    run = Run(right, recipe_of(tmp_path, tiny), tmp_path / "out", mixed)
    run = run if held_out else replace(run, data=mixed, heldout=None)
    with pytest.raises(InputError, match=r"row 4 of .*mixed\.jsonl was not made with the prompt compact"):
        train(run)


# --- killed and gone on ---

PROGRAM = """
import sys
from pathlib import Path
from rank_k.distill.recipes import read_recipe
from rank_k.distill.train import Run, train
data, recipe, output, heldout = sys.argv[1:]
train(Run(Path(data), read_recipe(recipe), Path(output), Path(heldout)), lambda told: print(told, flush=True))
"""


def losses(output: Path) -> dict[int, float]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return {told["step"]: told["loss"] for told in map(json.loads, lines) if "loss" in told}


def held(output: Path) -> list[Any]:
    lines = (output / "measures.jsonl").read_text(encoding="utf-8").splitlines()
    return [told["heldout"] for told in map(json.loads, lines) if "heldout" in told]


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, tiny: Path) -> None:
    data, heldout = write_rows(tmp_path / "rows.jsonl", rows(8)), write_rows(tmp_path / "held.jsonl", rows(4, 9))
    recipe = recipe_of(tmp_path, tiny)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = train(Run(data, recipe, whole, heldout))
    assert (ended.steps, ended.rows) == (8, 8)
    assert len(losses(whole)) == 8
    command = [sys.executable, "-c", PROGRAM, str(data), str(tmp_path / "recipe.toml"), str(parts), str(heldout)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if "'loss'" in line and "'step': 5" in line:  # after the checkpoint of step 3, before that of step 6
                killed.send_signal(signal.SIGKILL)
                break
    assert (parts / "checkpoint-3" / "complete.json").is_file()
    torn = parts / "checkpoint-6"
    torn.mkdir()  # as a kill in the midst of writing would have left it
    (torn / "trainer_state.json").write_text("{", encoding="utf-8")
    again = train(Run(data, recipe, parts, heldout))
    assert again.steps == 8
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    assert held(parts) == held(whole)
    assert len((parts / "curves.csv").read_text().splitlines()) == 1 + len(held(whole)) > 2
    one, other = (load_weights(folder) for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    finished = train(Run(data, recipe, parts, heldout))  # nothing is left to do, and nothing changes
    assert finished.steps == 8
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)


def load_weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(str(output / "trained" / "adapter_model.safetensors"))
    assert any(values.abs().max() > 0 for name, values in found.items() if "lora_B" in name)
    return found


def test_a_time_limit_ends_it_with_a_checkpoint(tmp_path: Path, tiny: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(8))
    recipe = recipe_of(tmp_path, tiny, epochs="epochs = 5000", kind='kind = "full"', freeze_layers="freeze_layers = 1")
    started = time.monotonic()
    ended = train(Run(data, recipe, tmp_path / "out", time_limit=3))
    assert 3 <= ended.seconds < time.monotonic() - started + 1
    assert 1 <= ended.steps < 20_000
    assert (tmp_path / "out" / f"checkpoint-{ended.steps}" / "complete.json").is_file()
    told = [json.loads(line) for line in (tmp_path / "out" / "measures.jsonl").read_text().splitlines()]
    rates = [each["learning_rate"] for each in told if "learning_rate" in each]
    assert rates[-1] < max(rates) / 2 or len(rates) < 4  # falls with time


# --- reinforcement ---


def test_rewards_drive_a_trainer(tmp_path: Path, tiny: Path) -> None:
    """TRL's own trainer takes the rewards as they are: a few steps on a model of random numbers."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rank_k.distill.rewards import format_reward, length_reward, ndcg_reward

    base = load_base(str(tiny), bf16=False)
    made = [{"prompt": each["prompt"], "grades": [1, 0]} for each in rows(4)]
    told: list[list[float]] = []

    def seen(**columns: Any) -> list[float]:
        told.append(format_reward(**columns))
        return told[-1]

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
        reward_funcs=[seen, ndcg_reward, length_reward],
        args=settings,
        train_dataset=Dataset.from_list(made),
        processing_class=base.tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert told
    assert all(0 <= value <= 1 for values in told for value in values)
    assert any("rewards/ndcg_reward/mean" in entry for entry in trainer.state.log_history)
