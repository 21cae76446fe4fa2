"""The folder of a study: what was asked for, the journal, the cells' runs.

    study.json      collections, models and cells, each with what it is known again by
    journal.sqlite  every call, shared by all cells
    runs/CELL.trec  the output of each finished cell
    cells.csv, queries.csv, report.html   the answer, written anew by every command

A later command may add cells, collections and models. It is refused where one of a name that is known already is
not what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rank_k.errors import InputError
from rank_k.journal import Journal, run_name
from rank_k.models.simulated import PRESETS as NOISE_PRESETS
from rank_k.simulation.noise_file import noise_by_name
from rank_k.study.grid import Cell, ModelPlan

FORMAT_VERSION = 1


class StudyFolder:
    """Raises `InputError` for a folder that cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.journal = path / "journal.sqlite"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made a folder: {error.strerror}", "name another --output") from error
        self._contents = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        file = self.path / "study.json"
        empty: dict[str, dict[str, Any]] = {"collections": {}, "models": {}, "cells": {}}
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["version"] != FORMAT_VERSION:
                raise InputError(f"{file} was made by another version of rank-k", "name another --output")
            return {part: dict(document[part]) for part in empty}
        except FileNotFoundError:
            return empty
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is no study of ours", "name another --output") from error

    def register(
        self, collections: Mapping[str, Mapping[str, str]], models: Iterable[ModelPlan], cells: Iterable[Cell]
    ) -> None:
        """Take in what is to be asked. Raises `InputError` where it contradicts what was asked here before."""
        for name, fingerprints in collections.items():
            self._record_unchanged("collections", name, dict(fingerprints))
        for model in models:
            settings = {
                "model": model.model or "",
                "server_type": model.server_type,
                "revision": model.revision,
                "context_length": model.context_length,
                "simulate": _noise_identity(model.simulate),
                "prompt": "" if model.prompt is None else _sha256(model.prompt),
            }
            self._record_unchanged("models", model.name, settings)
        for cell in cells:
            self._contents["cells"][cell.name] = asdict(cell)
        self._write()

    def record_identity(self, model: str, identity: str) -> None:
        """Note who the model turned out to be. Raises `InputError` if it was another one before."""
        self._record_unchanged("models", model, {"identity": identity})
        self._write()

    def _record_unchanged(self, part: str, name: str, values: Mapping[str, Any]) -> None:
        recorded = self._contents[part].setdefault(name, {})
        for key, value in values.items():
            if key in recorded and recorded[key] != value:
                change = (
                    f": {recorded[key] or 'none'}, now {value or 'none'}" if len(f"{recorded[key]}{value}") < 80 else ""
                )
                raise InputError(
                    f"the study in {self.path} had another {key} for {name}{change}",
                    "name another --output for this one",
                )
            recorded[key] = value

    def _write(self) -> None:
        """Whole or not at all."""
        partial = self.path / "study.json.part"
        partial.write_text(json.dumps({"version": FORMAT_VERSION, **self._contents}, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / "study.json")

    # --- cells ---

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All that were ever asked for here, in the order in which they were."""
        return tuple(Cell(**settings) for settings in self._contents["cells"].values())

    def run_file(self, cell: Cell) -> Path:
        return self.runs / f"{cell.name}.trec"

    def journal_settings(self, cell: Cell) -> dict[str, Any]:
        """What the journal notes of a cell; by the name of its output, `rank-k evaluate --journal` finds its costs."""
        return {"verb": "study", "output": self.run_file(cell).name, **asdict(cell)}

    def journal_run(self, cell: Cell) -> str:
        """The cell's name in the journal."""
        return run_name(self.journal_settings(cell))

    def is_finished(self, cell: Cell, journal: Journal) -> bool:
        """Whether there is nothing left to ask. A window that had to be given up is asked about again."""
        run = self.journal_run(cell)
        if not self.run_file(cell).exists() or all(record.run != run for record in journal.runs()):
            return False
        return not any(record.repairs.get("retries_exhausted") for record in journal.windows(run))


def _noise_identity(name: str) -> str | dict[str, float]:
    """A noise as it is known again: one from a file by what the file says, not by where it lies."""
    return name if name in ("", *NOISE_PRESETS) else asdict(noise_by_name(name))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
