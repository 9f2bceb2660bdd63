"""Results as JSON."""

import json
import math
from typing import Any


def to_json(content: Any) -> str:
    """JSON text of a file: indented, in UTF-8, with a line break at the end."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """The same content with `None` for every NaN, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = ["to_json", "without_nan"]
