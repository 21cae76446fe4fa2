"""The parts of `benchmarks.passage_scorers` that need no trained weights: a tiny BERT with random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from benchmarks.passage_scorers.bert import encode, load_bert, load_tokenizer, to_bert_model  # noqa: E402
from benchmarks.passage_scorers.cross_encoder import adr_mse, epoch_indices, pair_ids, ranknet  # noqa: E402
from benchmarks.passage_scorers.minilm import BertModel, parse_safetensors, write_bert_gguf  # noqa: E402
from benchmarks.passage_scorers.numpy_bert import NumpyBert  # noqa: E402
from benchmarks.passage_scorers.training_rows import extract_keywords, soft_target  # noqa: E402

pytestmark = pytest.mark.training

SIZE, INNER_SIZE, LAYERS = 32, 64, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rank", "##ing", "passage", "query", "?"]


@pytest.fixture
def model() -> BertModel:
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return generator.normal(0, 0.2, shape).astype(np.float32)

    def norm(name: str) -> dict[str, Any]:
        return {f"{name}.weight": 1 + draw(SIZE), f"{name}.bias": draw(SIZE)}

    def linear(name: str, rows: int, columns: int) -> dict[str, Any]:
        return {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}

    tensors = {
        "embeddings.word_embeddings.weight": draw(len(WORDS), SIZE),
        "embeddings.position_embeddings.weight": draw(16, SIZE),
        "embeddings.token_type_embeddings.weight": draw(2, SIZE),
        **norm("embeddings.LayerNorm"),
    }
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            tensors |= linear(f"{layer}.attention.self.{part}", SIZE, SIZE)
        tensors |= linear(f"{layer}.attention.output.dense", SIZE, SIZE)
        tensors |= norm(f"{layer}.attention.output.LayerNorm")
        tensors |= linear(f"{layer}.intermediate.dense", INNER_SIZE, SIZE)
        tensors |= linear(f"{layer}.output.dense", SIZE, INNER_SIZE)
        tensors |= norm(f"{layer}.output.LayerNorm")
    config = {
        "hidden_size": SIZE,
        "intermediate_size": INNER_SIZE,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "vocab_size": len(WORDS),
    }
    return BertModel(tensors, config, _tokenizer())


def _tokenizer() -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    return result


def test_numpy_bert_agrees_with_torch(model: BertModel) -> None:
    texts = ["ranking", "query ? passage ranking", ""]
    tokenizer = load_tokenizer(model)
    expected = encode(load_bert(model), tokenizer, texts)
    means = NumpyBert(model).embed_tokens([tokenizer.encode(text).ids for text in texts])
    vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(vectors - expected).max() < 2e-3  # the tanh approximation of GELU


def test_to_bert_model_returns_the_loaded_weights(model: BertModel) -> None:
    restored = to_bert_model(load_bert(model), model)
    assert restored.tensors.keys() == model.tensors.keys()
    assert all(np.array_equal(restored.tensors[name], values) for name, values in model.tensors.items())


def test_write_bert_gguf_is_deterministic_and_complete(model: BertModel, tmp_path: Path) -> None:
    for name in ("first.gguf", "second.gguf"):
        write_bert_gguf(model, tmp_path / name, "F16", "tiny", {"rank_k.scorer.head": "[1.0]"})
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()
    reader = gguf.GGUFReader(str(tmp_path / "first.gguf"))
    assert len(reader.tensors) == len(model.tensors)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert tokens[:1] + tokens[5:8] == ["[PAD]", "▁rank", "ing", "▁passage"]


def test_parse_safetensors_skips_integers() -> None:
    header = {
        "__metadata__": {},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8) + np.array([1, 2], "<f4").tobytes()
    tensors = parse_safetensors(content)
    assert {name: values.tolist() for name, values in tensors.items()} == {"weight": [[1.0, 2.0]]}


def test_pair_ids_keeps_the_separators_when_truncated(model: BertModel) -> None:
    ids = pair_ids(load_tokenizer(model), "query", "passage " * 20, max_tokens=8)
    assert ids[:1] == [2]
    assert len(ids) == 8
    assert ids[2] == ids[-1] == 102


@pytest.mark.parametrize(
    ("ratio", "similar", "target"),
    [(0.5, 0.9, None), (0.96, 0.6, None), (0.96, 0.5, 0.3), (0.9, 0.5, 0.15), (0.5, 0.5, 0.0)],
)
def test_soft_target_removes_suspected_false_negatives(ratio: float, similar: float, target: float | None) -> None:
    assert soft_target(ratio, similar) == target


def test_extract_keywords_drops_function_words() -> None:
    assert extract_keywords("what is the capital of France?") == "capital France"
    assert extract_keywords("who was she?") is None


@pytest.mark.parametrize("loss", [ranknet, adr_mse])
def test_listwise_losses_prefer_the_target_order(loss: Any) -> None:
    targets = torch.tensor([1.0, 0.3, 0.0, 0.0])
    right, wrong = torch.tensor([8.0, 4.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 8.0, 8.0])
    assert loss(right, targets) < 0.1 < loss(wrong, targets)


def test_epoch_indices_visit_each_row_once() -> None:
    visited = [index for step in range(5) for index in epoch_indices(10, step, 2, seed=1)]
    assert sorted(visited) == list(range(10))
