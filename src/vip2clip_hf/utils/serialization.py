"""Write results as JSON."""

import json
import math
import re
from typing import Any


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def to_json(content: Any, indent: int | None = 2) -> str:
    """
    Format the content of a JSON file: indented, with non-ASCII characters as they are and a final line break.

    A byte of a file name that is not valid UTF-8 is written as an escape such as `\\udcff`. The text is therefore
    always valid UTF-8, and `os.fsencode(name)` of a name read from the JSON returns the bytes of the file name.

    Args:
        content: JSON-serializable content.
        indent (`int`, *optional*, defaults to 2): spaces per level; `None` for one line.

    Returns:
        `str`: the text.

    Raises:
        ValueError: if the content contains NaN or infinity; see [`without_nan`].
        TypeError: if the content is not JSON-serializable.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    # Surrogates occur in strings only, where the escape means the same.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_nan(value: Any) -> Any:
    """
    Replace every NaN, which JSON does not allow, by `None`.

    Args:
        value: content of dicts, lists, tuples and scalars.

    Returns:
        A copy of the content; tuples become lists.
    """
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = ["to_json", "without_nan"]
