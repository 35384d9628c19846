"""The description of the API as one page for people: no script, no file from elsewhere, readable offline."""

import base64
import hashlib
import html
import json
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --accent: #7cc0ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { margin: .5rem 0; } h2 { border-bottom: 1px solid var(--line); margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
a { color: var(--accent); }
code { font: .9em ui-monospace, monospace; }
nav ul { columns: 16rem; list-style: none; padding: 0; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .5rem 0; }
summary b { display: inline-block; font: 600 .85em ui-monospace, monospace; min-width: 4.5rem; }
summary span { color: color-mix(in srgb, currentColor 70%, transparent); display: block; padding-left: 4.5rem; }
.body { background: var(--soft); padding: .25rem 1rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
td:first-child { overflow-wrap: break-word; }
@media (min-width: 40rem) { td:first-child { white-space: nowrap; } }
@media (max-width: 40rem) { summary span { padding-left: 0; } table { font-size: .9rem; } .body { padding: .25rem .5rem .5rem; } }
"""
STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{STYLE_DIGEST}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_api_page(app: FastAPI) -> None:
    """Serve the description as a page under /docs, beside the JSON under /openapi.json."""

    @cache
    def page() -> str:
        return render_page(app.openapi())

    def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(page(), headers=HEADERS)

    app.add_route("/docs", docs, include_in_schema=False)


def render_page(schema: dict[str, Any]) -> str:
    """Return the page of an OpenAPI description."""
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for tag in operation.get("tags", ["other"]):
                groups.setdefault(tag, []).append((method.upper(), path, operation))
    schemas = schema["components"]["schemas"]
    title = _text(f"{schema['info']['title']} API")
    links = [*groups, "objects"]
    return "".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body><header><h1>{title}</h1>",
            *(f"<p>{_prose(part)}</p>" for part in schema["info"]["description"].split("\n\n")),
            '<p>The same for programs: <a href="/openapi.json">openapi.json</a></p></header>',
            "<nav><ul>",
            *(f'<li><a href="#{_anchor(name)}">{_text(name)}</a></li>' for name in links),
            "</ul></nav><main>",
            *(_group(tag, operations) for tag, operations in groups.items()),
            '<h2 id="objects">objects</h2>',
            *(_object(name, each) for name, each in sorted(schemas.items())),
            "</main></body></html>",
        ]
    )


def _group(tag: str, operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    parts = [_operation(*each) for each in operations]
    return f'<section><h2 id="{_anchor(tag)}">{_text(tag)}</h2>{"".join(parts)}</section>'


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    what = _prose(operation.get("description", operation.get("summary", "")))
    parts = [
        f'<details id="{_anchor(operation["operationId"])}"><summary><b>{method}</b> <code>{_text(path)}</code>',
        f'<span>{what}</span></summary><div class="body">',
    ]
    if not operation["security"]:
        parts.append("<p>Needs no key.</p>")
    if operation["parameters"]:
        rows = [
            (each["name"], each["in"], _type(each["schema"]), each.get("required", False), each["schema"])
            for each in operation["parameters"]
        ]
        parts.append(_table("Parameters", rows))
    if "requestBody" in operation:
        kinds = [
            f"<code>{_text(media_type)}</code>: {_type(content['schema'])}"
            for media_type, content in operation["requestBody"]["content"].items()
        ]
        parts.append(f"<h3>Body</h3><p>{'<br>'.join(kinds)}</p>")
    parts.append("<h3>Replies</h3><p>")
    for code, reply in operation["responses"].items():
        kinds = [
            f"<code>{_text(media_type)}</code> {_type(content.get('schema', {}))}"
            for media_type, content in reply.get("content", {}).items()
        ]
        parts.append(f"<b>{_text(code)}</b> {', '.join(kinds)}<br>")
    parts.append("</p></div></details>")
    return "".join(parts)


def _object(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (field, "", _type(each), field in required, each)
        for field, each in schema.get("properties", {}).items()
    ]
    return (
        f'<details id="{_anchor(name)}"><summary><code>{_text(schema.get("title", name))}</code>'
        f'<span>{_prose(schema.get("description", ""))}</span></summary><div class="body">'
        f"{_table('Fields', rows) if rows else f'<p>{_type(schema)}</p>'}</div></details>"
    )


def _table(title: str, rows: list[tuple[str, str, str, bool, dict[str, Any]]]) -> str:
    lines = [f'<h3>{title}</h3><div class="wide"><table>']
    for name, place, kind, required, schema in rows:
        facts = [
            place,
            "required" if required else "",
            _bounds(schema),
            _prose(schema.get("description", "")),
        ]
        lines.append(
            f"<tr><td><code>{_text(name)}</code></td><td>{kind}</td>"
            f"<td>{'; '.join(fact for fact in facts if fact)}</td></tr>"
        )
    return "".join([*lines, "</table></div>"])


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value in a word or two, with links to the objects that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{_text(name)}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[union]))
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return " or ".join(f"<code>{_text(value)}</code>" for value in values)
    kind = schema.get("type", "any")
    return f"list of {_type(schema['items'])}" if kind == "array" and "items" in schema else _text(kind)


BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "shortest",
    "maxLength": "longest",
    "maxItems": "items at most",
    "default": "default",
}


def _bounds(schema: dict[str, Any]) -> str:
    facts: list[str] = []
    for each in (*schema.get("anyOf", []), schema):
        facts += [f"{word} {_value(each[key])}" for key, word in BOUNDS.items() if each.get(key) is not None]
    return ", ".join(dict.fromkeys(facts))


def _value(value: object) -> str:
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _prose(text: str) -> str:
    """Return text with what stands between backticks as code."""
    return "".join(
        f"<code>{_text(part)}</code>" if index % 2 else _text(part)
        for index, part in enumerate(text.split("`"))
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _anchor(name: str) -> str:
    return "".join(each if each.isalnum() else "-" for each in name)
