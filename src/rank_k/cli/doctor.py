"""`rank-k doctor`: show what is installed, whether the model responds, and what it can do."""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rank_k import __version__
from rank_k.build import build_model, resolve_options
from rank_k.cli.model_options import add_server_options, api_key, given_options
from rank_k.errors import ModelError, RankKError
from rank_k.models.base import Model
from rank_k.models.grammar import matches_grammar
from rank_k.models.http import HttpModel
from rank_k.optional_deps import MODULES_OF_EXTRA
from rank_k.types import Message, Request, Response
from rank_k.window.parsing import parse_ranking
from rank_k.window.prompt import OFFICIAL_SHA256, default_template, read_template
from rank_k.window.scorers import query_log_probability


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probe",
        action="store_true",
        help="test the abilities of the model with a few small requests, and fail if it cannot rank",
    )
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="prompt template to check")
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    _print_row("rank-k", f"{__version__}, Python {platform.python_version()}, {sys.platform}")
    _print_extras()
    if args.prompt is not None:
        template = read_template(args.prompt)
        official = "; this is the prompt of the Rank-K paper" if template.sha256 == OFFICIAL_SHA256 else ""
        _print_row("prompt", f"{template.name}, sha256 {template.sha256}{official}")
    try:
        is_usable = asyncio.run(_check_model(args))
    except RankKError as error:
        _print_row("model", str(error))
        return 1
    return 0 if is_usable else 1


def _print_row(label: str, text: str) -> None:
    print(f"{label:<13} {text}")


def _print_extras() -> None:
    packages = metadata.packages_distributions()  # slow: it reads the metadata of every installed distribution
    for extra, modules in MODULES_OF_EXTRA.items():
        versions = [_installed_version(module, packages) for module in modules]
        installed = ", ".join(filter(None, versions))
        _print_row(f"[{extra}]", installed if all(versions) else f"not installed: pip install 'rank-k[{extra}]'")


def _installed_version(module: str, packages: Mapping[str, Sequence[str]]) -> str | None:
    """Return name and version of the distribution that installs `module`; None if it is not installed."""
    names = packages.get(module.partition(".")[0], ())
    name = module if "." in module else next(iter(names), "")  # many distributions share a namespace: backports.zstd
    return f"{name} {metadata.version(name)}" if name in names else None


async def _check_model(args: argparse.Namespace) -> bool:
    """Print the name of the model and, with --probe, its abilities. Return whether its rankings are usable."""
    options = {**given_options(args), "api_key": api_key(args.server, args.api_key_env)}
    resolved, local_model = resolve_options(args.model, options)
    model = build_model(args.model, local_model, resolved)
    try:
        await model.prepare()
        _print_server(model)
        return await _print_probes(model) if args.probe else True
    finally:
        await model.close()


def _print_server(model: Model) -> None:
    _print_row("model", f"{model.name} responds")
    note = ""
    if isinstance(model, HttpModel):
        _print_row("server", f"{model.url}, server type {model.server_type.name}")
        if not model.context_length_is_known:
            note = " (assumed, because the server does not report it; set it with --context-length)"
    _print_row("context", f"{model.context_length:,} tokens{note}")


async def _print_probes(model: Model) -> bool:
    """Print the result of each probe. Return whether the model ranked a window."""
    is_usable = True
    for label, probe in _probes().items():
        try:
            _print_row(label, await probe(model))
        except ModelError as error:
            _print_row(label, f"no: {error}")
            is_usable = is_usable and probe is not _probe_ranking
    return is_usable


