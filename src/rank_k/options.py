"""All options of a reranker, each defined once.

An option is a field of one of the dataclasses below. Its default, help, kind of value and visibility are part of the
field. The following are views of these fields, so that a new option is one line here:

- command-line flags (`rank_k.cli.model_options`) and the keyword arguments of `Reranker`,
- the axes of a study and its TOML keys (`rank_k.study.grid`),
- the settings of a distilled model and of its recipe (`student=True`),
- the fields of an HTTP request and of the MCP tool (`public=True`; nothing else is exposed to clients),
- the settings that a journal stores for a run.

`resolve` combines the layers default, student, preset and user, and records which one each value comes from.
Nothing here reads files or calls a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

from rank_k.errors import InputError
from rank_k.option_values import (
    ANY,
    REASONING,
    STRATEGY,
    STRATEGY_NAMES,
    SWITCH,
    TOKENS,
    ValueKind,
    choice,
    number,
    whole_number,
)
from rank_k.types import ScoringMethod

DEFAULT_MAX_TOKENS = 8000
"""Of reasoning and answer together, as in the Rank-K paper."""

# --- the definition of an option -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of an option. `name` and `default` are those of its field.

    Attributes:
        help: A sentence about the value; the default is appended to it.
        kind: The kind of value.
        default_text: The default as users read it, if it depends on the model.
        metavar: The placeholder of the flag's value.
        public: Whether clients of `serve` and `mcp` may set it for a request.
        student: Whether distilled models have their own value.
        prefix: The text before the value in the name of a study's cell (default: the option's name).
    """

    name: str
    default: Any
    help: str
    kind: ValueKind
    default_text: str = ""
    metavar: str = "N"
    public: bool = False
    student: bool = False
    prefix: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_nullable(self) -> bool:
        """Whether None is a value of this option and does not mean "not given"."""
        return "or none for" in self.kind.expected

    @property
    def help_text(self) -> str:
        default = self.default_text or ("" if self.default is None else str(self.default))
        return f"{self.help} (default: {default})" if default else self.help


def option(default: Any, help: str, kind: ValueKind = ANY, *, repr: bool = True, **details: Any) -> Any:
    """Return the dataclass field of an option. `details`: further attributes of `Option`."""
    return field(default=default, repr=repr, metadata={"help": help, "kind": kind, **details})


def replace_default(group: type, name: str, default: Any) -> Any:
    """Return the field `name` of `group` with another default, for a subclass."""
    [spec] = [spec for spec in fields(group) if spec.name == name]
    return field(default=default, metadata=spec.metadata)


def options_of(group: type) -> dict[str, Option]:
    """Return the options that are fields of the dataclass `group`, by name."""
    return {
        spec.name: Option(spec.name, spec.default, **spec.metadata) for spec in fields(group) if "kind" in spec.metadata
    }


# --- the options -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the model is reached."""

    server: str | None = option(
        None,
        "OpenAI-compatible server, or several that serve the same model, separated by commas; without it, the embedded"
        " model",
        metavar="URL",
    )
    api_key: str | None = option(None, "key of the server", repr=False)
    server_type: str = option("auto", "type of the server, see docs/reference/servers.md", metavar="NAME")
    revision: str = option("", "revision of the model, to distinguish weights that have the same name", metavar="TEXT")
    context_length: int | None = option(
        None, "context length of the model, if the server does not report it", whole_number(1), metavar="TOKENS"
    )
    concurrency: int | None = option(
        None, "concurrent requests to the model", whole_number(1), default_text="16 per server; embedded models: 1"
    )
    read_timeout: float | None = option(
        None,
        "fail a request after S seconds without data",
        number(exclusive=True),
        default_text="no limit",
        metavar="S",
    )


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Which windows are shown to the model, and how they are combined."""

    method: ScoringMethod | None = option(
        None,
        "scoring method: compare the passages of a window (listwise), score the query after each passage (likelihood),"
        " or both and the first stage (combined)",
        choice("listwise", "likelihood", "combined"),
        metavar="{listwise,likelihood,combined}",
        default_text="the distilled model's; likelihood for other embedded weights, unless an option of listwise"
        " ranking is given; else listwise",
        student=True,
    )
    strategy: Any = option(
        "sliding",
        f"which windows are compared: {', '.join(STRATEGY_NAMES)}, the name of a preset, or MODULE:NAME",
        STRATEGY,
        metavar="NAME",
        public=True,
        student=True,
    )
    depth: int = option(100, "number of candidates to rerank per query", whole_number(1), prefix="d")
    window: int = option(20, "number of passages in a window", whole_number(1), student=True, prefix="w")
    stride: int = option(
        10, "number of passages that a sliding window moves by", whole_number(1), student=True, prefix="s"
    )
    first_stage_weight: float = option(
        1.0,
        "weight of the first-stage ranking, for the strategy blocks and the method combined",
        number(),
        metavar="W",
        prefix="a",
    )


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a window is ranked: prompt, reasoning, sampling and limits."""

    reasoning: str = option(
        "full",
        "reasoning per window: full, off, auto, or a number of tokens",
        REASONING,
        metavar="MODE",
        public=True,
        student=True,
    )
    samples: int = option(
        1, "rankings per window, each with the passages in another order", whole_number(1), prefix="x"
    )
    passage_tokens: int = option(
        450,
        "truncate passages to N tokens",
        whole_number(1),
        default_text="450; query likelihood: 64",
        student=True,
        prefix="p",
    )
    max_tokens: int | None = option(
        None,
        "maximum completion tokens, reasoning included",
        whole_number(1),
        default_text="8000; embedded models: 512",
        student=True,
        prefix="m",
    )
    temperature: float | None = option(
        0.5,
        "sampling temperature; none leaves it to the server",
        number(none="the server's own"),
        metavar="T",
        student=True,
        prefix="t",
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: the most likely tokens up to probability P",
        number(0, 1, none="the server's own"),
        metavar="P",
        prefix="top",
    )
    min_p: float | None = option(
        None,
        "sample only tokens with at least P times the probability of the most likely one, where the server supports it",
        number(0, 1, none="the server's own"),
        metavar="P",
    )
    seed: int = option(0, "number added to the seed of each request, to sample other answers", whole_number(0))
    constrained: bool = option(
        True,
        "auto: constrained decoding makes every answer a valid ranking, where the server supports it; or off",
        SWITCH,
        default_text="auto",
        metavar="{auto,off}",
        prefix="constrained",
    )
    prompt: Any = option(
        None, "prompt template: compact, or a file (text, rerank.py or YAML)", metavar="FILE", default_text="Rank-K's"
    )


