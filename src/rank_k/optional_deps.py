"""Import optional dependencies, or raise an error that names the extra that installs them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from rank_k.errors import MissingExtra

BACKPORTS = () if sys.version_info >= (3, 14) else ("backports.zstd",)

MODULES_OF_EXTRA = {
    "bright": ("huggingface_hub", "pyarrow"),
    "data": (*BACKPORTS, "bm25s", "ir_datasets", "Stemmer", "yaml"),
    "fit": ("numpy",),
    "embedded": ("numpy", "xllamacpp"),
    "eval": ("ir_measures", "jinja2", "matplotlib", "scipy"),
    "haystack": ("haystack",),
    "langchain": ("langchain_core",),
    "llama-index": ("llama_index",),
    "mteb": ("mteb",),
    "pyterrier": ("pyterrier",),
    "ray": ("pyarrow", "ray"),
    "serve": ("prometheus_client", "pydantic", "sse_starlette", "starlette", "uvicorn"),
    "tokens": ("tokenizers",),
    "mcp": ("anyio", "mcp", "prometheus_client", "pydantic", "sse_starlette", "starlette", "uvicorn"),
    "train": ("accelerate", "datasets", "gguf", "jinja2", "peft", "safetensors", "torch", "transformers", "trl"),
}
"""The modules that each extra of `pyproject.toml` installs (a test compares the two). If several extras install a
module, error messages name the first."""


def load(module: str) -> ModuleType:
    """Import `module`, or raise `MissingExtra`, which names the extra that installs it."""
    if (loaded := sys.modules.get(module)) is not None:
        return loaded
    top = module.partition(".")[0]
    candidates = ((name, library) for name, modules in MODULES_OF_EXTRA.items() for library in modules)
    extra, library = next((pair for pair in candidates if pair[1] in (module, top)), ("", ""))
    if not extra:
        raise KeyError(f"{top} belongs to no extra: list it in rank_k.optional_deps")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # the module is installed but one that it imports is missing: the message names it
        raise MissingExtra(f"{library} is not installed", f"pip install 'rank-k[{extra}]'") from error
