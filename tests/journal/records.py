"""Values that the tests of the journal store."""

from __future__ import annotations

from hypothesis import strategies as st

from rank_k.journal import WindowRecord
from rank_k.types import Response, Usage, Window, WindowRanking

HARD_TEXT = "line\nbreak\0nul \ud800 lone \udcff undecodable \\udcff literal \N{GRINNING FACE} é"

texts = st.text(st.characters(exclude_categories=[]))
"""Any text, also with lone surrogates."""


def make_response(text: str = "[1] > [2]") -> Response:
    return Response(text, "reasoning", "stop", Usage(100, 20, 10, 50), 1.5, (("[", -0.25), ("1", -3.5)))


def make_window(
    query_id: str = "q", round_number: int = 0, position: int = 0, call_keys: tuple[str, ...] = ("k",)
) -> WindowRecord:
    ranking = WindowRanking((("b",), ("a", "c"), ("d",)), frozenset({"b", "a", "c"}), True)
    window = Window(("a", "b", "c", "d"), (1, 4))
    rankings = (ranking, WindowRanking.unranked(window))
    return WindowRecord(query_id, round_number, position, window, call_keys, rankings, {"missing": 1})
