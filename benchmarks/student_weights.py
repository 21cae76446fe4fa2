"""How much comparison, likelihood and first stage should each weigh where a student is asked by both.

    python -m benchmarks.student_weights STUDENT COLLECTION... [--queries N] [--output FOLDER] [--likelihood-tokens N]

COLLECTION: folders that `benchmarks.student_data` wrote for this, `heldout-NAME`, or others of the same layout that the
student is not judged on. The first N queries of each are ranked by both, through the embedded model; which windows are
asked does not depend on the weights, so that the rankings of all of them follow from one set of answers. It does depend
on the likelihoods, and these on how much of a passage is looked at by itself: --likelihood-tokens tries another cut.

Calls stay in the output folder: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

from rank_k import Reranker
from rank_k.data.passages import read_passages
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.strategies.bradley_terry import fit_strengths
from rank_k.strategies.combined import comparison_scores, first_stage_scores, rank_by_weighted_sum, standardize
from rank_k.types import Candidate, WindowResult
from rank_k.window.combined import CombinedRanker
from rank_k.window.scorers import PASSAGE_TOKENS, QueryLikelihoodScorer

DEPTH = 20
MEASURE = "nDCG@10"
WEIGHTS = ((0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (3.0, 2.0))
"""Of likelihood and first stage, beside 1 for comparison."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=15, metavar="N")
    parser.add_argument("--likelihood-tokens", type=int, default=PASSAGE_TOKENS, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("student-weights"))
    args = parser.parse_args()
    values_of_method: defaultdict[str, list[float]] = defaultdict(list)
    for collection in args.collections:
        folder = args.output / collection.name
        for name, value in measure_weights(args.student, collection, args.queries, args.likelihood_tokens, folder):
            values_of_method[name].append(value)
    print(f"| ranked by | {' | '.join(collection.name for collection in args.collections)} | mean |")
    print("|---" * (len(args.collections) + 2) + "|")
    for name, values in values_of_method.items():
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | {fmean(values):.4f} |")


def measure_weights(
    student: str, collection: Path, queries_count: int, likelihood_tokens: int, folder: Path
) -> Iterator[tuple[str, float]]:
    """Mean nDCG@10 by what is ranked by."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        query_id: candidates[:DEPTH]
        for query_id, candidates in islice(read_run(next(collection.glob("run.*bm25*"))).items(), queries_count)
    }
    qrels = read_qrels(collection / "qrels.trec")
    qrels = {query_id: qrels[query_id] for query_id in run}
    passages = {passage.doc_id: passage for passage in read_passages(next(collection.glob("corpus.jsonl*")))}
    results_of_query: defaultdict[str, list[WindowResult]] = defaultdict(list)
    with Reranker(student, method="combined", depth=DEPTH, journal=folder / "calls.sqlite") as reranker:
        assert isinstance(reranker.ranker, CombinedRanker)
        listwise = reranker.ranker.listwise
        reranker.ranker = CombinedRanker(QueryLikelihoodScorer(listwise.model, likelihood_tokens), listwise)
        queries = read_queries(collection / "queries.jsonl")
        for _ in reranker.rerank(
            run,
            queries,
            passages,
            on_result=lambda query_id, _r, _n, report: results_of_query[query_id].append(report.result),
        ):
            pass
    rankings: defaultdict[str, dict[str, Sequence[Candidate]]] = defaultdict(dict)
    for query_id, candidates in run.items():
        ids = [candidate.doc_id for candidate in candidates]
        for name, ranking in rankings_by_method(ids, results_of_query[query_id]):
            rankings[name][query_id] = [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ranking, 1)]
    for name, run_of_method in rankings.items():
        yield name, fmean(evaluate(qrels, run_of_method, [MEASURE]).per_query[MEASURE].values())


def rankings_by_method(ids: Sequence[str], results: Sequence[WindowResult]) -> Iterator[tuple[str, Sequence[str]]]:
    """What each way to rank makes of one query. `ids`: best of the first stage first."""
    first_stage = first_stage_scores(ids)
    [likelihood] = [standardize(result.likelihoods) for result in results if result.window.method == "likelihood"]
    listwise_results = [result for result in results if result.window.method == "listwise"]
    yield "BM25", ids
    yield "likelihood", rank_by_weighted_sum(ids, (1.0, likelihood))
    yield "likelihood + first stage", rank_by_weighted_sum(ids, (1.0, likelihood), (1.0, first_stage))
    yield "comparison, first stage as prior", fit_strengths(ids, listwise_results).ranked_ids()
    comparison = comparison_scores(ids, listwise_results)
    yield "comparison", rank_by_weighted_sum(ids, (1.0, comparison))
    for a, b in WEIGHTS:
        name = f"comparison + {a:g} likelihood + {b:g} first stage"
        yield name, rank_by_weighted_sum(ids, (1.0, comparison), (a, likelihood), (b, first_stage))


if __name__ == "__main__":
    main()
