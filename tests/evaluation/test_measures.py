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
from rank_k.evaluation.measures import DEFAULT_MEASURES, Ties, evaluate, ndcg
from rank_k.types import Candidate
from tests.paths import SHARED

pytestmark = pytest.mark.integration


def ranked_candidates(*doc_ids: str) -> list[Candidate]:
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)]


def test_evaluate_matches_manual_calculation() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0, "x": 1}}
    evaluation = evaluate(qrels, {"q": ranked_candidates("c", "a", "unjudged", "b")})
    assert tuple(evaluation.means) == DEFAULT_MEASURES
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    ideal_gain = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "nDCG@10": gain / ideal_gain,
        "nDCG@20": gain / ideal_gain,
        "AP": (1 / 2 + 2 / 4) / 3,
        "RR@10": 1 / 2,
        "R@100": 2 / 3,
        "Judged@10": 3 / 4,
    }
    assert evaluation.means == pytest.approx(expected)
    assert {name: values["q"] for name, values in evaluation.per_query.items()} == pytest.approx(expected)


def test_evaluate_counts_missing_queries_as_zero_and_skips_unjudged() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {"a": 0}}
    run = {"other": ranked_candidates("a"), "q1": ranked_candidates("a"), "q3": [], "q4": ranked_candidates("a")}
    evaluation = evaluate(qrels, run, ["nDCG@10", "Judged@10", "NumRet"])
    assert evaluation.per_query["nDCG@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 0.0}
    assert evaluation.per_query["Judged@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 1.0}
    assert evaluation.means == {"nDCG@10": 0.25, "Judged@10": 0.5, "NumRet": 2.0}
    assert evaluation.missing == ("q2", "q3")
    assert evaluation.unjudged == ("other",)


@pytest.mark.parametrize(("ties", "value"), [("file", 1.0), ("trec_eval", 0.0)])
def test_evaluate_breaks_ties_the_same_way_for_every_measure(ties: Ties, value: float) -> None:
    tied = {"q": [Candidate("c", 0.5), Candidate("a", 1.0), Candidate("b", 1.0)]}
    evaluation = evaluate({"q": {"a": 1}}, tied, ["RR", "RR@10", "Judged@1", "P@1", "nDCG@1"], ties=ties)
    mean_value = (1 + value) / 2
    assert evaluation.means == {"RR": mean_value, "RR@10": mean_value, "Judged@1": value, "P@1": value, "nDCG@1": value}


def test_evaluate_lists_queries_whose_ties_trec_eval_orders_differently() -> None:
    run = {
        "tied": [Candidate("a", 1.0), Candidate("b", 1.0)],
        "tied in single precision": [Candidate("a", 1.00000001), Candidate("b", 1.0)],
        "tied as trec_eval has it": [Candidate("b", 1.0), Candidate("a", 1.0)],
        "not tied": ranked_candidates("a", "b"),
        "not judged": [Candidate("a", 1.0), Candidate("b", 1.0)],
    }
    qrels = {query_id: {"a": 1} for query_id in run if query_id != "not judged"}
    assert evaluate(qrels, run).tied == ("tied", "tied in single precision")
    assert evaluate(qrels, run, ties="trec_eval").tied == ()


def test_evaluate_averages_over_all_judged_queries() -> None:
    qrels = {"q": {"a": 1}, "nothing relevant": {"a": 0}, "missing": {"a": 1}}
    evaluation = evaluate(
        qrels, {query_id: ranked_candidates("a", "b") for query_id in ("q", "nothing relevant")}, ["Accuracy"]
    )
    assert evaluation.per_query["Accuracy"] == {"q": 1.0, "nothing relevant": 0.0, "missing": 0.0}
    assert evaluation.means["Accuracy"] == pytest.approx(1 / 3)


def test_evaluate_rejects_uncomputable_measure_with_remedy() -> None:
    with pytest.raises(InputError, match=r"one of AP, Accuracy cannot be computed .* leave that measure out"):
        evaluate({"q": {"a": 1}}, {"q": ranked_candidates("a")}, ["AP", "Accuracy"])


@given(
    grades=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-2, 3), min_size=1),
    ranking=st.permutations("abcdefgh"),
    length=st.integers(1, 8),
    cutoff=st.integers(1, 5),
)
def test_ndcg_equals_ir_measures(grades: dict[str, int], ranking: list[str], length: int, cutoff: int) -> None:
    doc_ids = ranking[:length]
    evaluation = evaluate({"q": grades}, {"q": ranked_candidates(*doc_ids)}, [f"nDCG@{cutoff}"])
    value = ndcg([grades.get(doc_id, 0) for doc_id in doc_ids], grades.values(), cutoff)
    assert value == pytest.approx(evaluation.means[f"nDCG@{cutoff}"])


