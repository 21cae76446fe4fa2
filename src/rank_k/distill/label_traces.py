"""Reasoning traces of relevance labels: one word per passage in the order presented, then the ranking that follows.

    <think>
    [1] no
    [2] yes
    [3] no
    </think>

    [2] > [1] = [3]

A small model that is trained on such rows learns to predict a label from the labels before it: after many "no", a
"yes" becomes likely. To prevent that, some labels in the text (*shown* labels) are replaced by random ones, while the
label to be learned at each position (*target* label) stays correct. Then shown labels do not predict the next label,
and the ranking at the end still follows from the shown labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

_LABEL_LINE = re.compile(r"\[(\d+)\] (.+)")


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """Relevance labels of a window, as indices of `words`, worst first.

    Args:
        shown_labels: The label of each passage in the text.
        target_labels: The label to be learned at each of these positions.
        words: The labels as words.
    """

    shown_labels: tuple[int, ...]
    target_labels: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def reasoning(self) -> str:
        """One line per passage, which ends in its label."""
        return "\n".join(f"[{i}] {self.words[label]}" for i, label in enumerate(self.shown_labels, 1))

    @property
    def ranking(self) -> str:
        """The ranking that follows from the shown labels: best first, equal ones tied in the order presented."""
        labels = list(enumerate(self.shown_labels, 1))
        tiers = sorted(set(self.shown_labels), reverse=True)
        return " > ".join(" = ".join(f"[{i}]" for i, label in labels if label == tier) for tier in tiers)

    @property
    def text(self) -> str:
        """The completion."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.ranking}"


def parse_label_trace(completion: str, words: Sequence[str]) -> LabelTrace | None:
    """Return the labels in a completion of exactly the form above; None if it has another form."""
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
    """Return `trace` with each shown label replaced, with this probability, by any of the words."""
    indices = range(len(trace.words))
    return replace(
        trace,
        shown_labels=tuple(
            random.choice(indices) if random.random() < probability else label for label in trace.target_labels
        ),
    )
