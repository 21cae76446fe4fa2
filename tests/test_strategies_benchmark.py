"""The arithmetic of benchmarks/strategies.py, on collections of a few lines."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from benchmarks.calibrate_noise import ndcg_at_10
from benchmarks.strategies import NOISES, RUNS, Sums, answered, difference, simulate

from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import Noise, SimulatedJudge
from rank_k.records import Candidate, Window


def test_strategies_meet_the_same_judge_and_every_seed_another(tmp_path: Path) -> None:
    for name, runs in RUNS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "qrels.trec").write_text("".join(f"q 0 d{i} {i % 3}\n" for i in range(40)))
        for run in runs:
            (tmp_path / name / run).write_text("".join(f"q Q0 d{i} {i} {-i} t\n" for i in range(40)))
    folder = tmp_path / "cranfield"
    found = simulate((folder, 0), ["sliding", "paper", "blocks"])
    by_name = {(cell.noise, cell.strategy): sums for cell, sums in found.items()}
    for noise in NOISES:
        assert by_name[noise, "sliding"] == by_name[noise, "paper"]
        assert (by_name[noise, "blocks"].calls, by_name[noise, "sliding"].calls) == (4, 3)
        assert by_name[noise, "sliding"].passages == 60
    assert all(found[cell] == sums for cell, sums in simulate((folder, 0), ["blocks"]).items())
    assert any(found[cell] != sums for cell, sums in simulate((folder, 1), ["blocks"]).items())


def test_a_malformed_reply_is_read_as_what_it_is() -> None:
    ids = tuple(f"d{i}" for i in range(20))
    grades = {str(query): {doc_id: i for i, doc_id in enumerate(ids)} for query in range(30)}
    judge = SimulatedJudge(grades, Noise(malformed=1.0), seed=3)
    read = [answered(judge, query_id, Window(ids, (1, 20))) for query_id in grades]
    assert 5 < sum(not order.ranked for order in read) < 20
    assert all(set(order.doc_ids) == set(ids) and order.placed < set(ids) for order in read)
    sound = answered(SimulatedJudge({"q": {"d7": 1}}), "q", Window(ids, (1, 20)))
    assert sound.tiers[0] == ("d7",)
    assert sound.placed == set(ids)


def test_ndcg_is_that_of_ir_measures() -> None:
    pytest.importorskip("ir_measures")
    random = Random(5)
    for _ in range(20):
        ids = [f"d{i}" for i in range(30)]
        grades = {doc_id: random.randint(-1, 3) for doc_id in random.sample(ids, 20)} | {"elsewhere": 2}
        found = evaluate({"q": grades}, {"q": [Candidate(d, -i) for i, d in enumerate(ids)]}, ["nDCG@10"])
        assert ndcg_at_10(ids, grades) == pytest.approx(found.means["nDCG@10"], abs=1e-9)


def test_differences_are_paired_by_query_after_averaging_seeds() -> None:
    ours, theirs = Sums(), Sums()
    for query_id, seeds in {"a": ((0.5, 0.4), (0.7, 0.4)), "b": ((0.3, 0.3), (0.3, 0.1))}.items():
        for one, other in seeds:
            ours.add(query_id, one, [])
            theirs.add(query_id, other, [])
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(15)  # query a: 20 points, query b: 10
    assert found.error == pytest.approx(5)
