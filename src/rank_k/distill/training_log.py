"""What a run tells of itself while it goes on: lines of JSON for programs, the held-out measures as a table.

measures.jsonl    a line a step: {"step", "seconds", "loss", "learning_rate", "grad_norm"}; in between
                  {"step", "seconds", "heldout": {...}}
curves.csv        the held-out measures alone, one line each: what a plot is made of
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_k.distill.checkpoints import Checkpoint

LINES, CURVES = "measures.jsonl", "curves.csv"

OnRecord = Callable[[Mapping[str, Any]], None]
"""Called with each line of `measures.jsonl`, and first with the number format: {"bf16", "wanted"}."""


class TrainingLog:
    """The files in `folder` (None: nothing is written): what was told up to the checkpoint `start`, and what is told
    from now on. What was told after that checkpoint is dropped, since it will happen again."""

    def __init__(self, folder: Path | None, start: Checkpoint | None, on_told: OnRecord) -> None:
        self._folder, self._on_told = folder, on_told
        self._measured: list[Mapping[str, Any]] = []
        if folder is not None:
            before = _told_before(folder / LINES, start)
            (folder / LINES).write_text("".join(f"{json.dumps(each)}\n" for each in before), encoding="utf-8")
            self._measured = [each for each in before if "heldout" in each]
            _write_curves(folder / CURVES, self._measured)

    def tell(self, told: Mapping[str, Any]) -> None:
        """Add a line."""
        if self._folder is not None:
            with (self._folder / LINES).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(told)}\n")
            if "heldout" in told:
                self._measured.append(told)
                _write_curves(self._folder / CURVES, self._measured)
        self._on_told(told)


def _told_before(path: Path, start: Checkpoint | None) -> list[dict[str, Any]]:
    if start is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been torn
    return [each for each in told if each.get("step", 0) <= start.step and not each.get("finished")]


def _write_curves(path: Path, measured: Sequence[Mapping[str, Any]]) -> None:
    if not measured:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "seconds", *measured[0]["heldout"]])
        writer.writerows([each["step"], each["seconds"], *each["heldout"].values()] for each in measured)


class Clock:
    """Seconds of training, of all parts of the run. `share`: of the time limit that is gone; 0 without one.

    `agreed`: makes all processes that train together go by one clock, so that what they do by time they do in the
    same step; it is asked at each `tick`, in between the time stands still. None for one process.
    """

    def __init__(self, before: float, limit: float | None, agreed: Callable[[float], float] | None = None) -> None:
        self._before, self._limit, self._agreed = before, limit, agreed
        self._start = time.monotonic()
        self._ticked = before

    def tick(self) -> None:
        """To be called by all processes in the same places."""
        if self._agreed is not None:
            self._ticked = self._agreed(self._gone())

    def _gone(self) -> float:
        return self._before + time.monotonic() - self._start

    @property
    def seconds(self) -> float:
        return self._gone() if self._agreed is None else self._ticked

    @property
    def share(self) -> float:
        return min(self.seconds / self._limit, 1.0) if self._limit else 0.0
