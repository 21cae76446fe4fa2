"""The order in which rows are learnt, and the batches made of them.

Both are functions of the seed alone: what the n-th batch of a run holds, the random verdicts in it too, depends on
nothing that happened before. A run that was killed and goes on sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rank_k.distill.label_traces import LabelTrace, corrupted
from rank_k.distill.recipes import LabelOptions
from rank_k.distill.training_examples import IGNORED, Example, completion_tokens, token_labels
from rank_k.errors import InputError
from rank_k.optional_deps import load

_GROUPED = 16  # batches' worth of rows that are sorted by length together


def training_order(lengths: Sequence[int], epochs: float, batch: int, seed: int, grouped: bool) -> list[int]:
    """Numbers of rows in the order in which they are learnt, all epochs in a row.

    `grouped`: rows of one batch are of similar length, which spares padding; batches come in random order still.
    """
    order: list[int] = []
    wanted = round(epochs * len(lengths))
    random = Random(f"order|{seed}")
    while len(order) < wanted:
        rows = random.sample(range(len(lengths)), len(lengths))
        if grouped:
            chunk = batch * _GROUPED
            batches = [
                part[i : i + batch]
                for part in (
                    sorted(rows[start : start + chunk], key=lambda row: lengths[row])
                    for start in range(0, len(rows), chunk)
                )
                for i in range(0, len(part), batch)
            ]
            random.shuffle(batches)
            rows = [row for part in batches for row in part]
        order += rows
    return order[:wanted]


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as it stands in a batch.

    `verdict_at`: places of the verdicts in `input_ids`; `right`: the verdicts to be learnt there. `ends`: places of
    the last tokens of the passages, where they are known.
    """

    input_ids: list[int]
    labels: list[int]
    verdict_at: list[int]
    right: list[int]
    ends: Sequence[int] = ()


@dataclass(frozen=True)
class Batches:
    """Makes batches of what stands at places of `order` (the trainer's data set is those places alone)."""

    examples: Sequence[Example]
    order: Sequence[int]
    tokenizer: Any
    verdicts: LabelOptions
    seed: int

    def __call__(self, places: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        return padded([self.row(each["place"]) for each in places], self.tokenizer.pad_token_id)

    def row(self, place: int) -> TokenizedRow:
        """What is learnt at that place of the order."""
        example = self.examples[self.order[place]]
        if example.verdicts is None or not self.verdicts.on:
            return TokenizedRow(*token_labels(example, self.tokenizer), [], [])
        random = Random(f"verdicts|{self.seed}|{place}")
        trace = example.verdicts
        if random.random() >= self.verdicts.clean:
            trace = corrupted(trace, self.verdicts.corrupt, random)
        return with_labels(example, trace, self.tokenizer)


def with_labels(example: Example, trace: LabelTrace, tokenizer: Any) -> TokenizedRow:
    """`example` with `trace` as its completion: what is shown is read, what is right is learnt.

    Each verdict is the last token of its line: a word of several tokens was refused by `verdict_tokens`.
    """
    completion = completion_tokens(tokenizer, trace.text)
    labels = list(completion)
    words = label_tokens(tokenizer, trace.words)
    at = len(tokenizer("<think>\n", add_special_tokens=False)["input_ids"])
    newline = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
    places = []
    for line, shown, right in zip(trace.lines, trace.shown, trace.right, strict=True):
        at += len(tokenizer(line, add_special_tokens=False)["input_ids"])
        assert completion[at - 1] == words[shown], "a verdict is not where it should be"
        labels[at - 1] = words[right]
        places.append(at - 1)
        at += newline
    start = len(example.prompt_ids)
    return TokenizedRow(
        [*example.prompt_ids, *completion],
        [IGNORED] * start + labels,
        [start + place for place in places],
        list(trace.right),
        example.ends,
    )


def label_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The token of each verdict as it stands after "[1]". Raises `InputError` for a word of several tokens."""
    found = []
    for word in words:
        ids = tokenizer(f"[1] {word}", add_special_tokens=False)["input_ids"]
        before = tokenizer("[1]", add_special_tokens=False)["input_ids"]
        if ids[:-1] != before:
            raise InputError(
                f"the verdict {word!r} is not one token to this model", "choose another word in [verdicts]"
            )
        found.append(ids[-1])
    return found


def padded(rows: Sequence[TokenizedRow], pad: int) -> dict[str, Any]:
    """Tensors of a batch, padded on the right; verdicts, and ends of passages, as flat lists of (row, place, right
    verdict)."""
    torch = load("torch")
    longest = max(len(row.input_ids) for row in rows)

    def flat(places: Iterable[tuple[int, Sequence[int], Sequence[int]]]) -> Any:
        told = [
            (number, place, right)
            for number, found, verdicts in places
            for place, right in zip(found, verdicts, strict=True)
        ]
        return torch.tensor(told, dtype=torch.long).reshape(-1, 3)

    return {
        "input_ids": torch.tensor([row.input_ids + [pad] * (longest - len(row.input_ids)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows]
        ),
        "labels": torch.tensor([row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows]),
        "verdicts": flat((number, row.verdict_at, row.right) for number, row in enumerate(rows)),
        "ends": flat((number, row.ends, row.right) for number, row in enumerate(rows) if row.ends),
    }
