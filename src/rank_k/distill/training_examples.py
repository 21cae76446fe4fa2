"""Rows of training data -> tokens and what is to be learnt of them.

The prompt is rendered by the model's chat template; the completion is appended to it as it stands. Chat templates
are known to drop `<think>...</think>` from an assistant's turn, so none gets to see it. Nothing is ever cut: a row
that is too long is counted and left out.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rank_k.data.lines import read_objects
from rank_k.distill.label_traces import LabelTrace, parse_label_trace
from rank_k.errors import FormatError

IGNORED_LABEL = -100
"""The label of a token that is not to be learnt, as torch has it."""


_NUMBERED_PASSAGE = re.compile(r"^\[(\d+)\] .*\[\1\]$", re.MULTILINE)
"""A passage with its number at both its ends."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row, ready for batches. `label_trace`: None where its trace has no relevance labels. `passage_ends`: position
    of the last token of each passage in `prompt_ids`; empty where the prompt does not show where passages end."""

    row: int
    prompt_ids: Sequence[int]
    completion: str
    label_trace: LabelTrace | None
    passage_ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """`too_long`: rows left out since they have more tokens than the recipe's `max_length`."""

    examples: list[Example]
    too_long: int
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def labeled_count(self) -> int:
        return sum(example.label_trace is not None for example in self.examples)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file as `rank-k distill select` writes them. Raises `FormatError` naming the line."""
    expected = '{"prompt": [{"role", "content"}, ...], "completion": [{"role": "assistant", "content"}], ...}'
    for number, row in read_objects(path, expected):
        if not _is_valid_row(row):
            raise FormatError(path, number, "no prompt, or no completion by the assistant", expected)
        yield row


def _is_valid_row(row: Mapping[str, Any]) -> bool:
    prompt, completion = row.get("prompt"), row.get("completion")
    if not (isinstance(prompt, list) and prompt and isinstance(completion, list) and len(completion) == 1):
        return False
    turns = [*prompt, *completion]
    is_complete = all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and turn.get("role") for turn in turns
    )
    return is_complete and completion[0]["role"] == "assistant" and bool(completion[0]["content"].strip())


def build_examples(
    rows: Iterator[dict[str, Any]], tokenizer: Any, max_length: int, label_words: Sequence[str]
) -> ExampleSet:
    """The rows that fit into `max_length` tokens, and how many did not."""
    examples: list[Example] = []
    too_long = 0
    sources: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows):
        prompt_ids, passage_ends = prompt_tokens(tokenizer, row["prompt"])
        completion = row["completion"][0]["content"]
        if len(prompt_ids) + len(completion_tokens(tokenizer, completion)) > max_length:
            too_long += 1
            continue
        label_trace = parse_label_trace(completion, label_words)
        if label_trace is None or len(passage_ends) != len(label_trace.target_labels):
            passage_ends = ()
        examples.append(
            Example(number, array("i", prompt_ids), completion, label_trace, passage_ends)
        )  # a tenth of a list's size
        license_counts = sources.setdefault(str(row.get("source") or "unnamed"), {})
        license = str(row.get("license") or "unnamed")
        license_counts[license] = license_counts.get(license, 0) + 1
    return ExampleSet(examples, too_long, sources)


def prompt_tokens(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], tuple[int, ...]]:
    """The prompt as the model will see it when it is asked: up to where its answer begins. And the places of the
    last tokens of passages that have their numbers at both their ends."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    # Templates of models that always think open the thought themselves, but the completion opens it too.
    text = text.removesuffix("<think>\n")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    passages = list(_NUMBERED_PASSAGE.finditer(text)) if tokenizer.is_fast else []
    if [int(match[1]) for match in passages] != list(range(1, len(passages) + 1)):
        passages = []
    token_ends = [stop for _, stop in encoding["offset_mapping"]] if passages else []
    return list(encoding["input_ids"]), tuple(bisect_left(token_ends, match.end()) for match in passages)


def completion_tokens(tokenizer: Any, completion: str) -> list[int]:
    """The completion as it stands, and the end of the turn."""
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def token_labels(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids and labels: the completion is learnt, the prompt is not."""
    completion = completion_tokens(tokenizer, example.completion)
    return [*example.prompt_ids, *completion], [IGNORED_LABEL] * len(example.prompt_ids) + completion
