"""The plan of a study: collections, first stages, models and grids of settings, and the cells that they expand to.

A *cell* is one way of reranking one run with one model. Its fields, and the collection, first stage and model that it
names, determine its output. This module opens no files.
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
    """A run to rerank.

    Attributes:
        name: Its name in the study.
        file: The TREC run (default: the first-stage run of the collection).
        get: How to get the file, for the list of missing files (default: empty).
    """

    name: str
    file: Path | None = None
    get: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries, documents and judgments.

    Attributes:
        name: Its name in the study.
        first_stages: The runs to rerank.
        dataset: A data set: `beir:DIR`, `bright:DIR/SUBSET` or an id of ir_datasets (default: files only).
        queries: A file that replaces the queries of the data set.
        documents: A file that replaces its documents.
        qrels: A file that replaces its judgments.
        query_fields: The fields of a query that the model sees (default: its text).
        get: How to get the data, for the list of missing files (default: empty).
    """

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
    """A model, and the server that runs it.

    Attributes:
        name: Its name in the study.
        model: The model's name on the server (default: the server's only model, or the embedded model).
        server: The address of the server (default: the embedded model).
        server_type: The kind of server, as in `--server-type` (default: `auto`).
        revision: The revision of the model. It is part of the model's identity in the journal.
        context_length: The context length in tokens (default: as the server reports it).
        prompt: The file of a prompt template (default: the standard prompt).
        api_key_env: The environment variable that holds the key of the server.
        get: How to get the prompt file, for the list of missing files.
        serve: A command that starts the server, for reports and error messages.
        simulate: The noise of a simulated model that replaces the real one: the name of a preset, or the path of a
            noise file (default: empty, which means no simulation).
        judgments: The qrels from which the simulated model ranks (default: those of the collection).
        settings: Settings of all cells of this model, which override the grids.
    """

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
    """A published result. Reports show it in a table that is separate from the results of the study."""

    collection: str
    first_stage: str
    model: str
    measure: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class CollectionAverage:
    """A mean over collections. It is reported if there are results for all of them."""

    name: str
    collections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """A study: what to rerank, with which models and settings, and what to report.

    Attributes:
        title: The title of reports.
        collections: The collections.
        models: The models.
        grids: Each grid maps settings of a cell to lists of values. Every combination of its values is a cell.
        about: One paragraph about the study, for reports (default: empty).
        measures: The measures, the most important first (default: nDCG@10).
        baseline: The name or the setting of the cell to compare with (default: the first cell of each group).
        published: Published results to show (default: none).
        averages: Averages over collections to report (default: none).
        by_difficulty: Report gains by the difficulty of queries (default: False).
        by_round: Report quality after each round (default: False).
    """

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
    """One way of reranking one run with one model: the names of collection, first stage and model, and options.

    `method` None means listwise. `max_tokens` None means 8,000, or 512 for embedded models.
    """

    collection: str
    first_stage: str
    model: str

    @property
    def setting(self) -> str:
        """The name of the cell among the cells of the same run and model.

        It consists of the strategy, the reasoning mode and all options that differ from their defaults.
        """
        parts = [self.strategy.replace(":", "."), self.reasoning]
        for name, spec in STUDY_OPTIONS.items():
            value = getattr(self, name)
            if name not in ("strategy", "reasoning") and value != spec.default:
                written = f"{value:g}" if isinstance(value, float) else str(value)
                parts.append("free" if isinstance(value, bool) else (spec.prefix or name) + written)
        return _sanitize_file_name("-".join(parts))

    @property
    def name(self) -> str:
        """The name of the cell, which is also the name of its run file."""
        return ".".join((*map(_sanitize_file_name, (self.collection, self.first_stage, self.model)), self.setting))

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Reranker` for this cell."""
        return {
            **{name: getattr(self, name) for name in STUDY_OPTIONS if name in OPTIONS},
            "method": self.method or "listwise",
        }

    def make_strategy(self) -> Strategy:
        """Return the strategy of the cell. Raises `InputError` if it is unknown or cannot use the options."""
        return make_strategy(
            self.strategy, window=self.window, stride=self.stride, first_stage_weight=self.first_stage_weight
        )

    @property
    def passage_split(self) -> PassageSplit | None:
        """How documents are split; None if they are not. Raises `InputError` if the options contradict each other."""
        return passage_split(vars(self), self.passage_tokens)


def parse_setting(axis: str, value: Any) -> Any:
    """Parse a value of the option `axis` from a flag or from TOML. Raises `InputError` if it is invalid."""
    return parse_option(axis, value, STUDY_OPTIONS, "a cell")


def expand_cells(study: Study) -> tuple[Cell, ...]:
    """Return the cells of the study without duplicates, by collection, first stage and model.

    Options that the strategy of a cell does not use are reset to their defaults, so that cells differ only in options
    that have an effect.

    Raises:
        InputError: If a value is invalid, a model has an unknown setting, or two cells have the same name.
    """
    cells_by_name: dict[str, Cell] = {}
    for collection in study.collections:
        for first_stage, model in product(collection.first_stages, study.models):
            for settings in _expand_grids(study.grids, model.settings):
                cell = _normalize_cell(Cell(collection.name, first_stage.name, model.name, **settings))
                if cells_by_name.setdefault(cell.name, cell) != cell:
                    raise InputError(
                        f"two cells of the study are called {cell.name}",
                        "rename one of their collections, first stages or models",
                    )
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
    """Return the cell with all options that have no effect reset to their defaults.

    Raises `InputError` if the strategy is unknown or the options contradict each other.
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
"""The kinds of names that `select_cells` accepts, each with a function that returns whether a name selects a cell."""


def select_cells(cells: Sequence[Cell], names: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells that `names` select.

    Args:
        cells: The cells.
        names: Names of collections, first stages and models, and patterns of cell names or settings. A cell is selected
            if it matches at least one name of every kind that is given. Without names, all cells are selected.

    Raises:
        InputError: If a name matches nothing, or no cell matches all kinds of names.
    """
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
            raise InputError(f"nothing in the study is called {name!r}", f"choose from the {choices}")
        names_by_kind[kind].append(name)
    selected = tuple(
        cell
        for cell in cells
        if all(any(_MATCHES[kind](cell, name) for name in names_by_kind[kind]) for kind in names_by_kind)
    )
    if not selected:
        raise InputError(f"no cell of the study matches all of {', '.join(names)}", "give fewer names")
    return selected


def restrict_study(study: Study, cells: Sequence[Cell]) -> Study:
    """Return the study with only the collections, first stages and models that `cells` use."""
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
