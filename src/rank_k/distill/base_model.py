"""The model that a student starts from: a name of `rank-k fetch`, a GGUF file, a folder, or a name on the hub.

transformers dequantizes GGUF weights, but still takes the model for a quantized one and refuses to save it. That mark
is removed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rank_k.errors import InputError
from rank_k.models.weights import NAMED, Weights, locate
from rank_k.optional_deps import load


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any


def find_gguf(weights: str) -> Weights | None:
    """Return the GGUF file with its checksum, or None for weights of another format.

    Raises:
        RankKError: If there is no such file.
    """
    return locate(weights) if weights in NAMED or weights.endswith(".gguf") else None


def load_base(weights: str, *, bf16: bool) -> LoadedBase:
    """Load model and tokenizer, in bfloat16 (for weights that are not trained themselves) or in float32.

    Raises:
        InputError: With the message of transformers, if they cannot be loaded.
    """
    transformers, torch = load("transformers"), load("torch")
    gguf = find_gguf(weights)
    dtype = torch.bfloat16 if bf16 else torch.float32
    load_options: dict[str, Any] = {"pretrained_model_name_or_path": weights}
    if gguf is not None:
        load_options = {"pretrained_model_name_or_path": str(gguf.path.parent), "gguf_file": gguf.path.name}
    with _without_progress_bars():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(**load_options)
            if gguf is not None and hasattr(transformers, "GgufConfig"):  # newer ones may leave weights in blocks
                load_options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(**load_options, dtype=dtype)
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
    return LoadedBase(model, tokenizer)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from writing its own progress bars to stderr."""
    logging = load("transformers.utils.logging")
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def bf16_is_fast() -> bool:
    """Return whether this machine computes in bfloat16 natively.

    A GPU says so itself. Of CPUs, those with instructions for it do (AVX512-BF16, AMX, Arm's BF16); the others
    emulate it: on one with AVX2 only, a matrix product takes 48 times as long in bfloat16 as in float32. Versions of
    torch that cannot list the CPU's instructions count as not fast, since float32 is never wrong.
    """
    torch = load("torch")
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    list_instructions = getattr(torch.cpu, "get_capabilities", dict)
    return any("bf16" in name and supported is True for name, supported in list_instructions().items())
