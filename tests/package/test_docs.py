"""What the documentation says of the program is what the program says of itself.

    python -m tests.package.test_docs --write

writes `docs/cli.md` anew from the commands' own help.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

from rank_k.cli import VERBS, main
from rank_k.cli.distill import STEPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"

PAGE_HEADER = """\
# The command line

Made from the commands' own help by `python -m tests.package.test_docs --write`.

Data goes to standard output, everything else to standard error. Exit codes: 0 done; 1 a check of `doctor` failed;
2 wrong options or data, or a model that does not respond; 3 done, but no window could be ranked or, with `--strict`,
not all of them; 130 interrupted: run the same command again to resume.
"""


def help_text(*arguments: str) -> str:
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as environment, contextlib.redirect_stdout(output):
        environment.setenv("COLUMNS", "100")
        with contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    return output.getvalue().rstrip()


COMMANDS = [
    command for verb in VERBS for command in [(verb,), *(("distill", step) for step in STEPS if verb == "distill")]
]


def render_page() -> str:
    parts = [PAGE_HEADER, f"```\n{help_text()}\n```\n"]
    parts += [f"## rank-k {' '.join(command)}\n\n```\n{help_text(*command)}\n```\n" for command in COMMANDS]
    return "\n".join(parts)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="newer Pythons lay out help a little differently")
def test_cli_page_equals_the_command_help() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run: python -m tests.package.test_docs --write"


def test_help_contains_no_local_paths() -> None:
    assert str(Path.home()) not in render_page()
    assert str(Path.cwd()) not in render_page()


def test_source_refers_to_existing_docs_and_benchmarks() -> None:
    """Pages, benchmarks and their like that help texts, messages and comments name."""
    references = {
        (name, path.relative_to(ROOT))
        for path in sorted((ROOT / "src").rglob("*.py"))
        for name in re.findall(r"\b(?:docs|benchmarks)/[\w/]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert references
    assert [(name, str(path)) for name, path in references if not (ROOT / name).is_file()] == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.package.test_docs --write")
    PAGE.write_text(render_page(), encoding="utf-8")
