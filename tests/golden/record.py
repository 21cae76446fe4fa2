"""Writes the golden record, or compares with it.

    python -m tests.golden.record [--check] [--only GROUP ...]

After an intended change of behavior, write the record again and read `git diff tests/golden/record`. After renaming
JSON keys, do not write it: add the new names to `renames.toml`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.golden.cases import GROUPS
from tests.golden.compare import differences, read_renames
from tests.golden.runner import run_group

RECORD = Path(__file__).parent / "record"
_TEXTS = "texts.json"
_WIDTH = 240


def read_group(group: str) -> dict[str, Any]:
    """Return the recorded cases of a group."""
    cases: dict[str, Any] = json.loads((RECORD / f"{group}.json").read_text(encoding="utf-8"))
    return cases


def read_texts() -> dict[str, str]:
    """Return the recorded texts by reference."""
    path = RECORD / _TEXTS
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {key: "\n".join(_expand_lines(lines, stored["lines"])) for key, lines in stored["texts"].items()}


def write_record(groups: Sequence[str]) -> None:
    """Run the cases of `groups` and write their record."""
    texts = read_texts()
    for group in groups:
        started = time.process_time()
        cases, new_texts = run_group(group)
        texts |= new_texts.texts
        _write(RECORD / f"{group}.json", cases)
        sys.stdout.write(f"{group}: {len(cases)} cases, {time.process_time() - started:.1f} s of CPU\n")
    for path in RECORD.glob("*.json"):
        if path.stem not in GROUPS and path.name != _TEXTS:
            path.unlink()
    recorded = "".join(path.read_text(encoding="utf-8") for path in RECORD.glob("*.json") if path.name != _TEXTS)
    _write(RECORD / _TEXTS, _pack_texts({key: text for key, text in texts.items() if key in recorded}))


def check_group(group: str) -> list[str]:
    """Run the cases of a group and return how they differ from the record, one paragraph per difference."""
    cases, texts = run_group(group)
    return differences(group, read_group(group), cases, read_renames(), {**read_texts(), **texts.texts})


def _pack_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """`texts` as lists of lines, in which long lines that occur more than once are replaced by `#HASH`."""
    counts: dict[str, int] = {}
    for text in texts.values():
        for line in text.split("\n"):
            counts[line] = counts.get(line, 0) + 1
    repeated_lines = [line for line, count in counts.items() if count > 1 and len(line) > 24]
    names = {
        line: f"#{hashlib.sha256(line.encode('utf-8', 'surrogatepass')).hexdigest()[:7]}" for line in repeated_lines
    }
    packed_lines = {key: [names.get(line, line) for line in text.split("\n")] for key, text in texts.items()}
    return {"lines": {name: line for line, name in names.items()}, "texts": packed_lines}


def _expand_lines(lines: Sequence[str], names: Mapping[str, str]) -> Iterator[str]:
    for line in lines:
        yield names.get(line, line)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(_format_json(value) + "\n", encoding="utf-8")


def _format_json(value: Any, indent: int = 0, width: int = _WIDTH) -> str:
    """JSON with sorted keys; whatever fits is written on one line."""
    line = json.dumps(value, ensure_ascii=False, sort_keys=True)
    is_prompt = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if len(line) + indent <= width or is_prompt or not isinstance(value, dict | list) or not value:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        names = {key: json.dumps(key, ensure_ascii=False) for key in sorted(value)}
        items = [
            f"{pad}{name}: {_format_json(value[key], indent + 1, width - len(name))}" for key, name in names.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + _format_json(item, indent + 1) for item in value) + "\n" + " " * indent + "]"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the record. Returns 1 if a check finds differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the record, and write nothing")
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    args = parser.parse_args(argv)
    groups = args.only or tuple(GROUPS)
    if not args.check:
        write_record(groups)
        return 0
    total = 0
    for group in groups:
        paragraphs = check_group(group)
        total += len(paragraphs)
        for paragraph in paragraphs:
            sys.stdout.write(f"{paragraph}\n\n")
        sys.stdout.write(f"{group}: {len(paragraphs)} differences\n")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
