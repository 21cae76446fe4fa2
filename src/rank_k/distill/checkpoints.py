"""Checkpoints that are whole or not there, and the clock that runs through all of a run's parts.

transformers writes a checkpoint file by file. Killed half-way it leaves a folder that looks like one; so a last
file, written when all others are, says that it is complete, and only those with it are gone on from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_FOLDER_NAME = re.compile(r"checkpoint-(\d+)")
_COMPLETE_FILE = "complete.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`seconds`: of training up to it, all parts of the run together."""

    path: Path
    step: int
    seconds: float


def mark_complete(folder: Path, step: int, seconds: float) -> None:
    """Mark the checkpoint of `step` in `folder` as whole."""
    path = folder / f"checkpoint-{step}"
    part_file = path / f"{_COMPLETE_FILE}.part"
    with part_file.open("w", encoding="utf-8") as file:
        json.dump({"step": step, "seconds": seconds}, file)
        file.flush()
        os.fsync(file.fileno())
    part_file.replace(path / _COMPLETE_FILE)


def find_newest(folder: Path, *, remove_incomplete: bool = False) -> Checkpoint | None:
    """The newest whole checkpoint. `remove_incomplete`: remove those after it, which a kill left in pieces."""
    folders = sorted(
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _FOLDER_NAME.fullmatch(path.name))
    )
    for step, path in reversed(folders):
        try:
            marker = json.loads((path / _COMPLETE_FILE).read_text(encoding="utf-8"))
            return Checkpoint(path, step, float(marker["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            if remove_incomplete:
                shutil.rmtree(path, ignore_errors=True)
    return None
