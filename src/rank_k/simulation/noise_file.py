"""Noise by name or from a file: JSON with the fields of `Noise`, and in "how" where they come from.

    {"sd": 1.1, "persistent": 0.9, "fresh": 0.1, "how": "..."}

Fields that are left out are 0 (`persistent` 1), as in `Noise`. `rank-k journal fit-noise` writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from rank_k.errors import FormatError, InputError
from rank_k.models.simulated import PRESETS, Noise

PROVENANCE_KEY = "how"
_FIELD_NAMES = tuple(field.name for field in fields(Noise))
_SHARE_FIELDS = ("persistent", "composition", "fresh")
_FRACTION_FIELDS = frozenset((*_SHARE_FIELDS, "middle", "malformed"))


def noise_by_name(name: str) -> Noise:
    """The preset called `name`, or what the file at that path says. Raises `InputError`."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.exists():
        suggestions = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {suggestions[0]}? " if suggestions else ""
        raise InputError(f"there is no noise {name!r}", f"{hint}write {', '.join(PRESETS)} or a file's path")
    return read_noise(path)


def read_noise(path: Path) -> Noise:
    """Raises `FormatError` for a file that does not say what a judge's noise is."""
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "name a file that rank-k journal fit-noise wrote") from error
    except ValueError as error:
        raise FormatError(path, 0, "no JSON", '{"sd": 1.1, "persistent": 0.9, "fresh": 0.1}') from error
    if not isinstance(payload, dict):
        raise FormatError(path, 0, f"a {type(payload).__name__}", '{"sd": 1.1, "persistent": 0.9, "fresh": 0.1}')
    values = {name: value for name, value in payload.items() if name != PROVENANCE_KEY}
    for name, value in values.items():
        if name not in _FIELD_NAMES:
            suggestions = get_close_matches(name, _FIELD_NAMES, n=1)
            raise FormatError(
                path, 0, f"an unknown field {name!r}", suggestions[0] if suggestions else ", ".join(_FIELD_NAMES)
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not is_number or (value < 0 and name != "position_bias"):
            raise FormatError(path, 0, f"{name} is {value!r}", "a number of 0 or more")
        if name in _FRACTION_FIELDS and value > 1:
            raise FormatError(path, 0, f"{name} is {value!r}", "a share from 0 to 1")
    noise = Noise(**{name: float(value) for name, value in values.items()})
    total = sum(getattr(noise, name) for name in _SHARE_FIELDS)
    if abs(total - 1) > 1e-3:
        raise FormatError(path, 0, f"{' + '.join(_SHARE_FIELDS)} are {total:g} together", "shares that sum to 1")
    return noise


def noise_to_json(noise: Noise, provenance: Mapping[str, Any]) -> str:
    """The text of a file that `read_noise` reads."""
    return json.dumps({**asdict(noise), PROVENANCE_KEY: provenance}, indent=2) + "\n"
