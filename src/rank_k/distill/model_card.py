"""A student's card: what it is, what it was made of, how good it measured, and what it must not be trusted with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k import __version__


def card(student: Path, facts: Mapping[str, Any], name: str, file: str, kind: str, adapter: bool) -> str:
    """The card, in Markdown, of the run in the folder `student` (`facts`: its `run.json`)."""
    recipe = facts["recipe"]
    told = _told(student / "measures.jsonl")
    end = max((each.get("step", 0) for each in told), default=0)
    seconds = max((each.get("seconds", 0.0) for each in told), default=0.0)
    what = f"a LoRA adapter for {recipe['base']['weights']}" if adapter else f"whole weights, {kind}"
    method, training = recipe["method"], recipe["training"]
    step = training["batch"] * training["accumulate"] * facts.get("processes", 1)
    learnt = min(end * step, round(facts["rows"] * training["epochs"]))
    how = f"LoRA of rank {method['rank']}" if method["kind"] == "lora" else "all weights"
    verified = "" if recipe["verified"] else " The recipe was not run at its full size by its authors."
    parts = [
        f"# {name}",
        f"A listwise reranker, {what}, in `{file}`. Made by rank-k {__version__} from {recipe['base']['weights']}.",
        "    rank-k rerank --run RUN --queries QUERIES --documents DOCUMENTS --output NEW_RUN --model " + file,
        "## Made of",
        _sources(facts),
        f"{facts['rows']:,} rows ({facts['too_long']:,} more were longer than {training['max_length']} tokens and left"
        f" out); the training came to {learnt:,} of them, drawn at random, all epochs together. sha256 of the data:"
        f" `{facts['data_sha256']}`.",
        "## Trained",
        f"Recipe {recipe['name']}: {how}, {end:,} steps of {step} rows,"
        f" {seconds / 60:.0f} minutes, seed {training['seed']}.{verified}",
        "## Measured on held-out rows while training",
        _measures(told),
        "## Limits",
        f"It is asked about windows of {recipe['asking']['window']} passages cut to"
        f" {recipe['asking']['passage_tokens']} tokens, with the prompt that it was trained with and that is stored"
        " beside it; other settings are other questions than it knows. Its training texts are in the languages of the"
        " sources above. What is measured on held-out rows of the training sources says little about other collections:"
        " measure yours.",
    ]
    return "\n\n".join(parts) + "\n"


def _told(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _sources(facts: Mapping[str, Any]) -> str:
    lines = ["| source | rows | license |", "|---|---|---|"]
    lines += [
        f"| {_cell(source)} | {count:,} | {_cell(license)} |"
        for source, licenses in sorted(facts.get("sources", {}).items())
        for license, count in licenses.items()
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """`text` as it can stand in a table: rows may come from elsewhere, and say what they like."""
    return " ".join(text.replace("|", "\\|").split())


def _measures(told: list[dict[str, Any]]) -> str:
    lines = [
        "| step | loss | AUC of the verdicts | known at the passages' ends | nDCG@10 by verdict | as presented"
        " | free answers | well formed |"
    ]
    lines.append("|---" * 8 + "|")
    for each in told:
        if "heldout" in each:
            held = each["heldout"]
            names = ("loss", "auc", "early_auc", "ndcg", "presented", "free_ndcg", "well_formed")
            values = ("-" if held.get(name) is None else f"{held[name]:.3f}" for name in names)
            lines.append(f"| {each['step']} | {' | '.join(values)} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing was held out."
