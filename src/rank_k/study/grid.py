"""What a study asks: collections, first stages, models and the settings to try, as values; and the cells they make.

A *cell* is one way of reranking one run with one model. All that decides its output stands in it or in what its
names stand for. Pure: nothing is opened here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from rank_k.data.long_documents import PassageSplit
from rank_k.errors import InputError
from rank_k.options import OPTIONS, STUDY_OPTIONS, InferenceOptions, LongDocumentOptions, RankingOptions, parse_option
from rank_k.run_job import passage_split
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy


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

    def model(self, name: str) -> ModelPlan:
        return next(model for model in self.models if model.name == name)


@dataclass(frozen=True)
class Cell(LongDocumentOptions, InferenceOptions, RankingOptions):
    """One way of reranking one run with one model: the names of these three, and options.

    `method` None is listwise. `max_tokens` None is 8,000, or 512 for embedded models.
    """

    collection: str
    first_stage: str
    model: str

    @property
    def setting(self) -> str:
        """The cell's name among those of its collection, first stage and model: its strategy, its reasoning mode, and
        the options that do not have their default values."""
        parts = [self.strategy.replace(":", "."), self.reasoning]
        for name, spec in STUDY_OPTIONS.items():
            value = getattr(self, name)
            if name not in ("strategy", "reasoning") and value != spec.default:
                written = f"{value:g}" if isinstance(value, float) else str(value)
                parts.append("free" if isinstance(value, bool) else (spec.prefix or name) + written)
        return _sanitize_file_name("-".join(parts))

    @property
    def name(self) -> str:
        """The cell's name, which is also that of its run's file."""
        return ".".join((*map(_sanitize_file_name, (self.collection, self.first_stage, self.model)), self.setting))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the cell's reranker."""
        return {
            **{name: getattr(self, name) for name in STUDY_OPTIONS if name in OPTIONS},
            "method": self.method or "listwise",
        }

    def make_strategy(self) -> Strategy:
        """Return the cell's strategy. Raises `InputError` if there is none or the options do not suit it."""
        return make_strategy(
            self.strategy, window=self.window, stride=self.stride, first_stage_weight=self.first_stage_weight
        )

    @property
    def passage_split(self) -> PassageSplit | None:
        """How documents are split, or None. Raises `InputError` if the options contradict each other."""
        return passage_split(vars(self), self.passage_tokens)


def parse_setting(axis: str, value: Any) -> Any:
    """Return `value` (of a flag or of TOML) as the option `axis` of a cell. Raises `InputError`."""
    return parse_option(axis, value, STUDY_OPTIONS, "a cell")


def expand_cells(study: Study) -> tuple[Cell, ...]:
    """The cells, collection by collection, first stage by first stage and model by model, each once.

    Settings that a strategy has no use for are left at their defaults, so that they make no cells of their own.
    Raises `InputError` for a value that cannot be, and for a model's setting that no cell has.
    """
    cells_by_name: dict[str, Cell] = {}
    for collection in study.collections:
        for first_stage, model in product(collection.first_stages, study.models):
            for settings in _expand_grids(study.grids, model.settings):
                cell = _normalize_cell(Cell(collection.name, first_stage.name, model.name, **settings))
                if cells_by_name.setdefault(cell.name, cell) != cell:
                    raise InputError(f"two cells of the study are called {cell.name}", "give their parts other names")
    return tuple(cells_by_name.values())


def _expand_grids(
    grids: Iterable[Mapping[str, Sequence[Any]]], model_settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for grid in grids:
        axes = {**grid, **{axis: (value,) for axis, value in model_settings.items()}}
        parsed_axes = {axis: [parse_setting(axis, value) for value in values] for axis, values in axes.items()}
        for values in product(*parsed_axes.values()):
            yield dict(zip(parsed_axes, values, strict=True))


def _normalize_cell(cell: Cell) -> Cell:
    """Return the cell with the defaults of all options that its strategy or unsplit documents have no use for.

    Raises `InputError` if there is no such strategy, or the options do not go together.
    """
    strategy_options = ("window", "stride", "first_stage_weight")
    used = getattr(cell.make_strategy(), "__dataclass_fields__", strategy_options)
    unused = [option for option in strategy_options if option not in used]
    if cell.maxp_tokens is None:
        unused += ["maxp_overlap", "maxp_passages"]
    cell = replace(cell, **{axis: STUDY_OPTIONS[axis].default for axis in unused})
    _ = cell.passage_split  # raises if its options contradict each other
    return cell


# --- choosing --------------------------------------------------------------------------------------


_MATCHES: Mapping[str, Callable[[Cell, str], bool]] = {
    "collection": lambda cell, name: cell.collection == name,
    "first stage": lambda cell, name: cell.first_stage == name,
    "model": lambda cell, name: cell.model == name,
    "cell": lambda cell, pattern: fnmatchcase(cell.name, pattern) or fnmatchcase(cell.setting, pattern),
}
"""What a name can stand for, and whether it stands for that of a cell."""


def select_cells(cells: Sequence[Cell], names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that `names` (of collections, first stages, models, or patterns of cells) leave: names of one kind
    add up, kinds narrow each other down. All cells where there are no names. Raises `InputError` for one that
    fits nothing."""
    names_by_kind: dict[str, list[str]] = defaultdict(list)
    for name in names:
        kind = next((kind for kind, matches in _MATCHES.items() if any(matches(cell, name) for cell in cells)), None)
        if kind is None:
            known = {
                "collections": {cell.collection for cell in cells},
                "first stages": {cell.first_stage for cell in cells},
                "models": {cell.model for cell in cells},
            }
            choices = "; ".join(f"{kinds} {', '.join(sorted(known_names))}" for kinds, known_names in known.items())
            raise InputError(f"nothing in the study is called {name!r}", f"it has the {choices}")
        names_by_kind[kind].append(name)
    selected = tuple(
        cell
        for cell in cells
        if all(any(_MATCHES[kind](cell, name) for name in names_by_kind[kind]) for kind in names_by_kind)
    )
    if not selected:
        raise InputError(f"no cell of the study fits all of {', '.join(names)}", "name fewer of them")
    return selected


def restrict_study(study: Study, cells: Sequence[Cell]) -> Study:
    """`study` with no more collections, first stages and models than `cells` need."""
    runs = {(cell.collection, cell.first_stage) for cell in cells}
    models = {cell.model for cell in cells}
    collections = (
        replace(c, first_stages=tuple(f for f in c.first_stages if (c.name, f.name) in runs)) for c in study.collections
    )
    return replace(
        study,
        collections=tuple(collection for collection in collections if collection.first_stages),
        models=tuple(model for model in study.models if model.name in models),
    )


def _sanitize_file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-") or "-"
