"""Tables as plain text, and in a terminal."""

from __future__ import annotations

import re
import sys

import pytest

from rank_k.cli.render.tables import Table, format_table, print_tables
from tests.cli.helpers import Terminal

COLUMNS = ("run", "measure", "calls", "command")
ROWS = (("bm25", "nDCG@10", 1200, ""), ("reranked [bold]", "P@5", "~7", "rank-k journal"))


def print_in_terminal(monkeypatch: pytest.MonkeyPatch, table: Table, width: int, **environment: str) -> str:
    """Return what `print_tables` prints in a terminal of `width` columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(width), **environment}.items():
        monkeypatch.setenv(name, value)
    output = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        print_tables([table])
    return output.getvalue()


def test_format_table_aligns_columns_by_their_letters() -> None:
    assert format_table(Table(COLUMNS, ROWS, "llrl", title="two runs", notes=["a note"])) == [
        "two runs",
        "run              measure    calls  command",
        "bm25             nDCG@10     1200",
        "reranked [bold]  P@5           ~7  rank-k journal",
        "a note",
    ]


def test_format_table_uses_the_width_of_characters() -> None:
    assert format_table(Table(("cell", "p"), [("日本", 1), ("ab", 2)])) == [
        "cell        p",
        "日本        1",
        "ab          2",
    ]


def test_format_table_shows_columns_without_rows() -> None:
    assert format_table(Table(("run", "p"), [])) == ["run        p"]


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_piped_tables_are_never_styled_or_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_tables([Table(("run", "p"), [("x" * 300, 1)]), "a paragraph"])
    header, row, blank, paragraph = capsys.readouterr().out.splitlines()
    assert header == "run" + " " * 305 + "p"
    assert row == "x" * 300 + " " * 8 + "1"
    assert (blank, paragraph) == ("", "a paragraph")


def test_tables_in_a_terminal_wrap_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(("run", "95 % interval", "p"), [("word " * 12, "-0.1 to 0.3", 0.25)], title="title [red]")
    output = print_in_terminal(monkeypatch, table, 40)
    assert "title [red]" in output
    assert "\x1b[1m" in output
    assert output.count("word") == 12
    assert "0.25" in output
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert max(map(len, plain.splitlines())) <= 40


def test_tables_wider_than_the_terminal_are_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    output = print_in_terminal(monkeypatch, Table(("run", "p"), [("x" * 60, 0.123456789)]), 20)
    assert "x" * 60 in output
    assert "0.123456789" in output


@pytest.mark.parametrize(("environment", "absent"), [({"TERM": "dumb"}, "\x1b"), ({"NO_COLOR": "1"}, "\x1b[3")])
def test_terminals_that_want_no_style_get_none(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], absent: str
) -> None:
    assert absent not in print_in_terminal(monkeypatch, Table(COLUMNS, ROWS, notes=["a note"]), 80, **environment)
