"""Reasoning traces that consist of relevance labels: one label per passage, then the ranking that the labels imply.

    <think>
    [1] no
    [2] yes
    [3] no
    </think>

    [2] > [1] = [3]

A small model that is trained on such rows learns to predict a label from the labels before it: after many "no", a
"yes" becomes likely. To prevent that, training replaces some of the labels in the text (the *shown* labels) by random
labels, while the label that the model has to predict at each position (the *target* label) stays correct. Then the
shown labels do not predict the next target label. The ranking at the end always follows from the shown labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

_LABEL_LINE = re.compile(r"\[(\d+)\] (.+)")


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """The relevance labels of the passages in a window. A label is an index into `words`.

    Args:
        shown_labels: The label that the text contains for each passage.
        target_labels: The label that the model has to predict for each passage.
        words: The words that stand for the labels, worst first.
    """

    shown_labels: tuple[int, ...]
    target_labels: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def reasoning(self) -> str:
        """The text of the reasoning: one line per passage, with its number and its shown label."""
        return "\n".join(f"[{i}] {self.words[label]}" for i, label in enumerate(self.shown_labels, 1))

    @property
    def ranking(self) -> str:
        """The ranking that follows from the shown labels: best first, with ties between passages of the same label."""
        labels = list(enumerate(self.shown_labels, 1))
        tiers = sorted(set(self.shown_labels), reverse=True)
        return " > ".join(" = ".join(f"[{i}]" for i, label in labels if label == tier) for tier in tiers)

    @property
    def text(self) -> str:
        """The completion: the reasoning and the ranking."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.ranking}"


def parse_label_trace(completion: str, words: Sequence[str]) -> LabelTrace | None:
    """Return the labels in a completion that has exactly the format in the module's docstring, else None."""
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
    """Return `trace` with shown labels replaced: each one, with this probability, by a random label."""
    indices = range(len(trace.words))
    return replace(
        trace,
        shown_labels=tuple(
            random.choice(indices) if random.random() < probability else label for label in trace.target_labels
        ),
    )
