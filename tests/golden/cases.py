"""The golden cases.

Rule: this file, and the two it imports cases from, are the only ones of the golden tests that mention flags, verbs,
paths and field names of the product. When one of them is renamed, edit the command lines and bodies here, add renamed
JSON keys to `renames.toml` (and to the rules of `normalize.py` if their values are times), and change nothing else:
neither the names of the cases, nor their number, nor the record. Python names are in `adapter.py`.
"""

from __future__ import annotations

from typing import Any

from tests.golden.model_cases import BEHAVIORS, METHODS, MODES, OPTIONS, STRATEGIES_ON_A_MODEL
from tests.golden.service_cases import ACCESS, PAGES, SERVICE, TOOL
from tests.golden.steps import Case, Command

KEYS = {"GOLDEN_MODEL_KEY": "golden-model-key", "GOLDEN_CLIENT_KEY": "golden-client-key"}
"""Environment variables that the command lines name."""

STRATEGIES = ("single", "sliding", "topdown", "blocks", "tournament", "setwise")
PRESETS = ("paper", "fast", "balanced", "thorough")

# --- A simulated model ------------------------------------------------------------------------------

_SIMULATED = (
    "rerank --run {data}/run.trec --queries {data}/queries.jsonl --documents {data}/corpus.jsonl --quiet"
    " --simulate {data}/qrels.trec --output {work}/out.trec --report {work}/report.json --concurrency 1"
)
_RUN_AND_REPORT: dict[str, Any] = {
    "files": {"out.trec": "run", "report.json": "json"},
    "drop": ("settings", "per_query"),
}


def _simulated(name: str, options: str) -> Case:
    return Case(name, (Command(f"{_SIMULATED} {options}", **_RUN_AND_REPORT),))


SIMULATED = (
    *(
        _simulated(f"{strategy}, noise {noise}", f"--strategy {strategy} --noise {noise} --window 8 --stride 4")
        for strategy in STRATEGIES
        for noise in ("none", "strong", "weak")
        if strategy != "single"
    ),
    _simulated("single, noise strong", "--strategy single --noise strong"),
    *(_simulated(f"preset {preset}", f"--preset {preset} --noise weak") for preset in PRESETS),
    _simulated("blocks without the first stage", "--strategy blocks --window 8 --first-stage-weight 0 --noise strong"),
    _simulated("blocks, first stage twice", "--strategy blocks --window 8 --first-stage-weight 2 --noise strong"),
    _simulated("three samples", "--samples 3 --window 8 --stride 4 --noise strong --depth 12"),
    _simulated("token budget", "--token-budget 1k --noise none --window 8 --stride 4"),
    _simulated("tag and prices", "--tag mine --noise none --price-in 2 --price-out 8 --depth 10 --strict"),
)

# --- Measures and plans -----------------------------------------------------------------------------

_EVALUATE = "evaluate --qrels {data}/eval.qrels {data}/base.trec {data}/better.trec {data}/other.trec"

EVALUATION = (
    Case("table", (Command(_EVALUATE, "table"),)),
    Case("table of named measures", (Command(f"{_EVALUATE} --measures nDCG@5 RR@10 P@5 R@20", "table"),)),
    Case("ties as in trec_eval", (Command(f"{_EVALUATE} --ties trec_eval --measures nDCG@10 AP", "table"),)),
    Case("compared, table", (Command(f"{_EVALUATE} --baseline {{data}}/base.trec", "table", tolerance=0.06),)),
    Case("JSON", (Command(f"{_EVALUATE} --json --measures nDCG@10 AP", "json"),)),
    Case(
        "compared, JSON, CSV and HTML",
        (
            Command(
                f"{_EVALUATE} --baseline {{data}}/base.trec --json --csv {{work}}/values.csv --measures nDCG@10 AP"
                " --report {work}/report.html",
                "json",
                {"values.csv": "csv", "report.html": "exists"},
            ),
        ),
    ),
    Case("preferences, JSON", (Command("evaluate --preferences {data}/preferences.jsonl --json", "json"),)),
    Case(
        "preferences, table",
        (Command("evaluate --preferences {data}/preferences.jsonl", "table", tolerance=2.0),),
    ),
    Case("no judgments", (Command("evaluate {data}/base.trec", "none"),)),
)

_SIMULATE = "simulate --run {data}/run.trec --qrels {data}/qrels.trec --seeds 3 --window 8 --stride 4 --quiet"

