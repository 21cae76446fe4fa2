"""The BERT encoder in NumPy alone: a second runtime for MiniLM, without a server, torch or gguf.

NumPy's wheels use AVX-512 where the processor has it; the installed llama.cpp wheel stops at AVX2. Texts of similar
length are computed together, padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

import numpy as np

from benchmarks.passage_scorers.minilm import BertModel

BATCH_TOKENS = 1024
"""Padded tokens computed at a time, so that intermediate results stay small (about 6 MB for the widest)."""


class NumpyBert:
    """An encoder with mean pooling. `embed_tokens` takes rows of token ids with [CLS] and [SEP]."""

    def __init__(self, model: BertModel) -> None:
        tensors, config = model.tensors, model.config
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._words = tensors["embeddings.word_embeddings.weight"]
        types = tensors["embeddings.token_type_embeddings.weight"]
        self._positions = tensors["embeddings.position_embeddings.weight"] + types[0]
        self._norm = _pair(tensors, "embeddings.LayerNorm")
        self._layers = [
            _layer(tensors, f"encoder.layer.{number}", self._words.shape[1] // self._heads)
            for number in range(config["num_hidden_layers"])
        ]

    def embed_tokens(self, rows: Sequence[Sequence[int]]) -> Any:
        """Return the mean of the last hidden states of each row, as an array of shape rows x size."""
        means = np.empty((len(rows), self._words.shape[1]), np.float32)
        batch: list[int] = []
        for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
            if batch and (len(batch) + 1) * len(rows[index]) > BATCH_TOKENS:
                means[batch] = self._means([rows[index] for index in batch])
                batch = []
            batch.append(index)
        if batch:
            means[batch] = self._means([rows[index] for index in batch])
        return means

    def _means(self, rows: Sequence[Sequence[int]]) -> Any:
        lengths = np.array([len(row) for row in rows])
        length = int(lengths.max())
        ids = np.array([[*row, *[0] * (length - len(row))] for row in rows])
        mask = np.arange(length) < lengths[:, None]
        bias = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
        states = _layer_norm(self._words[ids] + self._positions[:length], *self._norm, self._epsilon)
        states = states.reshape(-1, states.shape[-1])
        for layer in self._layers:
            attended = self._attention(states @ layer["qkv"][0] + layer["qkv"][1], len(rows), bias)
            attended = attended @ layer["output"][0] + layer["output"][1]
            states = _layer_norm(states + attended, *layer["attention_norm"], self._epsilon)
            inner = _gelu(states @ layer["up"][0] + layer["up"][1])
            states = _layer_norm(
                states + (inner @ layer["down"][0] + layer["down"][1]), *layer["output_norm"], self._epsilon
            )
        states = states.reshape(len(rows), length, -1)
        return (states * mask[..., None]).sum(1, dtype=np.float32) / lengths[:, None].astype(np.float32)

    def _attention(self, query_key_value: Any, batch: int, bias: Any) -> Any:
        size = query_key_value.shape[1] // 3
        parts = query_key_value.reshape(batch, -1, 3, self._heads, size // self._heads)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)
        weights = query @ key.transpose(0, 1, 3, 2)
        weights += bias
        weights -= weights.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).transpose(0, 2, 1, 3).reshape(-1, size)


def _layer(tensors: Any, name: str, head_size: int) -> dict[str, tuple[Any, Any]]:
    """Return the transposed weights of one layer; the query's are divided by the root of the head size."""
    scale = np.float32(1 / sqrt(head_size))
    query, key, value = (_pair(tensors, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    weights = np.concatenate([query[0] * scale, key[0], value[0]])
    biases = np.concatenate([query[1] * scale, key[1], value[1]])
    linear = {
        "output": _pair(tensors, f"{name}.attention.output.dense"),
        "up": _pair(tensors, f"{name}.intermediate.dense"),
        "down": _pair(tensors, f"{name}.output.dense"),
        "qkv": (weights, biases),
    }
    return {
        **{part: (np.ascontiguousarray(weight.T), bias) for part, (weight, bias) in linear.items()},
        "attention_norm": _pair(tensors, f"{name}.attention.output.LayerNorm"),
        "output_norm": _pair(tensors, f"{name}.output.LayerNorm"),
    }


def _pair(tensors: Any, name: str) -> tuple[Any, Any]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _layer_norm(values: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    values = values - values.mean(-1, keepdims=True)
    variance = np.einsum("...i,...i->...", values, values)[..., None] / np.float32(values.shape[-1])
    values /= np.sqrt(variance + np.float32(epsilon))
    return values * weight + bias


def _gelu(values: Any) -> Any:
    """The tanh approximation of Hendrycks and Gimpel (2016), which llama.cpp uses as well."""
    inner = values * values
    inner *= np.float32(0.044715)
    inner += np.float32(1)
    inner *= values
    inner *= np.float32(sqrt(2 / pi))
    np.tanh(inner, out=inner)
    inner += np.float32(1)
    inner *= values
    inner *= np.float32(0.5)
    return inner
