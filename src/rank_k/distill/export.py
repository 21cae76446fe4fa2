"""A trained student -> what can be loaded: GGUF (whole, or an adapter), or merged weights for other servers.

Beside a GGUF file go its settings (`rank_k.models.student`) and a card that says what it was made of.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rank_k.data.part_file import PartFile
from rank_k.distill.base_model import find_gguf, load_base
from rank_k.distill.checkpoints import find_newest
from rank_k.distill.gguf_writer import (
    QUANTIZATION_TYPES,
    TrainedWeights,
    pair_lora_tensors,
    write_adapter,
    write_full_model,
)
from rank_k.distill.model_card import render_card
from rank_k.distill.recipes import LabelOptions
from rank_k.distill.train import TRAINED_FOLDER
from rank_k.errors import InputError
from rank_k.models.student import write_student
from rank_k.models.weights import NAMED, Weights
from rank_k.optional_deps import load
from rank_k.options import StudentOptions
from rank_k.window.prompt import PromptTemplate, read_template


@dataclass(frozen=True, slots=True)
class ExportedStudent:
    """`size`: bytes of the GGUF file."""

    gguf: Path
    settings: Path
    card: Path
    size: int


def export_gguf(
    student: Path, gguf: Path | None = None, *, quantization: str = "F16", adapter: bool = False, name: str = ""
) -> ExportedStudent:
    """Write the GGUF file (default: `student.gguf` in the folder `student`), its settings and its card.

    `adapter`: write what was trained alone, as an adapter for the base weights; else write the full weights, stored as
    `quantization`. `name`: the student's name (default: the recipe's). A run that has not ended is exported as of its
    newest checkpoint. Raises `InputError` if there is none, or if the base weights are not a GGUF file.
    """
    if quantization not in QUANTIZATION_TYPES:
        raise InputError(f"there is no type {quantization}", f"give one of {', '.join(QUANTIZATION_TYPES)}")
    metadata = read_run_metadata(student)
    recipe = metadata["recipe"]
    trained_weights = read_trained_weights(find_trained_folder(student))
    base = _require_gguf(recipe["base"]["weights"])
    if metadata.get("base_sha256", base.sha256) != base.sha256:
        raise InputError(f"{base.path} is not what {student} was trained on", "put those weights there again")
    name = name or recipe["name"]
    target = gguf or student / "student.gguf"
    with PartFile(target) as part:
        if adapter:
            write_adapter(base.path, trained_weights, part.path, name)
        else:
            write_full_model(base.path, trained_weights, part.path, quantization, name)
    inference_options = asdict(StudentOptions(**recipe["asking"]))  # an older run has the defaults of newer options
    if not adapter and inference_options["method"] == "combined":
        inference_options["method"] = "listwise"  # without its adapter nothing is left that knows what is likely
    prompt = inference_options.pop("prompt")
    template = PromptTemplate(**metadata["prompt"]) if "prompt" in metadata else read_template(prompt)
    weights_name = base.name if base.name in NAMED else str(base.path.absolute())
    adapter_of = {"name": weights_name, "sha256": base.sha256} if adapter else None
    label_words = recipe["verdicts"]["words"] if LabelOptions(**recipe["verdicts"]).is_enabled else ()
    settings = write_student(target, name, asdict(template), inference_options, adapter_of, label_words)
    card_path = target.with_suffix(".md")
    card_path.write_text(render_card(student, metadata, name, target.name, quantization, adapter), encoding="utf-8")
    return ExportedStudent(target, settings, card_path, target.stat().st_size)


def export_merged(student: Path, folder: Path) -> None:
    """Write the whole weights and the tokenizer to `folder` in transformers' own format, in brain floats."""
    recipe = read_run_metadata(student)["recipe"]
    folder_with_weights = find_trained_folder(student)
    transformers, torch = load("transformers"), load("torch")
    if (folder_with_weights / "adapter_config.json").is_file():
        base = load_base(recipe["base"]["weights"], bf16=False)
        model = load("peft").PeftModel.from_pretrained(base.model, str(folder_with_weights)).merge_and_unload()
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder_with_weights))
    model.to(torch.bfloat16).save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(str(folder_with_weights)).save_pretrained(str(folder))


def read_run_metadata(student: Path) -> dict[str, Any]:
    """`run.json` of a run."""
    remedy = "give the --output of rank-k distill train"
    try:
        metadata = json.loads((student / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{student} holds no run: {error}", remedy) from error
    if not isinstance(metadata, dict) or not {"recipe", "rows", "too_long", "data_sha256"} <= metadata.keys():
        raise InputError(f"{student} holds no run: its run.json says nothing of one", remedy)
    return metadata


def find_trained_folder(student: Path) -> Path:
    """What a run left at its end or, while it has not ended, its newest whole checkpoint."""
    if (student / TRAINED_FOLDER).is_dir():
        return student / TRAINED_FOLDER
    checkpoint = find_newest(student)
    if checkpoint is None:
        raise InputError(f"the training in {student} has left nothing yet", "run the same rank-k distill train again")
    return checkpoint.path


def read_trained_weights(folder: Path) -> TrainedWeights:
    """What `rank-k distill train` left in `trained/`."""
    config = folder / "adapter_config.json"
    if config.is_file():
        adapter_config = json.loads(config.read_text(encoding="utf-8"))
        lora_pairs = pair_lora_tensors(_load_safetensors(folder, "adapter_model*.safetensors"))
        return TrainedWeights(lora_pairs, {}, int(adapter_config["r"]), float(adapter_config["lora_alpha"]))
    return TrainedWeights({}, _load_safetensors(folder, "model*.safetensors"), 0, 0.0)


def _load_safetensors(folder: Path, pattern: str) -> dict[str, Any]:
    """All tensors, in single precision as training leaves them. Raises `InputError` if there are none."""
    safetensors = load("safetensors.numpy")
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob(pattern)):
        tensors |= safetensors.load_file(str(path))
    if not tensors:
        raise InputError(f"there are no weights in {folder}", "run rank-k distill train again")
    return tensors


def _require_gguf(weights: str) -> Weights:
    gguf = find_gguf(weights)
    if gguf is None:
        raise InputError(
            f"{weights} did not come as a GGUF file, which the export copies all but the numbers from",
            "export --merged, which servers such as vLLM load, or llama.cpp's convert_hf_to_gguf.py converts",
        )
    return gguf
