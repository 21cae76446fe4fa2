"""Measure a student on held-out rows, fast enough for use during training.

For a row with relevance labels, one forward pass measures how well the predicted labels separate relevant from
irrelevant passages. In this pass, the text of the completion contains random labels, so the model cannot predict a
label from the labels before it. This measure, not the loss, shows whether the student learns (see
`rank_k.distill.label_traces`). For a few rows, the model also generates a complete answer (a free answer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from statistics import fmean
from typing import Any

from rank_k.distill.label_traces import LabelTrace, corrupt_labels
from rank_k.distill.losses import label_scores
from rank_k.distill.training_examples import Example, completion_tokens, label_token_ids_of, tokenize_row
from rank_k.evaluation.measures import ndcg
from rank_k.optional_deps import load
from rank_k.window.labels import parse_labels
from rank_k.window.parsing import parse_ranking


def measure(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, free_answers: int = 0, max_new_tokens: int = 256
) -> dict[str, float | None]:
    """Measure a model on held-out rows.

    Args:
        model: The model, with its adapter.
        tokenizer: The tokenizer of the model.
        examples: The held-out rows.
        free_answers: The number of rows for which the model also generates an answer.
        max_new_tokens: The maximum length of free answers, in tokens.

    Returns:
        The measures by name: means over rows, or None if no row has the measure. `rows`: the number of rows. `loss`:
        the cross-entropy per token of the completions. `auc`: how well the probability of the best label separates
        passages with different labels, over rows with more than one label. `early_auc`: the same, with labels
        predicted at the ends of the passages. `ndcg`: nDCG@10 of the ranking by the probability of the best label.
        `presented`: nDCG@10 of the order in which the passages are presented. `free_ndcg`: nDCG@10 of the generated
        answers that contain a ranking. `well_formed`: the share of generated answers without parse repairs.
    """
    was_training = model.training
    model.eval()
    try:
        with load("torch").no_grad():
            losses = [_completion_loss(model, tokenizer, example) for example in examples]
            label_measures = [
                _measure_labels(model, tokenizer, example, example.label_trace)
                for example in examples
                if example.label_trace and len(set(example.label_trace.target_labels)) > 1
            ]
            answers = [
                _measure_free_answer(model, tokenizer, example, max_new_tokens) for example in examples[:free_answers]
            ]
    finally:
        model.train(was_training)
    return {
        "rows": len(examples),
        "loss": sum(total for total, _ in losses) / sum(tokens for _, tokens in losses) if losses else None,
        **{name: _mean(row[name] for row in label_measures) for name in ("auc", "early_auc", "ndcg", "presented")},
        "free_ndcg": _mean(free_ndcg for free_ndcg, _ in answers),
        "well_formed": _mean(well_formed for _, well_formed in answers),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def auc(values: Sequence[float], grades: Sequence[int]) -> float:
    """Return the share of passage pairs with different grades in which the better passage has the higher value.

    A pair with equal values counts as one half.
    """
    return fmean(
        (first > second) + 0.5 * (first == second)
        for first, grade in zip(values, grades, strict=True)
        for second, other_grade in zip(values, grades, strict=True)
        if grade > other_grade
    )


def passage_grades(example: Example) -> list[int]:
    """Return the grade that the row's completion gives each passage.

    The grade is the label of the passage or, if the completion has no labels, its tier counted from the bottom.
    """
    if example.label_trace is not None:
        return list(example.label_trace.target_labels)
    ranking = example.completion.rpartition("</think>")[2]
    tiers = parse_ranking(ranking, len(set(re.findall(r"\[(\d+)\]", ranking)))).tiers
    grades = {number: len(tiers) - rank for rank, tier in enumerate(tiers, 1) for number in tier}
    return [grades[number] for number in sorted(grades)]


def _completion_loss(model: Any, tokenizer: Any, example: Example) -> tuple[float, int]:
    """Return the summed cross-entropy of the completion, in nats, and the number of its tokens."""
    torch = load("torch")
    ids = [*example.prompt_ids, *completion_tokens(tokenizer, example.completion)]
    start = len(example.prompt_ids)
    input_ids = torch.tensor([ids], device=model.device)
    positions = torch.arange(start - 1, len(ids) - 1, device=model.device)  # compute logits for the completion only
    logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), logits_to_keep=positions).logits[0]
    total = torch.nn.functional.cross_entropy(logits.float(), input_ids[0, start:], reduction="sum")
    return float(total), len(ids) - start


def _measure_labels(model: Any, tokenizer: Any, example: Example, trace: LabelTrace) -> dict[str, float | None]:
    """Return the four label measures of one row (see `measure`)."""
    torch, grades = load("torch"), trace.target_labels
    random_trace = corrupt_labels(trace, 1.0, Random(f"held out|{example.row}"))
    row = tokenize_row(example, tokenizer, random_trace)
    input_ids = torch.tensor([row.input_ids], device=model.device)
    hidden = hidden_states(model)(input_ids, torch.ones_like(input_ids))[0]
    head_weights = model.get_output_embeddings().weight[label_token_ids_of(tokenizer, random_trace.words)]

    def scores_at(positions: Sequence[int]) -> list[float]:
        logits = hidden[list(positions)].to(head_weights.dtype) @ head_weights.T
        return list(label_scores(logits.float()).tolist())

    scores = scores_at([position - 1 for position in row.label_positions])
    ranked_grades = [grade for _, grade in sorted(zip(scores, grades, strict=True), key=lambda pair: -pair[0])]
    return {
        "auc": auc(scores, grades),
        "early_auc": auc(scores_at(row.passage_ends), grades) if row.passage_ends else None,
        "ndcg": ndcg(ranked_grades),
        "presented": ndcg(grades),
    }


def hidden_states(model: Any) -> Callable[[Any, Any], Any]:
    """Return a function that computes the last layer's states, without logits, from token ids and an attention mask."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return lambda ids, mask: causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _measure_free_answer(
    model: Any, tokenizer: Any, example: Example, max_new_tokens: int
) -> tuple[float | None, float]:
    """Generate an answer. Return its nDCG@10 (None without a ranking), and 1.0 if it needs no repair, else 0.0."""
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
    ranked_grades = [grades[number - 1] for tier in parsed.tiers for number in sorted(tier)]
    return ndcg(ranked_grades), float(not parsed.repairs)
