"""Preferences of people: figures against published ones, what must not change them, and rows that are not as they
should be.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.errors import FormatError, InputError
from rank_k.evaluation.agreement import ALPHA, KAPPA, agreements, cohen_kappa, coincidences, krippendorff_alpha
from rank_k.evaluation.preferences import (
    CHOICES,
    LEFT,
    RIGHT,
    TIE,
    UNDONE,
    Judgment,
    current_judgments,
    preferences,
    read_judgments,
    share,
)
from tests.paths import ROOT

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
OTHER = {LEFT: RIGHT, RIGHT: LEFT, TIE: TIE, UNDONE: UNDONE}


def judgment(query: object, choice: str, judge: str = "anna", minute: float = 0, *, swapped: bool = False) -> Judgment:
    """`choice` as it is for system a on the left; `swapped` puts it on the right and the choice with it."""
    left, right = ("b", "a") if swapped else ("a", "b")
    choice = OTHER[choice] if swapped else choice
    return Judgment(judge, f"q{query}", left, right, choice, NOON + timedelta(minutes=minute), seconds=minute + 1)


ROWS = st.lists(
    st.builds(
        judgment,
        query=st.integers(0, 5),
        choice=st.sampled_from((*CHOICES, UNDONE)),
        judge=st.sampled_from(["anna", "ben", "chen"]),
        minute=st.integers(0, 1000),
        swapped=st.booleans(),
    ),
    max_size=30,
    unique_by=lambda row: row.time,
).filter(lambda rows: bool(current_judgments(rows).judgments))


# --- intervals, against published values ---


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_wilsons_intervals(successes: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = share(successes / count, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("kind", ["decided", "half of them ties", "three judges a query"])
@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_intervals_hold_what_they_promise(kind: str, truth: float) -> None:
    """The share of 4,000 studies of 15 queries whose interval holds the truth, averaged over close truths, for the
    cover of a single one goes up and down with it."""
    chance, held, studies = random.Random(3), 0, 4000
    for study in range(studies):
        near = truth - 0.02 + 0.04 * study / studies
        if kind == "decided":
            values = [float(chance.random() < near) for _ in range(15)]
        elif kind == "half of them ties":
            values = [0.5 if chance.random() < 0.5 else float(chance.random() < near) for _ in range(15)]
            near = near / 2 + 0.25
        else:  # who agree in half of the queries, and toss coins in the others
            values = []
            for _ in range(15):
                same = chance.random() < 0.5
                first = chance.random() < near
                values.append(sum(first if same else chance.random() < near for _ in range(3)) / 3)
        found = share(min(1.0, sum(values) / 15), 15)
        held += found.low <= near <= found.high
    assert held / studies >= 0.94


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors(halves_and_count: tuple[int, int]) -> None:
    halves, count = halves_and_count
    value = halves / 2 / count
    found, mirrored = share(value, count), share(1 - value, count)
    assert 0 <= found.low <= value <= found.high <= 1
    assert found.high - found.low > 0, "not even where all say the same"
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high))


# --- agreement, against published values ---


def test_kappa_of_the_textbook() -> None:
    """50 proposals: both yes 20, both no 15, 5 and 10 apart. Observed .7, by chance .5, so .4."""
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)


def test_kappa_by_hand() -> None:
    """Three categories: observed (10 + 8 + 6) / 40 = .6, by chance (15 * 16 + 13 * 12 + 12 * 12) / 1600 = .3375."""
    table = np.array([[10.0, 2.0, 3.0], [2.0, 8.0, 3.0], [4.0, 2.0, 6.0]])
    assert cohen_kappa(table) == pytest.approx((0.6 - 0.3375) / (1 - 0.3375))
    assert cohen_kappa(table.T) == pytest.approx(cohen_kappa(table))


def test_alpha_of_two_observers() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", A: ten things, two observers: 0.095."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    table = sum(coincidences([a, b], 2) for a, b in zip(first, second, strict=True))
    assert krippendorff_alpha(np.asarray(table)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_four_observers_with_gaps() -> None:
    """The same, C: four observers, twelve things, gaps: 0.743 without order of the categories."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    things = zip(*(row.split() for row in observers), strict=True)
    given = [[int(value) - 1 for value in thing if value != "."] for thing in things]
    table = sum(coincidences(values, 5) for values in given if len(values) > 1)
    assert krippendorff_alpha(np.asarray(table)) == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_two_and_of_all() -> None:
    said = [
        (judge, f"q{query}", "pair", category)
        for query, categories in enumerate(["000", "111", "22.", "01.", "0.0", "1.1", "..2", "021"])
        for judge, category in zip(("anna", "ben", "chen"), categories, strict=True)
        if category != "."
    ]
    found = agreements([(judge, query, what, int(category)) for judge, query, what, category in said])
    assert [(one.judges, one.coefficient, one.items) for one in found] == [
        (("anna", "ben"), KAPPA, 5),
        (("anna", "chen"), KAPPA, 5),
        (("ben", "chen"), KAPPA, 3),
        (("anna", "ben", "chen"), ALPHA, 7),
    ]
    first = found[0]
    assert first.observed == 3 / 5
    assert first.value == pytest.approx((0.6 - (3 * 1 + 1 * 2 + 1 * 2) / 25) / (1 - 7 / 25))
    assert first.low is not None
    assert first.high is not None
    assert first.low < 4 / 9 < first.high <= 1


