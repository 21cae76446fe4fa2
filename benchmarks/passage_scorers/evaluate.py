"""Rerank BM25's best 20 on the held-out collections, and compare with MiniLM's cosine.

    python -m benchmarks.passage_scorers.evaluate DATA_FOLDER --package WHEEL [--models NAME=checkpoint.pt ...]
        [--queries N] [--output FOLDER]

Uses only `heldout-*` of `benchmarks.passage_scorers.source_collections`: held-out queries of the training sources, and
two sources that are held out entirely. Rows: BM25, cosine of MiniLM, the cosine with BM25's ranks, each model alone,
and each model plus 20 times the cosine, which is what `--residual` trains. Prints nDCG@10 per collection, the mean
over collections, and the difference of each row to the cosine over all queries with the bootstrap's 95% interval.
Scores are kept in the output folder, so the command can be run again to resume.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from benchmarks.passage_scorers.bert import encode, load_bert, load_tokenizer
from benchmarks.passage_scorers.cross_encoder import COSINE_SCALE, CrossEncoder, pair_ids, score_pairs
from benchmarks.passage_scorers.minilm import read_archive
from benchmarks.passage_scorers.source_collections import HELD_OUT_SOURCES, passage_text
from benchmarks.student_data import rows
from rank_k.data.trec import read_qrels, read_run
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import paired_difference
from rank_k.types import Candidate

MEASURE = "nDCG@10"
PAIR_TOKENS = 256
FIRST_STAGE_WEIGHTS = (0.25, 0.5, 1.0)
"""Of `-ln(rank + 10)`, as in `rank_k.strategies.combined`, beside 1 for the cosine; both are standardized."""

Scores = dict[str, dict[str, float]]
"""`query_id -> doc_id -> score`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--queries", type=int, metavar="N", help="the first N of each collection (all)")
    parser.add_argument("--output", type=Path, default=Path("passage-scorers"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    package = read_archive(args.package)
    tokenizer = load_tokenizer(package)
    encoders: dict[str, Any] = {"MiniLM cosine": load_bert(package).to(torch.bfloat16)}
    for specification in args.models:
        name, _, path = specification.partition("=")
        model = CrossEncoder(load_bert(package))
        model.load_state_dict(torch.load(path)["model"])
        encoders[name] = model.to(torch.bfloat16).eval()
    table: dict[str, dict[str, Mapping[str, float]]] = {}
    for folder in sorted(args.data.glob("heldout-*"), key=lambda path: path.name[8:] in HELD_OUT_SOURCES):
        qrels, run = read_qrels(folder / "qrels.trec"), read_run(folder / "run.bm25.trec")
        ids = {query_id: [row.doc_id for row in candidates] for query_id, candidates in run.items()}
        ids = dict(list(ids.items())[: args.queries])
        texts = {row["_id"]: passage_text(row) for row in rows(folder, "corpus")}
        queries = {row["_id"]: row["text"] for row in rows(folder, "queries")}
        scores: dict[str, Scores] = {"BM25": {q: {d: -r for r, d in enumerate(docs)} for q, docs in ids.items()}}
        for name, encoder in encoders.items():
            stem = f"{folder.name}.{name}.{len(ids)}".replace(" ", "-")
            cache = args.output / f"{stem}.json"
            if not cache.exists():
                cache.write_text(json.dumps(score_all(encoder, tokenizer, queries, texts, ids)))
            stored = json.loads(cache.read_text())
            scores[name] = {query_id: stored[query_id] for query_id in ids}
        first_stage = {q: {d: -log(r + 10) for r, d in enumerate(docs, 1)} for q, docs in ids.items()}
        for weight in FIRST_STAGE_WEIGHTS:
            scores[f"cosine + {weight:g} BM25"] = weighted_sum((1, scores["MiniLM cosine"]), (weight, first_stage))
        for name in list(encoders)[1:]:
            scores[f"{name} + cosine"] = {
                query_id: {d: score + COSINE_SCALE * scores["MiniLM cosine"][query_id][d] for d, score in row.items()}
                for query_id, row in scores[name].items()
            }
        for name, by_query in scores.items():
            table.setdefault(name, {})[folder.name] = ndcg({q: qrels[q] for q in ids}, by_query)
        print(
            folder.name, {name: round(fmean(row[folder.name].values()), 4) for name, row in table.items()}, flush=True
        )
    for line in table_lines(table):
        print(line)


def score_all(
    encoder: Any, tokenizer: Any, queries: Mapping[str, str], texts: Mapping[str, str], ids: Mapping[str, list[str]]
) -> Scores:
    """Return the scores of one model for every candidate."""
    if not isinstance(encoder, CrossEncoder):
        doc_ids = sorted({doc_id for docs in ids.values() for doc_id in docs})
        vectors = encode(encoder, tokenizer, [*(queries[q] for q in ids), *(texts[d] for d in doc_ids)])
        place = {doc_id: index for index, doc_id in enumerate([*ids, *doc_ids])}
        return {q: {d: float(vectors[place[q]] @ vectors[place[d]]) for d in docs} for q, docs in ids.items()}
    keys = [(q, d) for q, docs in ids.items() for d in docs]
    pairs = [pair_ids(tokenizer, queries[q], texts[d], PAIR_TOKENS) for q, d in keys]
    result: Scores = {query_id: {} for query_id in ids}
    with torch.inference_mode():
        for (query_id, doc_id), score in zip(keys, score_pairs(encoder, pairs, 4096).tolist(), strict=True):
            result[query_id][doc_id] = score
    return result


def weighted_sum(*parts: tuple[float, Scores]) -> Scores:
    """Return the weighted sum of several scorers' standardized scores, query by query."""
    result: Scores = {}
    for query_id in parts[0][1]:
        standardized = [(weight, _standardized(scores[query_id])) for weight, scores in parts]
        result[query_id] = {d: sum(w * z[d] for w, z in standardized) for d in standardized[0][1]}
    return result


def _standardized(scores: Mapping[str, float]) -> dict[str, float]:
    mean, deviation = fmean(scores.values()), pstdev(scores.values())
    return {doc_id: (score - mean) / (deviation or 1) for doc_id, score in scores.items()}


def ndcg(qrels: Mapping[str, Mapping[str, int]], scores: Scores) -> Mapping[str, float]:
    """Return nDCG@10 per query."""
    run = {
        query_id: [Candidate(d, s) for d, s in sorted(by_doc.items(), key=lambda item: -item[1])]
        for query_id, by_doc in scores.items()
    }
    return evaluate(qrels, run, [MEASURE]).per_query[MEASURE]


def table_lines(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yield the table of means, then the differences to the cosine over all queries, held-out sources apart."""
    names = list(next(iter(table.values())))
    yield f"| ranked by | {' | '.join(name.removeprefix('heldout-') for name in names)} | mean |"
    yield "|---" * (len(names) + 2) + "|"
    for name, row in table.items():
        means = [fmean(row[part].values()) for part in names]
        yield f"| {name} | {' | '.join(f'{value:.4f}' for value in means)} | {fmean(means):.4f} |"
    outside = [name for name in names if name.removeprefix("heldout-") in HELD_OUT_SOURCES]
    inside = [name for name in names if name not in outside]
    yield ""
    for name in table:
        if name != "MiniLM cosine":
            for label, parts in (("held-out queries", inside), ("held-out sources", outside)):
                yield f"{name} less MiniLM cosine, {label}: {_difference(table, name, parts)}"


def _difference(table: Mapping[str, Mapping[str, Mapping[str, float]]], name: str, parts: Sequence[str]) -> str:
    ours, cosine = (
        {f"{part} {q}": value for part in parts for q, value in table[row][part].items()}
        for row in (name, "MiniLM cosine")
    )
    difference = paired_difference(ours, cosine)
    return (
        f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f});"
        f" better in {difference.better}, worse in {difference.worse} of {difference.queries} queries"
    )


if __name__ == "__main__":
    main()
