"""GGUF files of what was trained: the numbers by hand, then as llama.cpp reads them. No torch is needed for these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rank_k.distill.gguf_writer import Trained, low_rank_of, paired, write_adapter, write_whole
from rank_k.errors import InputError
from tests.support.tiny_model import HEADS, HIDDEN, INNER, KEYS, LAYERS, near, served_tokens, write_tiny_gguf

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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def adapter_tensors() -> dict[str, Any]:
    """An adapter as peft saves it, with random numbers on both sides."""
    random = np.random.default_rng(1)
    found = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{place}.lora_A.weight"] = random.normal(0, 0.2, (RANK, columns)).astype(np.float32)
            found[f"{place}.lora_B.weight"] = random.normal(0, 0.2, (rows, RANK)).astype(np.float32)
    return found


def adapter() -> Trained:
    return Trained(low_rank_of(adapter_tensors()), {}, RANK, 2.0 * RANK)


def tensors(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(str(path))
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}


def test_pairs_by_hand() -> None:
    """Two heads of four rows: halves (0, 1) and (2, 3) become pairs 0 2, 1 3."""
    values = np.arange(8)[:, None]
    assert paired(values, "blk.0.attn_q.weight", (2, 1))[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert paired(values, "blk.0.attn_k.weight", (2, 1))[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert paired(values, "blk.0.attn_v.weight", (2, 1)) is values
    again = values.reshape(2, 2, 2, 1).swapaxes(2, 1).reshape(8, 1)  # as transformers undoes it when it reads GGUF
    assert (paired(again, "blk.0.attn_q.weight", (2, 1)) == values).all()


def test_nothing_trained_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "same.gguf"
    write_whole(tiny, Trained({}, {}, 0, 0.0), target, "F16", "same")
    before, after = tensors(tiny), tensors(target)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    one, other = gguf.GGUFReader(str(tiny)), gguf.GGUFReader(str(target))
    own = {"general.name", "general.file_type", "general.quantization_version"}
    names = {name for name in one.fields if not name.startswith("GGUF.")} - own
    assert all(one.get_field(name).contents() == other.get_field(name).contents() for name in names)


def test_an_adapter_is_added_to_the_weights(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "whole.gguf"
    write_whole(tiny, adapter(), target, "F16", "whole")
    before, after, learnt = tensors(tiny), tensors(target), adapter_tensors()
    place = "base_model.model.model.layers.1.mlp.down_proj"
    change = 2.0 * learnt[f"{place}.lora_B.weight"] @ learnt[f"{place}.lora_A.weight"]
    found = after["blk.1.ffn_down.weight"] - before["blk.1.ffn_down.weight"]
    assert np.allclose(found, change, atol=2e-3)
    assert (after["token_embd.weight"] == before["token_embd.weight"]).all()


@pytest.mark.parametrize(("kind", "within"), [("Q8_0", 0.01), ("Q4_0", 0.2)])
def test_stored_in_fewer_bits(tiny: Path, tmp_path: Path, kind: str, within: float) -> None:
    full, small = tmp_path / "full.gguf", tmp_path / "small.gguf"
    write_whole(tiny, adapter(), full, "F16", "x")
    write_whole(tiny, adapter(), small, kind, "x")
    assert small.stat().st_size < full.stat().st_size
    stored = tensors(small)
    for name, values in tensors(full).items():
        assert np.abs(stored[name] - values).max() < within * max(np.abs(values).max(), 1e-6), name


def test_whole_weights_take_their_places(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "whole.gguf"
    new = {"model.layers.0.mlp.up_proj.weight": np.full((INNER, HIDDEN), 0.25, dtype=np.float32)}
    write_whole(tiny, Trained({}, new, 0, 0.0), target, "F16", "x")
    assert (tensors(target)["blk.0.ffn_up.weight"] == 0.25).all()


def test_what_does_not_belong_is_told(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not of LoRA"):
        low_rank_of({"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude": np.zeros(1)})
    foreign = Trained({"model.layers.0.mlp.z_proj.weight": (np.zeros((1, 1)), np.zeros((1, 1)))}, {}, 1, 1.0)
    with pytest.raises(InputError, match=r"no weights called model\.layers\.0\.mlp\.z_proj"):
        write_adapter(tiny, foreign, tmp_path / "x.gguf", "x")
    beyond = Trained({}, {"model.layers.9.mlp.up_proj.weight": np.zeros((INNER, HIDDEN))}, 0, 0.0)
    with pytest.raises(InputError, match="no weights called"):
        write_whole(tiny, beyond, tmp_path / "x.gguf", "F16", "x")


def test_llama_cpp_takes_adapter_and_whole_for_the_same(tiny: Path, tmp_path: Path) -> None:
    whole, alone = tmp_path / "whole.gguf", tmp_path / "alone.gguf"
    write_whole(tiny, adapter(), whole, "F16", "whole")
    write_adapter(tiny, adapter(), alone, "alone")
    together, apart, before = served_tokens(whole), served_tokens(tiny, alone), served_tokens(tiny)
    assert near(together, apart, 0.03)
    assert not near(together, before, 0.03), "the adapter changed nothing that shows"