def test_agreement_is_not_told_where_chance_alone_would_bring_it() -> None:
    said = [(judge, f"q{query}", "pair", 0) for query in range(5) for judge in ("anna", "ben")]
    (found,) = agreements(said)
    assert (found.observed, found.value, found.low, found.high) == (1.0, None, None, None)
    assert agreements(said[:1]) == ()
    assert agreements([("anna", "q1", "pair", 0), ("ben", "q2", "pair", 0)]) == (), "nothing in common"


def test_judges_who_say_the_same_agree_and_coin_throwers_do_not() -> None:
    chance = random.Random(1)
    same = [chance.randrange(3) for _ in range(300)]
    (identical,) = agreements([(j, f"q{i}", "", said) for i, said in enumerate(same) for j in ("anna", "ben")])
    assert (identical.value, identical.low, identical.high) == pytest.approx((1.0, 1.0, 1.0))
    found = agreements([(j, f"q{i}", "", chance.randrange(3)) for i in range(300) for j in ("anna", "ben", "chen")])
    assert len(found) == 4
    for one in found:
        assert one.value == pytest.approx(0, abs=0.12)
        assert one.low is not None
        assert one.high is not None
        assert one.low < 0 < one.high


# --- what comes of rows ---


def test_win_rates_by_hand() -> None:
    rows = [judgment(q, LEFT) for q in range(6)] + [judgment(6, TIE), judgment(7, RIGHT, swapped=True)]
    rows += [judgment(0, RIGHT, "ben")]
    found = preferences(rows)
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.queries, pair.judgments) == ("a", "b", 8, 9)
    assert pair.won.value == pytest.approx(5.5 / 8)
    assert pair.tied.value == pytest.approx(1 / 8)
    assert pair.lost.value == pytest.approx(1.5 / 8)
    assert pair.win_rate.value == pytest.approx((5.5 + 0.5) / 8)
    assert pair.win_rate.low < 0.75 < pair.win_rate.high
    # 6 decided queries, of which one was lost: as far from even are 1 or fewer losses, or wins.
    assert pair.p == pytest.approx(2 * (comb(6, 0) + comb(6, 1)) / 2**6)
    assert (found.sides.left, found.sides.right, found.sides.ties) == (7, 1, 1)
    assert found.sides.p == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8)
    assert [(judge.name, judge.sides.judgments, judge.seconds) for judge in found.judges] == [
        ("anna", 8, 1),
        ("ben", 1, 1),
    ]
    assert found.agreement[0].items == 1


def test_p_values_of_several_pairs_are_corrected() -> None:
    rows = [judgment(q, LEFT) for q in range(8)]
    alone = preferences(rows).pairs[0].p
    more = [replace(row, right="c") for row in rows] + [replace(row, left="b", right="c", choice=TIE) for row in rows]
    found = {(pair.first, pair.second): pair.p for pair in preferences(rows + more).pairs}
    assert alone == 2 / 2**8
    assert found == {("a", "b"): 3 * alone, ("a", "c"): 3 * alone, ("b", "c"): 1.0}


def test_a_judge_who_looks_at_one_side_only_is_seen() -> None:
    chance = random.Random(2)
    rows = [judgment(q, LEFT, swapped=chance.random() < 0.5) for q in range(60)]
    rows += [replace(judgment(q, TIE, "ben"), choice=LEFT) for q in range(60)]
    anna, ben = preferences(rows).judges
    assert anna.sides.p is not None
    assert anna.sides.p > 0.05
    assert ben.sides.right == 0
    assert ben.sides.p == pytest.approx(2 / 2**60)