PLANNING = (
    Case("simulate, table", (Command(f"{_SIMULATE} --strategy sliding,topdown,blocks", "table", tolerance=0.5),)),
    Case("simulate, JSON", (Command(f"{_SIMULATE} --strategy sliding,blocks,tournament,setwise --json", "json"),)),
    Case(
        "simulate with presets, time and money",
        (
            Command(
                f"{_SIMULATE} --strategy fast,balanced,thorough --baseline balanced --noise weak --json"
                " --concurrency 4,16 --call-seconds 20+2.5w --tokens-per-passage 100"
                " --tokens-per-answer 500 --price-in 1 --price-out 4",
                "json",
            ),
        ),
    ),
)

_STUDY = (
    "study --queries {data}/queries.jsonl --documents {data}/corpus.jsonl --qrels {data}/qrels.trec"
    " --run {data}/run.trec --simulate --window 8 --stride 4 --output {work}/study --quiet"
)
_STUDY_FILES: dict[str, Any] = {"study/cells.csv": "csv", "study/queries.csv": "csv", "study/report.html": "exists"}

_DEPENDS_ON_TIME = ("pareto",)
_STUDY_FILE = """
title = "A small study"
measures = ["nDCG@10", "RR@10"]

[[grids]]
strategy = ["sliding", "topdown"]
window = [6]
stride = [3]
depth = [9]
reasoning = ["off"]

[[collections]]
name = "small"
queries = "{data}/queries.jsonl"
documents = "{data}/corpus.jsonl"
qrels = "{data}/qrels.trec"

[[collections.runs]]
name = "first"
file = "{data}/two.trec"

[[models]]
name = "fake"
model = "golden-model"
server = "{server:sglang}"
"""

STUDIES = (
    Case(
        "grid, JSON",
        (Command(f"{_STUDY} --strategy sliding,blocks --depth 10,20 --json", "json", _STUDY_FILES),),
    ),
    Case(
        "grid, table, continued",
        (
            Command(f"{_STUDY} --strategy sliding --samples 1,2 --depth 12", "table", tolerance=0.06),
            Command(
                f"{_STUDY} --strategy sliding,setwise --samples 1 --depth 12 --baseline 'first stage'",
                "table",
                {"study/cells.csv": "csv"},
                tolerance=0.06,
            ),
        ),
    ),
    Case(
        "question, JSON",
        (Command(f"{_STUDY} --question strategy --depth 20 --noise weak --json", "json"),),
    ),
    Case("list", (Command(f"{_STUDY} --strategy sliding,blocks --list", "exists"),)),
    Case("list of the paper's study", (Command("study --config rank-k-paper --data {data} --list", "exists"),)),
    Case(
        "grid on a model server",
        (
            Command(
                f"{_STUDY.replace('--simulate', '--server {server:vllm} --concurrency 1')} --depth 6 --reasoning off,16"
                " --samples 1 --json",
                "json",
                {"study/cells.csv": "csv"},
                drop=_DEPENDS_ON_TIME,
            ),
        ),
    ),
    Case(
        "study in TOML",
        (
            Command(
                "study --config {work}/study.toml --output {work}/study --concurrency 1 --json --quiet",
                "json",
                {"study/cells.csv": "csv"},
                drop=_DEPENDS_ON_TIME,
            ),
        ),
        files={"study.toml": _STUDY_FILE},
    ),
)

# --- Distillation -----------------------------------------------------------------------------------

_SAMPLE = (
    "distill sample --runs {data}/run.trec --queries {data}/queries.jsonl --documents {data}/corpus.jsonl"
    " --output {work}/sets.jsonl --license CC0 --source golden"
)
_SELECT = "distill select --journal {work}/traces.sqlite --output {work}/rows.jsonl"

