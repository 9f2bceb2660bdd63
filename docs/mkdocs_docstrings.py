"""Convert docstrings in the Hugging Face style to Markdown, for the API page built by mkdocstrings.

The parsers of griffe lose parts of entries such as `name (`type`, defaults to 1):` (several names in one entry, types
in backticks). This module turns each entry into a list item without changing its text, and [`Name`] into a link if the
API page contains this name.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe


_HEADING = re.compile(r"^(Args|Returns|Raises|Yields|Examples?):(?: (.+))?$")
_API_PAGE = Path(__file__).with_name("api.md")


def _split_entry(entry: str) -> tuple[str, str]:
    """Split an entry at the first colon outside brackets and backticks, into names with types and a description. Names
    are set as code; types already are."""
    depth, quoted, outside = 0, False, ""
    for letter in entry:
        quoted ^= letter == "`"
        if not quoted:
            depth += (letter in "([") - (letter in ")]")
            if letter == ":" and depth == 0:
                break
        outside += " " if quoted or depth else letter  # same length, with the contents of brackets blanked
    head = entry[: len(outside)]
    for name in reversed(list(re.finditer(r"(?<![^ ,])\*{0,2}\w+(?=[ ,]|$)", outside))):
        head = f"{head[: name.start()]}`{name[0]}`{head[name.end() :]}"
    return " ".join(head.split()), entry[len(outside) + 1 :]


def _to_list(body: list[str]) -> list[str]:
    """Convert the entries of a section to list items."""
    entries: list[list[str]] = []
    for line in textwrap.dedent("\n".join(body)).splitlines():
        if line and not line.startswith(" "):
            entries.append([line])
        elif entries:
            entries[-1].append(line)
    items = []
    for lines in entries:
        head, text = _split_entry("\n".join(lines))
        first, _, rest = text.strip("\n").partition("\n")
        text = f"{first.strip()}\n{textwrap.dedent(rest)}".strip()
        items.append(textwrap.indent(f"{head}: {text}" if text else head, "    ").replace("    ", "-   ", 1))
    return items


def to_markdown(docstring: str, known: dict[str, str]) -> str:
    """
    Convert a docstring to Markdown.

    Args:
        docstring (`str`): docstring without indentation.
        known (`dict[str, str]`): full paths of the objects on the API page, by name.

    Returns:
        `str`: the docstring in Markdown.
    """
    lines, written = docstring.splitlines(), []
    while lines:
        line = lines.pop(0)
        heading = _HEADING.match(line)
        if heading is None:
            written.append(line)
            continue
        body = []
        while lines and (not lines[0] or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        written += ["", f"**{heading[1]}**", ""]
        if heading[2]:
            written.append(heading[2])
        listed = heading[1] in ("Args", "Raises")
        written += _to_list(body) if listed else textwrap.dedent("\n".join(body)).splitlines()
        written.append("")

    def link(found: re.Match) -> str:
        name, _, member = found[1].partition(".")
        path = f"{known[name]}.{member}".rstrip(".") if name in known else found[1]
        return f"[`{found[1]}`][{path}]" if name in known or path in known.values() else f"`{found[1]}`"

    text = "\n".join(written).replace("] [", "] \\[")  # two pairs of brackets in a row are not a link
    return re.sub(r"\[`([\w.]+)`\](?![(\[])", link, text)


class Docstrings(griffe.Extension):
    """Convert every docstring to Markdown before it is rendered."""

    def __init__(self):
        paths = re.findall(r"^::: ([\w.]+)$", _API_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        self.known = {path.rpartition(".")[2]: path for path in paths}

    def on_object(self, *, obj: griffe.Object, **kwargs: Any):
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self.known)
