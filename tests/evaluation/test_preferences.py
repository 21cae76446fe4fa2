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
from rank_k.evaluation.agreement import (
    COHEN_KAPPA,
    KRIPPENDORFF_ALPHA,
    cohen_kappa,
    coincidence_table,
    compute_agreements,
    krippendorff_alpha,
)
from rank_k.evaluation.preferences import (
    CHOICES,
    LEFT,
    RIGHT,
    TIE,
    UNDONE,
    Judgment,
    current_judgments,
    estimate_share,
    read_judgments,
    summarize_preferences,
)
from tests.paths import ROOT

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
OPPOSITE_CHOICE = {LEFT: RIGHT, RIGHT: LEFT, TIE: TIE, UNDONE: UNDONE}


def make_judgment(
    query: object, choice: str, judge: str = "anna", minute: float = 0, *, swapped: bool = False
) -> Judgment:
    """`choice` as it is for system a on the left; `swapped` puts it on the right and the choice with it."""
    left, right = ("b", "a") if swapped else ("a", "b")
    choice = OPPOSITE_CHOICE[choice] if swapped else choice
    return Judgment(judge, f"q{query}", left, right, choice, NOON + timedelta(minutes=minute), seconds=minute + 1)


ROWS = st.lists(
    st.builds(
        make_judgment,
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
def test_estimate_share_matches_published_wilson_intervals(successes: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    share = estimate_share(successes / count, count)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("kind", ["decided", "half of them ties", "three judges a query"])
@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_estimate_share_interval_reaches_nominal_coverage(kind: str, truth: float) -> None:
    """The share of 4,000 studies of 15 queries whose interval holds the truth, averaged over close truths, for the
    cover of a single one goes up and down with it."""
    rng, covered_count, study_count = random.Random(3), 0, 4000
    for study in range(study_count):
        close_truth = truth - 0.02 + 0.04 * study / study_count
        if kind == "decided":
            values = [float(rng.random() < close_truth) for _ in range(15)]
        elif kind == "half of them ties":
            values = [0.5 if rng.random() < 0.5 else float(rng.random() < close_truth) for _ in range(15)]
            close_truth = close_truth / 2 + 0.25
        else:  # who agree in half of the queries, and toss coins in the others
            values = []
            for _ in range(15):
                judges_agree = rng.random() < 0.5
                first_choice = rng.random() < close_truth
                values.append(sum(first_choice if judges_agree else rng.random() < close_truth for _ in range(3)) / 3)
        share = estimate_share(min(1.0, sum(values) / 15), 15)
        covered_count += share.low <= close_truth <= share.high
    assert covered_count / study_count >= 0.94


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_estimate_share_interval_contains_value_and_is_symmetric(halves_and_count: tuple[int, int]) -> None:
    half_points, count = halves_and_count
    value = half_points / 2 / count
    share, mirrored = estimate_share(value, count), estimate_share(1 - value, count)
    assert 0 <= share.low <= value <= share.high <= 1
    assert share.high - share.low > 0, "not even where all say the same"
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((share.low, share.high))


# --- agreement, against published values ---


def test_cohen_kappa_matches_textbook_example() -> None:
    """50 proposals: both yes 20, both no 15, 5 and 10 apart. Observed .7, by chance .5, so .4."""
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)


def test_cohen_kappa_matches_manual_calculation() -> None:
    """Three categories: observed (10 + 8 + 6) / 40 = .6, by chance (15 * 16 + 13 * 12 + 12 * 12) / 1600 = .3375."""
    table = np.array([[10.0, 2.0, 3.0], [2.0, 8.0, 3.0], [4.0, 2.0, 6.0]])
    assert cohen_kappa(table) == pytest.approx((0.6 - 0.3375) / (1 - 0.3375))
    assert cohen_kappa(table.T) == pytest.approx(cohen_kappa(table))


def test_krippendorff_alpha_matches_published_value_for_two_observers() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", A: ten things, two observers: 0.095."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    table = sum(coincidence_table([a, b], 2) for a, b in zip(first, second, strict=True))
    assert krippendorff_alpha(np.asarray(table)) == pytest.approx(0.095, abs=5e-4)


def test_krippendorff_alpha_matches_published_value_with_missing_ratings() -> None:
    """The same, C: four observers, twelve things, gaps: 0.743 without order of the categories."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    columns = zip(*(row.split() for row in observers), strict=True)
    ratings = [[int(value) - 1 for value in column if value != "."] for column in columns]
    table = sum(coincidence_table(values, 5) for values in ratings if len(values) > 1)
    assert krippendorff_alpha(np.asarray(table)) == pytest.approx(0.743, abs=5e-4)


def test_compute_agreements_covers_each_pair_and_all_judges() -> None:
    judgments = [
        (judge, f"q{query}", "pair", category)
        for query, categories in enumerate(["000", "111", "22.", "01.", "0.0", "1.1", "..2", "021"])
        for judge, category in zip(("anna", "ben", "chen"), categories, strict=True)
        if category != "."
    ]
    agreements = compute_agreements([(judge, query, item, int(category)) for judge, query, item, category in judgments])
    assert [(agreement.judges, agreement.coefficient, agreement.items) for agreement in agreements] == [
        (("anna", "ben"), COHEN_KAPPA, 5),
        (("anna", "chen"), COHEN_KAPPA, 5),
        (("ben", "chen"), COHEN_KAPPA, 3),
        (("anna", "ben", "chen"), KRIPPENDORFF_ALPHA, 7),
    ]
    first_agreement = agreements[0]
    assert first_agreement.observed == 3 / 5
    assert first_agreement.value == pytest.approx((0.6 - (3 * 1 + 1 * 2 + 1 * 2) / 25) / (1 - 7 / 25))
    assert first_agreement.low is not None
    assert first_agreement.high is not None
    assert first_agreement.low < 4 / 9 < first_agreement.high <= 1


def test_compute_agreements_is_undefined_without_variation() -> None:
    judgments = [(judge, f"q{query}", "pair", 0) for query in range(5) for judge in ("anna", "ben")]
    (agreement,) = compute_agreements(judgments)
    assert (agreement.observed, agreement.value, agreement.low, agreement.high) == (1.0, None, None, None)
    assert compute_agreements(judgments[:1]) == ()
    assert compute_agreements([("anna", "q1", "pair", 0), ("ben", "q2", "pair", 0)]) == (), "nothing in common"


def test_compute_agreements_separates_identical_from_random_judges() -> None:
    rng = random.Random(1)
    shared_choices = [rng.randrange(3) for _ in range(300)]
    (identical_judges,) = compute_agreements(
        [(j, f"q{i}", "", choice) for i, choice in enumerate(shared_choices) for j in ("anna", "ben")]
    )
    assert (identical_judges.value, identical_judges.low, identical_judges.high) == pytest.approx((1.0, 1.0, 1.0))
    agreements = compute_agreements(
        [(j, f"q{i}", "", rng.randrange(3)) for i in range(300) for j in ("anna", "ben", "chen")]
    )
    assert len(agreements) == 4
    for agreement in agreements:
        assert agreement.value == pytest.approx(0, abs=0.12)
        assert agreement.low is not None
        assert agreement.high is not None
        assert agreement.low < 0 < agreement.high


# --- what comes of rows ---


def test_preferences_match_manual_calculation() -> None:
    rows = [make_judgment(q, LEFT) for q in range(6)] + [make_judgment(6, TIE), make_judgment(7, RIGHT, swapped=True)]
    rows += [make_judgment(0, RIGHT, "ben")]
    summary = summarize_preferences(rows)
    (pair,) = summary.pairs
    assert (pair.first, pair.second, pair.queries, pair.judgments) == ("a", "b", 8, 9)
    assert pair.won.value == pytest.approx(5.5 / 8)
    assert pair.tied.value == pytest.approx(1 / 8)
    assert pair.lost.value == pytest.approx(1.5 / 8)
    assert pair.win_rate.value == pytest.approx((5.5 + 0.5) / 8)
    assert pair.win_rate.low < 0.75 < pair.win_rate.high
    # 6 decided queries, of which one was lost: as far from even are 1 or fewer losses, or wins.
    assert pair.p == pytest.approx(2 * (comb(6, 0) + comb(6, 1)) / 2**6)
    assert (summary.sides.left, summary.sides.right, summary.sides.ties) == (7, 1, 1)
    assert summary.sides.p == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8)
    assert [(judge.name, judge.sides.judgments, judge.median_seconds) for judge in summary.judges] == [
        ("anna", 8, 1),
        ("ben", 1, 1),
    ]
    assert summary.agreement[0].items == 1


def test_preferences_correct_p_values_for_several_pairs() -> None:
    rows = [make_judgment(q, LEFT) for q in range(8)]
    single_p = summarize_preferences(rows).pairs[0].p
    other_rows = [replace(row, right="c") for row in rows] + [
        replace(row, left="b", right="c", choice=TIE) for row in rows
    ]
    p_by_pair = {(pair.first, pair.second): pair.p for pair in summarize_preferences(rows + other_rows).pairs}
    assert single_p == 2 / 2**8
    assert p_by_pair == {("a", "b"): 3 * single_p, ("a", "c"): 3 * single_p, ("b", "c"): 1.0}


def test_preferences_detect_judge_with_side_bias() -> None:
    rng = random.Random(2)
    rows = [make_judgment(q, LEFT, swapped=rng.random() < 0.5) for q in range(60)]
    rows += [replace(make_judgment(q, TIE, "ben"), choice=LEFT) for q in range(60)]
    anna, ben = summarize_preferences(rows).judges
    assert anna.sides.p is not None
    assert anna.sides.p > 0.05
    assert ben.sides.right == 0
    assert ben.sides.p == pytest.approx(2 / 2**60)


@given(ROWS, st.randoms())
@settings(max_examples=25)
def test_preferences_ignore_row_order(rows: list[Judgment], rng: random.Random) -> None:
    assert summarize_preferences(rng.sample(rows, len(rows))) == summarize_preferences(rows)


@given(ROWS)
@settings(max_examples=25)
def test_preferences_are_unchanged_by_swapped_sides(rows: list[Judgment]) -> None:
    swapped_rows = [replace(row, left=row.right, right=row.left, choice=OPPOSITE_CHOICE[row.choice]) for row in rows]
    summary, swapped_summary = summarize_preferences(rows), summarize_preferences(swapped_rows)
    assert swapped_summary.pairs == summary.pairs
    assert swapped_summary.agreement == summary.agreement
    assert (swapped_summary.sides.left, swapped_summary.sides.right, swapped_summary.sides.p) == (
        summary.sides.right,
        summary.sides.left,
        summary.sides.p,
    )


@given(ROWS)
@settings(max_examples=25)
def test_preferences_mirror_when_systems_are_renamed(rows: list[Judgment]) -> None:
    """What one wins the other loses."""
    renamed_rows = [replace(row, left=swap_name(row.left), right=swap_name(row.right)) for row in rows]
    (pair,), (renamed_pair,) = summarize_preferences(rows).pairs, summarize_preferences(renamed_rows).pairs
    assert (renamed_pair.won, renamed_pair.tied, renamed_pair.lost) == (pair.lost, pair.tied, pair.won)
    assert renamed_pair.win_rate.value == pytest.approx(1 - pair.win_rate.value)
    assert (renamed_pair.win_rate.low, renamed_pair.win_rate.high) == pytest.approx(
        (1 - pair.win_rate.high, 1 - pair.win_rate.low)
    )
    assert renamed_pair.p == pytest.approx(pair.p)


def swap_name(name: str) -> str:
    return {"a": "b", "b": "a"}[name]


@given(ROWS)
@settings(max_examples=50)
def test_current_judgments_account_for_every_row(rows: list[Judgment]) -> None:
    current = current_judgments([*rows, *rows])
    assert current.repeated == len(rows)
    undone_rows = sum(row.choice == UNDONE for row in rows)
    assert len(current.judgments) + current.replaced + current.undone == len(rows) - undone_rows
    assert {row.choice for row in current.judgments} <= set(CHOICES)
    assert len({(row.judge, row.query_id, row.pair) for row in current.judgments}) == len(current.judgments)


def test_current_judgments_keep_latest_row_regardless_of_side() -> None:
    rows = [
        make_judgment(1, LEFT, minute=2, swapped=True),
        make_judgment(1, RIGHT, minute=1),
        make_judgment(1, TIE, minute=0),
    ]
    current = current_judgments(rows)
    assert [row.winner for row in current.judgments] == ["a"]
    assert current.replaced == 2
    current_after_undo = current_judgments([*rows, make_judgment(1, UNDONE, minute=3)])
    assert (current_after_undo.judgments, current_after_undo.replaced, current_after_undo.undone) == ((), 2, 1)
    with pytest.raises(InputError, match="withdrawn"):
        summarize_preferences([*rows, make_judgment(1, UNDONE, minute=3)])


# --- files ---


def write_rows(path: Path, rows: list[Judgment]) -> Path:
    path.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    return path


def test_read_judgments_round_trips_rows(tmp_path: Path) -> None:
    full_row = replace(
        make_judgment("\udcff", LEFT),
        query='<b>"סתם"\u2028',
        translation="just",
        depth=10,
        left_doc_ids=("d1", "\udcfe"),
        right_doc_ids=("d2",),
        blind=False,
    )
    rows = [full_row, make_judgment(2, UNDONE)]
    assert read_judgments(write_rows(tmp_path / "rows.jsonl", rows)) == rows


ROW: dict[str, Any] = {
    "judge": "anna",
    "query_id": "q",
    "left": "a",
    "right": "b",
    "choice": "tie",
    "time": "2026-05-04T12:00:00Z",
}


def test_read_judgments_accepts_required_keys_only(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "of_a_later_version": 1}))
    (row,) = read_judgments(tmp_path / "rows.jsonl")
    assert row == Judgment("anna", "q", "a", "b", "tie", NOON)


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_read_judgments_reports_line_of_invalid_value(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(FormatError, match=rf"rows\.jsonl:2: {message}"):
        read_judgments(file)


@pytest.mark.parametrize("missing", ROW)
def test_read_judgments_reports_missing_key(tmp_path: Path, missing: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({key: ROW[key] for key in ROW if key != missing}))
    with pytest.raises(FormatError, match=f"rows.jsonl:1: no {missing}"):
        read_judgments(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("text", ["", "[1]", '{"judge": "an'], ids=["empty", "no object", "torn"])
def test_read_judgments_rejects_malformed_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(FormatError, match=r"rows\.jsonl"):
        read_judgments(tmp_path / "rows.jsonl")


# --- the command ---

RunEvaluate = Callable[..., tuple[str, str]]


@pytest.fixture
def run_evaluate(capfd: pytest.CaptureFixture[str]) -> RunEvaluate:
    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        assert main(["evaluate", *map(str, arguments)]) == code
        captured = capfd.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def judgment_files(tmp_path: Path) -> list[Path]:
    rng = random.Random(5)
    rows_by_judge = {
        judge: [
            make_judgment(q, rng.choices(CHOICES, [5, 2, 2])[0], judge, q, swapped=rng.random() < 0.5)
            for q in range(30)
        ]
        for judge in ("anna", "ben")
    }
    rows_by_judge["ben"] += [make_judgment(3, LEFT, "ben", 99), make_judgment(4, UNDONE, "ben", 99)]
    return [write_rows(tmp_path / f"{judge}.jsonl", rows) for judge, rows in rows_by_judge.items()]


def test_evaluate_command_prints_preferences(run_evaluate: RunEvaluate, judgment_files: list[Path]) -> None:
    out, err = run_evaluate("--preferences", *judgment_files)
    rows = [row for file in judgment_files for row in read_judgments(file)]
    (pair,) = summarize_preferences(rows).pairs
    assert f"{pair.win_rate.value:.3f}  {pair.win_rate.low:.3f} to {pair.win_rate.high:.3f}" in out
    assert [line.split()[0] for line in out.splitlines() if line][-2:] == ["judges", "anna,"]
    assert "Cohen's kappa" in out
    assert err.splitlines() == [
        "judgments left out because the same judge replaced them later: 1",
        "judgments left out because they were undone: 1",
    ]
    assert run_evaluate("--preferences", *reversed(judgment_files))[0] == out


def test_evaluate_command_prints_same_preferences_as_json(
    run_evaluate: RunEvaluate, judgment_files: list[Path]
) -> None:
    payload = json.loads(run_evaluate("--preferences", *judgment_files, judgment_files[0], "--json")[0])
    summary = summarize_preferences(row for file in judgment_files for row in read_judgments(file))
    assert payload["pairs"][0]["win_rate"]["value"] == summary.pairs[0].win_rate.value
    assert payload["agreement"][0]["value"] == summary.agreement[0].value
    assert (payload["judgments"], payload["repeated_rows"], payload["undone"], payload["replaced"]) == (59, 30, 1, 1)
    assert [judge["name"] for judge in payload["judges"]] == ["anna", "ben"]


JUDGING_PAGE = (ROOT / "docs" / "how-to" / "judging.md").read_text(encoding="utf-8")


def test_judging_page_shows_output_of_evaluate_command(run_evaluate: RunEvaluate, tmp_path: Path) -> None:
    """Two judges who see the same truth, each through a noise of their own."""
    rng = random.Random(1)
    rows = []
    for query in range(30):
        truth = rng.choices(CHOICES, [1, 6, 3])[0]
        for judge, sharpness in (("anna", 0.8), ("ben", 0.7)):
            choice = truth if rng.random() < sharpness else rng.choice(CHOICES)
            row = make_judgment(query, choice, judge, rng.randint(5, 40), swapped=rng.random() < 0.5)
            names = {"a": "bm25.trec", "b": "reranked.trec"}
            rows.append(replace(row, left=names[row.left], right=names[row.right]))
    out, _ = run_evaluate("--preferences", write_rows(tmp_path / "preferences.jsonl", rows))
    assert f"$ rank-k evaluate --preferences preferences.jsonl\n{out}```" in JUDGING_PAGE


def test_judging_page_lists_interval_width_by_query_count() -> None:
    for count in (25, 50, 100, 200, 400):
        ends = [
            f"{end:.2f}"
            for value in (0.5, 0.7)
            for end in (estimate_share(value, count).low, estimate_share(value, count).high)
        ]
        assert "| {} | {} to {} | {} to {} |".format(count, *ends) in JUDGING_PAGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.trec", "--preferences", "{}"], "RUN has no effect with --preferences"),
        (["--preferences", "{}", "--qrels", "q"], "--qrels has no effect with --preferences"),
        (["--preferences", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--qrels", "q"], "there is no run to evaluate"),
    ],
)
def test_evaluate_command_reports_usage_errors_in_one_line(
    run_evaluate: RunEvaluate, judgment_files: list[Path], arguments: list[str], message: str
) -> None:
    _, err = run_evaluate(*(argument.format(judgment_files[0]) for argument in arguments), code=2)
    assert message in err
    assert err.count("\n") == 1
