"""Recipes: how a student is trained, as a TOML file read into frozen values.

A misspelled key and a value of the wrong kind are reported with the key's name before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from rank_k.data.toml_tables import TableReader, read_toml
from rank_k.errors import InputError
from rank_k.option_values import STRATEGY_NAMES, choice, number, whole_number
from rank_k.options import StudentOptions, option

RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """The model that is trained, and its size for the memory estimate."""

    weights: str = option(
        MISSING,
        "a name of `rank-k fetch`, a GGUF file, a folder in transformers' format, or a name on the Hugging Face hub",
    )
    parameters: float = option(MISSING, "number of parameters", number(exclusive=True))
    layers: int = option(MISSING, "number of layers", whole_number(1))
    hidden: int = option(MISSING, "size of a hidden state", whole_number(1))


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What is trained: an adapter, or all weights but the embeddings."""

    kind: str = option("lora", "an adapter, or the weights themselves", choice("lora", "full"))
    rank: int = option(32, "rank of the adapter", whole_number(1))
    alpha: int = option(64, "scaling parameter of the adapter", whole_number(0))
    dropout: float = option(0.0, "dropout of the adapter", number(0, 1))
    targets: str | Sequence[str] = option(
        "all-linear", "modules that the adapter changes; all-linear: every projection"
    )
    freeze_layers: int = option(0, "number of first layers that stay unchanged", whole_number(0))


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """The optimization, and what is saved and measured on the way."""

    max_length: int = option(MISSING, "longer rows (in tokens) are counted and left out", whole_number(1))
    learning_rate: float = option(MISSING, "highest learning rate", number(exclusive=True))
    batch: int = option(1, "rows in one forward pass of one process", whole_number(1))
    accumulate: int = option(1, "forward passes in a step", whole_number(1))
    epochs: float = option(1.0, "how often each row is learned", number(exclusive=True))
    warmup_steps: int = option(10, "steps in which the learning rate rises", whole_number(0))
    weight_decay: float = option(0.0, "weight decay of AdamW", number())
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", number())
    adam_beta2: float = option(0.999, "decay of the second moment", number(0, 1))
    bf16: bool = option(True, "train in bfloat16 on machines that are fast at it, elsewhere in float32")
    gradient_checkpointing: bool = option(False, "compute activations again instead of keeping them")
    group_by_length: bool = option(False, "put rows of similar length into one batch")
    seed: int = option(0, "decides the order of rows and the random labels")
    checkpoint_steps: int = option(100, "steps between checkpoints", whole_number(1))
    checkpoint_seconds: float = option(0.0, "seconds between checkpoints; 0: by steps alone", number())
    measure_steps: int = option(100, "steps between measurements on held-out rows", whole_number(1))
    measure_seconds: float = option(0.0, "seconds between measurements; 0: by steps alone", number())
    measure_rows: int = option(32, "held-out rows that are measured", whole_number(0))
    measure_free: int = option(4, "of these, rows that are answered freely too, which is slow", whole_number(0))


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Training on traces of relevance labels (see `rank_k.distill.label_traces`). By default, all of it is off."""

    words: Sequence[str] = option(("no", "partly", "yes"), "the labels, worst first")
    corrupt: float = option(0.0, "probability that a shown label is random, while the target stays right", number(0, 1))
    clean: float = option(
        0.0, "share of unchanged rows, from which the step from labels to the ranking is learned", number(0, 1)
    )
    other_weight: float = option(1.0, "weight of all tokens that are not labels; a label has 1", number())
    best_weight: float = option(1.0, "weight of the best label", number())
    listwise: float = option(
        0.0, "weight of a softmax over the labels of a window, which compares its passages", number()
    )
    early: float = option(
        0.0, "weight of learning labels at the ends of their passages already, where the prompt shows these", number()
    )

    @property
    def is_enabled(self) -> bool:
        return bool(self.corrupt or self.listwise or self.early or self.other_weight != 1 or self.best_weight != 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is trained, and with which options it reranks.

    Args:
        name: The name of the recipe, which the student gets too.
        base: The model that is trained.
        training: The optimization.
        verified: Whether the authors ran it at this size.
        launch: A file for `accelerate launch --config_file` in the folder of the recipes.
        method: What is trained.
        verdicts: Training on relevance labels.
        asking: The student's options in `rank-k rerank`. The rows must be made with its prompt.
    """

    name: str
    base: BaseOptions
    training: TrainingOptions
    verified: bool = False
    launch: str = ""
    method: MethodOptions = field(default_factory=MethodOptions)
    verdicts: LabelOptions = field(default_factory=LabelOptions)
    asking: StudentOptions = field(default_factory=StudentOptions)


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def read_recipe(name_or_path: str) -> Recipe:
    """Return the recipe of that name, or in that TOML file. Raises `InputError`."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in recipe_names():
            raise InputError(
                f"unknown recipe {name_or_path!r}", f"give a .toml file, or one of: {', '.join(recipe_names())}"
            )
        path = RECIPES_FOLDER / f"{name_or_path}.toml"
    reader = TableReader(path)
    recipe = reader.read(Recipe, read_toml(path))
    asking, layers, words = recipe.asking, recipe.base.layers, recipe.verdicts.words
    checks = (
        ("method.freeze_layers", recipe.method.freeze_layers, range(layers), f"fewer than all {layers}"),
        ("asking.strategy", asking.strategy, STRATEGY_NAMES, f"one of {', '.join(STRATEGY_NAMES)}"),
        ("asking.window", asking.window, range(2, 10**9), "2 or more"),
        ("asking.stride", asking.stride, range(1, asking.window + 1), f"1 to {asking.window}, the size of the window"),
    )
    for key, value, allowed, expected in checks:
        if value not in allowed:
            raise reader.error(f"{key} = {value!r}", expected)
    if len(words) < 2:
        raise reader.error(f"verdicts.words = {words!r}", "two or more, worst first")
    return recipe


def estimate_memory(recipe: Recipe) -> dict[str, float]:
    """Return an estimate of the memory for training, in bytes, summed over all devices. It is within a factor of 1.5.

    Weights take 2 bytes per unchanged parameter (bfloat16), or 4 (float32) if all weights are trained. Each trained
    parameter takes 4 bytes for its gradient and 8 for Adam's moments; a parameter of an adapter takes 4 more for
    itself. Activations take 34 values of `hidden` size per token and layer (Korthikanti et al. 2022, equation 2,
    without the attention scores, which fused kernels do not store). With gradient checkpointing they take 2, plus one
    complete layer.
    """
    base, method, training = recipe.base, recipe.method, recipe.training
    bytes_per_number = 2 if training.bf16 else 4
    if method.kind == "lora":
        # An adapter of an (in x out) projection has rank * (in + out) parameters. A layer has about 7 projections.
        trained, bytes_per_trained = float(base.layers * method.rank * 18 * base.hidden), 16
        weights = base.parameters * bytes_per_number
    else:
        trained, bytes_per_trained = base.parameters * (1 - method.freeze_layers / base.layers), 12
        weights = base.parameters * 4
    values_per_token = 2 * base.layers + 34 if training.gradient_checkpointing else 34 * base.layers
    tokens = training.batch * training.max_length
    activations = tokens * base.hidden * values_per_token * bytes_per_number / 2
    return {"weights": weights, "trained": trained * bytes_per_trained, "activations": activations}
