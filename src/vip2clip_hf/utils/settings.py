"""Read settings of the form `NAME=VALUE`."""

import json
from collections.abc import Iterable
from typing import Any


def read_settings(settings: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """
    Read settings such as `["image_size=518", "feature_layers=[6, 12]"]`.

    Args:
        settings (`Iterable[str]`): texts of the form `NAME=VALUE`. A value is parsed as JSON, or is kept as text.
        option (`str`, defaults to `"--set"`): option of the command, for the message.

    Returns:
        `dict[str, Any]`: value by name.

    Raises:
        ValueError: if a setting has no name or no "=".
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option} is {setting!r}; expected NAME=VALUE, such as image_size=518.")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found


__all__ = ["read_settings"]
