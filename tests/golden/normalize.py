"""What is left out of the record since it differs from run to run, and the texts that the record refers to.

All rules of normalization are in this module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.golden.data import passages
from tests.golden.responses import decode_tokens

VOLATILE_KEYS = {
    **dict.fromkeys(("seconds", "model_seconds", "created", "started", "ended", "time", "begun"), "<time>"),
    "version": "<version>",
    "token": "<token>",
}
"""Values of these keys are replaced, except null."""

VOLATILE_SUFFIX = "_at"
"""The end of keys whose values are points in time."""

PROSE_KEYS = frozenset(("message", "detail", "trace"))
"""Texts for people, which are not recorded; that they are there is."""

PROSE_OBJECTS = frozenset(("assumed",))
"""Objects whose values are texts for people."""

DROPPED_KEYS = frozenset(("description", "summary", "title", "about", "instructions"))
"""Texts for people that may come and go, in schemas and headings."""

PATTERNS = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<hex>"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "<run>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.:+Z]*"), "<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "<address>"),
)

LONGEST_STRING = 60
"""Characters; longer strings are replaced by a reference to `Texts`."""
DIGITS = 10
"""Decimals of recorded numbers."""


class Texts:
    """Long texts, each stored once under a reference that is made of its sha256."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        documents = sorted(passages().items(), key=lambda item: -len(item[1]))
        self._documents = {text: doc_id for doc_id, text in documents}
        self._pattern = re.compile("|".join(map(re.escape, self._documents)))

    def reference(self, text: str) -> str:
        """Store `text` and return its reference."""
        key = f"text:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        if key not in self.texts:
            self.texts[key] = self._pattern.sub(lambda match: f"«{self._documents[match[0]]}»", text)
        return key


class Normalizer:
    """Makes values comparable. `places`: text -> placeholder, such as a temporary folder's path -> `<work>`."""

    def __init__(self, texts: Texts, places: Mapping[str, str]) -> None:
        self._texts = texts
        self._places = sorted(places.items(), key=lambda item: -len(item[0]))

    def value(self, value: Any, key: str = "") -> Any:
        """Return `value`, a JSON value under the name `key`, without what is volatile."""
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            if key in VOLATILE_KEYS:
                return VOLATILE_KEYS[key]
            if key.endswith(VOLATILE_SUFFIX):
                return "<time>"
        if key in PROSE_KEYS and isinstance(value, str):
            return "<prose>" if value else ""
        if key in PROSE_OBJECTS and isinstance(value, Mapping):
            return dict.fromkeys(value, "<prose>")
        if isinstance(value, Mapping):
            return {
                self.string(str(name)): self.value(child, str(name))
                for name, child in value.items()
                if not (name in DROPPED_KEYS and isinstance(child, str))
            }
        if isinstance(value, list | tuple):
            if _are_token_ids(value):
                return f"{len(value)} tokens of {self._texts.reference(decode_tokens(value))}"
            return [self.value(item, key) for item in value]
        if isinstance(value, float):
            return round(value, DIGITS)
        return self.text(value) if isinstance(value, str) else value

    def string(self, text: str) -> str:
        """Return `text` with placeholders for places, times and random names."""
        for place, placeholder in self._places:
            text = text.replace(place, placeholder)
        for pattern, placeholder in PATTERNS:
            text = pattern.sub(placeholder, text)
        return text

    def text(self, text: str) -> str:
        """Return `text` with placeholders, or a reference if it is long."""
        text = self.string(text)
        return self._texts.reference(text) if len(text) > LONGEST_STRING else text

    def request(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """Return a request to the model: its bytes' sha256, and its body with references for texts."""
        record: dict[str, Any] = {"request": f"{method} {path}"}
        if body:
            record |= {"sha256": _digest(body), "body": self._body(json.loads(body))}
        return record

    def _body(self, value: Any) -> Any:
        """Replace long texts and token ids by references; leave every key and number unchanged."""
        if isinstance(value, Mapping):
            return {name: self._body(child) for name, child in value.items()}
        if isinstance(value, list):
            if _are_token_ids(value):
                return f"{len(value)} tokens of {self._texts.reference(decode_tokens(value))}"
            return [self._body(item) for item in value]
        if isinstance(value, str) and len(value) > LONGEST_STRING:
            return self._texts.reference(value)
        return value


def numbers_in(line: str) -> list[float]:
    """The numbers of a line of text, without thousands separators and percent signs."""
    matches = re.findall(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w.]*[A-Za-z@])", line)
    return [float(match.replace(",", "")) for match in matches]


def table(lines: Iterable[str], columns: int | None, *, decimals_only: bool) -> list[list[float]]:
    """The numbers of a text table, row by row; headings are left out."""
    rows = [line for line in lines if line.strip()]
    rows = [line for line in rows if re.search(r"\d\.\d", line)] if decimals_only else rows[1:]
    return [numbers_in(line)[:columns] for line in rows]


def _are_token_ids(value: Sequence[Any]) -> bool:
    """Whether a list holds token ids of the fake model server: long, and with larger numbers than any other list."""
    return len(value) > 8 and all(isinstance(item, int) and item > 255 for item in value) and max(value) > 2**24


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
