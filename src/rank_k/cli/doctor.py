"""`rank-k doctor`: what is installed, which server answers, what it can do."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli.model_options import add_server_options, api_key, given_options

if TYPE_CHECKING:
    from rank_k.models.base import Model
    from rank_k.types import Request

NAME = "doctor"
HELP = "say what is installed, which model answers, and (with --probe) what it can do"
EXAMPLE = "rank-k doctor --probe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--probe", action="store_true", help="ask the model a few small questions")
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="a prompt template to look at")
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    from rank_k import __version__
    from rank_k.errors import RankKError

    _print_row("rank-k", f"{__version__}, Python {platform.python_version()}, {sys.platform}")
    _print_extras()
    if args.prompt is not None:
        _print_prompt(args.prompt)
    try:
        model = _make_model(args)
    except RankKError as error:
        _print_row("model", str(error))
        return 1
    import asyncio

    return asyncio.run(_check_model(model, args.probe))


def _print_row(label: str, text: str) -> None:
    print(f"{label:<13} {text}")


def _print_extras() -> None:
    from rank_k.optional_deps import MODULES_OF_EXTRA

    packages = metadata.packages_distributions()  # reads what every installed package brings: once is enough

    def with_version(module: str) -> str:
        names = packages.get(module, [])
        return f"{module} {metadata.version(names[0])}" if names else module

    for extra, modules in MODULES_OF_EXTRA.items():
        missing = [module for module in modules if find_spec(module) is None]
        installed = ", ".join(with_version(module) for module in modules if module not in missing)
        _print_row(f"[{extra}]", f"not installed: pip install 'rank-k[{extra}]'" if missing else installed)


def _print_prompt(path: Path) -> None:
    from rank_k.window.prompt import OFFICIAL_SHA256, read_template

    template = read_template(path)
    official = ", the Rank-K authors' own" if template.sha256 == OFFICIAL_SHA256 else ""
    _print_row("prompt", f"{template.name}, sha256 {template.sha256}{official}")


def _make_model(args: argparse.Namespace) -> Model:
    from rank_k.build import build_model, find_local_model
    from rank_k.options import resolve

    options = {**given_options(args), "api_key": api_key(args.server, args.api_key_env)}
    local_model = find_local_model(args.model, options)
    return build_model(args.model, local_model, resolve(options, embedded=local_model is not None))


async def _check_model(model: Model, probe: bool) -> int:
    from rank_k.errors import ModelError, RankKError
    from rank_k.models.http import HttpModel

    try:
        await model.prepare()
        _print_row("model", f"{model.name} answers")
        if isinstance(model, HttpModel):
            _print_row("server", f"{model.url}, server type {model.server_type.name}")
        _print_row("context", f"{model.context_length:,} tokens{_assumed_note(model)}")
        if probe:
            for label, probe_model in PROBES.items():
                try:
                    _print_row(label, await probe_model(model))
                except ModelError as error:
                    _print_row(label, f"no: {error}")
    except RankKError as error:
        _print_row("model", str(error))
        return 1
    finally:
        await model.close()
    return 0


def _assumed_note(model: Model) -> str:
    from rank_k.models.http import HttpModel

    assumed = isinstance(model, HttpModel) and not model.context_length_is_known
    return " (assumed: the server does not say; --context-length sets it)" if assumed else ""


async def _probe_ranking(model: Model) -> str:
    """One window of three passages through the whole path."""
    from rank_k.types import Request
    from rank_k.window.parsing import parse_ranking
    from rank_k.window.prompt import default_template

    passages = ["Rain is water that falls from clouds.", "The sky is blue since air scatters blue light.", "Cats purr."]
    messages = default_template().messages("why is the sky blue", passages)
    response = await model.complete(Request(messages, max_tokens=min(2000, model.context_length // 2), seed=0))
    answer = parse_ranking(response.text, 3, reasoning=response.reasoning, finish_reason=response.finish_reason)
    trace_place = "in a field of its own" if response.reasoning else "in the text" if answer.trace else "none"
    ranking = (
        " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in answer.tiers) if answer.is_valid else "not usable"
    )
    usage, repairs = response.usage, _format_repairs(dict(answer.repairs))
    return (
        f"{ranking} in {response.seconds:.1f} s; trace {trace_place}; {usage.prompt_tokens} tokens in,"
        f" {usage.completion_tokens} out{' (estimated)' if usage.estimated else ''}; {repairs}"
    )


def _format_repairs(repairs: dict[str, int]) -> str:
    return "repairs: " + ", ".join(f"{k} {n}" for k, n in repairs.items()) if repairs else "no repairs"


async def _probe_tokens(model: Model) -> str:
    tokens = await model.count_tokens("why is the sky blue")
    return "not offered: lengths are estimated" if tokens is None else f"exact (five words: {tokens})"


async def _probe_no_reasoning(model: Model) -> str:
    """Whether asking for the answer at once is honored."""
    response = await model.complete(_make_request("What is 2 + 2? Answer with the number.", 64, reasoning=False))
    reasoning = response.reasoning or ("<think>" in response.text and response.text)
    return "ignored: the model thinks all the same" if reasoning else "honored, or a model without a thought"


async def _probe_prefill(model: Model) -> str:
    """Whether the model goes on from a given beginning."""
    if not model.capabilities.prefill:
        return "not offered: cut thoughts are handed back in a fresh turn"
    prefill = "The alphabet goes: A B C D E F"
    response = await model.complete(replace(_make_request("Say the alphabet.", 8), prefill=prefill))
    continues = "".join(response.text.split())[:1].upper() == "G"
    return "honored" if continues else f"accepted; it went on with {' '.join(response.text.split())[:40]!r}"


async def _probe_grammar(model: Model) -> str:
    """Whether an answer is held to a ranking that nobody would say by himself."""
    from rank_k.models.grammar import matches_grammar

    if not model.capabilities.grammar:
        return "not offered: answers are free, and repaired where they must be"
    response = await model.complete(
        replace(_make_request("Tell me a story.", 64, reasoning=False), constrain_to_ranking_of=4)
    )
    text = (response.text or response.reasoning or "").rpartition("</think>")[2]
    return "honored" if matches_grammar(text, 4) else f"forgotten: it said {' '.join(text.split())[:40]!r}"


async def _probe_reasoning_budget(model: Model) -> str:
    """Whether the server keeps a reasoning budget itself."""
    if not model.capabilities.reasoning_budget:
        return "not offered: thoughts are ended by the token limit and closed from here"
    if not model.capabilities.reasons:
        return "not needed: the model has no thought of its own"
    response = await model.complete(
        replace(_make_request("How many primes are below 100? Think it through.", 600), reasoning_budget=32)
    )
    reasoning_tokens = response.usage.reasoning_tokens
    if not reasoning_tokens:
        return "cannot be told: the model did not think"
    return (
        f"honored ({reasoning_tokens} of 32 tokens)"
        if reasoning_tokens <= 40
        else f"forgotten: it spent {reasoning_tokens} of 32 tokens"
    )


async def _probe_logprobs(model: Model) -> str:
    """Whether the probabilities of tokens are told."""
    if not model.capabilities.logprobs:
        return "not offered: confidence comes from a second look"
    response = await model.complete(replace(_make_request("Say yes.", 4, reasoning=False), logprobs=True))
    return f"told ({len(response.tokens)} tokens)" if response.tokens else "forgotten"


async def _probe_likelihood(model: Model) -> str:
    """Whether a text that is given is told the probability of."""
    from rank_k.window.scorers import query_log_probability

    if not model.capabilities.scores_given_text:
        return "not offered: --method likelihood is not for this server"
    response = await model.complete(replace(_make_request("The sky is", 1), forced_text=" blue"))
    log_likelihood = query_log_probability(response, " blue")
    return (
        f"forgotten: it said {response.text[:40]!r}"
        if log_likelihood is None
        else f"told (' blue' after 'The sky is': {log_likelihood:.2f})"
    )


def _make_request(text: str, max_tokens: int, reasoning: bool | None = None) -> Request:
    from rank_k.types import Message, Request

    return Request((Message("user", text),), max_tokens, 0.0, seed=0, reasoning=reasoning)


PROBES: dict[str, Callable[[Model], Awaitable[str]]] = {
    "order": _probe_ranking,
    "tokens": _probe_tokens,
    "reasoning off": _probe_no_reasoning,
    "prefill": _probe_prefill,
    "grammar": _probe_grammar,
    "budget": _probe_reasoning_budget,
    "logprobs": _probe_logprobs,
    "likelihood": _probe_likelihood,
}
