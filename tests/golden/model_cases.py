"""Golden cases that send requests to a model server: part of `tests.golden.cases`, under the same rule."""

from __future__ import annotations

from typing import Any

from tests.golden.steps import Case, Command, Content

_RERANK = (
    "rerank --queries {data}/queries.jsonl --documents {data}/corpus.jsonl --output {work}/out.trec"
    " --report {work}/report.json --concurrency 1 --quiet"
)
_FILES: dict[str, Content] = {"out.trec": "run", "report.json": "json"}
_SHORT: dict[str, Any] = {"files": _FILES, "drop": ("settings", "per_query")}
"""Rankings and the report, without the settings, which `OPTIONS` records."""


def _rerank(name: str, options: str, *, run: str = "one", embedded: bool = False, times: int = 1) -> Case:
    step = Command(f"{_RERANK} --run {{data}}/{run}.trec {options}", **_SHORT)
    return Case(name, (step,) * times, embedded)


# --- Strategies -------------------------------------------------------------------------------------

STRATEGIES_ON_A_MODEL = (
    *(
        _rerank(strategy, f"--server {{server:vllm}} --strategy {strategy} --window 6 --stride 3 --depth 18")
        for strategy in ("sliding", "topdown", "blocks", "tournament", "setwise")
    ),
    _rerank("single", "--server {server:vllm} --strategy single", run="run"),
    _rerank(
        "blocks without the first stage",
        "--server {server:vllm} --strategy blocks --window 6 --depth 12 --first-stage-weight 0",
    ),
    *(_rerank(f"preset {preset}", f"--server {{server:vllm}} --preset {preset}") for preset in ("paper", "fast")),
    *(
        _rerank(f"preset {preset}", f"--server {{server:vllm}} --preset {preset}")
        for preset in ("balanced", "thorough")
    ),
    _rerank("sliding, two queries", "--server {server:vllm} --window 10 --stride 5", run="two"),
)

# --- Reasoning on every server type -----------------------------------------------------------------

SERVER_TYPES = ("vllm", "sglang", "llamacpp", "deepseek", "openrouter", "openai", "plain")
_MODEL = "--model golden-model --window 6 --stride 3 --depth 6"

MODES = tuple(
    _rerank(
        f"{server_type}, reasoning {mode}",
        f"--server {{server:{server_type}}} --server-type {server_type} {_MODEL} --reasoning {mode}",
    )
    for server_type in SERVER_TYPES
    for mode in ("full", "off", "auto", "24")
)

# --- Responses that need repair, and refusals ---------------------------------------------------------

_TWO = "--window 5 --stride 3 --depth 8"

BEHAVIORS = (
    *(
        _rerank(f"{server_type}, truncated reasoning", f"--server {{server:{server_type}/truncated}} {_TWO}")
        for server_type in ("vllm", "sglang", "llamacpp", "plain")
    ),
    *(
        _rerank(f"{server_type}, prefill refused", f"--server {{server:{server_type}/truncated+no-prefill}} {_TWO}")
        for server_type in ("vllm", "sglang", "llamacpp")
    ),
    _rerank("plain, malformed answers", "--server {server:plain/malformed} --window 5 --stride 2 --depth 25"),
    _rerank("vllm, malformed answers", "--server {server:vllm/malformed} --window 5 --stride 2 --depth 25"),
    _rerank(
        "malformed and unconstrained", f"--server {{server:vllm/malformed}} {_TWO} --constrained off --reasoning off"
    ),
    _rerank("inline reasoning", f"--server {{server:vllm/inline}} {_TWO}"),
    _rerank("no opening tag", f"--server {{server:plain/missing-open}} {_TWO}"),
    _rerank("truncated inline reasoning, budget", f"--server {{server:plain}} {_TWO} --reasoning 12"),
    _rerank("grammar refused", f"--server {{server:vllm/no-grammar}} {_TWO} --reasoning off"),
    _rerank("reasons although off", f"--server {{server:vllm/always-reasons}} {_TWO} --reasoning off"),
    _rerank("budget ignored", f"--server {{server:vllm/budget-ignored}} {_TWO} --reasoning 16"),
    _rerank("budget refused", f"--server {{server:vllm/no-budget}} {_TWO} --reasoning 16"),
    _rerank("template opens the reasoning", f"--server {{server:llamacpp/truncated+opens-reasoning}} {_TWO}"),
    _rerank("vllm template opens the reasoning", f"--server {{server:vllm/truncated+opens-reasoning}} {_TWO}"),
    _rerank("repetition", f"--server {{server:vllm/loops}} {_TWO}"),
    _rerank("small context", "--server {server:vllm/small-context} --depth 6 --window 4 --stride 2"),
    _rerank("no tokenizer", "--server {server:vllm/no-tokenize} --depth 5 --passage-tokens 8"),
    _rerank("not streamed", f"--server {{server:sglang/no-stream}} {_TWO}"),
    _rerank("no list of models", f"--server {{server:plain/no-models}} --model golden-model {_TWO}"),
    _rerank("overloaded once", "--server {server:vllm/busy} --depth 4"),
    _rerank("dropped once", "--server {server:vllm/drop} --depth 4"),
    _rerank("broken after the last event", "--server {server:vllm/breaks-after-done} --depth 4"),
    _rerank(
        "content filter", f"--server {{server:openai/content-filter}} --server-type openai {_TWO} --model golden-model"
    ),
    _rerank("llamacpp, samples and budget", "--server {server:llamacpp} --depth 4 --samples 3 --reasoning 30"),
    *(
        Case(f"doctor, {kind}", (Command(f"doctor --probe --server {{server:{kind}}}", "exists"),))
        for kind in ("vllm", "llamacpp", "sglang", "plain")
    ),
)

