"""The quick judge of benchmarks/strategies.py is the simulated judge; its figures are those of ir_measures."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from benchmarks.strategies import NOISES, QuickJudge, Sums, difference, ndcg_at_10

from rank_k.answer import parse_answer
from rank_k.evaluation.measures import evaluate
from rank_k.models.base import Request, Subject
from rank_k.models.simulated import SimulatedJudge
from rank_k.records import Candidate, Order, Window


@pytest.mark.parametrize("noise", NOISES)
def test_the_quick_judge_answers_as_the_simulated_one(noise: str) -> None:
    ids = [f"d{i}" for i in range(100)]
    grades = {"q": {doc_id: Random(doc_id).randrange(4) for doc_id in ids}}
    quick, slow = QuickJudge(grades, noise, 7, {}), SimulatedJudge(grades, noise, seed=7)
    random = Random(0)
    malformed = 0
    for _ in range(150):
        window = Window(tuple(random.sample(ids, random.randint(2, 30))), (1, 100))
        assert quick.tiers("q", window.doc_ids) == slow.tiers("q", window.doc_ids)
        reply = asyncio.run(slow.ask(Request((), 100, subject=Subject("q", window.doc_ids))))
        answer = parse_answer(reply.text, len(window.doc_ids), reasoning=reply.reasoning, finish_reason="stop")
        read = Order(
            tuple(tuple(window.doc_ids[i - 1] for i in tier) for tier in answer.tiers),
            frozenset(window.doc_ids[i - 1] for i in answer.placed),
            answer.ranked,
        )
        assert quick.order("q", window) == read
        malformed += len(read.placed) < len(window.doc_ids)
    assert malformed, "no malformed answer among so many: the test compares less than it says"


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
