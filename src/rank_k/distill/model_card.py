"""The model card of a student: its training data, how it was trained, and its measures on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k import __version__
from rank_k.distill.run_folder import read_measures
from rank_k.optional_deps import load


def render_card(
    student: Path, metadata: Mapping[str, Any], name: str, gguf_name: str, quantization: str, adapter: bool
) -> str:
    """Return the model card of a training run, in Markdown.

    Args:
        student: The folder of the run.
        metadata: The content of its `run.json`.
        name: The name of the student.
        gguf_name: The name of the GGUF file.
        quantization: How full weights are stored in the GGUF file (one of `QUANTIZATION_TYPES`).
        adapter: Whether the GGUF file contains an adapter for the base model instead of full weights.
    """
    measures, training = read_measures(student), metadata["recipe"]["training"]
    last_record = measures[-1] if measures else {"step": 0, "seconds": 0.0}
    rows_per_step = training["batch"] * training["accumulate"] * metadata["processes"]
    template = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    jinja2 = load("jinja2")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    card = environment.from_string(template).render(
        name=name,
        gguf_name=gguf_name,
        quantization=quantization,
        adapter=adapter,
        version=__version__,
        run=metadata,
        recipe=metadata["recipe"],
        measures=[record for record in measures if "heldout" in record],
        last=last_record,
        rows_per_step=rows_per_step,
        learned_rows=min(last_record["step"] * rows_per_step, round(metadata["rows"] * training["epochs"])),
    )
    return str(card)
