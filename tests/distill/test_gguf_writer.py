"""GGUF files of what was trained: the numbers by hand, then as llama.cpp reads them. No torch is needed for these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rank_k.distill.gguf_writer import (
    TrainedWeights,
    interleave_rotary_rows,
    pair_lora_tensors,
    write_adapter,
    write_full_model,
)
from rank_k.errors import InputError
from tests.support.tiny_model import (
    HEADS,
    HIDDEN,
    INNER,
    KEYS,
    LAYERS,
    agree_within,
    llama_cpp_log_probabilities,
    write_tiny_gguf,
)

pytestmark = pytest.mark.training

gguf = pytest.importorskip("gguf", reason="pip install 'rank-k[train]'")
np = pytest.importorskip("numpy")

RANK = 4
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KEYS // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KEYS // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def adapter_tensors() -> dict[str, Any]:
    """An adapter as peft saves it, with random numbers on both sides."""
    random = np.random.default_rng(1)
    adapter_weights = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            adapter_weights[f"{place}.lora_A.weight"] = random.normal(0, 0.2, (RANK, columns)).astype(np.float32)
            adapter_weights[f"{place}.lora_B.weight"] = random.normal(0, 0.2, (rows, RANK)).astype(np.float32)
    return adapter_weights


def trained_adapter() -> TrainedWeights:
    return TrainedWeights(pair_lora_tensors(adapter_tensors()), {}, RANK, 2.0 * RANK)


def read_tensors(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(str(path))
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def test_interleave_rotary_rows_pairs_halves() -> None:
    """Two heads of four rows: halves (0, 1) and (2, 3) become pairs 0 2, 1 3."""
    values = np.arange(8)[:, None]
    assert interleave_rotary_rows(values, "blk.0.attn_q.weight", (2, 1))[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave_rotary_rows(values, "blk.0.attn_k.weight", (2, 1))[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert interleave_rotary_rows(values, "blk.0.attn_v.weight", (2, 1)) is values
    split_rows = values.reshape(2, 2, 2, 1).swapaxes(2, 1).reshape(8, 1)  # as transformers undoes it when it reads GGUF
    assert (interleave_rotary_rows(split_rows, "blk.0.attn_q.weight", (2, 1)) == values).all()


def test_write_full_model_copies_untrained_weights(tiny_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "same.gguf"
    write_full_model(tiny_gguf, TrainedWeights({}, {}, 0, 0.0), target, "F16", "same")
    before, after = read_tensors(tiny_gguf), read_tensors(target)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    source_reader, target_reader = gguf.GGUFReader(str(tiny_gguf)), gguf.GGUFReader(str(target))
    excluded_fields = {"general.name", "general.file_type", "general.quantization_version"}
    names = {name for name in source_reader.fields if not name.startswith("GGUF.")} - excluded_fields
    assert all(source_reader.get_field(name).contents() == target_reader.get_field(name).contents() for name in names)


def test_write_full_model_adds_the_adapter(tiny_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "whole.gguf"
    write_full_model(tiny_gguf, trained_adapter(), target, "F16", "whole")
    before, after, lora = read_tensors(tiny_gguf), read_tensors(target), adapter_tensors()
    place = "base_model.model.model.layers.1.mlp.down_proj"
    expected = 2.0 * lora[f"{place}.lora_B.weight"] @ lora[f"{place}.lora_A.weight"]
    added = after["blk.1.ffn_down.weight"] - before["blk.1.ffn_down.weight"]
    assert np.allclose(added, expected, atol=2e-3)
    assert (after["token_embd.weight"] == before["token_embd.weight"]).all()


@pytest.mark.parametrize(("quantization", "tolerance"), [("Q8_0", 0.01), ("Q4_0", 0.2)])
def test_write_full_model_quantizes_within_tolerance(
    tiny_gguf: Path, tmp_path: Path, quantization: str, tolerance: float
) -> None:
    full_gguf, quantized_gguf = tmp_path / "full.gguf", tmp_path / "small.gguf"
    write_full_model(tiny_gguf, trained_adapter(), full_gguf, "F16", "x")
    write_full_model(tiny_gguf, trained_adapter(), quantized_gguf, quantization, "x")
    assert quantized_gguf.stat().st_size < full_gguf.stat().st_size
    stored = read_tensors(quantized_gguf)
    for name, values in read_tensors(full_gguf).items():
        assert np.abs(stored[name] - values).max() < tolerance * max(np.abs(values).max(), 1e-6), name


def test_write_full_model_replaces_fully_trained_weights(tiny_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "whole.gguf"
    weights = {"model.layers.0.mlp.up_proj.weight": np.full((INNER, HIDDEN), 0.25, dtype=np.float32)}
    write_full_model(tiny_gguf, TrainedWeights({}, weights, 0, 0.0), target, "F16", "x")
    assert (read_tensors(target)["blk.0.ffn_up.weight"] == 0.25).all()


def test_gguf_writer_rejects_unknown_weights(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a LoRA tensor"):
        pair_lora_tensors({"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude": np.zeros(1)})
    unknown_module = TrainedWeights(
        {"model.layers.0.mlp.z_proj.weight": (np.zeros((1, 1)), np.zeros((1, 1)))}, {}, 1, 1.0
    )
    with pytest.raises(InputError, match=r"no weights called model\.layers\.0\.mlp\.z_proj"):
        write_adapter(tiny_gguf, unknown_module, tmp_path / "x.gguf", "x")
    unknown_layer = TrainedWeights({}, {"model.layers.9.mlp.up_proj.weight": np.zeros((INNER, HIDDEN))}, 0, 0.0)
    with pytest.raises(InputError, match="no weights called"):
        write_full_model(tiny_gguf, unknown_layer, tmp_path / "x.gguf", "F16", "x")


def test_write_adapter_matches_full_model_in_llama_cpp(tiny_gguf: Path, tmp_path: Path) -> None:
    full_gguf, adapter_gguf = tmp_path / "whole.gguf", tmp_path / "alone.gguf"
    write_full_model(tiny_gguf, trained_adapter(), full_gguf, "F16", "whole")
    write_adapter(tiny_gguf, trained_adapter(), adapter_gguf, "alone")
    full_tokens, adapter_tokens, base_tokens = (
        llama_cpp_log_probabilities(full_gguf),
        llama_cpp_log_probabilities(tiny_gguf, adapter_gguf),
        llama_cpp_log_probabilities(tiny_gguf),
    )
    assert agree_within(full_tokens, adapter_tokens, 0.03)
    assert not agree_within(full_tokens, base_tokens, 0.03), "the adapter changed nothing that shows"
