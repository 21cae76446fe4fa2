"""Convert training rows to examples, and examples to batches of tokens and labels.

The model's chat template renders only the prompt. The completion is appended unchanged, because many chat templates
remove `<think>...</think>` from an assistant's message. Rows that are too long are left out, never truncated.

The order of the examples, the batches and the random labels depend only on the seed and on the position in the
training. A resumed run therefore gets the same batches.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rank_k.data.lines import read_objects
from rank_k.distill.label_traces import LabelTrace, corrupt_labels, parse_label_trace
from rank_k.distill.recipes import LabelOptions
from rank_k.errors import FormatError, InputError
from rank_k.optional_deps import load
from rank_k.window.prompt import PromptTemplate, read_template
from rank_k.window.sanitize import sanitize

IGNORED_LABEL = -100
"""The label of a token that does not count in the loss. torch uses the same value."""

_NUMBERED_PASSAGE = re.compile(r"^\[(\d+)\] .*\[\1\]$", re.MULTILINE)
"""A passage with its number at both ends."""

_BATCHES_PER_GROUP = 16
"""The number of batches whose rows are sorted by length together."""


# --- rows and examples ---


@dataclass(frozen=True, slots=True)
class Example:
    """A training row with its tokenized prompt.

    Args:
        row: The index of the row in its file.
        prompt_ids: The token ids of the prompt.
        completion: The text that the model learns to generate.
        label_trace: The relevance labels in the completion; None if the completion does not consist of labels.
        passage_ends: The position of the last token of each passage in `prompt_ids`; empty if the prompt does not show
            where passages end, or if the completion has no labels.
    """

    row: int
    prompt_ids: Sequence[int]
    completion: str
    label_trace: LabelTrace | None
    passage_ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Examples, the number of rows that were too long, and the number of rows by source and license."""

    examples: list[Example]
    too_long: int
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_rows(path: Path, prompt: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file that `rank-k distill select` wrote.

    Raises:
        FormatError: If a line is not a row.
        InputError: If a row was not made with the prompt template `prompt`.
    """
    expected = '{"prompt": [{"role", "content"}, ...], "completion": [{"role": "assistant", "content"}], ...}'
    template = read_template(prompt)
    for number, row in read_objects(path, expected):
        if not _is_valid_row(row):
            raise FormatError(path, number, "the prompt or the assistant's completion is missing", expected)
        if not _uses_template(row, template):
            raise InputError(
                f"line {number} of {path} was not made with the prompt {prompt}, which is the prompt of the recipe",
                f"run rank-k distill trace with --prompt {prompt}, or change prompt in [asking] in the recipe",
            )
        yield row


def _is_valid_row(row: Mapping[str, Any]) -> bool:
    match row:
        case {"prompt": [_, *_] as turns, "completion": [{"role": "assistant", "content": str() as completion}]}:
            are_turns = (isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns)
            return bool(completion.strip()) and all(are_turns) and all(turn.get("role") for turn in turns)
    return False


def _uses_template(row: Mapping[str, Any], template: PromptTemplate) -> bool:
    """Return whether a row's prompt was made with `template`. Rows without query and document ids are not checked."""
    if not isinstance(row.get("query"), str) or not isinstance(row.get("doc_ids"), list):
        return True
    *_, message = template.messages(sanitize(row["query"], markers=False), ["\0"] * len(row["doc_ids"]))
    prefix, *parts_between = message.content.split("\0")
    prompt = str(row["prompt"][-1]["content"])
    position = len(prefix) if prompt.startswith(prefix) else -1
    for part in parts_between:
        position = prompt.find(part, position) if position >= 0 else -1
    return position >= 0


def build_examples(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int, label_words: Sequence[str]
) -> ExampleSet:
    """Return an example for each row that is not too long, and count the rows that are too long.

    Args:
        rows: The rows (see `read_rows`).
        tokenizer: The tokenizer of the base model.
        max_length: The maximum number of tokens in prompt and completion together.
        label_words: The relevance labels of the recipe, worst first.
    """
    examples: list[Example] = []
    too_long = 0
    sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number, row in enumerate(rows):
        prompt_ids, passage_ends = prompt_tokens(tokenizer, row["prompt"])
        completion = row["completion"][0]["content"]
        if len(prompt_ids) + len(completion_tokens(tokenizer, completion)) > max_length:
            too_long += 1
            continue
        label_trace = parse_label_trace(completion, label_words)
        if label_trace is None or len(passage_ends) != len(label_trace.target_labels):
            passage_ends = ()
        compact_ids = array("i", prompt_ids)  # takes a tenth of the memory of a list
        examples.append(Example(number, compact_ids, completion, label_trace, passage_ends))
        sources[str(row.get("source") or "unnamed")][str(row.get("license") or "unnamed")] += 1
    return ExampleSet(examples, too_long, sources)


def prompt_tokens(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], tuple[int, ...]]:
    """Return the token ids of a prompt and the positions of the last tokens of its passages.

    The prompt ends where the model's answer begins. The positions are known only if each passage in the prompt has its
    number at both ends; otherwise they are empty.
    """
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    text = text.removesuffix("<think>\n")  # some templates open the reasoning, but the completion opens it, too
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    passages = list(_NUMBERED_PASSAGE.finditer(text)) if tokenizer.is_fast else []
    if [int(match[1]) for match in passages] != list(range(1, len(passages) + 1)):
        passages = []
    token_ends = [stop for _, stop in encoding["offset_mapping"]] if passages else []
    return list(encoding["input_ids"]), tuple(bisect_left(token_ends, match.end()) for match in passages)


