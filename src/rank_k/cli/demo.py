"""`rank-k demo`: rerank passages of Python's own documentation, and show the rankings before and after."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rank_k.cli.common_flags import positive_int
from rank_k.cli.model_options import add_options, add_server_options, reranker_options
from rank_k.cli.render.tables import Table, print_tables
from rank_k.cli.render.words import count_noun, format_seconds
from rank_k.cli.run_progress import RunProgress, show_progress
from rank_k.data.collections.demo import load_passages, load_qrels, load_questions
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.models.student import default_model, find_student
from rank_k.options import OPTIONS
from rank_k.reranker import Reranker
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Candidate, Passage, Query
from rank_k.window.base import WindowReport

SHOWCASE = ("parallel-processes", "random-items")
"""The questions that are shown by default, because rank-k-nano clearly improves their rankings. --all shows every
question."""
DEPTH = 12
_TABLE_ROWS = 5
_GIST_LENGTH = 32
_TRACE_LENGTH = 64
_MARKS = {3: "●", 2: "●", 1: "○"}
"""The mark for a passage of each grade."""
PASSAGE_TOKENS = 120
"""The beginning of a docstring usually says enough. The embedded model reads about 200 tokens per second on 2 CPU
cores."""

METHOD_DESCRIPTIONS = {
    "listwise": "It compares passages in windows, and the windows are combined into one ranking.",
    "likelihood": "It scores each passage by the likelihood of the question after the passage.",
    "combined": "It scores each passage by the likelihood of the question after the passage, and compares passages in"
    " windows. The final score combines both with the rank by BM25.",
}

NEXT_STEPS = """\
What to try next:
  your own question   rank-k demo --query "how do I call a function later, after a delay"
  all {count} questions    rank-k demo --all  (about {duration})
  the web page        rank-k serve
  your own run        rank-k rerank --help"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    questions = parser.add_mutually_exclusive_group()
    questions.add_argument("--query", metavar="TEXT", help="your own question about Python")
    questions.add_argument(
        "--all",
        action="store_true",
        help="rerank all judged questions, instead of two for which the model helps clearly",
    )
    parser.add_argument(
        "--depth", type=positive_int, default=DEPTH, metavar="N", help="number of passages per question"
    )
    add_options(parser, [OPTIONS[name] for name in ("method", "reasoning", "max_tokens")])
    add_server_options(parser)


class _Demo(NamedTuple):
    """The data that all questions share: the reranker, the first-stage run, the passages, and qrels by query id."""

    reranker: Reranker
    first_stage: Mapping[str, Sequence[Candidate]]
    passages: Mapping[str, Passage]
    qrels: Mapping[str, Mapping[str, int]]


