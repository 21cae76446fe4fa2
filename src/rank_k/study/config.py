"""Read studies from TOML files of the package or of users. docs/how-to/study.md describes the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k.data.toml_tables import TableReader, read_toml
from rank_k.errors import InputError
from rank_k.models.simulated import PRESETS as NOISE_PRESETS
from rank_k.simulation.noise_file import read_noise
from rank_k.study.grid import Study, expand_cells

_REQUIRED_PARTS = ("collections", "models", "grids")


def config_file(name: Path) -> Path:
    """Return the file of a study: the TOML file called `name` that comes with the package, or otherwise `name` itself.

    Raises:
        InputError: If the name is neither a shipped study nor an existing TOML file.
    """
    shipped_files = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
    if name.suffix == ".toml" or name.exists():
        return name
    if str(name) not in shipped_files:
        raise InputError(f"there is no study {str(name)!r}", f"give a TOML file, or one of {', '.join(shipped_files)}")
    return shipped_files[str(name)]


def read_study(file: Path, data: Path) -> Study:
    """Return the study in a TOML file.

    Args:
        file: The file.
        data: The folder that relative paths in the file start from. The existence of the data is not checked.

    Raises:
        InputError: If the file cannot be read.
        FormatError: If it does not describe a study.
    """
    reader = TableReader(file, data, keys={"first_stages": "runs"})
    document: dict[str, Any] = {"title": file.stem, **read_toml(file)}
    for part in (*_REQUIRED_PARTS, "published", "averages"):
        document[part] = _read_tables(reader, document, part)
    for collection in document["collections"]:
        _prepare_collection(reader, collection)
    for model in document["models"]:
        if isinstance(noise := model.get("simulate"), str):
            model["simulate"] = _locate_noise(reader, noise)
    document["grids"] = [
        {axis: values if isinstance(values, list) else [values] for axis, values in grid.items()}
        for grid in document["grids"]
    ]
    study = reader.read(Study, document)
    _check_study(reader, study)
    return study


def _read_tables(reader: TableReader, document: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """Return the tables `[[part]]`. A table with a list `each` is expanded into one table for each name in the list."""
    tables = document.get(part, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise reader.error(f"{part} is not a list of tables", f"[[{part}]]")
    expanded = []
    for table in tables:
        names = table.pop("each", None)
        if not isinstance(names, list | None):
            raise reader.error(f"each = {names!r} in [[{part}]]", "a list of names")
        expanded += [table] if names is None else [_substitute_name(table, str(name)) for name in names]
    return expanded


def _substitute_name(value: Any, name: str) -> Any:
    """Return `value` with `{each}` replaced by `name` in all strings."""
    if isinstance(value, str):
        return value.replace("{each}", name)
    if isinstance(value, list):
        return [_substitute_name(item, name) for item in value]
    if isinstance(value, dict):
        return {key: _substitute_name(item, name) for key, item in value.items()}
    return value


def _prepare_collection(reader: TableReader, table: dict[str, Any]) -> None:
    """Expand the runs of a collection, and resolve its paths in the data folder."""
    table["runs"] = _read_tables(reader, table, "runs")
    if not table["runs"]:
        raise reader.error(f"the collection {table.get('name')} has no runs", "a table [[collections.runs]]")
    if isinstance(dataset := table.get("dataset"), str):
        scheme, colon, location = dataset.partition(":")
        if colon and (scheme != "bright" or "/" in location):  # beir:DIR or bright:DIR/SUBSET
            table["dataset"] = f"{scheme}:{reader.folder / Path(location).expanduser()}"
    folder = table.pop("folder", None)
    if not isinstance(folder, str | None):
        raise reader.error(f"folder = {folder!r} in [[collections]]", "text")
    if folder is not None and any((reader.folder / folder).glob("corpus.jsonl*")):
        table["dataset"] = f"beir:{reader.folder / folder}"


def _locate_noise(reader: TableReader, name: str) -> str:
    """Return the name of a noise preset, or the path of a noise file."""
    if name in ("", *NOISE_PRESETS):
        return name
    file = reader.folder / Path(name).expanduser()
    if not file.is_file():
        raise reader.error(
            f"simulate = {name!r}", f"one of {', '.join(NOISE_PRESETS)}, or a file of rank-k journal fit-noise"
        )
    read_noise(file)  # so that mistakes in the file are reported now
    return str(file)


def _check_study(reader: TableReader, study: Study) -> None:
    """Raise `FormatError` if a part is empty, a name is unknown or used twice, or the cells are invalid."""
    for part in _REQUIRED_PARTS:
        if not getattr(study, part):
            raise reader.error(f"the study has no {part}", f"a table [[{part}]]")
    if not study.measures:
        raise reader.error("measures = []", 'a list such as ["nDCG@10"]')
    collections, models, averages = (
        [part.name for part in parts] for parts in (study.collections, study.models, study.averages)
    )
    runs = {f"runs of {c.name}": [run.name for run in c.first_stages] for c in study.collections}
    for part, names in {"collections": collections, "models": models, **runs}.items():
        if len(set(names)) < len(names):
            raise reader.error(f"two {part} have the same name ({', '.join(names)})", "different names")
    for average in study.averages:
        for name in set(average.collections) - set(collections):
            raise reader.error(f"the average {average.name} is over {name!r}", "names of collections of the study")
    for published in study.published:
        if published.collection not in (*collections, *averages) or published.model not in models:
            raise reader.error(
                f"a published result is for {published.model} on {published.collection}",
                "a model and a collection (or average) of the study",
            )
    try:
        expand_cells(study)
    except InputError as error:
        raise reader.error(error.problem, error.remedy) from error
