"""A study out of a TOML file: the package's own presets, or a user's. See docs/studies.md for the format."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from rank_k.errors import FormatError, InputError
from rank_k.models.simulated import PRESETS as NOISES
from rank_k.simulation.noise_file import read_noise
from rank_k.study.grid import (
    Average,
    Collection,
    FirstStage,
    ModelPlan,
    Published,
    Study,
    cells_of,
    parse_setting,
)

T = TypeVar("T")

_PARTS = ("collections", "models", "grids", "published", "averages")
_PATHS = ("file", "queries", "documents", "qrels", "prompt", "judgments")


def config_file(name: Path) -> Path:
    """Return the file of a study: the one that comes with the package under this name, or else the path itself.

    Raises:
        InputError: If the name is neither a shipped study nor an existing TOML file.
    """
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
    if name.suffix != ".toml" and not name.exists():
        if str(name) not in shipped:
            raise InputError(f"there is no study {str(name)!r}", f"give a TOML file, or one of {', '.join(shipped)}")
        return shipped[str(name)]
    return name


def read_study(file: Path, data: Path) -> Study:
    """The study in `file`. What it names is looked for in the folder `data`, unless its path is absolute.

    Raises `FormatError` for what is not as it should be; whether the data are there is not looked at.
    """
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}", "name a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise FormatError(file, 0, str(error), "TOML, see docs/studies.md") from error
    return _Reader(file, data).study(told)


class _Reader:
    """Turns tables of TOML into values, telling where something is wrong."""

    def __init__(self, file: Path, data: Path) -> None:
        self._file, self._data = file, data

    def study(self, told: Mapping[str, Any]) -> Study:
        self._keys("the study", told, {f.name for f in fields(Study)})
        collections = tuple(self._collection(table) for table in self._tables(told, "collections"))
        models = tuple(self._model(table) for table in self._tables(told, "models"))
        grids = tuple(self._grid(table) for table in self._tables(told, "grids"))
        for part, values in (("collections", collections), ("models", models), ("grids", grids)):
            if not values:
                raise self._wrong(f"the study has no {part}", f"a table [[{part}]]")
        rest = {key: value for key, value in told.items() if key not in _PARTS}
        study = Study(
            **{"title": self._file.stem, **{key: self._of_study(key, value) for key, value in rest.items()}},
            collections=collections,
            models=models,
            grids=grids,
            published=tuple(self._published(table) for table in self._tables(told, "published")),
            averages=tuple(self._average(table) for table in self._tables(told, "averages")),
        )
        self._check(study)
        return study

    def _check(self, study: Study) -> None:
        for part, names in (
            ("collections", [collection.name for collection in study.collections]),
            ("models", [model.name for model in study.models]),
            *((f"runs of {c.name}", [f.name for f in c.first_stages]) for c in study.collections),
        ):
            if len(set(names)) < len(names):
                raise self._wrong(f"two {part} have one name ({', '.join(names)})", "a name for each")
        collections = {collection.name for collection in study.collections}
        for average in study.averages:
            for name in average.collections:
                if name not in collections:
                    raise self._wrong(f"the average {average.name} is over {name!r}", "names of collections")
        known = collections | {average.name for average in study.averages}
        models = {model.name for model in study.models}
        for published in study.published:
            if published.collection not in known or published.model not in models:
                where = f"{published.model} on {published.collection}"
                raise self._wrong(
                    f"a published figure is of {where}", "a model and a collection (or average) of the study"
                )
        try:
            cells_of(study)
        except InputError as error:
            raise self._wrong(error.problem, error.remedy) from error

    # --- parts ---

    def _collection(self, table: Mapping[str, Any]) -> Collection:
        known = {f.name for f in fields(Collection)} - {"first_stages"} | {"runs", "folder"}
        self._keys("a collection", table, known)
        runs = self._tables(table, "runs")
        for run in runs:
            self._keys("a run", run, {f.name for f in fields(FirstStage)})
        if not runs:
            raise self._wrong(f"the collection {table.get('name')} has no runs", "a table [[collections.runs]]")
        told = {key: value for key, value in table.items() if key not in ("runs", "folder")}
        if "dataset" in told:
            told["dataset"] = self._dataset(self._text("dataset", told["dataset"]))
        folder = table.get("folder")
        if folder is not None and any((self._data / self._text("folder", folder)).glob("corpus.jsonl*")):
            told["dataset"] = f"beir:{self._data / folder}"
        return self._made(Collection, {**told, "first_stages": tuple(self._made(FirstStage, run) for run in runs)})

    def _dataset(self, name: str) -> str:
        """`beir:DIR` and `bright:DIR/SUBSET` with a folder in the data folder."""
        scheme, colon, place = name.partition(":")
        if not colon or (scheme == "bright" and "/" not in place):
            return name
        return f"{scheme}:{self._data / Path(place).expanduser()}"

    def _model(self, table: Mapping[str, Any]) -> ModelPlan:
        self._keys("a model", table, {f.name for f in fields(ModelPlan)})
        settings = table.get("settings", {})
        if not isinstance(settings, dict):
            raise self._wrong("the settings of a model are no table", "[models.settings]")
        parsed = {axis: self._setting(axis, value) for axis, value in settings.items()}
        noise = {"simulate": self._noise(table["simulate"])} if "simulate" in table else {}
        return self._made(ModelPlan, {**table, **noise, "settings": parsed})

    def _noise(self, name: Any) -> str:
        """The name of a noise, or where its file is."""
        if self._text("simulate", name) in ("", *NOISES):
            return str(name)
        file = self._data / Path(name).expanduser()
        if not file.is_file():
            raise self._wrong(
                f"simulate is {name!r}", f"one of {', '.join(NOISES)}, or a file of rank-k journal fit-noise"
            )
        read_noise(file)  # a mistake in it is found now
        return str(file)

    def _grid(self, table: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        grid: dict[str, Sequence[Any]] = {}
        for axis, values in table.items():
            some = values if isinstance(values, list) else [values]
            grid[axis] = [self._setting(axis, value) for value in some]
        return grid

    def _published(self, table: Mapping[str, Any]) -> Published:
        self._keys("a published figure", table, {f.name for f in fields(Published)})
        return self._made(Published, table)

    def _average(self, table: Mapping[str, Any]) -> Average:
        self._keys("an average", table, {f.name for f in fields(Average)})
        return self._made(Average, table)

    # --- values ---

    def _made(self, kind: type[T], table: Mapping[str, Any]) -> T:
        values = {key: self._value(kind, key, value) for key, value in table.items()}
        try:
            return kind(**values)
        except TypeError as error:
            lacking = str(error).partition(": ")[2]
            raise self._wrong(
                f"a {kind.__name__} lacks {lacking} ({dict(table)})"[:200], "every one of these"
            ) from error

    def _value(self, kind: type[Any], key: str, value: Any) -> Any:
        if key in ("first_stages", "settings"):
            return value
        if key in _PATHS:
            return self._data / Path(self._text(key, value)).expanduser()
        if key == "collections":
            return tuple(self._text(key, name) for name in value)
        if key in ("value", "context_length"):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._wrong(f"{key} is {value!r}", "a number")
            return value
        return self._text(key, value)

    def _of_study(self, key: str, value: Any) -> Any:
        if key == "measures":
            if not isinstance(value, list) or not value:
                raise self._wrong(f"measures is {value!r}", 'a list such as ["nDCG@10"]')
            return tuple(self._text(key, name) for name in value)
        if key in ("by_difficulty", "by_round"):
            if not isinstance(value, bool):
                raise self._wrong(f"{key} is {value!r}", "true or false")
            return value
        return self._text(key, value)

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(f"{key} is {value!r}", "a text")
        return value

    def _setting(self, axis: str, value: Any) -> Any:
        try:
            return parse_setting(axis, value)
        except InputError as error:
            raise self._wrong(error.problem, error.remedy) from error

    def _tables(self, told: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
        tables = told.get(part, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._wrong(f"{part} is no list of tables", f"[[{part}]]")
        return [one for table in tables for one in _each(table)]

    def _keys(self, what: str, table: Mapping[str, Any], known: set[str]) -> None:
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise self._wrong(f"{what} has no {key!r}{meant}", f"some of {', '.join(sorted(known))}")

    def _wrong(self, found: str, expected: str) -> FormatError:
        return FormatError(self._file, 0, found, expected)


def _each(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The table, or one for each name in its list `each`, which stands in its texts for `{each}`."""
    rest = {key: value for key, value in table.items() if key != "each"}
    if "each" not in table:
        yield rest
        return
    for name in table["each"]:
        yield {key: _filled(value, str(name)) for key, value in rest.items()}


def _filled(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{each}", name)
    if isinstance(value, list):
        return [_filled(one, name) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, name) for key, one in value.items()}
    return value
