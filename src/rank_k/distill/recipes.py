"""Recipes: how a student is trained, as a TOML file read into frozen values.

A key that is misspelt or has the wrong kind of value stops here, with the key's name, before anything is loaded.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rank_k.errors import InputError
from rank_k.options import STRATEGY_NAMES, StudentOptions

RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """The model that is trained.

    `weights`: a name of `rank-k fetch`, a GGUF file, a folder of transformers' own format, or a name on the
    Hugging Face hub. `parameters`, `layers`, `hidden`: its size, for the memory estimate before anything is loaded.
    """

    weights: str
    parameters: float
    layers: int
    hidden: int


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """`kind` "lora" trains an adapter of `rank` on the modules `targets` ("all-linear": every projection); "full"
    trains the weights themselves, but for the embeddings. The first `freeze_layers` layers stay as they are."""

    kind: str = "lora"
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    freeze_layers: int = 0


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """`max_length`: tokens; longer rows are counted and left out. `batch`: rows in one forward pass; `accumulate`
    of them make a step. `bf16`: train in bfloat16 on machines that are fast at it, elsewhere in float32.
    `checkpoint_seconds`, `measure_seconds`: how often, in time; 0 for never (the end apart).
    `measure_rows` held-out rows are measured, `measure_free` of them answered freely too, in at most the student's
    own `max_tokens`, which is slow."""

    max_length: int
    learning_rate: float
    batch: int = 1
    accumulate: int = 1
    epochs: float = 1.0
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999
    bf16: bool = True
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    seed: int = 0
    checkpoint_steps: int = 100
    checkpoint_seconds: float = 0.0
    measure_steps: int = 100
    measure_seconds: float = 0.0
    measure_rows: int = 32
    measure_free: int = 4


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """For students whose trace is one verdict a passage (see `rank_k.distill.label_traces`). All of it is off by
    default.

    `corrupt`: chance that a verdict which is *shown* is a random one, while the one to be learnt stays right.
    `clean`: share of rows left as they are, from which the step from verdicts to order is learnt.
    `other_weight`: weight of all other tokens; a verdict's is 1, and `best_weight` for one of the best kind.
    `listwise`: weight of a softmax over the window's verdicts, which compares passages with each other.
    `early`: weight of learning the verdicts at the ends of their passages already, where the prompt shows these: a
    short way for the gradient, after which the trace has but to find again what is known there.
    """

    words: list[str] = field(default_factory=lambda: ["no", "partly", "yes"])
    corrupt: float = 0.0
    clean: float = 0.0
    other_weight: float = 1.0
    best_weight: float = 1.0
    listwise: float = 0.0
    early: float = 0.0

    @property
    def is_enabled(self) -> bool:
        return bool(self.corrupt or self.listwise or self.early or self.other_weight != 1 or self.best_weight != 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`verified`: whether a run at this size was done by us. `launch`: file of `accelerate launch --config_file`."""

    name: str
    base: BaseOptions
    training: TrainingOptions
    verified: bool = False
    launch: str = ""
    method: MethodOptions = field(default_factory=MethodOptions)
    verdicts: LabelOptions = field(default_factory=LabelOptions)
    asking: StudentOptions = field(default_factory=StudentOptions)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def read_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name, or in that file. Raises `InputError`."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in recipe_names():
            known_keys = ", ".join(recipe_names())
            raise InputError(f"no recipe is called {name_or_path!r}", f"give a .toml file, or one of: {known_keys}")
        path = RECIPES_FOLDER / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"recipe {path} cannot be read: {reason}", "give a recipe as a TOML file") from error
    recipe: Recipe = _parse_table(Recipe, table, str(path), "")
    _check_recipe(recipe, str(path))
    return recipe


def _parse_table(table_type: type, table: dict[str, Any], path: str, prefix: str) -> Any:
    """A `table_type` (a dataclass) with the values `table`."""
    hints = get_type_hints(table_type)
    known_keys = [field_spec.name for field_spec in fields(table_type)]
    for key in table:
        if key not in known_keys:
            suggestions = difflib.get_close_matches(key, known_keys, 1)
            remedy = (
                f"did you mean {suggestions[0]}?" if suggestions else f"the keys there are: {', '.join(known_keys)}"
            )
            raise InputError(f"recipe {path} has an unknown key {prefix}{key}", remedy)
    values = {}
    for field_spec in fields(table_type):
        if field_spec.name not in table:
            if field_spec.default is MISSING and field_spec.default_factory is MISSING:
                raise InputError(f"recipe {path} lacks {prefix}{field_spec.name}", "add it")
            continue
        value, type_hint = table[field_spec.name], hints[field_spec.name]
        if is_dataclass(type_hint) and isinstance(type_hint, type):
            if not isinstance(value, dict):
                raise InputError(
                    f"{prefix}{field_spec.name} in recipe {path} is no table", f"write [{prefix}{field_spec.name}]"
                )
            values[field_spec.name] = _parse_table(type_hint, value, path, f"{prefix}{field_spec.name}.")
        elif "kind" in field_spec.metadata:
            try:
                values[field_spec.name] = field_spec.metadata["kind"].parse(value)
            except (ValueError, KeyError, InputError) as error:
                expected = field_spec.metadata["kind"].expected
                problem = f"{prefix}{field_spec.name} = {value!r} in recipe {path}"
                raise InputError(problem, f"give {expected}") from error
        elif not _has_type(value, type_hint):
            type_name = getattr(type_hint, "__name__", str(type_hint))
            raise InputError(
                f"{prefix}{field_spec.name} = {value!r} in recipe {path}", f"give it a value of kind {type_name}"
            )
        else:
            values[field_spec.name] = float(value) if type_hint is float else value
    return table_type(**values)


