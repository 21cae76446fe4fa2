"""Export a trained student: a GGUF file with full weights or an adapter, or merged weights for other servers.

Next to a GGUF file, the export writes a settings file (`rank_k.models.student`) and a model card.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rank_k.data.part_file import PartFile
from rank_k.distill.base_model import find_gguf, load_base
from rank_k.distill.gguf_writer import (
    QUANTIZATION_TYPES,
    TrainedWeights,
    pair_lora_tensors,
    write_adapter,
    write_full_model,
)
from rank_k.distill.model_card import render_card
from rank_k.distill.recipes import LabelOptions
from rank_k.distill.run_folder import TRAINED_FOLDER, find_newest_checkpoint, read_run_metadata
from rank_k.errors import InputError
from rank_k.models.student import write_student
from rank_k.models.weights import NAMED
from rank_k.optional_deps import load
from rank_k.options import StudentOptions


def export_gguf(
    student: Path, gguf: Path | None = None, *, quantization: str = "F16", adapter: bool = False, name: str = ""
) -> Path:
    """Write the GGUF file of a student, its settings (.json) and its card (.md), and return the path of the GGUF file.

    If the training run has not finished, its newest checkpoint is exported.

    Args:
        student: The folder of the training run.
        gguf: The file to write (default: `student.gguf` in the folder `student`).
        quantization: How full weights are stored; one of `QUANTIZATION_TYPES`.
        adapter: Write an adapter for the base model instead of full weights.
        name: The name of the student (default: the name of the recipe).

    Raises:
        InputError: If there is no checkpoint yet, if the base model is not a GGUF file, or if it has changed since the
            training.
    """
    if quantization not in QUANTIZATION_TYPES:
        raise InputError(f"unknown quantization type {quantization}", f"give one of {', '.join(QUANTIZATION_TYPES)}")
    metadata = read_run_metadata(student)
    recipe = metadata["recipe"]
    trained_weights = read_trained_weights(find_trained_folder(student))
    base = find_gguf(recipe["base"]["weights"])
    if base is None:
        raise InputError(
            "a GGUF export copies the vocabulary and metadata of the base model, but the base model is not a GGUF file",
            "export with --merged instead; vLLM and llama.cpp's convert_hf_to_gguf.py read the result",
        )
    if metadata["base_sha256"] != base.sha256:
        raise InputError(
            f"{base.path} has changed since {student} was trained on it",
            f"restore the original file, whose sha256 is {str(metadata['base_sha256'])[:16]}...",
        )
    name = name or recipe["name"]
    target = gguf or student / "student.gguf"
    with PartFile(target) as part:
        if adapter:
            write_adapter(base.path, trained_weights, part.path, name)
        else:
            write_full_model(base.path, trained_weights, part.path, quantization, name)
    # An option that the run does not know, because it is newer than the run, gets its default.
    inference_options = asdict(StudentOptions(**recipe["asking"]))
    if not adapter and inference_options["method"] == "combined":
        # Weights that were trained to compare passages no longer estimate query likelihoods.
        inference_options["method"] = "listwise"
    weights_name = base.name if base.name in NAMED else str(base.path.absolute())
    adapter_of = {"name": weights_name, "sha256": base.sha256} if adapter else None
    label_words = recipe["verdicts"]["words"] if LabelOptions(**recipe["verdicts"]).is_enabled else ()
    write_student(target, name, metadata["prompt"], inference_options, adapter_of, label_words)
    card = render_card(student, metadata, name, target.name, quantization, adapter)
    target.with_suffix(".md").write_text(card, encoding="utf-8")
    return target


def export_merged(student: Path, folder: Path) -> None:
    """Write the full weights and the tokenizer to `folder` in the format of transformers, in bfloat16."""
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


def find_trained_folder(student: Path) -> Path:
    """Return the folder with the final weights or, while the run has not finished, its newest checkpoint."""
    if (student / TRAINED_FOLDER).is_dir():
        return student / TRAINED_FOLDER
    checkpoint = find_newest_checkpoint(student)
    if checkpoint is None:
        raise InputError(
            f"{student} has neither trained weights nor a checkpoint", "run the same rank-k distill train command again"
        )
    return checkpoint.path


def read_trained_weights(folder: Path) -> TrainedWeights:
    """Return the weights in `folder` in float32, as training saved them. Raises `InputError` if there are none."""
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*model*.safetensors")):
        tensors |= load("safetensors.numpy").load_file(str(path))
    if not tensors:
        raise InputError(f"there are no weights in {folder}", "run rank-k distill train again")
    config = folder / "adapter_config.json"
    if not config.is_file():
        return TrainedWeights({}, tensors, 0, 0.0)
    adapter = json.loads(config.read_text(encoding="utf-8"))
    return TrainedWeights(pair_lora_tensors(tensors), {}, int(adapter["r"]), float(adapter["lora_alpha"]))
