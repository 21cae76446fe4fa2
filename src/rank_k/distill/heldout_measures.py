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

from rank_k.distill.batches import label_tokens, padded, with_labels
from rank_k.distill.label_traces import corrupted
from rank_k.distill.losses import scores
from rank_k.distill.training_examples import Example, completion_tokens
from rank_k.optional_deps import load
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import parse_ranking

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class HeldOutMeasures:
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
        (a > b) + 0.5 * (a == b)
        for a, grade in zip(values, grades, strict=True)
        for b, other in zip(values, grades, strict=True)
        if grade > other
    ]
    return fmean(pairs)


def ndcg(grades_in_order: Sequence[float], cut: int = 10) -> float:
    """nDCG of a ranking given as its passages' grades, best rank first; 0 where all grades are 0."""

    def gain(grades: Iterable[float]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(list(grades)[:cut], 1))

    ideal = gain(sorted(grades_in_order, reverse=True))
    return gain(grades_in_order) / ideal if ideal else 0.0


def grades_of(example: Example) -> list[int]:
    """What the row's own completion says of each passage: its verdicts, or the tier of its order, worst 0."""
    if example.verdicts is not None:
        return list(example.verdicts.right)
    size = len(set(_numbers(example.completion)))
    tiers = parse_ranking(example.completion, size).tiers
    grade = {number: len(tiers) - rank for rank, tier in enumerate(tiers, 1) for number in tier}
    return [grade[number] for number in range(1, size + 1)]


def _numbers(completion: str) -> list[int]:
    order = completion.rpartition("</think>")[2]
    return [int(part.split("]")[0]) for part in order.split("[")[1:] if part.split("]")[0].isdecimal()]


def measure(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, free: int = 0, new_tokens: int = 256
) -> HeldOutMeasures:
    """Measure `model` on `examples`; `free` of them are answered freely too, in at most `new_tokens` tokens."""
    torch = load("torch")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss = [_loss(model, tokenizer, example) for example in examples]
            areas, early, gains, presented = _by_verdicts(model, tokenizer, examples)
            answered = [_free(model, tokenizer, example, new_tokens) for example in examples[:free]]
    finally:
        model.train(training)
    return HeldOutMeasures(
        len(examples),
        sum(total for total, _ in loss) / sum(tokens for _, tokens in loss) if loss else None,
        fmean(areas) if areas else None,
        fmean(early) if early else None,
        fmean(gains) if gains else None,
        fmean(presented) if presented else None,
        fmean(ranked) if (ranked := [value for value, _ in answered if value is not None]) else None,
        fmean(whole for _, whole in answered) if answered else None,
    )


def _loss(model: Any, tokenizer: Any, example: Example) -> tuple[float, int]:
    """Cross entropy of the completion, in nats, and how many tokens it has."""
    torch = load("torch")
    ids = [*example.prompt_ids, *completion_tokens(tokenizer, example.completion)]
    start = len(example.prompt_ids)
    before = torch.arange(start - 1, len(ids) - 1, device=model.device)  # the head's product for the completion alone
    told = torch.tensor([ids], device=model.device)
    logits = model(input_ids=told, attention_mask=torch.ones_like(told), logits_to_keep=before).logits[0]
    total = torch.nn.functional.cross_entropy(logits.float(), told[0, start:], reduction="sum")
    return float(total), len(ids) - start


def _by_verdicts(model: Any, tokenizer: Any, examples: Sequence[Example]) -> tuple[list[float], ...]:
    areas, early, gains, presented = [], [], [], []
    told = [each for each in examples if each.verdicts is not None and len(set(each.verdicts.right)) > 1]
    for batch in _batches(sorted(told, key=lambda each: len(each.prompt_ids))):
        for example, (values, known) in zip(batch, _values(model, tokenizer, batch), strict=True):
            grades = grades_of(example)
            areas.append(auc(values, grades))
            if known:
                early.append(auc(known, grades))
            ranked = sorted(range(len(grades)), key=lambda i: -values[i])
            gains.append(ndcg([grades[i] for i in ranked]))
            presented.append(ndcg(grades))
    return areas, early, gains, presented


def _batches(examples: Sequence[Example]) -> Iterable[list[Example]]:
    batch: list[Example] = []
    for example in examples:
        if batch and len(example.prompt_ids) * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _values(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[tuple[list[float], list[float]]]:
    """`scores` of the verdicts of each example, and at the ends of its passages, if these are known."""
    rows = []
    for example in examples:
        assert example.verdicts is not None
        shown = corrupted(example.verdicts, 1.0, Random(f"held out|{example.row}"))
        rows.append(with_labels(example, shown, tokenizer))
    batch = padded(rows, tokenizer.pad_token_id)
    words = label_tokens(tokenizer, examples[0].verdicts.words) if examples[0].verdicts else []
    hidden = hidden_states(model)(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
    head = model.get_output_embeddings().weight[words]

    def by_row(places: Any, back: int) -> list[list[float]]:
        places = places.to(model.device)
        values = scores((hidden[places[:, 0], places[:, 1] - back].to(head.dtype) @ head.T).float())
        return [values[places[:, 0] == number].tolist() for number in range(len(examples))]

    return list(zip(by_row(batch["verdicts"], 1), by_row(batch["ends"], 0), strict=True))


def hidden_states(model: Any) -> Callable[[Any, Any], Any]:
    """The last layer's states of a causal model, an adapter's layers included, without its head's product."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return lambda ids, mask: causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _free(model: Any, tokenizer: Any, example: Example, new_tokens: int) -> tuple[float | None, float]:
    """nDCG of what the model answers by itself (None if that ranks nothing), and 1 if the answer is whole."""
    torch = load("torch")
    ids = torch.tensor([[*example.prompt_ids]], device=model.device)
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        synced_gpus=torch.distributed.is_available() and torch.distributed.is_initialized(),
        pad_token_id=tokenizer.pad_token_id,
    )
    grades = grades_of(example)
    text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
    if example.verdicts is None:
        answer = parse_ranking(text, len(grades))
    else:
        answer = parse_labels(text.partition("</think>")[0], len(grades), example.verdicts.words)
    if not answer.is_valid:
        return None, 0.0
    ranked = [number for tier in answer.tiers for number in sorted(tier)]
    return ndcg([grades[number - 1] for number in ranked]), float(not answer.repairs)