@given(ROWS, st.randoms())
@settings(max_examples=25)
def test_the_order_of_rows_changes_nothing(rows: list[Judgment], chance: random.Random) -> None:
    assert preferences(chance.sample(rows, len(rows))) == preferences(rows)


@given(ROWS)
@settings(max_examples=25)
def test_sides_do_not_matter_to_systems(rows: list[Judgment]) -> None:
    swapped = [replace(row, left=row.right, right=row.left, choice=OTHER[row.choice]) for row in rows]
    found, other = preferences(rows), preferences(swapped)
    assert other.pairs == found.pairs
    assert other.agreement == found.agreement
    assert (other.sides.left, other.sides.right, other.sides.p) == (found.sides.right, found.sides.left, found.sides.p)


@given(ROWS)
@settings(max_examples=25)
def test_names_do_not_matter_either(rows: list[Judgment]) -> None:
    """What one wins the other loses."""
    renamed = [replace(row, left=_renamed(row.left), right=_renamed(row.right)) for row in rows]
    (pair,), (other,) = preferences(rows).pairs, preferences(renamed).pairs
    assert (other.won, other.tied, other.lost) == (pair.lost, pair.tied, pair.won)
    assert other.win_rate.value == pytest.approx(1 - pair.win_rate.value)
    assert (other.win_rate.low, other.win_rate.high) == pytest.approx((1 - pair.win_rate.high, 1 - pair.win_rate.low))
    assert other.p == pytest.approx(pair.p)


def _renamed(name: str) -> str:
    return {"a": "b", "b": "a"}[name]


@given(ROWS)
@settings(max_examples=50)
def test_every_row_is_accounted_for(rows: list[Judgment]) -> None:
    found = current_judgments([*rows, *rows])
    assert found.repeated == len(rows)
    undone_rows = sum(row.choice == UNDONE for row in rows)
    assert len(found.judgments) + found.replaced + found.undone == len(rows) - undone_rows
    assert {row.choice for row in found.judgments} <= set(CHOICES)
    assert len({(row.judge, row.query_id, row.pair) for row in found.judgments}) == len(found.judgments)


def test_the_latest_counts_whatever_side_it_stood_on() -> None:
    rows = [judgment(1, LEFT, minute=2, swapped=True), judgment(1, RIGHT, minute=1), judgment(1, TIE, minute=0)]
    found = current_judgments(rows)
    assert [row.winner for row in found.judgments] == ["a"]
    assert found.replaced == 2
    taken_back = current_judgments([*rows, judgment(1, UNDONE, minute=3)])
    assert (taken_back.judgments, taken_back.replaced, taken_back.undone) == ((), 2, 1)
    with pytest.raises(InputError, match="taken back"):
        preferences([*rows, judgment(1, UNDONE, minute=3)])


# --- files ---


def written(path: Path, rows: list[Judgment]) -> Path:
    path.write_text("".join(json.dumps(row.row()) + "\n" for row in rows))
    return path


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    full = replace(
        judgment("\udcff", LEFT),
        query='<b>"סתם"\u2028',
        translation="just",
        depth=10,
        left_doc_ids=("d1", "\udcfe"),
        right_doc_ids=("d2",),
        blind=False,
    )
    rows = [full, judgment(2, UNDONE)]
    assert read_judgments(written(tmp_path / "rows.jsonl", rows)) == rows


ROW: dict[str, Any] = {
    "judge": "anna",
    "query_id": "q",
    "left": "a",
    "right": "b",
    "choice": "tie",
    "time": "2026-05-04T12:00:00Z",
}


