"""The folder of a study: its settings, its journal and the runs of its cells.

    study.json      the collections, models and cells of all commands, with checksums and settings
    journal.sqlite  every call, shared by all cells
    runs/CELL.trec  the output of each finished cell
    cells.csv, queries.csv, report.html   the results, rewritten by every command

Later commands may add cells, collections and models. A command is rejected if a collection or model of the same name
has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rank_k.data.part_file import PartFile
from rank_k.errors import InputError
from rank_k.journal import Journal, run_name
from rank_k.models.simulated import PRESETS as NOISE_PRESETS
from rank_k.simulation.noise_file import noise_by_name
from rank_k.study.grid import Cell, ModelPlan
from rank_k.study.inputs import file_sha256

FORMAT_VERSION = 1


class StudyFolder:
    """The folder at `path`. Raises `InputError` if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.journal = path / "journal.sqlite"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot create the folder {path}: {error.strerror}", "choose a different --output"
            ) from error
        self._contents = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        file = self.path / "study.json"
        parts = ("collections", "models", "cells")
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["version"] != FORMAT_VERSION:
                raise InputError(f"{file} was written by a different version of rank-k", "choose a different --output")
            return {part: dict(document[part]) for part in parts}
        except FileNotFoundError:
            return {part: {} for part in parts}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is not a study of rank-k", "choose a different --output") from error

    def register(
        self, collections: Mapping[str, Mapping[str, str]], models: Iterable[ModelPlan], cells: Iterable[Cell]
    ) -> None:
        """Store the settings of a command.

        Args:
            collections: The fingerprints of each collection, by its name.
            models: The models.
            cells: The cells.

        Raises:
            InputError: If a collection or model of the same name was different in an earlier command.
        """
        for name, fingerprints in collections.items():
            self._record_unchanged("collections", name, fingerprints)
        for model in models:
            identity = {
                "model": model.model or "",
                "server_type": model.server_type,
                "revision": model.revision,
                "context_length": model.context_length,
                # Noise from a file is identified by its values, not by the path of the file.
                "simulate": model.simulate
                if model.simulate in ("", *NOISE_PRESETS)
                else asdict(noise_by_name(model.simulate)),
                "prompt": "" if model.prompt is None else file_sha256(model.prompt),
            }
            self._record_unchanged("models", model.name, identity)
        self._contents["cells"] |= {cell.name: asdict(cell) for cell in cells}
        self._write()

    def record_identity(self, model: str, identity: str) -> None:
        """Store the identity that a server reported for a model. Raises `InputError` if it has changed."""
        self._record_unchanged("models", model, {"identity": identity})
        self._write()

    def _record_unchanged(self, part: str, name: str, values: Mapping[str, Any]) -> None:
        recorded = self._contents[part].setdefault(name, {})
        for key, value in values.items():
            earlier = recorded.setdefault(key, value)
            if earlier != value:
                change = f": {earlier or 'none'}, now {value or 'none'}" if len(f"{earlier}{value}") < 80 else ""
                raise InputError(
                    f"for {name}, the study in {self.path} has a different value of {key}{change}",
                    "choose a different --output for this study",
                )

    def _write(self) -> None:
        text = json.dumps({"version": FORMAT_VERSION, **self._contents}, indent=2) + "\n"
        with PartFile(self.path / "study.json") as file:
            file.write(text.encode())

    # --- cells ---

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of all commands for this folder, in the order in which they were added."""
        return tuple(Cell(**settings) for settings in self._contents["cells"].values())

    def run_file(self, cell: Cell) -> Path:
        """Return the run file of a cell."""
        return self.runs / f"{cell.name}.trec"

    def journal_settings(self, cell: Cell) -> dict[str, Any]:
        """Return the settings with which the journal stores the run of a cell.

        They include the name of the run file, so that `rank-k evaluate --journal` can find the cost of the cell.
        """
        return {"verb": "study", "output": self.run_file(cell).name, **asdict(cell)}

    def journal_run(self, cell: Cell) -> str:
        """Return the name of the run of a cell in the journal."""
        return run_name(self.journal_settings(cell))

    def is_finished(self, cell: Cell, journal: Journal) -> bool:
        """Return whether a cell is finished: its run file exists, and every window received a response."""
        run = self.journal_run(cell)
        return (
            self.run_file(cell).exists()
            and any(record.run == run for record in journal.runs())
            and not any(record.repairs.get("retries_exhausted") for record in journal.windows(run))
        )
