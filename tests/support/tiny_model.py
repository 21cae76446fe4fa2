"""A model small enough to be trained in a test: the embedded model's vocabulary on a few random numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from rank_k.distill.label_traces import LabelTrace
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import DEFAULT_WEIGHTS, locate
from rank_k.optional_deps import load
from rank_k.window.prompt import read_template

HIDDEN, LAYERS, HEADS, KEYS, INNER, CONTEXT = 64, 2, 4, 2, 128, 1024
WORDS = ("no", "partly", "yes")
PROMPT = "The tide follows the moon, and the moon"


def write_tiny_gguf(path: Path) -> Path:
    """A llama of two layers with random weights, as a GGUF file with the embedded model's tokenizer."""
    gguf, numpy = load("gguf"), load("numpy")
    reader = gguf.GGUFReader(str(locate(DEFAULT_WEIGHTS).path))
    sizes = {
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEYS,
        "llama.rope.dimension_count": HIDDEN // HEADS,
    }
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, sizes.get(name, field.contents()), field.types[0], item_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    vocabulary = len(reader.get_field("tokenizer.ggml.tokens").contents())
    keys = HIDDEN * KEYS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (keys, HIDDEN),
            f"blk.{layer}.attn_v.weight": (keys, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    random = numpy.random.default_rng(0)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, numpy.ones(shape, dtype=numpy.float32))
        else:
            values = random.normal(0, 0.3 if "attn" in name else 0.1, shape)
            writer.add_tensor(name, values.astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def recipe_text(weights: Path, /, **changes: str) -> str:
    """A recipe for the tiny model; `changes` are lines that take the place of those with the same key."""
    lines = f"""
name = "tiny"
[base]
weights = "{weights}"
parameters = 3.3e6
layers = {LAYERS}
hidden = {HIDDEN}
[method]
kind = "lora"
rank = 4
alpha = 8
targets = "all-linear"
freeze_layers = 0
[training]
max_length = 512
learning_rate = 1e-2
batch = 2
accumulate = 1
warmup_steps = 2
epochs = 2
bf16 = false
group_by_length = true
seed = 1
checkpoint_steps = 3
measure_steps = 4
measure_rows = 4
measure_free = 1
[verdicts]
words = ["no", "partly", "yes"]
corrupt = 0.5
clean = 0.3
listwise = 0.5
[asking]
prompt = "compact"
passage_tokens = 30
window = 4
stride = 2
max_tokens = 96
temperature = 0.0
""".splitlines()
    for key, line in changes.items():
        assert any(old_line.startswith(f"{key} =") for old_line in lines), key
        lines = [line if old_line.startswith(f"{key} =") else old_line for old_line in lines]
    return "\n".join(lines)


def row(query: str, passages: Sequence[str], labels: Sequence[int], source: str = "made up") -> dict[str, Any]:
    """A row as `rank-k distill select` writes them, by the labels teacher."""
    (message,) = read_template("compact").messages(query, passages)
    completion = LabelTrace(tuple(labels), tuple(labels), WORDS).text
    return {
        "prompt": [message._asdict()],
        "completion": [{"role": "assistant", "content": completion}],
        "query": query,
        "doc_ids": [f"d{i}" for i in range(len(passages))],
        "source": source,
        "license": "CC0",
    }


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose relevant passages repeat a word of the query."""
    random, vocabulary = Random(seed), ["sun", "moon", "tide", "rain", "snow", "wind", "leaf", "stone"]
    training_rows = []
    for _ in range(count):
        topic = random.choice(vocabulary)
        passages = [" ".join(random.choices(vocabulary, k=random.randint(3, 8))) for _ in range(random.randint(2, 4))]
        training_rows.append(row(f"what of the {topic}", passages, [2 * (topic in passage) for passage in passages]))
    return training_rows


def write_rows(path: Path, training_rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(training_row)}\n" for training_row in training_rows), encoding="utf-8")
    return path


def llama_cpp_log_probabilities(gguf: Path, adapter: Path | None = None) -> dict[str, float]:
    """Log-probabilities of the likeliest next tokens after `PROMPT`, by llama.cpp."""

    async def request_tokens() -> dict[str, float]:
        server = await EmbeddedServer.start(locate(gguf), context_length=512, threads=1, adapter=adapter)
        try:
            headers = {"Authorization": f"Bearer {server.api_key}"}
            payload = {"prompt": PROMPT, "n_predict": 1, "n_probs": 400, "temperature": 0.0, "cache_prompt": False}
            url = server.url.removesuffix("/v1") + "/completion"
            async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=payload) as response:
                body = await response.json()
            return {each["token"]: each["logprob"] for each in body["completion_probabilities"][0]["top_logprobs"]}
        finally:
            await server.close()

    return asyncio.run(request_tokens())


def agree_within(first: dict[str, float], second: dict[str, float], tolerance: float) -> bool:
    """Whether two such tables agree on the tokens they share."""
    shared = [token for token in first if token in second]
    assert len(shared) >= 5
    return all(abs(first[token] - second[token]) < tolerance for token in shared)