@dataclass(frozen=True, kw_only=True)
class StudentOptions(InferenceOptions, RankingOptions):
    """The options of a distilled model after its training: the table `[asking]` of a recipe."""

    method: ScoringMethod | None = replace_default(RankingOptions, "method", "listwise")
    max_tokens: int | None = replace_default(InferenceOptions, "max_tokens", DEFAULT_MAX_TOKENS)
    prompt: Any = replace_default(InferenceOptions, "prompt", "listwise")


@dataclass(frozen=True, kw_only=True)
class LongDocumentOptions:
    """How long documents are split into passages (MaxP: a document ranks where its best passage ranks)."""

    maxp_tokens: int | None = option(
        None, "split documents into passages of N tokens; the best one counts", whole_number(1), prefix="split"
    )
    maxp_overlap: int | None = option(
        None, "number of tokens that a passage repeats of the one before", whole_number(0), prefix="overlap"
    )
    maxp_passages: int | None = option(
        None, "maximum number of passages per document", whole_number(1), default_text="all", prefix="first"
    )


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """When the work stops early; every query then gets its best ranking so far."""

    max_seconds: float | None = option(
        None, "stop after S seconds and write the best ranking so far", number(exclusive=True), metavar="S"
    )
    token_budget: int | None = option(
        None, "stop after N tokens, such as 2M, and write the best ranking so far", TOKENS
    )


Source = Literal["default", "student", "preset", "user"]


@dataclass(frozen=True, kw_only=True)
class RerankOptions(InferenceOptions, RankingOptions, ModelOptions):
    """The options of a `Reranker`, with `sources`: where each value comes from."""

    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @property
    def server_urls(self) -> tuple[str, ...]:
        """The URLs in `server`, which are separated by commas."""
        return tuple(url.strip() for url in (self.server or "").split(",") if url.strip())

    def settings(self) -> dict[str, Any]:
        """Return the options that decide the rankings, by name, as JSON has them: the settings of a journal's run."""
        if self.method == "likelihood":
            return {name: getattr(self, name) for name in ("method", "depth", "passage_tokens")}
        return {
            name: value if isinstance(value, str | int | float | None) else getattr(value, "name", type(value).__name__)
            for name in (*options_of(RankingOptions), *options_of(InferenceOptions))
            for value in (getattr(self, name),)
        }


OPTIONS: Mapping[str, Option] = MappingProxyType(options_of(RerankOptions))
"""The options of a reranker, by name."""

STUDENT_OPTIONS: Mapping[str, Option] = {name: spec for name, spec in OPTIONS.items() if spec.student}
"""The options of which distilled models have their own values."""

PUBLIC_OPTIONS: Mapping[str, Option] = {name: spec for name, spec in OPTIONS.items() if spec.public}
"""The options that a client may set for its request."""

STUDY_OPTIONS: Mapping[str, Option] = {
    name: spec
    for group in (RankingOptions, InferenceOptions, LongDocumentOptions)
    for name, spec in options_of(group).items()
    if name != "prompt"
}
"""The axes of a study. The prompt belongs to one of its models."""

