"""Which modules may import which: the import rule of the architecture, checked in the source of every module."""

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
from rank_k.optional_deps import BACKPORTS, MODULES_OF_EXTRA

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rank_k"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TIERS = (
    ("types", "errors"),
    ("optional_deps", "loop_thread", "option_values"),
    ("options",),
    ("data",),
    ("retrieval",),
    ("strategies",),
    ("journal",),
    ("models",),
    ("window",),
    ("engine",),
    ("build",),
    ("document_ranker",),
    ("reranker",),
    ("run_job",),
    ("scale",),
    ("evaluation",),
    ("simulation",),
    ("reports",),
    ("study",),
    ("distill",),
    ("server",),
    ("integrations", "cli"),
)
"""Modules and packages of `rank_k`, in the order in which data flows. Each may import those in the lines above it."""

ALLOWED_IMPORTS = {
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
    return parts[0] if parts and parts[0] in TIER_OF else None


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
def test_modules_import_only_higher_tiers(path: Path) -> None:
    unit = unit_of(parts_of(path))
    if path == SOURCE / "__init__.py" or is_package_file(path):
        return
    assert unit is not None
    for imported in imports_of(path):
        top, *parts = imported.module.split(".")
        if top != "rank_k":
            continue
        location = f"{path.relative_to(ROOT)}:{imported.line}: {unit} imports {imported.module}"
        if parts in ([], ["__version__"]):  # the package itself, whose names lead everywhere
            assert TIER_OF[unit] > TIER_OF["reranker"], location
            continue
        if parts[0] == "reranker_arguments":  # a stub for type checkers
            continue
        other = unit_of(parts)
        assert other is not None, location
        assert other == unit or TIER_OF[other] < TIER_OF[unit], location


def test_types_and_errors_import_no_other_module() -> None:
    for unit in TIERS[0]:
        assert [
            imported for imported in imports_of(SOURCE / f"{unit}.py") if imported.module.startswith("rank_k")
        ] == []


def test_package_imports_lazily() -> None:
    for imported in imports_of(SOURCE / "__init__.py"):
        assert imported.for_typing or imported.module in ("__future__", "typing", "importlib"), imported


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_third_party_modules_are_imported_inside_functions(path: Path) -> None:
    """At a module's head stand the standard library and our own; an extra's modules come through its door."""
    extra_modules = {module.partition(".")[0] for modules in MODULES_OF_EXTRA.values() for module in modules}
    for imported in imports_of(path):
        top = imported.module.partition(".")[0]
        if imported.for_typing or top == "rank_k" or top in sys.stdlib_module_names:
            continue
        location = f"{path.relative_to(ROOT)}:{imported.line}: {imported.module}"
        if path.parent.name == "integrations":  # imports its framework, once `load` has found it
            assert re.search(r'^load\("', path.read_text(encoding="utf-8"), re.MULTILINE), location
            continue
        assert imported.in_function, f"{location} at the head of a module"
        if (path.name, top) not in ALLOWED_IMPORTS:
            assert top not in extra_modules, f"{location}: use rank_k.optional_deps.load"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_cli_prints(path: Path) -> None:
    if parts_of(path)[0] == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "pprint", "sys.stdout.write", "sys.stderr.write", "warnings.warn"), (
                f"{path.relative_to(ROOT)}:{node.lineno}: {called}"
            )


# --- public names ----------------------------------------------------------------------------------


def test_public_names_are_sorted_and_importable() -> None:
    assert rank_k.__all__ == sorted(rank_k.__all__)
    assert set(rank_k.__all__) == set(rank_k._MODULE_OF_NAME)
    for name in rank_k.__all__:
        assert getattr(rank_k, name) is getattr(importlib.import_module(rank_k._MODULE_OF_NAME[name]), name)
    assert set(rank_k.__all__) <= set(dir(rank_k))


def test_public_names_equal_the_typed_imports() -> None:
    declared = {
        alias.name: node.module
        for block in ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == rank_k._MODULE_OF_NAME


def test_package_getattr_rejects_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        _ = rank_k.Rerankr


# --- what the project says of itself ---------------------------------------------------------------


def test_version_equals_the_project_metadata() -> None:
    assert PROJECT["version"] == rank_k.__version__


def distribution_name(requirement: str) -> str:
    """The name of the distribution that a requirement asks for, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]).lower()


EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


EXTRAS_NOT_IN_ALL = {"train", "haystack", "langchain", "llama-index", "mteb", "pyterrier", "ray"}
"""Extras that nobody gets who did not ask for them: gigabytes for training, and whole frameworks."""


def test_modules_of_extra_lists_every_extra() -> None:
    assert set(MODULES_OF_EXTRA) == set(EXTRAS) - {
        "all",
        "dev",
        "docs",
    }  # these install nothing that the package imports
    (everything,) = EXTRAS["all"]
    assert (
        set(everything.removeprefix("rank-k[").removesuffix("]").split(","))
        == set(MODULES_OF_EXTRA) - EXTRAS_NOT_IN_ALL
    )
    assert "rank-k[all,docs]" in EXTRAS["dev"]


@pytest.mark.parametrize("extra", MODULES_OF_EXTRA)
def test_extra_installs_its_modules(extra: str) -> None:
    distributions = packages_distributions()
    if (
        extra in EXTRAS_NOT_IN_ALL
        and {"train": "torch", "ray": "ray"}.get(extra, MODULES_OF_EXTRA[extra][0]) not in distributions
    ):
        pytest.skip(f"pip install 'rank-k[{extra}]'")
    required = {distribution_name(requirement) for requirement in EXTRAS[extra]}
    if not BACKPORTS:
        required.discard("backports-zstd")
    satisfied = set()
    for module in MODULES_OF_EXTRA[extra]:
        top = module.partition(".")[0]
        assert top in distributions, f"{module} is not installed: pip install -e '.[dev]'"
        providers = {distribution_name(name) for name in distributions[top]} & required
        assert providers, f"{module} comes from {distributions[top]}, which [{extra}] does not ask for"
        satisfied |= providers
    assert satisfied == required, f"[{extra}] asks for {required - satisfied}, of which the door knows no module"


def test_optional_imports_belong_to_an_extra() -> None:
    extra_modules = {module.partition(".")[0] for modules in MODULES_OF_EXTRA.values() for module in modules}
    loaded_modules = {
        node.args[0].value.partition(".")[0]
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("load", "optional_deps.load")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
    assert loaded_modules
    assert loaded_modules <= extra_modules
