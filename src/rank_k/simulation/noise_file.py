"""Read the noise of a simulated model: a preset by name, or a JSON file with the fields of `Noise`.

The key "how" of a file describes where the values come from:

    {"sd": 1.1, "persistent": 0.9, "fresh": 0.1, "how": "..."}

Missing fields have the defaults of `Noise`: 0, and 1 for `persistent`. `rank-k journal fit-noise` writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from rank_k.data.compression import open_compressed
from rank_k.data.lines import parse_object
from rank_k.data.toml_tables import TableReader
from rank_k.errors import InputError
from rank_k.models.simulated import PRESETS, Noise

PROVENANCE_KEY = "how"
_SHARE_FIELDS = ("persistent", "composition", "fresh")
_FRACTION_FIELDS = (*_SHARE_FIELDS, "middle", "malformed")


def noise_by_name(name: str) -> Noise:
    """Return the preset called `name`, or the noise in the file with this path.

    Raises:
        InputError: If there is neither a preset nor a file of this name, or the file is invalid.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.exists():
        suggestions = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {suggestions[0]}? " if suggestions else ""
        raise InputError(f"there is no noise {name!r}", f"{hint}write {', '.join(PRESETS)} or the path of a noise file")
    return read_noise(path)


def read_noise(path: Path) -> Noise:
    """Return the noise in a file.

    Raises:
        InputError: If the file cannot be read.
        FormatError: If it is not JSON, or a field is unknown or out of range.
    """
    reader = TableReader(path)
    expected = 'JSON such as {"sd": 1.1, "persistent": 0.9, "fresh": 0.1}'
    with open_compressed(path, expected) as stream:
        payload = parse_object(path, 0, stream.plain.read(), expected)
    noise = reader.read(Noise, {name: value for name, value in payload.items() if name != PROVENANCE_KEY})
    for name, value in asdict(noise).items():
        if not isfinite(value) or (value < 0 and name != "position_bias"):
            raise reader.error(f"{name} = {value:g}", "a number of at least 0")
        if name in _FRACTION_FIELDS and value > 1:
            raise reader.error(f"{name} = {value:g}", "a fraction from 0 to 1")
    total = sum(getattr(noise, name) for name in _SHARE_FIELDS)
    if abs(total - 1) > 1e-3:
        raise reader.error(f"{' + '.join(_SHARE_FIELDS)} = {total:g}", "shares that sum to 1")
    return noise


def noise_to_json(noise: Noise, provenance: Mapping[str, Any]) -> str:
    """Return the content of a noise file, which `read_noise` reads."""
    return json.dumps({**asdict(noise), PROVENANCE_KEY: provenance}, indent=2) + "\n"
