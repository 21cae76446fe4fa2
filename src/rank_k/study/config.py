"""A study out of a TOML file: the package's own presets, or a user's. See docs/studies.md for the format."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from rank_k.errors import FormatError, InputError
from rank_k.models.simulated import PRESETS as NOISE_PRESETS
from rank_k.simulation.noise_file import read_noise
from rank_k.study.grid import (
    Collection,
    CollectionAverage,
    FirstStage,
    ModelPlan,
    PublishedResult,
    Study,
    expand_cells,
    parse_setting,
)

T = TypeVar("T")

_TABLE_KEYS = ("collections", "models", "grids", "published", "averages")
_PATH_KEYS = ("file", "queries", "documents", "qrels", "prompt", "judgments")


def config_file(name: Path) -> Path:
    """Return the file of a study: the one that comes with the package under this name, or else the path itself.

    Raises:
        InputError: If the name is neither a shipped study nor an existing TOML file.
    """
    shipped_files = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
    if name.suffix != ".toml" and not name.exists():
        if str(name) not in shipped_files:
            raise InputError(
                f"there is no study {str(name)!r}", f"give a TOML file, or one of {', '.join(shipped_files)}"
            )
        return shipped_files[str(name)]
    return name


def read_study(file: Path, data: Path) -> Study:
    """The study in `file`. What it names is looked for in the folder `data`, unless its path is absolute.

    Raises `FormatError` for what is not as it should be; whether the data are there is not looked at.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}", "name a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise FormatError(file, 0, str(error), "TOML, see docs/studies.md") from error
    return _Reader(file, data).read_study(document)


