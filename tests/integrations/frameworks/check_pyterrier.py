"""PyTerrier: its own test case for transformers, a pipeline in an experiment, and frames of every kind."""

from __future__ import annotations

import sys
import unittest
from typing import Any

import pandas as pd
import pyterrier as pt
import pyterrier.testing

from rank_k import Reranker
from rank_k.errors import InputError
from rank_k.integrations.pyterrier import RankKReranker
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import peak_concurrency
from tests.fakes.model_server.running import FakeModelServer
from tests.integrations.frameworks.common import MODEL, assert_raises

URL = sys.argv[1]
DATA = make_dataset(12, 20, strict=True)
TOPICS = pd.DataFrame([[query.query_id, query.text] for query in DATA.queries], columns=["qid", "query"])
QRELS = pd.DataFrame(
    [[query_id, doc_id, grade] for query_id, grades in DATA.qrels.items() for doc_id, grade in grades.items()],
    columns=["qid", "docno", "label"],
)
RESULTS = pd.DataFrame(
    [
        [query.query_id, query.text, candidate.doc_id, DATA.passages[candidate.doc_id].text, candidate.score, rank, 7]
        for query in DATA.queries
        for rank, candidate in enumerate(DATA.run[query.query_id])
    ],
    columns=["qid", "query", "docno", "text", "score", "rank", "extra"],
)


class Conforms(pyterrier.testing.TransformerTestCase):
    @staticmethod
    def get_transformer() -> Any:
        return RankKReranker(MODEL, server=URL)


def check_experiment(transformer: Any) -> None:
    first_stage = pt.Transformer.from_df(RESULTS)
    pipelines = [first_stage, first_stage % 20 >> transformer]
    table = pt.Experiment(pipelines, TOPICS, QRELS, ["ndcg"], names=["before", "after"]).set_index("name")["ndcg"]
    assert table["after"] == 1.0
    assert table["before"] < 0.95


def check_concurrent_queries(transformer: Any) -> None:
    loopback = FakeModelServer(URL)
    loopback.forget()
    ranked = transformer(RESULTS)
    spans = [(call.start, call.end) for call in loopback.calls if call.end is not None]
    assert len(spans) == len(TOPICS)
    assert peak_concurrency(spans) > 6
    assert list(ranked.columns) == list(RESULTS.columns)
    assert list(ranked["qid"].unique()) == list(TOPICS["qid"])
    for query_id, frame in ranked.groupby("qid"):
        assert list(frame["docno"]) == DATA.perfect(str(query_id))
        assert list(frame["rank"]) == list(range(20))
        assert list(frame["score"]) == [1 / rank for rank in range(1, 21)]
        assert set(frame["extra"]) == {7}


def check_row_order_is_ignored() -> None:
    with Reranker(MODEL, server=URL, depth=4) as reranker:  # so that what is compared depends on the first stage
        transformer = RankKReranker(reranker)
        query_rows = RESULTS[RESULTS["qid"] == "Q00"]
        ranked = list(transformer(query_rows)["docno"])
        assert ranked[4:] == list(query_rows["docno"][4:]), "beyond the depth nothing moves"
        assert ranked[:4] != list(query_rows["docno"][:4])
        shuffled = query_rows.sample(frac=1, random_state=3)
        assert list(transformer(shuffled)["docno"]) == ranked
        assert list(transformer(shuffled.drop(columns="rank"))["docno"]) == ranked


def check_other_columns(transformer: Any) -> None:
    renamed = RESULTS.rename(columns={"text": "body"}).drop(columns=["score", "rank"])
    ranked = RankKReranker(transformer.reranker, text_field="body")(renamed)
    assert list(ranked["docno"][:20]) == DATA.perfect("Q00")
    assert set(ranked.columns) == {*renamed.columns, "score", "rank"}
    with assert_raises(pt.validate.InputValidationError, "does not match required columns"):
        transformer(renamed)


def check_invalid_frames(transformer: Any) -> None:
    empty = transformer(RESULTS.iloc[:0])
    assert (len(empty), list(empty.columns)) == (0, list(RESULTS.columns))
    with assert_raises(InputError, "Q00.*twice"):
        transformer(pd.concat([RESULTS, RESULTS]))
    with assert_raises(InputError, "no text"):
        transformer(RESULTS.assign(text=None))


if __name__ == "__main__":
    with Reranker(MODEL, server=URL) as ready:
        check_concurrent_queries(RankKReranker(ready))
        check_experiment(RankKReranker(ready))
        check_other_columns(RankKReranker(ready))
        check_invalid_frames(RankKReranker(ready))
    check_row_order_is_ignored()
    unittest.main(argv=["check_pyterrier"])
