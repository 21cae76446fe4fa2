"""How good the student is on rows it does not learn from: measured while it trains, cheaply.

For traces of verdicts one pass over the held-out rows says how well the verdicts tell relevant from irrelevant
passages: all verdicts *shown* are random ones, so that nothing can be read off them. That measure, not the loss, is
the one to watch (see `rank_k.distill.label_traces`). A few rows are answered freely as well, whatever their traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

from rank_k.distill.batches import label_token_ids_of, pad_batch, tokenize_labeled_row
from rank_k.distill.label_traces import corrupt_labels
from rank_k.distill.losses import label_scores
from rank_k.distill.training_examples import Example, completion_tokens
from rank_k.optional_deps import load
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import parse_ranking

_MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class HeldoutMeasures:
    """`loss`: of the completions, a token. `auc`, `ndcg` (cut at 10): by the chance of the best verdict, means over
    rows that have passages of more than one kind. `early_auc`: by what is known at the ends of passages. `presented`:
    nDCG of the order they are shown in. `free_ndcg`: of free answers that rank anything; `well_formed`: their share
    that needed no repair. None where there is nothing to measure."""

    rows: int
    loss: float | None
    auc: float | None
    early_auc: float | None
    ndcg: float | None
    presented: float | None
    free_ndcg: float | None
    well_formed: float | None


def auc(values: Sequence[float], grades: Sequence[int]) -> float:
    """Chance that of two passages of different grade the better one has the higher value; equal ones count half."""
    pairs = [
        (first > second) + 0.5 * (first == second)
        for first, grade in zip(values, grades, strict=True)
        for second, other_grade in zip(values, grades, strict=True)
        if grade > other_grade
    ]
    return fmean(pairs)


def ndcg(grades_in_order: Sequence[float], cutoff: int = 10) -> float:
    """nDCG of a ranking given as its passages' grades, best rank first; 0 where all grades are 0."""

    def gain(grades: Iterable[float]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(list(grades)[:cutoff], 1))

    ideal = gain(sorted(grades_in_order, reverse=True))
    return gain(grades_in_order) / ideal if ideal else 0.0


def passage_grades(example: Example) -> list[int]:
    """What the row's own completion says of each passage: its verdicts, or the tier of its order, worst 0."""
    if example.label_trace is not None:
        return list(example.label_trace.target_labels)
    passage_count = len(set(_passage_numbers(example.completion)))
    tiers = parse_ranking(example.completion, passage_count).tiers
    grade_by_number = {number: len(tiers) - rank for rank, tier in enumerate(tiers, 1) for number in tier}
    return [grade_by_number[number] for number in range(1, passage_count + 1)]


def _passage_numbers(completion: str) -> list[int]:
    ranking_text = completion.rpartition("</think>")[2]
    return [int(part.split("]")[0]) for part in ranking_text.split("[")[1:] if part.split("]")[0].isdecimal()]


def measure(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, free_answers: int = 0, max_new_tokens: int = 256
) -> HeldoutMeasures:
    """Measure `model` on `examples`; `free_answers` of them also answer freely, with up to `max_new_tokens` tokens."""
    torch = load("torch")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            losses = [_completion_loss(model, tokenizer, example) for example in examples]
            label_aucs, early_aucs, ndcgs, presented_ndcgs = _measure_labels(model, tokenizer, examples)
            answers = [
                _measure_free_answer(model, tokenizer, example, max_new_tokens) for example in examples[:free_answers]
            ]
    finally:
        model.train(was_training)
    return HeldoutMeasures(
        len(examples),
        sum(total for total, _ in losses) / sum(tokens for _, tokens in losses) if losses else None,
        fmean(label_aucs) if label_aucs else None,
        fmean(early_aucs) if early_aucs else None,
        fmean(ndcgs) if ndcgs else None,
        fmean(presented_ndcgs) if presented_ndcgs else None,
        fmean(free_ndcgs) if (free_ndcgs := [value for value, _ in answers if value is not None]) else None,
        fmean(well_formed for _, well_formed in answers) if answers else None,
    )


