"""All options of a reranker, each defined once.

An option is a field of one of the dataclasses below. Its default, help, kind of value and visibility are part of the
field. The following are derived from these fields, so a new option needs only a new field:

- command-line flags (`rank_k.cli.model_options`) and the keyword arguments of `Reranker`,
- the axes of a study and its TOML keys (`rank_k.study.grid`),
- the settings of a distilled model and of its recipe (`student=True`),
- the fields of an HTTP request and of the MCP tool (`public=True`; nothing else is exposed to clients),
- the settings that a journal stores for a run.

`resolve` combines the values of four sources, each of which overrides the ones before: the defaults, the student, the
preset and the user. It records the source of each value. Nothing here reads files or calls a model.
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
"""The default limit on the tokens of a completion: reasoning and answer together, as in the Rank-K paper."""

# --- the definition of an option -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """The definition of an option. `name` and `default` are the name and the default of its dataclass field.

    Attributes:
        help: What the option does. `help_text` appends the default.
        kind: The kind of value.
        default_text: The default as help texts state it, if it depends on the model (default: the value of `default`).
        metavar: The placeholder for the value in help texts.
        public: Whether clients of `serve` and `mcp` may set the option in a request.
        student: Whether a distilled model may define its own default for the option.
        prefix: The text before the value in the names of study cells (default: the name of the option).
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
        """Whether None is a valid value of this option. For all other options, None means "not given"."""
        return "or none for" in self.kind.expected

    @property
    def help_text(self) -> str:
        default = self.default_text or ("" if self.default is None else str(self.default))
        return f"{self.help} (default: {default})" if default else self.help


def option(default: Any, help: str, kind: ValueKind = ANY, *, repr: bool = True, **details: Any) -> Any:
    """Return a dataclass field that defines an option. `details` are the other attributes of `Option`."""
    return field(default=default, repr=repr, metadata={"help": help, "kind": kind, **details})


def replace_default(group: type, name: str, default: Any) -> Any:
    """Return a copy of the field `name` of `group` with a different default, for a subclass."""
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
    """Options for the connection to the model."""

    server: str | None = option(
        None,
        "URL of an OpenAI-compatible server, or URLs of several servers of the same model, separated by commas; without"
        " it, Rank-K uses the embedded model",
        metavar="URL",
    )
    api_key: str | None = option(None, "API key for the server", repr=False)
    server_type: str = option("auto", "type of the server; see docs/reference/servers.md", metavar="NAME")
    revision: str = option(
        "", "revision of the model, to distinguish different weights with the same name", metavar="TEXT"
    )
    context_length: int | None = option(
        None, "context length of the model, if the server does not report it", whole_number(1), metavar="TOKENS"
    )
    concurrency: int | None = option(
        None, "concurrent requests to the model", whole_number(1), default_text="16 per server; embedded models: 1"
    )
    read_timeout: float | None = option(
        None,
        "let a request fail if the server sends no data for S seconds",
        number(exclusive=True),
        default_text="no limit",
        metavar="S",
    )


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Options that select the windows that the model ranks and how their rankings are combined."""

    method: ScoringMethod | None = option(
        None,
        "scoring method: listwise (compare the passages of a window), likelihood (score how likely the query is given"
        " each passage), or combined (these two plus the first-stage score)",
        choice("listwise", "likelihood", "combined"),
        metavar="{listwise,likelihood,combined}",
        default_text="distilled models: their own; other embedded models: likelihood, or listwise if an option is given"
        " that only listwise ranking uses; servers: listwise",
        student=True,
    )
    strategy: Any = option(
        "sliding",
        "how candidates are divided into windows and the results combined:"
        f" {', '.join(STRATEGY_NAMES)}, the name of a preset, or MODULE:NAME",
        STRATEGY,
        metavar="NAME",
        public=True,
        student=True,
    )
    depth: int = option(100, "number of candidates to rerank per query", whole_number(1), prefix="d")
    window: int = option(20, "number of passages in a window", whole_number(1), student=True, prefix="w")
    stride: int = option(
        10, "number of passages by which a sliding window moves", whole_number(1), student=True, prefix="s"
    )
    first_stage_weight: float = option(
        1.0,
        "weight of the first-stage ranking; only the strategy blocks and the method combined use it",
        number(),
        metavar="W",
        prefix="a",
    )


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Options for ranking one window: prompt, reasoning, sampling and limits."""

    reasoning: str = option(
        "full",
        "reasoning per window: full, off, auto, or a number of tokens",
        REASONING,
        metavar="MODE",
        public=True,
        student=True,
    )
    samples: int = option(
        1, "number of rankings per window, each with the passages in a different order", whole_number(1), prefix="x"
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
        "sampling temperature; none: the default of the server",
        number(none="the default of the server"),
        metavar="T",
        student=True,
        prefix="t",
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: sample only from the most likely tokens, up to a total probability of P",
        number(0, 1, none="the default of the server"),
        metavar="P",
        prefix="top",
    )
    min_p: float | None = option(
        None,
        "sample only tokens with at least P times the probability of the most likely token, if the server supports it",
        number(0, 1, none="the default of the server"),
        metavar="P",
    )
    seed: int = option(
        0, "number added to the seed of each request; different numbers give different answers", whole_number(0)
    )
    constrained: bool = option(
        True,
        "auto: if the server supports constrained decoding, use it to make every answer a valid ranking; off: never"
        " use it",
        SWITCH,
        default_text="auto",
        metavar="{auto,off}",
        prefix="constrained",
    )
    prompt: Any = option(
        None,
        'prompt template: "compact", or a file (text, rerank.py or YAML)',
        metavar="FILE",
        default_text="the built-in listwise template",
    )