DISTILLATION = (
    Case("sample", (Command(f"{_SAMPLE} --sizes 5-8 --seed 3", files={"sets.jsonl": "jsonl"}),)),
    Case(
        "sample with judgments",
        (
            Command(
                f"{_SAMPLE} --sizes 4-6 --qrels {{data}}/qrels.trec --positives 1-2 --none 0.2 --skip-negatives 2",
                files={"sets.jsonl": "jsonl"},
            ),
        ),
    ),
    Case(
        "simulated teacher",
        (
            Command(f"{_SAMPLE} --sizes 5-6 --qrels {{data}}/qrels.trec"),
            Command(
                "distill trace --sets {work}/sets.jsonl --journal {work}/traces.sqlite --simulate {data}/qrels.trec"
                " --noise weak --samples 2 --concurrency 1 --quiet"
            ),
            Command(f"{_SELECT} --rule all --heldout {{work}}/heldout.jsonl --heldout-share 0.4"),
            Command(f"{_SELECT} --rule best --qrels {{data}}/qrels.trec", files={"rows.jsonl": "jsonl"}),
        ),
    ),
    Case(
        "labels as teacher",
        (
            Command(f"{_SAMPLE} --sizes 5-6 --ranks 1-12 --sets-per-query 1 --qrels {{data}}/qrels.trec"),
            Command(
                "distill trace --sets {work}/sets.jsonl --journal {work}/traces.sqlite --teacher labels"
                " --prompt compact --concurrency 1 --quiet"
            ),
            Command(f"{_SELECT} --rule short", files={"rows.jsonl": "jsonl"}),
        ),
    ),
    Case(
        "model as teacher",
        (
            Command(f"{_SAMPLE} --sizes 4-4 --ranks 1-12 --sets-per-query 1 --queries-count 2"),
            Command(
                "distill trace --sets {work}/sets.jsonl --journal {work}/traces.sqlite --server {server:vllm}"
                " --samples 2 --reasoning full --concurrency 1 --quiet"
            ),
            Command(f"{_SELECT} --rule paper", files={"rows.jsonl": "jsonl"}),
        ),
    ),
)

# --- Journals and first stages ----------------------------------------------------------------------

_JOURNALED = (
    "rerank --run {data}/two.trec --queries {data}/queries.jsonl --documents {data}/corpus.jsonl --quiet"
    " --output {work}/out.trec --journal {work}/calls.sqlite --server {server:vllm/truncated} --depth 8 --window 5"
    " --stride 3 --concurrency 1"
)

JOURNALS = (
    Case(
        "export, show and cost",
        (
            Command(_JOURNALED, files={"out.trec": "run"}),
            Command("journal export {work}/calls.sqlite", "jsonl"),
            Command("journal export {work}/calls.sqlite --query q2", "jsonl"),
            Command("journal show {work}/calls.sqlite", "exists"),
            Command("journal cost {work}/calls.sqlite", "rows", columns=-1),
            Command("journal cost {work}/calls.sqlite --price-in 2 --price-out 6", "rows", columns=5),
            Command("journal export {work}/calls.sqlite --query nothing", "none"),
        ),
    ),
    Case(
        "evaluated with its cost",
        (
            Command(_JOURNALED),
            Command(
                "evaluate --qrels {data}/qrels.trec {work}/out.trec --journal {work}/out.trec={work}/calls.sqlite"
                " --json --price-in 1 --price-out 3 --measures nDCG@10",
                "json",
            ),
        ),
    ),
    Case(
        "fitted noise",
        (
            Command(
                f"{_SIMULATED} --strategy sliding --noise strong --window 8 --stride 4 --journal {{work}}/j.sqlite"
            ),
            Command(
                "journal fit-noise {work}/j.sqlite --qrels {data}/qrels.trec --output {work}/noise.json",
                "none",
                {"noise.json": "json"},
                tolerance=1e-3,
            ),
            Command(f"{_SIMULATED} --strategy sliding --noise {{work}}/noise.json", **_RUN_AND_REPORT),
        ),
    ),
)

_RETRIEVE = (
    "retrieve --documents {data}/corpus.jsonl --queries {data}/queries.jsonl --output {work}/bm25.trec --depth 15"
)

RETRIEVAL = (
    *(
        Case(f"BM25, {language}", (Command(f"{_RETRIEVE} --language {language}", files={"bm25.trec": "run"}),))
        for language in ("en", "ru", "de", "zh")
    ),
    Case(
        "BM25 with other fields of the query",
        (
            Command(
                "retrieve --documents {data}/corpus.jsonl --queries {data}/topics.jsonl --output {work}/bm25.trec"
                " --depth 10 --query-fields title,description",
                files={"bm25.trec": "run"},
            ),
        ),
    ),
)

GROUPS: dict[str, tuple[Case, ...]] = {
    "strategies": STRATEGIES_ON_A_MODEL,
    "modes-1": MODES[: len(MODES) // 2],
    "modes-2": MODES[len(MODES) // 2 :],
    "behaviors": BEHAVIORS,
    "methods": METHODS,
    "options": OPTIONS,
    "simulated": SIMULATED,
    "evaluation": EVALUATION,
    "planning": PLANNING,
    "studies": STUDIES,
    "distillation": DISTILLATION,
    "journals": JOURNALS,
    "retrieval": RETRIEVAL,
    "service": SERVICE,
    "access": ACCESS,
    "pages": PAGES,
    "tool": TOOL,
}
"""Group -> its cases. Each group is one file of the record and one test."""