def completion_tokens(tokenizer: Any, completion: str) -> list[int]:
    """Return the token ids of a completion, followed by the end-of-sequence token."""
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


# --- tokenized rows ---


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row of a batch.

    Args:
        input_ids: The token ids of prompt and completion.
        labels: The token id to predict at each position, or `IGNORED_LABEL`.
        label_positions: The positions of the relevance labels in `input_ids`.
        target_labels: The relevance labels to predict at these positions.
        passage_ends: The positions of the last tokens of the passages, if they are known.
    """

    input_ids: list[int]
    labels: list[int]
    label_positions: list[int]
    target_labels: Sequence[int]
    passage_ends: Sequence[int] = ()


def tokenize_row(example: Example, tokenizer: Any, trace: LabelTrace | None = None) -> TokenizedRow:
    """Return the tokens and labels of a row. The loss covers the completion, not the prompt.

    With `trace`, its text replaces the completion: the input contains its shown labels, but the loss uses its target
    labels at these positions.
    """
    start = len(example.prompt_ids)
    completion = completion_tokens(tokenizer, example.completion if trace is None else trace.text)
    input_ids, labels = [*example.prompt_ids, *completion], [IGNORED_LABEL] * start + completion
    if trace is None:
        return TokenizedRow(input_ids, labels, [], [])
    token_ids = label_token_ids_of(tokenizer, trace.words)
    positions = [start + i for i, token in enumerate(completion) if token in token_ids][: len(trace.shown_labels)]
    shown_ids = [token_ids[label] for label in trace.shown_labels]
    assert [input_ids[position] for position in positions] == shown_ids, "a relevance label is not at its position"
    for position, label in zip(positions, trace.target_labels, strict=True):
        labels[position] = token_ids[label]
    return TokenizedRow(input_ids, labels, positions, trace.target_labels, example.passage_ends)


def label_token_ids_of(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Return the token id of each label after "[1]". Raises `InputError` if a word consists of several tokens."""
    prefix_ids = tokenizer("[1]", add_special_tokens=False)["input_ids"]
    token_ids = []
    for word in words:
        *first_ids, token_id = tokenizer(f"[1] {word}", add_special_tokens=False)["input_ids"]
        if first_ids != prefix_ids:
            raise InputError(
                f"the label {word!r} is not a single token of this model",
                "choose a different word in the [verdicts] section of the recipe",
            )
        token_ids.append(token_id)
    return token_ids


# --- batches ---


def training_order(lengths: Sequence[int], epochs: float, batch: int, seed: int, group_by_length: bool) -> list[int]:
    """Return the indices of the training rows in the order of training. The epochs follow one after the other.

    Args:
        lengths: The length of each row.
        epochs: The number of passes over the rows. A fractional pass covers a random part of the rows.
        batch: The number of rows in a batch.
        seed: The seed of the random order.
        group_by_length: Put rows of similar length into one batch, which saves padding. The order of the batches is
            still random.
    """
    order: list[int] = []
    row_count = round(epochs * len(lengths))
    random = Random(f"order|{seed}")
    while len(order) < row_count:
        rows = random.sample(range(len(lengths)), len(lengths))
        if group_by_length:
            groups = [sorted(group, key=lengths.__getitem__) for group in _split(rows, batch * _BATCHES_PER_GROUP)]
            batches = [part for group in groups for part in _split(group, batch)]
            random.shuffle(batches)
            rows = [row for part in batches for row in part]
        order += rows
    return order[:row_count]


def _split(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Batches:
    """Collates batches.

    The trainer's data set contains only the positions 0, 1, 2, ...; this class looks up each position in `order`.

    Args:
        examples: The examples.
        order: The index of the example at each position of the training (see `training_order`).
        tokenizer: The tokenizer of the base model.
        label_options: The settings for training on relevance labels.
        seed: The seed of the random labels.
    """

    examples: Sequence[Example]
    order: Sequence[int]
    tokenizer: Any
    label_options: LabelOptions
    seed: int

    def __call__(self, items: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        return pad_batch([self.row(item["position"]) for item in items], self.tokenizer.pad_token_id)

    def row(self, position: int) -> TokenizedRow:
        """Return the row at a position in `order`. Some of its shown labels are random, as `label_options` require."""
        example = self.examples[self.order[position]]
        trace = example.label_trace if self.label_options.is_enabled else None
        random = Random(f"verdicts|{self.seed}|{position}")
        if trace is not None and random.random() >= self.label_options.clean:
            trace = corrupt_labels(trace, self.label_options.corrupt, random)
        return tokenize_row(example, self.tokenizer, trace)


def pad_batch(rows: Sequence[TokenizedRow], pad_token_id: int) -> dict[str, Any]:
    """Return the tensors of a batch, padded on the right.

    `relevance_labels` and `passage_ends` have one line (row, position, target label) per passage.
    """
    torch = load("torch")

    def pad(sequences: Sequence[Sequence[int]], value: int) -> Any:
        tensors = [torch.tensor(sequence) for sequence in sequences]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    def label_tensor(positions_by_row: Sequence[Sequence[int]]) -> Any:
        entries = [
            (number, position, label)
            for number, positions in enumerate(positions_by_row)
            for position, label in zip(positions, rows[number].target_labels, strict=False)
        ]
        return torch.tensor(entries, dtype=torch.long).reshape(-1, 3)

    return {
        "input_ids": pad([row.input_ids for row in rows], pad_token_id),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0),
        "labels": pad([row.labels for row in rows], IGNORED_LABEL),
        "relevance_labels": label_tensor([row.label_positions for row in rows]),
        "passage_ends": label_tensor([row.passage_ends for row in rows]),
    }
