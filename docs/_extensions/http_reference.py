"""Paths and schemas of the rerank API in Markdown, taken from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from command_reference import escape

from rank_k.server.config import Limits
from rank_k.server.openapi import build_openapi

SCHEMA_PREFIX = "#/components/schemas/"


def render_http_api() -> Iterator[str]:
    """Yield the lines of the page below its title: one section per path, then one per schema."""
    document = build_openapi(Limits(), needs_key=False)
    yield from render_paths(document["paths"])
    yield from render_schemas(document["components"]["schemas"])


def render_paths(paths: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Paths", "")
    for path, operations in paths.items():
        for method, operation in operations.items():
            summary = operation["summary"]
            yield from (f"### `{method.upper()} {path}`", "", escape(f"{summary[:1].upper()}{summary[1:]}."), "")
            if "requestBody" in operation:
                yield from (f"Request: {schema_name(operation['requestBody'])}.", "")
            if parameters := operation.get("parameters"):
                yield from ("| parameter | type | meaning |", "|---|---|---|")
                for parameter in parameters:
                    meaning = escape(parameter.get("description", ""))
                    yield f"| `{parameter['name']}` | {type_name(parameter['schema'])} | {meaning} |"
                yield ""
            yield from ("| status | meaning |", "|---|---|")
            for status, response in operation["responses"].items():
                name = schema_name(response) if status == "200" else ""
                yield f"| {status} | {escape(response['description'])}{f': {name}' if name else ''} |"
            yield ""


def render_schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Schemas", "")
    for name, schema in schemas.items():
        yield from (f"(schema-{name.lower()})=", f"### {name}", "")
        if schema.get("description"):
            yield from (escape(schema["description"]), "")
        required = schema.get("required", ())
        yield from ("| field | type | required | meaning |", "|---|---|---|---|")
        for field, details in schema.get("properties", {}).items():
            meaning = escape(details.get("description", ""))
            yield f"| `{field}` | {type_name(details)} | {'yes' if field in required else 'no'} | {meaning} |"
        yield ""


def schema_name(body: Mapping[str, Any]) -> str:
    """Return the types of a request or response body, for the formats in which it comes."""
    content = body.get("content", {})
    return "; ".join(f"`{kind}` {type_name(details['schema'])}" for kind, details in content.items())


def type_name(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows, as a reader would say it."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(SCHEMA_PREFIX)
        return f"[{name}](#schema-{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_name(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {type_name(schema.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
