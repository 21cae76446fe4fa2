"""What a small model's answers are worth with and without a grammar, and whether a budget holds.

    python -m benchmarks.embedded_answers [--windows 500] [--reasoning 64] [--answers free] [--threads 1]

Windows of 4 to 12 passages of the demo collection, drawn at random for its questions, put to the embedded model
with a reasoning budget; once with answers held to the grammar of a ranking, once without. An answer is *clean* if
it parses with no repair other than missing or repeated ids, which are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from rank_k.data.collections.demo import load_passages, load_questions
from rank_k.journal import Journal
from rank_k.models.cached import CachedModel
from rank_k.models.embedded import EmbeddedModel
from rank_k.option_values import ReasoningMode
from rank_k.types import Passage, Query, Window
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings
from rank_k.window.prompt import PromptTemplate

TEMPLATE = PromptTemplate(
    "Rank the passages by relevance to the query, best first, like [2] > [1] = [3].\nQuery: {query}\n", ""
)
"""Short, so that 500 windows take minutes: the embedded model reads some 200 tokens a second."""

ANSWER_KINDS = ("constrained", "free")

CLEAN_REPAIRS = {"missing", "repeated", "truncated", "forced_answers", "passages_truncated"}
"""Repairs that leave an answer clean: ids missing or repeated, a thought ended as planned, passages cut."""


@dataclass
class AnswerStats:
    windows: int = 0
    clean: int = 0
    unranked: int = 0
    most_reasoning: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def draw_windows(count: int, seed: int) -> list[tuple[Query, list[Passage]]]:
    """Windows: a question with 4 to 12 passages, judged ones for the question first among them."""
    random = Random(seed)
    texts = {passage.doc_id: passage for passage in load_passages()}
    demo_questions = load_questions()
    windows = []
    for number in range(count):
        question = demo_questions[number % len(demo_questions)]
        judged_ids = [doc_id for doc_id in question.judgments if doc_id in texts]
        size = random.randint(4, 12)
        windows.append(
            (question.query, [texts[doc_id] for doc_id in random.sample(judged_ids, min(size, len(judged_ids)))])
        )
    return windows


async def rank_windows(
    model: EmbeddedModel, windows: Sequence[tuple[Query, list[Passage]]], reasoning: ReasoningMode, constrained: bool
) -> AnswerStats:
    journal = Journal()
    settings = ListwiseSettings(
        passage_tokens=24, max_tokens=512, temperature=0.5, reasoning=str(reasoning), constrained=constrained
    )
    ranker = ListwiseRanker(CachedModel(model, journal), settings, TEMPLATE)
    stats, started = AnswerStats(), time.monotonic()

    async def rank_window(query: Query, window_passages: list[Passage]) -> None:
        texts = await ranker.prepare_query(query, {passage.doc_id: passage for passage in window_passages})
        window = Window(tuple(passage.doc_id for passage in window_passages), (1, len(window_passages)))
        report = await ranker.rank(texts, window)
        stats.windows += 1
        stats.unranked += not report.result.rankings[0].is_valid
        stats.clean += report.result.rankings[0].is_valid and set(report.repairs) <= CLEAN_REPAIRS
        stats.repairs.update(report.repairs)
        stats.most_reasoning = max(stats.most_reasoning, report.usage.reasoning_tokens)

    for query, window_passages in windows:
        await rank_window(query, window_passages)
    journal.close()
    stats.seconds = time.monotonic() - started
    return stats


async def compare(count: int, reasoning: ReasoningMode, answers: Sequence[str], threads: int | None) -> None:
    windows = draw_windows(count, seed=0)
    model = EmbeddedModel(threads=threads)
    await model.prepare()
    try:
        print("answers        windows   clean  unranked  ids missing  ids repeated  most reasoning  s/window")
        for name in answers:
            stats = await rank_windows(model, windows, reasoning, constrained=name == "constrained")
            print(
                f"{name:<13} {stats.windows:>8}  {stats.clean / stats.windows:>6.1%}  {stats.unranked:>8}"
                f"  {stats.repairs['missing']:>11}  {stats.repairs['repeated']:>12}  {stats.most_reasoning:>14}"
                f"  {stats.seconds / stats.windows:>8.2f}",
                flush=True,
            )
            print(f"               repairs: {dict(sorted(stats.repairs.items()))}", flush=True)
    finally:
        await model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--reasoning", type=ReasoningMode.parse, default=ReasoningMode("budget", 64))
    parser.add_argument("--answers", nargs="+", choices=ANSWER_KINDS, default=ANSWER_KINDS, help="which to try")
    parser.add_argument("--threads", type=int, help="of the model (all cores); 1 on a machine with other work")
    args = parser.parse_args()
    asyncio.run(compare(args.windows, args.reasoning, args.answers, args.threads))


if __name__ == "__main__":
    main()
