"""The order in which rows are learnt, and the batches made of them.

Both are functions of the seed alone: what the n-th batch of a run holds, the random verdicts in it too, depends on
nothing that happened before. A run that was killed and goes on sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rank_k.distill.label_traces import LabelTrace, corrupt_labels
from rank_k.distill.recipes import LabelOptions
from rank_k.distill.training_examples import IGNORED_LABEL, Example, completion_tokens, token_labels
from rank_k.errors import InputError
from rank_k.optional_deps import load

_BATCHES_PER_GROUP = 16  # batches' worth of rows that are sorted by length together


def training_order(lengths: Sequence[int], epochs: float, batch: int, seed: int, group_by_length: bool) -> list[int]:
    """Numbers of rows in the order in which they are learnt, all epochs in a row.

    `group_by_length`: put rows of similar length into one batch, which saves padding; the batches stay in random order.
    """
    order: list[int] = []
    row_count = round(epochs * len(lengths))
    random = Random(f"order|{seed}")
    while len(order) < row_count:
        rows = random.sample(range(len(lengths)), len(lengths))
        if group_by_length:
            rows_per_group = batch * _BATCHES_PER_GROUP
            batches = [
                part[i : i + batch]
                for part in (
                    sorted(rows[start : start + rows_per_group], key=lambda row: lengths[row])
                    for start in range(0, len(rows), rows_per_group)
                )
                for i in range(0, len(part), batch)
            ]
            random.shuffle(batches)
            rows = [row for part in batches for row in part]
        order += rows
    return order[:row_count]


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as it stands in a batch.

    `label_positions`: positions of the relevance labels in `input_ids`; `target_labels`: the labels to be learned
    there. `passage_ends`: positions of the passages' last tokens, where they are known.
    """

    input_ids: list[int]
    labels: list[int]
    label_positions: list[int]
    target_labels: list[int]
    passage_ends: Sequence[int] = ()


@dataclass(frozen=True)
class Batches:
    """Makes batches of what stands at places of `order` (the trainer's data set is those places alone)."""

    examples: Sequence[Example]
    order: Sequence[int]
    tokenizer: Any
    label_options: LabelOptions
    seed: int

    def __call__(self, items: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        return pad_batch([self.row(item["position"]) for item in items], self.tokenizer.pad_token_id)

    def row(self, position: int) -> TokenizedRow:
        """What is learnt at that place of the order."""
        example = self.examples[self.order[position]]
        if example.label_trace is None or not self.label_options.is_enabled:
            return TokenizedRow(*token_labels(example, self.tokenizer), [], [])
        random = Random(f"verdicts|{self.seed}|{position}")
        label_trace = example.label_trace
        if random.random() >= self.label_options.clean:
            label_trace = corrupt_labels(label_trace, self.label_options.corrupt, random)
        return tokenize_labeled_row(example, label_trace, self.tokenizer)


def tokenize_labeled_row(example: Example, trace: LabelTrace, tokenizer: Any) -> TokenizedRow:
    """`example` with `trace` as its completion: what is shown is read, what is right is learnt.

    Each verdict is the last token of its line: a word of several tokens was refused by `label_token_ids_of`.
    """
    completion = completion_tokens(tokenizer, trace.text)
    labels = list(completion)
    token_ids_by_label = label_token_ids_of(tokenizer, trace.words)
    position = len(tokenizer("<think>\n", add_special_tokens=False)["input_ids"])
    newline = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
    label_positions = []
    for label_line, shown_label, target_label in zip(trace.lines, trace.shown_labels, trace.target_labels, strict=True):
        position += len(tokenizer(label_line, add_special_tokens=False)["input_ids"])
        assert completion[position - 1] == token_ids_by_label[shown_label], "a verdict is not where it should be"
        labels[position - 1] = token_ids_by_label[target_label]
        label_positions.append(position - 1)
        position += newline
    start = len(example.prompt_ids)
    return TokenizedRow(
        [*example.prompt_ids, *completion],
        [IGNORED_LABEL] * start + labels,
        [start + place for place in label_positions],
        list(trace.target_labels),
        example.passage_ends,
    )


def label_token_ids_of(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The token of each verdict as it stands after "[1]". Raises `InputError` for a word of several tokens."""
    token_ids = []
    for word in words:
        ids = tokenizer(f"[1] {word}", add_special_tokens=False)["input_ids"]
        prefix_ids = tokenizer("[1]", add_special_tokens=False)["input_ids"]
        if ids[:-1] != prefix_ids:
            raise InputError(
                f"the verdict {word!r} is not one token to this model", "choose another word in [verdicts]"
            )
        token_ids.append(ids[-1])
    return token_ids


def pad_batch(rows: Sequence[TokenizedRow], pad_token_id: int) -> dict[str, Any]:
    """Tensors of a batch, padded on the right; verdicts, and ends of passages, as flat lists of (row, place, right
    verdict)."""
    torch = load("torch")
    longest = max(len(row.input_ids) for row in rows)

    def label_tensor(rows_with_labels: Iterable[tuple[int, Sequence[int], Sequence[int]]]) -> Any:
        entries = [
            (row_number, place, target_label)
            for row_number, positions, target_labels in rows_with_labels
            for place, target_label in zip(positions, target_labels, strict=True)
        ]
        return torch.tensor(entries, dtype=torch.long).reshape(-1, 3)

    return {
        "input_ids": torch.tensor([row.input_ids + [pad_token_id] * (longest - len(row.input_ids)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows]
        ),
        "labels": torch.tensor([row.labels + [IGNORED_LABEL] * (longest - len(row.labels)) for row in rows]),
        "relevance_labels": label_tensor(
            (row_number, row.label_positions, row.target_labels) for row_number, row in enumerate(rows)
        ),
        "passage_ends": label_tensor(
            (row_number, row.passage_ends, row.target_labels) for row_number, row in enumerate(rows) if row.passage_ends
        ),
    }
