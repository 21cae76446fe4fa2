"""Read TOML files into frozen dataclasses. Error messages contain the key of the invalid value."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from rank_k.errors import FormatError, InputError

T = TypeVar("T")

_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        InputError: If the file cannot be read.
        FormatError: If it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give a TOML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", "give a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise FormatError(path, 0, str(error), "TOML") from error


@dataclass(frozen=True, slots=True)
class TableReader:
    """Converts tables of one file into dataclasses.

    Supported types of fields are text, numbers, booleans, paths, `Literal`, `Any`, dataclasses, and lists, tuples,
    mappings and unions of these. An integer is accepted where a float is expected. A field of `rank_k.options`
    also checks its own range.

    Args:
        path: The file, for error messages.
        folder: The folder that relative paths in the file start from.
        keys: Maps the name of a field to its key in the file, for fields whose key differs from their name.
    """

    path: Path
    folder: Path = Path()
    keys: Mapping[str, str] = field(default_factory=dict)

    def read(self, kind: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
        """Return `table` as an instance of the dataclass `kind`.

        Args:
            kind: A dataclass. A field without a default is a required key.
            table: The keys and values.
            prefix: The path of the table in the file (`training.`), for error messages.

        Raises:
            FormatError: If a key is unknown or missing, or if a value has the wrong type.
        """
        specs = fields(cast(Any, kind))
        names = {self.keys.get(spec.name, spec.name): spec.name for spec in specs}
        types = get_type_hints(kind)
        for key in table:
            if key not in names:
                matches = get_close_matches(key, names, n=1)
                suggestion = f" (did you mean {matches[0]}?)" if matches else ""
                raise self.error(f"unknown key {prefix}{key}{suggestion}", f"one of {', '.join(names)}")
        required = {spec.name for spec in specs if spec.default is MISSING and spec.default_factory is MISSING}
        for key, name in names.items():
            if name in required and key not in table:
                raise self.error(f"{prefix}{key} is missing", _describe(types[name]))
        values = {names[key]: self._convert(types[names[key]], value, prefix + key) for key, value in table.items()}
        option_kinds = {spec.name: spec.metadata["kind"] for spec in specs if "kind" in spec.metadata}
        for key, name in names.items():
            if name in values and name in option_kinds:
                try:
                    values[name] = option_kinds[name].parse(values[name])
                except (InputError, LookupError, ValueError) as error:
                    raise self.error(f"{prefix}{key} = {table[key]!r}", option_kinds[name].expected) from error
        return kind(**values)

    def error(self, problem: str, expected: str) -> FormatError:
        """Return the error for a problem in the file, with what is expected instead."""
        return FormatError(self.path, 0, problem, expected)

    def _convert(self, expected: Any, value: Any, key: str) -> Any:
        """Return `value` as the type `expected`. Raises `FormatError` if it has a different type."""
        kind, parts = get_origin(expected), get_args(expected)
        if kind in (Union, UnionType):
            types = [part for part in parts if part is not NoneType]
            if len(types) == 1:
                return self._convert(types[0], value, key)
            for part in types:
                with suppress(FormatError):
                    return self._convert(part, value, key)
        if kind in (tuple, list, Sequence) and isinstance(value, list):
            items = [self._convert(parts[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
            return tuple(items) if kind is tuple else items
        if kind in (dict, Mapping) and isinstance(value, dict):
            return {name: self._convert(parts[1], item, f"{key}.{name}") for name, item in value.items()}
        if isinstance(expected, type) and is_dataclass(expected) and isinstance(value, dict):
            return self.read(expected, value, f"{key}.")
        if expected is Path and isinstance(value, str):
            return self.folder / Path(value).expanduser()
        if expected is float and type(value) is int:
            return float(value)
        if expected is Any or type(value) is expected or (kind is Literal and value in parts):
            return value
        raise self.error(f"{key} = {value!r}", _describe(expected))


def _describe(expected: Any) -> str:
    """Return the name of a type for error messages."""
    kind, parts = get_origin(expected), get_args(expected)
    if kind in (Union, UnionType):
        return " or ".join(_describe(part) for part in parts if part is not NoneType)
    if kind is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if kind in (tuple, list, Sequence):
        return "a list"
    return _TYPE_NAMES.get(expected, "a table")
