"""Score passages by the cosine of llama.cpp embeddings: a proposal for the embedded scorer.

`EmbeddingModel` runs a GGUF encoder in the installed llama.cpp runtime (xllamacpp). `EmbeddingScorer` scores the
passages of one query. In the package, the model would be a request type of the embedded server
(`models/llama_server.py` with `params.embedding = True`), so that it runs in a child process like the language model;
here it runs in this process, which is enough to measure it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xllamacpp

MAX_TOKENS = 256
"""Tokens of a text that the model sees, as all-MiniLM-L6-v2 was trained."""
BATCH_TEXTS = 32


class Scorer(Protocol):
    """Scores the candidates of one query; higher is better. Scores of different queries need not be comparable."""

    name: str

    def score(self, query: str, passages: Mapping[str, str]) -> Mapping[str, float]:
        """Return one finite score for each id of `passages` (`doc_id -> text`)."""
        ...


class EmbeddingModel:
    """A GGUF encoder with mean pooling.

    Args:
        path: the GGUF file.
        threads: threads of llama.cpp.
        max_tokens: texts are truncated to this many tokens, [CLS] and [SEP] included.
        normalize: return unit vectors; otherwise the means as they are.
    """

    def __init__(self, path: Path, threads: int = 1, max_tokens: int = MAX_TOKENS, normalize: bool = True) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.embd_normalize = 2 if normalize else -1
        params.port = 0
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
        params.offline = True
        params.n_parallel = 8  # several short texts share one batch
        params.n_ctx = 512 * params.n_parallel
        params.kv_unified = False
        params.n_batch = params.n_ubatch = 512  # a text must fit one batch: attention is not causal
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = 1
        self.max_tokens = max_tokens
        self._normalize = normalize
        self._server = xllamacpp.Server(params)
        self._tokenizer = _load_tokenizer(path)

    def embed(self, texts: Sequence[str]) -> Any:
        """Return one vector per text, as a numpy array of shape texts x size."""
        return self.embed_tokens([self.token_ids(text) for text in texts])

    def embed_tokens(self, rows: Sequence[Sequence[int]]) -> Any:
        """Return one vector per row of token ids, which include [CLS] and [SEP]."""
        vectors = []
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # equal lengths batch well
        for start in range(0, len(order), BATCH_TEXTS):
            batch = [list(rows[index]) for index in order[start : start + BATCH_TEXTS]]
            response = self._server.handle_embeddings({"input": batch, "embd_normalize": 2 if self._normalize else -1})
            if "data" not in response:
                raise RuntimeError(f"llama.cpp returned no embeddings: {response}")
            vectors += [row["embedding"] for row in sorted(response["data"], key=lambda row: row["index"])]
        result = np.empty((len(rows), len(vectors[0]) if vectors else 0), np.float32)
        result[order] = vectors
        return result

    def token_ids(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the ids of `text` with [CLS] and [SEP], truncated to `max_tokens`."""
        ids: list[int] = self._tokenizer.encode(text).ids
        limit = max_tokens or self.max_tokens
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


class EmbeddingScorer:
    """Scores a passage by the cosine of its vector and the query's."""

    def __init__(self, model: EmbeddingModel, name: str = "minilm") -> None:
        self.model = model
        self.name = name

    def score(self, query: str, passages: Mapping[str, str]) -> dict[str, float]:
        """Return the cosine of each passage, in [-1, 1]; an empty passage gets the vector of the empty text."""
        vectors = self.model.embed([query, *passages.values()])
        return {doc_id: float(value) for doc_id, value in zip(passages, vectors[1:] @ vectors[0], strict=True)}


def _load_tokenizer(path: Path) -> Any:
    """Build the WordPiece tokenizer from the GGUF file's own vocabulary.

    llama.cpp tokenizes too, but rejects texts that are longer than a batch instead of truncating them.
    """
    import gguf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    reader = gguf.GGUFReader(str(path))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    vocabulary = {
        token if kind == gguf.TokenType.CONTROL else token[1:] if token[0] == "▁" else f"##{token}": index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer
