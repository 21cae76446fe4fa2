"""Compares a run of golden cases with the record, after applying the table of renames."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.golden.runner import AUXILIARY

RENAMES = Path(__file__).with_name("renames.toml")
_TOLERANCE = 1e-8
_MAX_DIFFS = 3
_MAX_DIFF_LINES = 40
_REFERENCE = "text:"


@dataclass(frozen=True)
class Renames:
    """The table `renames.toml`. `keys` and `values` hold in all groups, `groups` in one of them."""

    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str | bool]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)

    def of_group(self, group: str) -> Renames:
        """The names that hold in a group."""
        group_table = self.groups.get(group, {})
        keys = {**self.keys, **group_table.get("keys", {})}
        values = {**self.values, **group_table.get("values", {})}
        added, removed = (*self.added, *group_table.get("added", ())), (*self.removed, *group_table.get("removed", ()))
        return Renames(keys, values, {}, added, removed, self.statistics)


def read_renames(path: Path = RENAMES) -> Renames:
    """Read the table."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Renames(
        table.get("keys", {}),
        table.get("values", {}),
        table.get("groups", {}),
        tuple(table.get("added", ())),
        tuple(table.get("removed", ())),
        table.get("statistics", {}),
    )


def differences(
    group: str,
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
    renames: Renames,
    texts: Mapping[str, str],
) -> list[str]:
    """Return a paragraph for each difference of a group; none if there is no difference.

    `texts`: the texts that both sides refer to, for the diffs of requests.
    """
    names = renames.of_group(group)
    paragraphs = [f"{group} / {case}: not run anymore" for case in recorded.keys() - current.keys()]
    paragraphs += [f"{group} / {case}: not in the record" for case in current.keys() - recorded.keys()]
    for case in recorded.keys() & current.keys():
        place = f"{group} / {case}"
        old, new = recorded[case], current[case]
        paragraphs += _compare_steps(place, old["steps"], new["steps"], names)
        paragraphs += _compare_requests(place, old["requests"], new["requests"], texts)
        for part in ("headers", "embedded"):
            if old.get(part) != new.get(part):
                paragraphs.append(f"{place} / {part}:\n  recorded {old.get(part)}\n  now      {new.get(part)}")
    return sorted(paragraphs)


# --- What the product writes ------------------------------------------------------------------------


def _compare_steps(place: str, old: list[Any], new: list[Any], names: Renames) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{place}: {len(new)} steps instead of {len(old)}"
    for number, (old_step, new_step) in enumerate(zip(old, new, strict=False), 1):
        tolerance = float(old_step.get("tolerance", 0.0))
        step_place = f"{place} / step {number}"
        for part in sorted({*old_step, *new_step} - {"answers", "files"}):
            yield from _compare_values(
                f"{step_place} / {part}", old_step.get(part), new_step.get(part), names, tolerance
            )
        for name in sorted({*old_step.get("files", {}), *new_step.get("files", {})}):
            old_file, new_file = old_step["files"].get(name), new_step["files"].get(name)
            yield from _compare_values(f"{step_place} / {name}", old_file, new_file, names, tolerance)
        yield from _compare_answers(step_place, old_step.get("answers", []), new_step.get("answers", []), names)


def _compare_answers(place: str, old: list[Any], new: list[Any], names: Renames) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{place}: {len(new)} answers instead of {len(old)}"
    for number, (old_answer, new_answer) in enumerate(zip(old, new, strict=False), 1):
        is_http = "request" in old_answer
        answer_place = f"{place} / answer {number}" + (f" to {old_answer['request']}" if is_http else "")
        old_answer, new_answer = (
            {k: v for k, v in answer.items() if not (is_http and k == "request")} for answer in (old_answer, new_answer)
        )
        yield from _compare_values(answer_place, old_answer, new_answer, names, 0.0)


