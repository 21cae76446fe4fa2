"""Check that all views have the option `top_k` of a changed `options.py`, in the folder that is the argument.

A program of its own, run by `test_options.py`: the changed module must be loaded before all others. It prints the name
of each view that has the option.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

VIEWS: list[str] = []
"""The views that have the option."""


def load_options(folder: Path) -> None:
    """Load the changed module in the place of `rank_k.options`."""
    spec = importlib.util.spec_from_file_location("rank_k.options", folder / "options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rank_k.options"] = module
    spec.loader.exec_module(module)


def check_flags() -> None:
    from rank_k.cli import main

    for command in (["rerank"], ["study"], ["serve"], ["mcp"], ["distill", "trace"]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*command, "--help"])
        assert "--top-k K" in out.getvalue(), command
    VIEWS.append("flags")


def check_reranker() -> None:
    from rank_k.models.mock import ScriptedModel
    from rank_k.reranker import Reranker
    from tests.package.reranker_stub import stub_text

    with Reranker(ScriptedModel(["[1]"]), top_k=5) as reranker:  # type: ignore[call-arg]
        assert reranker.options.sources["top_k"] == "user"
        settings = reranker.options.settings()
    VIEWS.append("keyword")
    assert "    top_k: int | None" in stub_text()
    VIEWS.append("stub")
    assert settings["top_k"] == 5


def check_study(folder: Path) -> None:
    from rank_k.study.config import read_study
    from rank_k.study.grid import Cell, expand_cells, parse_setting

    assert parse_setting("top_k", "5") == 5
    cell = Cell("c", "f", "m", top_k=5)  # type: ignore[call-arg]
    assert cell.name.endswith("-k5")
    VIEWS.append("study")
    (folder / "study.toml").write_text(
        """
        title = "t"
        [[grids]]
        top_k = [5, 50]
        [[collections]]
        name = "c"
        dataset = "python-docs"
        [[collections.runs]]
        name = "bm25"
        [[models]]
        name = "m"
        """,
        encoding="utf-8",
    )
    cells = expand_cells(read_study(folder / "study.toml", folder))
    assert [cell.name for cell in cells] == ["c.bm25.m.sliding-full-k5", "c.bm25.m.sliding-full-k50"]
    VIEWS.append("toml")


def check_student(folder: Path) -> None:
    from rank_k.distill.recipes import RECIPES_FOLDER, read_recipe
    from rank_k.models.student import find_student, write_student
    from rank_k.options import STUDENT_OPTIONS, StudentOptions

    gguf = folder / "s.gguf"
    gguf.write_bytes(b"GGUF")
    prompt = dict.fromkeys(("before", "passage", "between", "after", "system"), "")
    defaults = {name: getattr(StudentOptions(), name) for name in STUDENT_OPTIONS}
    write_student(gguf, "s", prompt, defaults | {"top_k": 7}, None)
    student = find_student(gguf)
    assert student is not None
    assert student.asking["top_k"] == 7
    VIEWS.append("student")
    recipe = next(iter(sorted(RECIPES_FOLDER.glob("*.toml")))).read_text(encoding="utf-8")
    assert "[asking]" in recipe
    (folder / "r.toml").write_text(recipe.replace("[asking]", "[asking]\ntop_k = 9", 1), encoding="utf-8")
    assert read_recipe(str(folder / "r.toml")).asking.top_k == 9  # type: ignore[attr-defined]
    VIEWS.append("recipe")


def check_journal() -> None:
    from rank_k.models.mock import ScriptedModel
    from rank_k.reranker import Reranker

    with Reranker(ScriptedModel(["[1] > [2]"]), top_k=5) as reranker:  # type: ignore[call-arg]
        reranker.rank("q", ["a", "b"])
        [run] = reranker.journal.runs()
        assert run.settings["top_k"] == 5
    VIEWS.append("journal")


def check_server() -> None:
    from rank_k.server.config import Limits
    from rank_k.server.openapi import build_openapi
    from rank_k.server.schema import tool_schemas

    document = json.dumps(build_openapi(Limits(), needs_key=False))
    assert '"top_k"' in document
    VIEWS.append("http")
    assert "top_k" in tool_schemas(Limits())[0]["properties"]
    VIEWS.append("mcp")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    load_options(folder)
    check_flags()
    check_reranker()
    check_study(folder)
    check_student(folder)
    check_journal()
    check_server()
    sys.stdout.write(" ".join(VIEWS))
