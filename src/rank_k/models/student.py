"""Students: weights of our own making, with the settings they were trained to be asked with.

`rank-k distill export` writes a GGUF file and, beside it, a JSON file of the same name. Whoever names the GGUF file,
or the folder it lies in as `student.gguf`, gets both: the prompt a student was trained on is as much a part of it as
its numbers are.

    {"rank_k_student": 1, "name": "nano", "gguf": "student.gguf", "adapter_of": {"name": ..., "sha256": ...},
     "prompt": {"before": ..., "passage": ..., "between": ..., "after": ..., "system": ...},
     "asking": {"by": "both", "strategy": "blocks", "passage_tokens": 48, "window": 8, "stride": 4, "think": "full",
                "max_tokens": 256, "temperature": 0},
     "verdicts": ["no", "partly", "yes"]}

`adapter_of` is absent where the GGUF file holds whole weights; its name is one of `rank-k fetch`, or a file's path.
`verdicts` is there for students that think in one of these words a passage, worst first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rank_k.errors import FormatError, InputError
from rank_k.models.weights import DEFAULT_WEIGHTS, Weights, checksum, locate
from rank_k.strategies import STRATEGIES
from rank_k.types import ScoringMethod
from rank_k.window.prompt import PromptTemplate

FOLDER_FILE = "student.json"
SHIPPED_STUDENTS: Mapping[str, Path] = {"rank-k-nano": Path(__file__).parent / "nano" / "rank-k-nano.gguf"}
"""Students that come with the package, by name: adapters for what `rank-k fetch` gets."""


def default_model(method: str | None) -> str:
    """Who ranks, embedded, for those who name nobody: the student that comes with the package; by likelihood alone, the
    weights as they are."""
    return DEFAULT_WEIGHTS if method == "likelihood" else next(iter(SHIPPED_STUDENTS))


_VERSION = 1
TEMPLATE_FIELDS = ("before", "passage", "between", "after", "system")
_INFERENCE_OPTIONS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "strategy": str,
    "passage_tokens": int,
    "window": int,
    "stride": int,
    "reasoning": str,
    "max_tokens": int,
    "temperature": (int, float),
}


@dataclass(frozen=True, slots=True)
class Student:
    """`weights`: what is loaded; `adapter`: a LoRA adapter on top of it, or None. `asking`: its own settings, by the
    names that `Reranker` has for them. `verdicts`: the words it thinks in, worst first, if it does."""

    name: str
    weights: Weights
    adapter: Path | None
    template: PromptTemplate
    asking: Mapping[str, Any]
    verdicts: tuple[str, ...] = ()


def find_student(name_or_path: str | Path) -> Student | None:
    """The student of that name, in that folder, or of that GGUF file; None if there is none, and weights are meant.

    Raises `FormatError` if its JSON file is not as above, `MissingWeights` if what it adapts was not fetched, and
    `InputError` if that has other numbers than those it was trained on.
    """
    try:
        path = SHIPPED_STUDENTS.get(os.fspath(name_or_path)) or Path(os.fspath(name_or_path)).expanduser()
        told = path / FOLDER_FILE if path.is_dir() else path.with_suffix(".json")
        if path.is_dir() and not told.is_file():
            raise InputError(f"there is no {FOLDER_FILE} in {path}", f"run: rank-k distill export --student {path}")
        if told.suffix == path.suffix or not told.is_file():
            return None
    except (OSError, RuntimeError, ValueError):
        return None  # not a path that can be: whoever looks for weights will say so
    facts = _read(told)
    if facts is None:
        return None
    gguf = told.parent / facts["gguf"]
    if not path.is_dir() and gguf.name != path.name:
        return None  # a file of the same name that speaks of another one
    template = PromptTemplate(
        **{name: facts["prompt"][name] for name in TEMPLATE_FIELDS},
        name=facts["name"],
        sha256=_sha256(facts["prompt"]),
    )
    base, verdicts = facts.get("adapter_of"), tuple(facts.get("verdicts", ()))
    if base is None:
        weights = locate(gguf)
        weights = Weights(facts["name"], weights.path, weights.sha256, weights.context_length)
        return Student(facts["name"], weights, None, template, facts["asking"], verdicts)
    found = locate(base["name"])
    if found.sha256 != base["sha256"]:
        raise InputError(
            f"{gguf} is an adapter of other weights than {found.path}", f"sha256 {base['sha256'][:16]}... is wanted"
        )
    checksum(gguf)  # raises if it cannot be read, or is no GGUF file
    weights = Weights(facts["name"], found.path, found.sha256, found.context_length)
    return Student(facts["name"], weights, gguf, template, facts["asking"], verdicts)


def write_student(
    gguf: Path,
    name: str,
    template: PromptTemplate,
    asking: Mapping[str, Any],
    adapter_of: Mapping[str, str] | None,
    verdicts: Sequence[str] = (),
) -> Path:
    """Write the JSON file that belongs to `gguf`, and return its path."""
    prompt = {key: value for key, value in asdict(template).items() if key in TEMPLATE_FIELDS}
    facts: dict[str, Any] = {"rank_k_student": _VERSION, "name": name, "gguf": gguf.name}
    facts |= {"adapter_of": dict(adapter_of)} if adapter_of else {}
    facts |= {"prompt": prompt, "asking": {key: asking[key] for key in _INFERENCE_OPTIONS}}
    facts |= {"verdicts": list(verdicts)} if verdicts else {}
    path = gguf.with_suffix(".json")
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> dict[str, Any] | None:
    """The file's facts, checked; None if it is about something else than a student."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or "rank_k_student" not in facts:
        return None

    def wrong(what: str) -> FormatError:
        return FormatError(path, 0, what, "a student's settings as rank-k distill export writes them")

    if facts["rank_k_student"] != _VERSION:
        raise wrong(f"version {facts['rank_k_student']!r}")
    prompt, asking, base = facts.get("prompt"), facts.get("asking"), facts.get("adapter_of")
    if not all(isinstance(facts.get(key), str) for key in ("name", "gguf")) or "/" in facts["gguf"]:
        raise wrong("no name, or no gguf file")
    if not isinstance(prompt, dict) or not all(isinstance(prompt.get(key), str) for key in TEMPLATE_FIELDS):
        raise wrong("no whole prompt")
    if not isinstance(asking, dict) or asking.keys() != _INFERENCE_OPTIONS.keys():
        raise wrong(f"asking without all of {', '.join(_INFERENCE_OPTIONS)}")
    if any(
        isinstance(asking[key], bool) or not isinstance(asking[key], kind) for key, kind in _INFERENCE_OPTIONS.items()
    ):
        raise wrong("a setting of the wrong kind")
    if asking["strategy"] not in STRATEGIES:  # never MODULE:NAME: a student from elsewhere must not run code here
        raise wrong(f"strategy {asking['strategy'][:40]!r}")
    if asking["method"] not in get_args(ScoringMethod):
        raise wrong(f"by {asking['method'][:40]!r}")
    if base is not None and not (
        isinstance(base, dict) and all(isinstance(base.get(key), str) for key in ("name", "sha256"))
    ):
        raise wrong("adapter_of without name and sha256")
    verdicts = facts.get("verdicts", [])
    if not isinstance(verdicts, list) or not all(isinstance(word, str) for word in verdicts) or len(verdicts) == 1:
        raise wrong("verdicts that are not two words or more")
    return facts


def _sha256(prompt: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([prompt[name] for name in TEMPLATE_FIELDS]).encode()).hexdigest()
