"""Traces of verdicts: one word a passage, in order of presentation, then the order that follows from them.

    <think>
    [1] no
    [2] yes
    [3] no
    </think>

    [2] > [1] = [3]

A small model trained on such rows as they are learns a trap instead of relevance: "no yes so far, so the next one
is likelier yes". The cure is here too: verdicts that are *shown* are replaced by random ones now and then, while
the one to be learnt at each place stays what it was. What is shown then tells nothing about what comes next, and
the order at the end still follows from what is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_LABEL_LINE = re.compile(r"\[(\d+)\] (.+)")


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """`shown_labels[i]`: the label of passage i + 1 in the text; `target_labels[i]`: the one to be learned there.
    Labels are indices of `words`, worst first."""

    shown_labels: tuple[int, ...]
    target_labels: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The text's pieces that end in a verdict each."""
        return [f"[{i}] {self.words[label]}" for i, label in enumerate(self.shown_labels, 1)]

    @property
    def text(self) -> str:
        """The completion, with the order that follows from what is shown."""
        trace = "".join(f"{line}\n" for line in self.lines)
        return f"<think>\n{trace}</think>\n\n{ranking_from_labels(self.shown_labels)}"


def ranking_from_labels(labels: Sequence[int]) -> str:
    """The order that follows: best verdicts first, equal ones tied in order of presentation."""
    tiers = [
        " = ".join(f"[{i}]" for i, label in enumerate(labels, 1) if label == tier_label)
        for tier_label in sorted(set(labels), reverse=True)
    ]
    return " > ".join(tiers)


def parse_label_trace(completion: str, words: Sequence[str]) -> LabelTrace | None:
    """The verdicts in a completion of exactly the form above; None if it is of another form."""
    before_reasoning, _, after_opening = completion.partition("<think>\n")
    reasoning, separator, _ = after_opening.partition("\n</think>\n\n")
    if before_reasoning or not separator:
        return None
    labels = []
    for number, line in enumerate(reasoning.split("\n"), 1):
        match = _LABEL_LINE.fullmatch(line)
        if match is None or int(match[1]) != number or match[2] not in words:
            return None
        labels.append(words.index(match[2]))
    trace = LabelTrace(tuple(labels), tuple(labels), tuple(words))
    return trace if trace.text == completion else None


def corrupt_labels(trace: LabelTrace, probability: float, random: Random) -> LabelTrace:
    """`trace` with each verdict that is shown replaced, by `probability`, by any of the words."""
    label_indices = range(len(trace.words))
    shown_labels = tuple(
        random.choice(label_indices) if random.random() < probability else label for label in trace.target_labels
    )
    return LabelTrace(shown_labels, trace.target_labels, trace.words)
