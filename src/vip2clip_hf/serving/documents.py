"""The page `/docs`: the OpenAPI description as plain HTML, without scripts and without files of other servers."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f;
  background: #fff }
h2 code { background: none } code, pre { font: 14px/1.4 ui-monospace, monospace; background: #f2f3f7 }
pre { padding: .75rem; overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { border: 1px solid #c9cbd6; padding: .3rem .6rem; text-align: left; vertical-align: top }
form { border: 1px solid #c9cbd6; padding: 1rem } button { font: inherit }
@media (prefers-color-scheme: dark) {
  body { color: #e4e4ea; background: #16171d; color-scheme: dark } code, pre { background: #262833 }
  a { color: #9db4ff } th, td, form { border-color: #4a4d5e }
}
"""
_FORM = """
<form method="post" action="predict?heatmap=true" enctype="multipart/form-data">
<label for="images">Photos:</label>
<input id="images" name="images" type="file" accept="image/*" multiple required>
<button type="submit">Predict</button>
</form>
"""


def page_of(schema: dict[str, Any], needs_key: bool) -> str:
    """
    Write the page.

    Args:
        schema (`dict[str, Any]`): the OpenAPI description.
        needs_key (`bool`): whether requests need a key. A form in a browser cannot send one, so there is none.

    Returns:
        `str`: the HTML.
    """
    info = schema["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    if needs_key:
        parts.append("<p>Requests need the header <code>Authorization: Bearer KEY</code>.</p>")
    else:
        parts.append(_FORM)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation)
    for name, model in sorted(schema.get("components", {}).get("schemas", {}).items()):
        parts += [f"<h2><code>{escape(name)}</code></h2>", f"<p>{escape(model.get('description', ''))}</p>"]
        rows = [(field, _type(found), found.get("description", "")) for field, found in model["properties"].items()]
        parts.append(_table(("field", "type", "description"), rows))
    return "\n".join([*parts, "</body></html>"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"]
    parts += [f"<p>{escape(text)}</p>" for text in operation.get("description", "").split("\n\n") if text]
    if parameters := operation.get("parameters"):
        rows = [
            (one["name"], _type(one["schema"]), json.dumps(one["schema"].get("default")), one.get("description", ""))
            for one in parameters
        ]
        parts.append(_table(("parameter", "type", "default", "description"), rows))
    if body := operation.get("requestBody"):
        kinds = [(kind, found.get("description", "")) for kind, found in body["content"].items()]
        parts.append(_table(("body", "content"), kinds))
    statuses = [
        (status, ", ".join(found.get("content", {})), found["description"])
        for status, found in operation["responses"].items()
    ]
    return [*parts, _table(("status", "type", "description"), statuses)]


def _type(schema: dict[str, Any]) -> str:
    """Describe a type in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return schema.get("type", "any")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


__all__ = ["page_of"]
