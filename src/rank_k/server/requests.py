"""Bytes in, a request for a ranking out. Pure: whatever the bytes are, the result is one or an `ApiError`.

The request formats are Cohere's v2 and Jina's (`documents`), and that of Text Embeddings Inference (`texts`).
Unknown fields are ignored, and `null` is the same as left out: clients send both. Nothing in a request names a model to
load, an address, a file or code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rank_k.errors import InputError
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.config import Limits
from rank_k.strategies import STRATEGIES
from rank_k.window.reasoning import ReasoningMode


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A ranking as it was asked for. `top_n` None: all documents. `deadline_seconds`: from the request's arrival.

    `bare_list`: answer as Text Embeddings Inference does, with a list of `{"index", "score"}`.
    """

    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    return_documents: bool = False
    return_trace: bool = False
    stream: bool = False
    reasoning: ReasoningMode | None = None
    strategy: str | None = None
    deadline_seconds: float | None = None
    bare_list: bool = False


def parse_rerank_request(raw: bytes, limits: Limits, *, texts_allowed: bool = False) -> RerankRequest:
    """The request in `raw`. `texts_allowed`: a body with `texts` is one of Text Embeddings Inference."""
    body = json_object(raw)
    bare_list = texts_allowed and body.get("texts") is not None
    if bare_list and body.get("documents") is not None:
        raise invalid_field("texts", "give either texts or documents")
    query = body.get("query")
    if not isinstance(query, str) or not query:
        raise invalid_field("query", "a text is needed")
    if not isinstance(body.get("model") or "", str):
        raise invalid_field("model", "must be a name; this server has one model, whatever the name")
    documents = _parse_documents(body, "texts" if bare_list else "documents", limits)
    if sum(map(len, documents)) + len(query) > limits.characters:
        field = "query" if len(query) > limits.characters else ("texts" if bare_list else "documents")
        raise invalid_field(field, f"query and documents together have more than {limits.characters:,} characters")
    return RerankRequest(
        query,
        documents,
        None if bare_list else _parse_top_n(body),
        _parse_flag(body, "return_text" if bare_list else "return_documents"),
        _parse_flag(body, "return_trace"),
        not bare_list and _parse_flag(body, "stream"),
        _parse_reasoning(body),
        _parse_strategy(body),
        _parse_deadline(body),
        bare_list,
    )


def _parse_documents(body: Mapping[str, Any], field: str, limits: Limits) -> tuple[str, ...]:
    value = body.get(field)
    if not isinstance(value, list):
        raise invalid_field(field, "a list of texts is needed")
    if len(value) > limits.documents:
        raise invalid_field(field, f"{len(value):,} are given, at most {limits.documents:,} are taken")
    texts: list[str] = []
    for number, document in enumerate(value):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise invalid_field(f"{field}[{number}]", 'must be a text or an object with a "text"')
        texts.append(text)
    return tuple(texts)


def _parse_top_n(body: Mapping[str, Any]) -> int | None:
    value = body.get("top_n")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise invalid_field("top_n", "must be a whole number; 0 or none means all")
    return int(value) or None


def _parse_flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise invalid_field(field, "must be true or false")
    return bool(value)


def _parse_reasoning(body: Mapping[str, Any]) -> ReasoningMode | None:
    value = body.get("reasoning")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise invalid_field("reasoning", "write full, off, auto, or reasoning tokens per window such as 500")
    try:
        return ReasoningMode.parse(str(value))
    except InputError as error:
        raise invalid_field("reasoning", error.remedy) from None


def _parse_strategy(body: Mapping[str, Any]) -> str | None:
    value = body.get("strategy")
    if value is None:
        return None
    if not isinstance(value, str) or value not in STRATEGIES:  # a module's name would be code of the client's choice
        raise invalid_field("strategy", f"write one of {', '.join(STRATEGIES)}")
    return value


def _parse_deadline(body: Mapping[str, Any]) -> float | None:
    value = body.get("deadline_seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise invalid_field("deadline_seconds", "must be a number of seconds above 0")
    return min(float(value), 1e6) if value < 1e6 else None


# --- JSON, strictly ---


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. No NaN, no number beyond a double's, no name given twice, no depth without end."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})") from None
    try:
        body = json.loads(
            text, parse_constant=_reject_constant, parse_float=_finite_float, object_pairs_hook=_unique_object
        )
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} (character {error.pos})") from None
    except ValueError as error:  # a number of thousands of digits
        raise ApiError(400, f"the body is not JSON: {str(error).partition(';')[0][:100]}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def _reject_constant(name: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {name} is no number there")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, "the body holds a number that is too large")
    return value


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ApiError(400, f"{_printable(duplicate)} is given twice", _printable(duplicate))
    return result


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:60])