def test_ndcg_uses_ranked_passages_as_ideal_and_accepts_means_of_ties() -> None:
    assert ndcg([0, 2]) == pytest.approx(1 / math.log2(3))
    assert ndcg([1.5, 1.5, 0], [2, 1, 0]) == pytest.approx((1.5 + 1.5 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert ndcg([0, 0]) == ndcg([]) == 0.0


SCORES = st.sampled_from([0.0, -2.5, 1.0, 0.99999998, 0.99999999, 1e-45, 1e300, -1e300, 3.1])
DOCS = st.text("abé\u4e2d", min_size=1, max_size=2)


@given(
    qrels=st.dictionaries(st.sampled_from("pqr"), st.dictionaries(DOCS, st.integers(-1, 4), min_size=1), min_size=1),
    run=st.dictionaries(st.sampled_from("pqrs"), st.dictionaries(DOCS, SCORES, min_size=1)),
)
def test_evaluate_with_trec_eval_ties_matches_pytrec_eval(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    candidates = {q: [Candidate(d, score) for d, score in docs.items()] for q, docs in run.items()}
    names = {"nDCG@2": "ndcg_cut_2", "nDCG@10": "ndcg_cut_10", "AP": "map", "RR": "recip_rank", "P@1": "P_1"}
    evaluation = evaluate(qrels, candidates, list(names), ties="trec_eval")
    reference = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    for ours, trec_name in names.items():
        expected = {query_id: reference.get(query_id, {}).get(trec_name, 0.0) for query_id in qrels}
        assert evaluation.per_query[ours] == pytest.approx(expected)
        assert evaluation.means[ours] == pytest.approx(sum(expected.values()) / len(qrels))


@pytest.mark.parametrize("unusual_id", ["a b", "\udcff", "a\0b", ""])
def test_evaluate_accepts_unusual_ids(unusual_id: str) -> None:
    evaluation = evaluate(
        {unusual_id: {unusual_id: 1, "a": 0}}, {unusual_id: ranked_candidates(unusual_id, "a")}, ["nDCG@10", "RR@10"]
    )
    assert evaluation.means == {"nDCG@10": 1.0, "RR@10": 1.0}
    assert evaluation.per_query["nDCG@10"] == {unusual_id: 1.0}


@given(grades=st.dictionaries(DOCS, st.integers(-(10**9), 0), min_size=1))
def test_evaluate_treats_negative_grades_as_not_relevant(grades: dict[str, int]) -> None:
    evaluation = evaluate(
        {"q": grades, "r": {"a": 1, "b": -3}}, {"q": ranked_candidates(*grades), "r": ranked_candidates("b", "a")}
    )
    assert evaluation.per_query["nDCG@10"] == {"q": 0.0, "r": pytest.approx(1 / math.log2(3))}
    assert evaluation.means["Judged@10"] == 1.0


def test_evaluate_rejects_huge_grade() -> None:
    with pytest.raises(InputError, match="grade 999999999"):
        evaluate({"q": {"a": 999_999_999}}, {"q": ranked_candidates("a")})


def test_evaluate_counts_duplicate_document_once_at_best_rank() -> None:
    repeated = {"q": [Candidate("b", 2.0), Candidate("a", 1.0), Candidate("a", 3.0)]}
    evaluation = evaluate({"q": {"a": 1}}, repeated, ["RR@10", "NumRet"])
    assert evaluation.means == {"RR@10": 1.0, "NumRet": 2.0}


def test_evaluate_returns_canonical_measure_names() -> None:
    names = ["P(rel=2)@5", "NDCG@10", " AP ", "MRR@10", "nDCG(gains={1: 3})@5", "IPrec@0.1", "nDCG@10"]
    evaluation = evaluate({"q": {"a": 2}}, {"q": ranked_candidates("a")}, names)
    assert tuple(evaluation.means) == (
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
        *(
            "",
            "nonsense",
            "ndcg_cut_x",
            "ndcg_cut_0",
            "official",
            "nDCG@",
            "nDCG@ten",
            "nDCG@'10'",
            "nDCG@1.5",
            "@10",
            "P",
            "P(5)",
            "P@-0",
        ),
        *("nDCG@0", "nDCG@-1", "nDCG@10@20", "nDCG@1000000000000", "AP(rel=x)", "AP(**{'rel': 1})", "AP(nope=1)"),
        *("nDCG@10 + AP", "__import__('os')", "AP; AP", "nDCG\n@10", "a" * 5000, "(" * 500, "nDCG@\0"),
        *("P(rel=0)@5", "P(rel=10000000000)@5", "nDCG(gains={1: -5})@5", "nDCG(gains={1: 2.5})@5"),
        *("nDCG(gains=5)@5", "P@True", "IPrec@-1.0", "SetF(beta=-1.0)", "BPM"),
    ],
)
def test_evaluate_rejects_invalid_measure_with_remedy(name: str) -> None:
    with pytest.raises(InputError) as raised:
        evaluate({"q": {"a": 1}}, {"q": ranked_candidates("a")}, [name])
    assert "measure" in raised.value.problem
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


def test_evaluate_accepts_the_names_of_trec_eval() -> None:
    names = ["ndcg_cut_10", "map", "recip_rank", "P_10", "recall_100", "map_cut_5", "nDCG@10"]
    evaluation = evaluate({"q": {"a": 2}}, {"q": ranked_candidates("a")}, names)
    assert tuple(evaluation.means) == ("nDCG@10", "AP", "RR", "P@10", "R@100", "AP@5")


def test_evaluate_suggests_measure_for_misspelled_name() -> None:
    with pytest.raises(InputError, match=r"'ndcg@10' \(did you mean nDCG@10\?\)"):
        evaluate({"q": {"a": 1}}, {"q": ranked_candidates("a")}, ["ndcg@10"])


def test_evaluate_rejects_measure_without_installed_provider() -> None:
    with pytest.raises(InputError, match="alpha_nDCG"):
        evaluate({"q": {"a": 1}}, {"q": ranked_candidates("a")}, ["alpha_nDCG@10"])


def test_evaluate_rejects_empty_qrels_and_measures() -> None:
    with pytest.raises(InputError, match="no judgments"):
        evaluate({}, {"q": ranked_candidates("a")})
    with pytest.raises(InputError, match="no measure"):
        evaluate({"q": {"a": 1}}, {"q": ranked_candidates("a")}, [])


def published_runs() -> list[tuple[str, str]]:
    stats = sorted(SHARED.glob("*/stats.json"))
    return [(path.parent.name, run) for path in stats for run in json.loads(path.read_text())["runs"]]


@pytest.mark.parametrize(
    ("collection", "run_name"),
    published_runs() or [pytest.param("", "", marks=pytest.mark.skip("needs ../shared beside the checkout"))],
)
def test_evaluate_reproduces_published_figures(collection: str, run_name: str) -> None:
    """They were taken from lists, ties in the order of the file."""
    folder = SHARED / collection
    figures = json.loads((folder / "stats.json").read_text())["runs"][run_name]
    qrels, run = read_qrels(folder / "qrels.trec"), read_run(folder / f"run.{run_name}.trec")
    evaluation = evaluate(qrels, run)
    assert evaluation.missing == evaluation.unjudged == ()
    for name in ("nDCG@10", "RR@10", "R@100"):
        assert round(evaluation.means[name], 4) == figures[name]

    scores = {query_id: {c.doc_id: c.score for c in candidates} for query_id, candidates in run.items()}
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(scores)
    trec_eval = sum(value["ndcg_cut_10"] for value in values.values()) / len(qrels)
    assert evaluate(qrels, run, ties="trec_eval").means["nDCG@10"] == pytest.approx(trec_eval, abs=1e-12)
