"""Recipes: TOML files with the training settings of a student, which are read into frozen dataclasses.

Misspelled keys and values of the wrong type are reported, with the name of the key, before any model is loaded.
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
    """The base model that is trained, and its size, from which the required memory is estimated."""

    weights: str = option(
        MISSING,
        "a name for `rank-k fetch`, a GGUF file, a folder in transformers' format, or a name on the Hugging Face hub",
    )
    parameters: float = option(MISSING, "number of parameters", number(exclusive=True))
    layers: int = option(MISSING, "number of layers", whole_number(1))
    hidden: int = option(MISSING, "size of a hidden state", whole_number(1))


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What is trained: an adapter, or all weights except the embeddings."""

    kind: str = option(
        "lora", "what is trained: an adapter (lora), or the weights themselves (full)", choice("lora", "full")
    )
    rank: int = option(32, "rank of the adapter", whole_number(1))
    alpha: int = option(64, "scaling parameter of the adapter", whole_number(0))
    dropout: float = option(0.0, "dropout of the adapter", number(0, 1))
    targets: str | Sequence[str] = option("all-linear", "projections that the adapter changes; all-linear: all of them")
    freeze_layers: int = option(0, "number of layers, counted from the first, that stay unchanged", whole_number(0))


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Optimizer settings, and what to save and measure during training."""

    max_length: int = option(MISSING, "maximum number of tokens of a row; longer rows are left out", whole_number(1))
    learning_rate: float = option(MISSING, "highest learning rate", number(exclusive=True))
    batch: int = option(1, "rows in one forward pass of one process", whole_number(1))
    accumulate: int = option(1, "forward passes per optimizer step", whole_number(1))
    epochs: float = option(1.0, "number of passes over the rows", number(exclusive=True))
    warmup_steps: int = option(10, "number of steps in which the learning rate rises to its maximum", whole_number(0))
    weight_decay: float = option(0.0, "weight decay of AdamW", number())
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", number())
    adam_beta2: float = option(0.999, "decay of the second moment", number(0, 1))
    bf16: bool = option(
        True, "train in bfloat16 on machines that compute it natively; all other machines train in float32"
    )
    gradient_checkpointing: bool = option(
        False, "save memory: recompute activations in the backward pass instead of storing them"
    )
    group_by_length: bool = option(False, "put rows of similar length into one batch")
    seed: int = option(0, "seed for the order of the rows and for the random labels")
    checkpoint_steps: int = option(100, "steps between checkpoints", whole_number(1))
    checkpoint_seconds: float = option(0.0, "seconds between checkpoints; 0: only checkpoint_steps counts", number())
    measure_steps: int = option(100, "steps between measurements on held-out rows", whole_number(1))
    measure_seconds: float = option(0.0, "seconds between measurements; 0: only measure_steps counts", number())
    measure_rows: int = option(32, "number of held-out rows to measure", whole_number(0))
    measure_free: int = option(
        4, "number of these rows for which an answer is generated, which is slow", whole_number(0)
    )


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Settings for training on relevance labels (see `rank_k.distill.label_traces`). It is off by default."""

    words: Sequence[str] = option(("no", "partly", "yes"), "the labels, worst first")
    corrupt: float = option(
        0.0, "probability that a label in the text is random; the label to predict stays correct", number(0, 1)
    )
    clean: float = option(
        0.0, "share of rows in which no label is random, from which the final ranking is learned", number(0, 1)
    )
    other_weight: float = option(1.0, "weight of tokens that are not labels; the weight of a label is 1", number())
    best_weight: float = option(1.0, "weight of the best label relative to other labels", number())
    listwise: float = option(0.0, "weight of the listwise loss, which compares the passages of a window", number())
    early: float = option(
        0.0, "weight of predicting each label at the end of its passage in the prompt already", number()
    )

    @property
    def is_enabled(self) -> bool:
        return bool(self.corrupt or self.listwise or self.early or self.other_weight != 1 or self.best_weight != 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training settings of a student, and the options with which it reranks.

    Args:
        name: The name of the recipe, which is also the default name of the student.
        base: The model that is trained.
        training: Optimizer settings, and what to save and measure during training.
        verified: Whether the authors have run the recipe at this size.
        launch: The file for `accelerate launch --config_file`, in the folder of the recipes ("" if not needed).
        method: What is trained: an adapter or all weights.
        verdicts: Settings for training on relevance labels.
        asking: The options that the student uses in `rank-k rerank`. Training rows must be made with its `prompt`.
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
    """Return the names of the recipes that the package contains."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def read_recipe(name_or_path: str) -> Recipe:
    """Return the recipe with this name or in this TOML file. Raises `InputError` if it is missing or invalid."""
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
        raise reader.error(f"verdicts.words = {words!r}", "two or more words, worst first")
    return recipe


def estimate_memory(recipe: Recipe) -> dict[str, float]:
    """Return the estimated memory for training in bytes, summed over all devices. It is accurate to a factor of 1.5.

    `weights`: with LoRA, 2 bytes per parameter in bfloat16 or 4 in float32; if all weights are trained, 4 bytes.
    `trained`: per trained parameter, 4 bytes for the gradient and 8 for Adam's moments. A LoRA parameter takes 4 more
    bytes, because `weights` does not contain it. `activations`: in bfloat16, 34 * `hidden` bytes per token and layer
    (Korthikanti et al. 2022, equation 2, without the attention scores, which fused kernels do not store). With gradient
    checkpointing, each layer stores 2 * `hidden` bytes per token, and one layer at a time needs all 34 * `hidden`. In
    float32, activations take twice as much.
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
