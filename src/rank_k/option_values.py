"""Kinds of option values: how each is parsed, checked and described. This module does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from rank_k.errors import InputError

STRATEGY_NAMES = ("sliding", "single", "topdown", "blocks", "tournament", "setwise")


@dataclass(frozen=True, slots=True)
class ReasoningMode:
    """How much a window may reason.

    `full`: unlimited reasoning. `off`: no reasoning. `budget`: at most `tokens` reasoning tokens per window. `auto`:
    first an answer without reasoning, then reasoning for the windows that the policy selects
    (`rank_k.window.reasoning`).
    """

    kind: Literal["full", "off", "auto", "budget"] = "full"
    tokens: int | None = None

    @classmethod
    def parse(cls, value: str | int | ReasoningMode) -> ReasoningMode:
        """Return the mode for "full", "off", "auto", or a number of tokens such as 500, "500" or "2k" (2,000).

        Raises:
            InputError: If `value` has a different form.
        """
        if isinstance(value, ReasoningMode):
            return value
        word = str(value).strip().lower()
        if word in ("full", "off", "auto"):
            return cls(word)  # type: ignore[arg-type]
        match = re.fullmatch(r"(\d{1,9})(k?)", word)
        tokens = int(match[1]) * (1000 if match[2] else 1) if match else 0
        if tokens < 1:
            raise InputError(f"reasoning is {value!r}", f"write {REASONING.expected}")
        return cls("budget", tokens)

    def __str__(self) -> str:
        return self.kind if self.tokens is None else str(self.tokens)


@dataclass(frozen=True, slots=True)
class ValueKind:
    """A kind of value.

    Attributes:
        parse: Parses the text of a flag, or a TOML, JSON or Python value. Raises an error such as `ValueError` or
            `InputError` if it has the wrong type or is out of range.
        expected: A description of valid values for error messages, such as "a whole number of 1 or more".
        schema: The JSON schema.
    """

    parse: Callable[[Any], Any]
    expected: str
    schema: Mapping[str, Any] = field(default_factory=dict)


def whole_number(minimum: int) -> ValueKind:
    def parse(value: Any) -> int:
        number = int(str(value))
        if isinstance(value, float | bool) or number < minimum:
            raise ValueError
        return number

    return ValueKind(
        parse, f"a whole number of {minimum} or more", {"type": "integer", "minimum": minimum, "maximum": 2**31}
    )


def number(minimum: float = 0.0, maximum: float = inf, none: str = "", exclusive: bool = False) -> ValueKind:
    """Return the kind of finite numbers from `minimum` to `maximum`.

    Args:
        minimum: The smallest number.
        maximum: The largest number.
        none: What the value None, which flags write as "none", stands for. If it is empty, None is not allowed.
        exclusive: Whether `minimum` itself is excluded.
    """

    def parse(value: Any) -> float | None:
        if none and (value is None or value == "none"):
            return None
        parsed = float(str(value))
        if not minimum <= parsed <= maximum or parsed == inf or (exclusive and parsed == minimum):
            raise ValueError
        return parsed

    bounds = f"from {minimum:g} to {maximum:g}" if maximum < inf else f"of {minimum:g} or more"
    expected = f"a number above {minimum:g}" if exclusive else f"a number {bounds}"
    return ValueKind(parse, f"{expected}, or none for {none}" if none else expected, {"type": "number"})


def choice(*words: str) -> ValueKind:
    return ValueKind(
        {word: word for word in words}.__getitem__,
        f"one of {', '.join(words)}",
        {"type": "string", "enum": list(words)},
    )


def _parse_tokens(value: Any) -> int:
    """Return the number that a text or number such as 500, "20k", "2M" or "1g" stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", str(value).lower())
    count = int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2]]) if match else 0
    if not 1 <= count < 2**62:
        raise ValueError
    return count


ANY = ValueKind(lambda value: value, "any value")
SWITCH = ValueKind(
    {"auto": True, "off": False, True: True, False: False}.__getitem__, "auto or off", {"type": "boolean"}
)
TOKENS = ValueKind(_parse_tokens, "a number of tokens such as 500, 20k or 2M", {"type": "integer", "minimum": 1})
REASONING = ValueKind(
    lambda value: str(ReasoningMode.parse(value)),
    "full, off, auto, or a number of reasoning tokens per window such as 500",
    {"type": ["string", "integer"]},
)


def _parse_strategy(value: Any) -> Any:
    if not (isinstance(value, str) or callable(value)):
        raise ValueError
    return value


STRATEGY = ValueKind(
    _parse_strategy, f"one of {', '.join(STRATEGY_NAMES)}", {"type": "string", "enum": list(STRATEGY_NAMES)}
)