@dataclass(frozen=True, kw_only=True)
class StudentOptions(InferenceOptions, RankingOptions):
    """The settings with which a distilled model ranks after its training: the table `[asking]` of a recipe."""

    method: ScoringMethod | None = replace_default(RankingOptions, "method", "listwise")
    max_tokens: int | None = replace_default(InferenceOptions, "max_tokens", DEFAULT_MAX_TOKENS)
    prompt: Any = replace_default(InferenceOptions, "prompt", "listwise")


@dataclass(frozen=True, kw_only=True)
class LongDocumentOptions:
    """Options for splitting long documents into passages (MaxP: a document has the rank of its best passage)."""

    maxp_tokens: int | None = option(
        None,
        "split documents into passages of N tokens, and rank each document by its best passage",
        whole_number(1),
        prefix="split",
    )
    maxp_overlap: int | None = option(
        None, "number of tokens that each passage shares with the previous one", whole_number(0), prefix="overlap"
    )
    maxp_passages: int | None = option(
        None, "maximum number of passages per document", whole_number(1), default_text="all", prefix="first"
    )


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Limits after which a run stops early. Every query then gets its best ranking so far."""

    max_seconds: float | None = option(
        None, "stop after S seconds and write the best ranking so far", number(exclusive=True), metavar="S"
    )
    token_budget: int | None = option(
        None, "stop after N tokens, such as 2M, and write the best ranking so far", TOKENS
    )


Source = Literal["default", "student", "preset", "user"]


@dataclass(frozen=True, kw_only=True)
class RerankOptions(InferenceOptions, RankingOptions, ModelOptions):
    """The options of a `Reranker`. `sources` contains the source of each value, by the name of the option."""

    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @property
    def server_urls(self) -> tuple[str, ...]:
        """The URLs in `server`, which are separated by commas."""
        return tuple(url.strip() for url in (self.server or "").split(",") if url.strip())

    def settings(self) -> dict[str, Any]:
        """Return the options that affect the rankings, by name, as JSON values. A journal stores them with each run."""
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
"""The options for which a distilled model may define its own default."""

PUBLIC_OPTIONS: Mapping[str, Option] = {name: spec for name, spec in OPTIONS.items() if spec.public}
"""The options that a client may set for its request."""

STUDY_OPTIONS: Mapping[str, Option] = {
    name: spec
    for group in (RankingOptions, InferenceOptions, LongDocumentOptions)
    for name, spec in options_of(group).items()
    if name != "prompt"
}
"""The options that can be axes of a study. The prompt cannot, because it is a setting of each model."""

LISTWISE_ONLY = ("strategy", "reasoning", "prompt", "samples")
"""Options that the method "likelihood" does not use."""

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
"""The options of each preset, by its name. "paper" has the settings of the Rank-K paper (arXiv 2505.14432, section 3).
The others use the strategy blocks with 6, 7 or 12 windows per 100 candidates (`rank_k.strategies.PRESETS`)."""

_LIKELIHOOD_PASSAGE_TOKENS = 64
"""The default of `passage_tokens` for query likelihood, chosen on held-out collections (see
docs/results/query-likelihood.md)."""


def parse_option(name: str, value: Any, options: Mapping[str, Option] = OPTIONS, owner: str = "a reranker") -> Any:
    """Return the value of an option, parsed from the text of a flag or from a TOML, JSON or Python value.

    Args:
        name: The name of the option.
        value: The text or the value.
        options: The options that are allowed, by name.
        owner: What has these options, for error messages.

    Raises:
        InputError: If `options` does not contain the option, or the value has the wrong type or is out of range.
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
    """Return the options of a reranker: the defaults, overridden by the student, the preset and the user in this order.

    Args:
        given: The values given by the user, by name. None means "not given", except for options where it is a value.
        preset: A name of `PRESETS`. A given option that contradicts it is an error.
        student: The settings of a distilled model.
        embedded: Whether the model runs on this machine.
        default_method: The method to use if neither the student nor the user chooses a method, and if no option is
            given that only listwise ranking uses.

    Raises:
        InputError: If an option is out of range or contradicts another option.
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
            raise InputError(
                f"preset {preset} and {name} {user[name]} exclude each other", f"leave out the preset or {name}"
            )
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
        raise InputError(
            f"the method likelihood does not use the option {listwise_options[0]}",
            f"leave out {listwise_options[0]} or choose a different method",
        )
    if "method" not in values:
        values["method"] = "listwise" if listwise_options else default_method
    if values["method"] == "likelihood" and "passage_tokens" not in user:
        values["passage_tokens"] = _LIKELIHOOD_PASSAGE_TOKENS
        sources["passage_tokens"] = "default"
    return RerankOptions(**values, sources=sources)