# --- Methods and the embedded student ---------------------------------------------------------------

METHODS = (
    *(
        _rerank(f"llamacpp, {name}", f"--server {{server:llamacpp}} --method {method} --depth 5")
        for name, method in (("comparison", "listwise"), ("likelihood", "likelihood"), ("both", "combined"))
    ),
    _rerank(
        "llamacpp, both, sliding",
        "--server {server:llamacpp} --method combined --depth 6 --strategy sliding --window 4 --stride 2",
    ),
    _rerank("llamacpp, likelihood, Russian", "--server {server:llamacpp} --method likelihood --depth 3", run="russian"),
    _rerank("likelihood without logprobs", "--server {server:vllm} --method likelihood --depth 3"),
    _rerank("student", "--depth 10", embedded=True),
    _rerank("student, Russian", "--depth 4", embedded=True, run="russian"),
    _rerank("student, all candidates", "", embedded=True),
    _rerank("student, comparison", "--method listwise --depth 10", embedded=True),
    _rerank("student, likelihood", "--method likelihood --depth 5", embedded=True),
    _rerank("student, window and reasoning", "--depth 8 --window 4 --stride 2 --reasoning off", embedded=True),
    _rerank("student, no weight of the first stage", "--depth 6 --first-stage-weight 0", embedded=True),
    _rerank("bare weights", "--model smollm2-135m-instruct --depth 4", embedded=True),
    _rerank("bare weights, comparison", "--model smollm2-135m-instruct --method listwise --depth 5", embedded=True),
    _rerank("bare weights with a prompt", "--prompt compact --depth 5", embedded=True),
)

# --- Options ----------------------------------------------------------------------------------------

_FULL: dict[str, Any] = {"files": _FILES}
_LONG = (
    "rerank --run {data}/long.trec --queries {data}/queries.jsonl --documents {data}/long.jsonl --quiet --concurrency 1"
    " --output {work}/out.trec --report {work}/report.json"
)


def _option(name: str, options: str) -> Case:
    step = Command(f"{_RERANK} --run {{data}}/one.trec --server {{server:vllm}} --depth 6 {options}", **_SHORT)
    return Case(name, (step,))


OPTIONS = (
    Case(
        "defaults, with settings",
        (Command(f"{_RERANK} --run {{data}}/run.trec --server {{server:vllm}} --depth 5 --noise none", **_FULL),),
    ),
    _option("samples", "--samples 3"),
    _rerank("samples that differ", "--server {server:vllm/unsure} --depth 6 --window 4 --stride 2 --samples 3"),
    _option("samples of a direct answer", "--samples 4 --reasoning off --window 4 --stride 2"),
    _option("unconstrained", "--constrained off --reasoning off"),
    _option("prompt compact", "--prompt compact"),
    _option("prompt file", "--prompt {data}/template.txt"),
    _option("prompt of rank_llm", "--prompt {data}/template.yaml"),
    _option("temperature none", "--temperature none"),
    _option("temperature 0 and top-p", "--temperature 0 --top-p 0.9"),
    _option("max-tokens", "--max-tokens 60"),
    _option("passage-tokens", "--passage-tokens 6"),
    _option("context", "--context-length 1500"),
    _option("key", "--api-key-env GOLDEN_MODEL_KEY"),
    _option("revision", "--revision abc --model golden-model"),
    _option("prices, tag and strict", "--price-in 1.5 --price-out 6 --tag mine --strict"),
    _option("token budget", "--token-budget 300 --window 3 --stride 1"),
    _option("unknown option", "--nothing 3"),
    _option("wrong model", "--model another"),
    _option("unknown dialect", "--server-type nothing"),
    _rerank("long passage and markers", "--server {server:vllm} --window 25", run="two"),
    _rerank("long passage, llamacpp", "--server {server:llamacpp} --reasoning off --passage-tokens 100", run="two"),
    _rerank("again from the journal", "--server {server:vllm} --depth 8 --window 5 --stride 3", times=2),
    Case(
        "fields of the query",
        (
            Command(
                _RERANK.replace("queries.jsonl", "topics.jsonl")
                + " --run {data}/one.trec --server {server:vllm} --depth 4 --query-fields title,description,narrative",
                **_SHORT,
            ),
        ),
    ),
    *(
        Case(f"long documents, {name}", (Command(f"{_LONG} --server {{server:vllm}} --noise none {options}", **_FULL),))
        for name, options in (
            ("not split", ""),
            ("--split 40", "--maxp-tokens 40"),
            ("--split 40 --overlap 10", "--maxp-tokens 40 --maxp-overlap 10"),
            ("--split 30 --passages-per-document 2 --depth 3", "--maxp-tokens 30 --maxp-passages 2 --depth 3"),
        )
    ),
    Case(
        "long documents, simulated",
        (
            Command(
                f"{_LONG} --simulate {{data}}/long.qrels --noise none --maxp-tokens 30 --window 6 --stride 3", **_SHORT
            ),
        ),
    ),
)