def test_what_is_needed_is_enough(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "of_a_later_version": 1}))
    (row,) = read_judgments(tmp_path / "rows.jsonl")
    assert row == Judgment("anna", "q", "a", "b", "tie", NOON)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"choice": "both"}, "choice 'both'; expected choice: one of left, right, tie, undone"),
        ({"choice": ["left"]}, r"choice \['left'\]"),
        ({"choice": None}, "choice None"),
        ({"judge": ""}, "judge ''"),
        ({"query_id": 7}, "query_id 7"),
        ({"left": "b"}, "'b' on both sides"),
        ({"time": "noon"}, "time 'noon'"),
        ({"time": "2026-05-04T12:00:00"}, "time .*a time with its zone"),
        ({"seconds": -1}, "seconds -1"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"seconds": True}, "seconds True"),
        ({"depth": 0}, "depth 0"),
        ({"blind": "yes"}, "blind 'yes'"),
        ({"translation": 3}, "translation 3"),
        ({"left_doc_ids": "d1"}, "left_doc_ids 'd1'"),
        ({"right_doc_ids": [1]}, r"right_doc_ids \[1\]"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(FormatError, match=rf"rows\.jsonl:2: {told}"):
        read_judgments(file)


@pytest.mark.parametrize("missing", ROW)
def test_what_a_row_lacks_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({key: ROW[key] for key in ROW if key != missing}))
    with pytest.raises(FormatError, match=f"rows.jsonl:1: no {missing}"):
        read_judgments(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("text", ["", "[1]", '{"judge": "an'], ids=["empty", "no object", "torn"])
def test_what_is_no_row_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(FormatError, match=r"rows\.jsonl"):
        read_judgments(tmp_path / "rows.jsonl")


# --- the command ---

Told = Callable[..., tuple[str, str]]


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Told:
    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        assert main(["evaluate", *map(str, arguments)]) == code
        told = capfd.readouterr()
        return told.out, told.err

    return run


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    chance = random.Random(5)
    by_judge = {
        judge: [
            judgment(q, chance.choices(CHOICES, [5, 2, 2])[0], judge, q, swapped=chance.random() < 0.5)
            for q in range(30)
        ]
        for judge in ("anna", "ben")
    }
    by_judge["ben"] += [judgment(3, LEFT, "ben", 99), judgment(4, UNDONE, "ben", 99)]
    return [written(tmp_path / f"{judge}.jsonl", rows) for judge, rows in by_judge.items()]


def test_the_command_tells_what_was_found(evaluate: Told, files: list[Path]) -> None:
    out, err = evaluate("--preferences", *files)
    rows = [row for file in files for row in read_judgments(file)]
    (pair,) = preferences(rows).pairs
    assert f"{pair.win_rate.value:.3f}  {pair.win_rate.low:.3f} to {pair.win_rate.high:.3f}" in out
    assert [line.split()[0] for line in out.splitlines() if line][-2:] == ["judges", "anna,"]
    assert "Cohen's kappa" in out
    assert err.splitlines() == [
        "not counted, judgments replaced by later ones of the same judge: 1",
        "not counted, judgments taken back: 1",
    ]
    assert evaluate("--preferences", *reversed(files))[0] == out


def test_the_command_tells_programs_the_same(evaluate: Told, files: list[Path]) -> None:
    told = json.loads(evaluate("--preferences", *files, files[0], "--json")[0])
    found = preferences(row for file in files for row in read_judgments(file))
    assert told["pairs"][0]["win_rate"]["value"] == found.pairs[0].win_rate.value
    assert told["agreement"][0]["value"] == found.agreement[0].value
    assert (told["judgments"], told["repeated_rows"], told["undone"], told["replaced"]) == (59, 30, 1, 1)
    assert [judge["name"] for judge in told["judges"]] == ["anna", "ben"]


DOCUMENTATION = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")


def test_the_documentation_shows_what_the_command_says(evaluate: Told, tmp_path: Path) -> None:
    """Two judges who see the same truth, each through a noise of their own."""
    chance = random.Random(1)
    rows = []
    for query in range(30):
        truth = chance.choices(CHOICES, [1, 6, 3])[0]
        for judge, sharpness in (("anna", 0.8), ("ben", 0.7)):
            said = truth if chance.random() < sharpness else chance.choice(CHOICES)
            row = judgment(query, said, judge, chance.randint(5, 40), swapped=chance.random() < 0.5)
            names = {"a": "bm25.trec", "b": "reranked.trec"}
            rows.append(replace(row, left=names[row.left], right=names[row.right]))
    out, _ = evaluate("--preferences", written(tmp_path / "said.jsonl", rows))
    assert f"$ rank-k evaluate --preferences said.jsonl\n{out}```" in DOCUMENTATION


def test_the_documentation_tells_how_many_queries_are_enough() -> None:
    for count in (25, 50, 100, 200, 400):
        ends = [
            f"{end:.2f}".lstrip("0")
            for value in (0.5, 0.7)
            for end in (share(value, count).low, share(value, count).high)
        ]
        assert "| {} | {} to {} | {} to {} |".format(count, *ends) in DOCUMENTATION


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run.trec", "--preferences", "{}"], "--preferences has no use for RUN"),
        (["--preferences", "{}", "--qrels", "q"], "--preferences has no use for --qrels"),
        (["--preferences", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--qrels", "q"], "there is no run to evaluate"),
    ],
)
def test_mistakes_are_told_in_a_line(evaluate: Told, files: list[Path], arguments: list[str], told: str) -> None:
    _, err = evaluate(*(argument.format(files[0]) for argument in arguments), code=2)
    assert told in err
    assert err.count("\n") == 1
