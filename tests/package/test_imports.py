"""Who may import whom, and what: the plan of the rooms, held by reading the source of every module."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rank_k
from rank_k.extras import MODULES_OF_EXTRA

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rank_k"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TIERS = (
    ("records", "errors"),
    ("extras", "background", "cache", "once"),
    ("tokens", "context", "grammar", "loops", "analysers"),  # pure
    ("data", "first_stage", "prompt", "answer", "thinking", "strategies", "loop_guard"),
    ("models",),
    ("journal", "hits", "showing", "verdicts"),
    ("calls",),
    ("ask",),
    ("likelihood",),
    ("cascade",),
    ("engine",),
    ("reranker",),
    ("evaluation",),
    ("distil",),
    ("serve",),
    ("cluster",),
    ("integrations",),
    ("cli",),
)
"""The rooms (modules and folders of `rank_k`). One may import what stands in a tier above its own."""

EXCUSED = {
    ("llamacpp_server.py", "xllamacpp"): "a script that runs by itself",
    ("first_stage.py", "numpy"): "comes with bm25s, which was let in before",
}
"""(file, module) of imports that do not go through `rank_k.extras.load`."""

TIER_OF = {room: number for number, tier in enumerate(TIERS) for room in tier}
MODULES = sorted(SOURCE.rglob("*.py"))


class Import(NamedTuple):
    module: str
    line: int
    for_typing: bool
    in_function: bool


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Every import, wherever it stands. `from rank_k import x` counts as `rank_k.x`."""

    def visit(node: ast.AST, for_typing: bool, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, for_typing, in_function)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"rank_k.{alias.name}" if node.module == "rank_k" else str(node.module)
                yield Import(name, node.lineno, for_typing, in_function)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True, in_function)
            for child in node.orelse:
                yield from visit(child, for_typing, in_function)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for part in ast.iter_child_nodes(node):
                yield from visit(part, for_typing, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


def test_every_room_has_a_place_in_the_plan() -> None:
    unplaced = {room_of(path) for path in MODULES} - TIER_OF.keys() - {"__init__"}
    assert not unplaced, f"say in TIERS where {unplaced} belong: what may they import, and who them?"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_up_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for found in imports_of(path):
        top, _, rest = found.module.partition(".")
        other = rest.partition(".")[0]
        if top != "rank_k" or other == room:
            continue
        where = f"{path.relative_to(ROOT)}:{found.line}: {room} imports {found.module}"
        if other in ("", "__version__"):  # the package itself, whose names lead everywhere
            assert TIER_OF[room] > TIER_OF["reranker"], where
        else:
            assert TIER_OF[other] < TIER_OF[room], where


def test_records_and_errors_know_nobody() -> None:
    for room in TIERS[0]:
        assert [found for found in imports_of(SOURCE / f"{room}.py") if found.module.startswith("rank_k")] == []


def test_the_package_itself_imports_nothing_until_asked() -> None:
    for found in imports_of(SOURCE / "__init__.py"):
        assert found.for_typing or found.module in ("__future__", "typing", "importlib"), found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_is_not_in_every_python_is_imported_where_it_is_used(path: Path) -> None:
    """At a module's head stand the standard library and our own; an extra's modules come through its door."""
    brought = {module for modules in MODULES_OF_EXTRA.values() for module in modules}
    for found in imports_of(path):
        top = found.module.partition(".")[0]
        if found.for_typing or top == "rank_k" or top in sys.stdlib_module_names:
            continue
        where = f"{path.relative_to(ROOT)}:{found.line}: {found.module}"
        assert found.in_function, f"{where} at the head of a module"
        if (path.name, top) not in EXCUSED:
            assert top not in brought, f"{where}: use rank_k.extras.load"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if room_of(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "pprint", "sys.stdout.write", "sys.stderr.write", "warnings.warn"), (
                f"{path.relative_to(ROOT)}:{node.lineno}: {called}"
            )


# --- public names ----------------------------------------------------------------------------------


def test_public_names_are_listed_in_order_and_lead_somewhere() -> None:
    assert rank_k.__all__ == sorted(rank_k.__all__)
    assert set(rank_k.__all__) == set(rank_k._HOMES)
    for name in rank_k.__all__:
        assert getattr(rank_k, name) is getattr(importlib.import_module(rank_k._HOMES[name]), name)
    assert set(rank_k.__all__) <= set(dir(rank_k))


def test_public_names_are_the_same_to_a_type_checker() -> None:
    declared = {
        alias.name: node.module
        for block in ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == rank_k._HOMES


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        _ = rank_k.Rerankr


# --- what the project says of itself ---------------------------------------------------------------


def test_the_version_is_said_once_and_the_same() -> None:
    assert PROJECT["version"] == rank_k.__version__


def normalised(requirement: str) -> str:
    """The name of the distribution that a requirement asks for, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]).lower()


EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


APART = {"train", "haystack", "langchain", "llama-index", "mteb", "pyterrier"}
"""Extras that nobody gets who did not ask for them: gigabytes for training, and whole frameworks."""


def test_the_door_knows_every_extra() -> None:
    assert set(MODULES_OF_EXTRA) == set(EXTRAS) - {"all", "dev"}
    (everything,) = EXTRAS["all"]
    assert set(everything.removeprefix("rank-k[").removesuffix("]").split(",")) == set(MODULES_OF_EXTRA) - APART
    assert "rank-k[all]" in EXTRAS["dev"]


@pytest.mark.parametrize("extra", MODULES_OF_EXTRA)
def test_an_extra_brings_the_modules_that_the_door_lets_in(extra: str) -> None:
    brought_by = packages_distributions()
    if extra in APART and ("torch" if extra == "train" else MODULES_OF_EXTRA[extra][0]) not in brought_by:
        pytest.skip(f"pip install 'rank-k[{extra}]'")
    wanted = {normalised(requirement) for requirement in EXTRAS[extra]}
    met = set()
    for module in MODULES_OF_EXTRA[extra]:
        assert module in brought_by, f"{module} is not installed: pip install -e '.[dev]'"
        bringing = {normalised(name) for name in brought_by[module]} & wanted
        assert bringing, f"{module} comes from {brought_by[module]}, which [{extra}] does not ask for"
        met |= bringing
    assert met == wanted, f"[{extra}] asks for {wanted - met}, of which the door knows no module"


def test_what_is_let_in_belongs_to_an_extra() -> None:
    known = {module for modules in MODULES_OF_EXTRA.values() for module in modules}
    asked = {
        node.args[0].value.partition(".")[0]
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("load", "extras.load")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
    assert asked
    assert asked <= known
