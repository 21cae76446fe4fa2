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

_LINE = re.compile(r"\[(\d+)\] (.+)")


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """`shown[i]`: the verdict that stands in the text for passage i + 1; `right[i]`: the one to be learnt there.
    Numbers count `words` from the worst."""

    shown: tuple[int, ...]
    right: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The text's pieces that end in a verdict each."""
        return [f"[{i}] {self.words[verdict]}" for i, verdict in enumerate(self.shown, 1)]

    @property
    def text(self) -> str:
        """The completion, with the order that follows from what is shown."""
        trace = "".join(f"{line}\n" for line in self.lines)
        return f"<think>\n{trace}</think>\n\n{order_line(self.shown)}"


def order_line(verdicts: Sequence[int]) -> str:
    """The order that follows: best verdicts first, equal ones tied in order of presentation."""
    tiers = [
        " = ".join(f"[{i}]" for i, verdict in enumerate(verdicts, 1) if verdict == level)
        for level in sorted(set(verdicts), reverse=True)
    ]
    return " > ".join(tiers)


def read_labels(completion: str, words: Sequence[str]) -> LabelTrace | None:
    """The verdicts in a completion of exactly the form above; None if it is of another form."""
    opened, _, rest = completion.partition("<think>\n")
    thought, closed, _ = rest.partition("\n</think>\n\n")
    if opened or not closed:
        return None
    verdicts = []
    for number, line in enumerate(thought.split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) != number or match[2] not in words:
            return None
        verdicts.append(words.index(match[2]))
    trace = LabelTrace(tuple(verdicts), tuple(verdicts), tuple(words))
    return trace if trace.text == completion else None


def corrupted(trace: LabelTrace, chance: float, random: Random) -> LabelTrace:
    """`trace` with each verdict that is shown replaced, by `chance`, by any of the words."""
    among = range(len(trace.words))
    shown = tuple(random.choice(among) if random.random() < chance else verdict for verdict in trace.right)
    return LabelTrace(shown, trace.right, trace.words)
