"""Students: trained weights together with the prompt and the options that they were trained for.

`rank-k distill export` writes a GGUF file with the weights and, next to it, a JSON file with the same name and the
settings. `--model` accepts the GGUF file, or a folder with a `student.json`, and uses both files.

    {"rank_k_student": 1, "name": "nano", "gguf": "student.gguf", "adapter_of": {"name": ..., "sha256": ...},
     "prompt": {"before": ..., "passage": ..., "between": ..., "after": ..., "system": ...},
     "asking": {"method": "combined", "strategy": "blocks", "passage_tokens": 48, "window": 8, "stride": 4,
                "reasoning": "full", "max_tokens": 256, "temperature": 0},
     "verdicts": ["no", "partly", "yes"]}

`adapter_of` contains the base model: its path, or its name for `rank-k fetch`. It is absent if the GGUF file contains
full weights. `verdicts` lists the relevance labels, worst first, of a student that reasons by writing one label per
passage; for all other students, it is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_k.errors import FormatError, InputError
from rank_k.models.weights import DEFAULT_WEIGHTS, Weights, checksum, locate
from rank_k.option_values import STRATEGY_NAMES
from rank_k.options import STUDENT_OPTIONS, parse_option

FOLDER_FILE = "student.json"
SHIPPED_STUDENTS: Mapping[str, Path] = {"rank-k-nano": Path(__file__).parent / "nano" / "rank-k-nano.gguf"}
"""The GGUF files of the students in the package, by name. They are adapters for weights from `rank-k fetch`."""


def default_model(method: str | None) -> str:
    """Return the default embedded model: base weights for the method "likelihood", otherwise the shipped student."""
    return DEFAULT_WEIGHTS if method == "likelihood" else next(iter(SHIPPED_STUDENTS))


_VERSION = 1
TEMPLATE_FIELDS = ("before", "passage", "between", "after", "system")


@dataclass(frozen=True, slots=True)
class Student:
    """A student and its settings.

    Attributes:
        name: The name of the student.
        weights: The weights to load.
        adapter: The LoRA adapter for these weights, or None.
        prompt: The texts of the prompt template, by the field names of `window.prompt.PromptTemplate`.
        asking: The options with which the student reranks, by the keywords of `Reranker`.
        verdicts: The relevance labels, worst first; empty if the student does not reason by writing labels.
    """

    name: str
    weights: Weights
    adapter: Path | None
    prompt: Mapping[str, str]
    asking: Mapping[str, Any]
    verdicts: tuple[str, ...] = ()


def find_student(name_or_path: str | Path) -> Student | None:
    """Return the student with this name, in this folder, or in this GGUF file.

    Returns:
        The student; None if there are no settings next to the GGUF file, or if the file does not exist.

    Raises:
        FormatError: If the JSON file is not valid.
        MissingWeights: If the base model has not been downloaded.
        InputError: If the base model is not the one that the student was trained on, or a folder has no settings.
    """
    try:
        path = SHIPPED_STUDENTS.get(os.fspath(name_or_path)) or Path(os.fspath(name_or_path)).expanduser()
        settings_path = path / FOLDER_FILE if path.is_dir() else path.with_suffix(".json")
        if path.is_dir() and not settings_path.is_file():
            raise InputError(f"there is no {FOLDER_FILE} in {path}", f"run: rank-k distill export --student {path}")
        if settings_path.suffix == path.suffix or not settings_path.is_file():
            return None
    except (OSError, RuntimeError, ValueError):
        return None  # not a valid path; `locate` reports it
    settings = _read_settings(settings_path)
    if settings is None:
        return None
    gguf = settings_path.parent / settings["gguf"]
    if not path.is_dir() and gguf.name != path.name:
        return None  # these settings belong to a different GGUF file
    prompt = {name: settings["prompt"][name] for name in TEMPLATE_FIELDS}
    base = settings.get("adapter_of")
    loaded = locate(gguf if base is None else base["name"])
    if base is not None:
        if loaded.sha256 != base["sha256"]:
            raise InputError(
                f"{gguf} is an adapter for different weights than {loaded.path}",
                f"give the weights with sha256 {base['sha256'][:16]}...",
            )
        checksum(gguf)  # raises if it is not a readable GGUF file
    weights = Weights(settings["name"], loaded.path, loaded.sha256, loaded.context_length)
    adapter, labels = None if base is None else gguf, tuple(settings.get("verdicts", ()))
    return Student(settings["name"], weights, adapter, prompt, settings["asking"], labels)


def write_student(
    gguf: Path,
    name: str,
    prompt: Mapping[str, str],
    inference_options: Mapping[str, Any],
    adapter_of: Mapping[str, str] | None,
    labels: Sequence[str] = (),
) -> Path:
    """Write the settings of a student and return the path of the JSON file.

    Args:
        gguf: The GGUF file. The JSON file gets the same name and is written to the same folder.
        name: The name of the student.
        prompt: The texts of the prompt template.
        inference_options: The options with which the student reranks: a value for each name in `STUDENT_OPTIONS`.
        adapter_of: Name and sha256 of the base model if `gguf` is an adapter, else None.
        labels: The relevance labels, worst first (default: the student does not reason by writing labels).
    """
    settings = {
        "rank_k_student": _VERSION,
        "name": name,
        "gguf": gguf.name,
        **({"adapter_of": dict(adapter_of)} if adapter_of else {}),
        "prompt": {name: prompt[name] for name in TEMPLATE_FIELDS},
        "asking": {key: inference_options[key] for key in STUDENT_OPTIONS},
        **({"verdicts": list(labels)} if labels else {}),
    }
    path = gguf.with_suffix(".json")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _read_settings(path: Path) -> dict[str, Any] | None:
    """Return the validated settings in a JSON file; None if it is not the settings file of a student."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(settings, dict) or "rank_k_student" not in settings:
        return None

    def format_error(problem: str) -> FormatError:
        return FormatError(path, 0, problem, "a student's settings as rank-k distill export writes them")

    base, labels = settings.get("adapter_of"), settings.get("verdicts", [])
    has_files = _has_texts(settings, ("name", "gguf")) and "/" not in settings["gguf"]
    checks = (
        (settings["rank_k_student"] == _VERSION, f"version {settings['rank_k_student']!r}"),
        (has_files, "name or gguf is missing"),
        (_has_texts(settings.get("prompt"), TEMPLATE_FIELDS), "prompt is incomplete"),
        (isinstance(settings.get("asking"), dict), "asking is not an object"),
        (base is None or _has_texts(base, ("name", "sha256")), "adapter_of has no name or no sha256"),
        (
            isinstance(labels, list) and all(isinstance(word, str) for word in labels) and len(labels) != 1,
            "verdicts is not a list of two or more words",
        ),
    )
    for is_valid, problem in checks:
        if not is_valid:
            raise format_error(problem)
    try:
        settings["asking"] = {
            name: parse_option(name, value, STUDENT_OPTIONS, "asking") for name, value in settings["asking"].items()
        }
    except InputError as error:
        raise format_error(error.problem[:80]) from error
    if settings["asking"].get("strategy") not in (None, *STRATEGY_NAMES):
        raise format_error("strategy is not one of Rank-K's")  # a strategy MODULE:NAME could run arbitrary code
    return settings


def _has_texts(table: Any, keys: Sequence[str]) -> bool:
    """Return whether `table` is a JSON object with a string for each key."""
    return isinstance(table, dict) and all(isinstance(table.get(key), str) for key in keys)
