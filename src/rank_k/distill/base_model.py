"""The model a student starts from: by a name of `rank-k fetch`, a GGUF file, a folder, or a name on the hub.

GGUF weights are dequantized by transformers. What it loads that way it refuses to save, since it takes the model
for a quantized one; the mark is removed here, for the numbers are plain ones by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rank_k.errors import InputError, RankKError
from rank_k.models.weights import NAMED, Weights, locate
from rank_k.optional_deps import load


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """`gguf`: the file that the weights came from, None where they came from transformers' own format."""

    model: Any
    tokenizer: Any
    gguf: Weights | None

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)


def find_gguf(weights: str) -> Weights | None:
    """The GGUF file, with its checksum; None for weights of another format. Raises `RankKError` if it cannot be had."""
    return locate(weights) if weights in NAMED or weights.endswith(".gguf") else None


def load_base(weights: str, *, bf16: bool) -> LoadedBase:
    """Model and tokenizer. `bf16`: as brain floats, for weights that are not trained themselves.

    Raises `InputError` with transformers' own words if they cannot be had.
    """
    transformers, torch = load("transformers"), load("torch")
    gguf = find_gguf(weights)
    if gguf is None:
        load_options: dict[str, Any] = {"pretrained_model_name_or_path": weights}
    else:
        load_options = {"pretrained_model_name_or_path": str(gguf.path.parent), "gguf_file": gguf.path.name}
    with quiet_libraries():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(**load_options)
            dtype = torch.bfloat16 if bf16 else torch.float32
            if gguf is not None and hasattr(transformers, "GgufConfig"):  # newer ones may leave weights in blocks
                load_options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(**load_options, dtype=dtype)
        except RankKError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            message = " ".join(str(error).split())[:300]
            raise InputError(
                f"the weights {weights} cannot be loaded: {message}", "see [base] of the recipe"
            ) from error
    if gguf is not None:
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model = model.to(dtype)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedBase(model, tokenizer, gguf)


class quiet_libraries:  # noqa: N801  (used as a statement: `with quiet_libraries():`)
    """transformers writes progress bars of its own to stderr, where ours belong."""

    def __enter__(self) -> None:
        logging = load("transformers.utils.logging")
        self._bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self._bars:
            load("transformers.utils.logging").enable_progress_bar()