def run(args: argparse.Namespace) -> int:
    if args.depth < 2:
        raise InputError(f"--depth must be at least 2 (got {args.depth})", "give a larger number")
    passages = {passage.doc_id: passage for passage in load_passages()}
    judged_questions = {question.query.query_id: question.query for question in load_questions()}
    questions = judged_questions if args.all else {query_id: judged_questions[query_id] for query_id in SHOWCASE}
    if args.query:
        questions = {"yours": Query("yours", args.query)}
    first_stage = dict(retrieve(questions.values(), passages.values(), depth=args.depth))
    if not all(first_stage.values()):
        raise InputError("BM25 finds no passage for this question", "use other words")
    with Reranker(args.model, **_options(args)) as reranker:
        demo = _Demo(reranker, first_stage, passages, load_qrels())
        print(_introduction(demo, args.depth), end="\n\n", flush=True)
        reranker.prepare()
        started = time.monotonic()
        reranked: dict[str, Sequence[Candidate]] = {}
        for number, query in enumerate(questions.values(), 1):
            ranking, traces = _rerank(demo, query, f"question {number} of {len(questions)}: ", len(questions))
            reranked[query.query_id] = ranking
            if args.all:
                print(f"{_quality(demo, {query.query_id: ranking})}  {query.text}", flush=True)
            else:
                _print_question(demo, query, ranking, traces)
        seconds = (time.monotonic() - started) / len(questions) * len(judged_questions)
    if args.all:
        print(f"{_quality(demo, reranked)}  average of {count_noun(len(questions), 'question')}")
    else:
        print(NEXT_STEPS.format(count=len(judged_questions), duration=format_seconds(seconds)))
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the reranker. A distilled model uses its own defaults instead of those of the demo."""
    options = {**reranker_options(args), "depth": None}
    if args.server is None and find_student(args.model or default_model(args.method)) is None:
        return {"passage_tokens": PASSAGE_TOKENS, "max_tokens": 256, "temperature": 0.0, **options}
    return options


def _introduction(demo: _Demo, depth: int) -> str:
    """Return a paragraph that describes what the demo does."""
    model = demo.reranker.model.name or "the model"
    paragraph = (
        f"For {count_noun(len(demo.first_stage), 'question')} about Python, BM25 finds the best {depth} of"
        f" {len(demo.passages):,} passages of Python's documentation, and {model} reranks them."
        f" {METHOD_DESCRIPTIONS[demo.reranker.method]} After ten calls to the model, a message says how long this"
        " will take."
    )
    return textwrap.fill(paragraph, 79)


def _rerank(demo: _Demo, query: Query, title: str, question_count: int) -> tuple[Sequence[Candidate], Sequence[str]]:
    """Return the ranking of a question's candidates, and the reasoning traces of its windows."""
    traces: list[str] = []

    def describe_duration(progress: RunProgress) -> str:
        seconds = progress.seconds_per_query()
        if seconds is None or title.partition(" of ")[0] != "question 1":
            return ""
        return f"{count_noun(question_count, 'question')} will take about {format_seconds(seconds * question_count)}"

    run = [(query.query_id, demo.first_stage[query.query_id])]
    with show_progress(title=title, noun="question", describe_notice=describe_duration)(demo.reranker, 1) as progress:

        def add_result(query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
            traces.extend(filter(None, report.traces))
            progress.add_result(query_id, round_number, window_number, report)

        queries = {query.query_id: query}
        [result] = demo.reranker.rerank(progress.watch(run), queries, demo.passages, on_result=add_result)
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(result.ranking.doc_ids, 1)], traces


def _print_question(demo: _Demo, query: Query, ranking: Sequence[Candidate], traces: Sequence[str]) -> None:
    """Print the top passages of BM25 and of the new ranking side by side, and the beginnings of the reasoning."""
    grades = demo.qrels.get(query.query_id)
    notes = [
        f"reasoning about window {number}: {textwrap.shorten(trace, _TRACE_LENGTH, placeholder=' ...')}"
        for number, trace in enumerate(traces, 1)
    ]
    old_ids = [candidate.doc_id for candidate in demo.first_stage[query.query_id]]
    rows = []
    for index, (old_id, candidate) in enumerate(zip(old_ids, ranking[:_TABLE_ROWS], strict=False)):
        old_index = old_ids.index(candidate.doc_id)
        arrow = "=" if old_index == index else "↑" if old_index > index else "↓"
        old_gist, new_gist = (_gist(demo.passages[doc_id], grades) for doc_id in (old_id, candidate.doc_id))
        rows.append([index + 1, old_gist, f"{arrow} {old_index + 1}", new_gist])
    if grades is not None:
        notes.append(f"● relevant, ○ related; nDCG@10 {_quality(demo, {query.query_id: ranking})}")
    columns = ("", "BM25", "was", demo.reranker.model.name)
    print_tables([Table(columns, rows, align="llll", title=f"── {query.text}", notes=[*notes, ""])])


def _gist(passage: Passage, grades: Mapping[str, int] | None) -> str:
    """Return the beginning of a passage, preceded by the mark for its grade if there are judgments.

    A long name such as `concurrent.futures.Executor.map` is shortened to its last two parts.
    """
    name, parenthesis, rest = passage.text.replace("\n", ": ", 1).replace("\n", " ").partition("(")
    text = f"{name if ' ' in name else '.'.join(name.split('.')[-2:])}{parenthesis}{rest}"
    gist = text if len(text) <= _GIST_LENGTH else f"{text[: _GIST_LENGTH - 1]}…"
    return gist if grades is None else f"{_MARKS.get(grades.get(passage.doc_id, 0), ' ')} {gist}"


def _quality(demo: _Demo, reranked: Mapping[str, Sequence[Candidate]]) -> str:
    """Return the mean nDCG@10 of BM25 and of the new rankings."""
    qrels = {query_id: demo.qrels[query_id] for query_id in reranked}
    runs = ({query_id: demo.first_stage[query_id] for query_id in reranked}, reranked)
    before, after = (evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"] for run in runs)
    return f"{before:.4f} → {after:.4f}"
