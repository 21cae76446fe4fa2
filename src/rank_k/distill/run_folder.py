"""The folder of a training run.

run.json          the recipe, its prompt, the checksums of the data and of the base model, and the sources of the rows
measures.jsonl    one line per step: {"step", "seconds", "loss", "learning_rate", "grad_norm"}, and one line per
                  measurement on held-out rows: {"step", "seconds", "heldout": {...}}
curves.csv        the held-out measures, as a table for plots
checkpoint-N/     a checkpoint of transformers, which is complete if it contains complete.json
trained/          the adapter or the full weights, and the tokenizer, in the format of transformers
README.md         the model card
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_k.data.part_file import PartFile
from rank_k.errors import InputError
from rank_k.optional_deps import load

RUN_FILE, MEASURES_FILE, CURVES_FILE, TRAINED_FOLDER = "run.json", "measures.jsonl", "curves.csv", "trained"
_COMPLETE_FILE = "complete.json"
_RUN_KEYS = frozenset("recipe prompt data_sha256 base_sha256 processes bf16 rows too_long sources".split())

OnRecord = Callable[[Mapping[str, Any]], None]
"""Called with records, in this order: the number format ({"bf16", "bf16_requested"}); when training begins, the step to
resume from and the number of steps ({"step", "seconds", "steps"}); and then each line of `measures.jsonl`."""


def read_run_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json`. Raises `InputError` if `folder` is not the folder of a training run."""
    remedy = "give the folder that is the --output of rank-k distill train"
    try:
        metadata = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} is not the folder of a training run: {error}", remedy) from error
    if not isinstance(metadata, dict) or not metadata.keys() >= _RUN_KEYS:
        raise InputError(f"{folder} is not the folder of a training run: its {RUN_FILE} is incomplete", remedy)
    return metadata


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: an interruption never leaves an incomplete file."""
    with PartFile(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint. `seconds`: the duration of the run up to this checkpoint, earlier parts included."""

    path: Path
    step: int
    seconds: float


def mark_complete(folder: Path, step: int, seconds: float) -> None:
    """Mark the checkpoint of `step` in `folder` as complete.

    transformers writes the files of a checkpoint one by one, so a killed process can leave an incomplete checkpoint.
    The mark is written last.
    """
    write_json(folder / f"checkpoint-{step}" / _COMPLETE_FILE, {"step": step, "seconds": seconds})


def find_newest_checkpoint(folder: Path, *, remove_incomplete: bool = False) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None. `remove_incomplete`: also delete incomplete checkpoints."""
    markers = list(folder.glob(f"checkpoint-*/{_COMPLETE_FILE}"))
    if remove_incomplete:
        for path in set(folder.glob("checkpoint-*")) - {marker.parent for marker in markers}:
            shutil.rmtree(path, ignore_errors=True)
    checkpoints = [Checkpoint(marker.parent, **json.loads(marker.read_text(encoding="utf-8"))) for marker in markers]
    return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)


def read_measures(folder: Path) -> list[dict[str, Any]]:
    """Return the records of `measures.jsonl`, or an empty list if the file does not exist."""
    path = folder / MEASURES_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        json.loads(line) for line in lines if line.endswith("}")
    ]  # a killed process may leave a truncated last line


class TrainingLog:
    """Writes `measures.jsonl` and `curves.csv`.

    A run that resumes keeps its records up to the checkpoint. The records of later steps are deleted, because these
    steps run again.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint | None, on_record: OnRecord) -> None:
        self._folder, self._on_record = folder, on_record
        last_step = -1 if checkpoint is None else checkpoint.step
        earlier_records = read_measures(folder)
        for name in (MEASURES_FILE, CURVES_FILE):
            (folder / name).unlink(missing_ok=True)
        for record in earlier_records:
            if record["step"] <= last_step and "finished" not in record:
                self._write(record)

    def record(self, record: Mapping[str, Any]) -> None:
        """Write a record and pass it to `on_record`. The record with the number of steps is passed, but not written."""
        if "steps" not in record:
            self._write(record)
        self._on_record(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        with (self._folder / MEASURES_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")
        if "heldout" in record:
            with (self._folder / CURVES_FILE).open("a", encoding="utf-8", newline="") as file:
                row = {"step": record["step"], "seconds": record["seconds"], **record["heldout"]}
                writer = csv.DictWriter(file, row)
                if not file.tell():
                    writer.writeheader()
                writer.writerow(row)


class TrainingClock:
    """Measures the duration of a run in seconds, including loading and earlier parts of the run.

    If several processes train together, all of them use the time of the first process. Actions that depend on the
    time, such as saving, then happen in the same step in all processes. The time changes only in `tick`.

    Args:
        previous_seconds: The duration of the earlier parts of the run.
        limit: The time limit in seconds; None for no limit.
    """

    def __init__(self, previous_seconds: float, limit: float | None) -> None:
        self.seconds = previous_seconds
        self._start, self._limit = time.monotonic() - previous_seconds, limit

    def tick(self) -> None:
        """Update the time. All processes must call this method at the same points of the training."""
        values = [time.monotonic() - self._start]
        load("accelerate.utils").broadcast_object_list(values)
        self.seconds = values[0]

    @property
    def elapsed_share(self) -> float:
        """The fraction of the time limit that has elapsed, from 0 to 1; 0 if there is no limit."""
        return min(self.seconds / self._limit, 1.0) if self._limit else 0.0