LISTWISE_ONLY = ("strategy", "reasoning", "prompt", "samples")
"""Options without a meaning for the method "likelihood"."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "strategy": "sliding",
        "depth": 100,
        "window": 20,
        "stride": 10,
        "reasoning": "full",
        "passage_tokens": 450,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "temperature": 0.5,
        "top_p": None,
    },
    "fast": {"strategy": "fast", "window": 20, "stride": 10},
    "balanced": {"strategy": "balanced", "window": 20, "stride": 10},
    "thorough": {"strategy": "thorough", "window": 20, "stride": 10},
}
"""Options by the name of a preset. "paper" has the settings of the Rank-K paper (arXiv 2505.14432, section 3); the
others are blocks with 6, 7 or 12 windows per 100 candidates (`rank_k.strategies.PRESETS`)."""

_LIKELIHOOD_PASSAGE_TOKENS = 64
"""Chosen on collections that nothing is measured on, see docs/results/query-likelihood.md."""


def parse_option(name: str, value: Any, options: Mapping[str, Option] = OPTIONS, owner: str = "a reranker") -> Any:
    """Return the value of an option, parsed from the text of a flag or a value of TOML, JSON or Python.

    Raises:
        InputError: If there is no such option among `options`, or the value has another kind or is out of bounds.
    """
    spec = options.get(name)
    if spec is None:
        matches = get_close_matches(name, options, n=1)
        remedy = f"did you mean {matches[0]}?" if matches else f"the options are {', '.join(options)}"
        raise InputError(f"{owner} has no option {name!r}", remedy)
    if value in (None, "none") and spec.default is None:
        return None
    try:
        return spec.kind.parse(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}", f"give {spec.kind.expected}") from error


_NAMES_OF_OTHERS = {"base_url": "server", "api_base": "server", "url": "server", "think": "reasoning"}
"""Names that other libraries have for options."""


def check_names(names: Iterable[str]) -> None:
    """Raise `TypeError` for the first name that is not an option, with a suggestion."""
    for name in names:
        if name not in OPTIONS:
            matches = get_close_matches(name, OPTIONS, n=1)
            suggestion = _NAMES_OF_OTHERS.get(name) or (matches[0] if matches else "")
            hint = f"; did you mean {suggestion!r}?" if suggestion else ""
            raise TypeError(f"Reranker() got an unexpected keyword argument {name!r}{hint}")


def resolve(
    given: Mapping[str, Any],
    *,
    preset: str | None = None,
    student: Mapping[str, Any] = MappingProxyType({}),
    embedded: bool = False,
    default_method: ScoringMethod = "listwise",
) -> RerankOptions:
    """Return the options of a reranker: the defaults, then those of the student, the preset and the user.

    Args:
        given: The values given by the user, by name. None means "not given", except for options where it is a value.
        preset: A name of `PRESETS`. A given option that contradicts it is an error.
        student: The settings of a distilled model.
        embedded: Whether the model runs on this machine.
        default_method: The method for which the model is suited if it is not a student.

    Raises:
        InputError: If an option is out of bounds or contradicts another one.
        TypeError: If an option does not exist.
    """
    check_names(given)
    user = {
        name: parse_option(name, value)
        for name, value in given.items()
        if value is not None or OPTIONS[name].is_nullable
    }
    if preset and preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}", f"write one of {', '.join(PRESETS)}")
    preset_values = PRESETS[preset] if preset else {}
    for name, value in preset_values.items():
        if name in user and user[name] != value:
            raise InputError(f"preset {preset} and {name} {user[name]} exclude each other", "leave one out")
    server_count = max(len(str(given.get("server") or "").split(",")), 1)
    defaults = {
        "max_tokens": 512 if embedded else DEFAULT_MAX_TOKENS,
        "concurrency": 1 if embedded else 16 * server_count,
    }
    layers: tuple[tuple[Source, Mapping[str, Any]], ...] = (
        ("default", defaults),
        ("student", student),
        ("preset", preset_values),
        ("user", user),
    )
    sources: dict[str, Source] = dict.fromkeys(OPTIONS, "default")
    values: dict[str, Any] = {}
    for source, layer in layers:
        values |= layer
        sources |= dict.fromkeys(layer, source)
    given_options = {*preset_values, *user} - ({"samples"} if user.get("samples") == 1 else set())
    listwise_options = [name for name in LISTWISE_ONLY if name in given_options]
    if user.get("method") == "likelihood" and listwise_options:
        raise InputError(f"{listwise_options[0]} is for comparison, not for likelihood", "leave one out")
    if "method" not in values:
        values["method"] = "listwise" if listwise_options else default_method
    if values["method"] == "likelihood" and "passage_tokens" not in user:
        values["passage_tokens"] = _LIKELIHOOD_PASSAGE_TOKENS
        sources["passage_tokens"] = "default"
    return RerankOptions(**values, sources=sources)