def _completion_loss(model: Any, tokenizer: Any, example: Example) -> tuple[float, int]:
    """Cross entropy of the completion, in nats, and how many tokens it has."""
    torch = load("torch")
    ids = [*example.prompt_ids, *completion_tokens(tokenizer, example.completion)]
    start = len(example.prompt_ids)
    # The head's product is computed for the completion alone.
    positions = torch.arange(start - 1, len(ids) - 1, device=model.device)
    input_ids = torch.tensor([ids], device=model.device)
    logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), logits_to_keep=positions).logits[0]
    total = torch.nn.functional.cross_entropy(logits.float(), input_ids[0, start:], reduction="sum")
    return float(total), len(ids) - start


def _measure_labels(model: Any, tokenizer: Any, examples: Sequence[Example]) -> tuple[list[float], ...]:
    label_aucs, early_aucs, ndcgs, presented_ndcgs = [], [], [], []
    labeled_examples = [
        labeled
        for labeled in examples
        if labeled.label_trace is not None and len(set(labeled.label_trace.target_labels)) > 1
    ]
    for batch in _batch_by_tokens(sorted(labeled_examples, key=lambda labeled: len(labeled.prompt_ids))):
        for example, (passage_scores, early_scores) in zip(
            batch, _score_passages(model, tokenizer, batch), strict=True
        ):
            grades = passage_grades(example)
            label_aucs.append(auc(passage_scores, grades))
            if early_scores:
                early_aucs.append(auc(early_scores, grades))
            ranked = sorted(range(len(grades)), key=lambda i: -passage_scores[i])
            ndcgs.append(ndcg([grades[i] for i in ranked]))
            presented_ndcgs.append(ndcg(grades))
    return label_aucs, early_aucs, ndcgs, presented_ndcgs


def _batch_by_tokens(examples: Sequence[Example]) -> Iterable[list[Example]]:
    batch: list[Example] = []
    for example in examples:
        if batch and len(example.prompt_ids) * (len(batch) + 1) > _MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _score_passages(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[tuple[list[float], list[float]]]:
    """`label_scores` of the verdicts of each example, and at the ends of its passages, if these are known."""
    rows = []
    for example in examples:
        assert example.label_trace is not None
        shown_trace = corrupt_labels(example.label_trace, 1.0, Random(f"held out|{example.row}"))
        rows.append(tokenize_labeled_row(example, shown_trace, tokenizer))
    batch = pad_batch(rows, tokenizer.pad_token_id)
    word_ids = label_token_ids_of(tokenizer, examples[0].label_trace.words) if examples[0].label_trace else []
    hidden = hidden_states(model)(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
    head_weights = model.get_output_embeddings().weight[word_ids]

    def scores_by_row(positions: Any, offset: int) -> list[list[float]]:
        positions = positions.to(model.device)
        values = label_scores(
            (hidden[positions[:, 0], positions[:, 1] - offset].to(head_weights.dtype) @ head_weights.T).float()
        )
        return [values[positions[:, 0] == number].tolist() for number in range(len(examples))]

    return list(zip(scores_by_row(batch["relevance_labels"], 1), scores_by_row(batch["passage_ends"], 0), strict=True))


def hidden_states(model: Any) -> Callable[[Any, Any], Any]:
    """The last layer's states of a causal model, an adapter's layers included, without its head's product."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return lambda ids, mask: causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _measure_free_answer(
    model: Any, tokenizer: Any, example: Example, max_new_tokens: int
) -> tuple[float | None, float]:
    """nDCG of what the model answers by itself (None if that ranks nothing), and 1 if the answer is whole."""
    torch = load("torch")
    ids = torch.tensor([[*example.prompt_ids]], device=model.device)
    output_ids = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        synced_gpus=torch.distributed.is_available() and torch.distributed.is_initialized(),
        pad_token_id=tokenizer.pad_token_id,
    )
    grades = passage_grades(example)
    text = tokenizer.decode(output_ids[0, ids.shape[1] :], skip_special_tokens=True)
    if example.label_trace is None:
        parsed = parse_ranking(text, len(grades))
    else:
        parsed = parse_labels(text.partition("</think>")[0], len(grades), example.label_trace.words)
    if not parsed.is_valid:
        return None, 0.0
    ranked = [number for tier in parsed.tiers for number in sorted(tier)]
    return ndcg([grades[number - 1] for number in ranked]), float(not parsed.repairs)