def _compare_values(place: str, old: Any, new: Any, names: Renames, tolerance: float, key: str = "") -> Iterator[str]:
    """Walk two JSON values at the same time. `key`: the recorded key under which they are."""
    tolerance = names.statistics.get(key, tolerance)
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _compare_objects(place, old, new, names, tolerance)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            values = f"  recorded {_shorten(old)}\n  now      {_shorten(new)}"
            yield f"{place}: {len(new)} items instead of {len(old)}\n{values}"
        for number, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from _compare_values(f"{place}[{number}]", before, after, names, tolerance, key)
    elif _is_number(old) and _is_number(new):
        if not math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=max(tolerance, _TOLERANCE)):
            yield f"{place}: recorded {old}, now {new}" + (f" (tolerance {tolerance})" if tolerance else "")
    else:
        expected = names.values.get(key, {}).get(old, old) if isinstance(old, str) else old
        if expected != new or type(expected) is not type(new):
            yield f"{place}: recorded {_shorten(expected)}, now {_shorten(new)}"


def _compare_objects(
    place: str, old: Mapping[str, Any], new: Mapping[str, Any], names: Renames, tolerance: float
) -> Iterator[str]:
    recorded_names = set()
    for key, value in old.items():
        name = names.keys.get(key, key)
        recorded_names.add(name)
        if name in new:
            yield from _compare_values(f"{place} / {name}", value, new[name], names, tolerance, key)
        elif key not in names.removed:
            yield f"{place}: key {name!r} is missing (recorded {_shorten(value)}); if renamed, add it to renames.toml"
    for name in new.keys() - recorded_names - set(names.added):
        yield f"{place}: key {name!r} is new ({_shorten(new[name])}); if renamed, add it to renames.toml"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


# --- What the product sends to models ---------------------------------------------------------------


def _compare_requests(place: str, old: list[Any], new: list[Any], texts: Mapping[str, str]) -> Iterator[str]:
    """Requests that were sent and are not, and the other way round, each with the most similar one."""
    before, after = _count_requests(old), _count_requests(new)
    missing, extra = list((before - after).elements()), list((after - before).elements())
    if not missing and not extra:
        return
    yield f"{place} / requests: {len(missing)} recorded ones are not sent, {len(extra)} are new"
    for request in missing[:_MAX_DIFFS]:
        lines_of_request = _request_lines(json.loads(request), texts)
        candidates = {other: _request_lines(json.loads(other), texts) for other in extra}
        nearest = max(candidates, key=lambda other: _similarity(lines_of_request, candidates[other]), default=None)
        lines = candidates[nearest] if nearest is not None else []
        diff = list(difflib.unified_diff(lines_of_request, lines, "recorded", "now", lineterm="", n=1))
        if nearest is not None:
            extra.remove(nearest)
        max_lines = _MAX_DIFF_LINES if nearest is not None else _MAX_DIFF_LINES // 4
        yield "\n".join([f"{place} / request {lines_of_request[0]}", *(f"  {line}" for line in diff[:max_lines])])
    for request in extra[:_MAX_DIFFS]:
        lines = _request_lines(json.loads(request), texts)[: _MAX_DIFF_LINES // 4]
        yield "\n".join([f"{place} / new request {lines[0]}", *(f"  +{line}" for line in lines[1:])])


def _count_requests(requests: list[Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for request in requests:
        is_auxiliary = request["request"].partition(" ")[2] in AUXILIARY
        identity = {name: value for name, value in request.items() if name != "times"}
        counts[json.dumps(identity, sort_keys=True)] += 1 if is_auxiliary else request.get("times", 1)
    return counts


def _similarity(lines: list[str], other_lines: list[str]) -> float:
    return difflib.SequenceMatcher(None, lines, other_lines).quick_ratio()


def _request_lines(request: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """A request as lines, its texts in full."""
    lines = [str(request["request"]), str(request.get("sha256", ""))]

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                walk(f"{name}.{key}" if name else key, child)
        elif isinstance(value, list):
            for number, child in enumerate(value):
                walk(f"{name}[{number}]", child)
        elif isinstance(value, str) and _REFERENCE in value:
            before, _, reference = value.partition(_REFERENCE)
            text = before + texts.get(_REFERENCE + reference, _REFERENCE + reference)
            lines.extend(f"{name}: {line}" for line in text.split("\n"))
        else:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")

    walk("", request.get("body"))
    return lines
