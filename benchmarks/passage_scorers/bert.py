"""The BERT encoder in plain torch: reference vectors for the GGUF file, fast encoding, and training.

Devlin et al. (2019), with mean pooling as Reimers and Gurevych (2019). `Bert.forward` returns the last hidden states;
all tokens have token type 0, as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.passage_scorers.minilm import BertModel

MAX_TOKENS = 256
"""Tokens of a text, as the model's own configuration has it."""


class Layer(nn.Module):
    """One transformer layer, with layer normalization after each half."""

    def __init__(self, size: int, inner_size: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, epsilon)
        self.up = nn.Linear(size, inner_size)
        self.down = nn.Linear(inner_size, size)
        self.output_norm = nn.LayerNorm(size, epsilon)

    def forward(self, states: Tensor, mask: Tensor, dropout: float) -> Tensor:
        batch, length, size = states.shape
        shape = (batch, length, 3, self.heads, size // self.heads)
        query, key, value = self.query_key_value(states).view(shape).permute(2, 0, 3, 1, 4)
        # Not torch's fused attention: on a CPU its backward pass takes more than half of a training step.
        weights = (query @ key.transpose(2, 3) / sqrt(size // self.heads) + mask).softmax(-1)
        attended = weights.to(value.dtype) @ value
        attended = self.attention_output(attended.transpose(1, 2).reshape(batch, length, size))
        states = self.attention_norm(states + functional.dropout(attended, dropout, self.training))
        inner = self.down(functional.gelu(self.up(states)))
        output: Tensor = self.output_norm(states + functional.dropout(inner, dropout, self.training))
        return output


class Bert(nn.Module):
    """The encoder. `dropout` acts in training mode only."""

    def __init__(self, config: dict[str, Any], dropout: float = 0.1) -> None:
        super().__init__()
        size, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.dropout = dropout
        self.words = nn.Embedding(config["vocab_size"], size)
        self.positions = nn.Embedding(config["max_position_embeddings"], size)
        self.types = nn.Embedding(config["type_vocab_size"], size)
        self.norm = nn.LayerNorm(size, epsilon)
        self.layers = nn.ModuleList(
            Layer(size, config["intermediate_size"], config["num_attention_heads"], epsilon)
            for _ in range(config["num_hidden_layers"])
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states. `ids`, `mask`: batch x length; `mask` is 1 where there is a token."""
        states = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        states = functional.dropout(self.norm(states), self.dropout, self.training)
        bias = torch.zeros(mask.shape, dtype=states.dtype).masked_fill(mask == 0, torch.finfo(states.dtype).min)
        for layer in self.layers:
            states = layer(states, bias[:, None, None, :], self.dropout)
        output: Tensor = states
        return output

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the last hidden states over the tokens of each text, in single precision."""
        states = self(ids, mask).float()
        weights = mask[..., None].float()
        means: Tensor = (states * weights).sum(1) / weights.sum(1)
        return means


def load_bert(model: BertModel, dropout: float = 0.1) -> Bert:
    """Return the encoder with the weights of `model`."""
    bert = Bert(dict(model.config), dropout)
    bert.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in _rename(model).items()})
    return bert


def to_bert_model(bert: Bert, model: BertModel) -> BertModel:
    """Return `model` with the weights of `bert`, in the names of transformers."""
    state = {name: values.detach().float().numpy() for name, values in bert.state_dict().items()}
    tensors = {}
    for source, target in _names(len(bert.layers)):
        if isinstance(source, str):
            tensors[source] = state[target]
        else:
            tensors.update(zip(source, np.split(state[target], 3), strict=True))
    return BertModel(tensors, model.config, model.tokenizer)


def _rename(model: BertModel) -> dict[str, Any]:
    tensors = model.tensors
    return {
        target: tensors[source] if isinstance(source, str) else np.concatenate([tensors[part] for part in source])
        for source, target in _names(model.config["num_hidden_layers"])
    }


def _names(layer_count: int) -> Iterator[tuple[str | tuple[str, str, str], str]]:
    """Names in transformers and here; three that are one here come as a tuple."""
    for source, target in (("word", "words"), ("position", "positions"), ("token_type", "types")):
        yield f"embeddings.{source}_embeddings.weight", f"{target}.weight"
    for kind in ("weight", "bias"):
        yield f"embeddings.LayerNorm.{kind}", f"norm.{kind}"
        for number in range(layer_count):
            source, target = f"encoder.layer.{number}", f"layers.{number}"
            query, key, value = (f"{source}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            yield (query, key, value), f"{target}.query_key_value.{kind}"
            yield f"{source}.attention.output.dense.{kind}", f"{target}.attention_output.{kind}"
            yield f"{source}.attention.output.LayerNorm.{kind}", f"{target}.attention_norm.{kind}"
            yield f"{source}.intermediate.dense.{kind}", f"{target}.up.{kind}"
            yield f"{source}.output.dense.{kind}", f"{target}.down.{kind}"
            yield f"{source}.output.LayerNorm.{kind}", f"{target}.output_norm.{kind}"


def load_tokenizer(model: BertModel) -> Tokenizer:
    """Return the tokenizer without truncation and padding."""
    import json

    tokenizer = Tokenizer.from_str(json.dumps(model.tokenizer))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the token ids as one tensor, padded with 0, and the mask."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the ids of each text with [CLS] and [SEP], at most `max_tokens` of them."""
    rows = []
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
            ids = encoding.ids
            rows.append(ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]])
    return rows


def length_batches(rows: Sequence[Sequence[int]], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, so many that the padded batch has at most `max_batch_tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        if batch and (len(batch) + 1) * len(rows[index]) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def encode(
    bert: Bert, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int = MAX_TOKENS, batch_tokens: int = 4096
) -> Any:
    """Return one unit vector per text (numpy, single precision), computed in the encoder's own precision."""
    bert.eval()
    rows = token_rows(tokenizer, texts, max_tokens)
    vectors = np.zeros((len(texts), bert.norm.weight.shape[0]), np.float32)
    for batch in length_batches(rows, batch_tokens):
        vectors[batch] = functional.normalize(bert.pooled(*pad([rows[index] for index in batch])), dim=1).numpy()
    return vectors
