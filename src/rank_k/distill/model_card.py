"""A student's card: what it is, what it was made of, how good it measured, and what it must not be trusted with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k import __version__


def render_card(
    student: Path, metadata: Mapping[str, Any], name: str, gguf_name: str, quantization: str, adapter: bool
) -> str:
    """The card, in Markdown, of the run in the folder `student` (`metadata`: its `run.json`)."""
    recipe = metadata["recipe"]
    measures = _read_measures(student / "measures.jsonl")
    last_step = max((record.get("step", 0) for record in measures), default=0)
    seconds = max((record.get("seconds", 0.0) for record in measures), default=0.0)
    description = f"a LoRA adapter for {recipe['base']['weights']}" if adapter else f"whole weights, {quantization}"
    method, training = recipe["method"], recipe["training"]
    rows_per_step = training["batch"] * training["accumulate"] * metadata.get("processes", 1)
    learned_rows = min(last_step * rows_per_step, round(metadata["rows"] * training["epochs"]))
    method_description = f"LoRA of rank {method['rank']}" if method["kind"] == "lora" else "all weights"
    verified = "" if recipe["verified"] else " The recipe was not run at its full size by its authors."
    sections = [
        f"# {name}",
        f"A listwise reranker, {description}, in `{gguf_name}`. Made by rank-k {__version__}"
        f" from {recipe['base']['weights']}.",
        "    rank-k rerank --run RUN --queries QUERIES --documents DOCUMENTS --output NEW_RUN --model " + gguf_name,
        "## Made of",
        _sources_table(metadata),
        f"{metadata['rows']:,} rows ({metadata['too_long']:,} more were longer than {training['max_length']} tokens and"
        f" left out); the training came to {learned_rows:,} of them, drawn at random, all epochs together. sha256 of"
        f" the data: `{metadata['data_sha256']}`.",
        "## Trained",
        f"Recipe {recipe['name']}: {method_description}, {last_step:,} steps of {rows_per_step} rows,"
        f" {seconds / 60:.0f} minutes, seed {training['seed']}.{verified}",
        "## Measured on held-out rows while training",
        _measures_table(measures),
        "## Limits",
        f"It is asked about windows of {recipe['asking']['window']} passages cut to"
        f" {recipe['asking']['passage_tokens']} tokens, with the prompt that it was trained with and that is stored"
        " beside it; other settings are other questions than it knows. Its training texts are in the languages of the"
        " sources above. What is measured on held-out rows of the training sources says little about other collections:"
        " measure yours.",
    ]
    return "\n\n".join(sections) + "\n"


def _read_measures(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _sources_table(metadata: Mapping[str, Any]) -> str:
    lines = ["| source | rows | license |", "|---|---|---|"]
    lines += [
        f"| {_table_cell(source)} | {count:,} | {_table_cell(license)} |"
        for source, licenses in sorted(metadata.get("sources", {}).items())
        for license, count in licenses.items()
    ]
    return "\n".join(lines)


def _table_cell(text: str) -> str:
    """`text` as it can stand in a table: rows may come from elsewhere, and say what they like."""
    return " ".join(text.replace("|", "\\|").split())


def _measures_table(measures: list[dict[str, Any]]) -> str:
    lines = [
        "| step | loss | AUC of the verdicts | known at the passages' ends | nDCG@10 by verdict | as presented"
        " | free answers | well formed |"
    ]
    lines.append("|---" * 8 + "|")
    for record in measures:
        if "heldout" in record:
            heldout = record["heldout"]
            names = ("loss", "auc", "early_auc", "ndcg", "presented", "free_ndcg", "well_formed")
            values = ("-" if heldout.get(name) is None else f"{heldout[name]:.3f}" for name in names)
            lines.append(f"| {record['step']} | {' | '.join(values)} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing was held out."
