"""Hook of mkdocs: shows the notebooks as pages of the site. Their cells become Markdown and blocks of code.

On GitHub, links lead to the notebooks themselves, which GitHub shows. The site also offers them for download.
"""

import json
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files


LINK = re.compile(r"(\]\([^)\s]*)\.ipynb(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=to_markdown(file))
            files.append(page)
    return files


def to_markdown(file: File) -> str:
    """Convert a notebook."""
    parts = []
    for cell in json.loads(file.content_string)["cells"]:
        source = "".join(cell["source"]).strip("\n")
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
            parts.append(f"{fence}python\n{source}\n{fence}")
    # After the title and the introduction.
    download = f'<a href="{posixpath.basename(file.src_uri)}" download>Download this page as a Jupyter notebook</a>'
    return "\n\n".join([*parts[:1], download, *parts[1:]]) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links between pages lead to the page instead of the notebook."""
    return LINK.sub(r"\1.md\2)", markdown)
