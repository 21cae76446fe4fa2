"""Students: weights of our own making, with the settings they were trained to be asked with.

`rank-k distill export` writes a GGUF file and, beside it, a JSON file of the same name. Whoever names the GGUF file,
or the folder it lies in as `student.gguf`, gets both: the prompt a student was trained on is as much a part of it as
its numbers are.

    {"rank_k_student": 1, "name": "nano", "gguf": "student.gguf", "adapter_of": {"name": ..., "sha256": ...},
     "prompt": {"before": ..., "passage": ..., "between": ..., "after": ..., "system": ...},
     "asking": {"method": "combined", "strategy": "blocks", "passage_tokens": 48, "window": 8, "stride": 4,
                "reasoning": "full", "max_tokens": 256, "temperature": 0},
     "verdicts": ["no", "partly", "yes"]}

`adapter_of` is absent where the GGUF file holds whole weights; its name is one of `rank-k fetch`, or a file's path.
`verdicts` is there for students whose reasoning is one of these words a passage, worst first.
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
"""Students that come with the package, by name: adapters for what `rank-k fetch` gets."""


def default_model(method: str | None) -> str:
    """Return the default embedded model: the shipped student; for query likelihood alone, the weights without it."""
    return DEFAULT_WEIGHTS if method == "likelihood" else next(iter(SHIPPED_STUDENTS))


_VERSION = 1
TEMPLATE_FIELDS = ("before", "passage", "between", "after", "system")


@dataclass(frozen=True, slots=True)
class Student:
    """`weights`: what is loaded; `adapter`: a LoRA adapter on top of it, or None. `prompt`: the
    texts of its template, by the names of `window.prompt.PromptTemplate`. `asking`: its own settings, by the
    names that `Reranker` has for them. `verdicts`: its relevance labels, worst first, if it reasons in labels."""

    name: str
    weights: Weights
    adapter: Path | None
    prompt: Mapping[str, str]
    asking: Mapping[str, Any]
    verdicts: tuple[str, ...] = ()


def find_student(name_or_path: str | Path) -> Student | None:
    """The student of that name, in that folder, or of that GGUF file; None if there is none, and weights are meant.

    Raises `FormatError` if its JSON file is not as above, `MissingWeights` if what it adapts was not fetched, and
    `InputError` if that has other numbers than those it was trained on.
    """
    try:
        path = SHIPPED_STUDENTS.get(os.fspath(name_or_path)) or Path(os.fspath(name_or_path)).expanduser()
        settings_path = path / FOLDER_FILE if path.is_dir() else path.with_suffix(".json")
        if path.is_dir() and not settings_path.is_file():
            raise InputError(f"there is no {FOLDER_FILE} in {path}", f"run: rank-k distill export --student {path}")
        if settings_path.suffix == path.suffix or not settings_path.is_file():
            return None
    except (OSError, RuntimeError, ValueError):
        return None  # not a path that can be: whoever looks for weights will say so
    settings = _read_settings(settings_path)
    if settings is None:
        return None
    gguf = settings_path.parent / settings["gguf"]
    if not path.is_dir() and gguf.name != path.name:
        return None  # a file of the same name that speaks of another one
    prompt = {name: settings["prompt"][name] for name in TEMPLATE_FIELDS}
    base = settings.get("adapter_of")
    loaded = locate(gguf if base is None else base["name"])
    if base is not None:
        if loaded.sha256 != base["sha256"]:
            raise InputError(
                f"{gguf} is an adapter of other weights than {loaded.path}",
                f"sha256 {base['sha256'][:16]}... is wanted",
            )
        checksum(gguf)  # raises if it cannot be read, or is no GGUF file
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
    """Write the JSON file that belongs to `gguf`, and return its path."""
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
    """The file's facts, checked; None if it is about something else than a student."""
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
        (has_files, "no name, or no gguf file"),
        (_has_texts(settings.get("prompt"), TEMPLATE_FIELDS), "no whole prompt"),
        (isinstance(settings.get("asking"), dict), "asking is not an object"),
        (base is None or _has_texts(base, ("name", "sha256")), "adapter_of without name and sha256"),
        (
            isinstance(labels, list) and all(isinstance(word, str) for word in labels) and len(labels) != 1,
            "verdicts that are not two words or more",
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
        raise format_error("a strategy that is not Rank-K's own")  # MODULE:NAME would run code of the file's choice
    return settings


def _has_texts(table: Any, keys: Sequence[str]) -> bool:
    """Return whether `table` is a JSON object with a text for each key."""
    return isinstance(table, dict) and all(isinstance(table.get(key), str) for key in keys)