def _has_type(value: Any, type_hint: Any) -> bool:
    if isinstance(type_hint, UnionType):
        return any(_has_type(value, part) for part in get_args(type_hint))
    if get_origin(type_hint) is list:
        return isinstance(value, list) and all(_has_type(item, get_args(type_hint)[0]) for item in value)
    if type_hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type_hint) and (type_hint is bool or not isinstance(value, bool))


def _check_recipe(recipe: Recipe, path: str) -> None:
    def reject(key: str, value: object, remedy: str) -> None:
        raise InputError(f"{key} = {value!r} in recipe {path}", remedy)

    if recipe.method.kind not in ("lora", "full"):
        reject("method.kind", recipe.method.kind, 'give "lora" or "full"')
    for key in ("corrupt", "clean"):
        if not 0 <= getattr(recipe.verdicts, key) <= 1:
            reject(f"verdicts.{key}", getattr(recipe.verdicts, key), "give a share from 0 to 1")
    positive_keys = {
        "base": ("parameters", "layers", "hidden"),
        "training": "max_length batch accumulate learning_rate epochs checkpoint_steps measure_steps".split(),
    }
    for table, keys in positive_keys.items():
        for key in keys:
            if (value := getattr(getattr(recipe, table), key)) <= 0:
                reject(f"{table}.{key}", value, "give more than 0")
    if not 0 <= recipe.method.freeze_layers < recipe.base.layers:
        reject("method.freeze_layers", recipe.method.freeze_layers, f"give fewer than all {recipe.base.layers}")
    if len(recipe.verdicts.words) < 2:
        reject("verdicts.words", recipe.verdicts.words, "name two or more, worst first")
    if recipe.asking.strategy not in STRATEGY_NAMES:
        reject("asking.strategy", recipe.asking.strategy, f"name one of {', '.join(STRATEGY_NAMES)}")
    if recipe.method.rank < 1:
        reject("method.rank", recipe.method.rank, "give 1 or more")
    if recipe.asking.window < 2:
        reject("asking.window", recipe.asking.window, "give 2 or more")
    if not 1 <= recipe.asking.stride <= recipe.asking.window:
        reject("asking.stride", recipe.asking.stride, f"give 1 to {recipe.asking.window}, the window's size")


# --- memory -----------------------------------------------------------------------------------------

_BYTES_PER_NUMBER = {True: 2, False: 4}  # of one number, in bf16 or in single precision


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that training needs over all devices together."""

    weights: float
    trained: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations


def estimate_memory(recipe: Recipe) -> MemoryEstimate:
    """What training takes, from sizes alone: an estimate within a factor of about 1.5, before anything is loaded.

    Weights: 2 bytes a parameter that stays as it is (bf16), 4 (single precision) where all are trained. Each trained
    parameter takes 4 bytes of gradient and 8 of Adam's moments, an adapter's 4 of its own too. Activations, in
    numbers of `hidden` size per token and layer: 34 as they are (Korthikanti et al. 2022, equation 2, without the
    attention scores, which fused kernels do not keep), 2 with checkpointing plus one layer in full.
    """
    base, method, training = recipe.base, recipe.method, recipe.training
    bytes_per_number = _BYTES_PER_NUMBER[training.bf16]
    if method.kind == "lora":
        # Every projection in x out gets rank * (in + out): about 2 * 7 projections of near-hidden size a layer.
        trained = float(base.layers * method.rank * 18 * base.hidden)
        weights, bytes_per_trained = base.parameters * bytes_per_number, 16
    else:
        trained = base.parameters * (1 - method.freeze_layers / base.layers)
        weights, bytes_per_trained = base.parameters * 4, 12
    tokens = training.batch * training.max_length
    values_per_token = 2 * base.layers + 34 if training.gradient_checkpointing else 34 * base.layers
    return MemoryEstimate(
        weights, trained * bytes_per_trained, tokens * base.hidden * values_per_token * bytes_per_number / 2
    )
