"""Compare the GGUF files with reference vectors, and measure their speed on one thread.

    python -m benchmarks.passage_scorers.check_minilm FOLDER --package WHEEL --texts CORPUS.jsonl [--count 256]

FOLDER: as `benchmarks.passage_scorers.minilm` wrote it. The reference is the encoder in plain torch, in single
precision, on token ids of the published tokenizer. Prints one JSON line per file: cosine with the reference (mean,
minimum), largest difference between the cosines of pairs of texts, how many texts are tokenized differently, and texts
and tokens per second of processor time and of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.passage_scorers.bert import MAX_TOKENS, encode, load_bert, load_tokenizer, token_rows
from benchmarks.passage_scorers.embedding_scorer import EmbeddingModel
from benchmarks.passage_scorers.minilm import read_archive
from benchmarks.passage_scorers.numpy_bert import NumpyBert

UNUSUAL_TEXTS = ("", " ", "?", "naïve café Ångström", "日本語のテキスト", "العربية", "𝔘nicode 🙂", "a" * 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with args.texts.open(encoding="utf-8") as file:
        corpus = [json.loads(line)["text"] for _, line in zip(range(args.count), file, strict=False)]
    texts = [*UNUSUAL_TEXTS, *corpus]
    archive = read_archive(args.package)
    tokenizer = load_tokenizer(archive)
    bert = load_bert(archive)
    reference = encode(bert, tokenizer, texts)
    ids = token_rows(tokenizer, texts, MAX_TOKENS)
    tokens = sum(map(len, ids[len(UNUSUAL_TEXTS) :]))
    print(json.dumps({"texts": len(texts), "tokens of the corpus texts": tokens}))
    for name in ("torch float32", "torch bfloat16", "numpy", *sorted(path.name for path in args.folder.glob("*.gguf"))):
        different = 0
        if name.startswith("torch"):
            encoder = bert.to(getattr(torch, name.removeprefix("torch ")))
            vectors = encode(encoder, tokenizer, texts)
            started = time.perf_counter(), _processor_seconds()
            encode(encoder, tokenizer, corpus)
        elif name == "numpy":
            encoder_rows = NumpyBert(archive)
            means = encoder_rows.embed_tokens(ids)
            vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
            started = time.perf_counter(), _processor_seconds()
            encoder_rows.embed_tokens(ids[len(UNUSUAL_TEXTS) :])
        else:
            model = EmbeddingModel(args.folder / name)
            different = sum(model.token_ids(text) != row for text, row in zip(texts, ids, strict=True))
            vectors = model.embed(texts)
            started = time.perf_counter(), _processor_seconds()
            model.embed(corpus)
        wall, processor = time.perf_counter() - started[0], _processor_seconds() - started[1]
        cosines = (vectors * reference).sum(1)
        pairs = np.abs(vectors @ vectors.T - reference @ reference.T).max()
        row = {
            "model": name,
            "mean cosine": round(float(cosines.mean()), 6),
            "minimum cosine": round(float(cosines.min()), 6),
            "largest pair difference": round(float(pairs), 5),
            "tokenized differently": different,
            "texts per processor second": round(len(corpus) / processor, 1),
            "tokens per processor second": round(tokens / processor),
            "texts per second": round(len(corpus) / wall, 1),
        }
        print(json.dumps(row), flush=True)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
