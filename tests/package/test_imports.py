"""Who may import whom, and what: the plan of the rooms, held by reading the source of every module."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rank_k
from rank_k.optional_deps import MODULES_OF_EXTRA

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rank_k"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TIERS = (
    ("types", "errors"),
    ("optional_deps", "loop_thread", "data/cache_directory", "models/single_flight"),
    (
        "data/token_estimate",
        "window/grammar",
        "window/repetition",
        "window/sanitize",
        "retrieval/analyzers",
    ),
    (
        "data",
        "retrieval",
        "window/prompt",
        "window/parsing",
        "window/reasoning",
        "window/token_allocation",
        "strategies",
    ),
    ("models",),
    ("journal", "window/prompt_builder", "window/labels"),
    ("models/cached",),
    ("window/listwise",),
    ("window/query_likelihood",),
    ("window/combined",),
    ("engine",),
    ("reranker",),
    ("evaluation", "simulation", "study", "reports"),
    ("distill",),
    ("server",),
    ("integrations",),
    ("cli",),
)
"""Modules and packages of `rank_k`; the longest matching name counts. Each may import those in the lines above it."""

EVALUATION = {"evaluation", "simulation", "study", "reports"}
"""Packages that may also import each other."""

EXCUSED = {
    ("llama_server.py", "xllamacpp"): "a script that runs in a process of its own",
    ("bm25.py", "numpy"): "comes with bm25s, which is checked before",
}
"""(file, module) of imports that do not go through `rank_k.optional_deps.load`."""

TIER_OF = {unit: number for number, tier in enumerate(TIERS) for unit in tier}
MODULES = sorted(SOURCE.rglob("*.py"))


class Import(NamedTuple):
    module: str
    line: int
    for_typing: bool
    in_function: bool


def unit_of(parts: Sequence[str]) -> str | None:
    """Return the entry of `TIERS` that a module belongs to, by the parts of its name below `rank_k`."""
    return next((name for size in (3, 2, 1) if (name := "/".join(parts[:size])) in TIER_OF), None)


def parts_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(SOURCE).with_suffix("").parts


def imports_of(path: Path) -> Iterator[Import]:
    """Every import, wherever it stands. `from rank_k import x` counts as `rank_k.x`."""

    def visit(node: ast.AST, for_typing: bool, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, for_typing, in_function)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = str(node.module).startswith("rank_k") and unit_of(name.split(".")[1:]) is not None
                yield Import(name if is_module else str(node.module), node.lineno, for_typing, in_function)
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


def test_tiers_cover_every_module() -> None:
    modules = [path for path in MODULES if not is_package_file(path) and path != SOURCE / "__init__.py"]
    assert [str(path.relative_to(SOURCE)) for path in modules if unit_of(parts_of(path)) is None] == []
    assert [str(path) for path in modules if not (path.parent / "__init__.py").is_file()] == []


def is_package_file(path: Path) -> bool:
    """Whether `path` is an `__init__.py` that only describes its package."""
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_import_only_what_is_above_them(path: Path) -> None:
    unit = unit_of(parts_of(path))
    if path == SOURCE / "__init__.py" or is_package_file(path):
        return
    assert unit is not None
    for imported in imports_of(path):
        top, *parts = imported.module.split(".")
        if top != "rank_k":
            continue
        where = f"{path.relative_to(ROOT)}:{imported.line}: {unit} imports {imported.module}"
        if parts in ([], ["__version__"]):  # the package itself, whose names lead everywhere
            assert TIER_OF[unit] > TIER_OF["reranker"], where
            continue
        other = unit_of(parts)
        assert other is not None, where
        if other != unit and not {unit, other} <= EVALUATION:
            assert TIER_OF[other] < TIER_OF[unit], where


def test_types_and_errors_import_nothing_of_the_package() -> None:
    for unit in TIERS[0]:
        assert [each for each in imports_of(SOURCE / f"{unit}.py") if each.module.startswith("rank_k")] == []


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
            assert top not in brought, f"{where}: use rank_k.optional_deps.load"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if parts_of(path)[0] == "cli":
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


def normalized(requirement: str) -> str:
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
    wanted = {normalized(requirement) for requirement in EXTRAS[extra]}
    met = set()
    for module in MODULES_OF_EXTRA[extra]:
        assert module in brought_by, f"{module} is not installed: pip install -e '.[dev]'"
        bringing = {normalized(name) for name in brought_by[module]} & wanted
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
        and ast.unparse(node.func) in ("load", "optional_deps.load")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
    assert asked
    assert asked <= known
