"""Write trained weights of the llama architecture to a GGUF file: the full model, or an adapter for the base model.

Everything except the weights (vocabulary, chat template, sizes) is copied from the GGUF file of the base model. This
module needs numpy and `gguf`, but not torch.

In query and key projections, transformers stores the first rows of all rotary pairs before the second rows of all
pairs, but llama.cpp stores the two rows of each pair next to each other. `interleave_rotary_rows` reorders them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load

Tensors = Mapping[str, Any]
"""float32 arrays by their names in transformers, without the prefix that PEFT adds."""

QUANTIZATION_TYPES = ("F16", "Q8_0", "Q4_0")
_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """The result of training. The keys of both mappings are the names of the weights in transformers.

    Args:
        lora_pairs: The LoRA matrices (A, B) of each weight W: the trained weight is W + `alpha` / `rank` * B @ A.
        full_weights: Trained weights that replace those of the base model.
        rank: The rank of the adapter; 0 without an adapter.
        alpha: The scaling parameter of the adapter.
    """

    lora_pairs: Mapping[str, tuple[Any, Any]]
    full_weights: Tensors
    rank: int
    alpha: float


def pair_lora_tensors(tensors: Tensors) -> dict[str, tuple[Any, Any]]:
    """Return the (A, B) pairs of an adapter that PEFT saved. Raises `InputError` for tensors other than LoRA's."""
    pairs: dict[str, dict[str, Any]] = {}
    for name, values in tensors.items():
        match = _PEFT_NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f"the adapter contains {name}, which is not a LoRA tensor",
                "train with the method.targets of a shipped recipe",
            )
        pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = values
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def write_full_model(source: Path, trained: TrainedWeights, target: Path, quantization: str, name: str) -> None:
    """Write the base model with the trained weights merged into it.

    Args:
        source: The GGUF file of the base model.
        trained: The trained weights.
        target: The file to write.
        quantization: How weights are stored; one of `QUANTIZATION_TYPES`.
        name: The name of the model, for the file's metadata.

    Raises:
        InputError: If the base model does not have the llama architecture, or lacks weights that were trained.
    """
    gguf, numpy = load("gguf"), load("numpy")
    reader = _open_llama(source)
    lora_pairs, full_weights = _in_gguf_layout(reader, trained)
    writer = gguf.GGUFWriter(str(target), "llama")
    _copy_metadata(reader, writer, name, quantization)
    for tensor in reader.tensors:
        values = full_weights.pop(tensor.name, None)
        if values is None:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in lora_pairs:
            lora_a, lora_b = lora_pairs.pop(tensor.name)
            values = values + trained.alpha / trained.rank * (lora_b @ lora_a)
        tensor_type = _storage_type(tensor.name, values, quantization)
        stored = gguf.quants.quantize(numpy.ascontiguousarray(values, dtype=numpy.float32), tensor_type)
        writer.add_tensor(tensor.name, stored, raw_dtype=tensor_type)
    if lora_pairs or full_weights:
        raise InputError(
            f"{source} has no weights called {', '.join([*lora_pairs, *full_weights])[:200]}",
            "give the base model that the student was trained from",
        )
    _write_file(writer)


def write_adapter(source: Path, trained: TrainedWeights, target: Path, name: str) -> None:
    """Write the LoRA adapter for the base model `source`, in half precision."""
    if trained.full_weights:
        raise InputError("all weights were trained, so there is no adapter to export", "export without --adapter")
    numpy = load("numpy")
    lora_pairs, _ = _in_gguf_layout(_open_llama(source), trained)
    writer = load("gguf").GGUFWriter(str(target), "llama")
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", trained.alpha)
    for tensor_name, pair in lora_pairs.items():
        for suffix, values in zip(("lora_a", "lora_b"), pair, strict=True):
            writer.add_tensor(f"{tensor_name}.{suffix}", numpy.ascontiguousarray(values, dtype=numpy.float16))
    _write_file(writer)


def _in_gguf_layout(reader: Any, trained: TrainedWeights) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Return the LoRA pairs and the full weights with the names and the row order of GGUF."""
    gguf = load("gguf")
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, reader.get_field("llama.block_count").contents())
    query_heads = int(reader.get_field("llama.attention.head_count").contents())
    key_heads_field = reader.get_field("llama.attention.head_count_kv")
    heads = query_heads, int(key_heads_field.contents()) if key_heads_field else query_heads

    def gguf_name(name: str) -> str:
        tensor_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor_name is None:
            raise InputError(
                f"llama.cpp has no weights called {name}", "train with the method.targets of a shipped recipe"
            )
        return str(tensor_name)

    lora_pairs = {gguf_name(name): pair for name, pair in trained.lora_pairs.items()}
    full_weights = {gguf_name(name): values for name, values in trained.full_weights.items()}
    return (
        {name: (lora_a, interleave_rotary_rows(lora_b, name, heads)) for name, (lora_a, lora_b) in lora_pairs.items()},
        {name: interleave_rotary_rows(values, name, heads) for name, values in full_weights.items()},
    )


def interleave_rotary_rows(values: Any, name: str, heads: tuple[int, int]) -> Any:
    """Return the rows of a query or key projection in the order of llama.cpp, and other weights unchanged.

    In a head with n rows, the i-th rotary pair consists of rows (i, i + n / 2) in transformers, and of rows
    (2i, 2i + 1) in llama.cpp. `heads`: the number of query heads and the number of key heads.
    """
    count = heads[0] if ".attn_q." in name else heads[1] if ".attn_k." in name else 0
    if not count:
        return values
    return values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _open_llama(source: Path) -> Any:
    reader = load("gguf").GGUFReader(str(source))
    architecture = reader.get_field("general.architecture").contents()
    if architecture != "llama":
        raise InputError(
            f"{source} has the architecture {architecture}, but only llama can be exported to GGUF",
            "export with --merged, and convert the result with llama.cpp's convert_hf_to_gguf.py",
        )
    return reader


def _storage_type(name: str, values: Any, quantization: str) -> Any:
    """Return the type in which a tensor is stored: F32 for vectors, and at least 8 bits for embeddings.

    Embeddings get more bits because many models also use them as the output projection.
    """
    types = load("gguf").GGMLQuantizationType
    if values.ndim == 1:
        return types.F32
    if values.shape[-1] % 32:
        return types.F16
    return types.Q8_0 if quantization == "Q4_0" and name.startswith(("token_embd", "output")) else types[quantization]


def _copy_metadata(reader: Any, writer: Any, name: str, quantization: str) -> None:
    gguf = load("gguf")
    replaced = {"general.architecture", "general.name", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name not in replaced and not field.name.startswith("GGUF."):
            item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], item_type)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{quantization}"))
    if quantization != "F16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_file(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
