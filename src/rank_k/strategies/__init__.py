"""Create strategies by name. Each strategy has its own module; `rank_k.strategies.base` defines the protocol.

A strategy is a generator: it yields rounds of windows and receives their results. It does no I/O and does not depend on
the source of the results, which may be a real model, a simulated model or a journal.
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
"""Maps the name of each strategy to its class, as `module:class`. The fields of these dataclasses are options of
`make_strategy`."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"name": "sliding"},
    "fast": {"name": "blocks", "boundary": 0},
    "balanced": {"name": "blocks"},
    "thorough": {"name": "blocks", "partitions": 2},
}
"""Maps the name of each preset to arguments of `make_strategy`. Other arguments have their defaults.

For 100 candidates, `paper` takes 9 windows in 9 rounds, `fast` 6 in 2, `balanced` 7 in 2 and `thorough` 12 in 2.
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
    """Return a strategy.

    Options that a strategy does not have are ignored. Presets set `partitions` and `boundary` themselves.

    Args:
        name: The name of a strategy or preset, or `MODULE:NAME` for a custom class.
        window: Maximum number of passages per window (default: 20).
        stride: Number of passages that the sliding window moves by (default: 10).
        first_stage_weight: Weight of the first-stage ranking in `blocks`, 0 or more (default: 1).
        partitions: Number of times that `blocks` ranks all candidates in the first round (default: 1).
        boundary: Number of windows in which `blocks` ranks again the passages whose probability of being in the top 10
            is closest to 1/2 (default: 1).

    Raises:
        InputError: If there is no such strategy, or if it rejects an option.
        MissingExtra: If a package that the strategy needs is not installed.
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
    except Exception as error:  # a custom class may raise any exception
        raise InputError(
            f"strategy {name!r} cannot be created: {error}", "give a class without required arguments"
        ) from error
    if not callable(strategy):
        raise InputError(f"{name!r} is not a strategy", "give a class whose instances are strategies")
    return strategy


def load_strategy_class(name: str) -> Any:
    """Return the class of a strategy.

    Args:
        name: The name of a strategy, or `MODULE:NAME` for a custom class.

    Raises:
        InputError: If there is no such strategy, or if it cannot be imported.
    """
    path = STRATEGIES.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not attribute:
        close_matches = get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {close_matches[0]}? " if close_matches else ""
        raise InputError(f"there is no strategy {name!r}", f"{hint}write one of {', '.join(STRATEGIES)} or MODULE:NAME")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a custom module may raise any exception
        raise InputError(
            f"strategy {name!r} cannot be imported: {error}",
            "check the name of the module and the Python path",
        ) from error
