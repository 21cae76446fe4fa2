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

HEAD = """\
# The command line

Made from the commands' own help by `python -m tests.package.test_docs --write`.

Data goes to standard output, everything else to standard error. Exit codes: 0 done; 1 what was looked at is not as
it should be (`doctor`); 2 a mistake in options or data, or a model that cannot be had; 3 done, but windows were left
in input order (`--strict`); 130 interrupted, and the same command goes on from there.
"""


def help_of(*arguments: str) -> str:
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as environment, contextlib.redirect_stdout(told):
        environment.setenv("COLUMNS", "100")
        with contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    return told.getvalue().rstrip()


COMMANDS = [
    command for verb in VERBS for command in [(verb,), *(("distill", step) for step in STEPS if verb == "distill")]
]


def page() -> str:
    parts = [HEAD, f"```\n{help_of()}\n```\n"]
    parts += [f"## rank-k {' '.join(command)}\n\n```\n{help_of(*command)}\n```\n" for command in COMMANDS]
    return "\n".join(parts)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="newer Pythons lay out help a little differently")
def test_the_page_about_the_command_line_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.package.test_docs --write"


def test_help_says_nothing_of_the_machine_it_is_shown_on() -> None:
    assert str(Path.home()) not in page()
    assert str(Path.cwd()) not in page()


def test_what_the_code_refers_to_is_there() -> None:
    """Pages, benchmarks and their like that help texts, messages and comments name."""
    named = {
        (name, path.relative_to(ROOT))
        for path in sorted((ROOT / "src").rglob("*.py"))
        for name in re.findall(r"\b(?:docs|benchmarks)/[\w/]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [(name, str(path)) for name, path in named if not (ROOT / name).is_file()] == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.package.test_docs --write")
    PAGE.write_text(page(), encoding="utf-8")
