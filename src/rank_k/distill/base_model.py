"""Load the base model of a student: a name for `rank-k fetch`, a GGUF file, a folder, or a name on Hugging Face.

transformers dequantizes GGUF weights, but still marks the model as quantized and then refuses to save it. This module
removes that mark.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
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
    """Return the GGUF file with its checksum, or None if `weights` is not a GGUF file.

    Raises:
        RankKError: If there is no such file.
    """
    return locate(weights) if weights in NAMED or weights.endswith(".gguf") else None


def load_base(weights: str, *, bf16: bool) -> LoadedBase:
    """Return the model and its tokenizer.

    Args:
        weights: A name for `rank-k fetch`, a GGUF file, a folder, or a name on the Hugging Face hub.
        bf16: Load the weights in bfloat16 instead of float32. Use float32 if all weights are trained (without LoRA).

    Raises:
        InputError: If the model or the tokenizer cannot be loaded.
    """
    return LoadedBase(load_model(weights, bf16=bf16), load_tokenizer(weights))


def load_tokenizer(weights: str) -> Any:
    """Return the tokenizer of `weights`, with a padding token. Raises `InputError` if it cannot be loaded."""
    gguf = find_gguf(weights)
    with _loading(weights):
        tokenizer = load("transformers").AutoTokenizer.from_pretrained(**_source(weights, gguf))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(weights: str, *, bf16: bool) -> Any:
    """Return the model in bfloat16 or float32. Raises `InputError` if it cannot be loaded."""
    transformers, torch = load("transformers"), load("torch")
    dtype = torch.bfloat16 if bf16 else torch.float32
    gguf = find_gguf(weights)
    load_options = _source(weights, gguf)
    with _loading(weights):
        if gguf is not None and hasattr(transformers, "GgufConfig"):  # newer versions may keep weights quantized
            load_options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(**load_options, dtype=dtype)
    if gguf is not None:
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model = model.to(dtype)
    return model


def _source(weights: str, gguf: Weights | None) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` of transformers loads the weights."""
    if gguf is None:
        return {"pretrained_model_name_or_path": weights}
    return {"pretrained_model_name_or_path": str(gguf.path.parent), "gguf_file": gguf.path.name}


@contextmanager
def _loading(weights: str) -> Iterator[None]:
    """Hide progress bars in the block. Convert loading errors of transformers to `InputError`, with their messages."""
    try:
        with quiet_libraries(), redirect_stderr(StringIO()):
            yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"the weights {weights} cannot be loaded: {message}", "correct the [base] section of the recipe"
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the warnings and log messages of transformers, TRL and PEFT, except errors."""
    logging = load("transformers.utils.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def bf16_is_fast() -> bool:
    """Return whether this machine computes in bfloat16 natively.

    For GPUs, torch reports it. CPUs need special instructions (AVX512-BF16, AMX or Arm's BF16). Other CPUs emulate
    bfloat16: with AVX2 only, a matrix product takes 48 times as long as in float32. If torch cannot list the CPU's
    instructions, the result is False, because float32 works everywhere.
    """
    torch = load("torch")
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    list_instructions = getattr(torch.cpu, "get_capabilities", dict)
    return any("bf16" in name and supported is True for name, supported in list_instructions().items())
