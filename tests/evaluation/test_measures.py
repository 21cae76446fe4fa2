"""Measures: by hand, against trec_eval's own code, and against published figures."""

from __future__ import annotations

import json
import math

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import InputError
from rank_k.evaluation.measures import DEFAULT_MEASURES, Ties, evaluate
from rank_k.types import Candidate
from tests.paths import SHARED

pytestmark = pytest.mark.integration


def ranked(*doc_ids: str) -> list[Candidate]:
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)]


def test_values_by_hand() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0, "x": 1}}
    found = evaluate(qrels, {"q": ranked("c", "a", "unjudged", "b")})
    assert found.measures == DEFAULT_MEASURES
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    best = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "nDCG@10": gain / best,
        "nDCG@20": gain / best,
        "AP": (1 / 2 + 2 / 4) / 3,
        "RR@10": 1 / 2,
        "R@100": 2 / 3,
        "Judged@10": 3 / 4,
    }
    assert found.means == pytest.approx(expected)
    assert {name: values["q"] for name, values in found.per_query.items()} == pytest.approx(expected)


def test_missing_queries_count_as_zero_and_unjudged_ones_not_at_all() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {"a": 0}}
    run = {"other": ranked("a"), "q1": ranked("a"), "q3": [], "q4": ranked("a")}
    found = evaluate(qrels, run, ["nDCG@10", "Judged@10", "NumRet"])
    assert found.per_query["nDCG@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 0.0}
    assert found.per_query["Judged@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 1.0}
    assert found.means == {"nDCG@10": 0.25, "Judged@10": 0.5, "NumRet": 2.0}
    assert found.missing == ("q2", "q3")
    assert found.unjudged == ("other",)


@pytest.mark.parametrize(("ties", "value"), [("file", 1.0), ("trec_eval", 0.0)])
def test_ties_stand_as_listed_or_by_descending_id_for_every_measure(ties: Ties, value: float) -> None:
    tied = {"q": [Candidate("c", 0.5), Candidate("a", 1.0), Candidate("b", 1.0)]}
    found = evaluate({"q": {"a": 1}}, tied, ["RR", "RR@10", "Judged@1", "P@1", "nDCG@1"], ties=ties)
    half = (1 + value) / 2
    assert found.means == {"RR": half, "RR@10": half, "Judged@1": value, "P@1": value, "nDCG@1": value}


def test_queries_are_told_whose_ties_trec_eval_would_put_otherwise() -> None:
    run = {
        "tied": [Candidate("a", 1.0), Candidate("b", 1.0)],
        "tied in single precision": [Candidate("a", 1.00000001), Candidate("b", 1.0)],
        "tied as trec_eval has it": [Candidate("b", 1.0), Candidate("a", 1.0)],
        "not tied": ranked("a", "b"),
        "not judged": [Candidate("a", 1.0), Candidate("b", 1.0)],
    }
    qrels = {query_id: {"a": 1} for query_id in run if query_id != "not judged"}
    assert evaluate(qrels, run).tied == ("tied", "tied in single precision")
    assert evaluate(qrels, run, ties="trec_eval").tied == ()


def test_a_mean_is_that_over_all_judged_queries_whatever_ir_measures_leaves_out() -> None:
    qrels = {"q": {"a": 1}, "nothing relevant": {"a": 0}, "missing": {"a": 1}}
    found = evaluate(qrels, {query_id: ranked("a", "b") for query_id in ("q", "nothing relevant")}, ["Accuracy"])
    assert found.per_query["Accuracy"] == {"q": 1.0, "nothing relevant": 0.0, "missing": 0.0}
    assert found.means["Accuracy"] == pytest.approx(1 / 3)


def test_a_measure_that_cannot_be_computed_is_told_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"one of AP, Accuracy cannot be computed .* leave that measure out"):
        evaluate({"q": {"a": 1}}, {"q": ranked("a")}, ["AP", "Accuracy"])


SCORES = st.sampled_from([0.0, -2.5, 1.0, 0.99999998, 0.99999999, 1e-45, 1e300, -1e300, 3.1])
DOCS = st.text("abé\u4e2d", min_size=1, max_size=2)


@given(
    qrels=st.dictionaries(st.sampled_from("pqr"), st.dictionaries(DOCS, st.integers(-1, 4), min_size=1), min_size=1),
    run=st.dictionaries(st.sampled_from("pqrs"), st.dictionaries(DOCS, SCORES, min_size=1)),
)
def test_values_are_those_of_trec_eval_by_its_own_rule(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    candidates = {q: [Candidate(d, score) for d, score in docs.items()] for q, docs in run.items()}
    names = {"nDCG@2": "ndcg_cut_2", "nDCG@10": "ndcg_cut_10", "AP": "map", "RR": "recip_rank", "P@1": "P_1"}
    found = evaluate(qrels, candidates, list(names), ties="trec_eval")
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    for ours, trec in names.items():
        expected = {query_id: theirs.get(query_id, {}).get(trec, 0.0) for query_id in qrels}
        assert found.per_query[ours] == pytest.approx(expected)
        assert found.means[ours] == pytest.approx(sum(expected.values()) / len(qrels))


@pytest.mark.parametrize("odd", ["a b", "\udcff", "a\0b", ""])
def test_odd_ids(odd: str) -> None:
    found = evaluate({odd: {odd: 1, "a": 0}}, {odd: ranked(odd, "a")}, ["nDCG@10", "RR@10"])
    assert found.means == {"nDCG@10": 1.0, "RR@10": 1.0}
    assert found.per_query["nDCG@10"] == {odd: 1.0}


@given(grades=st.dictionaries(DOCS, st.integers(-(10**9), 0), min_size=1))
def test_grades_below_zero_are_not_relevant(grades: dict[str, int]) -> None:
    found = evaluate({"q": grades, "r": {"a": 1, "b": -3}}, {"q": ranked(*grades), "r": ranked("b", "a")})
    assert found.per_query["nDCG@10"] == {"q": 0.0, "r": pytest.approx(1 / math.log2(3))}
    assert found.means["Judged@10"] == 1.0


def test_a_grade_that_would_exhaust_memory_is_refused() -> None:
    with pytest.raises(InputError, match="grade 999999999"):
        evaluate({"q": {"a": 999_999_999}}, {"q": ranked("a")})


def test_a_document_repeated_in_a_list_counts_once_at_its_best() -> None:
    repeated = {"q": [Candidate("b", 2.0), Candidate("a", 1.0), Candidate("a", 3.0)]}
    found = evaluate({"q": {"a": 1}}, repeated, ["RR@10", "NumRet"])
    assert found.means == {"RR@10": 1.0, "NumRet": 2.0}


def test_names_are_ir_measures_own_and_come_back_in_its_spelling() -> None:
    names = ["P(rel=2)@5", "NDCG@10", " AP ", "MRR@10", "nDCG(gains={1: 3})@5", "IPrec@0.1", "nDCG@10"]
    found = evaluate({"q": {"a": 2}}, {"q": ranked("a")}, names)
    assert found.measures == (
        "P(rel=2)@5",
        "nDCG@10",
        "AP",
        "RR@10",
        "nDCG(gains={1:3})@5",
        "IPrec@0.1",
    )


@pytest.mark.parametrize(
    "name",
    [
        *("", "nonsense", "ndcg_cut_10", "nDCG@", "nDCG@ten", "nDCG@'10'", "nDCG@1.5", "@10", "P", "P(5)", "P@-0"),
        *("nDCG@0", "nDCG@-1", "nDCG@10@20", "nDCG@1000000000000", "AP(rel=x)", "AP(**{'rel': 1})", "AP(nope=1)"),
        *("nDCG@10 + AP", "__import__('os')", "AP; AP", "nDCG\n@10", "a" * 5000, "(" * 500, "nDCG@\0"),
        *("P(rel=0)@5", "P(rel=10000000000)@5", "nDCG(gains={1: -5})@5", "nDCG(gains={1: 2.5})@5"),
        *("nDCG(gains=5)@5", "P@True", "IPrec@-1.0", "SetF(beta=-1.0)", "BPM"),
    ],
)
def test_a_measure_that_is_none_says_what_to_write(name: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluate({"q": {"a": 1}}, {"q": ranked("a")}, [name])
    assert "measure" in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_slip_of_the_pen_is_guessed() -> None:
    with pytest.raises(InputError, match=r"'ndcg@10' \(did you mean nDCG@10\?\)"):
        evaluate({"q": {"a": 1}}, {"q": ranked("a")}, ["ndcg@10"])


def test_a_measure_whose_code_is_not_installed() -> None:
    with pytest.raises(InputError, match="alpha_nDCG"):
        evaluate({"q": {"a": 1}}, {"q": ranked("a")}, ["alpha_nDCG@10"])


def test_nothing_to_evaluate_by() -> None:
    with pytest.raises(InputError, match="no judgments"):
        evaluate({}, {"q": ranked("a")})
    with pytest.raises(InputError, match="no measure"):
        evaluate({"q": {"a": 1}}, {"q": ranked("a")}, [])


def published() -> list[tuple[str, str]]:
    stats = sorted(SHARED.glob("*/stats.json"))
    return [(path.parent.name, run) for path in stats for run in json.loads(path.read_text())["runs"]]


@pytest.mark.parametrize(
    ("collection", "run_name"),
    published() or [pytest.param("", "", marks=pytest.mark.skip("needs ../shared beside the checkout"))],
)
def test_published_figures(collection: str, run_name: str) -> None:
    """They were taken from lists, ties in the order of the file."""
    folder = SHARED / collection
    figures = json.loads((folder / "stats.json").read_text())["runs"][run_name]
    qrels, run = read_qrels(folder / "qrels.trec"), read_run(folder / f"run.{run_name}.trec")
    found = evaluate(qrels, run)
    assert found.missing == found.unjudged == ()
    for name in ("nDCG@10", "RR@10", "R@100"):
        assert round(found.means[name], 4) == figures[name]

    scores = {query_id: {c.doc_id: c.score for c in candidates} for query_id, candidates in run.items()}
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(scores)
    trec_eval = sum(value["ndcg_cut_10"] for value in values.values()) / len(qrels)
    assert evaluate(qrels, run, ties="trec_eval").means["nDCG@10"] == pytest.approx(trec_eval, abs=1e-12)