async def _probe_ranking(model: Model) -> str:
    """Rank a window of three passages. Raises `ModelError` if the answer has no usable ranking."""
    passages = ["Rain is water that falls from clouds.", "The sky is blue since air scatters blue light.", "Cats purr."]
    messages = default_template().messages("why is the sky blue", passages)
    response = await model.complete(Request(messages, max_tokens=min(2000, model.context_length // 2), seed=0))
    answer = parse_ranking(response.text, 3, reasoning=response.reasoning, finish_reason=response.finish_reason)
    if not answer.is_valid:
        text = " ".join(response.text.split())[:200]
        raise ModelError(
            f"the answer has no usable ranking: {text!r}" if text else "the answer is empty",
            "give a model that follows instructions, and --server-type if the type of the server was not detected",
        )
    ranking = " > ".join(" = ".join(f"[{number}]" for number in tier) for tier in answer.tiers)
    trace_place = "in a separate field" if response.reasoning else "in the text" if answer.trace else "none"
    usage = response.usage
    repairs = ", ".join(f"{kind} {count}" for kind, count in answer.repairs.items())
    return (
        f"{ranking} in {response.seconds:.1f} s; reasoning {trace_place};"
        f" {usage.prompt_tokens} tokens in, {usage.completion_tokens} out{' (estimated)' if usage.estimated else ''};"
        f" {f'repairs: {repairs}' if repairs else 'no repairs'}"
    )


async def _probe_tokens(model: Model) -> str:
    tokens = await model.count_tokens("why is the sky blue")
    return "not supported: lengths are estimated" if tokens is None else f"exact (five words: {tokens})"


@dataclass(frozen=True)
class _Probe:
    """A small request that shows whether the model has a capability.

    Attributes:
        request: The request.
        describe: Returns the result of the probe as text, given the response.
        requirements: The capabilities that the request needs (fields of `Capabilities`), each with the text to print
            if the model lacks it.
    """

    request: Request
    describe: Callable[[Response], str]
    requirements: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, model: Model) -> str:
        for name, text in self.requirements.items():
            if not getattr(model.capabilities, name):
                return text
        return self.describe(await model.complete(self.request))


def _probes() -> dict[str, Callable[[Model], Awaitable[str]]]:
    def request(text: str, max_tokens: int, **options: Any) -> Request:
        return Request((Message("user", text),), max_tokens, 0.0, seed=0, **options)

    return {
        "order": _probe_ranking,
        "tokens": _probe_tokens,
        "reasoning off": _Probe(
            request("What is 2 + 2? Answer with the number.", 64, reasoning=False), _describe_reasoning
        ),
        "prefill": _Probe(
            request("Say the alphabet.", 8, prefill="The alphabet goes: A B C D E F"),
            _describe_prefill,
            {"prefill": "not supported: truncated reasoning is sent back in a new turn"},
        ),
        "grammar": _Probe(
            request("Tell me a story.", 64, reasoning=False, constrain_to_ranking_of=4),
            _describe_grammar,
            {"grammar": "not supported: answers are unconstrained, and repaired if necessary"},
        ),
        "budget": _Probe(
            request("How many primes are below 100? Think it through.", 600, reasoning_budget=32),
            _describe_budget,
            {
                "reasoning_budget": "not supported: truncated reasoning needs a second call for the answer",
                "reasons": "not needed: the model does not reason",
            },
        ),
        "logprobs": _Probe(
            request("Say yes.", 4, reasoning=False, logprobs=True),
            lambda response: f"supported ({len(response.tokens)} tokens)" if response.tokens else "ignored",
            {"logprobs": "not supported: --reasoning auto estimates confidence from a second response"},
        ),
        "likelihood": _Probe(
            request("The sky is", 1, forced_text=" blue"),
            _describe_likelihood,
            {"scores_given_text": "not supported: --method likelihood does not work with this server"},
        ),
    }


def _describe_reasoning(response: Response) -> str:
    has_reasoned = response.reasoning or "<think>" in response.text
    return "ignored: the model reasons anyway" if has_reasoned else "supported, or the model does not reason"


def _describe_prefill(response: Response) -> str:
    text = " ".join(response.text.split())
    return "supported" if text[:1].upper() == "G" else f"accepted, but the response continues with {text[:40]!r}"


def _describe_grammar(response: Response) -> str:
    text = (response.text or response.reasoning or "").rpartition("</think>")[2]
    return "supported" if matches_grammar(text, 4) else f"ignored: the response is {' '.join(text.split())[:40]!r}"


def _describe_budget(response: Response) -> str:
    tokens = response.usage.reasoning_tokens
    if not tokens:
        return "unknown, because the model did not reason"
    return f"{'supported' if tokens <= 40 else 'ignored'}: {tokens} reasoning tokens with a budget of 32"


def _describe_likelihood(response: Response) -> str:
    value = query_log_probability(response, " blue")
    if value is None:
        return f"ignored: the response is {response.text[:40]!r}"
    return f"supported (' blue' after 'The sky is': {value:.2f})"
