"""Trained weights of the llama architecture -> GGUF: whole, or as an adapter on the weights they came from.

Everything but the numbers (vocabulary, chat template, sizes) is copied from the GGUF file that the student started
from, so that nothing but what was trained can differ. No torch is needed: numpy and `gguf` do.

transformers keeps the two halves of each rotary pair apart, llama.cpp keeps the pairs together: rows of the query and
key projections are put in the other order on the way (`interleave_rotary_rows`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load

Tensors = Mapping[str, Any]
"""Names as transformers has them, without what peft puts before -> numpy arrays in single precision."""

QUANTIZATION_TYPES = ("F16", "Q8_0", "Q4_0")
_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """What training left. `lora_pairs`: (A, B) by the name of the weight that they change, by `scale` * B @ A;
    `full_weights`: weights that took the place of others."""

    lora_pairs: Mapping[str, tuple[Any, Any]]
    full_weights: Tensors
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0


def pair_lora_tensors(tensors: Tensors) -> dict[str, tuple[Any, Any]]:
    """The pairs in an adapter as peft saves it. Raises `InputError` for parts that are not of LoRA."""
    pairs: dict[str, dict[str, Any]] = {}
    for name, values in tensors.items():
        match = _PEFT_NAME.fullmatch(name)
        if match is None:
            raise InputError(f"the adapter holds {name}, which is not of LoRA", "train with the targets of a recipe")
        pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = values
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def write_full_model(source: Path, trained: TrainedWeights, target: Path, quantization: str, name: str) -> None:
    """Write `source`'s weights with what was trained put in, as `quantization` (one of `QUANTIZATION_TYPES`)."""
    gguf, numpy = load("gguf"), load("numpy")
    reader = _open_llama(source)
    gguf_name, heads = _tensor_names(reader), _head_counts(reader)
    lora_pairs = {gguf_name(weight_name): pair for weight_name, pair in trained.lora_pairs.items()}
    full_weights = {gguf_name(weight_name): values for weight_name, values in trained.full_weights.items()}
    writer = gguf.GGUFWriter(str(target), "llama")
    _copy_metadata(reader, writer, name, quantization)
    for tensor in reader.tensors:
        if tensor.name in full_weights:
            values = interleave_rotary_rows(full_weights.pop(tensor.name), tensor.name, heads)
        else:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in lora_pairs:
            lora_a, lora_b = lora_pairs.pop(tensor.name)
            values = values + trained.scale * (interleave_rotary_rows(lora_b, tensor.name, heads) @ lora_a)
        tensor_type = _storage_type(tensor.name, values, quantization)
        stored = gguf.quants.quantize(numpy.ascontiguousarray(values, dtype=numpy.float32), tensor_type)
        writer.add_tensor(tensor.name, stored, raw_dtype=tensor_type)
    if lora_pairs or full_weights:
        raise InputError(
            f"{source} has no weights called {', '.join([*lora_pairs, *full_weights])[:200]}",
            "name the weights trained",
        )
    _write_file(writer)


def write_adapter(source: Path, trained: TrainedWeights, target: Path, name: str) -> None:
    """Write what was trained as a LoRA adapter for `source`, in half precision."""
    gguf, numpy = load("gguf"), load("numpy")
    if trained.full_weights:
        raise InputError("all weights were trained: there is no adapter", "leave --adapter out")
    reader = _open_llama(source)
    gguf_name, heads = _tensor_names(reader), _head_counts(reader)
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", trained.alpha)
    for weight_name, (lora_a, lora_b) in trained.lora_pairs.items():
        tensor_name = gguf_name(weight_name)
        writer.add_tensor(f"{tensor_name}.lora_a", numpy.ascontiguousarray(lora_a, dtype=numpy.float16))
        writer.add_tensor(
            f"{tensor_name}.lora_b",
            numpy.ascontiguousarray(interleave_rotary_rows(lora_b, tensor_name, heads), dtype=numpy.float16),
        )
    _write_file(writer)


def interleave_rotary_rows(values: Any, name: str, heads: tuple[int, int]) -> Any:
    """Rows of a query or key projection in llama.cpp's order; anything else as it is.

    `heads`: of queries, and of keys. A head of n rows holds the pairs as rows (i, i + n / 2) in transformers, and as
    rows (2i, 2i + 1) in llama.cpp.
    """
    count = heads[0] if ".attn_q." in name else heads[1] if ".attn_k." in name else 0
    if not count:
        return values
    return (
        values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def _open_llama(source: Path) -> Any:
    reader = load("gguf").GGUFReader(str(source))
    architecture = reader.get_field("general.architecture").contents()
    if architecture != "llama":
        raise InputError(
            f"{source} is of the architecture {architecture}, and only llama is exported to GGUF here",
            "export --merged, and convert that with llama.cpp's convert_hf_to_gguf.py",
        )
    return reader


def _head_counts(reader: Any) -> tuple[int, int]:
    query_heads = reader.get_field("llama.attention.head_count").contents()
    key_heads = reader.get_field("llama.attention.head_count_kv")
    return int(query_heads), int(key_heads.contents() if key_heads else query_heads)


def _tensor_names(reader: Any) -> Any:
    """transformers' name of a weight -> its name in GGUF."""
    gguf = load("gguf")
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, reader.get_field("llama.block_count").contents())

    def name_of(name: str) -> str:
        gguf_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise InputError(f"llama.cpp knows no weights called {name}", "train with the targets of a recipe")
        return str(gguf_name)

    return name_of


def _storage_type(name: str, values: Any, quantization: str) -> Any:
    """How a tensor is stored: vectors in full; the embeddings, which are the output's too, never below 8 bits."""
    types = load("gguf").GGMLQuantizationType
    if values.ndim == 1 or values.shape[-1] % 32:
        return types.F32 if values.ndim == 1 else types.F16
    return types.Q8_0 if quantization == "Q4_0" and name.startswith(("token_embd", "output")) else types[quantization]


def _copy_metadata(reader: Any, writer: Any, name: str, quantization: str) -> None:
    gguf = load("gguf")
    excluded_names = {"general.architecture", "general.name", "general.file_type", "general.quantization_version"}
    for field in _metadata_fields(reader):
        if field.name not in excluded_names:
            item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], item_type)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{quantization}"))
    if quantization != "F16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _metadata_fields(reader: Any) -> Iterator[Any]:
    return (field for name, field in reader.fields.items() if not name.startswith("GGUF."))


def _write_file(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
