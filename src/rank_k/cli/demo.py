"""`rank-k demo`: the main job on real text that is on every machine, with the embedded model."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from rank_k.cli.common_flags import positive_int
from rank_k.cli.model_options import add_options, add_server_options, reranker_options
from rank_k.data.collections.demo import load_passages, load_qrels, load_questions
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.models.student import default_model, find_student
from rank_k.options import OPTIONS
from rank_k.reranker import Reranker
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Candidate, Passage, Query

DEPTH = 12
PASSAGE_TOKENS = 120  # a docstring's gist; the embedded model reads some 200 tokens a second

METHOD_DESCRIPTIONS = {
    "listwise": "ranked by comparison; before each ranking stands what was thought",
    "likelihood": "ranked by query likelihood, not by comparison: nothing was thought; before each passage stands the"
    " log-probability of the question after it",
    "combined": "ranked by comparison, query likelihood and BM25 together; before each ranking stands what was thought,"
    " and before each passage the log-probability of the question after it",
}
"""What is said of the rankings, by what they are ranked by."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--query", metavar="TEXT", help="a question of your own about Python")
    parser.add_argument("--all", action="store_true", help="all judged questions rather than six")
    parser.add_argument("--depth", type=positive_int, default=DEPTH, metavar="N", help="passages per question")
    add_options(parser, [OPTIONS[name] for name in ("method", "reasoning", "max_tokens")])
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.depth < 2:
        raise InputError(f"--depth is {args.depth}", "give 2 or more")
    started = time.monotonic()
    texts = {passage.doc_id: passage for passage in load_passages()}
    if args.query:
        queries = {"yours": Query("yours", args.query)}
    else:
        queries = {q.query.query_id: q.query for q in load_questions() if args.all or q.featured}
    first_stage = dict(retrieve(queries.values(), texts.values(), depth=args.depth))
    qrels_of_queries = {query_id: grades for query_id, grades in load_qrels().items() if query_id in queries}
    reranked: dict[str, Sequence[Candidate]] = {}
    weights_name = args.model or default_model(args.method)
    is_plain = args.server is None and find_student(weights_name) is None  # no settings of its own
    options = reranker_options(args) | {"depth": None}
    if is_plain:
        options = {"passage_tokens": PASSAGE_TOKENS, "max_tokens": 256, "temperature": 0.0, **options}
    with Reranker(args.model, **options) as reranker:
        reranker.prepare()
        print(f"{len(texts):,} passages of Python's documentation, BM25, then {reranker.model.name}")
        print(textwrap.fill(METHOD_DESCRIPTIONS[reranker.method], 96), end="\n\n")
        for query_id, query in queries.items():
            grades = qrels_of_queries.get(query_id, {})
            reranked[query_id] = _rerank_question(reranker, query, first_stage[query_id], texts, grades)
    if qrels_of_queries:
        _print_quality(qrels_of_queries, first_stage, reranked)
    print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)
    return 0


def _rerank_question(
    reranker: Reranker,
    query: Query,
    candidates: Sequence[Candidate],
    texts: Mapping[str, Passage],
    grades: Mapping[str, int],
) -> Sequence[Candidate]:
    """Rerank the candidates of a question, print them in their new order, and return them."""
    print(f"── {query.text}")
    if len(candidates) < 2:
        print("   BM25 found fewer than two passages: nothing to compare\n")
        return candidates
    ids = [candidate.doc_id for candidate in candidates]
    hits = reranker.rank(query.text, [texts[doc_id].text for doc_id in ids])
    trace = textwrap.shorten(" ".join(hits.traces), 400, placeholder=" ...")
    if trace:
        print(textwrap.indent(textwrap.fill(trace, 96), "   │ "))
    for hit in hits:
        doc_id = ids[hit.index]
        grade = f"grade {grades[doc_id]}" if doc_id in grades else "       "
        gist = textwrap.shorten(texts[doc_id].text, 64, placeholder="...")
        score = "" if hit.likelihood is None else f"{hit.likelihood:>8.2f}  "
        print(f"  {'=' if hit.tied else ' '}{hit.rank:>3}  was {hit.index + 1:>2}  {grade}  {score}{doc_id}: {gist}")
    repairs = "".join(f", {kind} {count}" for kind, count in sorted(hits.repairs.items()))
    print(f"   {hits.usage.prompt_tokens} tokens in, {hits.usage.completion_tokens} out{repairs}\n")
    return [Candidate(ids[hit.index], hit.score) for hit in hits]


def _print_quality(
    qrels: Mapping[str, Mapping[str, int]],
    first_stage: Mapping[str, Sequence[Candidate]],
    reranked: Mapping[str, Sequence[Candidate]],
) -> None:
    """Print nDCG@10 before and after, and how many questions got better or worse."""
    from statistics import fmean

    before, after = (evaluate(qrels, run, ["nDCG@10"]).per_query["nDCG@10"] for run in (first_stage, reranked))
    better = sum(after[query_id] > before[query_id] + 1e-9 for query_id in before)
    worse = sum(after[query_id] < before[query_id] - 1e-9 for query_id in before)
    moved = sum([c.doc_id for c in reranked[q]] != [c.doc_id for c in first_stage[q]] for q in first_stage)
    print(f"nDCG@10  BM25 {fmean(before.values()):.4f}   reranked {fmean(after.values()):.4f}")
    print(f"{len(before)} questions: {better} better, {worse} worse, order changed in {moved}")
