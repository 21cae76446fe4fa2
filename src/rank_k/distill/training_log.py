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

MEASURES_FILE, CURVES_FILE = "measures.jsonl", "curves.csv"

OnRecord = Callable[[Mapping[str, Any]], None]
"""Called with each line of `measures.jsonl`, and first with the number format: {"bf16", "bf16_requested"}."""


class TrainingLog:
    """The files in `folder` (None: nothing is written): the records up to the checkpoint, and new ones.

    Earlier records of the steps after the checkpoint are dropped, since these steps run again.
    """

    def __init__(self, folder: Path | None, checkpoint: Checkpoint | None, on_record: OnRecord) -> None:
        self._folder, self._on_record = folder, on_record
        self._heldout_records: list[Mapping[str, Any]] = []
        if folder is not None:
            records = _read_records(folder / MEASURES_FILE, checkpoint)
            (folder / MEASURES_FILE).write_text(
                "".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8"
            )
            self._heldout_records = [record for record in records if "heldout" in record]
            _write_curves(folder / CURVES_FILE, self._heldout_records)

    def record(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        if self._folder is not None:
            with (self._folder / MEASURES_FILE).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(record)}\n")
            if "heldout" in record:
                self._heldout_records.append(record)
                _write_curves(self._folder / CURVES_FILE, self._heldout_records)
        self._on_record(record)


def _read_records(path: Path, checkpoint: Checkpoint | None) -> list[dict[str, Any]]:
    if checkpoint is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been torn
    return [record for record in records if record.get("step", 0) <= checkpoint.step and not record.get("finished")]


def _write_curves(path: Path, heldout_records: Sequence[Mapping[str, Any]]) -> None:
    if not heldout_records:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "seconds", *heldout_records[0]["heldout"]])
        writer.writerows([record["step"], record["seconds"], *record["heldout"].values()] for record in heldout_records)


class TrainingClock:
    """Seconds of training, of all parts of the run. `elapsed_share`: used share of the time limit; 0 without one.

    `synchronize`: gives all processes the same time, so that what depends on time happens in the same step everywhere;
    it is called at each `tick`, and the time does not change in between. None for one process.
    """

    def __init__(
        self, previous_seconds: float, limit: float | None, synchronize: Callable[[float], float] | None = None
    ) -> None:
        self._previous_seconds, self._limit, self._synchronize = previous_seconds, limit, synchronize
        self._start = time.monotonic()
        self._synchronized_seconds = previous_seconds

    def tick(self) -> None:
        """To be called by all processes in the same places."""
        if self._synchronize is not None:
            self._synchronized_seconds = self._synchronize(self._elapsed_seconds())

    def _elapsed_seconds(self) -> float:
        return self._previous_seconds + time.monotonic() - self._start

    @property
    def seconds(self) -> float:
        return self._elapsed_seconds() if self._synchronize is None else self._synchronized_seconds

    @property
    def elapsed_share(self) -> float:
        return min(self.seconds / self._limit, 1.0) if self._limit else 0.0
