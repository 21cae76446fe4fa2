"""What a study asks: collections, first stages, models and the settings to try, as values; and the cells they make.

A *cell* is one way of reranking one run with one model. All that decides its output stands in it or in what its
names stand for. Pure: nothing is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from rank_k.data.long_documents import PassageSplit
from rank_k.errors import InputError
from rank_k.strategies import PRESETS, make_strategy
from rank_k.strategies.base import Strategy
from rank_k.window.reasoning import ReasoningMode


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A run to rerank. `get`: how to come by its file. `file` None: the collection's own."""

    name: str
    file: Path | None = None
    get: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries, documents and judgments: a data set by its name (`beir:DIR`, `bright:DIR/SUBSET`, an ir_datasets id),
    files, or both, the files going first. `query_fields`: what the model sees of a query. `get`: how to come by it."""

    name: str
    first_stages: tuple[FirstStage, ...]
    dataset: str | None = None
    queries: Path | None = None
    documents: Path | None = None
    qrels: Path | None = None
    query_fields: str | None = None
    get: str = ""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model and how it is reached. `serve`: a command that serves it. `simulate`: the noise (its name, or a file's
    path) of a simulated judge that stands in for it, by `judgments` or else the collection's own. `prompt` is a
    template's file, `get` says how to come by it. `settings`: those in which its cells differ from the grid's, whatever
    the grid says."""

    name: str
    model: str | None = None
    server: str | None = None
    server_type: str = "auto"
    revision: str = ""
    context_length: int | None = None
    prompt: Path | None = None
    api_key_env: str | None = None
    get: str = ""
    serve: str = ""
    simulate: str = ""
    judgments: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """A figure that somebody published. It is shown beside what was measured and never mixed with it."""

    collection: str
    first_stage: str
    model: str
    measure: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class CollectionAverage:
    """A mean over collections, shown once all of them are there."""

    name: str
    collections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """`grids`: each maps settings of a cell to the values to try; their products are united. `by_difficulty` and
    `by_round` ask for the tables that the questions `reasoning` and `latency` are about."""

    title: str
    collections: tuple[Collection, ...]
    models: tuple[ModelPlan, ...]
    grids: tuple[Mapping[str, Sequence[Any]], ...]
    about: str = ""
    measures: tuple[str, ...] = ("nDCG@10",)
    baseline: str | None = None
    published: tuple[PublishedResult, ...] = ()
    averages: tuple[CollectionAverage, ...] = ()
    by_difficulty: bool = False
    by_round: bool = False

    def collection(self, name: str) -> Collection:
        return next(collection for collection in self.collections if collection.name == name)

    def model(self, name: str) -> ModelPlan:
        return next(model for model in self.models if model.name == name)


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of reranking one run with one model. `maxp_tokens`: "none", or the tokens of a passage, of the overlap
    and the most passages of a document ("225", "225:50", "225:50:4"). `max_tokens` None: 8,000, embedded 512."""

    collection: str
    first_stage: str
    model: str
    strategy: str = "sliding"
    reasoning: str = "full"
    samples: int = 1
    depth: int = 100
    window: int = 20
    stride: int = 10
    first_stage_weight: float = 1.0
    passage_tokens: int = 450
    maxp_tokens: str = "none"
    max_tokens: int | None = None
    temperature: float | None = 0.5
    top_p: float | None = None
    constrained: bool = True

    @property
    def setting(self) -> str:
        """The cell's name among those of its collection, first stage and model: strategy and thought, and what is
        not at its default."""
        parts = [self.strategy.replace(":", "."), self.reasoning]
        for axis, prefix in _NAME_PREFIXES.items():
            value = getattr(self, axis)
            if axis == "constrained" and not value:
                parts.append("free")
            elif value != DEFAULTS[axis]:
                parts.append(prefix + (f"{value:g}" if isinstance(value, float) else str(value).replace(":", "+")))
        return _sanitize_file_name("-".join(parts))

    @property
    def name(self) -> str:
        """The cell's name, which is also that of its run's file."""
        return ".".join((*map(_sanitize_file_name, (self.collection, self.first_stage, self.model)), self.setting))

    @property
    def passage_split(self) -> PassageSplit | None:
        """How documents are cut; None: they are not."""
        if self.maxp_tokens == "none":
            return None
        tokens, overlap, limit = (*map(int, self.maxp_tokens.split(":")), 0, 0)[:3]
        return PassageSplit(tokens, overlap, limit or None)


_NAME_PREFIXES = {
    "samples": "x",
    "depth": "d",
    "window": "w",
    "stride": "s",
    "first_stage_weight": "a",
    "passage_tokens": "p",
    "maxp_tokens": "split",
    "max_tokens": "m",
    "temperature": "t",
    "top_p": "top",
    "constrained": "",
}

DEFAULTS = {f.name: f.default for f in fields(Cell) if f.name in _NAME_PREFIXES or f.name in ("strategy", "reasoning")}


def build_strategy(cell: Cell) -> Strategy:
    """Raises `InputError` for a strategy that does not exist or settings that it cannot work with."""
    preset = PRESETS.get(cell.strategy)
    options = {"name": cell.strategy} if preset is None else dict(preset)
    return make_strategy(
        **{**options, "window": cell.window, "stride": cell.stride, "first_stage_weight": cell.first_stage_weight}
    )


def expand_cells(study: Study) -> tuple[Cell, ...]:
    """The cells, collection by collection, first stage by first stage and model by model, each once.

    Settings that a strategy has no use for are left at their defaults, so that they make no cells of their own.
    Raises `InputError` for a value that cannot be, and for a model's setting that no cell has.
    """
    cells: dict[Cell, None] = {}
    for collection in study.collections:
        for first_stage in collection.first_stages:
            for model in study.models:
                for settings in _expand_grids(study.grids, model.settings):
                    cell = _normalize_cell(Cell(collection.name, first_stage.name, model.name, **settings))
                    cells.setdefault(cell)
    cells_by_name: dict[str, Cell] = {}
    for cell in cells:
        existing = cells_by_name.setdefault(cell.name, cell)
        if existing is not cell:
            raise InputError(f"two cells of the study are called {cell.name}", "give their parts other names")
    return tuple(cells)


def _expand_grids(
    grids: Iterable[Mapping[str, Sequence[Any]]], model_settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for grid in grids:
        axes = {**grid, **{axis: (value,) for axis, value in model_settings.items()}}
        parsed_axes = {axis: [parse_setting(axis, value) for value in values] for axis, values in axes.items()}
        for values in product(*parsed_axes.values()):
            yield dict(zip(parsed_axes, values, strict=True))


def _normalize_cell(cell: Cell) -> Cell:
    strategy = build_strategy(cell)
    if is_dataclass(strategy):
        used_axes = {f.name for f in fields(strategy)}
        unused_axes = {
            axis: DEFAULTS[axis] for axis in ("window", "stride", "first_stage_weight") if axis not in used_axes
        }
        cell = replace(cell, **unused_axes)
    if cell.passage_split is not None and cell.passage_split.tokens > cell.passage_tokens:
        raise InputError(
            f"passages of maxp_tokens {cell.maxp_tokens} would be cut again to {cell.passage_tokens} tokens",
            "lower maxp_tokens or raise the passage tokens",
        )
    return cell


# --- values of settings ----------------------------------------------------------------------------


def parse_setting(axis: str, value: Any) -> Any:
    """`value` (as text, or as TOML has it) as the setting `axis` of a cell takes it. Raises `InputError`."""
    parse = _PARSERS.get(axis)
    if parse is None:
        raise InputError(f"a cell has no setting {axis!r}", f"name some of {', '.join(_PARSERS)}")
    try:
        return parse(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{axis} cannot be {value!r}", f"write {_EXAMPLES.get(axis, 'a whole number from 1')}"
        ) from error


def _parse_count(value: Any) -> int:
    number = int(str(value))
    if isinstance(value, float | bool) or number < 1:
        raise ValueError
    return number


def _parse_number(value: Any) -> float:
    number = float(str(value))
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _parse_optional_number(value: Any) -> float | None:
    return None if value in (None, "none") else _parse_number(value)


def _parse_reasoning(value: Any) -> str:
    return str(ReasoningMode.parse(str(value)))


def _parse_maxp(value: Any) -> str:
    text = str(value)
    if text != "none" and not re.fullmatch(r"[1-9]\d{0,8}(:\d{1,9}(:[1-9]\d{0,8})?)?", text):
        raise ValueError
    return text


def _parse_constrained(value: Any) -> bool:
    values = {True: True, False: False, "auto": True, "off": False}
    if value not in values:
        raise ValueError
    return values[value]


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "strategy": str,
    "reasoning": _parse_reasoning,
    "samples": _parse_count,
    "depth": _parse_count,
    "window": _parse_count,
    "stride": _parse_count,
    "first_stage_weight": _parse_number,
    "passage_tokens": _parse_count,
    "maxp_tokens": _parse_maxp,
    "max_tokens": lambda value: None if value is None else _parse_count(value),
    "temperature": _parse_optional_number,
    "top_p": _parse_optional_number,
    "constrained": _parse_constrained,
}

_EXAMPLES = {
    "first_stage_weight": "a number from 0",
    "maxp_tokens": "none, or TOKENS[:OVERLAP[:MOST]] such as 225:50",
    "temperature": "a number from 0, or none for the server's own",
    "top_p": "a number between 0 and 1",
    "constrained": "auto or off",
}


# --- choosing --------------------------------------------------------------------------------------


def select_cells(cells: Sequence[Cell], names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that `names` (of collections, first stages, models, or patterns of cells) leave: names of one kind
    add up, kinds narrow each other down. All cells where there are no names. Raises `InputError` for one that
    fits nothing."""
    if not names:
        return tuple(cells)
    names_by_axis: dict[str, set[str]] = {}
    for name in names:
        axis = next((axis for axis in _NAME_AXES if any(getattr(cell, axis) == name for cell in cells)), None)
        if axis is None and not any(_matches_pattern(cell, name) for cell in cells):
            known_names = [sorted({getattr(cell, axis) for cell in cells}) for axis in _NAME_AXES]
            choices = "; ".join(
                f"{axis.replace('_', ' ')}s {', '.join(axis_names)}"
                for axis, axis_names in zip(_NAME_AXES, known_names, strict=True)
            )
            raise InputError(f"nothing in the study is called {name!r}", f"it has the {choices}")
        names_by_axis.setdefault(axis or "", set()).add(name)
    selected = [
        cell
        for cell in cells
        if all(
            getattr(cell, axis) in names_of_axis
            if axis
            else any(_matches_pattern(cell, name) for name in names_of_axis)
            for axis, names_of_axis in names_by_axis.items()
        )
    ]
    if not selected:
        raise InputError(f"no cell of the study fits all of {', '.join(names)}", "name fewer of them")
    return tuple(selected)


_NAME_AXES = ("collection", "first_stage", "model")


def _matches_pattern(cell: Cell, pattern: str) -> bool:
    return fnmatchcase(cell.name, pattern) or fnmatchcase(cell.setting, pattern)


def restrict_study(study: Study, cells: Sequence[Cell]) -> Study:
    """`study` with no more collections, first stages and models than `cells` need."""
    runs = {(cell.collection, cell.first_stage) for cell in cells}
    models = {cell.model for cell in cells}
    collections = (
        replace(c, first_stages=tuple(f for f in c.first_stages if (c.name, f.name) in runs))
        for c in study.collections
        if any(c.name == name for name, _ in runs)
    )
    return replace(
        study,
        collections=tuple(collections),
        models=tuple(model for model in study.models if model.name in models),
    )


def _sanitize_file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-") or "-"
