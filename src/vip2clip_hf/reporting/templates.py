"""Pages from Jinja templates: one file that loads nothing and runs no script but its own."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from ..utils.extras import extra
from ..utils.text import shown


FOLDER = "pages"


def render(
    package: str,
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    script: str = "",
    **values: Any,
) -> str:
    """
    Fill in a template. Values are escaped.

    Templates extend `base.html.jinja`, the frame of all reports. Its content security policy forbids requests to any
    server, and every script except for `script`, so text in a page cannot run.

    Args:
        package (`str`): package with the template. Templates of this package are found from everywhere.
        template (`str`): name of the template.
        filters (`Mapping[str, Callable]`, *optional*): further filters of the template. `shown` is always there.
        script (`str`, defaults to `""`): script of the page. It must not contain the text `</script`.
        values: values of the template.

    Returns:
        `str`: the page, in HTML.

    Raises:
        ImportError: if Jinja2 is not installed.
        ValueError: if the script would end early.
    """
    with extra("report", "A report"):
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup

    if "</script" in script.lower():
        raise ValueError("The script of the page contains '</script'; expected a script without it.")

    def load(name: str) -> str | None:
        for place in (resources.files(package), resources.files(__package__).joinpath(FOLDER)):
            if (file := place.joinpath(name)).is_file():
                return file.read_text(encoding="utf-8")
        return None

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(load)
    )
    environment.filters.update({"shown": shown, **(filters or {})})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        # Markup: both are files of this package.
        script=Markup(script),
        script_source=f"'sha256-{digest}'" if script else "'none'",
        base_style=Markup(asset("base.css")),
        **values,
    )


def asset(name: str) -> str:
    """
    Read a script or style sheet of this package.

    Args:
        name (`str`): file name.

    Returns:
        `str`: the text.
    """
    return resources.files(__package__).joinpath(FOLDER).joinpath(name).read_text(encoding="utf-8")


__all__ = ["asset", "render"]
