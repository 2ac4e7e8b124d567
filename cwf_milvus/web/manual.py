"""The API's own page, written from its OpenAPI description: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cwf-milvus: the API</title>
<link rel="stylesheet" href="/static/manual.css">
</head>
<body>
<main>
<h1>The API</h1>
<p>The same as data, for programs: <a href="/api/openapi.json">openapi.json</a>.</p>
"""


def manual(description: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI description."""
    parts = [_HEAD]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation)
    parts.append("<h2>What is sent</h2>\n")
    for name, schema in sorted(description["components"]["schemas"].items()):
        parts += _schema(name, schema)
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section>\n<h2><code>{method.upper()} {escape(path)}</code></h2>\n"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>\n"
    rows = [
        (one["name"], _kind(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    yield from _table(("parameter", "value", "meaning"), rows)
    bodies = operation.get("requestBody", {}).get("content", {})
    yield from _table(
        ("body", "content"), [(kind, _kind(body["schema"])) for kind, body in bodies.items()]
    )
    answers = [
        (f"{status} {kind}", _kind(answer.get("schema", {})))
        for status, response in operation["responses"].items()
        if status.startswith("2")
        for kind, answer in response.get("content", {}).items()
    ]
    yield from _table(("answer", "content"), answers)
    yield "</section>\n"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<section id="{escape(name)}">\n<h3>{escape(name)}</h3>\n'
    yield f"<p>{escape(schema.get('description', ''))}</p>\n"
    needed = schema.get("required", ())
    rows = [
        (field, _kind(value), "" if field in needed else "may be left out")
        for field, value in schema.get("properties", {}).items()
    ]
    yield from _table(("field", "value", ""), rows)
    yield "</section>\n"


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "properties" in schema:
        return ", ".join(schema["properties"])
    words = " or ".join(map(str, schema.get("enum", ()))) or schema.get("type", "anything")
    limits = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("default", "else"))
        if schema.get(key) is not None
    ]
    return " ".join([str(words), *limits])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    yield "<table>\n<tr>" + "".join(f"<th>{word}</th>" for word in head) + "</tr>\n"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
    yield "</table>\n"
