"""The plan of a fake model server: what kind of server it is, and what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from tests.fakes.model_server.marked_passages import hash_fraction


class Fault(NamedTuple):
    """A share of all windows, each of which meets the fault the first `times` times it is asked about."""

    rate: float = 0.0
    times: int = 1

    @classmethod
    def of(cls, value: object) -> Fault:
        """From 0.11, "0.11", "0.11:6" or (0.11, 6)."""
        parts = value.split(":") if isinstance(value, str) else value
        rate, times = (*parts, 1)[:2] if isinstance(parts, (list, tuple)) else (parts, 1)
        return cls(float(rate), int(times))


NEVER = Fault()
ENGINE_FAULT = "EngineCore encountered an issue."
QUIRKS = ("inline", "missing_open", "reasoning", "reasoning_content", "reasoning_details", "none")
CAPABILITIES = ("raw", "continue", "grammar", "budget", "logprobs", "spell")
"""Going on from a rendered prompt, or from an open last message; grammars; budgets; probabilities; grammars of tokens
behind any text, as llama.cpp takes them."""
TRAPS = ("", "answer_in_reasoning", "two_ends", "always_thinks", "repetition_stopped")
"""The answer after closed reasoning arrives as reasoning with null content; `</think>` leaks into the content; the
switch for direct answers is ignored; reasoning repeats itself without end."""
TRANSIENT = ("http_429", "http_500", "drop", "error_in_stream", "bad_utf8", "bad_json")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults can be combined. One request meets one transient fault (`TRANSIENT`, in that order) at most."""

    model: str = "oracle"
    owned_by: str = "vllm"
    max_model_len: int = 40960  # 0: not listed, not enforced; a token is 4 characters
    api_key: str = ""  # required where given
    redirect: str = ""  # another server's /v1, to which this one's is redirected (307)
    refuse: int = 0  # the HTTP status with which every request is refused
    first_token: float = 0.2  # seconds
    per_token: float = 0.002
    flush: float = 0.05  # seconds between the pieces of a stream
    quirk: str = "inline"  # where the trace goes: one of QUIRKS
    capabilities: str = ""  # of CAPABILITIES, with blanks between: what is honored; the rest is refused or ignored
    trap: str = ""  # one of TRAPS
    cut: float = 0.0  # share of windows whose reasoning ends by "length" unless a later turn asks for the order
    prose: float = 0.0  # answered as a sentence with a bare comma list of all numbers
    garbage: float = 0.0  # answered with an apology and no order, or misspelt
    slow_start: float = 0.0  # begun `slow_seconds` late, with a comment in the stream meanwhile
    slow_seconds: float = 1.0
    http_429: Fault = NEVER
    http_500: Fault = NEVER
    drop: Fault = NEVER  # the connection is reset in mid-stream
    error_in_stream: Fault = NEVER  # an error object in mid-stream, then the end
    bad_utf8: Fault = NEVER  # a piece of the trace holds bytes that are no UTF-8
    bad_json: Fault = NEVER  # half a JSON object in mid-stream; the stream then goes on
    retry_after: str = ""  # the Retry-After header of a 429, as it is sent
    ragged: bool = False  # HTTP chunks end in mid-line and in mid-character
    bodies: bool = False  # keep the requests' bodies in the log
    seed: int = 0  # another one draws other windows for the faults

    def changed(self, changes: Mapping[str, Any]) -> FaultPlan:
        """Raises `ValueError` for a name or a quirk that does not exist."""
        unknown = changes.keys() - {setting.name for setting in fields(self)}
        capabilities = set(str(changes.get("capabilities", "")).split())
        if unknown or changes.get("quirk", self.quirk) not in QUIRKS or not capabilities <= set(CAPABILITIES):
            raise ValueError(f"no such setting, quirk or ability: {', '.join(unknown) or changes}")
        values: dict[str, Any] = {
            name: Fault.of(value) if name in TRANSIENT else value for name, value in changes.items()
        }
        return replace(self, **values)

    def can(self, ability: str) -> bool:
        return ability in self.capabilities.split()

    def strikes(self, fault: str, window: str) -> bool:
        value = getattr(self, fault)
        rate = value.rate if isinstance(value, Fault) else value
        return rate > 0 and hash_fraction(fault, window, str(self.seed)) < rate
