"""The documentation agrees with the code: commands, server types, environment variables, links."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

import rank_k
from rank_k.cli import VERBS, main
from rank_k.cli.distill import STEPS
from rank_k.models.server_types import SERVER_TYPES
from tests.paths import ROOT
from tests.support.doc_blocks import pages

REFERENCE = ROOT / "docs" / "reference"
COMMANDS = [*VERBS, *(f"distill {step}" for step in STEPS)]

SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_reference_page(command: str) -> None:
    page = command.replace(" ", "-")
    text = (REFERENCE / "commands" / f"{page}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# rank-k {command}\n")
    assert f"```{{command}} {command}\n```" in text
    index = (REFERENCE / "commands" / ("distill.md" if " " in command else "index.md")).read_text(encoding="utf-8")
    assert f"\n{page}\n" in index


def test_no_reference_page_is_about_a_removed_command() -> None:
    names = {path.stem for path in (REFERENCE / "commands").glob("*.md")} - {"index"}
    assert names == {command.replace(" ", "-") for command in COMMANDS}


def test_servers_page_lists_the_server_types() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (REFERENCE / "servers.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(SERVER_TYPES)


def test_environment_page_lists_the_variables() -> None:
    page = (REFERENCE / "environment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    read_by_code = {name for text in SOURCES.values() for name in re.findall(r'"(RANK_K_[A-Z_]+|\w+_API_KEY)"', text)}
    assert read_by_code <= documented
    all_code = "\n".join(SOURCES.values())
    assert [name for name in documented if f'"{name}"' not in all_code] == []


def test_errors_page_lists_the_exit_statuses() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "3", "130"]


def test_help_contains_no_local_paths() -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for command in COMMANDS:
            with contextlib.suppress(SystemExit):
                main([*command.split(), "--help"])
    assert "usage: rank-k rerank" in output.getvalue()
    assert str(Path.home()) not in output.getvalue()
    assert str(Path.cwd()) not in output.getvalue()


def test_source_refers_to_existing_docs_and_benchmarks() -> None:
    """Pages and benchmarks that help texts, messages and comments name."""
    references = {
        (name, path.relative_to(ROOT))
        for path, text in SOURCES.items()
        for name in re.findall(r"\b(?:docs|benchmarks)/[\w/-]+\.\w+", text)
    }
    assert references
    assert [(name, str(path)) for name, path in references if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", pages(["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs"]))
def test_links_lead_to_existing_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if not re.match(r"\w+:", target)]
    assert [target for target in local if not ((ROOT / page).parent / target).is_file()] == []


def test_contributing_names_existing_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:src|tests|docs|strategies|data|cli)/[\w/.-]+\.\w+)`", text)
    assert len(names) > 15
    roots = (ROOT, ROOT / "src" / "rank_k")
    missing = [name for name in names if "NAME" not in name and not any((root / name).is_file() for root in roots)]
    assert missing == []


def test_citation_has_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rank_k.__version__
    assert citation["preferred-citation"]["url"].endswith("/2505.14432")


def test_workflow_calls_targets_of_make() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    called = [step.removeprefix("make ") for step in steps if step.startswith("make ")]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert called == ["lint", "docs", "test", "test-slow"]
    assert set(called) <= set(targets)
