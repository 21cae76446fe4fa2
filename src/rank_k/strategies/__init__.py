"""Strategies by name, one per module; `rank_k.strategies.base` has the protocol.

A strategy is a generator that yields rounds of windows and is sent their results. It does no I/O: it
never knows whether a model, a simulated judge or a journal replied.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import Any

from rank_k.errors import InputError
from rank_k.strategies.base import Strategy

STRATEGIES = {
    "sliding": "rank_k.strategies.sliding:Sliding",
    "single": "rank_k.strategies.single:Single",
    "topdown": "rank_k.strategies.topdown:TopDown",
    "blocks": "rank_k.strategies.blocks:Blocks",
    "tournament": "rank_k.strategies.tournament:Tournament",
    "setwise": "rank_k.strategies.setwise:Setwise",
}
"""Name -> `module:class`, a dataclass whose fields are among the options of `make_strategy`."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"name": "sliding"},
    "fast": {"name": "blocks", "boundary": 0},
    "balanced": {"name": "blocks"},
    "thorough": {"name": "blocks", "partitions": 2},
}
"""The name of a strategy, and arguments of `make_strategy` that differ from its defaults.

100 candidates take 9 windows in 9 rounds, 6 in 2, 7 in 2 and 12 in 2.
"""


def make_strategy(
    name: str,
    *,
    window: int = 20,
    stride: int = 10,
    first_stage_weight: float = 1.0,
    partitions: int = 1,
    boundary: int = 1,
) -> Strategy:
    """Return the strategy called `name`, that of a preset, or the one at `MODULE:NAME` (a user's own).

    The strategy receives those options that are fields of its dataclass. A preset sets its own `partitions` and
    `boundary`.

    Raises:
        InputError: If there is no such strategy, or it cannot work with the options.
    """
    options = {
        "window": window,
        "stride": stride,
        "first_stage_weight": first_stage_weight,
        **PRESETS.get(name, {"name": name, "partitions": partitions, "boundary": boundary}),
    }
    factory = load_strategy_class(options.pop("name"))
    accepted = getattr(factory, "__dataclass_fields__", {})
    try:
        strategy: Strategy = factory(**{key: value for key, value in options.items() if key in accepted})
    except InputError:
        raise
    except Exception as error:  # whatever a user's own class may raise
        raise InputError(
            f"strategy {name!r} cannot be made: {error}", "name a class that needs no arguments"
        ) from error
    if not callable(strategy):
        raise InputError(f"{name!r} is no strategy", "name a class whose objects are strategies")
    return strategy


def load_strategy_class(name: str) -> Any:
    """Import the class of the strategy called `name`. Raises `InputError` if there is none."""
    path = STRATEGIES.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not attribute:
        close_matches = get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {close_matches[0]}? " if close_matches else ""
        raise InputError(f"there is no strategy {name!r}", f"{hint}write one of {', '.join(STRATEGIES)} or MODULE:NAME")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the code of a user's own module may raise
        raise InputError(
            f"strategy {name!r} cannot be imported: {error}",
            "check the module's name and that it is on the Python path",
        ) from error
