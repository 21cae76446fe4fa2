"""A trained student -> what can be loaded: GGUF (whole, or an adapter), or merged weights for other servers.

Beside a GGUF file go its settings (`rank_k.models.student`) and a card that says what it was made of.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rank_k.data.part_file import PartFile
from rank_k.distill.base_model import gguf_of, load_base
from rank_k.distill.checkpoints import newest
from rank_k.distill.gguf_writer import TYPES, Trained, low_rank_of, write_adapter, write_whole
from rank_k.distill.model_card import card
from rank_k.distill.recipes import InferenceOptions, LabelOptions
from rank_k.distill.train import TRAINED
from rank_k.errors import InputError
from rank_k.models.student import write_student
from rank_k.models.weights import NAMED, Weights
from rank_k.optional_deps import load
from rank_k.window.prompt import PromptTemplate, read_template


@dataclass(frozen=True, slots=True)
class Exported:
    """`size`: bytes of the GGUF file."""

    gguf: Path
    settings: Path
    card: Path
    size: int


def export_gguf(
    student: Path, gguf: Path | None = None, *, kind: str = "F16", adapter: bool = False, name: str = ""
) -> Exported:
    """Write the GGUF file (default: `student.gguf` in the folder `student`), its settings and its card.

    `adapter`: what was trained alone, to be put on the weights it was trained on; else `kind` says how the whole is
    stored. `name`: what the student is called, by default as its recipe. A run that has not ended is exported as of its
    newest checkpoint. Raises `InputError` if there is none, or what was trained on is no GGUF file.
    """
    if kind not in TYPES:
        raise InputError(f"there is no type {kind}", f"give one of {', '.join(TYPES)}")
    facts = run_facts(student)
    recipe = facts["recipe"]
    trained = read_trained(trained_folder(student))
    base = _gguf_base(recipe["base"]["weights"])
    if facts.get("base_sha256", base.sha256) != base.sha256:
        raise InputError(f"{base.path} is not what {student} was trained on", "put those weights there again")
    name = name or recipe["name"]
    target = gguf or student / "student.gguf"
    with PartFile(target) as part:
        if adapter:
            write_adapter(base.path, trained, part.path, name)
        else:
            write_whole(base.path, trained, part.path, kind, name)
    asking = asdict(InferenceOptions(**recipe["asking"]))  # a run that is older than a setting has its default
    if not adapter and asking["method"] == "combined":
        asking["method"] = "listwise"  # without its adapter nothing is left that knows what is likely
    prompt = asking.pop("prompt")
    template = PromptTemplate(**facts["prompt"]) if "prompt" in facts else read_template(prompt)
    found_by = base.name if base.name in NAMED else str(base.path.absolute())
    adapter_of = {"name": found_by, "sha256": base.sha256} if adapter else None
    verdicts = recipe["verdicts"]["words"] if LabelOptions(**recipe["verdicts"]).on else ()
    settings = write_student(target, name, template, asking, adapter_of, verdicts)
    page = target.with_suffix(".md")
    page.write_text(card(student, facts, name, target.name, kind, adapter), encoding="utf-8")
    return Exported(target, settings, page, target.stat().st_size)


def export_merged(student: Path, folder: Path) -> None:
    """Write the whole weights and the tokenizer to `folder` in transformers' own format, in brain floats."""
    recipe = run_facts(student)["recipe"]
    trained = trained_folder(student)
    transformers, torch = load("transformers"), load("torch")
    if (trained / "adapter_config.json").is_file():
        base = load_base(recipe["base"]["weights"], bf16=False)
        model = load("peft").PeftModel.from_pretrained(base.model, str(trained)).merge_and_unload()
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(trained))
    model.to(torch.bfloat16).save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(str(trained)).save_pretrained(str(folder))


def run_facts(student: Path) -> dict[str, Any]:
    """`run.json` of a run."""
    remedy = "give the --output of rank-k distill train"
    try:
        facts = json.loads((student / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{student} holds no run: {error}", remedy) from error
    if not isinstance(facts, dict) or not {"recipe", "rows", "too_long", "data_sha256"} <= facts.keys():
        raise InputError(f"{student} holds no run: its run.json says nothing of one", remedy)
    return facts


def trained_folder(student: Path) -> Path:
    """What a run left at its end or, while it has not ended, its newest whole checkpoint."""
    if (student / TRAINED).is_dir():
        return student / TRAINED
    start = newest(student)
    if start is None:
        raise InputError(f"the training in {student} has left nothing yet", "run the same rank-k distill train again")
    return start.path


def read_trained(folder: Path) -> Trained:
    """What `rank-k distill train` left in `trained/`."""
    config = folder / "adapter_config.json"
    if config.is_file():
        told = json.loads(config.read_text(encoding="utf-8"))
        pairs = low_rank_of(_safetensors(folder, "adapter_model*.safetensors"))
        return Trained(pairs, {}, int(told["r"]), float(told["lora_alpha"]))
    return Trained({}, _safetensors(folder, "model*.safetensors"), 0, 0.0)


def _safetensors(folder: Path, pattern: str) -> dict[str, Any]:
    """All tensors, in single precision as training leaves them. Raises `InputError` if there are none."""
    files = load("safetensors.numpy")
    found: dict[str, Any] = {}
    for path in sorted(folder.glob(pattern)):
        found |= files.load_file(str(path))
    if not found:
        raise InputError(f"there are no weights in {folder}", "run rank-k distill train again")
    return found


def _gguf_base(weights: str) -> Weights:
    found = gguf_of(weights)
    if found is None:
        raise InputError(
            f"{weights} did not come as a GGUF file, which the export copies all but the numbers from",
            "export --merged, which servers such as vLLM load, or llama.cpp's convert_hf_to_gguf.py converts",
        )
    return found
