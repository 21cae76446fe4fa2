"""Recipes: the shipped ones are sound, and a mistake in one is named before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rank_k.distill.recipes import RECIPES_FOLDER, estimate_memory, read_recipe, recipe_names
from rank_k.errors import InputError
from rank_k.window.prompt import read_template

MINIMAL_RECIPE = """
name = "mine"
[base]
weights = "tiny.gguf"
parameters = 1e6
layers = 2
hidden = 64
[training]
max_length = 512
learning_rate = 1e-4
"""


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_recipe_names_lists_shipped_recipes() -> None:
    assert recipe_names() == ["qwen3-8b", "qwq-32b", "smollm2-135m"]


@pytest.mark.parametrize("name", recipe_names())
def test_read_recipe_reads_shipped_recipes(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert not recipe.launch or (RECIPES_FOLDER / recipe.launch).is_file()
    template = read_template(recipe.asking.prompt)
    assert template.messages("q", ["a", "b"])
    assert recipe.asking.stride < recipe.asking.window
    # A full window fits: passages, as many markers again, and an answer of eight tokens a passage.
    prompt_tokens = recipe.asking.window * (recipe.asking.passage_tokens + 16)
    assert prompt_tokens < recipe.training.max_length


def test_read_recipe_fills_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, MINIMAL_RECIPE))
    assert (recipe.method.kind, recipe.training.batch, recipe.verdicts.is_enabled) == ("lora", 1, False)
    assert not recipe.verified


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("learning_rate", "lerning_rate"), r"unknown key training\.lerning_rate \(did you mean learning_rate\?\)"),
        (('name = "mine"', 'name = "mine"\nzzz = 1'), "unknown key zzz; expected one of name, base"),
        (("max_length = 512", ""), r"training\.max_length is missing; expected a whole number"),
        (("max_length = 512", 'max_length = "512"'), r"training\.max_length = '512'"),
        (("max_length = 512", "max_length = true"), r"training\.max_length = True"),
        (("max_length = 512", "max_length = 0"), r"training\.max_length = 0"),
        (("[training]", '[method]\nkind = "lra"\n[training]'), "method.kind = 'lra'.*lora"),
        (("layers = 2", "layers = 0"), r"base\.layers = 0"),
        (("[training]", "[method]\nfreeze_layers = 2\n[training]"), r"method\.freeze_layers = 2.*fewer than all 2"),
        (("max_length = 512", "max_length = 512\nmeasure_steps = 0"), r"training\.measure_steps = 0"),
        (
            ("[training]", '[asking]\nreasoning = "banana"\n[training]'),
            r"asking\.reasoning = 'banana'.*full, off, auto",
        ),
        (("[training]", "[asking]\npassage_tokens = -5\n[training]"), r"asking\.passage_tokens = -5"),
        (("[training]", "[asking]\nwindow = 8\nstride = 20\n[training]"), r"asking\.stride = 20.*1 to 8"),
        (("[training]", "[asking]\nwindow = 1\nstride = 1\n[training]"), r"asking\.window = 1\b"),
        (("[training]", "[asking]\ntemperature = -1\n[training]"), r"asking\.temperature = -1"),
        (("[training]", '[asking]\nstrategy = "os:system"\n[training]'), r"asking\.strategy = 'os:system'.*sliding"),
        (("[training]", "[verdicts]\ncorrupt = 1.5\n[training]"), r"verdicts\.corrupt = 1\.5"),
        (("[training]", "[verdicts]\nwords = [1]\n[training]"), r"verdicts\.words\[0\] = 1; expected text"),
        (('name = "mine"', 'name = "mine"\nmethod = 3'), "method = 3; expected a table"),
        (("[base]", "[base"), "expected TOML"),
    ],
)
def test_read_recipe_names_invalid_keys(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in MINIMAL_RECIPE
    with pytest.raises(InputError, match=message):
        read_recipe(write_recipe(tmp_path, MINIMAL_RECIPE.replace(*change)))


def test_read_recipe_rejects_missing_recipes() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'qwq'.*qwq-32b"):
        read_recipe("qwq")
    with pytest.raises(InputError, match="No such file"):
        read_recipe("nowhere.toml")


def test_estimated_memory_by_hand(tmp_path: Path) -> None:
    """A million parameters of which all are trained; 100 tokens through 2 layers of 64 numbers."""
    text = MINIMAL_RECIPE.replace("max_length = 512", "max_length = 100") + '[method]\nkind = "full"\n'
    memory = estimate_memory(read_recipe(write_recipe(tmp_path, text)))
    assert memory == {"weights": 4e6, "trained": 12e6, "activations": 100 * 64 * 2 * 34 * 2 / 2}


def test_estimated_memory_is_smaller_for_adapters_and_checkpointing() -> None:
    large, small = (estimate_memory(read_recipe(name)) for name in ("qwq-32b", "qwen3-8b"))
    assert 65e9 < large["weights"] < 66e9  # 32.8 billion parameters in bfloat16
    assert sum(small.values()) < 40e9 < sum(large.values()) < 8 * 80e9