class _Reader:
    """Turns tables of TOML into values, telling where something is wrong."""

    def __init__(self, file: Path, data: Path) -> None:
        self._file, self._data = file, data

    def read_study(self, document: Mapping[str, Any]) -> Study:
        self._check_keys("the study", document, {f.name for f in fields(Study)})
        collections = tuple(self._read_collection(table) for table in self._read_tables(document, "collections"))
        models = tuple(self._read_model(table) for table in self._read_tables(document, "models"))
        grids = tuple(self._read_grid(table) for table in self._read_tables(document, "grids"))
        for part, values in (("collections", collections), ("models", models), ("grids", grids)):
            if not values:
                raise self._format_error(f"the study has no {part}", f"a table [[{part}]]")
        study_values = {key: value for key, value in document.items() if key not in _TABLE_KEYS}
        study = Study(
            **{
                "title": self._file.stem,
                **{key: self._parse_study_value(key, value) for key, value in study_values.items()},
            },
            collections=collections,
            models=models,
            grids=grids,
            published=tuple(self._read_published(table) for table in self._read_tables(document, "published")),
            averages=tuple(self._read_average(table) for table in self._read_tables(document, "averages")),
        )
        self._check_names(study)
        return study

    def _check_names(self, study: Study) -> None:
        for part, names in (
            ("collections", [collection.name for collection in study.collections]),
            ("models", [model.name for model in study.models]),
            *((f"runs of {c.name}", [f.name for f in c.first_stages]) for c in study.collections),
        ):
            if len(set(names)) < len(names):
                raise self._format_error(f"two {part} have one name ({', '.join(names)})", "a name for each")
        collections = {collection.name for collection in study.collections}
        for average in study.averages:
            for name in average.collections:
                if name not in collections:
                    raise self._format_error(f"the average {average.name} is over {name!r}", "names of collections")
        known_collections = collections | {average.name for average in study.averages}
        models = {model.name for model in study.models}
        for published in study.published:
            if published.collection not in known_collections or published.model not in models:
                published_for = f"{published.model} on {published.collection}"
                raise self._format_error(
                    f"a published figure is of {published_for}", "a model and a collection (or average) of the study"
                )
        try:
            expand_cells(study)
        except InputError as error:
            raise self._format_error(error.problem, error.remedy) from error

    # --- parts ---

    def _read_collection(self, table: Mapping[str, Any]) -> Collection:
        known_keys = {f.name for f in fields(Collection)} - {"first_stages"} | {"runs", "folder"}
        self._check_keys("a collection", table, known_keys)
        runs = self._read_tables(table, "runs")
        for run in runs:
            self._check_keys("a run", run, {f.name for f in fields(FirstStage)})
        if not runs:
            raise self._format_error(f"the collection {table.get('name')} has no runs", "a table [[collections.runs]]")
        values = {key: value for key, value in table.items() if key not in ("runs", "folder")}
        if "dataset" in values:
            values["dataset"] = self._locate_dataset(self._require_text("dataset", values["dataset"]))
        folder = table.get("folder")
        if folder is not None and any((self._data / self._require_text("folder", folder)).glob("corpus.jsonl*")):
            values["dataset"] = f"beir:{self._data / folder}"
        return self._build(Collection, {**values, "first_stages": tuple(self._build(FirstStage, run) for run in runs)})

    def _locate_dataset(self, name: str) -> str:
        """`beir:DIR` and `bright:DIR/SUBSET` with a folder in the data folder."""
        scheme, colon, location = name.partition(":")
        if not colon or (scheme == "bright" and "/" not in location):
            return name
        return f"{scheme}:{self._data / Path(location).expanduser()}"

    def _read_model(self, table: Mapping[str, Any]) -> ModelPlan:
        self._check_keys("a model", table, {f.name for f in fields(ModelPlan)})
        settings = table.get("settings", {})
        if not isinstance(settings, dict):
            raise self._format_error("the settings of a model are no table", "[models.settings]")
        parsed = {axis: self._parse_setting(axis, value) for axis, value in settings.items()}
        noise = {"simulate": self._locate_noise(table["simulate"])} if "simulate" in table else {}
        return self._build(ModelPlan, {**table, **noise, "settings": parsed})

    def _locate_noise(self, name: Any) -> str:
        """The name of a noise, or where its file is."""
        if self._require_text("simulate", name) in ("", *NOISE_PRESETS):
            return str(name)
        file = self._data / Path(name).expanduser()
        if not file.is_file():
            raise self._format_error(
                f"simulate is {name!r}", f"one of {', '.join(NOISE_PRESETS)}, or a file of rank-k journal fit-noise"
            )
        read_noise(file)  # a mistake in it is found now
        return str(file)

    def _read_grid(self, table: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        grid: dict[str, Sequence[Any]] = {}
        for axis, values in table.items():
            value_list = values if isinstance(values, list) else [values]
            grid[axis] = [self._parse_setting(axis, value) for value in value_list]
        return grid

    def _read_published(self, table: Mapping[str, Any]) -> PublishedResult:
        self._check_keys("a published figure", table, {f.name for f in fields(PublishedResult)})
        return self._build(PublishedResult, table)

    def _read_average(self, table: Mapping[str, Any]) -> CollectionAverage:
        self._check_keys("an average", table, {f.name for f in fields(CollectionAverage)})
        return self._build(CollectionAverage, table)

    # --- values ---

    def _build(self, kind: type[T], table: Mapping[str, Any]) -> T:
        values = {key: self._parse_value(kind, key, value) for key, value in table.items()}
        try:
            return kind(**values)
        except TypeError as error:
            missing_fields = str(error).partition(": ")[2]
            raise self._format_error(
                f"a {kind.__name__} lacks {missing_fields} ({dict(table)})"[:200], "every one of these"
            ) from error

    def _parse_value(self, kind: type[Any], key: str, value: Any) -> Any:
        if key in ("first_stages", "settings"):
            return value
        if key in _PATH_KEYS:
            return self._data / Path(self._require_text(key, value)).expanduser()
        if key == "collections":
            return tuple(self._require_text(key, name) for name in value)
        if key in ("value", "context_length"):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._format_error(f"{key} is {value!r}", "a number")
            return value
        return self._require_text(key, value)

    def _parse_study_value(self, key: str, value: Any) -> Any:
        if key == "measures":
            if not isinstance(value, list) or not value:
                raise self._format_error(f"measures is {value!r}", 'a list such as ["nDCG@10"]')
            return tuple(self._require_text(key, name) for name in value)
        if key in ("by_difficulty", "by_round"):
            if not isinstance(value, bool):
                raise self._format_error(f"{key} is {value!r}", "true or false")
            return value
        return self._require_text(key, value)

    def _require_text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._format_error(f"{key} is {value!r}", "a text")
        return value

    def _parse_setting(self, axis: str, value: Any) -> Any:
        try:
            return parse_setting(axis, value)
        except InputError as error:
            raise self._format_error(error.problem, error.remedy) from error

    def _read_tables(self, document: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
        tables = document.get(part, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._format_error(f"{part} is no list of tables", f"[[{part}]]")
        return [entry for table in tables for entry in _expand_each(table)]

    def _check_keys(self, owner: str, table: Mapping[str, Any], known_keys: set[str]) -> None:
        for key in table:
            if key not in known_keys:
                matches = get_close_matches(key, known_keys, n=1)
                suggestion = f" (did you mean {matches[0]}?)" if matches else ""
                raise self._format_error(
                    f"{owner} has no {key!r}{suggestion}", f"some of {', '.join(sorted(known_keys))}"
                )

    def _format_error(self, problem: str, expected: str) -> FormatError:
        return FormatError(self._file, 0, problem, expected)


def _expand_each(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The table, or one for each name in its list `each`, which stands in its texts for `{each}`."""
    template = {key: value for key, value in table.items() if key != "each"}
    if "each" not in table:
        yield template
        return
    for name in table["each"]:
        yield {key: _substitute_name(value, str(name)) for key, value in template.items()}


def _substitute_name(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{each}", name)
    if isinstance(value, list):
        return [_substitute_name(item, name) for item in value]
    if isinstance(value, dict):
        return {key: _substitute_name(item, name) for key, item in value.items()}
    return value
