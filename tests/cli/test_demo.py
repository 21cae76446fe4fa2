"""`rank-k demo` with a fake server: what it prints. The embedded model is tested in `tests/models`."""

from __future__ import annotations

import re

import pytest

from rank_k.cli.demo import DEPTH, SHOWCASE
from rank_k.data.collections.demo import load_questions
from tests.cli.helpers import RankK, server_options
from tests.conftest import StartLoopback

pytestmark = pytest.mark.integration

QUESTIONS = {question.query.query_id: question.query.text for question in load_questions()}


def test_demo_shows_two_rankings_side_by_side(rank_k: RankK, loopback: StartLoopback) -> None:
    result = rank_k("demo", *server_options(loopback()))
    assert (result.code, result.err) == (0, "")
    introduction, first, second, next_steps = result.out.split("\n\n")
    assert introduction.startswith("For 2 questions about Python, BM25 finds the best 12 of ")
    for block, query_id in zip((first, second), SHOWCASE, strict=True):
        heading, header, *rows = block.splitlines()
        assert heading == f"── {QUESTIONS[query_id]}"
        assert header.split() == ["BM25", "was", "oracle"]
        for rank, row in enumerate(rows[:5], 1):
            cells = re.fullmatch(rf"{rank} +[●○ ] (.+?)  +([↑=↓]) (\d+) +[●○ ]? ?(.+)", row)
            assert cells, row
            was = int(cells[3])
            assert cells[2] == ("=" if was == rank else "↑" if was > rank else "↓")
            assert (cells[1] == cells[4]) == (was == rank) or was != rank
        assert re.fullmatch(r"● relevant, ○ related; nDCG@10 \d\.\d{4} → \d\.\d{4}", rows[-1])
    assert re.search(rf"all {len(QUESTIONS)} questions +rank-k demo --all  \(about \d+ ", next_steps)
    assert len(result.out.splitlines()) < 48, "two screens"
    assert max(map(len, result.out.splitlines())) <= 90


def test_demo_answers_a_question_of_the_user(rank_k: RankK, loopback: StartLoopback) -> None:
    result = rank_k("demo", "--query", "how do I sleep", "--depth", "3", *server_options(loopback()))
    assert result.code == 0
    _, block, _ = result.out.split("\n\n")
    heading, _, *rows = block.splitlines()
    assert heading == "── how do I sleep"
    assert len([row for row in rows if row[0].isdigit()]) == 3
    assert "nDCG" not in block, "this question has no judgments"
    assert "BM25 finds no passage" in rank_k("demo", "--query", "zzzz", *server_options(loopback())).err


def test_demo_all_averages_over_all_questions(rank_k: RankK, loopback: StartLoopback) -> None:
    result = rank_k("demo", "--all", *server_options(loopback()))
    assert result.code == 0
    lines = result.out.split("\n\n")[1].splitlines()
    assert len(lines) == len(QUESTIONS) + 1
    assert re.fullmatch(rf"\d\.\d{{4}} → \d\.\d{{4}}  average of {len(QUESTIONS)} questions", lines[-1])
    assert DEPTH == 12
