"""No module imports itself in a circle: imports inside functions and for type checking count too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SOURCE = Path(__file__).parents[2] / "src"


def import_graph(source: Path, package: str) -> dict[str, set[str]]:
    """Return the modules of `package` that each of its modules imports anywhere in its source."""
    paths = {module_name(path, source): path for path in (source / package).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    imported.add(name if name in paths else str(node.module))
        graph[module] = imported & paths.keys()
    return graph


def module_name(path: Path, source: Path) -> str:
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each is imported by the next one, the first one again at the end; empty if none are."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def test_modules_import_each_other_without_cycles() -> None:
    graph = import_graph(SOURCE, "rank_k")
    assert "rank_k.data.trec" in graph["rank_k.cli.retrieve"], "an import inside a function"
    assert find_cycle(graph) == []


def test_find_cycle_names_the_modules_of_a_cycle(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import json\nfrom p import b\n")
    (package / "b.py").write_text("def f():\n    from p.c import g\n")
    (package / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import h\n")
    assert set(find_cycle(import_graph(tmp_path, "p"))) == {"p.a", "p.b", "p.c"}
    (package / "c.py").write_text("")
    assert find_cycle(import_graph(tmp_path, "p")) == []
