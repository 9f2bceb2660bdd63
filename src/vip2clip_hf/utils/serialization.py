"""Write results as JSON."""

import json
import math
from typing import Any


def to_json(content: Any) -> str:
    """
    Format the content of a JSON file: indented, with non-ASCII characters as they are and a final line break.

    Args:
        content: JSON-serializable content.

    Returns:
        `str`: the text.

    Raises:
        ValueError: if the content contains NaN or infinity; see [`without_nan`].
        TypeError: if the content is not JSON-serializable.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
